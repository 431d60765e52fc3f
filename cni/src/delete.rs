//! DEL: remove whatever there is. It succeeds if nothing is left, however little there was.

use fairway_netlink::Netlink;

use crate::agent::{Agent, BRIEF};
use crate::call::Attachment;
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::ipam::Store;
use crate::wiring::Wire;

/// Disconnects the container. Every step is tried; the address goes last, when no packet from or to
/// it can be on its way any more, and only if the interface went: whoever comes next finds by the
/// address what is still to be removed. The pod's namespace is not needed: the end there goes with
/// ours.
pub(crate) fn delete(attachment: &Attachment, config: &Config) -> Result<(), Failure> {
    let mut failures: Vec<Failure> = Vec::new();

    let wire = Wire::of(attachment);
    let unwired = Netlink::open().and_then(|mut node| wire.delete(&mut node));
    failures.extend(unwired.err().map(Failure::from));

    // An agent that is away, or cannot, learns from the vanished interface; that is no failure.
    if let Err(error) = Agent::connect(config.socket.as_deref(), BRIEF)
        .and_then(|mut agent| agent.delete(attachment))
    {
        eprintln!("fairway-cni: DEL goes on without the agent: {error}");
    }

    if failures.is_empty() {
        let store = Store::new(&config.data_dir);
        failures.extend(store.release(attachment).err().map(Failure::from));
    }

    if failures.is_empty() {
        return Ok(());
    }
    let details = failures.into_iter().map(|failure| failure.message);
    Err(Failure::new(Code::Incomplete, "not everything could be removed").with_details(details))
}
