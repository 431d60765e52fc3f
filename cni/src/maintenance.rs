//! GC and STATUS: the calls that are about no container in particular.

use std::collections::HashSet;

use fairway_netlink::Netlink;

use crate::agent::{Agent, BRIEF};
use crate::call::Attachment;
use crate::config::Config;
use crate::delete::delete;
use crate::failure::{Code, Failure};
use crate::ipam::Store;
use crate::wiring::{self, Wire};

/// Removes the attachments that hold an address of this network and are not valid any more.
///
/// Without a list of the valid ones (runtimes leave the key out when there are none, but also when
/// they do not know) those alone go whose interface has vanished: a pod that works is never cut off
/// by an omission.
pub(crate) fn collect_garbage(config: &Config) -> Result<(), Failure> {
    let entries = Store::new(&config.data_dir).entries()?;
    let owners = entries.into_iter().filter_map(|entry| entry.owner);
    let attachments: HashSet<Attachment> = owners
        .filter(|owner| owner.network == config.network)
        .map(|owner| owner.attachment)
        .collect();
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
