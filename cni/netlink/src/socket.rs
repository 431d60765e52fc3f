//! The lower floor: one request, its answers, and what the kernel has to say about it.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR,
    NLM_F_REQUEST, NLMSG_ALIGNTO, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlaBuffer,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::{Error, NetNs, Refusal, netns};

/// An rtnetlink socket. It belongs to the network namespace of the thread that opened it.
pub struct Netlink {
    channel: Channel<RouteNetlinkMessage>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { channel: Channel::open(NETLINK_ROUTE)? })
    }

    /// Opens a socket in another network namespace; it can be used from any thread.
    pub fn open_in(netns: &NetNs) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// The kernel's cookie of the network namespace that the socket belongs to: a number that no other
    /// one gets until the machine starts anew. `None` before Linux 5.14.
    pub fn netns_cookie(&self) -> Option<u64> {
        netns::cookie(self.channel.socket.as_fd())
    }

    /// Carries out a change; `flags` are added to `NLM_F_REQUEST | NLM_F_ACK`.
    pub(crate) fn change(
        &mut self,
        operation: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        self.channel.change(operation, message, flags)
    }

    /// Asks for one object; `None` if the kernel acknowledged without showing any.
    pub(crate) fn get(
        &mut self,
        operation: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.channel.get(operation, message)
    }

    /// Lists objects.
    pub(crate) fn dump(
        &mut self,
        operation: fmt::Arguments<'_>,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.channel.dump(operation, message)
    }
}

/// A netlink socket of one protocol, whose messages are `M`.
pub(crate) struct Channel<M> {
    socket: netlink_sys::Socket,
    sequence: u32,
    messages: PhantomData<fn(M) -> M>,
}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone> Channel<M> {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // The kernel's words about a refusal, without the request repeated in front of them.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Listings are filtered in the kernel, and a filter it does not know is an error.
            socket.set_netlink_get_strict_chk(true)?;
            // The kernel answers at once; this only bounds the wait for an answer it lost.
            set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
            Ok(socket)
        };
        let socket = open()
            .map_err(|source| Error::Socket { operation: "open netlink".to_owned(), source })?;
        Ok(Self { socket, sequence: 0, messages: PhantomData })
    }

    /// Carries out a change; `flags` are added to `NLM_F_REQUEST | NLM_F_ACK`.
    pub(crate) fn change(
        &mut self,
        operation: fmt::Arguments<'_>,
        message: M,
        flags: u16,
    ) -> Result<(), Error> {
        self.exchange(message, NLM_F_ACK | flags).map(drop).map_err(|e| e.during(operation))
    }

    /// Asks for one object; `None` if the kernel acknowledged without showing any.
    pub(crate) fn get(
        &mut self,
        operation: fmt::Arguments<'_>,
        message: M,
    ) -> Result<Option<M>, Error> {
        let answers = self.exchange(message, NLM_F_ACK).map_err(|e| e.during(operation))?;
        Ok(answers.into_iter().next())
    }

    /// Lists objects. A list that changed while the kernel wrote it may miss entries that were
    /// there all the time, so it is read again from the start.
    pub(crate) fn dump(
        &mut self,
        operation: fmt::Arguments<'_>,
        message: &M,
    ) -> Result<Vec<M>, Error> {
        for _ in 0..DUMP_TRIES {
            match self.exchange(message.clone(), NLM_F_DUMP) {
                Err(Failure::Interrupted) => {}
                other => return other.map_err(|e| e.during(operation)),
            }
        }
        Err(Failure::Interrupted.during(operation))
    }

    /// Sends one request and reads all answers to it, up to the ack or the end of the dump.
    fn exchange(&mut self, message: M, flags: u16) -> Result<Vec<M>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut exchange = Exchange::new(self.sequence);
        while !exchange.take(&self.receive()?)? {}
        Ok(exchange.answers)
    }

    /// One datagram of any size.
    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => return Ok(datagram),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the kernel did not answer",
                    ));
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// What has come back for one request so far.
struct Exchange<M> {
    sequence: u32,
    answers: Vec<M>,
    interrupted: bool,
}

impl<M: NetlinkDeserializable> Exchange<M> {
    fn new(sequence: u32) -> Self {
        Self { sequence, answers: Vec::new(), interrupted: false }
    }

    /// Takes one datagram; true if it was the last.
    fn take(&mut self, datagram: &[u8]) -> Result<bool, Failure> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let (message, next) = split_message(rest)?;
            rest = next;
            let header = NetlinkBuffer::new(message);
            // An answer to an earlier request that failed half-way is not ours.
            if header.sequence_number() != self.sequence {
                continue;
            }
            self.interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            match NetlinkMessage::<M>::deserialize(message)?.payload {
                NetlinkPayload::InnerMessage(answer) => self.answers.push(answer),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(true),
                        Some(_) => Err(Failure::Refused(refusal(&error, header.flags()))),
                    };
                }
                // A dump's error comes in its last message; the explanation follows the code.
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(Failure::Refused(Refusal {
                        errno: done.code.saturating_neg(),
                        explanation: explanation(&done.extended_ack),
                    }));
                }
                NetlinkPayload::Done(_) if self.interrupted => return Err(Failure::Interrupted),
                NetlinkPayload::Done(_) => return Ok(true),
                // Noop, and whatever a later kernel may add between the answers.
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Far longer than the kernel ever takes, which holds one lock for all of rtnetlink.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Each reading takes microseconds to milliseconds; one that changes each time has other troubles.
const DUMP_TRIES: u32 = 20;

/// A failure before anybody has said what was being done.
#[derive(Debug)]
enum Failure {
    Socket(io::Error),
    Malformed(DecodeError),
    Refused(Refusal),
    Interrupted,
}

impl Failure {
    fn during(self, operation: fmt::Arguments<'_>) -> Error {
        let operation = operation.to_string();
        match self {
            Self::Socket(source) => Error::Socket { operation, source },
            Self::Malformed(source) => Error::Malformed { operation, source },
            Self::Refused(source) => Error::Refused { operation, source },
            Self::Interrupted => Error::Interrupted { operation, tries: DUMP_TRIES },
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// The first message of a datagram, and what follows it after padding.
pub(crate) fn split_message(bytes: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let length = NetlinkBuffer::new_checked(bytes)?.length() as usize;
    let next = length.next_multiple_of(usize::from(NLMSG_ALIGNTO)).min(bytes.len());
    Ok((&bytes[..length], &bytes[next..]))
}

fn refusal(error: &ErrorMessage, flags: u16) -> Refusal {
    // With capped acks, the payload is the request's 16-byte header and then the attributes.
    let attributes = error.header.get(NETLINK_HEADER_LEN..).unwrap_or_default();
    let explained = flags & NLM_F_ACK_TLVS != 0;
    Refusal {
        errno: error.raw_code().saturating_neg(),
        explanation: if explained { explanation(attributes) } else { None },
    }
}

const NETLINK_HEADER_LEN: usize = 16;

/// The text among the attributes of an extended ack.
fn explanation(mut attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    while let Ok(attribute) = NlaBuffer::new_checked(attributes) {
        if attribute.kind() == NLMSGERR_ATTR_MSG {
            let text = String::from_utf8_lossy(attribute.value());
            return Some(text.trim_end_matches('\0').to_owned());
        }
        let next = usize::from(attribute.length()).next_multiple_of(4);
        attributes = attributes.get(next..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const NEW_ADDRESS: u16 = 20;

    /// A message to request number 7.
    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(NETLINK_HEADER_LEN + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(7_u32.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn address(flags: u16) -> Vec<u8> {
        message(NEW_ADDRESS, flags, &[2, 32, 0, 0, 1, 0, 0, 0])
    }

    #[test]
    fn a_list_ends_with_done_over_several_datagrams() {
        let mut exchange = Exchange::<RouteNetlinkMessage>::new(7);
        assert!(!exchange.take(&[address(2), address(2)].concat()).unwrap());
        assert!(!exchange.take(&address(2)).unwrap());
        assert!(exchange.take(&message(DONE, 2, &[0; 4])).unwrap());
        assert_eq!(exchange.answers.len(), 3);
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_not_used() {
        for flagged in 0..3 {
            let flags = |n| if n == flagged { 2 | NLM_F_DUMP_INTR } else { 2 };
            let mut exchange = Exchange::<RouteNetlinkMessage>::new(7);
            // Read to its end all the same: the next request must not meet the rest of it.
            assert!(!exchange.take(&address(flags(0))).unwrap());
            assert!(!exchange.take(&address(flags(1))).unwrap());
            let end = exchange.take(&message(DONE, flags(2), &[0; 4]));
            assert!(matches!(end, Err(Failure::Interrupted)), "{end:?}");
        }
    }

    #[test]
    fn answers_to_an_earlier_request_are_skipped() {
        let mut exchange = Exchange::<RouteNetlinkMessage>::new(8);
        assert!(!exchange.take(&[address(2), message(DONE, 2, &[0; 4])].concat()).unwrap());
        assert!(exchange.answers.is_empty());
    }

    #[test]
    fn refusals_come_as_errors_and_at_the_end_of_lists() {
        let text = [&[12, 0, 1, 0][..], b"No way!\0"].concat();
        let code = (-22_i32).to_ne_bytes();
        let request = [0; NETLINK_HEADER_LEN];
        let error = message(ERROR, NLM_F_ACK_TLVS, &[&code[..], &request, &text].concat());
        let done = message(DONE, 2, &[&code[..], &text].concat());
        for bytes in [error, done] {
            let Err(Failure::Refused(refusal)) =
                Exchange::<RouteNetlinkMessage>::new(7).take(&bytes)
            else {
                panic!("not refused");
            };
            assert_eq!((refusal.errno, refusal.explanation.as_deref()), (22, Some("No way!")));
        }
        let ack = message(ERROR, 0, &[&[0; 4][..], &request].concat());
        assert!(Exchange::<RouteNetlinkMessage>::new(7).take(&ack).unwrap());
    }

    #[test]
    fn explanation_is_found_behind_other_attributes() {
        // Attribute 2 (offset of the offending attribute), then attribute 1 (text).
        let bytes = [&[8, 0, 2, 0, 44, 0, 0, 0][..], &[15, 0, 1, 0], b"No device!\0"].concat();
        assert_eq!(explanation(&bytes).as_deref(), Some("No device!"));
        assert_eq!(explanation(&bytes[..8]), None);
        assert_eq!(explanation(&[]), None);
        assert_eq!(explanation(&[2, 0, 1, 0]), None);
    }

    #[test]
    fn a_message_that_claims_more_than_there_is_is_refused() {
        let mut bytes = [0_u8; 16];
        bytes[0] = 40;
        assert!(split_message(&bytes).is_err());
        assert!(split_message(&bytes[..7]).is_err());
    }
}
