//! Streams: what does not fit into a datagram, and whoever prefers them (RFC 7766).
//!
//! A client may send queries one behind the other. Those that we can answer are answered at once, and those that others have to
//! be asked for when they are there, in whichever order that is.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::debug;

use super::admission::Ruling;
use super::{Service, Step, Waiting, refuse};
use crate::answer::{Buffer, Transport};

/// How long a client may say nothing, or take for a query (RFC 7766, section 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// How long it may take for an answer.
const SLOW: Duration = Duration::from_secs(5);
/// The longest query: a name, and EDNS with padding and other options.
const LONGEST: usize = 4096;
/// Queries of a connection that wait for others; the next one is read when one of them is answered.
const WAITING: usize = 64;
/// How long nothing is accepted when the process has no descriptor left.
const BREATH: Duration = Duration::from_millis(50);

pub(super) struct Context {
    pub(super) service: Arc<Service>,
    pub(super) alive: mpsc::Sender<()>,
}

/// Connections that there are, by their clients.
#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A connection that may be; given back when it is dropped.
struct Seat {
    open: Arc<Mutex<Open>>,
    client: IpAddr,
}

impl Seat {
    fn take(open: &Arc<Mutex<Open>>, client: IpAddr, service: &Service) -> Option<Self> {
        // Nothing panics while it is held.
        let mut inner = open.lock().unwrap_or_else(PoisonError::into_inner);
        let has = inner.by_client.get(&client).copied().unwrap_or_default();
        let options = &service.options;
        if inner.all >= options.connections || has >= options.connections_of_one {
            return None;
        }
        inner.all += 1;
        inner.by_client.insert(client, has + 1);
        drop(inner);
        Some(Self { open: Arc::clone(open), client })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(has) = open.by_client.get_mut(&self.client) {
            *has -= 1;
            if *has == 0 {
                open.by_client.remove(&self.client);
            }
        }
    }
}

/// Takes connections until it is told to stop. Those that wait at the listener then are for whoever has it next.
pub(super) async fn serve(
    context: Context,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let open = Arc::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "cannot take a connection");
                sleep(BREATH).await;
                continue;
            }
        };
        let Some(seat) = Seat::take(&open, client.ip().to_canonical(), &context.service) else {
            context.service.tasks().connection_refused();
            continue;
        };
        let (service, alive, stop) =
            (Arc::clone(&context.service), context.alive.clone(), stop.clone());
        tokio::spawn(async move {
            // A client that goes away in the middle of something tells nobody anything.
            if let Err(error) = converse(service, stream, client, stop).await {
                debug!(%error, %client, "a connection has ended");
            }
            drop((seat, alive));
        });
    }
}

/// Until the server stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without a server there is nothing to do either.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Answers queries of a connection until the client has no more of them.
async fn converse(
    service: Arc<Service>,
    mut stream: TcpStream,
    client: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let (mut input, mut chunk) = (Vec::new(), [0; LONGEST]);
    let (mut output, mut out) = (Vec::new(), Buffer::new(client.port().into()));
    let mut waiting: JoinSet<Vec<u8>> = JoinSet::new();
    let mut reads = true;
    let mut idle = tokio::time::Instant::now() + IDLE;
    loop {
        // What is there is answered first, and all of it is written at once.
        let mut taken = 0;
        while waiting.len() < WAITING
            && let Some(message) = first(&input[taken..])?
        {
            taken += 2 + message.len();
            let began = Instant::now();
            let (ruling, client) = service.admit(client, Transport::Tcp, began);
            let counts = service.tasks();
            let answers = match ruling {
                Ruling::Serve => {
                    let zone = service.zone();
                    match service.decide(&zone, message, &client, began, counts, &mut out) {
                        Step::Say => true,
                        Step::Silence => false,
                        Step::Ask(forward, _place) => {
                            let (message, service) = (message.into(), Arc::clone(&service));
                            let query =
                                Waiting { service, client, message, forward, _place, began };
                            waiting.spawn(async move {
                                let mut out = Buffer::new(0);
                                query.answer(&mut out).await.to_vec()
                            });
                            continue;
                        }
                    }
                }
                Ruling::Refuse => refuse(message, Transport::Tcp, &mut out),
                Ruling::Silence => false,
            };
            if !answers {
                // A stream that has something else in it is not one of queries.
                return Ok(());
            }
            counts.took(began.elapsed(), 1);
            service.answered(&client, out.bytes(), began, counts);
            append(&mut output, out.bytes());
            if output.len() > usize::from(u16::MAX) {
                break;
            }
        }
        input.drain(..taken);
        if taken > 0 {
            idle = tokio::time::Instant::now() + IDLE;
        }
        if !output.is_empty() {
            timeout(SLOW, writer.write_all(&output)).await??;
            output.clear();
            continue;
        }
        if !reads && waiting.is_empty() {
            return Ok(());
        }
        let has_room = waiting.len() < WAITING;
        tokio::select! {
            length = reader.read(&mut chunk), if reads && has_room => match length? {
                0 => reads = false,
                length => input.extend_from_slice(&chunk[..length]),
            },
            Some(answer) = waiting.join_next() => {
                append(&mut output, &answer.map_err(io::Error::other)?);
                while let Some(answer) = waiting.try_join_next() {
                    append(&mut output, &answer.map_err(io::Error::other)?);
                }
                idle = tokio::time::Instant::now() + IDLE;
            }
            () = sleep_until(idle), if waiting.is_empty() => return Ok(()),
            () = stopped(&mut stop), if reads => reads = false,
        }
    }
}

/// The message at the beginning, if it is there in full.
fn first(input: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = input.split_first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a query that is too long"));
    }
    Ok(rest.get(..length))
}

fn append(output: &mut Vec<u8>, answer: &[u8]) {
    let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
    output.extend_from_slice(&length.to_be_bytes());
    output.extend_from_slice(&answer[..length.into()]);
}
