//! CHECK: is everything still as ADD left it?

use std::net::IpAddr;

use fairway_netlink::{Netlink, Route};

use crate::add::{endpoint, format_mac};
use crate::adopt::{self, Adopted};
use crate::agent::{Agent, PATIENT};
use crate::call::ContainerCall;
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::ipam::{Owner, Store};
use crate::result::AddResult;
use crate::wiring::{Wire, destinations, family_of, gateway, to_pod};

/// Compares what this plugin's ADD has made with the system and reports every difference. What the
/// others of the chain have added to the previous result is theirs.
pub(crate) fn check(call: &ContainerCall, config: &Config) -> Result<(), Failure> {
    let previous = config.previous_result()?.ok_or_else(|| {
        Failure::new(
            Code::InvalidConfig,
            "key \"prevResult\" is missing, and CHECK compares with it",
        )
    })?;
    if adopt::is_another_plugins(&previous, call) {
        return check_adopted(call, config, &previous);
    }
    let wire = Wire::of(&call.attachment).with_pod_mac(previous.mac_of(call));
    let addresses = previous.addresses_of(call);

    let mut differences = Vec::new();
    if addresses.is_empty() {
        differences.push(format!("the previous result has no address on {:?}", wire.pod_interface));
    }
    let mut in_pod = Netlink::open_in(&call.open_netns()?)?;
    check_pod(call, config, &wire, &mut in_pod, &addresses, &mut differences)?;
    let host_ifindex = check_host(&wire, &addresses, &mut differences)?;
    check_store(call, config, &addresses, &mut differences)?;
    if !differences.is_empty() {
        let message = format!("{} differences from what ADD left", differences.len());
        return Err(Failure::new(Code::Changed, message).with_details(differences));
    }

    let endpoint = endpoint(call, config, &wire, host_ifindex, &addresses, &in_pod);
    Ok(Agent::connect(config.socket.as_deref(), PATIENT)?.check(endpoint)?)
}

/// Of an interface that another plugin has made, the registration is ours; what it takes has to be
/// as it was.
fn check_adopted(
    call: &ContainerCall,
    config: &Config,
    previous: &AddResult,
) -> Result<(), Failure> {
    let adopted = Adopted::find(call, &call.open_netns()?, previous)
        .map_err(|failure| Failure { code: Code::Changed, ..failure })?;
    let Adopted { wire, host_ifindex, addresses, in_pod } = adopted;
    let endpoint = endpoint(call, config, &wire, host_ifindex, &addresses, &in_pod);
    Ok(Agent::connect(config.socket.as_deref(), PATIENT)?.check(endpoint)?)
}

fn check_pod(
    call: &ContainerCall,
    config: &Config,
    wire: &Wire,
    pod: &mut Netlink,
    addresses: &[IpAddr],
    differences: &mut Vec<String>,
) -> Result<(), Failure> {
    let name = &wire.pod_interface;
    let Some(link) = pod.link(name)? else {
        differences.push(format!("{name:?} is missing in {}", call.netns));
        return Ok(());
    };
    if !link.up {
        differences.push(format!("{name:?} is down"));
    }
    if link.mac != Some(wire.pod_mac) {
        let found = link.mac.map(format_mac);
        differences.push(format!(
            "{name:?} has MAC address {found:?} instead of {}",
            format_mac(wire.pod_mac)
        ));
    }
    let present = pod.addresses(link.index)?;
    for address in addresses {
        match present.iter().find(|found| found.net.addr() == *address) {
            None => differences.push(format!("{address} is missing on {name:?}")),
            Some(found) if found.duplicate || found.tentative => {
                differences
                    .push(format!("{address} on {name:?} is not usable: duplicate or tentative"));
            }
            Some(_) => {}
        }
    }
    for destination in destinations(config.routes.as_deref(), addresses) {
        let gateway = gateway(destination.addr());
        let routes = pod.routes(family_of(destination.addr()), Some(Route::MAIN))?;
        let present = routes.into_iter().any(|route| {
            route.destination == destination
                && route.gateway == Some(gateway)
                && route.device == Some(link.index)
        });
        if !present {
            differences.push(format!("the route to {destination} via {gateway} is missing"));
        }
    }
    Ok(())
}

/// Returns the index of the node's end; 0 along with a difference if there is none.
fn check_host(
    wire: &Wire,
    addresses: &[IpAddr],
    differences: &mut Vec<String>,
) -> Result<u32, Failure> {
    let mut node = Netlink::open()?;
    let name = &wire.host_interface;
    let Some(link) = node.link(name)? else {
        differences.push(format!("{name:?} is missing on the node"));
        return Ok(0);
    };
    if !link.up {
        differences.push(format!("{name:?} on the node is down"));
    }
    for address in addresses {
        let expected = to_pod(*address, link.index);
        let present =
            node.routes(family_of(*address), Some(Route::MAIN))?.into_iter().any(|route| {
                route.destination == expected.destination && route.device == expected.device
            });
        if !present {
            differences.push(format!("the node's route to {address} by {name:?} is missing"));
        }
    }
    Ok(link.index)
}

fn check_store(
    call: &ContainerCall,
    config: &Config,
    addresses: &[IpAddr],
    differences: &mut Vec<String>,
) -> Result<(), Failure> {
    let owner = config.owner(&call.attachment);
    // One that was restored has lost the name of its network.
    let restored = Owner { network: String::new(), ..owner.clone() };
    let entries = Store::new(&config.data_dir).entries()?;
    for address in addresses {
        let entry = entries.iter().find(|entry| entry.address == *address);
        let found = entry.and_then(|entry| entry.owner.as_ref());
        if found.is_none_or(|found| ![&owner, &restored].contains(&found)) {
            differences.push(format!("{address} is not reserved for this container"));
        }
    }
    Ok(())
}
