//! A system of files that is made before it is written: what a virtual machine boots, and what packages hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::cargo::stdout_of;
use crate::setup::find_program;

/// Files by their paths inside.
#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) contents: BTreeMap<PathBuf, Content>,
}

/// What is at a path.
pub(crate) enum Content {
    Folder,
    /// A file of this machine, to be executed.
    Program(PathBuf),
    Text(String),
    /// A symbolic link.
    Link(String),
}

impl Content {
    /// Type and permissions, as in `st_mode`.
    pub(crate) fn mode(&self) -> u32 {
        match self {
            Self::Folder => 0o040_755,
            Self::Program(_) => 0o100_755,
            Self::Text(_) => 0o100_644,
            Self::Link(_) => 0o120_777,
        }
    }

    /// What a file holds, or where a link leads.
    pub(crate) fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Folder => Ok(Vec::new()),
            Self::Text(text) | Self::Link(text) => Ok(text.clone().into_bytes()),
            Self::Program(file) => {
                fs::read(file).with_context(|| format!("read {}", file.display()))
            }
        }
    }
}

impl Tree {
    /// Puts a file and the folders it lies in.
    pub(crate) fn put(&mut self, inside: impl Into<PathBuf>, content: Content) {
        let inside = inside.into();
        for folder in inside.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
            self.contents.entry(folder.to_owned()).or_insert(Content::Folder);
        }
        self.contents.insert(inside, content);
    }

    /// Puts a program and the libraries it is loaded with.
    pub(crate) fn program(
        &mut self,
        inside: impl Into<PathBuf>,
        program: &Path,
    ) -> anyhow::Result<()> {
        // What is linked statically has none, and ldd(1) says so by failing.
        let listed = Command::new("ldd").arg(program).output().context("start ldd")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(!listed.contains("not found"), "{}: {listed}", program.display());
        for library in listed.lines().filter_map(library) {
            self.put(library.clone(), Content::Program(library));
        }
        self.put(inside, Content::Program(program.to_owned()));
        Ok(())
    }
}

/// A copy in `scratch` without what only a debugger reads, which is most of it; the program itself if there is no
/// strip(1).
pub(crate) fn strip(program: &Path, scratch: &Path) -> anyhow::Result<PathBuf> {
    let Some(strip) = find_program("strip") else { return Ok(program.to_owned()) };
    let copy = scratch.join(program.file_name().unwrap_or_default());
    stdout_of(Command::new(strip).args(["--strip-debug", "-o"]).arg(&copy).arg(program))?;
    Ok(copy)
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
    fn folders_come_before_what_lies_in_them() {
        let mut tree = Tree::default();
        tree.put("/a/b/c", Content::Text(String::new()));
        let paths: Vec<_> = tree.contents.keys().map(|path| path.to_string_lossy()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
    }
}
