//! One question by UDP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

/// Whom to ask what.
#[derive(Debug, Args)]
pub struct Options {
    /// ADDRESS:PORT
    server: SocketAddr,
    /// What to ask
    question: String,
    /// How long to wait for the answer, in milliseconds
    #[arg(long, default_value_t = 2000)]
    timeout: u64,
}

/// Asks on a connected socket, so that only the server's own address may answer; prints the answer.
pub(super) fn run(options: &Options) -> Result<()> {
    let about = || format!("ask {}", options.server);
    let socket = if options.server.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = socket.context("open a UDP socket")?;
    socket.connect(options.server).with_context(about)?;
    let timeout = Duration::from_millis(options.timeout.max(1));
    socket.set_read_timeout(Some(timeout)).with_context(about)?;
    socket.send(options.question.as_bytes()).with_context(about)?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).with_context(about)?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
