//! The kernel of the virtual machine, out of Debian's package.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, ensure};

use crate::cargo::stdout_of;
use crate::setup::update_package_lists;
use crate::step::{self, Announce};

/// How the packages of this kernel's releases are called; a number and [`VARIANT`] follow.
const PACKAGE: &str = "linux-image-6.1.0-";
/// The generic kernel of this architecture: others have fewer modules.
const VARIANT: &str = "-amd64";

/// What is taken out of the package: the kernel, and the modules for networks with what those need.
const PARTS: [&str; 8] = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/kernel/net",
    "./lib/modules/*/kernel/crypto",
    "./lib/modules/*/kernel/lib",
    "./lib/modules/*/kernel/arch/x86/crypto",
    "./lib/modules/*/kernel/drivers/net/veth.ko",
    "./lib/modules/*/kernel/drivers/net/vxlan",
    "./lib/modules/*/kernel/drivers/net/wireguard",
];

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// What boots.
    pub(crate) image: PathBuf,
    /// The folder of its modules.
    modules: PathBuf,
}

impl Kernel {
    /// The kernel that was fetched before; it is fetched if there is none.
    ///
    /// # Errors
    /// When there is none, and this is no Debian whose package lists have one that can be fetched.
    pub(crate) fn obtain() -> anyhow::Result<Self> {
        let folder = super::folder()?;
        if let Some(kernel) = Self::find(&folder)? {
            return Ok(kernel);
        }
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        // Mirrors keep the newest few releases, and the lists may be older than that.
        if let Err(error) = fetch_newest(&folder) {
            eprintln!(
                "package lists anew, because there is no kernel by those that are here: {error:#}"
            );
            update_package_lists()?;
            fetch_newest(&folder)?;
        }
        Self::find(&folder)?.context("a kernel was fetched and cannot be found")
    }

    /// The newest unpacked one.
    fn find(folder: &Path) -> anyhow::Result<Option<Self>> {
        let Ok(entries) = fs::read_dir(folder) else { return Ok(None) };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let Some((number, name)) = names.filter_map(|name| Some((number(&name)?, name))).max()
        else {
            return Ok(None);
        };
        let release = format!("6.1.0-{number}{VARIANT}");
        let root = folder.join(name);
        let kernel = Self {
            image: root.join("boot").join(format!("vmlinuz-{release}")),
            modules: root.join("lib/modules").join(&release),
            release,
        };
        ensure!(kernel.image.is_file(), "{} is missing", kernel.image.display());
        Ok(Some(kernel))
    }

    /// The files of these modules and of all that they need, each after those it needs.
    pub(super) fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        walk(&self.modules, &mut files)?;
        let mut wanted = Vec::new();
        for name in names {
            want(name, &files, &mut wanted)?;
        }
        Ok(wanted)
    }
}

/// Fetches the newest release that can be had.
fn fetch_newest(folder: &Path) -> anyhow::Result<()> {
    let mut outcome = Err(anyhow!(
        "the package lists have no {PACKAGE}*{VARIANT}, which is a kernel of Debian 12"
    ));
    for package in packages()?.iter().rev().take(TRIES) {
        outcome = fetch(folder, package);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// How many releases are tried, the newest first.
const TRIES: usize = 3;

/// Every package of the kernel that the package lists know, the oldest first.
fn packages() -> anyhow::Result<Vec<String>> {
    let names = stdout_of(Command::new("apt-cache").args(["pkgnames", PACKAGE]))?;
    let packages: BTreeSet<_> =
        names.lines().filter_map(|name| Some((number(name)?, name.to_owned()))).collect();
    Ok(packages.into_iter().map(|(_, name)| name).collect())
}

/// The number of a release, if this is the name of a package of ours.
fn number(package: &str) -> Option<u32> {
    package.strip_prefix(PACKAGE)?.strip_suffix(VARIANT)?.parse().ok()
}

/// Downloads a package and unpacks what is wanted of it into a folder of its name, whole or not at all.
fn fetch(folder: &Path, package: &str) -> anyhow::Result<()> {
    let temporary = folder.join(format!("{package}.{}", std::process::id()));
    fs::create_dir_all(&temporary).with_context(|| format!("make {}", temporary.display()))?;
    let outcome = fetch_into(&temporary, package).and_then(|()| {
        let whole = folder.join(package);
        fs::rename(temporary.join("root"), &whole)
            .with_context(|| format!("make {}", whole.display()))
    });
    let removed =
        fs::remove_dir_all(&temporary).with_context(|| format!("remove {}", temporary.display()));
    outcome.and(removed)
}

fn fetch_into(folder: &Path, package: &str) -> anyhow::Result<()> {
    let mut download = Command::new("timeout");
    download.args(["--foreground", "--kill-after=10", "600", "apt-get", "download", package]);
    let title = format!("apt-get download {package}");
    step::run(&title, Announce::Always, download.current_dir(folder))?;
    let mut files = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let file = files.next().context("apt-get download brought no file")??.path();

    let root = folder.join("root");
    fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let contents = archive.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(&root).args([
        "--extract",
        "--wildcards",
        "--no-wildcards-match-slash",
    ]);
    let unpacked = stdout_of(tar.args(PARTS).stdin(contents));
    let status = archive.wait().context("wait for dpkg-deb")?;
    unpacked.with_context(|| format!("unpack {package}"))?;
    ensure!(status.success(), "dpkg-deb failed ({status})");
    Ok(())
}

/// All files in and below a folder.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Adds a module to `wanted`, after those it needs.
fn want(name: &str, files: &[PathBuf], wanted: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    // The kernel takes both signs for one, and file names have either.
    let same = |file: &&PathBuf| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        stem.replace('-', "_") == name.replace('-', "_")
    };
    let file = files.iter().find(same).with_context(|| format!("no module {name}"))?;
    if wanted.contains(file) {
        return Ok(());
    }
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    for needed in needs(&bytes) {
        want(&needed, files, wanted).with_context(|| format!("needed by {name}"))?;
    }
    wanted.push(file.clone());
    Ok(())
}

/// The modules that a module says it needs, in the text that depmod(8) reads too.
fn needs(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|bytes| bytes == MARK) else {
        return Vec::new();
    };
    let rest = &module[at + MARK.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_generic_kernel_is_taken_and_by_its_number() {
        assert_eq!(number("linux-image-6.1.0-56-amd64"), Some(56));
        for other in [
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-amd64-dbg",
            "linux-image-6.1.0-56-amd64.4711",
            "linux-image-6.12.0-5-amd64",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let vxlan = b"\x7fELF\0license=GPL\0depends=udp_tunnel,ip6_udp_tunnel\0name=vxlan\0";
        assert_eq!(needs(vxlan), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert_eq!(needs(b"\0license=GPL\0depends=\0name=veth\0"), [""; 0]);
        assert_eq!(needs(b"\x7fELF"), [""; 0]);
    }
}
