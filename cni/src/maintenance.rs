//! GC and STATUS: the calls that are about no container in particular.

use std::collections::HashSet;

use fairway_netlink::Netlink;

use crate::agent::{Agent, BRIEF};
use crate::call::Attachment;
use crate::config::Config;
use crate::delete::delete;
use crate::failure::{Code, Failure};
use crate::ipam::{Entry, Store};
use crate::wiring::{self, Wire};

/// Removes the attachments that hold an address of this network and are not valid any more.
///
/// Without a list of the valid ones (runtimes leave the key out when there are none, but also when
/// they do not know) those alone go whose interface has vanished: a pod that works is never cut off
/// by an omission. An address whose file is damaged is freed once no route leads to it any more.
pub(crate) fn collect_garbage(config: &Config) -> Result<(), Failure> {
    let store = Store::new(&config.data_dir);
    store.tidy()?;
    let mut attachments: HashSet<Attachment> = HashSet::new();
    let mut damaged = Vec::new();
    for Entry { address, owner } in store.entries()? {
        match owner {
            Some(owner) if owner.network == config.network => {
                attachments.insert(owner.attachment);
            }
            Some(_) => {}
            None => damaged.push(address),
        }
    }
    let mut node = Netlink::open()?;
    let mut failures = Vec::new();
    for attachment in attachments {
        let valid = match &config.valid_attachments {
            Some(valid) => valid.contains(&attachment),
            None => node.link(&Wire::of(&attachment).host_interface)?.is_some(),
        };
        if !valid && let Err(failure) = delete(&attachment, config) {
            failures.push(format!("container {}: {}", attachment.container_id, failure.message));
            failures.extend(failure.details);
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
    for range in node.pod_cidrs {
        if store.free(range, &routed).map_err(|error| unavailable(error.into()))? == 0 {
            return Err(no_address(format!("no address is free in {range}")));
        }
    }
    Ok(())
}
