//! The system of the virtual machine: an archive that the kernel unpacks into memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;

use super::kernel::Kernel;
use super::scenarios::{MODULES, Scenario, TOOLS};
use crate::cargo::{stdout_of, target_directory};
use crate::setup::find_program;

/// Where the project's own programs lie inside.
const OURS: &str = "/fairway";
/// The programs under test and those that tests call; the last one is the first process.
const BINARIES: [&str; 5] =
    ["fairway-proxy", "fairway-controlplane", "fairway-cni", "fairway-lab", INIT];
const INIT: &str = "fairway-guest";

/// Writes the system that runs `scenarios` to `path`.
pub(super) fn make(
    path: &Path,
    kernel: &Kernel,
    scenarios: &[&Scenario],
    tests: &[(String, PathBuf)],
) -> anyhow::Result<()> {
    let scratch = path.with_extension("stripped");
    fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let mut image = Image::default();
    let built = target_directory()?.join("debug");
    for name in BINARIES {
        image.program(&PathBuf::from(OURS).join(name), &strip(&built.join(name), &scratch)?)?;
    }
    image.put("/init".into(), Content::Link(format!("{OURS}/{INIT}")));
    for tool in TOOLS {
        if let Some(path) = find_program(tool) {
            image.program(&path, &path)?;
        }
    }

    let names: Vec<&str> =
        MODULES.iter().chain(scenarios.iter().flat_map(|s| s.modules)).copied().collect();
    let mut modules = Vec::new();
    for file in kernel.modules(&names)? {
        let inside = PathBuf::from("/modules").join(file.file_name().unwrap_or_default());
        image.put(inside.clone(), Content::File(file));
        modules.push(inside);
    }

    let mut runs = Vec::new();
    for scenario in scenarios {
        let program = tests.iter().find(|(name, _)| name == scenario.program);
        let (_, program) =
            program.with_context(|| format!("no test program {:?}", scenario.program))?;
        let inside = PathBuf::from(OURS).join(program.file_name().unwrap_or_default());
        if !image.contents.contains_key(&inside) {
            image.program(&inside, &strip(program, &scratch)?)?;
        }
        runs.push(json!({
            "title": scenario.title,
            "program": inside,
            "arguments": scenario.arguments,
        }));
    }
    let plan = json!({
        "modules": modules,
        "environment": [
            ["PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            // What cannot run there is a failure.
            ["CI", "true"],
            ["FAIRWAY_BIN_DIR", OURS],
            ["RUST_BACKTRACE", "1"],
        ],
        "runs": runs,
    });
    image.put("/plan.json".into(), Content::Text(plan.to_string()));
    image.write(path)
}

/// A copy without what only a debugger reads, which is most of it; the program itself if there is no strip(1).
fn strip(program: &Path, scratch: &Path) -> anyhow::Result<PathBuf> {
    let Some(strip) = find_program("strip") else { return Ok(program.to_owned()) };
    let copy = scratch.join(program.file_name().unwrap_or_default());
    stdout_of(Command::new(strip).args(["--strip-debug", "-o"]).arg(&copy).arg(program))?;
    Ok(copy)
}

/// Files by their paths inside.
#[derive(Default)]
struct Image {
    contents: BTreeMap<PathBuf, Content>,
}

enum Content {
    Folder,
    File(PathBuf),
    Text(String),
    Link(String),
}

impl Image {
    /// Puts a file and the folders it lies in.
    fn put(&mut self, inside: PathBuf, content: Content) {
        for folder in inside.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
            self.contents.entry(folder.to_owned()).or_insert(Content::Folder);
        }
        self.contents.insert(inside, content);
    }

    /// Puts a program and the libraries it is loaded with.
    fn program(&mut self, inside: &Path, program: &Path) -> anyhow::Result<()> {
        // What is linked statically has none, and ldd(1) says so by failing.
        let listed = Command::new("ldd").arg(program).output().context("start ldd")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(!listed.contains("not found"), "{}: {listed}", program.display());
        for library in listed.lines().filter_map(library) {
            self.put(library.clone(), Content::File(library));
        }
        self.put(inside.to_owned(), Content::File(program.to_owned()));
        Ok(())
    }

    /// Writes the archive, in the format that the kernel's documentation calls `newc`
    /// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let about = || format!("write {}", path.display());
        let mut archive = BufWriter::new(File::create(path).with_context(about)?);
        for (number, (inside, content)) in self.contents.iter().enumerate() {
            let (mode, bytes) = match content {
                Content::Folder => (0o040_755, Vec::new()),
                Content::Text(text) => (0o100_644, text.clone().into_bytes()),
                Content::Link(target) => (0o120_777, target.clone().into_bytes()),
                Content::File(file) => {
                    let bytes = fs::read(file);
                    (0o100_755, bytes.with_context(|| format!("read {}", file.display()))?)
                }
            };
            let name = inside.strip_prefix("/").unwrap_or(inside);
            entry(&mut archive, number, mode, &name.to_string_lossy(), &bytes)
                .with_context(about)?;
        }
        entry(&mut archive, 0, 0, "TRAILER!!!", &[]).with_context(about)?;
        archive.flush().with_context(about)
    }
}

/// Writes one file of an archive: a header of numbers in hexadecimal, the name, the bytes, each part on four bytes.
fn entry(
    archive: &mut impl Write,
    number: usize,
    mode: u32,
    name: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    const HEADER: usize = 110;
    let padding = |length: usize| &[0u8; 3][..length.next_multiple_of(4) - length];
    let (size, name_size) = (bytes.len(), name.len() + 1);
    // Magic, inode, mode, owner, group, links, time, size, and numbers of devices; no checksum.
    write!(archive, "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}", 0, 1)?;
    write!(archive, "{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0", 0)?;
    archive.write_all(padding(HEADER + name_size))?;
    archive.write_all(bytes)?;
    archive.write_all(padding(size))
}

/// The path of a library in a line of ldd(1): `libc.so.6 => /lib/libc.so.6 (0x7f)` or `/lib64/ld.so.2 (0x7f)`.
fn library(line: &str) -> Option<PathBuf> {
    let (before, _address) = line.trim().rsplit_once(" (0x")?;
    let path = before.rsplit(" => ").next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_by_their_paths() {
        for (line, path) in [
            ("\tlinux-vdso.so.1 (0x00007ffd)", None),
            (
                "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0c)",
                Some("/lib/x86_64-linux-gnu/libc.so.6"),
            ),
            ("\t/lib64/ld-linux-x86-64.so.2 (0x00007f0c)", Some("/lib64/ld-linux-x86-64.so.2")),
            ("\tstatically linked", None),
        ] {
            assert_eq!(library(line), path.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn every_part_of_an_entry_begins_on_four_bytes() {
        let mut archive = Vec::new();
        entry(&mut archive, 7, 0o100_644, "ab", b"12345").unwrap();
        let text = String::from_utf8(archive).unwrap();
        assert!(text.starts_with("07070100000007000081a4"), "{text}");
        assert_eq!(&text[110..116], "ab\0\0\0\0"[..6].to_owned());
        assert_eq!(text.len() % 4, 0);
        assert!(text.ends_with("12345\0\0\0"));
    }

    #[test]
    fn folders_come_before_what_lies_in_them() {
        let mut image = Image::default();
        image.put("/a/b/c".into(), Content::Text(String::new()));
        let paths: Vec<_> = image.contents.keys().map(|path| path.to_string_lossy()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
    }
}
