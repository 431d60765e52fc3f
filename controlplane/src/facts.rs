//! What nodes say of themselves, remembered and added to the model.
//!
//! A node says it again whenever it connects. It is remembered all the same: after a restart the first
//! model must not take from nodes what their peers already know of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fairway_feed::{ModelReceiver, NodeFacts, disk};
use fairway_model::{Model, Node, Objects};
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
    let mut nodes = Nodes::default();
    loop {
        let known = facts.borrow_and_update().clone();
        // On the disk first: what peers were told must not be forgotten.
        let kept = known == saved || save(&file, &known).await;
        let model = source.borrow_and_update().clone();
        let model = model.map(|model| Arc::new(nodes.amend(&model, &known)));
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

/// The nodes of the last model, without and with what they say.
#[derive(Default)]
struct Nodes {
    source: Objects<Node>,
    facts: NodeFacts,
    amended: Objects<Node>,
}

impl Nodes {
    /// The model with what its nodes say. What neither changes is shared with the one before.
    fn amend(&mut self, model: &Model, facts: &NodeFacts) -> Model {
        let Self { source, amended, .. } = self;
        let with = |node: &Arc<Node>| {
            let said = facts.get(&node.name).cloned().unwrap_or_default();
            let wireguard_key = node.wireguard_key.or(said.wireguard_key);
            let resolver = node.resolver || said.resolver;
            if (wireguard_key, resolver) == (node.wireguard_key, node.resolver) {
                return Arc::clone(node);
            }
            Arc::new(Node { wireguard_key, resolver, ..Node::clone(node) })
        };
        for change in source.diff(&model.nodes) {
            match change.after {
                Some(node) => amended.insert(with(node)),
                None => drop(amended.remove(change.name())),
            }
        }
        if self.facts != *facts {
            let others = |node: &&Arc<Node>| self.facts.get(&node.name) != facts.get(&node.name);
            model.nodes.shared().filter(others).for_each(|node| amended.insert(with(node)));
            self.facts = facts.clone();
        }
        self.source = model.nodes.clone();
        Model { nodes: self.amended.clone(), ..model.clone() }
    }
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
        let said = Facts { wireguard_key: Some(SAID), ..Facts::default() };
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

    #[test]
    fn a_model_shares_with_the_one_before_what_neither_changes() {
        let all: Vec<_> = (0..1000).map(|number| format!("n{number:03}")).collect();
        let all: Vec<_> = all.iter().map(|name| (&**name, None)).collect();
        let mut source = Model::clone(&model(&all).unwrap());
        let mut facts: NodeFacts = all
            .iter()
            .map(|(name, _)| {
                ((*name).to_owned(), Facts { wireguard_key: Some(SAID), ..Facts::default() })
            })
            .collect();
        let mut nodes = Nodes::default();
        let first = nodes.amend(&source, &facts);
        source.nodes.insert(Node { name: "n500".into(), leaving: true, ..Node::default() });
        source.nodes.remove("n501");
        let second = nodes.amend(&source, &facts);
        facts.remove("n502");
        let third = nodes.amend(&source, &facts);
        let shared = |one: &Model, other: &Model| {
            let both = one
                .nodes
                .shared()
                .filter_map(|one| Some((one, other.nodes.get_shared(&one.name)?)));
            both.filter(|(one, other)| Arc::ptr_eq(one, other)).count()
        };
        assert_eq!((shared(&first, &second), shared(&second, &third)), (998, 998));
        for (model, facts) in [(&second, 999), (&third, 998)] {
            let has_key = |node: &&Node| node.wireguard_key == Some(SAID);
            assert_eq!(model.nodes.values().filter(has_key).count(), facts);
        }
        assert_eq!(third, Nodes::default().amend(&source, &facts));
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
