//! `nft list chains` and `nft delete table`: what other programs' rules hook into, and an end to those
//! that one of them has left. Fairway makes no rules.

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::NLM_F_ACK;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::Error;
use crate::raw::{self, Raw, attributes};

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
    let delete = || Raw::open(NETLINK_NETFILTER)?.change(&deletion(family, table)?);
    match delete() {
        Ok(()) => Ok(true),
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

/// A transaction of one change, which is acknowledged.
fn deletion(family: u8, table: &str) -> io::Result<Vec<u8>> {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    const NAME: u16 = 1;
    let mut all = Vec::new();
    // Whose transaction it is stands where others have a resource, in network order.
    let [high, low] = (NFTABLES >> 8).to_be_bytes();
    raw::message(&mut all, BEGIN, 0, &[0, 0, high, low])?;
    let mut body = vec![family, 0, 0, 0];
    raw::attribute(&mut body, NAME, &[table.as_bytes(), &[0]].concat())?;
    raw::message(&mut all, NFT_MSG_DELTABLE, NLM_F_ACK, &body)?;
    raw::message(&mut all, END, 0, &[0, 0, high, low])?;
    Ok(all)
}

fn dump() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    // Family 0 is all families.
    Raw::open(NETLINK_NETFILTER)?.dump(NFT_MSG_GETCHAIN, &[0; GENERIC], |kind, body| {
        if kind == NFT_MSG_NEWCHAIN {
            chains.push(chain(body)?);
        }
        Some(ControlFlow::Continue(()))
    })?;
    Ok(chains)
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

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_read_with_its_hook_and_policy() {
        // As the kernel shows it after `nft add chain ip filter FORWARD { type filter hook forward
        // priority 0; policy drop; }`.
        let mut body = vec![2, 0, 0, 5];
        let mut attribute =
            |kind: u16, value: &[u8]| raw::attribute(&mut body, kind, value).expect("short");
        attribute(1, b"filter\0");
        attribute(3, b"FORWARD\0");
        attribute(0x8000 | 4, &[8, 0, 1, 0, 0, 0, 0, 2, 8, 0, 2, 0, 0, 0, 0, 0]);
        attribute(5, &[0; 4]);
        let expected = Chain {
            family: 2,
            table: "filter".to_owned(),
            name: "FORWARD".to_owned(),
            hook: Some(Chain::FORWARD),
            drops: true,
        };
        assert_eq!(chain(&body), Some(expected));
    }
}
