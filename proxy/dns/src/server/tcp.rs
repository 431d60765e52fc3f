//! Streams: what does not fit into a datagram, and whoever prefers them (RFC 7766).
//!
//! A client may send queries one behind the other. Those that we can answer are answered at once, and those that others have to
//! be asked for when they are there, in whichever order that is.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::debug;

use super::admission::Ruling;
use super::{Options, Service, Step, Waiting, refuse};
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

/// Connections that there are.
#[derive(Debug)]
struct Open {
    began: Instant,
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// A connection that may be.
#[derive(Debug)]
struct Seat {
    client: IpAddr,
    /// Milliseconds from when there were none until nothing was to be done for it any more; [`BUSY`] while something is.
    idle_since: AtomicU64,
    /// It has to go, as another one needs its place.
    close: Notify,
}

/// See [`Seat`].
const BUSY: u64 = u64::MAX;

impl Open {
    fn new() -> Self {
        Self { began: Instant::now(), seats: Mutex::default() }
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        // Nothing panics while it is held.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(BUSY - 1)
    }

    /// A seat for a client who has not too many. If all are taken, one that is idle is given free: of the client that has the
    /// most, the one that has been idle for longest (RFC 7766, section 6.2.3).
    fn take(&self, client: IpAddr, options: &Options) -> Option<Arc<Seat>> {
        let mut seats = self.seats();
        let has = |client| seats.iter().filter(|seat| seat.client == client).count();
        if has(client) >= options.connections_of_one {
            return None;
        }
        if seats.len() >= options.connections {
            let mut by_client = HashMap::<_, usize>::new();
            seats.iter().for_each(|seat| *by_client.entry(seat.client).or_default() += 1);
            let idle = seats.iter().enumerate().filter_map(|(place, seat)| {
                let since = seat.idle_since.load(Ordering::Relaxed);
                (since != BUSY).then_some((by_client[&seat.client], Reverse(since), place))
            });
            let (.., place) = idle.max()?;
            seats.swap_remove(place).close.notify_one();
        }
        let seat =
            Arc::new(Seat { client, idle_since: AtomicU64::new(self.now()), close: Notify::new() });
        seats.push(Arc::clone(&seat));
        Some(seat)
    }

    fn give_back(&self, seat: &Arc<Seat>) {
        self.seats().retain(|other| !Arc::ptr_eq(other, seat));
    }
}

/// Takes connections until it is told to stop. Those that wait at the listener then are for whoever has it next.
pub(super) async fn serve(
    context: Context,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let open = Arc::new(Open::new());
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
        let Some(seat) = open.take(client.ip().to_canonical(), &context.service.options) else {
            context.service.tasks().connection_refused();
            continue;
        };
        let (service, alive, stop) =
            (Arc::clone(&context.service), context.alive.clone(), stop.clone());
        let open = Arc::clone(&open);
        tokio::spawn(async move {
            let connection = Connection { service, client, open: &open, seat: &seat };
            // A client that goes away in the middle of something tells nobody anything.
            if let Err(error) = connection.converse(stream, stop).await {
                debug!(%error, %client, "a connection has ended");
            }
            open.give_back(&seat);
            drop(alive);
        });
    }
}

/// Until the server stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without a server there is nothing to do either.
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Connection<'a> {
    service: Arc<Service>,
    client: SocketAddr,
    open: &'a Open,
    seat: &'a Seat,
}

impl Connection<'_> {
    /// Answers queries until the client has no more of them.
    async fn converse(
        self,
        mut stream: TcpStream,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let Self { service, client, open, seat } = self;
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
                    // A stream that has something else in it is not one of queries; those before it are answered.
                    (reads, taken) = (false, input.len());
                    break;
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
            seat.idle_since
                .store(if waiting.is_empty() { open.now() } else { BUSY }, Ordering::Relaxed);
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
                () = seat.close.notified() => return Ok(()),
            }
            seat.idle_since.store(BUSY, Ordering::Relaxed);
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
