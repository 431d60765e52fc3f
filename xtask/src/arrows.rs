//! Which of our crates may depend on which, and the check that it stays so.
//!
//! Dependencies point one way: from what runs to what is merely known. Dev-dependencies are free, because a test may
//! hold two sides against each other; what is compiled into a product is not.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::cargo::{cargo, metadata, stdout_of};

/// A crate of ours, the crates of ours it may depend on, and why.
struct Arrow {
    from: &'static str,
    to: &'static [&'static str],
    because: &'static str,
}

const ARROWS: &[Arrow] = &[
    Arrow {
        from: "fairway-abi",
        to: &[],
        because: "kernel and user side share it, so it must build for both and know neither",
    },
    Arrow {
        from: "fairway-core",
        to: &["fairway-abi"],
        because: "a decision sees the packet and the tables, nothing else",
    },
    Arrow {
        from: "fairway-ebpf",
        to: &["fairway-abi", "fairway-core"],
        because: "attach points and maps only; what they decide is fairway-core's",
    },
    Arrow {
        from: "fairway-model",
        to: &[],
        because: "the desired state knows neither Kubernetes nor a kernel",
    },
    Arrow {
        from: "fairway-feed",
        to: &["fairway-model"],
        because: "it carries the model and does not interpret it",
    },
    Arrow {
        from: "fairway-controlplane",
        to: &["fairway-abi", "fairway-compile", "fairway-core", "fairway-feed", "fairway-model"],
        because: "it turns objects into the model and never talks to a kernel; what policies make of a packet it asks \
                  those who decide it",
    },
    Arrow {
        from: "fairway-kubernetes",
        to: &["fairway-controlplane", "fairway-feed", "fairway-model"],
        because: "it needs the Kubernetes client, and so does the control plane's binary; agents embed the library \
                  without it",
    },
    Arrow {
        from: "fairway-compile",
        to: &["fairway-abi", "fairway-core", "fairway-model"],
        because: "a pure function from the model to table entries",
    },
    Arrow {
        from: "fairway-dns",
        to: &["fairway-core", "fairway-model"],
        because: "what becomes of a query is decided from the model, by code that the kernel shares; who runs it and \
                  for whom is the agent's business",
    },
    Arrow {
        from: "fairway-proxy",
        to: &[
            "fairway-abi",
            "fairway-cni",
            "fairway-cni-protocol",
            "fairway-compile",
            "fairway-controlplane",
            "fairway-core",
            "fairway-dns",
            "fairway-feed",
            "fairway-model",
            "fairway-netlink",
        ],
        because: "the node agent is where everything meets the kernel; the CNI plugin is a process of its own, \
                  whose address store the agent brings to what is true",
    },
    Arrow {
        from: "fairway-next",
        to: &[],
        because: "it holds an object that tests load, and nothing that knows it",
    },
    Arrow {
        from: "fairway-netlink",
        to: &[],
        because: "it says what `ip` can say, and of whom is the caller's business",
    },
    Arrow {
        from: "fairway-cni-protocol",
        to: &[],
        because: "plugin and agent of different releases meet over it",
    },
    Arrow {
        from: "fairway-cni",
        to: &["fairway-cni-protocol", "fairway-netlink"],
        because: "it is executed once per pod and must start at once",
    },
    Arrow {
        from: "fairway-ingress",
        to: &["fairway-controlplane", "fairway-feed", "fairway-model"],
        because: "what becomes of a request is decided from the model, which knows neither Kubernetes nor a kernel; it \
                  comes over the feed, or from a folder as it does for an agent",
    },
    Arrow {
        from: "fairway-tests",
        to: &[
            "fairway-cni",
            "fairway-controlplane",
            "fairway-dns",
            "fairway-feed",
            "fairway-model",
            "fairway-netlink",
            "fairway-proxy",
        ],
        because: "the lab stands outside and drives the binaries as their users do; benchmarks run the agent's \
                  programs, and its DNS, by hand",
    },
    Arrow {
        from: "xtask",
        to: &[],
        because: "it builds the others, so it must build without them",
    },
];

/// The node agent must not carry a Kubernetes client: it runs on every node and follows the feed.
const NOT_IN_THE_AGENT: &str = "kube";

/// Holds the workspace against the table.
///
/// # Errors
/// When a dependency is not in the table, a crate is missing from it or from the workspace, or the agent's dependency
/// tree has a Kubernetes client; each finding is named.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut findings = violations(&crates(&metadata()?)?, ARROWS);
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--package", "fairway-proxy", "--edges", "normal,build"]);
    tree.args(["--prefix", "none", "--format", "{p}"]);
    findings.extend(strangers(&stdout_of(&mut tree)?));
    ensure!(findings.is_empty(), "the crates' dependencies:\n  {}", findings.join("\n  "));
    Ok(())
}

/// A crate of the workspace as cargo describes it.
struct Crate {
    name: String,
    /// Names of all packages it is compiled with, ours and others.
    dependencies: Vec<String>,
}

/// Reads the packages of a `cargo metadata --no-deps` answer, without their dev-dependencies.
fn crates(metadata: &Value) -> anyhow::Result<Vec<Crate>> {
    let packages = metadata["packages"].as_array().context("cargo metadata: no `packages`")?;
    packages.iter().map(read_crate).collect()
}

fn read_crate(package: &Value) -> anyhow::Result<Crate> {
    let name = package["name"].as_str().context("cargo metadata: a package without `name`")?;
    let dependencies = package["dependencies"]
        .as_array()
        .with_context(|| format!("cargo metadata: package {name} without `dependencies`"))?;
    let mut names = Vec::new();
    for dependency in dependencies {
        let kind = match &dependency["kind"] {
            Value::Null => "normal",
            Value::String(kind) => kind,
            other => bail!("cargo metadata: package {name}: a dependency of kind {other}"),
        };
        if kind != "dev" {
            let on = dependency["name"].as_str().with_context(|| {
                format!("cargo metadata: package {name}: a nameless dependency")
            })?;
            names.push(on.to_owned());
        }
    }
    Ok(Crate { name: name.to_owned(), dependencies: names })
}

fn violations(crates: &[Crate], arrows: &[Arrow]) -> Vec<String> {
    let ours: BTreeSet<&str> = crates.iter().map(|c| c.name.as_str()).collect();
    let mut findings = Vec::new();
    for Crate { name, dependencies } in crates {
        let Some(arrow) = arrows.iter().find(|arrow| arrow.from == name) else {
            findings.push(format!(
                "{name} is not in the table of xtask/src/arrows.rs: a new crate needs a line there, with its reason"
            ));
            continue;
        };
        for on in dependencies.iter().map(String::as_str).collect::<BTreeSet<_>>() {
            if ours.contains(on) && !arrow.to.contains(&on) {
                findings.push(format!("{name} must not depend on {on}: {}", arrow.because));
            }
        }
    }
    for arrow in arrows {
        for name in std::iter::once(&arrow.from).chain(arrow.to) {
            if !ours.contains(name) {
                findings.push(format!(
                    "the line of {} in xtask/src/arrows.rs names {name}, which the workspace does not have",
                    arrow.from
                ));
            }
        }
    }
    findings
}

/// Kubernetes client crates in a `cargo tree --prefix none --format {p}` of the agent.
fn strangers(tree: &str) -> Vec<String> {
    let packages: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    packages
        .into_iter()
        .filter(|name| {
            name.strip_prefix(NOT_IN_THE_AGENT)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
        .map(|name| {
            format!(
                "fairway-proxy must not contain {name}: the agent follows the feed (`cargo tree -p fairway-proxy -i {name}` shows the way in)"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Arrow] = &[
        Arrow { from: "abi", to: &[], because: "shared" },
        Arrow { from: "core", to: &["abi"], because: "no I/O" },
    ];

    /// Each workspace is `name: dependency dependency, name: ...`.
    fn check(workspace: &str, expected: &[&str]) {
        let crates: Vec<Crate> = workspace
            .split(", ")
            .map(|line| {
                let (name, dependencies) = line.split_once(':').unwrap();
                Crate {
                    name: name.to_owned(),
                    dependencies: dependencies.split_whitespace().map(str::to_owned).collect(),
                }
            })
            .collect();
        let findings = violations(&crates, TABLE);
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, expected) in findings.iter().zip(expected) {
            assert!(finding.contains(expected), "{finding:?} does not say {expected:?}");
        }
    }

    #[test]
    fn the_table_is_an_upper_bound() {
        check("abi:, core: abi serde", &[]);
        check("abi: zerocopy, core:", &[]);
    }

    #[test]
    fn an_arrow_against_the_table_is_named_with_its_reason() {
        check("abi: core, core: abi", &["abi must not depend on core: shared"]);
        check(
            "abi: core core, core: core",
            &["abi must not", "core must not depend on core: no I/O"],
        );
    }

    #[test]
    fn table_and_workspace_have_the_same_crates() {
        check("abi:, core:, ingress: abi", &["ingress is not in the table"]);
        check("abi:", &["the line of core in xtask/src/arrows.rs names core"]);
        check("core:", &["the line of abi", "the line of core in xtask/src/arrows.rs names abi"]);
    }

    #[test]
    fn a_kubernetes_client_in_the_agent_is_found_under_any_of_its_names() {
        assert_eq!(strangers("fairway-proxy v0.1.0 (/x)\nkubelike v1.0.0\n\naya v0.14.0"), [""; 0]);
        let findings = strangers("aya v0.14.0\nkube v4.2.0\nkube-client v4.2.0\nkube v4.2.0 (*)");
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[1].contains("must not contain kube-client"), "{findings:?}");
    }

    #[test]
    fn dev_dependencies_are_free_and_build_dependencies_are_not() {
        let metadata = serde_json::json!({ "packages": [{ "name": "a", "dependencies": [
            { "name": "normal", "kind": null },
            { "name": "build", "kind": "build" },
            { "name": "dev", "kind": "dev" },
        ]}]});
        let crates = crates(&metadata).unwrap();
        assert_eq!(crates[0].name, "a");
        assert_eq!(crates[0].dependencies, ["normal", "build"]);
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error() {
        for metadata in [
            serde_json::json!({}),
            serde_json::json!({ "packages": [{}] }),
            serde_json::json!({ "packages": [{ "name": "a" }] }),
            serde_json::json!({ "packages": [{ "name": "a", "dependencies": [{ "kind": 7 }] }] }),
            serde_json::json!({ "packages": [{ "name": "a", "dependencies": [{ "kind": null }] }] }),
        ] {
            assert!(crates(&metadata).is_err(), "{metadata}");
        }
    }
}
