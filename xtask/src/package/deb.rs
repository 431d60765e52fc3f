//! A Debian package (`deb(5)`), packed by `dpkg-deb`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{PROGRAMS, Part, VERSION, own_file, write_out};
use crate::cargo::stdout_of;
use crate::tree::{Content, Tree};

/// Writes `part` to a file of `folder`, and answers which.
pub(super) fn write(
    part: &Part,
    programs: &[PathBuf],
    scratch: &Path,
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let architecture = stdout_of(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let mut tree = Tree::default();
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        tree.put(format!("{PROGRAMS}/{name}"), Content::Program(program.clone()));
    }
    // The plugin is executed by a container runtime, and by nobody who types.
    let (runs, name) = (part.programs[0], part.name);
    tree.put(format!("/usr/bin/{runs}"), Content::Link(format!("../lib/fairway/{runs}")));
    let unit = format!("{runs}.service");
    let options = format!("/etc/default/{runs}");
    let shipped = own_file(&format!("deploy/systemd/{unit}"))?;
    tree.put(format!("/usr/lib/systemd/system/{unit}"), Content::Text(shipped));
    let shipped = own_file(&format!("deploy/systemd/{runs}.default"))?;
    tree.put(&options, Content::Text(shipped));
    tree.put(format!("/usr/share/doc/{name}/copyright"), Content::Text(own_file("LICENSE")?));

    let control = control(part, architecture, &libraries(programs, scratch)?);
    tree.put("/DEBIAN/control", Content::Text(control));
    tree.put("/DEBIAN/conffiles", Content::Text(format!("{options}\n")));
    for (script, text) in scripts(&unit, part.reloads) {
        // A script is a program, but it is no file yet.
        let file = scratch.join(format!("{name}.{script}"));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        tree.put(format!("/DEBIAN/{script}"), Content::Program(file));
    }

    let packed = scratch.join(name);
    write_out(&tree, &packed)?;
    let path = folder.join(format!("{name}_{VERSION}_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zxz", "--build"]).arg(&packed).arg(&path);
    // Times of files in the package.
    stdout_of(pack.env("SOURCE_DATE_EPOCH", "0"))?;
    Ok(path)
}

/// `deb-control(5)`.
fn control(part: &Part, architecture: &str, depends: &str) -> String {
    let Part { name, summary, .. } = part;
    format!(
        "Package: {name}\nVersion: {VERSION}\nArchitecture: {architecture}\nSection: net\nPriority: optional\n\
         Maintainer: The Fairway developers <fairway@localhost>\nDepends: {depends}\nDescription: {summary}\n"
    )
}

/// The packages of the libraries that the programs are linked with, in the versions that they need.
fn libraries(programs: &[PathBuf], scratch: &Path) -> anyhow::Result<String> {
    // dpkg-shlibdeps(1) wants to be called within a source package.
    let source = scratch.join("source");
    let control = source.join("debian/control");
    fs::create_dir_all(source.join("debian"))
        .and_then(|()| {
            fs::write(&control, "Source: fairway\n\nPackage: fairway\nArchitecture: any\n")
        })
        .with_context(|| format!("write {}", control.display()))?;
    let mut command = Command::new("dpkg-shlibdeps");
    command.current_dir(&source).args(["-O", "--warnings=0"]).args(programs);
    let said = stdout_of(&mut command).context("find the packages of libraries")?;
    let depends = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    depends.map(str::to_owned).context("dpkg-shlibdeps says nothing of dependencies")
}

/// What is run around the installation. A service is started by whoever has said its options; one that runs is
/// restarted with its new program, or `reloads` to it.
fn scripts(unit: &str, reloads: bool) -> [(&'static str, String); 2] {
    let script = |when: &str, what: &str| {
        format!(
            "#!/bin/sh\nset -e\nif [ \"$1\" = {when} ] && [ -d /run/systemd/system ]; then\n{what}fi\n"
        )
    };
    let renew = if reloads { "try-reload-or-restart" } else { "try-restart" };
    let configure = format!("    systemctl daemon-reload\n    systemctl {renew} {unit}\n");
    let remove = format!("    systemctl stop {unit}\n");
    [("postinst", script("configure", &configure)), ("prerm", script("remove", &remove))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_may_be_called_as_its_program() {
        let scratch = tempfile::tempdir().unwrap();
        let part = Part {
            name: "fairway-proxy",
            summary: "a small one",
            programs: &["fairway-proxy"],
            low_ports: false,
            reloads: false,
        };
        let programs = scratch.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let program = programs.join("fairway-proxy");
        fs::copy("/bin/true", &program).unwrap();
        let path = write(&part, &[program], scratch.path(), scratch.path()).unwrap();
        let said = stdout_of(Command::new("dpkg-deb").arg("--contents").arg(&path)).unwrap();
        for file in
            ["/usr/lib/fairway/fairway-proxy", "/usr/lib/systemd/system/fairway-proxy.service"]
        {
            assert!(said.contains(file), "{file}: {said}");
        }
        let field = |name: &str| {
            stdout_of(Command::new("dpkg-deb").arg("--field").arg(&path).arg(name)).unwrap()
        };
        assert_eq!(field("Package"), "fairway-proxy\n");
        assert!(field("Depends").contains("libc6"));
    }
}
