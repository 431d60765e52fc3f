//! One question by UDP.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
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
    /// Go on asking on the one connected socket, so often (in milliseconds), until it fails
    #[arg(long, value_name = "MILLISECONDS", conflicts_with = "unconnected")]
    every: Option<u64>,
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
        if let Some(every) = options.every {
            return go_on(&socket, &options.question, Duration::from_millis(every));
        }
        socket.send(options.question.as_bytes()).with_context(about)?;
        socket.recv(&mut buffer).with_context(about)?
    };
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

/// Prints each answer as it comes; one that does not come is asked for again. Ends with the socket.
fn go_on(socket: &UdpSocket, question: &str, every: Duration) -> Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        match socket.send(question.as_bytes()).and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) => println!("{}", String::from_utf8_lossy(&buffer[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the socket was ended"),
        }
        thread::sleep(every);
    }
}
