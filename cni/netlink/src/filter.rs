//! `tc filter`: eBPF programs on a device's two hooks, as filters of its `clsact` queueing discipline
//! (tc-bpf(8)).

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use crate::{Error, Netlink};

/// Which of a device's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the device has received.
    Ingress,
    /// Packets that it is to send.
    Egress,
}

impl Hook {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { minor, ..TcHandle::CLSACT }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Where a filter is: the kernel knows it by these four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPlace {
    /// Index of the device.
    pub device: u32,
    /// The hook.
    pub hook: Hook,
    /// Filters of lower numbers come first. Not 0, which lets the kernel choose.
    pub priority: u16,
    /// Tells filters of one priority apart. Not 0, as above.
    pub handle: u32,
}

/// A filter that runs an eBPF program, which decides by itself ("direct action").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where it is.
    pub place: FilterPlace,
    /// The name it was given.
    pub name: String,
    /// The program's id.
    pub program: u32,
}

impl Netlink {
    /// `tc qdisc add dev DEVICE clsact`; one that is there already is no error. An `ingress`
    /// discipline, which is an older one without egress, takes its place and is an error.
    pub fn ensure_clsact(&mut self, device: u32) -> Result<(), Error> {
        let mut message = at(device);
        message.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
        message.header.parent = TcHandle::CLSACT;
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        // Without NLM_F_EXCL: what is there is left as it is if it is of the same kind.
        self.change(format_args!("add clsact to link {device}"), request, NLM_F_CREATE)
    }

    /// `tc filter replace ... bpf direct-action`: puts a program into place. One that is there runs
    /// until this one does.
    pub fn replace_filter(
        &mut self,
        place: FilterPlace,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let operation =
            format!("attach filter {name:?} to {} of link {}", place.hook, place.device);
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(Error::invalid(operation, "a filter's name has 1 to 255 bytes"));
        }
        let mut message = of(place);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        self.change(format_args!("{operation}"), request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// `tc filter delete`; one that is absent, with its hook or device or alone, is no error.
    pub fn delete_filter(&mut self, place: FilterPlace) -> Result<(), Error> {
        let operation =
            format_args!("delete a filter from {} of link {}", place.hook, place.device);
        let request = RouteNetlinkMessage::DelTrafficFilter(of(place));
        match self.change(operation, request, 0) {
            // EINVAL: there is no clsact.
            Err(e) if e.is_not_found() || e.errno() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// `tc qdisc del dev DEVICE clsact`, if there is one and no filter is left on it.
    pub fn remove_idle_clsact(&mut self, device: u32) -> Result<(), Error> {
        for hook in [Hook::Ingress, Hook::Egress] {
            if !self.dump_filters(device, hook)?.is_empty() {
                return Ok(());
            }
        }
        let mut message = at(device);
        message.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
        message.header.parent = TcHandle::CLSACT;
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let request = RouteNetlinkMessage::DelQueueDiscipline(message);
        match self.change(format_args!("remove clsact from link {device}"), request, 0) {
            // EINVAL: another discipline has its place.
            Err(e) if e.is_not_found() || e.errno() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// The filters of a hook that run eBPF programs, in the order they run.
    pub fn filters(&mut self, device: u32, hook: Hook) -> Result<Vec<Filter>, Error> {
        let answers = self.dump_filters(device, hook)?;
        Ok(answers.into_iter().filter_map(|answer| read(answer, device, hook)).collect())
    }

    fn dump_filters(&mut self, device: u32, hook: Hook) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut message = at(device);
        message.header.parent = hook.parent();
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        self.dump(format_args!("list filters at {hook} of link {device}"), &request)
    }
}

/// `CLS_BPF_NAME_LEN` without the zero at its end.
const LONGEST_NAME: usize = 255;

/// Packets of every protocol, in network order as the kernel wants it.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();

fn at(device: u32) -> TcMessage {
    TcMessage::with_index(device.cast_signed())
}

fn of(place: FilterPlace) -> TcMessage {
    let mut message = at(place.device);
    message.header.parent = place.hook.parent();
    message.header.handle = place.handle.into();
    message.header.info = u32::from(place.priority) << 16 | u32::from(ETH_P_ALL);
    message
}

fn read(message: RouteNetlinkMessage, device: u32, hook: Hook) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    let place = FilterPlace {
        device,
        hook,
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
    };
    let mut filter = Filter { place, name: String::new(), program: 0 };
    for attribute in message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = name,
                TcOption::Bpf(TcFilterBpfOption::ProgId(program)) => filter.program = program,
                _ => {}
            }
        }
    }
    // A filter of another kind, or the chain that holds them.
    (filter.program != 0).then_some(filter)
}
