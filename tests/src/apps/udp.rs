//! One question by UDP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
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
    /// The port to ask from
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    from_port: u16,
    /// Ask on a socket that is not connected, and look who answers
    #[arg(long)]
    unconnected: bool,
}

/// Asks, and prints the answer, which only the server's own address may give.
pub(super) fn run(options: &Options) -> Result<()> {
    let about = || format!("ask {}", options.server);
    let socket = if options.server.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, options.from_port))
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, options.from_port))
    };
    let socket = socket.context("open a UDP socket")?;
    let timeout = Duration::from_millis(options.timeout.max(1));
    socket.set_read_timeout(Some(timeout)).with_context(about)?;
    let mut buffer = vec![0; 65_535];
    let length = if options.unconnected {
        socket.send_to(options.question.as_bytes(), options.server).with_context(about)?;
        let (length, from) = socket.recv_from(&mut buffer).with_context(about)?;
        if from != options.server {
            bail!("asked {}, and {from} answered", options.server);
        }
        length
    } else {
        socket.connect(options.server).with_context(about)?;
        socket.send(options.question.as_bytes()).with_context(about)?;
        socket.recv(&mut buffer).with_context(about)?
    };
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
