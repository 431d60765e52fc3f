//! Who knows the names of others: a thread that answers at once.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};

/// Names below this one are not there.
pub(super) const NOWHERE: &str = "node.example";

/// It ends with the process.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
}

impl Upstream {
    pub(super) fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("a port of an upstream")?;
        let address = socket.local_addr()?;
        let serve = move || {
            let mut query = [0; 2000];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&query[..length]) {
                    // Whoever has gone needs none.
                    let _ = socket.send_to(&answer, client);
                }
            }
        };
        thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(serve)
            .context("start a thread")?;
        Ok(Self { address })
    }
}

/// An address for each name but those that are not there, with EDNS if that was asked for.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    end += 5;
    let question = query.get(12..end)?.to_ascii_lowercase();
    let nowhere = b"\x04node\x07example\0";
    let is_there = !question[..question.len() - 4].ends_with(nowhere);
    let is_address = question.ends_with(&[0, 1, 0, 1]);
    let mut answer = query.get(..end)?.to_vec();
    answer[2] = 0x81;
    answer[3] = if is_there { 0x80 } else { 0x83 };
    let additional = query[11];
    answer[6..12].fill(0);
    if is_there && is_address {
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 192, 0, 2, 1]);
    } else {
        answer[9] = 1;
        // The SOA of the last label, which every name here has.
        answer.extend(b"\x07example\0\0\x06\0\x01\0\0\x0e\x10\0\x16\0\0");
        answer.extend([0; 16]);
        answer.extend(3600_u32.to_be_bytes());
    }
    if additional == 1 {
        answer[11] = 1;
        answer.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    }
    Some(answer)
}
