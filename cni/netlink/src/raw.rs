//! The lowest floor, for families that no crate writes messages of: bytes to the kernel, and what comes
//! back taken apart into messages and attributes.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer};
use netlink_sys::SocketAddr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// Far longer than the kernel takes to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// A socket on which one thing at a time is asked, so that messages need no numbers.
pub(crate) struct Raw(netlink_sys::Socket);

impl Raw {
    /// Opens one of this protocol in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends messages of which one asks to be acknowledged; an error is what the kernel says to it.
    pub(crate) fn change(&self, messages: &[u8]) -> io::Result<()> {
        self.0.send(messages, 0)?;
        let (datagram, _) = self.0.recv_from_full()?;
        read(&datagram, |_, _| Some(ControlFlow::Continue(()))).map(drop)
    }

    /// Asks for a list and hands out each message's type and body. What ends before the list does has to
    /// be the last thing that is done with the socket. `None` from `each`: the body makes no sense.
    pub(crate) fn dump(
        &self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]) -> Option<ControlFlow<()>>,
    ) -> io::Result<()> {
        let mut request = Vec::new();
        message(&mut request, kind, NLM_F_DUMP, body)?;
        self.0.send(&request, 0)?;
        while read(&self.0.recv_from_full()?.0, &mut each)?.is_continue() {}
        Ok(())
    }
}

/// Adds a message.
pub(crate) fn message(to: &mut Vec<u8>, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and sender.
    to.extend([0; 8]);
    to.extend(body);
    to.resize(to.len().next_multiple_of(4), 0);
    Ok(())
}

/// One message that is acknowledged.
pub(crate) fn acknowledged(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    message(&mut all, kind, NLM_F_ACK | flags, body)?;
    Ok(all)
}

/// Adds an attribute.
pub(crate) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
    Ok(())
}

/// Adds an attribute that is made of others.
pub(crate) fn nested(to: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    attribute(to, NESTED | kind, value)
}

/// The attributes in `bytes`, by kind; what does not parse ends the list.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let attribute = NlaBuffer::new_checked(bytes).ok()?;
        let length = usize::from(attribute.length());
        let (kind, value) = (attribute.kind(), bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Takes a datagram apart; `Break` at the end of the list, or when `each` wants no more.
fn read(
    datagram: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> Option<ControlFlow<()>>,
) -> io::Result<ControlFlow<()>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = rest.get(HEADER..length).ok_or_else(malformed)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(ControlFlow::Break(())),
            NLMSG_ERROR => {
                let code = body.first_chunk().ok_or_else(malformed)?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(ControlFlow::Break(())),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            kind => {
                if each(kind, body).ok_or_else(malformed)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: u16 = 20;

    /// The bodies of a datagram's answers, and whether it is the last.
    fn taken(datagram: &[u8]) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let mut bodies = Vec::new();
        let flow = read(datagram, |kind, body| {
            assert_eq!(kind, ANSWER);
            bodies.push(body.to_vec());
            Some(ControlFlow::Continue(()))
        })?;
        Ok((bodies, flow.is_break()))
    }

    fn of(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        message(&mut all, kind, 0, body).expect("short");
        all
    }

    #[test]
    fn a_list_goes_on_until_it_is_done_or_refused() {
        let two = [of(ANSWER, &[1, 2, 3, 4]), of(ANSWER, &[5, 6, 7, 8])].concat();
        assert_eq!(taken(&two).expect("two"), (vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8]], false));
        let last = [of(ANSWER, &[1; 4]), of(NLMSG_DONE, &[0; 4]), of(ANSWER, &[2; 4])].concat();
        assert_eq!(taken(&last).expect("the end"), (vec![vec![1; 4]], true));
        assert_eq!(taken(&of(NLMSG_ERROR, &[0; 4])).expect("an ack"), (vec![], true));
        let refusal = of(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(taken(&refusal).expect_err("refused").raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn what_is_torn_or_makes_no_sense_is_refused_and_whoever_has_enough_may_stop() {
        let whole = of(ANSWER, &[0; 24]);
        assert!(taken(&whole[..30]).is_err());
        assert!(read(&whole, |_, _| None).is_err());
        let mut seen = 0;
        let twice = [whole.clone(), whole].concat();
        let flow = read(&twice, |_, _| {
            seen += 1;
            Some(ControlFlow::Break(()))
        });
        assert!(flow.expect("messages").is_break() && seen == 1);
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let (mut inner, mut all) = (Vec::new(), Vec::new());
        attribute(&mut inner, 1, b"odd").expect("short");
        nested(&mut all, 2, &inner).expect("short");
        attribute(&mut all, 3, &[7; 4]).expect("short");
        let found: Vec<_> = attributes(&all).collect();
        assert_eq!(found, [(2, &inner[..]), (3, &[7; 4][..])]);
        assert_eq!(attributes(&inner).collect::<Vec<_>>(), [(1, &b"odd"[..])]);
        assert_eq!(attributes(&all[..3]).count(), 0);
    }
}
