//! An API server as the source of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::kubernetes::{Kind, Node};
use fairway_controlplane::live::Live;
use fairway_controlplane::load_balancer::Classes;
use fairway_controlplane::problem::{Problem, report};
use fairway_controlplane::publish::{Gateway, Statuses};
use fairway_feed::ModelReceiver;
use fairway_model::Model;
use ipnet::IpNet;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::conditions::AllUnsaid;
pub use crate::follow::Pace;
use crate::follow::{Change, follow};
use crate::resource;

/// Changes on their way; who brings more waits.
const QUEUE: usize = 1024;
/// A burst of changes is over when this long nothing has changed...
const PAUSE: Duration = Duration::from_millis(5);
/// ...or when it has gone on for this long.
const BURST: Duration = Duration::from_millis(50);

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The ranges ClusterIPs come from, where the cluster has no ServiceCIDR that says so; may be empty.
    pub service_cidrs: Vec<IpNet>,
    /// Whose load balancer we are.
    pub classes: Classes,
    /// Where Ingresses can be reached, if that is to be written.
    pub gateway: Option<Gateway>,
    /// How long things may take.
    pub pace: Pace,
}

/// The nodes by name.
pub type Nodes = Arc<BTreeMap<String, Arc<Node>>>;

/// A running source. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Source {
    /// The model, once every kind has been listed for the first time.
    pub model: ModelReceiver,
    /// The nodes, from then on.
    pub nodes: watch::Receiver<Option<Nodes>>,
    /// What the status of other objects is to say and does not.
    pub statuses: watch::Receiver<Arc<Statuses>>,
    /// All that is wrong at the moment.
    pub problems: watch::Receiver<Vec<Problem>>,
    /// What conditions of objects are to say of that, and do not yet.
    pub unsaid: watch::Receiver<AllUnsaid>,
    _tasks: JoinSet<()>,
}

/// Starts to follow the objects of an API server, whether it can be reached or not. Must be called within a
/// Tokio runtime.
///
/// # Errors
/// The ranges make no sense.
pub fn start(client: &Client, options: Options) -> Result<Source, String> {
    let mut live = Live::new(options.service_cidrs)?;
    let ingresses = options.gateway.is_some().then_some(resource::INGRESSES);
    live.publish(options.classes, options.gateway);
    let (publish, model) = watch::channel(None);
    let (show_nodes, nodes) = watch::channel(None);
    let (show_statuses, statuses) = watch::channel(Arc::default());
    let (shown, problems) = watch::channel(Vec::new());
    let (say, unsaid) = watch::channel(AllUnsaid::new());
    let (sender, changes) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let resources: Vec<_> = resource::ALL.into_iter().chain(ingresses).collect();
    let missing = resources.iter().map(|resource| resource.kind).collect();
    for resource in resources {
        tasks.spawn(follow(client.clone(), resource, options.pace, sender.clone()));
    }
    let assembler = Assembler { live, missing, troubles: BTreeMap::new() };
    let outputs = Outputs { publish, nodes: show_nodes, statuses: show_statuses, shown, say };
    tasks.spawn(run(assembler, changes, outputs));
    Ok(Source { model, nodes, statuses, problems, unsaid, _tasks: tasks })
}

/// The state of the task, handed to a blocking thread for each round and back.
struct Assembler {
    live: Live,
    /// Kinds that have not been listed yet.
    missing: BTreeSet<Kind>,
    troubles: BTreeMap<Kind, String>,
}

/// The other ends of what a [`Source`] has.
struct Outputs {
    publish: watch::Sender<Option<Arc<Model>>>,
    nodes: watch::Sender<Option<Nodes>>,
    statuses: watch::Sender<Arc<Statuses>>,
    shown: watch::Sender<Vec<Problem>>,
    say: watch::Sender<AllUnsaid>,
}

async fn run(mut assembler: Assembler, mut changes: mpsc::Receiver<Change>, outputs: Outputs) {
    let Outputs { publish, nodes: show_nodes, statuses: show_statuses, shown, say } = outputs;
    while let Some(change) = changes.recv().await {
        assembler.take(change);
        let end = Instant::now() + BURST;
        while let Ok(Some(change)) =
            timeout_at(end.min(Instant::now() + PAUSE), changes.recv()).await
        {
            assembler.take(change);
        }
        if !assembler.missing.is_empty() {
            report(&shown, assembler.troubles());
            continue;
        }
        let round = tokio::task::spawn_blocking(move || {
            let (model, problems) = assembler.live.model();
            let unsaid = assembler.live.unsaid();
            (assembler, model, problems, unsaid)
        });
        let Ok((back, model, mut problems, unsaid)) = round.await else {
            // It panicked, which has been printed, or the runtime is going down. The last model stays
            // published.
            return;
        };
        assembler = back;
        problems.extend(assembler.troubles());
        report(&shown, problems);
        say.send_if_modified(|current| {
            let differs = *current != unsaid;
            *current = unsaid;
            differs
        });
        let nodes = assembler.live.nodes();
        show_nodes.send_if_modified(|current| {
            let differs = current.as_deref() != Some(nodes);
            if differs {
                *current = Some(Arc::new(nodes.clone()));
            }
            differs
        });
        let statuses = assembler.live.statuses();
        show_statuses.send_if_modified(|current| {
            let differs = **current != *statuses;
            if differs {
                *current = Arc::new(statuses.clone());
            }
            differs
        });
        publish.send_if_modified(|current| {
            let differs = current.as_deref() != Some(&model);
            if differs {
                *current = Some(Arc::new(model));
            }
            differs
        });
    }
}

impl Assembler {
    fn take(&mut self, change: Change) {
        match change {
            Change::All(kind, all) => {
                self.live.replace(kind, all);
                self.missing.remove(&kind);
            }
            Change::Put(read) => self.live.put(read),
            Change::Gone(id) => self.live.remove(&id),
            Change::Trouble(kind, Some(trouble)) => drop(self.troubles.insert(kind, trouble)),
            Change::Trouble(kind, None) => drop(self.troubles.remove(&kind)),
        }
    }

    fn troubles(&self) -> Vec<Problem> {
        self.troubles.values().map(Problem::general).collect()
    }
}
