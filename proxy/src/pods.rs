//! The pods of this node: what the CNI plugin registered, in the kernel and on disk.
//!
//! The file survives the agent; on start every registered pod whose interface is still there is put
//! in force again, and all others are forgotten. What is in force for an interface
//! that is there is never taken back only because the file does not know it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use fairway_abi::{Interface, Meter, MeterKey, Namespace, Pod, V4, V6, meter, namespace};
use fairway_cni_protocol::{Bandwidth, Endpoint, HostPort, Rate, Registered};
use fairway_compile::Family;
use fairway_core::pace::patience;
use fairway_netlink::{Link, Netlink};
use tracing::{info, warn};

use crate::attachments::detach_others;
use crate::dataplane::{Dataplane, Side, Table};

/// Starts the name of each pod attachment's pin.
const PIN: &str = "pod-";

/// An attachment's key: container and interface name.
type Key = (String, String);

/// The registered pods.
pub(crate) struct Pods {
    file: PathBuf,
    registered: BTreeMap<Key, Endpoint>,
    /// When each of them was written down first, in seconds since 1970.
    since: BTreeMap<Key, u64>,
    interfaces: Table<u32, Interface>,
    meters: Table<MeterKey, Meter>,
    namespaces: Table<u64, Namespace>,
    v4: Table<V4, Pod>,
    v6: Table<V6, Pod>,
    /// This agent's programs are on the pods' interfaces.
    attached: bool,
    /// Pods that are forgotten, but whose flows may still be there. They stay in the file until those
    /// are gone, too: a successor of an agent that is killed before finds them there.
    leaving: Vec<Endpoint>,
    /// Pods that were there before the node or the agent was started, without an interface now: they may come
    /// again, and are to have their addresses then. They have a file of their own.
    former: Vec<Endpoint>,
    former_file: PathBuf,
    /// The files are to be brought to the disk, by the thread that does so.
    unsynced: bool,
    syncing: Option<JoinHandle<()>>,
}

impl Pods {
    /// Reads the file and brings the tables to what it says.
    pub(crate) fn adopt(
        dataplane: &mut Dataplane,
        netlink: &mut Netlink,
        state_dir: &Path,
    ) -> Result<Self> {
        let file = state_dir.join("endpoints.json");
        let known = read(&file)?;
        let since = known.iter().map(|known| (key(&known.endpoint), known.since)).collect();
        let registered = known.into_iter().map(|known| (key(&known.endpoint), known.endpoint));
        let mut pods = Self {
            registered: registered.collect(),
            since,
            file,
            interfaces: dataplane.table("interfaces")?,
            meters: dataplane.table("meters")?,
            namespaces: dataplane.table("namespaces")?,
            v4: dataplane.table("pods4")?,
            v6: dataplane.table("pods6")?,
            attached: false,
            leaving: Vec::new(),
            former_file: state_dir.join("former.json"),
            former: Vec::new(),
            unsynced: false,
            syncing: None,
        };
        pods.forget_vanished(dataplane, netlink)?;
        pods.read_former();
        for endpoint in pods.registered.values().cloned().collect::<Vec<_>>() {
            pods.put_addresses(&endpoint)
                .with_context(|| format!("pod {}", describe(&endpoint)))?;
        }
        pods.warn_of_strangers()?;
        Ok(pods)
    }

    /// Puts this agent's programs on every pod's interface, once.
    pub(crate) fn attach(&mut self, dataplane: &mut Dataplane) -> Result<()> {
        if !self.attached {
            for endpoint in self.registered.values() {
                attach(dataplane, endpoint)
                    .with_context(|| format!("pod {}", describe(endpoint)))?;
            }
            self.attached = true;
        }
        Ok(())
    }

    /// The pods that are forgotten, and whose flows are to be: since this agent began, or before it.
    pub(crate) fn leaving(&self) -> &[Endpoint] {
        &self.leaving
    }

    /// Nothing is left of those that were leaving.
    pub(crate) fn have_left(&mut self) {
        if !self.leaving.is_empty() {
            self.leaving.clear();
            self.write_what_is_left();
        }
    }

    /// The pods that may come again.
    pub(crate) fn former(&self) -> &[Endpoint] {
        &self.former
    }

    /// Of these, only those may still come.
    pub(crate) fn keep_former(&mut self, may_come: impl Fn(&Endpoint) -> bool) {
        let before = self.former.len();
        self.former.retain(may_come);
        self.unsynced |= self.former.len() < before;
    }

    /// Has the disk take what was written since the last time; nobody waits for it.
    pub(crate) fn sync(&mut self) {
        if !self.unsynced || self.syncing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        self.unsynced = false;
        let (file, former_file, former) =
            (self.file.clone(), self.former_file.clone(), self.former.clone());
        self.syncing = Some(thread::spawn(move || {
            write_former(&former_file, &former);
            match fairway_feed::disk::sync(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    warn!("the list of pods may be lost if power fails: {error}");
                }
                _ => {}
            }
        }));
    }

    /// Every registered pod.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.registered.values()
    }

    /// The same, with since when.
    pub(crate) fn list(&self) -> Vec<Registered> {
        self.registered.values().map(|endpoint| self.dated(endpoint)).collect()
    }

    fn dated(&self, endpoint: &Endpoint) -> Registered {
        let since = self.since.get(&key(endpoint)).copied().unwrap_or_default();
        Registered { since, endpoint: endpoint.clone() }
    }

    /// Whether a pod is registered exactly as given.
    pub(crate) fn knows(&self, endpoint: &Endpoint) -> bool {
        self.registered.get(&key(endpoint)) == Some(endpoint)
    }

    /// Registers a pod; when this returns, its packets are decided on and packets for it arrive. `exempt`
    /// says whether its sockets are left alone, where that is known.
    pub(crate) fn add(
        &mut self,
        dataplane: &mut Dataplane,
        netlink: &mut Netlink,
        endpoint: Endpoint,
        exempt: Option<bool>,
    ) -> Result<()> {
        let link = netlink.link(&endpoint.host_interface)?;
        if link.is_none_or(|link| link.index != endpoint.host_ifindex) {
            bail!(
                "interface {} with index {} is not in the agent's network namespace",
                endpoint.host_interface,
                endpoint.host_ifindex
            );
        }
        self.check_unclaimed(&endpoint)?;
        match self.registered.get(&key(&endpoint)).cloned() {
            // Asked again: whatever was lost meanwhile is put back.
            Some(old) if old == endpoint => {
                return self.put_in_force(dataplane, &endpoint, exempt);
            }
            // An earlier life of the same attachment had another interface or address.
            Some(old) => {
                self.withdraw(dataplane, &old)?;
                self.leaving.extend(self.registered.remove(&key(&old)));
            }
            None => {}
        }
        if let Err(error) = self.put_in_force(dataplane, &endpoint, exempt) {
            self.withdraw(dataplane, &endpoint)?;
            return Err(error);
        }
        self.registered.insert(key(&endpoint), endpoint.clone());
        if let Err(error) = self.write() {
            self.registered.remove(&key(&endpoint));
            self.withdraw(dataplane, &endpoint)?;
            return Err(error);
        }
        info!(pod = describe(&endpoint), addresses = ?endpoint.addresses, "pod added");
        self.keep_former(|former| former.pod_uid != endpoint.pod_uid);
        if exempt == Some(true) && endpoint.netns_cookie.is_none() {
            warn!(
                pod = describe(&endpoint),
                "the pod's sockets are not left alone: nobody told whose they are (Linux 5.14 does)"
            );
        }
        for (what, limit) in [
            (
                "sends beyond this waits if it leaves by a device with fq, and is else",
                endpoint.bandwidth.egress,
            ),
            ("receives beyond this is", endpoint.bandwidth.ingress),
        ] {
            if let Some(limit) = limit {
                let (rate, burst) = (limit.rate, burst(limit));
                info!(pod = describe(&endpoint), rate, burst, "what the pod {what} dropped");
            }
        }
        Ok(())
    }

    /// Whether no other pod has an address or host port that this one is to have; the error says who.
    pub(crate) fn check_unclaimed(&self, endpoint: &Endpoint) -> Result<()> {
        for other in self.registered.values().filter(|other| key(other) != key(endpoint)) {
            if let Some(shared) = endpoint.addresses.iter().find(|a| other.addresses.contains(a)) {
                bail!("address {shared} already belongs to pod {}", describe(other));
            }
        }
        for (other, port) in self.host_ports_beside(endpoint) {
            if let Some(wanted) = endpoint.host_ports.iter().find(|wanted| wanted.overlaps(&port)) {
                bail!("host port {wanted} is already that of pod {} ({port})", describe(other));
            }
        }
        Ok(())
    }

    /// Forgets a pod, whose flows are then to be forgotten. One that is not there is no error.
    pub(crate) fn remove(
        &mut self,
        dataplane: &mut Dataplane,
        container_id: &str,
        interface: &str,
    ) -> Result<()> {
        let key = (container_id.to_owned(), interface.to_owned());
        let Some(endpoint) = self.registered.get(&key).cloned() else { return Ok(()) };
        self.withdraw(dataplane, &endpoint)?;
        info!(pod = describe(&endpoint), "pod removed");
        self.leaving.extend(self.registered.remove(&key));
        Ok(())
    }

    /// Whether the pod is in force exactly as given; the error says what is not.
    pub(crate) fn check(&self, dataplane: &Dataplane, endpoint: &Endpoint) -> Result<()> {
        match self.registered.get(&key(endpoint)) {
            None => bail!("the agent does not know pod {}", describe(endpoint)),
            Some(known) if !is_as_known(endpoint, known) => {
                bail!(
                    "the agent knows pod {} with another interface or address",
                    describe(endpoint)
                )
            }
            Some(_) => {}
        }
        if self.interfaces.get(&endpoint.host_ifindex)? != Some(interface(endpoint)) {
            bail!("table interfaces does not hold {}", endpoint.host_interface);
        }
        if let Some(cookie) =
            self.registered.get(&key(endpoint)).and_then(|known| known.netns_cookie)
        {
            let found = self.namespaces.get(&cookie)?.map(|found| found.addresses);
            if found != self.named_by(cookie).map(interface) {
                bail!("table namespaces does not hold that of {}", endpoint.host_interface);
            }
        }
        for (key, wanted) in meters(endpoint) {
            let found = self.meters.get(&key)?;
            if found
                .is_none_or(|found| (found.rate, found.patience) != (wanted.rate, wanted.patience))
            {
                bail!("table meters does not hold the limits of {}", endpoint.host_interface);
            }
        }
        for address in &endpoint.addresses {
            let found = match address {
                IpAddr::V4(address) => self.v4.get(&address.octets())?,
                IpAddr::V6(address) => self.v6.get(&address.octets())?,
            };
            if found != Some(pod(endpoint)) {
                bail!("the table of pods does not hold {address}");
            }
        }
        let pins = dataplane.attachments()?;
        for pin in wanted_pins(endpoint) {
            if !pins.contains(&pin) {
                bail!("no program is attached to {} ({pin})", endpoint.host_interface);
            }
        }
        Ok(())
    }

    /// Forgets pods whose interface is gone, and whose flows are then to be forgotten.
    pub(crate) fn forget_vanished(
        &mut self,
        dataplane: &mut Dataplane,
        netlink: &mut Netlink,
    ) -> Result<()> {
        let links: BTreeMap<u32, Link> =
            netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let lives = |pod: &&Endpoint| {
            links.get(&pod.host_ifindex).is_some_and(|link| link.name == pod.host_interface)
        };
        let gone: Vec<Endpoint> =
            self.registered.values().filter(|pod| !lives(pod)).cloned().collect();
        for endpoint in &gone {
            // A CNI DEL may be under way: it takes the interface first, and then says so.
            info!(
                pod = describe(endpoint),
                interface = endpoint.host_interface,
                "the pod's interface is gone; the pod is forgotten"
            );
            self.withdraw(dataplane, endpoint)?;
            self.leaving.extend(self.registered.remove(&key(endpoint)));
        }
        self.discard_strangers(dataplane, &links)
    }

    /// Leaves the sockets of those pods alone that are to be left alone, and of no others; of pods that
    /// nothing is known of, what was holds on.
    pub(crate) fn exempt_sockets(
        &mut self,
        exempt: impl Fn(&Endpoint) -> Option<bool>,
    ) -> Result<()> {
        for endpoint in self.registered.values() {
            if let Some((cookie, exempt)) = endpoint.netns_cookie.zip(exempt(endpoint))
                && let Some(found) = self.namespaces.get(&cookie)?
                && found.flags != flags(exempt)
            {
                self.namespaces.put(&cookie, &Namespace { flags: flags(exempt), ..found })?;
                let what = if exempt { "are left alone from now on" } else { "are balanced again" };
                info!(pod = describe(endpoint), "the pod's sockets {what}");
            }
        }
        Ok(())
    }

    /// Who the processes of a network namespace are: of its interfaces the first registered one.
    fn named_by(&self, cookie: u64) -> Option<&Endpoint> {
        self.registered.values().find(|other| other.netns_cookie == Some(cookie))
    }

    /// The host ports of all other pods.
    fn host_ports_beside(
        &self,
        endpoint: &Endpoint,
    ) -> impl Iterator<Item = (&Endpoint, HostPort)> {
        let others = self.registered.values().filter(|other| key(other) != key(endpoint));
        others.flat_map(|other| other.host_ports.iter().map(move |port| (other, *port)))
    }

    /// Who may send first, then programs, then who receives: nothing is ever handed to a pod, or taken
    /// from it, before the programs see it.
    fn put_in_force(
        &mut self,
        dataplane: &mut Dataplane,
        endpoint: &Endpoint,
        exempt: Option<bool>,
    ) -> Result<()> {
        self.put_namespace(endpoint, exempt)?;
        self.interfaces.put(&endpoint.host_ifindex, &interface(endpoint))?;
        attach(dataplane, endpoint)?;
        self.put_addresses(endpoint)
    }

    /// Whether its sockets are left alone stays as it is where that is not known.
    fn put_namespace(&mut self, endpoint: &Endpoint, exempt: Option<bool>) -> Result<()> {
        let Some(cookie) = endpoint.netns_cookie else { return Ok(()) };
        let named_by = self.named_by(cookie).filter(|first| key(first) < key(endpoint));
        let addresses = interface(named_by.unwrap_or(endpoint));
        let known = self.namespaces.get(&cookie)?;
        let flags = exempt.map_or(known.map_or(0, |known| known.flags), flags);
        let wanted = Namespace { addresses, flags };
        if known != Some(wanted) {
            self.namespaces.put(&cookie, &wanted)?;
        }
        Ok(())
    }

    /// Its other interfaces, if any, go on speaking for a namespace.
    fn remove_namespace(&mut self, endpoint: &Endpoint) -> Result<()> {
        let Some(cookie) = endpoint.netns_cookie else { return Ok(()) };
        let mut others = self.registered.values().filter(|other| key(other) != key(endpoint));
        let next = others.find(|other| other.netns_cookie == Some(cookie)).map(interface);
        match (next, self.namespaces.get(&cookie)?) {
            (Some(addresses), Some(found)) => {
                self.namespaces.put(&cookie, &Namespace { addresses, ..found })
            }
            (None, Some(_)) => self.namespaces.remove(&cookie),
            (_, None) => Ok(()),
        }
    }

    /// A meter that is there with the same limit goes on from where it is.
    fn put_meters(&mut self, endpoint: &Endpoint) -> Result<()> {
        for (key, meter) in meters(endpoint) {
            let known = self.meters.get(&key)?;
            let (next, spacing) = known.map_or((0, 0), |known| (known.next, known.spacing));
            if known != Some(Meter { next, spacing, ..meter }) {
                self.meters.put(&key, &meter)?;
            }
        }
        Ok(())
    }

    fn put_addresses(&mut self, endpoint: &Endpoint) -> Result<()> {
        self.put_namespace(endpoint, None)?;
        self.interfaces.put(&endpoint.host_ifindex, &interface(endpoint))?;
        self.put_meters(endpoint)?;
        for address in &endpoint.addresses {
            match address {
                IpAddr::V4(address) => self.v4.put(&address.octets(), &pod(endpoint))?,
                IpAddr::V6(address) => self.v6.put(&address.octets(), &pod(endpoint))?,
            }
        }
        Ok(())
    }

    fn withdraw(&mut self, dataplane: &mut Dataplane, endpoint: &Endpoint) -> Result<()> {
        for address in &endpoint.addresses {
            match address {
                IpAddr::V4(address) => self.v4.remove(&address.octets())?,
                IpAddr::V6(address) => self.v6.remove(&address.octets())?,
            }
        }
        for pin in pins(&endpoint.host_interface, endpoint.host_ifindex) {
            dataplane.detach(&pin);
        }
        for direction in [meter::INGRESS, meter::EGRESS] {
            self.meters.remove(&MeterKey { ifindex: endpoint.host_ifindex, direction })?;
        }
        self.interfaces.remove(&endpoint.host_ifindex)?;
        self.remove_namespace(endpoint)
    }

    /// Removes what is in the kernel for interfaces that are gone. Pods that nobody registered but
    /// whose interface is there stay in force: the list of pods may be lost, but they are not.
    fn discard_strangers(
        &mut self,
        dataplane: &mut Dataplane,
        links: &BTreeMap<u32, Link>,
    ) -> Result<()> {
        let mut known: BTreeSet<u32> = self.registered.values().map(|p| p.host_ifindex).collect();
        let mut stays = |pod: &Pod| {
            // After a reboot another interface may have the index; it has another MAC address.
            let same = links.get(&pod.ifindex).is_some_and(|l| l.mac == Some(pod.host_mac));
            if same {
                known.insert(pod.ifindex);
            }
            known.contains(&pod.ifindex)
        };
        for (address, _) in self.v4.entries()?.iter().filter(|(_, pod)| !stays(pod)) {
            self.v4.remove(address)?;
        }
        for (address, _) in self.v6.entries()?.iter().filter(|(_, pod)| !stays(pod)) {
            self.v6.remove(address)?;
        }
        let mut named: Vec<Interface> = Vec::new();
        for (index, interface) in self.interfaces.entries()? {
            if known.contains(&index) {
                named.push(interface);
            } else {
                self.interfaces.remove(&index)?;
            }
        }
        for (cookie, namespace) in self.namespaces.entries()? {
            if !named.contains(&namespace.addresses) {
                self.namespaces.remove(&cookie)?;
            }
        }
        for (key, _) in self.meters.entries()? {
            if !known.contains(&key.ifindex) {
                self.meters.remove(&key)?;
            }
        }
        let living = links.values().filter(|link| known.contains(&link.index));
        let wanted = living.flat_map(|link| pins(&link.name, link.index));
        detach_others(dataplane, PIN, &wanted.collect())
    }

    /// Tells of pods that are in force although the list does not have them.
    fn warn_of_strangers(&self) -> Result<()> {
        let known = |index: u32| self.registered.values().any(|pod| pod.host_ifindex == index);
        let entries = self.interfaces.entries()?.into_iter();
        let strangers: Vec<u32> = entries.map(|(index, _)| index).filter(|i| !known(*i)).collect();
        if !strangers.is_empty() {
            warn!(
                interfaces = ?strangers,
                file = %self.file.display(),
                "pods are in force that the list of pods does not have; they stay until they go"
            );
        }
        Ok(())
    }

    /// Writes the list without pods that have gone. On a full disk, say, they stay in it until the next
    /// change, or until a starting agent finds that their interfaces are gone; that is no reason to keep
    /// anything else of them.
    fn write_what_is_left(&mut self) {
        if let Err(error) = self.write() {
            warn!(error = format!("{error:#}"), "pods that have gone stay in the list of pods");
        }
    }

    /// Takes those that have just been found gone for former ones, and those that are so already.
    fn read_former(&mut self) {
        let known = fs::read(&self.former_file).unwrap_or_default();
        // A file that is missing or damaged costs pods their former addresses at the most.
        let known: Vec<Endpoint> = serde_json::from_slice(&known).unwrap_or_default();
        let registered: BTreeSet<&str> =
            self.registered.values().map(|pod| pod.pod_uid.as_str()).collect();
        let mut former: BTreeMap<String, Endpoint> = BTreeMap::new();
        for pod in known.into_iter().chain(self.leaving.iter().cloned()) {
            if !pod.pod_uid.is_empty() && !registered.contains(pod.pod_uid.as_str()) {
                former.insert(pod.pod_uid.clone(), pod);
            }
        }
        self.former = former.into_values().collect();
        // Before the list forgets them.
        write_former(&self.former_file, &self.former);
    }

    fn write(&mut self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        self.since.retain(|key, _| self.registered.contains_key(key));
        for key in self.registered.keys() {
            self.since.entry(key.clone()).or_insert(now);
        }
        // One that came back under its old name counts as what it is now: the last of a name.
        let pods = self.leaving.iter().chain(self.registered.values());
        let pods: Vec<Registered> = pods.map(|endpoint| self.dated(endpoint)).collect();
        let contents = serde_json::to_vec_pretty(&pods).context("encode the pods")?;
        // A disk that is busy with images takes long to sync, and no pod's start waits for that.
        self.unsynced = true;
        fairway_feed::disk::replace_unsynced(&self.file, &contents)
            .with_context(|| format!("write {}", self.file.display()))
    }
}

/// Blocks on the disk.
fn write_former(file: &Path, former: &[Endpoint]) {
    let written = match serde_json::to_vec_pretty(former) {
        _ if former.is_empty() => match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Ok(contents) => fairway_feed::disk::replace(file, &contents),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        warn!(error = %error, "after another start, pods may have other addresses than before");
    }
}

/// What a person would call the pod.
pub(crate) fn describe(endpoint: &Endpoint) -> String {
    if endpoint.pod_name.is_empty() {
        format!("container {} {}", endpoint.container_id, endpoint.interface)
    } else {
        format!("{}/{}", endpoint.pod_namespace, endpoint.pod_name)
    }
}

/// Whether what a CHECK says of a pod is what is known of it. An older plugin, which may have registered
/// it or may ask now, says nothing of its network namespace.
fn is_as_known(endpoint: &Endpoint, known: &Endpoint) -> bool {
    let mut said = endpoint.clone();
    if known.netns_cookie.is_none() || said.netns_cookie.is_none() {
        said.netns_cookie = known.netns_cookie;
    }
    if known.netns.is_empty() || said.netns.is_empty() {
        said.netns.clone_from(&known.netns);
    }
    said == *known
}

fn flags(exempt: bool) -> u32 {
    if exempt { namespace::EXEMPT } else { 0 }
}

fn key(endpoint: &Endpoint) -> Key {
    (endpoint.container_id.clone(), endpoint.interface.clone())
}

/// A program on the node's end of a pod's veth.
struct Attachment {
    program: &'static str,
    side: Side,
    /// In the pin's name.
    name: &'static str,
}

/// What every pod has.
const PROGRAMS: [Attachment; 2] = [
    Attachment { program: "pod_ingress", side: Side::Ingress, name: "ingress" },
    Attachment { program: "pod_egress", side: Side::Egress, name: "egress" },
];

/// In front of these, where what the pod sends is limited.
const SENDS: Attachment = Attachment { program: "pod_sends", side: Side::Ingress, name: "sends" };
/// The same for what it receives.
const RECEIVES: Attachment =
    Attachment { program: "pod_receives", side: Side::Egress, name: "receives" };

impl Attachment {
    /// Names the attachment. The index tells an interface from an earlier one of the same name.
    fn pin(&self, interface: &str, index: u32) -> String {
        format!("{PIN}{interface}-{index}-{}", self.name)
    }
}

/// Every pin that an interface may have.
fn pins(interface: &str, index: u32) -> impl Iterator<Item = String> {
    let all = PROGRAMS.iter().chain([&SENDS, &RECEIVES]);
    all.map(move |attachment| attachment.pin(interface, index))
}

/// The pins that a pod has while it is in force.
fn wanted_pins(endpoint: &Endpoint) -> impl Iterator<Item = String> {
    let all = PROGRAMS.iter().chain(limits(endpoint));
    all.map(|attachment| attachment.pin(&endpoint.host_interface, endpoint.host_ifindex))
}

/// The programs that watch a pod's limits.
fn limits(endpoint: &Endpoint) -> impl Iterator<Item = &'static Attachment> {
    let Bandwidth { ingress, egress } = endpoint.bandwidth;
    egress.map(|_| &SENDS).into_iter().chain(ingress.map(|_| &RECEIVES))
}

fn attach(dataplane: &mut Dataplane, endpoint: &Endpoint) -> Result<()> {
    let (device, index) = (&endpoint.host_interface, endpoint.host_ifindex);
    for attachment @ Attachment { program, side, .. } in &PROGRAMS {
        dataplane.attach_last(program, device, *side, &attachment.pin(device, index))?;
    }
    for attachment @ Attachment { program, side, .. } in limits(endpoint) {
        dataplane.attach_classifier(program, device, *side, &attachment.pin(device, index))?;
    }
    Ok(())
}

fn interface(endpoint: &Endpoint) -> Interface {
    fn of<A: Family>(addresses: &[IpAddr]) -> A {
        addresses.iter().find_map(|address| A::of(*address)).unwrap_or(A::UNSPECIFIED)
    }
    Interface { address4: of(&endpoint.addresses), address6: of(&endpoint.addresses) }
}

fn pod(endpoint: &Endpoint) -> Pod {
    let limited = endpoint.bandwidth.ingress.is_some();
    Pod {
        ifindex: endpoint.host_ifindex,
        mac: endpoint.pod_mac,
        host_mac: endpoint.host_mac,
        flags: if limited { fairway_abi::pod::INGRESS_LIMITED } else { 0 },
    }
}

/// The meters of a pod's limits, unused.
fn meters(endpoint: &Endpoint) -> impl Iterator<Item = (MeterKey, Meter)> {
    let Bandwidth { ingress, egress } = endpoint.bandwidth;
    let ifindex = endpoint.host_ifindex;
    let both = [(meter::INGRESS, ingress), (meter::EGRESS, egress)];
    both.into_iter().filter_map(move |(direction, limit)| {
        let limit = limit?;
        let patience = patience(limit.rate, burst(limit));
        let meter = Meter { rate: limit.rate, patience, next: 0, spacing: 0 };
        Some((MeterKey { ifindex, direction }, meter))
    })
}

/// A pod's annotations know no burst; runtimes then say 2^31 - 1 or 2^32 - 1 bits, which would let a
/// pod have half a gigabyte before it feels its limit. A tenth of a second's worth is meant, and room
/// for a few of the largest packets.
fn burst(limit: Rate) -> u64 {
    const UNSAID: u64 = i32::MAX as u64;
    const LEAST: u64 = 4 * 65_536 * 8;
    if limit.burst < UNSAID { limit.burst } else { LEAST.max(limit.rate / 10) }
}

/// The list of pods in the file; none if there is no file.
pub(crate) fn read(file: &Path) -> Result<Vec<Registered>> {
    let contents = match fs::read(file) {
        // As a power failure may leave it.
        Ok(contents) if contents.is_empty() => return Ok(Vec::new()),
        Ok(contents) => contents,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    match serde_json::from_slice(&contents) {
        Ok(pods) => Ok(pods),
        Err(error) => {
            // Refusing to start would help nobody: what is in force stays so without the list.
            let aside = file.with_extension("damaged");
            warn!(%error, file = %file.display(), aside = %aside.display(), "not a list of pods; it is set aside");
            fs::rename(file, &aside).with_context(|| format!("set {} aside", file.display()))?;
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests;
