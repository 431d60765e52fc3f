//! Connections that endpoints have open from this node, for Services that look at them.
//!
//! The table of loads has one number for an endpoint's address, port and protocol, whatever Services it is
//! behind. Programs count one more when they choose the endpoint for a connection, at the socket or for a
//! packet, and one less when a TCP socket ends that was given it (`sock_release`). That keeps the number
//! close to what is so from one moment to the next, and nothing more is asked of it: what ends otherwise (a
//! flow that was closed, fell silent, or made room for others; a socket in a namespace that has gone; a
//! connection that never came about), what processors lose that count at once, and what a table without room
//! did not take, would all add up.
//!
//! So the agent counts anew what is there, every time it looks after the flows ([`count`]), and writes that
//! ([`LoadTable::settle`]): sockets as the kernel lists them in the node's own network namespace and those
//! of its pods, and flows that have a record and are not closed. Whatever happened before, a number depends
//! on the last count and on what programs did since it began, and so on no more than some seconds:
//!
//! ```text
//! number = what was counted + (number now - number before the count)
//! ```
//!
//! A connection that comes while it is counted may so be there twice, or one that ends not at all, until
//! the next time. An agent that is away leaves numbers that only grow by what is not a socket's; its
//! successor's first count ends that. An endpoint that nobody has a connection to has no number: one that
//! leaves takes it along when its last connection has ended, and one that comes back finds what is left.
//! Sockets outside of the namespaces that are known (containers that are no pods) are counted by programs
//! alone, from one count to the next.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use fairway_abi::{LoadKey, protocol};
use fairway_compile::Family;
use fairway_netlink::{NetNs, Sockets};

use crate::dataplane::{Dataplane, Table};

/// Numbers of one family's endpoints.
pub(crate) struct LoadTable<A: Family> {
    loads: Table<LoadKey<A>, u32>,
}

/// An endpoint and its protocol's number.
pub(crate) type End = (SocketAddr, u8);

/// How many connections are open to these endpoints, and to no others.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    wanted: HashSet<End>,
    open: HashMap<End, u32>,
}

impl Counted {
    /// None so far, of any of these.
    pub(crate) fn of(wanted: impl IntoIterator<Item = End>) -> Self {
        Self { wanted: wanted.into_iter().collect(), open: HashMap::new() }
    }

    /// Whether there is nothing to count.
    pub(crate) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// One more, if it is to one of them.
    pub(crate) fn add(&mut self, end: End) {
        if self.wanted.contains(&end) {
            *self.open.entry(end).or_default() += 1;
        }
    }
}

impl<A: Family + std::hash::Hash> LoadTable<A> {
    /// Takes the table over. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self { loads: dataplane.table(&format!("loads{suffix}"))? })
    }

    /// What it says, before anything is counted.
    pub(crate) fn read(&self) -> Result<HashMap<LoadKey<A>, u32>> {
        Ok(self.loads.entries()?.into_iter().collect())
    }

    /// Makes it say what was counted since it said `before`.
    pub(crate) fn settle(
        &mut self,
        before: &HashMap<LoadKey<A>, u32>,
        counted: &Counted,
    ) -> Result<()> {
        for (key, was) in before {
            let Some(is) = self.loads.get(key)? else { continue };
            let open = counted.open.get(&end(key)).copied().unwrap_or(0);
            match settled(open, *was, is) {
                0 => self.loads.remove(key)?,
                next if next != is => self.loads.put(key, &next)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// An endpoint as [`Counted`] has it.
pub(crate) fn end<A: Family>(key: &LoadKey<A>) -> End {
    (SocketAddr::new(key.address.to_ip(), key.port.get()), key.protocol)
}

/// A number that was `was` before `open` were counted, and `is` now.
fn settled(open: u32, was: u32, is: u32) -> u32 {
    open.saturating_add_signed(is.wrapping_sub(was).cast_signed())
}

/// Adds the connected sockets of the calling thread's network namespace and of those that the files stand
/// for. A namespace that has gone took its sockets along.
pub(crate) fn count<'a>(
    counted: &mut Counted,
    namespaces: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    count_here(counted)?;
    for file in namespaces {
        let Ok(namespace) = NetNs::open(file) else { continue };
        let seen = namespace.run(|| count_here(counted)).map_err(anyhow::Error::from);
        seen.flatten().with_context(|| format!("network namespace {}", file.display()))?;
    }
    Ok(())
}

fn count_here(counted: &mut Counted) -> Result<()> {
    let mut sockets = Sockets::open()?;
    sockets.open_tcp(|peer| counted.add((peer, protocol::TCP)))?;
    for socket in sockets.connected_udp()? {
        counted.add((socket.peer, protocol::UDP));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use fairway_abi::V4;
    use zerocopy::network_endian::U16;

    use super::*;
    use crate::sandbox::sandbox;

    fn key(port: u16, protocol: u8) -> LoadKey<V4> {
        LoadKey { address: [127, 0, 0, 1], port: U16::new(port), protocol, reserved: 0 }
    }

    #[test]
    fn what_came_or_went_meanwhile_is_on_top_of_what_was_counted() {
        assert_eq!(settled(5, 100, 100), 5, "whatever it was before");
        assert_eq!(settled(5, 100, 103), 8);
        assert_eq!(settled(5, 100, 98), 3);
        assert_eq!(settled(1, 100, 90), 0, "never less than nothing");
        assert_eq!(settled(2, u32::MAX, 1), 4);
    }

    #[test]
    fn numbers_become_what_is_there() {
        sandbox(|bpffs| {
            fairway_netlink::Netlink::open()
                .and_then(|mut netlink| {
                    let loopback = netlink.link("lo")?.expect("a loopback device").index;
                    netlink.set_up(loopback)
                })
                .expect("up");
            let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
            let mut table = LoadTable::<V4>::adopt(&mut dataplane, "4").expect("a table");
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let clients: Vec<TcpStream> = (0..3)
                .map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection"))
                .collect();
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            udp.connect((Ipv4Addr::LOCALHOST, port)).expect("a peer");
            // Drifted, forgotten, and about somebody without connections.
            let (tcp, gone) = (key(port, protocol::TCP), key(1, protocol::TCP));
            for (key, number) in [(tcp, 700), (key(port, protocol::UDP), 1), (gone, 9)] {
                table.loads.put(&key, &number).expect("room");
            }
            let recount = |table: &mut LoadTable<V4>| {
                let before = table.read().expect("numbers");
                let mut counted = Counted::of(before.keys().map(end));
                count(&mut counted, std::iter::empty()).expect("sockets");
                table.settle(&before, &counted).expect("room");
                let mut all: Vec<_> = table.read().expect("numbers").into_iter().collect();
                all.sort_unstable();
                all
            };
            assert_eq!(recount(&mut table), [(tcp, 3), (key(port, protocol::UDP), 1)]);
            drop((clients, udp));
            assert_eq!(recount(&mut table), []);
            assert!(Counted::of([]).is_empty());
        });
    }
}
