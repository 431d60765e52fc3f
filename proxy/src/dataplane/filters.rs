//! Classifiers as filters of a device's `clsact`, for kernels that have no tcx links (before 6.6).
//!
//! A filter cannot be pinned and lives as long as its device, whatever becomes of the agent: what a
//! predecessor left is found again by its name and place. It replaces in place like a link.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, anyhow};
use fairway_netlink::{FilterPlace, Hook, Netlink};
use tracing::warn;

use super::{Order, Side};

/// Low, so that our programs come before those of others, who then see what ours left alone; not 1,
/// which most people and daemons take.
const FIRST: u16 = 3;
/// High, for programs that come after those of others.
const LAST: u16 = 0xfff0;
/// Tells ours from others' of the same priority: "FWAY".
const HANDLE: u32 = 0x4657_4159;
/// What our filters' names start with; the attachment's name follows.
const PREFIX: &str = "fairway/";

/// Takes every filter of ours in this network namespace away; how many there were.
pub(crate) fn remove_filters() -> Result<usize> {
    let mut filters = Filters::adopt()?;
    let places = std::mem::take(&mut filters.places);
    for place in places.values() {
        filters.netlink.delete_filter(*place)?;
        filters.netlink.remove_idle_clsact(place.device)?;
    }
    Ok(places.len())
}

/// The filters that are ours in this network namespace.
pub(super) struct Filters {
    netlink: Netlink,
    /// Where each is, by the attachment's name.
    places: BTreeMap<String, FilterPlace>,
}

impl Filters {
    /// Finds those that a predecessor left.
    pub(super) fn adopt() -> Result<Self> {
        let mut netlink = Netlink::open()?;
        let mut places = BTreeMap::new();
        for link in netlink.links()? {
            for hook in [Hook::Ingress, Hook::Egress] {
                for filter in netlink.filters(link.index, hook)? {
                    if let Some(name) = filter.name.strip_prefix(PREFIX) {
                        places.insert(name.to_owned(), filter.place);
                    }
                }
            }
        }
        Ok(Self { netlink, places })
    }

    /// Puts a program on a device, in the place of the one that is there under this name.
    pub(super) fn put(
        &mut self,
        name: &str,
        device: &str,
        (side, order): (Side, Order),
        program: BorrowedFd<'_>,
    ) -> Result<()> {
        let link = self.netlink.link(device)?.ok_or_else(|| anyhow!("{device}: no such device"))?;
        let hook = match side {
            Side::Ingress => Hook::Ingress,
            Side::Egress => Hook::Egress,
        };
        let priority = match order {
            Order::First => FIRST,
            Order::Last => LAST,
        };
        let place = FilterPlace { device: link.index, hook, priority, handle: HANDLE };
        self.netlink.ensure_clsact(link.index).with_context(|| {
            format!("{device}: if it has an ingress qdisc of somebody else, ours cannot be there")
        })?;
        self.netlink.replace_filter(place, &format!("{PREFIX}{name}"), program).with_context(
            || format!("{device}: priority {priority} may be a filter's of another kind"),
        )?;
        self.places.insert(name.to_owned(), place);
        Ok(())
    }

    /// Takes a filter away; one that is not there is no error.
    pub(super) fn remove(&mut self, name: &str) {
        let Some(place) = self.places.remove(name) else { return };
        if let Err(error) = self.netlink.delete_filter(place) {
            warn!(name, %error, "cannot remove a filter");
        }
    }

    /// The names of all, those of vanished devices included.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }
}
