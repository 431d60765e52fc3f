//! What is given to others: a Debian package and an image archive for the node, and the same for the control plane and
//! the gateway.
//!
//! Each is made by programs that every Debian has (`dpkg-deb`, `tar`, `sha256sum`) and holds what `cargo xtask build`
//! made, without what a debugger reads. Files carry one time and no owner, so that the same binaries make the same bytes.
//!
//! | module | does |
//! |---|---|
//! | [`deb`] | writes a Debian package |
//! | [`image`] | writes an image archive, as container runtimes import it |

mod deb;
mod image;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::binaries::{self, Profile};
use crate::cargo::{root, target_directory};
use crate::tree::{Content, Tree, strip};

/// What is packed together.
struct Part {
    /// Of the package and the image.
    name: &'static str,
    /// One line about it.
    summary: &'static str,
    /// Its programs; the first one is what runs.
    programs: &'static [&'static str],
    /// Whether what runs takes ports below 1024, also as a user without root's power.
    low_ports: bool,
    /// Whether its service is replaced while it serves, by a reload.
    reloads: bool,
}

const PARTS: [Part; 3] = [
    Part {
        name: "fairway-node",
        summary: "node of a Kubernetes network: Services, pods, policies, by eBPF",
        programs: &["fairway-proxy", "fairway-cni"],
        low_ports: false,
        reloads: false,
    },
    Part {
        name: "fairway-controlplane",
        summary: "control plane of Fairway's Kubernetes network",
        programs: &["fairway-controlplane"],
        low_ports: false,
        reloads: false,
    },
    Part {
        name: "fairway-ingress",
        summary: "gateway of Fairway's Kubernetes network: HTTP and TLS to Services",
        programs: &["fairway-ingress"],
        low_ports: true,
        reloads: true,
    },
];

/// Where programs lie in a package. The agent finds the plugin beside itself.
const PROGRAMS: &str = "/usr/lib/fairway";

/// Builds the binaries, packs them into `folder`, and prints what there is then.
///
/// # Errors
/// When something does not build, or a program that packs is missing or fails.
pub(crate) fn run(folder: Option<PathBuf>, profile: Profile) -> anyhow::Result<()> {
    binaries::build(profile)?;
    let folder =
        folder.map_or_else(|| target_directory().map(|target| target.join("package")), Ok)?;
    let scratch = folder.join("scratch");
    let stripped = scratch.join("programs");
    // Also what a run before this one left.
    make_anew(&scratch)?;
    make_anew(&stripped)?;
    let mut made = Vec::new();
    for part in &PARTS {
        let mut programs = Vec::new();
        for name in part.programs {
            programs.push(strip(&binaries::binary(name, profile)?, &stripped)?);
        }
        made.push(deb::write(part, &programs, &scratch, &folder)?);
        made.push(image::write(part, &programs, &scratch, &folder)?);
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    binaries::list(&made)
}

/// The version of the workspace, which is that of all parts.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The project's file at `path`, which a package takes over.
fn own_file(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"))
}

fn make_anew(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

/// Writes `tree` as files of `folder`, which is made for it.
fn write_out(tree: &Tree, folder: &Path) -> anyhow::Result<()> {
    make_anew(folder)?;
    for (inside, content) in &tree.contents {
        let path = folder.join(inside.strip_prefix("/").unwrap_or(inside));
        let written = match content {
            Content::Folder => fs::create_dir(&path),
            Content::Link(target) => symlink(target, &path),
            Content::Program(_) | Content::Text(_) => {
                fs::write(&path, content.bytes()?).and_then(|()| {
                    let mode = content.mode() & 0o777;
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                })
            }
        };
        written.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `deploy/` has a cluster run is what is packed here.
    #[test]
    fn manifests_name_these_images() {
        let mut named = Vec::new();
        for file in [
            "base/agent.yaml",
            "base/controlplane.yaml",
            "overlays/ingress/gateway.yaml",
            "uninstall.yaml",
        ] {
            let text = own_file(&format!("deploy/{file}")).unwrap();
            let images = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
            named.extend(images.map(str::to_owned));
        }
        named.sort();
        named.dedup();
        let mut tags: Vec<_> = PARTS.iter().map(image::tag).collect();
        tags.sort();
        assert_eq!(named, tags);
    }
}
