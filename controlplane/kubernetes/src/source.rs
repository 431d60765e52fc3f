//! An API server as the source of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::ingress;
use fairway_controlplane::kubernetes::{Kind, Node, ObjectId};
use fairway_controlplane::live::{Live, Read};
use fairway_controlplane::load_balancer::Classes;
use fairway_controlplane::notices::Notices;
use fairway_controlplane::problem::{Problem, report};
use fairway_controlplane::publish::{Gateway, Statuses};
use fairway_feed::ModelReceiver;
use fairway_model::{Model, ObjectName};
use ipnet::IpNet;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::conditions::AllUnsaid;
pub use crate::follow::Pace;
use crate::follow::{Change, Topic, follow};
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
    /// Which Ingresses are ours.
    pub ingresses: ingress::Settings,
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
    /// What owners of Ingresses are to be told.
    pub notices: watch::Receiver<Arc<Notices>>,
    _tasks: JoinSet<()>,
}

/// Starts to follow the objects of an API server, whether it can be reached or not. Must be called within a
/// Tokio runtime.
///
/// # Errors
/// The ranges make no sense.
pub fn start(client: &Client, options: Options) -> Result<Source, String> {
    let mut live = Live::new(options.service_cidrs)?;
    live.adopt(options.ingresses);
    live.publish(options.classes, options.gateway);
    let (publish, model) = watch::channel(None);
    let (show_nodes, nodes) = watch::channel(None);
    let (show_statuses, statuses) = watch::channel(Arc::default());
    let (shown, problems) = watch::channel(Vec::new());
    let (say, unsaid) = watch::channel(AllUnsaid::new());
    let (tell, notices) = watch::channel(Arc::default());
    let (sender, changes) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let missing = resource::ALL.iter().map(|resource| resource.kind).collect();
    for resource in resource::ALL {
        tasks.spawn(follow(client.clone(), resource, options.pace, sender.clone()));
    }
    let assembler = Assembler::new(live, missing);
    let followers = Followers {
        client: client.clone(),
        pace: options.pace,
        sender,
        tasks: JoinSet::new(),
        running: BTreeMap::new(),
    };
    let outputs = Outputs { publish, nodes: show_nodes, statuses: show_statuses, shown, say, tell };
    tasks.spawn(run(assembler, followers, changes, outputs));
    Ok(Source { model, nodes, statuses, problems, unsaid, notices, _tasks: tasks })
}

/// The state of the task, handed to a blocking thread for each round and back.
struct Assembler {
    live: Live,
    /// Kinds that have not been listed yet.
    missing: BTreeSet<Kind>,
    /// Objects that others name, and of which nothing was heard yet, not even that they cannot be had.
    awaited: BTreeSet<ObjectId>,
    troubles: BTreeMap<Topic, String>,
    /// What the API server did not let us read when it last said something about that.
    forbidden: BTreeSet<Topic>,
}

/// Who follows objects that others name, each on its own.
struct Followers {
    client: Client,
    pace: Pace,
    sender: mpsc::Sender<Change>,
    tasks: JoinSet<()>,
    running: BTreeMap<ObjectId, AbortHandle>,
}

impl Followers {
    /// Follows those that are wanted and no others.
    fn update(&mut self, assembler: &mut Assembler) {
        let wanted = assembler.live.wanted().clone();
        let unwanted = self.running.extract_if(.., |id, _| !wanted.contains(id));
        for (id, task) in unwanted {
            task.abort();
            assembler.awaited.remove(&id);
            assembler.settle(&(id.kind, Some(id.name.clone())));
            assembler.live.remove(&id);
        }
        for id in wanted {
            if self.running.contains_key(&id) {
                continue;
            }
            let resource = resource::one(&id);
            let following = follow(self.client.clone(), resource, self.pace, self.sender.clone());
            let task = self.tasks.spawn(following);
            assembler.awaited.insert(id.clone());
            self.running.insert(id, task);
        }
        // Those that were told to end have ended.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Whether the change is of something that is followed; one may still be on its way when its object is
    /// not wanted any more.
    fn expect(&self, change: &Change) -> bool {
        let known = |kind: Kind, name: &ObjectName| {
            let id = ObjectId { kind, name: name.clone() };
            !is_named(&id) || self.running.contains_key(&id)
        };
        match change {
            Change::All((kind, Some(name)), _) | Change::Trouble((kind, Some(name)), _) => {
                known(*kind, name)
            }
            Change::All(..) | Change::Trouble(..) => true,
            Change::Put(read) => known(read.id().kind, &read.id().name),
            Change::Gone(id) => known(id.kind, &id.name),
        }
    }
}

/// The other ends of what a [`Source`] has.
struct Outputs {
    publish: watch::Sender<Option<Arc<Model>>>,
    nodes: watch::Sender<Option<Nodes>>,
    statuses: watch::Sender<Arc<Statuses>>,
    shown: watch::Sender<Vec<Problem>>,
    say: watch::Sender<AllUnsaid>,
    tell: watch::Sender<Arc<Notices>>,
}

async fn run(
    mut assembler: Assembler,
    mut followers: Followers,
    mut changes: mpsc::Receiver<Change>,
    outputs: Outputs,
) {
    let Outputs { publish, nodes: show_nodes, statuses: show_statuses, shown, say, tell } = outputs;
    let (mut begun, mut again) = (false, None);
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = pass(again) => {
                again = assembler.live.look(Instant::now().into_std());
                show(&show_statuses, assembler.live.statuses());
                continue;
            }
        };
        let Some(change) = change else { return };
        assembler.take(change, &followers);
        let end = Instant::now() + BURST;
        while let Ok(Some(change)) =
            timeout_at(end.min(Instant::now() + PAUSE), changes.recv()).await
        {
            assembler.take(change, &followers);
        }
        if !assembler.missing.is_empty() {
            report(&shown, assembler.troubles());
            continue;
        }
        let round = tokio::task::spawn_blocking(move || {
            let (model, problems) = assembler.live.model();
            let unsaid = assembler.live.unsaid();
            let forbidden = assembler.forbidden();
            let notices = assembler.live.notices(&forbidden);
            let again = assembler.live.look(Instant::now().into_std());
            (assembler, model, problems, unsaid, notices, again)
        });
        let Ok((back, model, mut problems, unsaid, notices, look)) = round.await else {
            // It panicked, which has been printed, or the runtime is going down. The last model stays
            // published.
            return;
        };
        assembler = back;
        followers.update(&mut assembler);
        begun |= assembler.awaited.is_empty();
        again = look.filter(|_| begun);
        if !begun {
            // Gateways would show other certificates than those that they had.
            report(&shown, assembler.troubles());
            continue;
        }
        problems.extend(assembler.troubles());
        report(&shown, problems);
        say.send_if_modified(|current| {
            let differs = *current != unsaid;
            *current = unsaid;
            differs
        });
        tell.send_if_modified(|current| {
            let differs = !Arc::ptr_eq(current, &notices) && *current != notices;
            *current = notices;
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
        show(&show_statuses, assembler.live.statuses());
        publish.send_if_modified(|current| {
            let differs = current.as_deref() != Some(&model);
            if differs {
                *current = Some(Arc::new(model));
            }
            differs
        });
    }
}

/// Waits until then, or for ever.
async fn pass(until: Option<std::time::Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

fn show(to: &watch::Sender<Arc<Statuses>>, statuses: &Statuses) {
    to.send_if_modified(|current| {
        let differs = **current != *statuses;
        if differs {
            *current = Arc::new(statuses.clone());
        }
        differs
    });
}

impl Assembler {
    fn new(live: Live, missing: BTreeSet<Kind>) -> Self {
        let (troubles, awaited, forbidden) = Default::default();
        Self { live, missing, awaited, troubles, forbidden }
    }

    fn take(&mut self, change: Change, followers: &Followers) {
        if followers.expect(&change) {
            self.apply(change);
        }
    }

    fn apply(&mut self, change: Change) {
        if let Change::All(topic, _) = &change {
            self.forbidden.remove(topic);
        }
        match change {
            Change::All((kind, None), all) => {
                self.live.replace(kind, all);
                self.missing.remove(&kind);
            }
            Change::All((kind, Some(name)), all) => {
                let id = ObjectId { kind, name };
                let found = all.into_iter().find(|read| *read.id() == id);
                self.hear(&id, found);
            }
            Change::Put(read) if is_named(read.id()) => {
                let id = read.id().clone();
                self.hear(&id, Some(read));
            }
            Change::Gone(id) if is_named(&id) => self.hear(&id, None),
            Change::Put(read) => self.live.put(read),
            Change::Gone(id) => self.live.remove(&id),
            Change::Trouble(topic, Some(trouble)) => {
                if let (kind, Some(name)) = &topic {
                    self.awaited.remove(&ObjectId { kind: *kind, name: name.clone() });
                }
                if trouble.contains(": 403 Forbidden") {
                    self.forbidden.insert(topic.clone());
                }
                self.troubles.insert(topic, trouble);
            }
            Change::Trouble(topic, None) => self.settle(&topic),
        }
    }

    /// Nothing is wrong with it any more.
    fn settle(&mut self, topic: &Topic) {
        self.troubles.remove(topic);
        self.forbidden.remove(topic);
    }

    fn hear(&mut self, id: &ObjectId, read: Option<Read>) {
        self.awaited.remove(id);
        self.live.put_named(id, read);
    }

    /// The objects by name that the API server does not let us read, as far as is known while it cannot be asked.
    fn forbidden(&self) -> BTreeSet<ObjectId> {
        let named = self.forbidden.iter().filter_map(|(kind, name)| Some((*kind, name.clone()?)));
        named.map(|(kind, name)| ObjectId { kind, name }).collect()
    }

    fn troubles(&self) -> Vec<Problem> {
        self.troubles.values().map(Problem::general).collect()
    }
}

/// Whether only objects of this kind are followed that others name.
fn is_named(id: &ObjectId) -> bool {
    matches!(id.kind, Kind::Secret | Kind::ConfigMap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_read_is_so_until_it_may_be() {
        let mut assembler = Assembler::new(Live::new(Vec::new()).unwrap(), BTreeSet::new());
        let topic = (Kind::Secret, Some(ObjectName::new("shop", "web")));
        let trouble = |text: Option<&str>| Change::Trouble(topic.clone(), text.map(str::to_owned));
        for end in [trouble(None), Change::All(topic.clone(), Vec::new())] {
            assembler.apply(trouble(Some("it cannot be followed: 403 Forbidden (no)")));
            // Nobody knows better while the server is away.
            assembler.apply(trouble(Some("it cannot be followed: connection refused")));
            assert_eq!(assembler.forbidden().len(), 1);
            assembler.apply(end);
            assert_eq!(assembler.forbidden().len(), 0);
        }
    }
}
