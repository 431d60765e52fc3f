//! What the kernel answers by itself: the names of Services that have addresses of their own, kept like the zone that
//! all else is answered from.
//!
//! The tables outlive the agent, as those of Services do: while it is away, names lead where packets to Services do.

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use fairway_abi::{NameAddresses, NameKey, Zone as ZoneRecord};
use fairway_dns::{Name, Zone};
use fairway_model::ObjectName;
use tracing::warn;

use crate::dataplane::{Dataplane, Single, Table};

/// The tables, once there are any, and the zone that they are to hold. Clones are one and the same.
#[derive(Clone, Default)]
pub(crate) struct KernelNames(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tables: Option<NameTables>,
    wanted: Wanted,
}

/// What the tables are to hold.
#[derive(Default)]
enum Wanted {
    /// What is there, until a zone is known.
    #[default]
    AsFound,
    Zone(Arc<Zone>),
    Nothing,
}

impl KernelNames {
    /// From now on these tables are kept.
    pub(crate) fn tell(&self, tables: NameTables) {
        let mut state = self.lock();
        state.tables = Some(tables);
        state.bring();
    }

    /// This is the zone from now on.
    pub(crate) fn follow(&self, zone: Arc<Zone>) {
        let mut state = self.lock();
        state.wanted = Wanted::Zone(zone);
        state.bring();
    }

    /// Whether pods are told a name's addresses by the kernel, as far as their policies let them ask.
    pub(crate) fn has(&self, name: &Name) -> bool {
        let Some(key) = NameKey::new(name.as_wire()) else { return false };
        let state = self.lock();
        state.tables.as_ref().is_some_and(|of| of.names.get(&key).is_ok_and(|of| of.is_some()))
    }

    /// Nobody knows any more what the zone is: the kernel answers nothing until somebody does.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        state.wanted = Wanted::Nothing;
        state.bring();
    }

    /// IPv4 addresses of all names for which the kernel answers.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<[u8; 4]> {
        let state = self.lock();
        let tables = state.tables.as_ref().expect("tables");
        let entries = tables.names.entries().expect("a table");
        let answers = tables.zone.get().expect("a zone").length > 0;
        entries.iter().map(|(_, of)| of.address4).filter(|_| answers).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bring(&mut self) {
        let Some(tables) = &mut self.tables else { return };
        let (outcome, about) = match &self.wanted {
            Wanted::AsFound => return,
            Wanted::Zone(zone) => {
                (tables.follow(zone), "the kernel does not know all names; this agent answers them")
            }
            Wanted::Nothing => (tables.clear(), "the kernel answers for names as they were"),
        };
        if let Err(error) = outcome {
            warn!(error = format!("{error:#}"), "{about}");
        }
    }
}

/// The tables, and what they hold.
pub(crate) struct NameTables {
    names: Table<NameKey, NameAddresses>,
    zone: Single<ZoneRecord>,
    written: Option<Arc<Zone>>,
    /// Services of that zone whose names there was no room for.
    missing: BTreeSet<ObjectName>,
}

impl NameTables {
    /// Those that the programs use, with what a predecessor has left there.
    pub(crate) fn adopt(dataplane: &mut Dataplane) -> Result<Self> {
        let (names, zone) = (dataplane.table("names")?, dataplane.single("zone")?);
        Ok(Self { names, zone, written: None, missing: BTreeSet::new() })
    }

    /// Has the kernel answer nothing.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.written = None;
        self.missing.clear();
        self.zone.set(&ZoneRecord::default())?;
        self.names.entries()?.iter().try_for_each(|(name, _)| self.names.remove(name))
    }

    /// Has it answer as this zone does. An error tells that some names are missing; none is wrong.
    fn follow(&mut self, zone: &Arc<Zone>) -> Result<()> {
        let length = u32::try_from(zone.name().as_wire().len()).unwrap_or_default();
        let before = self.written.take().filter(|before| before.name() == zone.name());
        if before.is_none() {
            self.missing.clear();
            let discarded = self.discard(zone, length);
            if discarded.is_err() {
                // Rather no name than one that is not there any more.
                let _ = self.zone.set(&ZoneRecord::default());
            }
            discarded?;
        }
        let mut outcome = Ok(());
        for service in zone.services_since(before.as_deref()) {
            self.missing.remove(&service);
            let put = self.put(zone, &service);
            if put.is_err() {
                self.missing.insert(service);
            }
            outcome = outcome.and(put);
        }
        while outcome.is_ok()
            && let Some(service) = self.missing.first().cloned()
            && self.put(zone, &service).is_ok()
        {
            self.missing.remove(&service);
        }
        self.zone.set(&ZoneRecord { length, ttl: zone.ttl(), serial: zone.serial() })?;
        self.written = Some(Arc::clone(zone));
        outcome
    }

    /// Removes names that a zone does not have, where nobody knows what is there. Those that it has are answered
    /// meanwhile.
    fn discard(&mut self, zone: &Zone, length: u32) -> Result<()> {
        if self.zone.get()?.length != length {
            self.zone.set(&ZoneRecord::default())?;
        }
        let services = zone.services_since(None);
        let has = services.iter().filter(|service| zone.cluster_addresses(service).is_some());
        let known: HashSet<_> = has.filter_map(|service| key(zone, service)).collect();
        let there = self.names.entries()?;
        let gone = there.iter().filter(|(name, _)| !known.contains(name));
        gone.map(|(name, _)| name).try_for_each(|name| self.names.remove(name))
    }

    /// Brings one Service's name to what it is.
    fn put(&mut self, zone: &Zone, service: &ObjectName) -> Result<()> {
        let Some(key) = key(zone, service) else { return Ok(()) };
        let addresses = zone.cluster_addresses(service).map(|of| NameAddresses {
            address4: of.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
            address6: of.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
        });
        let Some(addresses) = addresses else { return self.names.remove(&key) };
        self.names.put(&key, &addresses).inspect_err(|_| {
            // Rather none than those of before.
            let _ = self.names.remove(&key);
        })
    }
}

/// `None`: the name is too long for the table.
fn key(zone: &Zone, service: &ObjectName) -> Option<NameKey> {
    NameKey::new(zone.service_name(service)?.as_wire())
}

#[cfg(test)]
mod tests {
    use fairway_dns::zone::Options;
    use fairway_model::{Model, Service};

    use super::*;
    use crate::sandbox::sandbox;

    fn model(services: &[(&str, &[&str])]) -> Model {
        let mut model = Model::default();
        for (name, addresses) in services {
            let service = Service {
                name: ObjectName::new("shop", *name),
                cluster_ips: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
                ..Service::default()
            };
            model.services.insert(service);
        }
        model
    }

    /// Names without zeros behind, and their addresses.
    fn names(tables: &NameTables) -> Vec<(String, [u8; 4], u8)> {
        let text = |key: &NameKey| {
            let bytes = key.0.as_flattened();
            String::from_utf8_lossy(&bytes[1..=usize::from(bytes[0])]).into_owned()
        };
        let entries = tables.names.entries().expect("a table");
        let mut names: Vec<_> =
            entries.iter().map(|(key, of)| (text(key), of.address4, of.address6[15])).collect();
        names.sort();
        names
    }

    #[test]
    fn the_kernel_knows_the_names_of_services_with_addresses() {
        sandbox(|bpffs| {
            let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("tables");
            let tables = NameTables::adopt(&mut dataplane).expect("tables");
            let kernel = KernelNames::default();
            let empty = Zone::new(Options::default());
            let long = "x".repeat(63);
            let first = model(&[
                ("web", &["10.96.0.1", "fd00::1"]),
                ("old", &["10.96.0.2"]),
                ("headless", &[]),
                (&long, &["10.96.0.9"]),
            ]);
            let zone = Arc::new(empty.next(&first, 7));
            kernel.follow(Arc::clone(&zone));
            kernel.tell(tables);
            let seen = |kernel: &KernelNames| {
                let state = kernel.lock();
                let tables = state.tables.as_ref().expect("tables");
                (names(tables), tables.zone.get().expect("a zone"))
            };
            let is = |name: &str, v4, v6| (name.to_owned(), v4, v6);
            let of = |serial| ZoneRecord { length: 15, ttl: 5, serial };
            let all = vec![
                is("old", [10, 96, 0, 2], 0),
                is("web", [10, 96, 0, 1], 1),
                is(&long, [10, 96, 0, 9], 0),
            ];
            assert_eq!(seen(&kernel), (all, of(7)));
            for (name, has) in [("web", true), ("headless", false), ("none", false)] {
                let name = format!("{name}.shop.svc.cluster.local").parse().expect("a name");
                assert_eq!(kernel.has(&name), has, "{name}");
            }

            // One goes, one changes, one becomes headless, and one comes.
            let second =
                model(&[("web", &["10.96.0.3"]), (&long, &[]), ("headless", &["10.96.0.4"])]);
            kernel.follow(Arc::new(zone.next(&second, 8)));
            let all = vec![is("headless", [10, 96, 0, 4], 0), is("web", [10, 96, 0, 3], 0)];
            assert_eq!(seen(&kernel), (all.clone(), of(8)));

            // The next agent begins with what it finds.
            let kernel = KernelNames::default();
            kernel.tell(NameTables::adopt(&mut dataplane).expect("tables"));
            assert_eq!(seen(&kernel), (all, of(8)), "nothing is known yet");
            kernel.follow(Arc::new(empty.next(&model(&[("new", &["10.96.0.5"])]), 1)));
            assert_eq!(seen(&kernel), (vec![is("new", [10, 96, 0, 5], 0)], of(1)));
            let mut tables = NameTables::adopt(&mut dataplane).expect("tables");
            tables.clear().expect("tables to write");
            assert_eq!(seen(&kernel), (Vec::new(), ZoneRecord::default()));
        });
    }

    #[test]
    fn names_without_room_are_left_to_the_agent() {
        sandbox(|bpffs| {
            let capacity = "names=64".parse().expect("a capacity");
            let mut dataplane = Dataplane::load_tables(bpffs, &[capacity]).expect("tables");
            let kernel = KernelNames::default();
            kernel.tell(NameTables::adopt(&mut dataplane).expect("tables"));
            let all: Vec<String> = (0..70).map(|n| format!("web-{n}")).collect();
            let all: Vec<_> = all.iter().map(|name| (&**name, &["10.96.0.1"][..])).collect();
            let zone = Arc::new(Zone::new(Options::default()).next(&model(&all), 1));
            kernel.follow(Arc::clone(&zone));
            let state = |kernel: &KernelNames| {
                let state = kernel.lock();
                let tables = state.tables.as_ref().expect("tables");
                (names(tables).len(), tables.zone.get().expect("a zone").serial)
            };
            assert_eq!(state(&kernel).0, 64);
            // Once there is room, all of them are there.
            let zone = Arc::new(zone.next(&model(&all[..60]), 2));
            kernel.follow(zone);
            assert_eq!(state(&kernel), (60, 2));
        });
    }
}
