//! The network configuration that makes the container runtime call the plugin.
//!
//! As long as there is none, kubelet keeps the node unready and starts no pods on it. It is
//! therefore written when the node can serve its first pod, and not taken back when the agent ends:
//! a restart must not make the node unready, and what is in the kernel serves the pods meanwhile.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_model::Model;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::traces::Traces;

/// Where container runtimes look.
pub(crate) const DEFAULT: &str = "/etc/cni/net.d/10-fairway.conflist";
/// The plugin's name: what `type` says, and the file's name in the folder of plugins.
pub(crate) const PLUGIN: &str = "fairway-cni";

/// How often the folder is looked at: somebody may have removed the file, or added one before it.
const LOOK: Duration = Duration::from_secs(30);

/// The file, and what belongs into it.
pub(crate) struct CniConf {
    path: PathBuf,
    contents: String,
}

impl CniConf {
    /// `socket`: where this agent listens; `data_dir`: where it looks for the plugin's addresses.
    pub(crate) fn new(path: &Path, socket: &Path, data_dir: &Path) -> Self {
        let mut plugin = json!({
            "type": PLUGIN,
            // What the runtime may hand over; it passes on nothing that is not named here.
            "capabilities": {
                "bandwidth": true, "dns": true, "ipRanges": true, "ips": true, "mac": true,
                "portMappings": true,
            },
        });
        if socket != Path::new(fairway_cni_protocol::DEFAULT_SOCKET) {
            plugin["socket"] = json!(socket);
        }
        if data_dir != Path::new(fairway_cni::DEFAULT_DATA_DIR) {
            plugin["dataDir"] = json!(data_dir);
        }
        let list = json!({
            // For runtimes of CNI 1.0 (containerd 1.7), which refuse results of versions they do not
            // know, and do not know the second key; those of 1.1 take the highest they know of it.
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": "fairway",
            "plugins": [plugin],
        });
        Self { path: path.to_owned(), contents: format!("{list:#}\n") }
    }

    /// Writes the file if it is not as it should be; true if it was not.
    fn write(&self, traces: &Traces) -> Result<bool> {
        if fs::read(&self.path).is_ok_and(|found| found == self.contents.as_bytes()) {
            return Ok(false);
        }
        traces.file(&self.path)?;
        fairway_feed::disk::replace(&self.path, self.contents.as_bytes())
            .with_context(|| format!("write {}", self.path.display()))?;
        Ok(true)
    }

    /// Files that the container runtime reads before ours. It uses the first one alone.
    fn before_it(&self) -> Result<BTreeSet<PathBuf>> {
        let Some(folder) = self.path.parent() else { return Ok(BTreeSet::new()) };
        let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        let mut files = BTreeSet::new();
        for entry in entries {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            let read = ["conf", "conflist", "json"].map(OsStr::new).map(Some);
            if read.contains(&path.extension()) && path < self.path && !path.is_dir() {
                files.insert(path);
            }
        }
        Ok(files)
    }
}

/// Writes the file once the node can serve a pod, and looks after it from then on.
pub(crate) async fn keep(
    conf: CniConf,
    node: String,
    mut applied: watch::Receiver<Option<Arc<Model>>>,
    traces: Arc<Traces>,
) {
    let serves = |model: &Option<Arc<Model>>| model.as_ref().is_some_and(|m| serves_pods(m, &node));
    if applied.wait_for(serves).await.is_err() {
        return;
    }
    let conf = Arc::new(conf);
    let mut said = BTreeSet::new();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let (conf, traces) = (Arc::clone(&conf), Arc::clone(&traces));
        let look = move || {
            if conf.write(&traces)? {
                info!(file = %conf.path.display(), "wrote the network configuration: the node takes pods");
            }
            conf.before_it()
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(before)) => {
                if !before.is_empty() && before != said {
                    warn!(
                        files = ?before,
                        "the container runtime reads these network configurations before Fairway's, \
                         and uses the first alone; remove them if pods are to be Fairway's"
                    );
                }
                said = before;
            }
            Ok(Err(error)) => {
                error!(error = format!("{error:#}"), "cannot keep the network configuration");
            }
            Err(_) => return,
        }
    }
}

/// Removes the file if it is ours; true if it was there.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let contents = match fs::read(path) {
        Ok(contents) => contents,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if !is_ours(&contents) {
        bail!("{} is not Fairway's: no plugin in it is {PLUGIN}", path.display());
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    Ok(true)
}

fn is_ours(contents: &[u8]) -> bool {
    let list: Value = serde_json::from_slice(contents).unwrap_or_default();
    let plugins = list["plugins"].as_array().map_or(&[][..], Vec::as_slice);
    plugins.iter().any(|plugin| plugin["type"] == PLUGIN)
}

/// Whether the agent answers the plugin with what an ADD needs.
fn serves_pods(model: &Model, node: &str) -> bool {
    model.nodes.get(node).is_some_and(|node| !node.pod_cidrs.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = fairway_cni_protocol::DEFAULT_SOCKET;
    const DATA_DIR: &str = fairway_cni::DEFAULT_DATA_DIR;

    #[test]
    fn says_what_differs_from_the_plugins_defaults_and_versions_both_kinds_of_runtime_take() {
        let contents = |socket: &str, data_dir: &str| {
            CniConf::new(Path::new(DEFAULT), Path::new(socket), Path::new(data_dir)).contents
        };
        let usual: Value = serde_json::from_str(&contents(USUAL, DATA_DIR)).expect("JSON");
        assert_eq!(usual["cniVersion"], "1.0.0");
        assert_eq!(usual["cniVersions"], json!(["1.0.0", "1.1.0"]));
        assert_eq!(usual["plugins"][0]["type"], "fairway-cni");
        assert_eq!(usual["plugins"][0]["capabilities"]["portMappings"], true);
        assert_eq!(usual["plugins"][0].get("socket"), None);
        assert_eq!(usual["plugins"][0].get("dataDir"), None);
        let other: Value =
            serde_json::from_str(&contents("/run/other.sock", "/var/other")).expect("JSON");
        assert_eq!(other["plugins"][0]["socket"], "/run/other.sock");
        assert_eq!(other["plugins"][0]["dataDir"], "/var/other");
    }

    #[test]
    fn is_written_once_and_put_right_and_removed_only_if_ours() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = tempfile::tempdir().expect("a folder");
        let traces = Traces::open(state.path()).expect("a record");
        let path = folder.path().join("net.d/10-fairway.conflist");
        let conf = CniConf::new(&path, Path::new(USUAL), Path::new(DATA_DIR));
        assert!(conf.write(&traces).expect("written"));
        assert!(!conf.write(&traces).expect("nothing to do"));
        fs::write(&path, "{}").expect("a file");
        assert!(remove(&path).expect_err("not ours").to_string().contains("not Fairway's"));
        assert!(conf.write(&traces).expect("written"));
        assert!(traces.files().contains(&path));
        assert!(remove(&path).expect("removed"));
        assert!(!remove(&path).expect("nothing to do"));
    }

    #[test]
    fn what_the_runtime_would_read_first_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["00-x.txt", "05-a.conf", "10-flannel.conflist", "10-g.conflist", "99.json"] {
            fs::write(folder.path().join(name), "").expect("a file");
        }
        fs::create_dir(folder.path().join("00-folder.conf")).expect("a folder");
        let conf = CniConf::new(
            &folder.path().join("10-fairway.conflist"),
            Path::new(USUAL),
            Path::new(DATA_DIR),
        );
        let before = conf.before_it().expect("a list");
        assert_eq!(before, BTreeSet::from([folder.path().join("05-a.conf")]));
        let conf = CniConf::new(
            &folder.path().join("10-flannel.zz"),
            Path::new(USUAL),
            Path::new(DATA_DIR),
        );
        assert_eq!(conf.before_it().expect("a list").len(), 2);
    }

    #[tokio::test]
    async fn waits_until_the_model_in_force_gives_the_node_a_range() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("10-fairway.conflist");
        let traces = Arc::new(Traces::open(folder.path()).expect("a record"));
        let (applied, seen) = watch::channel(None);
        let conf = CniConf::new(&path, Path::new(USUAL), Path::new(DATA_DIR));
        let kept = tokio::spawn(keep(conf, "n".to_owned(), seen, traces));
        let model = |pod_cidrs: Value| {
            let nodes = serde_json::from_value(json!([{"name": "n", "pod_cidrs": pod_cidrs}]));
            Arc::new(Model { nodes: nodes.expect("a node"), ..Model::default() })
        };
        applied.send_replace(Some(model(json!([]))));
        tokio::task::yield_now().await;
        assert!(!path.exists(), "no ADD can succeed yet");
        applied.send_replace(Some(model(json!(["10.1.0.0/24"]))));
        let written = async {
            while !path.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LOOK, written).await.expect("it is written");
        kept.abort();
        assert!(path.exists(), "it stays when the agent ends");
    }
}
