//! Announces load balancers' addresses on the links that lead out of the node: answers those who ask for
//! their MAC address, and tells the link when this node takes one over.
//!
//! ```text
//! model in force ─► claims (compile::announce) ─► election ─► addresses held ─► ARP, neighbour discovery
//!                      candidates' signs of life ───▲  (UDP between nodes)
//! ```
//!
//! All of it is the agent's alone, on a thread of its own: nothing answers for a node whose agent is dead,
//! and nothing delays a sign of life. What the kernel is asked about devices, which may take long while they
//! are changed, is asked on another thread.
//!
//! A sign of life counts by where it is from: a node's own address and [`PORT`]. While the agent runs, pods cannot
//! forge it: what they send under their node's address leaves from no port that a socket of the node has, and
//! no other node's address passes their interface. Pods of the host's network can, and who can send under a
//! node's address on the link.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_compile::announce::{Claim, claims, claims_differ};
use fairway_model::Model;
use fairway_netlink::Netlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{info, warn};

use crate::dataplane::{ETHERTYPE_ARP, frames_of, solicitations_of};
use crate::node::Uplink;
use crate::status::Status;
use election::{BEAT, Election};
use frames::{Arp, Mac, Solicitation, arp_claims, neighbour_claim, solicited_node};

mod election;
mod frames;

/// UDP port of signs of life, sent from and to.
const PORT: u16 = 7947;
/// What nodes say to each other: a name, a version, and a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// To those behind: this node lives.
    Lives,
    /// To those behind: it ends, and its node with it.
    Ends,
    /// To those behind: its agent ends, and is likely to be started again.
    Pauses,
    /// To those before: it has announced an address in their place, and does not any more.
    Yields,
}

impl Word {
    fn bytes(self) -> [u8; 6] {
        let word = match self {
            Self::Ends => 0,
            Self::Lives => 1,
            Self::Yields => 2,
            Self::Pauses => 3,
        };
        [b'F', b'W', b'L', b'B', 1, word]
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        [Self::Ends, Self::Lives, Self::Yields, Self::Pauses]
            .into_iter()
            .find(|word| word.bytes() == bytes)
    }
}

/// When a node that takes an address over says so, after the first time: packets get lost.
const REPEATED: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];
/// Between two looks at the devices, and two tries to open a socket.
const AGAIN: Duration = Duration::from_secs(1);
/// Received packets that may wait.
const QUEUE: usize = 256;

/// The thread that announces.
pub(crate) struct Announcer {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Announcer {
    /// Starts it. `uplink` is the device that was asked for, if any.
    pub(crate) fn start(
        node: String,
        uplink: Option<String>,
        applied: watch::Receiver<Option<Arc<Model>>>,
        status: Arc<Status>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the announcer's runtime")?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("announcer".to_owned())
            .spawn(move || {
                runtime.block_on(run(node, uplink, applied, status, stopped));
                // Of a question to the kernel nobody needs the answer any more.
                runtime.shutdown_background();
            })
            .context("start the announcer's thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends it, and tells the other candidates whether to take over or to wait until it is back.
    pub(crate) fn stop(self) {
        let _ = self.stop.send(());
        // It ends by itself: nothing in it waits for long.
        let _ = self.thread.join();
    }
}

/// Something that was received.
enum Heard {
    /// A datagram.
    Beat(SocketAddr, Word),
    /// An ARP packet, on this device.
    Arp(u32, Arp),
    /// A question for an address's neighbour, on this device.
    Solicitation(u32, Solicitation),
}

async fn run(
    node: String,
    uplink: Option<String>,
    mut applied: watch::Receiver<Option<Arc<Model>>>,
    status: Arc<Status>,
    mut stopped: oneshot::Receiver<()>,
) {
    let (sender, mut queue) = mpsc::channel(QUEUE);
    let mut announcing = Announcing {
        election: Election::new(node.clone()),
        node,
        uplink,
        status,
        sender,
        model: Arc::default(),
        claims: BTreeMap::new(),
        peers: HashMap::new(),
        beats: Vec::new(),
        links: Links::default(),
        looking: JoinSet::new(),
        held: BTreeMap::new(),
        said: BTreeSet::new(),
    };
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut looks = interval(AGAIN);
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    applied.mark_changed();
    loop {
        announcing.settle(Instant::now());
        let idle = announcing.claims.is_empty();
        let next = announcing.next(Instant::now());
        tokio::select! {
            changed = applied.changed() => {
                let model = applied.borrow_and_update().clone();
                match (changed, model) {
                    (Err(_), _) => return,
                    (Ok(()), Some(model)) => announcing.follow(model),
                    (Ok(()), None) => {}
                }
            }
            Some(heard) = queue.recv() => announcing.hear(heard, Instant::now()),
            _ = beats.tick(), if !idle => announcing.tell(Word::Lives),
            _ = looks.tick(), if !idle => announcing.look(),
            Some(Ok(seen)) = announcing.looking.join_next() => announcing.see(seen, Instant::now()),
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            _ = &mut stopped => {
                // First, because the question takes its time.
                announcing.tell(Word::Pauses);
                if !idle && going_down().await {
                    announcing.tell(Word::Ends);
                }
                return;
            }
        }
    }
}

struct Announcing {
    node: String,
    uplink: Option<String>,
    status: Arc<Status>,
    sender: mpsc::Sender<Heard>,
    model: Arc<Model>,
    claims: BTreeMap<IpAddr, Claim>,
    election: Election,
    /// Whose address is whose.
    peers: HashMap<IpAddr, String>,
    /// Open where there are claims.
    beats: Vec<Beats>,
    links: Links,
    /// The question to the kernel that is not answered yet.
    looking: JoinSet<Result<Seen>>,
    held: BTreeMap<IpAddr, Held>,
    /// What was said to be wrong.
    said: BTreeSet<(About, String)>,
}

/// What something that is wrong is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Beats,
    Devices,
}

/// A socket for signs of life, at an address of the node.
struct Beats {
    address: IpAddr,
    socket: Arc<UdpSocket>,
    _task: JoinSet<()>,
}

/// An address that this node announces.
struct Held {
    /// When it is to be said again.
    due: Vec<Instant>,
    /// When it was last said.
    said: Instant,
}

impl Announcing {
    /// Another model is in force.
    fn follow(&mut self, model: Arc<Model>) {
        let before = std::mem::replace(&mut self.model, model);
        if !claims_differ(&before, &self.model) {
            return;
        }
        let model = &self.model;
        self.claims = claims(model, &self.node);
        let all = self.claims.iter().map(|(ip, claim)| (*ip, claim.candidates.as_slice()));
        self.election.follow(all, Instant::now());
        let nodes = model.nodes.values().filter(|node| node.name != self.node);
        let addresses = nodes.flat_map(|node| node.addresses.iter().map(|ip| (*ip, &node.name)));
        self.peers = addresses.map(|(ip, name)| (ip, name.clone())).collect();
        self.look();
        // Those behind this node count on it from the moment that they know of it.
        self.tell(Word::Lives);
    }

    fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Beat(from, word) if from.port() == PORT => match self.peers.get(&from.ip()) {
                Some(name) if word != Word::Yields => match word {
                    Word::Pauses => self.election.wait_for(name, now),
                    _ => self.election.hear(name, word == Word::Lives, now),
                },
                // What the link was told last is not so any more.
                Some(name) if self.election.behind().contains(name.as_str()) => {
                    for held in self.held.values_mut().filter(|held| now >= held.said + BEAT) {
                        held.due.push(now);
                    }
                }
                _ => {}
            },
            Heard::Beat(..) => {}
            Heard::Arp(device, arp) => {
                if arp.is_request && self.announces(arp.target.into(), device) {
                    self.links.answer_arp(device, &arp);
                }
            }
            Heard::Solicitation(device, question) => {
                if self.announces(question.target.into(), device) {
                    self.links.answer_solicitation(device, &question);
                }
            }
        }
    }

    /// Whether this node announces the address on that device.
    fn announces(&self, ip: IpAddr, device: u32) -> bool {
        self.held.contains_key(&ip)
            && self.claims.get(&ip).is_some_and(|claim| self.links.of(claim).contains(&device))
    }

    /// Brings what is announced to what the election says, and says what is due.
    fn settle(&mut self, now: Instant) {
        let mut held = self.election.held(now);
        if self.beats.is_empty() {
            // Who hears of nobody cannot know that nobody is there.
            held.retain(|ip| {
                self.claims
                    .get(ip)
                    .is_some_and(|claim| claim.candidates.first() == Some(&self.node))
            });
        }
        let changed =
            held.len() != self.held.len() || !held.iter().all(|ip| self.held.contains_key(ip));
        if changed {
            self.change(&held, now);
        }
        for (ip, held) in &mut self.held {
            let before = held.due.len();
            held.due.retain(|due| *due > now);
            if held.due.len() < before
                && let Some(claim) = self.claims.get(ip)
            {
                held.said = now;
                for device in self.links.of(claim) {
                    self.links.claim(device, *ip);
                }
            }
        }
    }

    fn change(&mut self, next: &BTreeSet<IpAddr>, now: Instant) {
        for ip in self.held.keys().filter(|ip| !next.contains(ip)) {
            info!(address = %ip, "another node announces the address");
        }
        let before = self.held.len();
        self.held.retain(|ip, _| next.contains(ip));
        if self.held.len() < before {
            self.tell(Word::Yields);
        }
        for ip in next {
            if !self.held.contains_key(ip) {
                info!(address = %ip, "this node announces the address");
                self.held.insert(*ip, Held { due: repeatedly(now).collect(), said: now });
            }
        }
        self.links.listen_for(self.held.keys().filter_map(|ip| match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some((*ip, self.claims.get(&IpAddr::V6(*ip))?)),
        }));
        let announced = self.held.keys().filter_map(|ip| Some((ip, self.claims.get(ip)?)));
        let announced = announced.flat_map(|(ip, claim)| {
            claim.services.iter().map(|service| (service.to_string(), *ip))
        });
        self.status.announces(&self.node, announced.collect());
    }

    /// When there is something to do although nothing happens.
    fn next(&self, now: Instant) -> Option<Instant> {
        let due = self.held.values().flat_map(|held| held.due.iter().copied());
        due.chain(self.election.next(now)).min()
    }

    fn tell(&self, word: Word) {
        let names = match word {
            Word::Lives | Word::Ends | Word::Pauses => self.election.behind(),
            Word::Yields => self.election.before(),
        };
        for name in names {
            let Some(peer) = self.model.nodes.get(name) else { continue };
            for beats in &self.beats {
                let same = |ip: &&IpAddr| ip.is_ipv4() == beats.address.is_ipv4();
                if let Some(to) = peer.addresses.iter().find(same) {
                    // Another one follows at once; a peer that is away need not be reached.
                    let _ = beats.socket.try_send_to(&word.bytes(), SocketAddr::new(*to, PORT));
                }
            }
        }
    }

    /// Opens and closes sockets for signs of life as they are needed, and asks the kernel for devices.
    fn look(&mut self) {
        if self.claims.is_empty() {
            (self.beats, self.links) = (Vec::new(), Links::default());
            return;
        }
        let own = self.model.nodes.get(&self.node).map(|node| node.addresses.clone());
        let own = own.unwrap_or_default();
        let first = |v4: bool| own.iter().find(|ip| ip.is_ipv4() == v4).copied();
        let wanted: Vec<IpAddr> = [first(true), first(false)].into_iter().flatten().collect();
        let mut wrong = BTreeSet::new();
        self.beats.retain(|beats| wanted.contains(&beats.address));
        for address in wanted {
            if self.beats.iter().any(|beats| beats.address == address) {
                continue;
            }
            match bind(SocketAddr::new(address, PORT)) {
                Ok(socket) => self.beats.push(self.listen(address, socket)),
                Err(error) => drop(wrong.insert(format!("UDP port {PORT} of {address}: {error}"))),
            }
        }
        self.complain(wrong, About::Beats);
        if self.looking.is_empty() {
            let uplink = self.uplink.clone();
            self.looking.spawn_blocking(move || look(uplink.as_deref(), &own));
        }
    }

    /// The kernel has said which devices there are.
    fn see(&mut self, seen: Result<Seen>, now: Instant) {
        if self.claims.is_empty() {
            return;
        }
        let (came, wrong) = match seen {
            Ok(seen) => self.links.open(seen, &self.claims, &self.sender),
            Err(error) => (BTreeSet::new(), BTreeSet::from([format!("{error:#}")])),
        };
        // Neighbours know the address by a device that is no more, or by its former MAC address.
        for (ip, held) in &mut self.held {
            let devices = self.claims.get(ip).map(|claim| self.links.of(claim));
            if devices.unwrap_or_default().iter().any(|device| came.contains(device)) {
                held.due.extend(repeatedly(now));
            }
        }
        self.complain(wrong, About::Devices);
        self.links.listen_for(self.held.keys().filter_map(|ip| match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some((*ip, self.claims.get(&IpAddr::V6(*ip))?)),
        }));
    }

    /// Says what is wrong, once.
    fn complain(&mut self, wrong: BTreeSet<String>, about: About) {
        let wrong: BTreeSet<_> = wrong.into_iter().map(|text| (about, text)).collect();
        for (_, text) in wrong.difference(&self.said) {
            warn!("load balancers' addresses may not be announced: {text}; trying again");
        }
        self.said.retain(|(of, _)| *of != about);
        self.said.extend(wrong);
    }

    fn listen(&self, address: IpAddr, socket: UdpSocket) -> Beats {
        let socket = Arc::new(socket);
        let (sender, receiving) = (self.sender.clone(), Arc::clone(&socket));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = [0; 64];
            loop {
                // An error is about something that was sent before.
                let Ok((length, from)) = receiving.recv_from(&mut buffer).await else { continue };
                let Some(word) = Word::read(&buffer[..length]) else { continue };
                if sender.send(Heard::Beat(from, word)).await.is_err() {
                    return;
                }
            }
        });
        Beats { address, socket, _task: task }
    }
}

/// Whether the whole machine ends, as far as one can know: where systemd runs it, it says so.
async fn going_down() -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    if !Path::new("/run/systemd/system").exists() {
        return false;
    }
    let mut question = tokio::process::Command::new("systemctl");
    let answer = question.arg("is-system-running").kill_on_drop(true).output();
    let answer = timeout(PATIENCE, answer).await;
    answer.is_ok_and(|output| output.is_ok_and(|output| output.stdout.starts_with(b"stopping")))
}

/// When something is said that is to reach everybody.
fn repeatedly(now: Instant) -> impl Iterator<Item = Instant> {
    [Duration::ZERO].into_iter().chain(REPEATED).map(move |after| now + after)
}

/// A socket for signs of life.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Devices, as the kernel has them.
struct Seen {
    /// The uplink's name.
    uplink: String,
    /// Those that have a MAC address.
    devices: Vec<(u32, String, Mac)>,
}

/// Asks the kernel, and waits for as long as it takes.
fn look(uplink: Option<&str>, own: &[IpAddr]) -> Result<Seen> {
    let mut netlink = Netlink::open()?;
    let uplink = Uplink::find(&mut netlink, uplink, own)?.name;
    let links = netlink.links()?.into_iter();
    let devices = links.filter_map(|link| Some((link.index, link.name, link.mac?))).collect();
    Ok(Seen { uplink, devices })
}

/// The devices that addresses are announced on.
#[derive(Default)]
struct Links {
    uplink: String,
    devices: BTreeMap<u32, Device>,
    /// In the groups that are listened to; open where there is an IPv6 address to announce.
    groups_socket: Option<OwnedFd>,
    /// Groups that are listened to, by device.
    groups: BTreeSet<(u32, Ipv6Addr)>,
}

struct Device {
    name: String,
    mac: Mac,
    arp: Arc<UdpSocket>,
    /// For neighbour discovery; open where there is an IPv6 address to announce.
    neighbours: Option<Arc<UdpSocket>>,
    tasks: JoinSet<()>,
}

impl Device {
    /// Begins to listen for ARP packets on it.
    fn open(index: u32, name: String, mac: Mac, sender: &mpsc::Sender<Heard>) -> Result<Self> {
        let arp = frames_of(index, ETHERTYPE_ARP).and_then(watched);
        let arp = Arc::new(arp.with_context(|| format!("a socket for ARP on {name}"))?);
        let mut tasks = JoinSet::new();
        tasks.spawn(hear(Arc::clone(&arp), sender.clone(), move |frame| {
            Arp::read(frame).map(|arp| Heard::Arp(index, arp))
        }));
        Ok(Self { name, mac, arp, neighbours: None, tasks })
    }

    /// Begins to listen for neighbour solicitations as well.
    fn open_neighbours(&mut self, index: u32, sender: &mpsc::Sender<Heard>) -> Result<()> {
        let socket = solicitations_of(index).and_then(watched);
        let socket = socket.with_context(|| format!("a socket for IPv6 on {}", self.name))?;
        let socket = Arc::new(socket);
        self.tasks.spawn(hear(Arc::clone(&socket), sender.clone(), move |frame| {
            Solicitation::read(frame).map(|asked| Heard::Solicitation(index, asked))
        }));
        self.neighbours = Some(socket);
        Ok(())
    }
}

impl Links {
    /// Opens sockets on the devices that claims are about, and closes those on others; returns those that are
    /// new, or have another MAC address, and what is wrong.
    fn open(
        &mut self,
        seen: Seen,
        claims: &BTreeMap<IpAddr, Claim>,
        sender: &mpsc::Sender<Heard>,
    ) -> (BTreeSet<u32>, BTreeSet<String>) {
        let (mut came, mut wrong) = (BTreeSet::new(), BTreeSet::new());
        self.uplink = seen.uplink;
        let mut names: BTreeSet<&str> =
            claims.values().flat_map(|claim| &claim.interfaces).map(String::as_str).collect();
        if claims.values().any(|claim| claim.uplink) {
            names.insert(&self.uplink);
        }
        let mut found = seen.devices;
        found.retain(|(_, name, _)| names.contains(name.as_str()));
        let stays = |index: &u32, device: &mut Device| {
            found
                .iter()
                .any(|(one, name, mac)| one == index && *name == device.name && *mac == device.mac)
        };
        self.devices.retain(stays);
        self.groups.retain(|(device, _)| self.devices.contains_key(device));
        let v6 = claims.keys().any(IpAddr::is_ipv6);
        if v6 && self.groups_socket.is_none() {
            let flags = SocketFlags::CLOEXEC;
            match socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None) {
                Ok(socket) => self.groups_socket = Some(socket),
                Err(error) => drop(wrong.insert(format!("a socket for IPv6: {error}"))),
            }
            self.groups.clear();
        }
        for (index, name, mac) in found {
            match self.open_device(index, name, mac, v6, sender) {
                Ok(true) => drop(came.insert(index)),
                Ok(false) => {}
                Err(error) => drop(wrong.insert(format!("{error:#}"))),
            }
        }
        (came, wrong)
    }

    /// Opens what is not open on a device; whether anything was.
    fn open_device(
        &mut self,
        index: u32,
        name: String,
        mac: Mac,
        v6: bool,
        sender: &mpsc::Sender<Heard>,
    ) -> Result<bool> {
        let (device, mut came) = match self.devices.entry(index) {
            Entry::Occupied(device) => (device.into_mut(), false),
            Entry::Vacant(place) => (place.insert(Device::open(index, name, mac, sender)?), true),
        };
        if v6 && device.neighbours.is_none() {
            device.open_neighbours(index, sender)?;
            came = true;
        }
        Ok(came)
    }

    /// The devices that an address is announced on.
    fn of(&self, claim: &Claim) -> Vec<u32> {
        let is = |device: &Device| {
            claim.interfaces.contains(&device.name) || (claim.uplink && device.name == self.uplink)
        };
        self.devices.iter().filter(|(_, device)| is(device)).map(|(index, _)| *index).collect()
    }

    fn answer_arp(&self, device: u32, request: &Arp) {
        if let Some(device) = self.devices.get(&device) {
            say(&device.name, device.arp.try_send(&request.answer(device.mac)));
        }
    }

    fn answer_solicitation(&self, device: u32, question: &Solicitation) {
        let Some(device) = self.devices.get(&device) else { return };
        if let Some(socket) = &device.neighbours {
            say(&device.name, socket.try_send(&question.answer(device.mac)));
        }
    }

    /// Tells the link that the address is here now.
    fn claim(&self, index: u32, ip: IpAddr) {
        let Some(device) = self.devices.get(&index) else { return };
        match ip {
            IpAddr::V4(ip) => {
                for frame in arp_claims(device.mac, ip) {
                    say(&device.name, device.arp.try_send(&frame));
                }
            }
            IpAddr::V6(ip) => {
                if let Some(socket) = &device.neighbours {
                    say(&device.name, socket.try_send(&neighbour_claim(device.mac, ip)));
                }
            }
        }
    }

    /// Has questions for these addresses, and no others, brought here by the link.
    fn listen_for<'a>(&mut self, held: impl Iterator<Item = (Ipv6Addr, &'a Claim)>) {
        let mut wanted: BTreeSet<(u32, Ipv6Addr)> = held
            .flat_map(|(ip, claim)| {
                self.of(claim).into_iter().map(move |device| (device, solicited_node(ip)))
            })
            .collect();
        let Some(socket) = &self.groups_socket else { return };
        let changes: Vec<_> = wanted.symmetric_difference(&self.groups).copied().collect();
        for (device, group) in changes {
            let done = match wanted.contains(&(device, group)) {
                true => {
                    // Of another device that had the number, the socket is still in the group.
                    let _ = sockopt::set_ipv6_drop_membership(socket, &group, device);
                    sockopt::set_ipv6_add_membership(socket, &group, device)
                }
                false => sockopt::set_ipv6_drop_membership(socket, &group, device),
            };
            if let Err(error) = done {
                // A device without IPv6 may come to have it: the next look tries again.
                tracing::debug!(%group, device, %error, "cannot change who is listened to");
                wanted.remove(&(device, group));
            }
        }
        self.groups = wanted;
    }
}

/// A device that goes down is nothing to complain of: another node is on its way.
fn say(device: &str, sent: io::Result<usize>) {
    if let Err(error) = sent {
        tracing::debug!(device, %error, "an announcement was not sent");
    }
}

/// Passes on what `read` makes of the frames that a device's socket receives.
async fn hear(
    socket: Arc<UdpSocket>,
    sender: mpsc::Sender<Heard>,
    read: impl Fn(&[u8]) -> Option<Heard>,
) {
    let mut frame = [0; 128];
    loop {
        // A device that is down says so once.
        let Ok(length) = socket.recv(&mut frame).await else { continue };
        let Some(heard) = frame.get(..length).and_then(&read) else { continue };
        if sender.send(heard).await.is_err() {
            return;
        }
    }
}

/// The runtime has no type of its own for raw sockets; what it does with UDP's, to receive and to send, is the
/// same for them.
fn watched(socket: OwnedFd) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}
