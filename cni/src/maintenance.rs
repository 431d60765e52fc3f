//! GC and STATUS: the calls that are about no container in particular; and what the agent does at
//! its start about the addresses.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use fairway_cni_protocol::Endpoint;
use fairway_netlink::{Link, Netlink};

use crate::agent::{Agent, BRIEF};
use crate::call::Attachment;
use crate::config::{Config, DEFAULT_DATA_DIR};
use crate::delete::delete;
use crate::failure::{Code, Failure};
use crate::ipam::{Entry, Reconciled, Store};
use crate::pool;
use crate::wiring::{self, Wire};

/// Removes the attachments that hold an address of this network and are not valid any more.
///
/// Without a list of the valid ones (runtimes leave the key out when there are none, but also when
/// they do not know) those alone go whose interface has vanished: a pod that works is never cut off
/// by an omission. With one, interfaces that are nobody's go as well. An address whose file is damaged
/// is freed once no route leads to it any more, and one that was restored, so that the name of its
/// network is not known, once its interface has vanished.
pub(crate) fn collect_garbage(config: &Config) -> Result<(), Failure> {
    let store = Store::new(&config.data_dir);
    store.tidy()?;
    let mut attachments: HashSet<Attachment> = HashSet::new();
    // Whose network's name is lost: this network's list says nothing for certain about them.
    let mut restored: HashSet<Attachment> = HashSet::new();
    let mut damaged = Vec::new();
    for Entry { address, owner } in store.entries()? {
        match owner {
            Some(owner) if owner.network == config.network => {
                attachments.insert(owner.attachment);
            }
            Some(owner) if owner.network.is_empty() => {
                restored.insert(owner.attachment);
            }
            Some(_) => {}
            None => damaged.push(address),
        }
    }
    let mut node = Netlink::open()?;
    let mut failures = Vec::new();
    for attachment in attachments.iter().chain(&restored) {
        let lives = |node: &mut Netlink| node.link(&Wire::of(attachment).host_interface);
        let valid = match &config.valid_attachments {
            Some(valid) if attachments.contains(attachment) => valid.contains(attachment),
            Some(valid) => valid.contains(attachment) || lives(&mut node)?.is_some(),
            None => lives(&mut node)?.is_some(),
        };
        if !valid && let Err(failure) = delete(attachment, config) {
            failures.push(format!("container {}: {}", attachment.container_id, failure.message));
            failures.extend(failure.details);
        }
    }
    if let Some(valid) = &config.valid_attachments {
        for link in strays(config, valid, &store, &mut node)? {
            match node.delete_link(link.index) {
                Ok(()) => {
                    eprintln!("fairway-cni: GC has removed {:?}, which was nobody's", link.name)
                }
                Err(error) => failures.push(Failure::from(error).message),
            }
        }
    }
    let routed = wiring::routed(&mut node)?;
    for address in damaged {
        if routed.contains(&address) {
            failures.push(format!(
                "address {address} stays taken: its file is damaged, and a pod seems to have it, \
                 as a route leads there"
            ));
        } else if let Err(error) = store.discard_damaged(address) {
            failures.push(Failure::from(error).message);
        } else {
            eprintln!("fairway-cni: GC has freed address {address}, whose file was damaged");
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Incomplete, "not everything could be removed").with_details(failures))
}

/// Interfaces that bear a name of ours, and are nobody's: of no valid attachment, of none that holds
/// an address in whichever network, unknown to the agent, and without a route. A killed call leaves
/// one only if the store is lost besides. Without the agent's word none is.
fn strays(
    config: &Config,
    valid: &[Attachment],
    store: &Store,
    node: &mut Netlink,
) -> Result<Vec<Link>, Failure> {
    let mut strays = node.links()?;
    strays.retain(|link| link.kind.as_deref() == Some("veth") && Wire::is_name(&link.name));
    if strays.is_empty() {
        return Ok(strays);
    }
    let agent = Agent::connect(config.socket.as_deref(), BRIEF);
    let known = match agent.and_then(|mut agent| agent.endpoints()) {
        Ok(known) => known,
        Err(error) => {
            eprintln!("fairway-cni: GC looks for no stray interfaces without the agent: {error}");
            return Ok(Vec::new());
        }
    };
    let entries = store.entries()?;
    let holders = entries.iter().filter_map(|entry| entry.owner.as_ref());
    let attachments = valid.iter().chain(holders.map(|owner| &owner.attachment));
    let mut names: HashSet<String> = known.into_iter().map(|known| known.host_interface).collect();
    names.extend(attachments.map(|attachment| Wire::of(attachment).host_interface));
    let routes = wiring::routes_to_hosts(node)?.into_iter();
    let routed: HashSet<u32> = routes.filter_map(|route| route.device).collect();
    strays.retain(|link| !names.contains(&link.name) && !routed.contains(&link.index));
    Ok(strays)
}

/// Would an ADD succeed now? Pods that exist do not depend on the agent, so the answer is never
/// that they are affected.
pub(crate) fn status(config: &Config) -> Result<(), Failure> {
    let unavailable = |failure: Failure| Failure { code: Code::NotAvailable, ..failure };
    let node = Agent::connect(config.socket.as_deref(), BRIEF)
        .and_then(|mut agent| agent.node_config())
        .map_err(|error| unavailable(error.into()))?;
    let no_address = |message: String| Failure::new(Code::NotAvailable, message);
    if node.pod_cidrs.is_empty() {
        return Err(no_address(format!("node {:?} has no pod CIDR yet", node.node)));
    }
    let routed = Netlink::open().and_then(|mut node| wiring::routed(&mut node));
    let routed = routed.map_err(|error| unavailable(error.into()))?;
    let store = Store::new(&config.data_dir);
    let pools = pool::pools(&node.pod_cidrs, config.ranges.as_ref(), &[])?;
    for pool in pools {
        store.check_free(&pool, &routed).map_err(|error| unavailable(error.into()))?;
    }
    Ok(())
}

/// Brings the address store in `data_dir` (`None`: the usual one) to what is true on this node,
/// whose namespace `node` is of: the addresses of registered `endpoints` are theirs, and one that
/// belongs to none of them is freed unless a route of the node leads there or the interface of the
/// attachment that took it exists. What a reboot, a killed call or a damaged disk left is undone.
///
/// For the agent, before it listens to the plugin: an ADD that it has not answered yet could lose
/// the address it has just reserved. (One that was talking to an earlier agent fails, and reserves
/// again.)
///
/// # Errors
/// The kernel cannot be asked, or the store cannot be read or written; what was done until then
/// stays done, and is right.
pub fn reconcile_addresses(
    data_dir: Option<&Path>,
    node: &mut Netlink,
    endpoints: &[Endpoint],
) -> Result<Reconciled, Box<dyn std::error::Error + Send + Sync>> {
    let links: HashSet<String> = node.links()?.into_iter().map(|link| link.name).collect();
    let routed = wiring::routed(node)?;
    let mut held = BTreeMap::new();
    for endpoint in endpoints {
        let attachment = Attachment {
            container_id: endpoint.container_id.clone(),
            interface: endpoint.interface.clone(),
        };
        // One of another plugin's making has its address from elsewhere.
        if Wire::of(&attachment).host_interface == endpoint.host_interface {
            let addresses = endpoint.addresses.iter();
            held.extend(addresses.map(|address| (*address, attachment.clone())));
        }
    }
    let store = Store::new(data_dir.unwrap_or(Path::new(DEFAULT_DATA_DIR)));
    let reconciled = store.reconcile(&held, |address, attachment| {
        let wired = |attachment| links.contains(&Wire::of(attachment).host_interface);
        routed.contains(&address) || attachment.is_some_and(wired)
    })?;
    Ok(reconciled)
}
