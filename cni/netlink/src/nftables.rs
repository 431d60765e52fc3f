//! `nft list chains` and `nft delete table`: what other programs' rules hook into, and an end to those
//! that one of them has left. Fairway makes no rules.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer};
use netlink_sys::{SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::Error;

/// A chain of the kernel's nf_tables, which also hold what `iptables` of the nf_tables kind makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `NFPROTO_*`: 1 inet, 2 ip, 10 ip6, ...
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name in the table.
    pub name: String,
    /// Where packets enter it (`NF_INET_FORWARD` is 2); none if only other chains lead to it.
    pub hook: Option<u32>,
    /// Whether a packet that no rule decides on is dropped.
    pub drops: bool,
}

impl Chain {
    /// `NF_INET_FORWARD`: packets that the host routes.
    pub const FORWARD: u32 = 2;
}

/// `NFPROTO_IPV4`.
pub const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub const IPV6: u8 = 10;

const OPERATION: &str = "list nftables chains";
/// `NFNL_SUBSYS_NFTABLES`, in the high byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_DELTABLE: u16 = NFTABLES | 2;
const NFT_MSG_NEWCHAIN: u16 = NFTABLES | 3;
const NFT_MSG_GETCHAIN: u16 = NFTABLES | 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource.
const GENERIC: usize = 4;

/// All chains in the calling thread's network namespace; none where the kernel has no nf_tables.
pub fn chains() -> Result<Vec<Chain>, Error> {
    match dump() {
        Ok(chains) => Ok(chains),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(Error::system(OPERATION, error)),
    }
}

/// Deletes a table of a family with all that is in it, in the calling thread's network namespace; false
/// if there is none.
pub fn delete_table(family: u8, table: &str) -> Result<bool, Error> {
    let delete = || {
        let socket = open()?;
        socket.send(&deletion(family, table)?, 0)?;
        let (datagram, _) = socket.recv_from_full()?;
        read(&datagram, &mut Vec::new())
    };
    match delete() {
        Ok(_) => Ok(true),
        // Not that the question was wrong, which a kernel without nf_tables says of a list.
        Err(error) if is_absent(&error) && error.raw_os_error() != Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(Error::system(format!("delete nftables table {table}"), error)),
    }
}

/// Whether a refusal says that there is no such thing, or no nf_tables at all.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT)
    )
}

fn open() -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// A transaction of one change, which is acknowledged.
fn deletion(family: u8, table: &str) -> io::Result<Vec<u8>> {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    const NAME: u16 = 1;
    let mut all = Vec::new();
    let mut message = |kind: u16, flags: u16, body: &[u8]| -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        all.extend(length.to_ne_bytes());
        all.extend(kind.to_ne_bytes());
        all.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        all.extend([0; 8]);
        all.extend(body);
        Ok(())
    };
    // Whose transaction it is stands where others have a resource, in network order.
    let [high, low] = (NFTABLES >> 8).to_be_bytes();
    message(BEGIN, 0, &[0, 0, high, low])?;
    let mut body = vec![family, 0, 0, 0];
    let length = u16::try_from(4 + table.len() + 1).map_err(io::Error::other)?;
    body.extend(length.to_ne_bytes());
    body.extend(NAME.to_ne_bytes());
    body.extend(table.as_bytes());
    body.push(0);
    body.resize(body.len().next_multiple_of(4), 0);
    message(NFT_MSG_DELTABLE, NLM_F_ACK, &body)?;
    message(END, 0, &[0, 0, high, low])?;
    Ok(all)
}

fn dump() -> io::Result<Vec<Chain>> {
    let socket = open()?;
    socket.send(&request(), 0)?;
    let mut chains = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, &mut chains)? {
            return Ok(chains);
        }
    }
}

fn request() -> [u8; HEADER + GENERIC] {
    let mut message = [0; HEADER + GENERIC];
    message[..4].copy_from_slice(&20u32.to_ne_bytes());
    message[4..6].copy_from_slice(&NFT_MSG_GETCHAIN.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and sender stay 0: nothing else is asked on this socket. Family 0 is all families.
    message
}

/// Adds a datagram's chains; true at the end of the list.
fn read(datagram: &[u8], chains: &mut Vec<Chain>) -> io::Result<bool> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = rest.get(HEADER..length).ok_or_else(malformed)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk().ok_or_else(malformed)?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(-code)),
                };
            }
            NFT_MSG_NEWCHAIN => chains.push(chain(body).ok_or_else(malformed)?),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn chain(body: &[u8]) -> Option<Chain> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const HOOK_NUMBER: u16 = 1;
    let mut chain = Chain { family: *body.first()?, ..Chain::default() };
    for (kind, value) in attributes(body.get(GENERIC..)?) {
        match kind {
            TABLE => chain.table = text(value),
            NAME => chain.name = text(value),
            HOOK => {
                chain.hook = attributes(value)
                    .find(|(kind, _)| *kind == HOOK_NUMBER)
                    .and_then(|(_, number)| Some(u32::from_be_bytes(*number.first_chunk()?)));
            }
            // `NF_DROP` is 0.
            POLICY => chain.drops = value.first_chunk() == Some(&[0; 4]),
            _ => {}
        }
    }
    Some(chain)
}

/// The attributes in `bytes`, by kind; what does not parse ends the list.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let attribute = NlaBuffer::new_checked(bytes).ok()?;
        let length = usize::from(attribute.length());
        let (kind, value) = (attribute.kind(), bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain as the kernel shows it after `nft add chain ip filter FORWARD { type filter hook forward
    /// priority 0; policy drop; }`.
    fn forward() -> Vec<u8> {
        let mut body = vec![2, 0, 0, 5];
        let mut attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(value.len() + 4).expect("short");
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        };
        attribute(1, b"filter\0");
        attribute(3, b"FORWARD\0");
        attribute(0x8000 | 4, &[8, 0, 1, 0, 0, 0, 0, 2, 8, 0, 2, 0, 0, 0, 0, 0]);
        attribute(5, &[0; 4]);
        let mut message = Vec::new();
        message.extend(u32::try_from(HEADER + body.len()).expect("short").to_ne_bytes());
        message.extend(NFT_MSG_NEWCHAIN.to_ne_bytes());
        message.extend([2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend(body);
        message
    }

    #[test]
    fn a_chain_is_read_with_its_hook_and_policy() {
        let mut chains = Vec::new();
        assert!(!read(&forward(), &mut chains).expect("a message"));
        let expected = Chain {
            family: 2,
            table: "filter".to_owned(),
            name: "FORWARD".to_owned(),
            hook: Some(Chain::FORWARD),
            drops: true,
        };
        assert_eq!(chains, [expected]);
    }

    #[test]
    fn the_end_and_an_error_end_the_list_and_a_torn_message_is_refused() {
        let mut done = vec![20, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(read(&done, &mut Vec::new()).expect("the end"));
        done[4] = 2;
        done[16..].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let error = read(&done, &mut Vec::new()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let whole = forward();
        assert!(read(&whole[..40], &mut Vec::new()).is_err());
    }
}
