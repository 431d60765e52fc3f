//! UDP sockets that were connected to an endpoint which no longer serves.
//!
//! A connected socket keeps the endpoint that it was given: no packet of it is translated, so no flow
//! record can send it elsewhere, and a client that never looks at errors would talk to nobody for ever
//! (or to whoever has the address next). The kernel ends such a socket on request; the client's next
//! call fails, and it connects anew. TCP needs none of this: the endpoint, or what is left of it, resets
//! the connection.
//!
//! The table of what sockets were given names them by the kernel's cookies. A socket that was connected
//! to an endpoint's own address is not in it, and is never touched.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use fairway_abi::{Endpoint, SocketKey, SocketPeer, protocol};
use fairway_compile::Family;
use fairway_netlink::{NetNs, Sockets};

use crate::dataplane::{Dataplane, Table};
use crate::services::ServiceTables;

/// What UDP sockets of one family were given.
pub(crate) struct SocketTable<A: Family> {
    given: Table<SocketKey<A>, SocketPeer<A>>,
}

/// Sockets whose endpoints no longer serve: by cookie, each with the endpoints it was given.
pub(crate) type Stale = HashMap<u64, Vec<SocketAddr>>;

impl<A: Family> SocketTable<A> {
    /// Takes the table over. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self { given: dataplane.table(&format!("sockets{suffix}"))? })
    }

    /// Forgets what no longer serves, and adds it to `stale`.
    pub(crate) fn forget_outdated(
        &mut self,
        services: &ServiceTables<A>,
        stale: &mut Stale,
    ) -> Result<()> {
        for (key, asked) in self.given.entries()? {
            let endpoint = Endpoint { address: key.address, port: key.port, reserved: [0; 2] };
            let udp = key.protocol == protocol::UDP;
            if !udp || services.keeps((asked.address, asked.port), key.protocol, &endpoint) {
                continue;
            }
            let peer = SocketAddr::new(key.address.to_ip(), key.port.get());
            stale.entry(key.cookie.get()).or_default().push(peer);
            self.given.remove(&key)?;
        }
        Ok(())
    }
}

/// Ends the connected ones of these sockets in the calling thread's network namespace and in those that
/// the files stand for; answers how many there were. A namespace that has gone took its sockets along.
///
/// # Errors
/// What went wrong in the last namespace in which something did; the others were seen to.
pub(crate) fn end<'a>(stale: &Stale, namespaces: impl Iterator<Item = &'a Path>) -> Result<usize> {
    let mut outcome = end_here(stale);
    for file in namespaces {
        let Ok(namespace) = NetNs::open(file) else { continue };
        let more = namespace.run(|| end_here(stale)).map_err(anyhow::Error::from);
        let more = more.flatten().with_context(|| format!("network namespace {}", file.display()));
        outcome = match (outcome, more) {
            (Ok(ended), Ok(more)) => Ok(ended + more),
            (_, Err(error)) | (Err(error), Ok(_)) => Err(error),
        };
    }
    outcome
}

fn end_here(stale: &Stale) -> Result<usize> {
    let mut sockets = Sockets::open()?;
    let mut ended = 0;
    for socket in sockets.connected_udp()? {
        let given = stale.get(&socket.cookie);
        if given.is_some_and(|given| given.contains(&socket.peer)) && sockets.destroy(&socket)? {
            ended += 1;
        }
    }
    Ok(ended)
}
