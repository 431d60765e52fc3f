//! Where packets wait until they are to depart: devices with `fq`, by itself or below each of their
//! hardware queues (`mq`).

use std::collections::BTreeSet;

use anyhow::Result;
use fairway_netlink::{Netlink, QueueDiscipline};
use tracing::info;

use crate::attachments::Device;
use crate::dataplane::{Dataplane, Table};

/// The devices that the programs know to hold packets.
pub(crate) struct Pacing {
    table: Table<u32, u32>,
    /// What was last said of it.
    said: Option<BTreeSet<u32>>,
}

impl Pacing {
    /// As a predecessor left it.
    pub(crate) fn adopt(dataplane: &mut Dataplane) -> Result<Self> {
        Ok(Self { table: dataplane.table("paced")?, said: None })
    }

    /// Which of these devices hold packets; says so if it is news.
    pub(crate) fn find(
        &mut self,
        netlink: &mut Netlink,
        devices: &BTreeSet<Device>,
    ) -> Result<BTreeSet<u32>> {
        let disciplines = netlink.queue_disciplines()?;
        let paced: Vec<&Device> =
            devices.iter().filter(|(_, index)| holds(&disciplines, *index)).collect();
        let indices: BTreeSet<u32> = paced.iter().map(|(_, index)| *index).collect();
        if self.said.as_ref() != Some(&indices) {
            let names: Vec<&str> = paced.iter().map(|(name, _)| name.as_str()).collect();
            if names.is_empty() {
                info!("no device out of the node has fq: what pods send beyond a limit is dropped");
            } else {
                info!(devices = ?names, "found fq: what pods send beyond a limit waits there");
            }
            self.said = Some(indices.clone());
        }
        Ok(indices)
    }

    /// Tells the programs.
    pub(crate) fn set(&mut self, wanted: &BTreeSet<u32>) -> Result<()> {
        for (device, _) in self.table.entries()? {
            if !wanted.contains(&device) {
                self.table.remove(&device)?;
            }
        }
        wanted.iter().try_for_each(|device| self.table.put(device, &1))
    }
}

fn holds(disciplines: &[QueueDiscipline], device: u32) -> bool {
    let of_device = || disciplines.iter().filter(move |found| found.device == device);
    let Some(root) = of_device().find(|found| found.parent.is_none()) else { return false };
    match root.kind.as_str() {
        "fq" => true,
        "mq" => {
            let mut queues =
                of_device().filter(|found| found.parent == Some(root.handle)).peekable();
            queues.peek().is_some() && queues.all(|queue| queue.kind == "fq")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `device kind handle parent`.
    fn parsed(lines: &[&str]) -> Vec<QueueDiscipline> {
        let parse = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            QueueDiscipline {
                device: words[0].parse().expect("an index"),
                kind: words[1].to_owned(),
                handle: words[2].parse().expect("a handle"),
                parent: words.get(3).map(|parent| parent.parse().expect("a parent")),
            }
        };
        lines.iter().map(parse).collect()
    }

    #[test]
    fn fq_holds_packets_by_itself_or_in_every_hardware_queue() {
        for (lines, expected) in [
            (&["2 fq 0"][..], true),
            (&["2 fq 32769"], true),
            (&["2 fq_codel 0"], false),
            (&["2 noqueue 0", "3 fq 0"], false),
            (&["2 mq 0", "2 fq 0 0", "2 fq 0 0"], true),
            (&["2 mq 1", "2 fq 0 1", "2 fq 7 1"], true),
            (&["2 mq 1", "2 fq 0 1", "2 fq_codel 7 1"], false),
            (&["2 mq 1", "3 fq 0 1"], false),
            (&["2 mq 1"], false),
            // Of some of its classes nothing is known.
            (&["2 htb 1", "2 fq 2 1"], false),
            (&[], false),
        ] {
            assert_eq!(holds(&parsed(lines), 2), expected, "{lines:?}");
        }
    }
}
