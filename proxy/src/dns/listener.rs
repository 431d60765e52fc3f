//! Where queries are taken: the addresses, which this node has on its loopback device for nothing else, and the
//! sockets there.
//!
//! No device of our own has the addresses, as there is none that each kernel can make; on the loopback device they
//! are there whatever happens to others.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use fairway_abi::{Address as _, RESOLVER_PORT, V4, V6};
use fairway_dns::server::Sockets;
use fairway_netlink::{AddressOptions, Netlink};
use tracing::{info, warn};

use super::store;
use crate::routes::host_prefix;
use crate::traces::Traces;

/// The loopback device.
const LOOPBACK: &str = "lo";

/// Where this node alone asks.
pub(super) fn local() -> [IpAddr; 2] {
    [V4::RESOLVER.into(), V6::RESOLVER.into()]
}

/// Sockets at as many of the addresses as this node can have, and at one at least; the ones handed over by a
/// predecessor, which are taken then, if they are at the same. `workers` is how many threads take datagrams.
pub(super) fn open(
    traces: &Traces,
    addresses: &[IpAddr],
    handed_over: &mut Vec<OwnedFd>,
    workers: usize,
) -> Result<Sockets> {
    let mut netlink = Netlink::open()?;
    let mut problem = None;
    let mut places = Vec::new();
    for address in addresses {
        match ensure(&mut netlink, traces, *address) {
            Ok(()) => places.push(SocketAddr::new(*address, RESOLVER_PORT)),
            // As where the kernel has no IPv6.
            Err(error) => problem = Some(error),
        }
    }
    if let (true, Some(problem)) = (places.is_empty(), problem) {
        return Err(problem);
    }
    if !handed_over.is_empty() {
        match adopt(mem::take(handed_over), &places) {
            Ok(Some(sockets)) => {
                info!("going on with the DNS sockets of the agent before");
                return Ok(sockets);
            }
            Ok(None) => info!("the DNS sockets of the agent before are at other addresses"),
            Err(error) => warn!(%error, "cannot go on with the DNS sockets of the agent before"),
        }
        // Ports are free once nobody has the old ones any more.
        store::forget();
    }
    let about = || {
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        format!(
            "listen for DNS queries on {}: does another process there, such as NodeLocal DNSCache?",
            places.join(", ")
        )
    };
    Sockets::bind(&places, workers).with_context(about)
}

fn adopt(handed_over: Vec<OwnedFd>, places: &[SocketAddr]) -> io::Result<Option<Sockets>> {
    let sockets = Sockets::adopt(handed_over)?;
    let (mut have, mut want) = (sockets.addresses()?, places.to_vec());
    have.sort();
    want.sort();
    Ok((have == want).then_some(sockets))
}

/// Gives the address to the loopback device, unless the node has it.
fn ensure(netlink: &mut Netlink, traces: &Traces, address: IpAddr) -> Result<()> {
    if netlink.all_addresses()?.iter().any(|known| known.net.addr() == address) {
        return Ok(());
    }
    let about = || format!("give {address} to the loopback device");
    let device = netlink.link(LOOPBACK)?.with_context(about)?;
    traces.address(address)?;
    let options = AddressOptions { nodad: true, ..AddressOptions::default() };
    match netlink.add_address(device.index, host_prefix(address), options) {
        Err(error) if !error.is_exists() => Err(error).with_context(about),
        _ => Ok(()),
    }
}

/// Takes what [`open`] gave to the loopback device from it again; answers which addresses it had.
pub(crate) fn remove_addresses(netlink: &mut Netlink, traces: &Traces) -> Result<Vec<IpAddr>> {
    let Some(device) = netlink.link(LOOPBACK)? else { return Ok(Vec::new()) };
    let ours = traces.addresses();
    let mut removed = Vec::new();
    for known in netlink.addresses(device.index)? {
        if ours.contains(&known.net.addr()) {
            netlink.delete_address(device.index, known.net)?;
            removed.push(known.net.addr());
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::sandbox::sandbox;

    fn addresses(netlink: &mut Netlink) -> Vec<IpAddr> {
        let all = netlink.all_addresses().expect("a list").into_iter();
        all.map(|of| of.net.addr()).filter(|of| !of.is_loopback()).collect()
    }

    #[test]
    fn addresses_come_with_the_sockets_and_go_with_an_uninstall() {
        sandbox(|_| {
            let state = tempfile::tempdir().expect("a folder");
            let traces = Traces::open(state.path()).expect("new");
            let mut netlink = Netlink::open().expect("netlink");
            let loopback = netlink.link("lo").expect("a look").expect("the device");
            netlink.set_up(loopback.index).expect("up");
            let before = addresses(&mut netlink);
            let sockets = open(&traces, &local(), &mut Vec::new(), 2).expect("sockets");
            let at = sockets.addresses().expect("addresses");
            assert_eq!(at, local().map(|ip| SocketAddr::new(ip, 53)));
            // The next agent finds the addresses there, and may take the sockets over.
            let mut handed: Vec<OwnedFd> =
                sockets.all().map(|fd| fd.try_clone_to_owned().expect("a copy")).collect();
            let again = Traces::open(state.path()).expect("the record");
            let next = open(&again, &local(), &mut handed, 2).expect("the same sockets");
            drop(sockets);
            assert_eq!(next.workers().expect("workers"), 2);
            assert_eq!(next.addresses().expect("addresses"), at);
            let removed = remove_addresses(&mut netlink, &again).expect("gone");
            assert_eq!(removed.len(), 2);
            assert_eq!(addresses(&mut netlink), before);
        });
    }

    #[test]
    fn sockets_of_other_addresses_are_in_nobodys_way() {
        sandbox(|_| {
            let state = tempfile::tempdir().expect("a folder");
            let traces = Traces::open(state.path()).expect("new");
            let mut netlink = Netlink::open().expect("netlink");
            let loopback = netlink.link("lo").expect("a look").expect("the device");
            netlink.set_up(loopback.index).expect("up");
            let v4 = [V4::RESOLVER.into()];
            let before = open(&traces, &v4, &mut Vec::new(), 1).expect("sockets");
            let mut handed: Vec<OwnedFd> =
                before.all().map(|fd| fd.try_clone_to_owned().expect("a copy")).collect();
            drop(before);
            // Nothing is lost by a try that comes to nothing before they are looked at.
            let nowhere = [Ipv6Addr::UNSPECIFIED.into()];
            let count = handed.len();
            open(&traces, &nowhere, &mut handed, 1).expect_err("no address");
            assert_eq!(handed.len(), count);
            let next = open(&traces, &local(), &mut handed, 1).expect("sockets");
            assert_eq!(next.addresses().expect("addresses").len(), 2);
        });
    }

    #[test]
    fn an_address_of_somebody_else_stays_his() {
        sandbox(|_| {
            let state = tempfile::tempdir().expect("a folder");
            let traces = Traces::open(state.path()).expect("new");
            let mut netlink = Netlink::open().expect("netlink");
            let loopback = netlink.link("lo").expect("a look").expect("the device");
            netlink.set_up(loopback.index).expect("up");
            let options = AddressOptions::default();
            let his = host_prefix(V4::RESOLVER.into());
            netlink.add_address(loopback.index, his, options).expect("an address");
            drop(open(&traces, &[V4::RESOLVER.into()], &mut Vec::new(), 1).expect("sockets"));
            assert!(remove_addresses(&mut netlink, &traces).expect("nothing").is_empty());
            assert_eq!(addresses(&mut netlink), [IpAddr::from(V4::RESOLVER)]);
        });
    }
}
