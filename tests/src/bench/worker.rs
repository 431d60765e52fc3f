//! Client and server inside pods: connections of one request, requests on one connection, or a stream.
//!
//! Both run on one CPU. Then a request's time is the CPU time of the whole way there and back,
//! and not that of waking up another CPU. The server closes first, as servers of short requests do,
//! so that the client's ports are free at once.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use super::stats::percentile;
use crate::process::Place;

/// Bytes of a connection's first request, and of its answer where it has one.
const MESSAGE: usize = 32;
/// Bytes handed to the kernel at once in a stream.
const CHUNK: usize = 128 * 1024;
/// Connections before the first one that counts.
const WARM_UP: usize = 50;
/// How long a first answer is waited for before another attempt.
const ATTEMPT: Duration = Duration::from_millis(5);
/// How much longer than its own time an order may take.
const GRACE: Duration = Duration::from_secs(20);

/// As nice(2) counts.
const HIGHEST_PRIORITY: i32 = -20;

/// What this process is.
#[derive(Debug, Subcommand)]
pub(super) enum Role {
    /// Answers requests until standard input ends
    Serve {
        #[arg(long)]
        cpu: usize,
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Takes orders from standard input, a line of JSON each, and prints what came of them
    Ask {
        #[arg(long)]
        cpu: usize,
    },
}

/// What a client does over and over, and what its rate counts. The first byte of a connection says so
/// to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub(super) enum Pattern {
    /// Connects, asks once, and is hung up on: connections a second.
    Connections = 7,
    /// Asks with one byte on one connection: requests a second.
    Requests = 8,
    /// Sends as much as it can on one connection: gigabits a second.
    Stream = 9,
}

/// What came of asking for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// See [`Pattern`].
    pub rate: f64,
    /// Half of the requests had their answer after this time, connecting included, in microseconds;
    /// 0 of a stream.
    pub p50_us: f64,
    /// All but one in a hundred.
    pub p99_us: f64,
}

/// A client's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Order {
    /// Ask these in turns for this time.
    Measure { pattern: Pattern, targets: Vec<SocketAddr>, time: Duration },
    /// Ask until there is an answer, at most for this time.
    Await { target: SocketAddr, time: Duration },
}

/// What a client says of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Outcome {
    Measured(Sample),
    Answered,
    Failed(String),
}

/// A server in a pod; ends with this value.
#[derive(Debug)]
pub(super) struct Server {
    _process: Process,
}

impl Server {
    /// Starts `program` as a server; returns when it listens.
    pub(super) fn start(
        program: Command,
        place: &Place,
        cpu: usize,
        listen: SocketAddr,
    ) -> Result<Self> {
        let arguments = ["serve", "--cpu", &cpu.to_string(), "--listen", &listen.to_string()];
        let process = Process::start(program, place, &arguments).context("start a server")?;
        process.next_line(GRACE).with_context(|| format!("wait for a server on {listen}"))?;
        Ok(Self { _process: process })
    }
}

/// A client in a pod; ends with this value.
#[derive(Debug)]
pub(super) struct Client {
    process: Process,
}

impl Client {
    /// Starts `program` as a client.
    pub(super) fn start(program: Command, place: &Place, cpu: usize) -> Result<Self> {
        let arguments = ["ask", "--cpu", &cpu.to_string()];
        let process = Process::start(program, place, &arguments).context("start a client")?;
        Ok(Self { process })
    }

    /// Asks `targets` in turns for `time`, or the first of them where it takes but one connection. A
    /// connection that fails is an error: figures that leave it out would be wrong.
    pub(super) fn measure(
        &mut self,
        pattern: Pattern,
        targets: &[SocketAddr],
        time: Duration,
    ) -> Result<Sample> {
        match self.order(&Order::Measure { pattern, targets: targets.to_vec(), time }, time)? {
            Outcome::Measured(sample) => Ok(sample),
            other => bail!("the client answered {other:?}"),
        }
    }

    /// Asks `target` until it answers, at most for `time`.
    pub(super) fn wait_for_answer(&mut self, target: SocketAddr, time: Duration) -> Result<()> {
        self.order(&Order::Await { target, time }, time).map(drop)
    }

    fn order(&mut self, order: &Order, time: Duration) -> Result<Outcome> {
        let mut line = serde_json::to_string(order).context("encode an order")?;
        line.push('\n');
        self.process.stdin.write_all(line.as_bytes()).context("give the client an order")?;
        let line = self.process.next_line(time + GRACE).context("hear from the client")?;
        match serde_json::from_str(&line).context("read the client's answer")? {
            Outcome::Failed(reason) => bail!("{reason}"),
            outcome => Ok(outcome),
        }
    }
}

/// This program again, in a pod.
#[derive(Debug)]
struct Process {
    child: Child,
    /// Its end is the worker's end, also if this process is killed.
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    fn start(mut program: Command, place: &Place, arguments: &[&str]) -> Result<Self> {
        place.apply(&mut program)?;
        program.arg("worker").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = program.spawn().context("start a worker")?;
        let stdin = child.stdin.take().context("take a worker's input")?;
        let stdout = child.stdout.take().context("take a worker's output")?;
        let (sender, lines) = mpsc::channel();
        thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            })
            .context("start a thread")?;
        Ok(Self { child, stdin, lines })
    }

    fn next_line(&self, limit: Duration) -> Result<String> {
        self.lines.recv_timeout(limit).map_err(|reason| match reason {
            RecvTimeoutError::Timeout => {
                anyhow::anyhow!("no word within {:.1} s", limit.as_secs_f32())
            }
            RecvTimeoutError::Disconnected => anyhow::anyhow!("the process has ended"),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is of no use any more, whether or not it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Role {
    /// Does the work of a worker.
    pub(super) fn run(self) -> Result<()> {
        match self {
            Self::Serve { cpu, listen } => {
                settle_on(cpu)?;
                serve(listen)
            }
            Self::Ask { cpu } => {
                settle_on(cpu)?;
                ask(io::stdin().lock(), io::stdout().lock())
            }
        }
    }
}

/// The last of the CPUs this process may use: the first ones tend to serve interrupts.
pub(super) fn last_cpu() -> Result<usize> {
    one_cpu((0..CpuSet::MAX_CPU).rev())
}

/// The first CPU that this process may use.
pub(super) fn first_cpu() -> Result<usize> {
    one_cpu(0..CpuSet::MAX_CPU)
}

fn one_cpu(mut cpus: impl Iterator<Item = usize>) -> Result<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).context("ask for this process's CPUs")?;
    cpus.find(|cpu| allowed.is_set(*cpu)).context("find a CPU that this process may use")
}

/// Stays on one CPU, and has it for itself as far as other processes go.
pub(super) fn settle_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus).with_context(|| format!("stay on CPU {cpu}"))?;
    rustix::process::nice(HIGHEST_PRIORITY).context("raise this process's priority")?;
    Ok(())
}

fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    println!("ready");
    thread::Builder::new()
        .name("end".to_owned())
        .spawn(|| {
            // An error is an end as well.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            std::process::exit(0);
        })
        .context("start a thread")?;
    answer(&listener)
}

fn answer(listener: &TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().context("accept a connection")?;
        let mut message = [0; MESSAGE];
        // A client whose connection fails says so itself.
        if stream.read_exact(&mut message).is_err() {
            continue;
        }
        if message[0] == Pattern::Connections as u8 {
            let _ = stream.write_all(&message);
            continue;
        }
        // Others need not wait for the end of a connection that is kept.
        thread::Builder::new()
            .name("kept".to_owned())
            .spawn(move || converse(stream, message[0]))
            .context("start a thread")?;
    }
}

/// The rest of a connection that began with this byte.
fn converse(mut stream: TcpStream, pattern: u8) -> io::Result<()> {
    if pattern == Pattern::Requests as u8 {
        stream.set_nodelay(true)?;
        let mut byte = [0];
        loop {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
    }
    let mut buffer = vec![0; CHUNK];
    let mut received = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&received.to_be_bytes()),
            some => received += some as u64,
        }
    }
}

fn ask(orders: impl BufRead, mut output: impl Write) -> Result<()> {
    for line in orders.lines() {
        let line = line.context("read an order")?;
        let outcome = match serde_json::from_str(&line).context("understand an order")? {
            Order::Measure { pattern, targets, time } => {
                measure(pattern, &targets, time).map(Outcome::Measured)
            }
            Order::Await { target, time } => answer_of(target, time).map(|()| Outcome::Answered),
        };
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let text = serde_json::to_string(&outcome).context("encode an outcome")?;
        writeln!(output, "{text}").and_then(|()| output.flush()).context("print an outcome")?;
    }
    Ok(())
}

fn measure(pattern: Pattern, targets: &[SocketAddr], time: Duration) -> Result<Sample> {
    if pattern == Pattern::Connections {
        return measure_connections(targets, time);
    }
    let target = targets.first().context("an order without a target")?;
    let mut stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    stream.write_all(&[pattern as u8; MESSAGE]).context("say what is to come")?;
    let sample = match pattern {
        Pattern::Stream => measure_stream(&mut stream, time),
        Pattern::Connections | Pattern::Requests => measure_requests(&mut stream, time),
    };
    sample.with_context(|| format!("talk to {target}"))
}

fn measure_stream(stream: &mut TcpStream, time: Duration) -> io::Result<Sample> {
    let chunk = vec![7; CHUNK];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut received = [0; 8];
    stream.read_exact(&mut received)?;
    // What counts is what has arrived.
    let gigabits = u64::from_be_bytes(received) as f64 * 8e-9;
    Ok(Sample { rate: gigabits / start.elapsed().as_secs_f64(), ..Sample::default() })
}

fn measure_requests(stream: &mut TcpStream, time: Duration) -> io::Result<Sample> {
    stream.set_nodelay(true)?;
    let mut byte = [7];
    let mut request = || stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte));
    for _ in 0..WARM_UP {
        request()?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    let mut now = start;
    while now - start < time {
        request()?;
        let answered = Instant::now();
        times.push(u64::try_from((answered - now).as_nanos()).unwrap_or(u64::MAX));
        now = answered;
    }
    Ok(sample(times, now - start))
}

fn measure_connections(targets: &[SocketAddr], time: Duration) -> Result<Sample> {
    let request = |target: &SocketAddr| {
        exchange(TcpStream::connect(target), Instant::now).with_context(|| format!("ask {target}"))
    };
    for target in targets.iter().cycle().take(WARM_UP) {
        request(target)?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    let mut now = start;
    for target in targets.iter().cycle() {
        let answered = request(target)?;
        times.push(u64::try_from((answered - now).as_nanos()).unwrap_or(u64::MAX));
        now = Instant::now();
        if now - start >= time {
            break;
        }
    }
    Ok(sample(times, now - start))
}

/// From the times of requests in nanoseconds.
fn sample(mut times: Vec<u64>, elapsed: Duration) -> Sample {
    times.sort_unstable();
    let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
    Sample {
        rate: 1.0 / (elapsed.as_secs_f64() / count(&times)),
        p50_us: micros(percentile(&times, 50)),
        p99_us: micros(percentile(&times, 99)),
    }
}

fn count(values: &[u64]) -> f64 {
    u32::try_from(values.len()).unwrap_or(u32::MAX).into()
}

fn answer_of(target: SocketAddr, time: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        // In time or not at all: a repeated SYN would come a second later.
        let attempt = TcpStream::connect_timeout(&target, ATTEMPT);
        match attempt.and_then(|stream| exchange(Ok(stream), || ())) {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() >= time => {
                return Err(error).with_context(|| {
                    format!("{target} did not answer in {:.1} s", time.as_secs_f32())
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A request, its answer, and the server's end of the connection; what `then` says between the
/// latter two.
fn exchange<T>(connected: io::Result<TcpStream>, then: impl FnOnce() -> T) -> io::Result<T> {
    let mut stream = connected?;
    let mut message = [Pattern::Connections as u8; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    let then = then();
    match stream.read(&mut message)? {
        0 => Ok(then),
        _ => Err(io::Error::other("the server sent more than it was asked for")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_takes_orders_and_answers_each() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        thread::spawn(move || answer(&listener));
        // Nobody waits for the end of a connection that is kept.
        let mut kept = TcpStream::connect(target).unwrap();
        kept.write_all(&[Pattern::Requests as u8; MESSAGE]).unwrap();
        // Connections to the discard port of an address that nobody has heard of are refused.
        let nobody = SocketAddr::from(([127, 77, 0, 1], 9));
        let time = Duration::from_millis(20);
        let order = |pattern, target| Order::Measure { pattern, targets: vec![target], time };
        let orders: String = [
            Order::Await { target, time },
            order(Pattern::Connections, target),
            order(Pattern::Requests, target),
            order(Pattern::Stream, target),
            Order::Await { target: nobody, time },
            order(Pattern::Connections, nobody),
        ]
        .iter()
        .map(|order| serde_json::to_string(order).unwrap() + "\n")
        .collect();

        let mut output = Vec::new();
        ask(orders.as_bytes(), &mut output).unwrap();

        let outcomes: Vec<Outcome> = output
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let [
            Outcome::Answered,
            Outcome::Measured(connections),
            Outcome::Measured(requests),
            Outcome::Measured(stream),
            Outcome::Failed(late),
            Outcome::Failed(refused),
        ] = &outcomes[..]
        else {
            panic!("{outcomes:?}");
        };
        for sample in [connections, requests] {
            assert!(sample.rate > 0.0 && sample.p50_us > 0.0 && sample.p99_us >= sample.p50_us);
        }
        assert!(stream.rate > 0.0);
        assert!(late.contains("did not answer"), "{late}");
        assert!(refused.contains(&format!("ask {nobody}")), "{refused}");
    }
}
