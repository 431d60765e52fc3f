//! `tc qdisc`: what a device's packets wait in until it takes them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::{Error, Netlink};

/// A queueing discipline. Those of a device's two hooks, in which nothing waits, are none here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDiscipline {
    /// Index of the device.
    pub device: u32,
    /// What the kernel calls it: `fq`, `mq`, `noqueue`, ...
    pub kind: String,
    /// Its number; 0 for one that the kernel has made by itself.
    pub handle: u16,
    /// The number of the discipline that it is one queue of; `None`: it is the device's own.
    pub parent: Option<u16>,
}

impl Netlink {
    /// `tc qdisc show`: those of all devices.
    pub fn queue_disciplines(&mut self) -> Result<Vec<QueueDiscipline>, Error> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let answers = self.dump(format_args!("list queueing disciplines"), &request)?;
        let disciplines = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => read(message),
            _ => None,
        });
        Ok(disciplines.collect())
    }

    /// `tc qdisc replace dev DEVICE root KIND`, as the kind is without options.
    pub fn replace_root(&mut self, device: u32, kind: &str) -> Result<(), Error> {
        let mut message = root(device);
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(format_args!("put {kind} at the root of link {device}"), request, flags)
    }

    /// `tc qdisc del dev DEVICE root`: the device gets back what it had at first. One that has that is
    /// an error.
    pub fn delete_root(&mut self, device: u32) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelQueueDiscipline(root(device));
        self.change(format_args!("take what is at the root of link {device}"), request, 0)
    }
}

fn root(device: u32) -> TcMessage {
    let mut message = TcMessage::with_index(device.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message
}

pub(crate) fn read(message: TcMessage) -> Option<QueueDiscipline> {
    let parent = match message.header.parent {
        TcHandle::ROOT => None,
        TcHandle::INGRESS => return None,
        queue => Some(queue.major),
    };
    let kind = message.attributes.into_iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind),
        _ => None,
    })?;
    let (device, handle) = (message.header.index.cast_unsigned(), message.header.handle.major);
    Some(QueueDiscipline { device, kind, handle, parent })
}
