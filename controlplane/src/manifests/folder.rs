//! A folder to the texts of its manifests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The largest file read; a dump of a large cluster fits.
const MAX_FILE: u64 = 64 << 20;
/// The deepest folder read.
const MAX_DEPTH: usize = 32;

/// What a folder holds at one moment.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The manifests by path, each with its text or the reason it cannot be had.
    pub(super) files: BTreeMap<PathBuf, Result<String, String>>,
    /// Folders whose contents are not known, with the reason.
    pub(super) unknown: BTreeMap<PathBuf, String>,
}

/// Reads a folder with all below it, or a single file, into `listing`. What vanishes while it is
/// being read is gone.
///
/// Taken are `.yaml`, `.yml` and `.json`. Names that begin with a dot are not: they belong to
/// whoever puts files here in one step (a temporary name, the hidden folders of a mounted
/// ConfigMap). Links to files are followed, links to folders are not.
pub(super) fn read(path: &Path, listing: &mut Listing) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        read_dir(path, 0, listing)
    } else {
        listing.files.insert(path.to_owned(), read_file(path).map_err(|error| error.to_string()));
        Ok(())
    }
}

fn read_dir(folder: &Path, depth: usize, listing: &mut Listing) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("deeper than {MAX_DEPTH} folders")));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            match read_dir(&path, depth + 1, listing) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    listing.unknown.insert(path, error.to_string());
                }
                _ => {}
            }
        } else if is_manifest(&path) {
            match read_file(&path) {
                Ok(text) => {
                    listing.files.insert(path, Ok(text));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    listing.files.insert(path, Err(error.to_string()));
                }
            }
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read_file(path: &Path) -> io::Result<String> {
    // A pipe or a device would never end, or block before it begins.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}
