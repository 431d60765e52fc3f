//! What nodes say of themselves, remembered and added to the model.
//!
//! A node says it again whenever it connects. It is remembered all the same: after a restart the first
//! model must not take from nodes what their peers already know of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fairway_feed::{ModelReceiver, NodeFacts, disk};
use fairway_model::{Model, Node};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(10);

/// A model with what nodes say of themselves. Its task ends when it is dropped.
#[derive(Debug)]
pub struct Amended {
    /// None before its source has one.
    pub model: ModelReceiver,
    /// What nodes said, from the file at first; whoever hears them adds to it.
    pub facts: watch::Sender<NodeFacts>,
    _task: JoinSet<()>,
}

/// Adds what nodes say of themselves to each model of `source`, and remembers it in `file`. What an
/// object says of its node takes precedence. Must be called within a Tokio runtime; reads the file
/// before it returns. One that is damaged is reported and otherwise ignored: the nodes say it again.
pub fn amend(source: ModelReceiver, file: PathBuf) -> Amended {
    let known = match load(&file) {
        Ok(known) => known,
        Err(error) => {
            tracing::error!(
                file = %file.display(),
                error,
                "what nodes said of themselves is lost; waiting for them to say it again"
            );
            NodeFacts::new()
        }
    };
    let facts = watch::Sender::new(known);
    let (publish, model) = watch::channel(None);
    let mut task = JoinSet::new();
    task.spawn(run(source, facts.subscribe(), file, publish));
    Amended { model, facts, _task: task }
}

fn load(file: &Path) -> Result<NodeFacts, String> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(NodeFacts::new()),
        Err(error) => Err(error.to_string()),
    }
}

async fn run(
    mut source: ModelReceiver,
    mut facts: watch::Receiver<NodeFacts>,
    file: PathBuf,
    publish: watch::Sender<Option<Arc<Model>>>,
) {
    let mut saved = facts.borrow().clone();
    loop {
        let known = facts.borrow_and_update().clone();
        // On the disk first: what peers were told must not be forgotten.
        let kept = known == saved || save(&file, &known).await;
        let model = source.borrow_and_update().as_ref().map(|model| amended(model, &known));
        publish.send_if_modified(|current| {
            let differs = *current != model;
            *current = model;
            differs
        });
        if kept {
            saved = known;
        }
        let again = async {
            match kept {
                true => std::future::pending().await,
                false => tokio::time::sleep(RETRY).await,
            }
        };
        tokio::select! {
            changed = source.changed() => if changed.is_err() {
                // What is known stays published.
                return;
            },
            // The sender of this one may go first; models go on to come.
            Ok(()) = facts.changed() => {}
            () = again => {}
        }
    }
}

async fn save(file: &Path, facts: &NodeFacts) -> bool {
    let text = serde_json::to_vec(facts).expect("facts are plain data");
    let path = file.to_owned();
    let written = tokio::task::spawn_blocking(move || disk::replace(&path, &text)).await;
    match written {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(
                file = %file.display(), %error,
                "what nodes say of themselves cannot be remembered; trying again"
            );
            false
        }
        // The runtime is going down.
        Err(_) => false,
    }
}

fn amended(model: &Arc<Model>, facts: &NodeFacts) -> Arc<Model> {
    let missing = |name: &String| {
        let node = model.nodes.get(name)?;
        facts.get(name)?.wireguard_key.filter(|_| node.wireguard_key.is_none())
    };
    if !facts.keys().any(|name| missing(name).is_some()) {
        return Arc::clone(model);
    }
    let mut next = Model::clone(model);
    for node in model.nodes.values() {
        if let Some(key) = missing(&node.name) {
            next.nodes.insert(Node { wireguard_key: Some(key), ..node.clone() });
        }
    }
    Arc::new(next)
}

#[cfg(test)]
mod tests {
    use fairway_feed::Facts;
    use fairway_model::{Object, WireGuardKey};

    use super::*;

    const PINNED: WireGuardKey = WireGuardKey([1; 32]);
    const SAID: WireGuardKey = WireGuardKey([2; 32]);

    fn model(nodes: &[(&str, Option<WireGuardKey>)]) -> Option<Arc<Model>> {
        let node = |(name, wireguard_key): &(&str, _)| {
            let name = (*name).to_owned();
            Object::Node(Node { name, wireguard_key: *wireguard_key, ..Node::default() })
        };
        Some(Arc::new(nodes.iter().map(node).collect()))
    }

    fn say(facts: &watch::Sender<NodeFacts>, name: &str) {
        let said = Facts { wireguard_key: Some(SAID) };
        facts.send_modify(|facts| {
            facts.insert(name.to_owned(), said);
        });
    }

    async fn becomes(amended: &mut Amended, wanted: Option<Arc<Model>>) {
        let found = amended.model.wait_for(|model| *model == wanted);
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        found.expect("the model never became as wanted").expect("it has a source");
    }

    #[tokio::test]
    async fn nodes_have_the_keys_they_say_and_keep_them_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts.json");
        let source = watch::Sender::new(model(&[("a", None), ("b", Some(PINNED)), ("c", None)]));
        {
            let mut first = amend(source.subscribe(), file.clone());
            becomes(&mut first, source.borrow().clone()).await;
            // What is said of a node before there is one counts once there is.
            for name in ["a", "b", "d"] {
                say(&first.facts, name);
            }
            let said = [("a", Some(SAID)), ("b", Some(PINNED)), ("c", None)];
            becomes(&mut first, model(&said)).await;
        }
        source.send_replace(None);
        let mut second = amend(source.subscribe(), file);
        assert_eq!(*second.model.borrow(), None);
        source.send_replace(model(&[("a", None), ("c", None), ("d", None)]));
        second.model.changed().await.unwrap();
        // At once, with no moment without.
        let said = [("a", Some(SAID)), ("c", None), ("d", Some(SAID))];
        assert_eq!(*second.model.borrow_and_update(), model(&said));
    }

    #[tokio::test]
    async fn a_damaged_file_is_replaced_by_what_nodes_say_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts.json");
        std::fs::write(&file, "{").unwrap();
        let source = watch::Sender::new(model(&[("a", None)]));
        let mut amended = amend(source.subscribe(), file.clone());
        becomes(&mut amended, model(&[("a", None)])).await;
        say(&amended.facts, "a");
        becomes(&mut amended, model(&[("a", Some(SAID))])).await;
        assert_eq!(load(&file).unwrap(), *amended.facts.borrow());
    }
}
