//! Who asks, and where: one question after the other.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fairway_netlink::NetNs;

use crate::process::Place;

/// How long an answer is waited for before the question is asked again.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where servers and clients are: in this process's network, or in another's.
#[derive(Clone, Debug, Default)]
pub(super) struct Site(Option<Place>);

impl Site {
    pub(super) fn of(place: Place) -> Self {
        Self(Some(place))
    }

    /// Makes `command` start here.
    pub(super) fn apply(&self, command: &mut Command) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |place| place.apply(command))
    }

    /// A socket with a port of its own.
    pub(super) fn open(&self, address: Ipv4Addr) -> Result<UdpSocket> {
        let bind = || UdpSocket::bind((address, 0));
        let socket = match &self.0 {
            None => bind(),
            Some(place) => NetNs::open(&place.netns)?.run(bind)?,
        };
        socket.context("find a free port")
    }
}

/// Somebody who asks one question after the other, as a resolver in a pod does.
#[derive(Debug)]
pub(super) struct Client {
    socket: UdpSocket,
}

/// What is said of a name's IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Address(Ipv4Addr),
    /// There is such a name.
    Nothing,
    NoName,
    Failure,
}

impl Client {
    /// Of a server, from where `site` is.
    pub(super) fn of(server: SocketAddr, site: &Site) -> Result<Self> {
        let socket = site.open(Ipv4Addr::UNSPECIFIED)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// The address, if there is an answer.
    pub(super) fn address(&self, name: &str) -> Result<Option<Ipv4Addr>> {
        Ok(match self.ask(name)? {
            Some(Said::Address(address)) => Some(address),
            _ => None,
        })
    }

    /// Asks once; `None`: there was no answer.
    pub(super) fn ask(&self, name: &str) -> Result<Option<Said>> {
        let query = query(name)?;
        // Nobody listens yet, or not any more.
        if self.socket.send(&query).is_err() {
            return Ok(None);
        }
        let mut answer = [0; 4096];
        let Ok(length) = self.socket.recv(&mut answer) else { return Ok(None) };
        Ok(said(&answer[..length], query.len()))
    }
}

/// Asks for a name's IPv4 address.
pub(super) fn query(name: &str) -> Result<Vec<u8>> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    Ok(query)
}

/// What an answer says whose question ends there. The last record of its answer section is the one that aliases lead to.
fn said(answer: &[u8], end: usize) -> Option<Said> {
    let count = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    match answer.get(3)? & 0xf {
        0 => {}
        3 => return Some(Said::NoName),
        _ => return Some(Said::Failure),
    }
    let (mut at, mut found) = (end, Said::Nothing);
    for _ in 0..count {
        while *answer.get(at)? != 0 && *answer.get(at)? < 0xc0 {
            at += 1 + usize::from(answer[at]);
        }
        at += if *answer.get(at)? == 0 { 1 } else { 2 };
        let fixed: &[u8; 10] = answer.get(at..)?.first_chunk()?;
        at += 10;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = answer.get(at..at + length)?;
        at += length;
        if fixed[..2] == [0, 1] {
            found = Said::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
    }
    Some(found)
}
