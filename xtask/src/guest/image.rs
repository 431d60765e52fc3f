//! The system of the virtual machine: an archive that the kernel unpacks into memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::kernel::Kernel;
use super::scenarios::{MODULES, Scenario, TOOLS};
use crate::cargo::target_directory;
use crate::setup::find_program;
use crate::tree::{Content, Tree, strip};

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
    let mut image = Tree::default();
    let built = target_directory()?.join("debug");
    for name in BINARIES {
        image.program(PathBuf::from(OURS).join(name), &strip(&built.join(name), &scratch)?)?;
    }
    image.put("/init", Content::Link(format!("{OURS}/{INIT}")));
    for tool in TOOLS {
        if let Some(path) = find_program(tool) {
            image.program(path.clone(), &path)?;
        }
    }

    // A pod of a lab sees its own in place of these, which have to be there.
    for file in ["hosts", "hostname", "resolv.conf"] {
        image.put(Path::new("/etc").join(file), Content::Text(String::new()));
    }

    let names: Vec<&str> =
        MODULES.iter().chain(scenarios.iter().flat_map(|s| s.modules)).copied().collect();
    let mut modules = Vec::new();
    for file in kernel.modules(&names)? {
        let inside = PathBuf::from("/modules").join(file.file_name().unwrap_or_default());
        image.put(inside.clone(), Content::Program(file));
        modules.push(inside);
    }

    let mut runs = Vec::new();
    for scenario in scenarios {
        let program = tests.iter().find(|(name, _)| name == scenario.program);
        let (_, program) =
            program.with_context(|| format!("no test program {:?}", scenario.program))?;
        let inside = PathBuf::from(OURS).join(program.file_name().unwrap_or_default());
        if !image.contents.contains_key(&inside) {
            image.program(inside.clone(), &strip(program, &scratch)?)?;
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
    image.put("/plan.json", Content::Text(plan.to_string()));
    write(&image, path)
}

/// Writes the archive, in the format that the kernel's documentation calls `newc`
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn write(tree: &Tree, path: &Path) -> anyhow::Result<()> {
    let about = || format!("write {}", path.display());
    let mut archive = BufWriter::new(File::create(path).with_context(about)?);
    for (number, (inside, content)) in tree.contents.iter().enumerate() {
        let name = inside.strip_prefix("/").unwrap_or(inside).to_string_lossy();
        entry(&mut archive, number, content.mode(), &name, &content.bytes()?)
            .with_context(about)?;
    }
    entry(&mut archive, 0, 0, "TRAILER!!!", &[]).with_context(about)?;
    archive.flush().with_context(about)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
