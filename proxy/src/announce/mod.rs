//! Announces load balancers' addresses on the links that lead out of the node: answers those who ask for
//! their MAC address, and tells the link when this node takes one over.
//!
//! ```text
//! model in force ─► claims (compile::announce) ─► election ─► addresses held ─► ARP, neighbour discovery
//!                      candidates' signs of life ───▲  (UDP between nodes)
//! ```
//!
//! All of it is the agent's alone, on a thread of its own: nothing answers for a node whose agent is dead,
//! and nothing but the kernel's answers about devices delays a sign of life.
//!
//! A sign of life counts by where it is from: a node's own address and [`PORT`]. While the agent runs, pods cannot
//! forge it: what they send under their node's address leaves from no port that a socket of the node has, and
//! no other node's address passes their interface. Pods of the host's network can, and who can send under a
//! node's address on the link.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_compile::announce::{Claim, claims, claims_differ};
use fairway_model::Model;
use fairway_netlink::Netlink;
use ipnet::IpNet;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use crate::dataplane::{ETHERTYPE_ARP, frames_of};
use crate::node::Uplink;
use crate::status::Status;
use election::{BEAT, Election};
use frames::{Arp, Mac, advertisement, arp_claims, solicited, solicited_node};

mod election;
mod frames;

/// UDP port of signs of life, sent from and to.
const PORT: u16 = 7947;
/// What nodes say to each other: a name, a version, and a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// To those behind: this node lives.
    Lives,
    /// To those behind: it ends.
    Ends,
    /// To those before: it has announced an address in their place, and does not any more.
    Yields,
}

impl Word {
    fn bytes(self) -> [u8; 6] {
        let word = match self {
            Self::Ends => 0,
            Self::Lives => 1,
            Self::Yields => 2,
        };
        [b'F', b'W', b'L', b'B', 1, word]
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        [Self::Ends, Self::Lives, Self::Yields].into_iter().find(|word| word.bytes() == bytes)
    }
}

/// When a node that takes an address over says so, after the first time: packets get lost.
const REPEATED: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];
/// Between two looks at the devices, and two tries to open a socket.
const AGAIN: Duration = Duration::from_secs(1);
/// Where all neighbours listen.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
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
            .spawn(move || runtime.block_on(run(node, uplink, applied, status, stopped)))
            .context("start the announcer's thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends it, and tells the other candidates, so that they need not wait.
    pub(crate) fn stop(self) {
        let _ = self.stop.send(());
        // It ends by itself: nothing in it waits for anybody.
        let _ = self.thread.join();
    }
}

/// Something that was received.
enum Heard {
    /// A datagram.
    Beat(SocketAddr, Word),
    /// An ARP packet, on this device.
    Arp(u32, Arp),
    /// A question for an address's neighbour.
    Solicitation(SocketAddrV6, Ipv6Addr),
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
                    (Ok(()), Some(model)) => announcing.follow(model).await,
                    (Ok(()), None) => {}
                }
            }
            Some(heard) = queue.recv() => announcing.hear(heard, Instant::now()),
            _ = beats.tick(), if !idle => announcing.tell(Word::Lives),
            _ = looks.tick(), if !idle => announcing.look().await,
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            _ = &mut stopped => {
                announcing.tell(Word::Ends);
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
    held: BTreeMap<IpAddr, Held>,
    /// What was said to be wrong.
    said: BTreeSet<String>,
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
    async fn follow(&mut self, model: Arc<Model>) {
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
        self.look().await;
        // Those behind this node count on it from the moment that they know of it.
        self.tell(Word::Lives);
    }

    fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Beat(from, word) if from.port() == PORT => match self.peers.get(&from.ip()) {
                Some(name) if word != Word::Yields => {
                    self.election.hear(name, word == Word::Lives, now);
                }
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
            Heard::Solicitation(from, target) => {
                let device = self.links.device_of(&from);
                if let Some(device) = device.filter(|one| self.announces(target.into(), *one)) {
                    self.links.answer_solicitation(device, from, target);
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
                let due = [Duration::ZERO].iter().chain(&REPEATED).map(|after| now + *after);
                self.held.insert(*ip, Held { due: due.collect(), said: now });
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
            Word::Lives | Word::Ends => self.election.behind(),
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

    /// Opens what is needed and not open, and closes what is not needed.
    async fn look(&mut self) {
        if self.claims.is_empty() {
            (self.beats, self.links) = (Vec::new(), Links::default());
            return;
        }
        let own = self.model.nodes.get(&self.node).map(|node| node.addresses.as_slice());
        let own = own.unwrap_or_default();
        let first = |v4: bool| own.iter().find(|ip| ip.is_ipv4() == v4).copied();
        let wanted: Vec<IpAddr> = [first(true), first(false)].into_iter().flatten().collect();
        let mut wrong = BTreeSet::new();
        self.beats.retain(|beats| wanted.contains(&beats.address));
        for address in wanted {
            if self.beats.iter().any(|beats| beats.address == address) {
                continue;
            }
            match UdpSocket::bind((address, PORT)).await {
                Ok(socket) => self.beats.push(self.listen(address, socket)),
                Err(error) => drop(wrong.insert(format!("UDP port {PORT} of {address}: {error}"))),
            }
        }
        if let Err(error) = self.links.look(self.uplink.as_deref(), own, &self.claims, &self.sender)
        {
            wrong.insert(format!("{error:#}"));
        }
        for text in wrong.difference(&self.said) {
            warn!("load balancers' addresses may not be announced: {text}; trying again");
        }
        self.said = wrong;
        self.links.listen_for(self.held.keys().filter_map(|ip| match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some((*ip, self.claims.get(&IpAddr::V6(*ip))?)),
        }));
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

/// The devices that addresses are announced on.
#[derive(Default)]
struct Links {
    uplink: String,
    devices: BTreeMap<u32, Device>,
    /// Sends and receives ICMPv6; open where there is an IPv6 address to announce.
    icmp: Option<Icmp>,
    /// Groups that are listened to, by device.
    groups: BTreeSet<(u32, Ipv6Addr)>,
}

struct Device {
    name: String,
    mac: Mac,
    networks: Vec<IpNet>,
    arp: Arc<UdpSocket>,
    _task: JoinSet<()>,
}

struct Icmp {
    socket: Arc<UdpSocket>,
    _task: JoinSet<()>,
}

impl Links {
    /// Opens sockets on the devices that claims are about, and closes those on others.
    fn look(
        &mut self,
        uplink: Option<&str>,
        own: &[IpAddr],
        claims: &BTreeMap<IpAddr, Claim>,
        sender: &mpsc::Sender<Heard>,
    ) -> Result<()> {
        let mut netlink = Netlink::open()?;
        self.uplink = Uplink::find(&mut netlink, uplink, own)?.name;
        let mut names: BTreeSet<&str> =
            claims.values().flat_map(|claim| &claim.interfaces).map(String::as_str).collect();
        if claims.values().any(|claim| claim.uplink) {
            names.insert(&self.uplink);
        }
        let links = netlink.links()?;
        let links = links.iter().filter(|link| names.contains(link.name.as_str()));
        let found: Vec<_> =
            links.filter_map(|link| Some((link.index, &link.name, link.mac?))).collect();
        let stays = |index: &u32, device: &mut Device| {
            found
                .iter()
                .any(|(one, name, mac)| one == index && **name == device.name && *mac == device.mac)
        };
        self.devices.retain(stays);
        for (index, name, mac) in found {
            let addresses = netlink.addresses(index)?.into_iter().map(|address| address.net);
            let networks: Vec<IpNet> = addresses.collect();
            if let Some(device) = self.devices.get_mut(&index) {
                device.networks = networks;
                continue;
            }
            let socket = frames_of(index, ETHERTYPE_ARP).and_then(watched);
            let socket = socket.with_context(|| format!("a socket for ARP on {name}"))?;
            let (arp, mut task) = (Arc::new(socket), JoinSet::new());
            task.spawn(hear_arp(index, Arc::clone(&arp), sender.clone()));
            let device = Device { name: name.clone(), mac, networks, arp, _task: task };
            self.devices.insert(index, device);
        }
        self.groups.retain(|(device, _)| self.devices.contains_key(device));
        let v6 = claims.keys().any(IpAddr::is_ipv6);
        if v6 && self.icmp.is_none() {
            let socket = icmp_socket().and_then(watched).context("a socket for ICMPv6")?;
            let (socket, mut task) = (Arc::new(socket), JoinSet::new());
            task.spawn(hear_icmp(Arc::clone(&socket), sender.clone()));
            self.icmp = Some(Icmp { socket, _task: task });
            self.groups.clear();
        }
        Ok(())
    }

    /// The devices that an address is announced on.
    fn of(&self, claim: &Claim) -> Vec<u32> {
        let is = |device: &Device| {
            claim.interfaces.contains(&device.name) || (claim.uplink && device.name == self.uplink)
        };
        self.devices.iter().filter(|(_, device)| is(device)).map(|(index, _)| *index).collect()
    }

    /// The device that a neighbour is on.
    fn device_of(&self, neighbour: &SocketAddrV6) -> Option<u32> {
        if neighbour.scope_id() != 0 {
            return Some(neighbour.scope_id()).filter(|index| self.devices.contains_key(index));
        }
        let ip = IpAddr::V6(*neighbour.ip());
        let near = |device: &Device| device.networks.iter().any(|net| net.contains(&ip));
        let mut devices = self.devices.iter();
        let found = devices.find(|(_, device)| near(device)).map(|(index, _)| *index);
        found.or_else(|| self.devices.keys().next().copied().filter(|_| ip.is_unspecified()))
    }

    fn answer_arp(&self, device: u32, request: &Arp) {
        if let Some(device) = self.devices.get(&device) {
            say(&device.name, device.arp.try_send(&request.answer(device.mac)));
        }
    }

    fn answer_solicitation(&self, index: u32, from: SocketAddrV6, target: Ipv6Addr) {
        let (Some(device), Some(icmp)) = (self.devices.get(&index), &self.icmp) else { return };
        // Who has no address yet looks whether it is taken.
        let (to, answers) = match from.ip().is_unspecified() {
            true => (SocketAddrV6::new(ALL_NODES, 0, 0, index), false),
            false => (SocketAddrV6::new(*from.ip(), 0, 0, from.scope_id()), true),
        };
        let message = advertisement(device.mac, target, answers);
        say(&device.name, icmp.socket.try_send_to(&message, to.into()));
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
                let Some(icmp) = &self.icmp else { return };
                let message = advertisement(device.mac, ip, false);
                let to = SocketAddrV6::new(ALL_NODES, 0, 0, index);
                say(&device.name, icmp.socket.try_send_to(&message, to.into()));
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
        let Some(icmp) = &self.icmp else { return };
        let changes: Vec<_> = wanted.symmetric_difference(&self.groups).copied().collect();
        for (device, group) in changes {
            let done = match wanted.contains(&(device, group)) {
                true => sockopt::set_ipv6_add_membership(&icmp.socket, &group, device),
                false => sockopt::set_ipv6_drop_membership(&icmp.socket, &group, device),
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

async fn hear_arp(device: u32, socket: Arc<UdpSocket>, sender: mpsc::Sender<Heard>) {
    let mut frame = [0; 128];
    loop {
        // A device that is down says so once.
        let Ok(length) = socket.recv(&mut frame).await else { continue };
        let Some(arp) = frame.get(..length).and_then(Arp::read) else { continue };
        if sender.send(Heard::Arp(device, arp)).await.is_err() {
            return;
        }
    }
}

async fn hear_icmp(socket: Arc<UdpSocket>, sender: mpsc::Sender<Heard>) {
    let mut message = [0; 128];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut message).await else { continue };
        let SocketAddr::V6(from) = from else { continue };
        let Some(target) = message.get(..length).and_then(solicited) else { continue };
        if sender.send(Heard::Solicitation(from, target)).await.is_err() {
            return;
        }
    }
}

/// The runtime has no type of its own for raw sockets; what it does with UDP's, to receive and to send, is the
/// same for them.
fn watched(socket: OwnedFd) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Receives ICMPv6 that is for this host or a group that it is in; the kernel computes checksums.
fn icmp_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(ipproto::ICMPV6);
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, protocol)?;
    // Neighbours believe only what no router has passed on.
    sockopt::set_ipv6_unicast_hops(&socket, Some(255))?;
    sockopt::set_ipv6_multicast_hops(&socket, 255)?;
    sockopt::set_ipv6_multicast_loop(&socket, false)?;
    Ok(socket)
}
