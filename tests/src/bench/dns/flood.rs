//! A client that does little else than to send and to receive, so that most of what is spent is spent on answers. What it costs itself is
//! known: its own datagrams come back to it where there is no server.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::query;
use super::records;
use crate::bench::cost;
use crate::bench::services::parse_seconds;
use crate::bench::stats::percentile;
use crate::process::{Place, output_within};

/// Different questions, in an order that does not follow that of the names.
const QUESTIONS: u32 = 10_000;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much longer than its own time it may take.
const GRACE: Duration = Duration::from_secs(10);

/// What it is started with.
#[derive(Debug, Args)]
pub(in crate::bench) struct ClientOptions {
    #[arg(long)]
    server: Option<SocketAddr>,
    #[arg(long)]
    services: u32,
    #[arg(long)]
    at_once: usize,
    #[arg(long, value_parser = parse_seconds)]
    seconds: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Flood {
    pub(super) answers: u32,
    /// What the client spent on a processor, and the kernel for it.
    pub(super) cpu: Duration,
    /// From a question to its answer, or from so many to the last of their answers.
    pub(super) p50: Duration,
    /// Likewise.
    pub(super) p99: Duration,
}

/// Has a client, `program`, ask from a pod.
pub(super) fn flood(
    mut program: Command,
    place: &Place,
    server: Option<SocketAddr>,
    services: u32,
    at_once: usize,
    time: Duration,
) -> Result<Flood> {
    place.apply(&mut program)?;
    program.arg("dns-client").args(["--services", &services.to_string()]);
    program.args(["--at-once", &at_once.to_string()]);
    program.args(["--seconds", &time.as_secs_f64().to_string()]);
    if let Some(server) = server {
        program.args(["--server", &server.to_string()]);
    }
    let output = output_within(&mut program, b"", time + GRACE)?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the client: {}", complaints.trim());
    serde_json::from_slice(&output.stdout).context("read what the client says")
}

/// Asks, and prints what came of it.
pub(in crate::bench) fn ask(options: &ClientOptions) -> Result<()> {
    let own = if options.server.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let socket = UdpSocket::bind((own, 0)).context("a port to ask from")?;
    socket.connect(options.server.map_or_else(|| socket.local_addr(), Ok)?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = |number: u32| records::service(number.wrapping_mul(7919) % options.services);
    let queries: Vec<_> =
        (0..QUESTIONS).map(|number| query(&name(number))).collect::<Result<_>>()?;
    let mut queries = queries.iter().cycle();
    let (mut answers, mut times, mut answer) = (0, Vec::new(), [0; 512]);
    let (before, start) = (cost::cpu(std::process::id())?, Instant::now());
    while start.elapsed() < options.seconds {
        let began = Instant::now();
        for query in queries.by_ref().take(options.at_once) {
            socket.send(query).context("ask")?;
        }
        for _ in 0..options.at_once {
            let length = socket.recv(&mut answer).context("wait for an answer")?;
            // No error, and one record.
            let is_right = length > 12 && answer[3] & 0xf == 0 && answer[7] == 1;
            ensure!(
                is_right || options.server.is_none(),
                "a wrong answer: {:?}",
                &answer[..length]
            );
            answers += 1;
        }
        times.push(began.elapsed());
    }
    let cpu = cost::cpu(std::process::id())? - before;
    times.sort_unstable();
    let flood = Flood { answers, cpu, p50: percentile(&times, 50), p99: percentile(&times, 99) };
    println!("{}", serde_json::to_string(&flood).context("encode what came of it")?);
    Ok(())
}
