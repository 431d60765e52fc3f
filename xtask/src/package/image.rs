//! An image archive: an OCI image layout (image-spec, `image-layout.md`) in a tar(1) file, with the `manifest.json` that
//! older versions of Docker ask for. `ctr image import`, `podman load`, `docker load`, `kind load image-archive` take it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::{PROGRAMS, Part, VERSION, make_anew, write_out};
use crate::cargo::stdout_of;
use crate::tree::{Content, Tree};

const MEDIA: &str = "application/vnd.oci.image";

/// Writes `part` to a file of `folder`, and answers which.
pub(super) fn write(
    part: &Part,
    programs: &[PathBuf],
    scratch: &Path,
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let mut tree = Tree::default();
    for program in programs {
        let name = program.file_name().unwrap_or_default();
        tree.program(Path::new(PROGRAMS).join(name), program)?;
    }
    // Where names are looked up: the C library would ask for services that the image has no libraries of.
    tree.put("/etc/nsswitch.conf", Content::Text("hosts: files dns\n".to_owned()));
    tree.put("/tmp", Content::Folder);
    let system = scratch.join("system");
    write_out(&tree, &system)?;

    let layout = scratch.join("layout");
    make_anew(&layout.join("blobs/sha256"))?;
    let layer = scratch.join("layer.tar");
    let mut first = Vec::new();
    if part.low_ports {
        let inside = format!(".{PROGRAMS}/{}", part.programs[0]);
        let program = system.join(&inside);
        let about = || format!("take {}", program.display());
        first = with_low_ports(&inside, &fs::read(&program).with_context(about)?);
        fs::remove_file(&program).with_context(about)?;
    }
    archive(&system, &["."], &layer)?;
    if !first.is_empty() {
        // An archive is its entries one after the other.
        first.extend(fs::read(&layer).with_context(|| format!("read {}", layer.display()))?);
        fs::write(&layer, first).with_context(|| format!("write {}", layer.display()))?;
    }
    let layer = Blob::take(&layout, &layer)?;
    let config = Blob::write(&layout, scratch, &config(part, &layer.digest))?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": format!("{MEDIA}.manifest.v1+json"),
        "config": config.descriptor("config.v1+json"),
        "layers": [layer.descriptor("layer.v1.tar")],
    });
    let manifest = Blob::write(&layout, scratch, &manifest)?;
    let tag = tag(part);
    let mut entry = manifest.descriptor("manifest.v1+json");
    entry["annotations"] =
        json!({"org.opencontainers.image.ref.name": VERSION, "io.containerd.image.name": tag});
    let put = |name: &str, value: &Value| {
        fs::write(layout.join(name), value.to_string()).with_context(|| format!("write {name}"))
    };
    put("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
    put("index.json", &json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let docker = json!([{"Config": config.path(), "RepoTags": [tag], "Layers": [layer.path()]}]);
    put("manifest.json", &docker)?;

    let path = folder.join(format!("{}_{VERSION}_{}.oci.tar", part.name, ARCHITECTURE));
    archive(&layout, &["oci-layout", "index.json", "manifest.json", "blobs"], &path)?;
    Ok(path)
}

/// Of a tar archive.
const BLOCK: usize = 512;

/// A program's entries in a tar archive, by which it may take ports below 1024 whoever starts it, if he was left the capability at all.
///
/// A user who is not root has no other way to it: container runtimes give capabilities to root alone, or to files. tar(1)
/// would have to find it on a file here, and only root can put it there.
fn with_low_ports(name: &str, program: &[u8]) -> Vec<u8> {
    // capabilities(7): revision 2 with the effective bit, and CAP_NET_BIND_SERVICE, 10, among the permitted ones.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const KEY: &str = " SCHILY.xattr.security.capability=";
    // Its length counts itself, which has two digits.
    let length = 2 + KEY.len() + CAPABILITY.len() + 1;
    let record = [format!("{length}{KEY}").as_bytes(), &CAPABILITY, b"\n"].concat();
    let mut entries = header(name, b'x', record.len()).to_vec();
    for (content, next) in [(&*record, Some(header(name, b'0', program.len()))), (program, None)] {
        entries.extend(content);
        entries.resize(entries.len().next_multiple_of(BLOCK), 0);
        entries.extend(next.into_iter().flatten());
    }
    entries
}

/// The header of an executable file, or of what is said of the next one (`x`), as POSIX has it (`ustar`).
fn header(name: &str, kind: u8, size: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    // The sum is made with blanks in its own place.
    put(148, "        ");
    put(257, "ustar\u{0}00");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// What the image is called where it is imported. No registry is asked for what is of this machine.
pub(super) fn tag(part: &Part) -> String {
    format!("localhost/{}:{VERSION}", part.name)
}

/// As Go calls it, and so the specification.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The image's configuration (`config.md`).
fn config(part: &Part, layer: &str) -> Value {
    json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("{PROGRAMS}/{}", part.programs[0])],
            "Env": [format!("PATH={PROGRAMS}")],
            "Labels": {
                "org.opencontainers.image.title": part.name,
                "org.opencontainers.image.description": part.summary,
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}

/// A file that is called by its digest.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    /// Moves `file` to where the layout has it.
    fn take(layout: &Path, file: &Path) -> anyhow::Result<Self> {
        let said = stdout_of(Command::new("sha256sum").arg("--").arg(file))?;
        let digest = said.split_whitespace().next().context("sha256sum says nothing")?.to_owned();
        let blob = Self { size: fs::metadata(file)?.len(), digest };
        let place = layout.join(blob.path());
        fs::rename(file, &place).with_context(|| format!("make {}", place.display()))?;
        Ok(blob)
    }

    fn write(layout: &Path, scratch: &Path, value: &Value) -> anyhow::Result<Self> {
        let file = scratch.join("blob");
        fs::write(&file, value.to_string()).with_context(|| format!("write {}", file.display()))?;
        Self::take(layout, &file)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    /// How others speak of it (`descriptor.md`).
    fn descriptor(&self, kind: &str) -> Value {
        let (digest, size) = (format!("sha256:{}", self.digest), self.size);
        json!({"mediaType": format!("{MEDIA}.{kind}"), "digest": digest, "size": size})
    }
}

/// Packs what lies in `folder` so that the same files make the same bytes.
fn archive(folder: &Path, names: &[&str], path: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--format=gnu", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
    tar.args(["--numeric-owner", "-C"]).arg(folder).arg("-cf").arg(path).args(names);
    stdout_of(&mut tar)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part {
        name: "small",
        summary: "a small one",
        programs: &["true"],
        low_ports: false,
        reloads: false,
    };

    /// An image of true(1), and the folder it is unpacked in.
    fn unpacked(part: &Part, scratch: &Path) -> PathBuf {
        let path = write(part, &["/bin/true".into()], scratch, scratch).unwrap();
        let folder = scratch.join("unpacked");
        fs::create_dir(&folder).unwrap();
        stdout_of(Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(&path)).unwrap();
        folder
    }

    fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Follows a descriptor, and holds the file against it.
    fn follow(folder: &Path, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = folder.join("blobs/sha256").join(digest);
        let said = stdout_of(Command::new("sha256sum").arg(&path)).unwrap();
        assert!(said.starts_with(digest), "{said}");
        assert_eq!(descriptor["size"], fs::metadata(&path).unwrap().len());
        path
    }

    #[test]
    fn an_image_leads_from_its_index_to_a_program_that_runs() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = unpacked(&PART, scratch.path());
        assert_eq!(json(&folder.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
        let manifest = json(&follow(&folder, &json(&folder.join("index.json"))["manifests"][0]));
        let config = json(&follow(&folder, &manifest["config"]));
        let layer = follow(&folder, &manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let docker = &json(&folder.join("manifest.json"))[0];
        assert!(folder.join(docker["Config"].as_str().unwrap()).is_file());
        assert_eq!(docker["RepoTags"][0], format!("localhost/small:{VERSION}"));

        let system = scratch.path().join("root");
        fs::create_dir(&system).unwrap();
        stdout_of(Command::new("tar").arg("-C").arg(&system).arg("-xf").arg(layer)).unwrap();
        let program = config["config"]["Entrypoint"][0].as_str().unwrap();
        // As root of a namespace of its own, which anybody may be.
        let mut inside = Command::new("unshare");
        stdout_of(inside.args(["--map-root-user", "chroot"]).arg(&system).arg(program)).unwrap();
    }

    /// Told by tar(1), as it would unpack it.
    #[test]
    fn a_program_for_low_ports_has_the_capability_in_its_layer() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = unpacked(&Part { low_ports: true, ..PART }, scratch.path());
        let manifest = json(&follow(&folder, &json(&folder.join("index.json"))["manifests"][0]));
        let layer = follow(&folder, &manifest["layers"][0]);
        let mut list = Command::new("tar");
        let said = stdout_of(list.args(["--xattrs-include=*", "-tvvf"]).arg(&layer)).unwrap();
        let lines: Vec<_> = said.lines().collect();
        let [file, attribute, ..] = lines[..] else { panic!("{said}") };
        let size = fs::metadata("/bin/true").unwrap().len();
        assert!(file.starts_with("-rwxr-xr-x* 0/0"), "{said}");
        assert!(
            file.contains(&size.to_string()) && file.ends_with(" ./usr/lib/fairway/true"),
            "{said}"
        );
        assert_eq!(
            attribute.split_whitespace().collect::<Vec<_>>(),
            ["x:", "20", "security.capability"]
        );

        let mut unpack = Command::new("tar");
        let out = unpack.args(["-xOf"]).arg(&layer).arg("./usr/lib/fairway/true").output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        assert!(out.stdout == fs::read("/bin/true").unwrap());
    }

    #[test]
    fn the_same_programs_make_the_same_image() {
        let write = || {
            let scratch = tempfile::tempdir().unwrap();
            let path = write(&PART, &["/bin/true".into()], scratch.path(), scratch.path());
            fs::read(path.unwrap()).unwrap()
        };
        assert!(write() == write());
    }
}
