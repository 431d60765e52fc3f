//! Files that are whole or not there, whatever happens while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Replaces the file at `path` by `contents`: after a crash at any moment it holds either all of
/// the old or all of the new. Parent folders are made. Blocks on the disk.
///
/// Whoever writes the same path at the same time, also another process, is waited for; who comes last stays.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_by(path, |file| file.write_all(contents))
}

/// [`replace`] by what `write` writes, for contents that need not be in memory as a whole.
pub(crate) fn replace_by(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    replace_with(path, write, 0o666, true)
}

/// [`replace`] without waiting for the disk: whole whenever a process ends or is killed, but after a power failure
/// perhaps old, empty or gone, unless [`sync`] came in between.
pub fn replace_unsynced(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(contents), 0o666, false)
}

/// Returns when what was written to a file is on the disk, and its name as well.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// [`replace`], of a file that nobody but its owner may read.
pub fn replace_secret(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(contents), 0o600, true)
}

fn replace_with(
    path: &Path,
    contents: impl FnOnce(&mut File) -> io::Result<()>,
    mode: u32,
    sync: bool,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    fs::create_dir_all(folder)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let temporary = folder.join(hidden);
    // It is this one's until it is closed.
    let mut file = create(&temporary, mode)?;
    let written = contents(&mut file)
        .and_then(|()| if sync { file.sync_all() } else { Ok(()) })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of a failed write only takes room; that it cannot go either changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    // The rename itself is only durable once the folder is.
    if sync { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// A new file, which is locked. `mode` is taken away from by the process's umask, as ever.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    loop {
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
            Ok(file) => {
                lock(&file)?;
                // Else somebody has locked it before, and took it for what a crash left behind.
                if is_at(&file, path)? {
                    return Ok(file);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => clear(path)?,
            Err(error) => return Err(error),
        }
    }
}

/// Waits for whoever writes there. What a crash left behind goes: it may have another mode.
fn clear(path: &Path) -> io::Result<()> {
    let there = || -> io::Result<()> {
        if !fs::symlink_metadata(path)?.is_file() {
            return fs::remove_file(path);
        }
        let file = OpenOptions::new().write(true).open(path)?;
        lock(&file)?;
        if is_at(&file, path)? { fs::remove_file(path) } else { Ok(()) }
    };
    match there() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits for whoever has locked the file, where the file system knows of locks.
fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        _ => Ok(()),
    }
}

/// Whether the path still names this file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/state.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        replace_unsynced(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn writers_of_one_path_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        // What a crash left behind.
        fs::write(folder.path().join(".state.json.new"), b"half").unwrap();
        std::thread::scope(|scope| {
            for (letter, length) in [(b'a', 10_000), (b'b', 20_000), (b'c', 30_000)] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..100 {
                        replace_unsynced(path, &vec![letter; length]).unwrap();
                        let read = fs::read(path).unwrap();
                        let whole = [(b'a', 10_000), (b'b', 20_000), (b'c', 30_000)];
                        assert!(whole.contains(&(read[0], read.len())), "{}", read.len());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        replace(&path, b"one").unwrap();
        // A folder in the temporary file's place makes the write fail, also for root.
        fs::create_dir(folder.path().join(".state.json.new")).unwrap();
        assert!(replace(&path, b"two").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_secret_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        // Left behind by a crash of somebody less careful.
        fs::write(folder.path().join(".key.new"), b"old").unwrap();
        for contents in [&b"one"[..], b"two"] {
            replace_secret(&path, contents).unwrap();
            assert_eq!(fs::read(&path).unwrap(), contents);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
