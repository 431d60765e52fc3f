//! A connection at work: what comes and goes, the requests of its streams, and how long is waited for what.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{Method, StatusCode};
use hyper::body::Body as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::coop;
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::frames::{Fault, Reason};
use super::head::Bad;
use super::pipe::{Reader, Tunnel};
use super::wakers::{PlaceWaker, Wakers};
use crate::answer::Answer;
use crate::body::Cut;
use crate::message::{Duplex, Fields, Known, Request, Response, Upgrade, Upload};
use crate::server::alarm::Alarm;
use crate::server::stream::STALL;
use crate::server::{KEEP_ALIVE, LINGER, date};

/// How long a client may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that wait to be written, but for a part of an answer.
const MOST_OUT: usize = 64 << 10;
/// Bytes that are read at a time.
const READ: usize = 64 << 10;
/// The place of the future that says when to leave.
const LEAVES: usize = usize::MAX;

thread_local! {
    /// For what is read, which is looked at before anybody else reads.
    static INPUT: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
    /// For what is to be written, of connections that have written all.
    static OUTPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves a connection, until either end leaves it; when `leaves` is ready, this one does. `refused` hears of requests
/// that are none.
///
/// # Errors
/// What has ended it, if that is not as it should be; why, if the client is to blame.
pub(in crate::server) async fn serve<I, S, F, R>(
    io: I,
    leaves: impl Future<Output = ()> + Send + 'static,
    service: S,
    refused: R,
) -> Result<(), End>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request) -> F,
    F: Future<Output = Response<Answer>>,
    R: FnMut(Bad),
{
    let mut server = Server::new(io, Box::pin(leaves), service, refused);
    let ended = poll_fn(|cx| server.poll(cx)).await;
    let mut io = server.io;
    if !matches!(ended, Err(End::Io(_))) {
        // A client that is cut while it sends never reads what it was told last.
        let _ = timeout(LINGER, linger(&mut io)).await;
    }
    ended
}

async fn linger(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    io.shutdown().await?;
    let mut forgotten = [0; 512];
    while io.read(&mut forgotten).await? > 0 {}
    Ok(())
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum End {
    #[error("{0}")]
    Io(io::Error),
    #[error("{0}")]
    Fault(Fault),
}

type Leaves = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Server<I, S, F, R> {
    io: I,
    connection: Connection,
    service: S,
    refused: R,
    works: Vec<Work<F>>,
    wakers: Wakers,
    /// Says when to leave, and is woken with this.
    leaves: Option<Leaves>,
    leaving: PlaceWaker,
    /// Places that were woken; and those of requests that have come.
    woken: Vec<usize>,
    fresh: Vec<usize>,
    /// Places of answers that are to go on, in turn; and of those for which the client leaves no room.
    sending: VecDeque<usize>,
    blocked: Vec<usize>,
    /// Of what is to be written: how much was.
    written: usize,
    flushed: bool,
    /// The client had to read before more could be.
    stuck: bool,
    /// The client has sent all that it will.
    silent: bool,
    fault: Option<Fault>,
    alarm: Alarm,
    times: Times,
}

/// When something happened last.
struct Times {
    /// The client said something, or read what it had not; or it was asked whether it is there.
    heard: Instant,
    /// It asked for something, or had the last of what it asked for.
    asked: Instant,
    /// It was told to leave.
    left: Instant,
}

/// What is at a place.
struct Work<F> {
    waker: PlaceWaker,
    state: State<F>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "places are used again, without memory for each answer"
)]
enum State<F> {
    Free,
    Asked(Pin<Box<F>>, Asked),
    Answered(Sending),
}

/// Who is given a stream on which another protocol is agreed upon, and what the client sends on it.
type Promise = (oneshot::Sender<Box<dyn Duplex>>, Option<Reader>);

/// What a request's answer depends on.
struct Asked {
    /// It has no body.
    bodiless: bool,
    /// The client waits to be told to go on.
    expects: bool,
    /// What becomes of the stream if another protocol is agreed upon.
    tunnel: Option<Promise>,
}

/// An answer on its way.
struct Sending {
    source: Source,
    /// Of its body: what has come and was not sent.
    part: Bytes,
    /// It is in turn, or the client leaves no room for it.
    queued: bool,
    /// Since when that is so.
    blocked: Option<Instant>,
}

#[expect(clippy::large_enum_variant, reason = "few are tunnels")]
enum Source {
    Answer(Answer),
    Tunnel(Reader),
}

impl Source {
    fn is_over(&self) -> bool {
        match self {
            Self::Answer(answer) => answer.is_end_stream(),
            Self::Tunnel(reader) => reader.is_end_stream(),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Cut>>> {
        match self {
            Self::Answer(answer) => Pin::new(answer).poll_frame(cx),
            Self::Tunnel(reader) => Pin::new(reader).poll_frame(cx),
        }
    }
}

/// What becomes of an answer after it has had its turn.
enum Turn {
    /// It has another one.
    Again,
    /// It is woken, or over.
    Later,
    /// The client leaves no room.
    Blocked,
}

impl<I, S, F, R> Server<I, S, F, R>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request) -> F,
    F: Future<Output = Response<Answer>>,
    R: FnMut(Bad),
{
    fn new(io: I, leaves: Leaves, service: S, refused: R) -> Self {
        let (wakers, now) = (Wakers::default(), Instant::now());
        let leaving = wakers.at(LEAVES);
        leaving.waker.wake_by_ref();
        Self {
            io,
            connection: Connection::default(),
            service,
            refused,
            works: Vec::new(),
            leaves: Some(leaves),
            leaving,
            wakers,
            woken: Vec::new(),
            fresh: Vec::new(),
            sending: VecDeque::new(),
            blocked: Vec::new(),
            written: 0,
            flushed: true,
            stuck: false,
            silent: false,
            fault: None,
            alarm: Alarm::default(),
            times: Times { heard: now, asked: now, left: now },
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.connection.out.capacity() == 0 {
            self.connection.out = OUTPUT.take();
        }
        let ended = self.turns(cx);
        if self.connection.out.is_empty() {
            self.connection.rest();
            OUTPUT.set(std::mem::take(&mut self.connection.out));
        }
        ended
    }

    /// Does what there is to do, until there is nothing.
    fn turns(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            let mut busy = self.read(cx).map_err(End::Io)?;
            if let Some(fault) = self.fault {
                self.works.clear();
                while self.write(cx).map_err(End::Io)? {}
                return match self.is_written() {
                    true => Poll::Ready(Err(End::Fault(fault))),
                    false => Poll::Pending,
                };
            }
            if self.silent {
                return Poll::Ready(Ok(()));
            }
            self.forget();
            self.take_up();
            busy |= self.run();
            self.send();
            busy |= self.write(cx).map_err(End::Io)?;
            if busy {
                if coop::has_budget_remaining() {
                    continue;
                }
                // It is somebody else's turn, and who wants to go on says so again and again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.connection.is_over() && self.is_written() {
                let blamed = self.connection.blamed();
                return Poll::Ready(blamed.map_or(Ok(()), |fault| Err(End::Fault(fault))));
            }
            let deadline = self.deadline();
            if self.alarm.poll(cx, deadline).is_ready() {
                self.look_at_the_clock()?;
            } else if self.wakers.may_sleep(cx) {
                return Poll::Pending;
            }
        }
    }

    /// Reads, unless too much is to be written; whether anything came.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.fault.is_some() || self.connection.out.len() - self.written >= MOST_OUT {
            return Ok(false);
        }
        INPUT.with_borrow_mut(|input| {
            let mut input = ReadBuf::new(input);
            if Pin::new(&mut self.io).poll_read(cx, &mut input)?.is_pending() {
                return Ok(false);
            }
            self.times.heard = Instant::now();
            self.silent = input.filled().is_empty();
            self.fault = self.connection.receive(input.filled()).err();
            self.connection.bad().for_each(&mut self.refused);
            Ok(true)
        })
    }

    /// Writes what goes; whether anything went.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let before = self.written;
        while let Some(rest @ [_, ..]) = self.connection.out.get(self.written..) {
            let written = Pin::new(&mut self.io).poll_write(cx, rest)?;
            self.moves(written.is_ready());
            let Poll::Ready(written) = written else { break };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written += written;
        }
        let written = self.written - before;
        if written > 0 {
            self.connection.sent(written);
            self.flushed = false;
        }
        if self.written >= MOST_OUT || self.written == self.connection.out.len() {
            self.connection.out.drain(..self.written);
            self.written = 0;
        }
        if !self.flushed {
            self.flushed = Pin::new(&mut self.io).poll_flush(cx)?.is_ready();
            if self.connection.out.is_empty() {
                self.moves(self.flushed);
            }
        }
        Ok(written > 0)
    }

    /// What was to be written went, or has to wait until the client has read.
    fn moves(&mut self, went: bool) {
        if !went {
            self.stuck = true;
        } else if std::mem::take(&mut self.stuck) {
            self.times.heard = Instant::now();
        }
    }

    fn is_written(&self) -> bool {
        self.connection.out.is_empty() && self.flushed
    }

    /// Lets go of what belongs to streams that are over.
    fn forget(&mut self) {
        let (works, mut any) = (&mut self.works, false);
        self.connection.closed(|place| {
            any = true;
            if let Some(work) = works.get_mut(place) {
                work.state = State::Free;
            }
            self.sending.retain(|sending| *sending != place);
            self.blocked.retain(|blocked| *blocked != place);
        });
        if any && self.connection.is_idle() {
            self.times.asked = Instant::now();
        }
    }

    /// Begins with requests that have come.
    fn take_up(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        self.connection.fresh(&mut fresh);
        for place in fresh.drain(..) {
            while self.works.len() <= place {
                let waker = self.wakers.at(self.works.len());
                self.works.push(Work { waker, state: State::Free });
            }
            self.times.asked = self.times.heard;
            let Some((asked, mut upload)) = self.connection.begin(place) else { continue };
            let work = &mut self.works[place];
            if let Some(stream) = self.connection.stream(place)
                && let Some(body) = &stream.body
            {
                body.tell(work.waker.waker.clone(), asked.expects);
            }
            let bodiless = asked.head.method == Method::HEAD;
            let (mut upgrade, mut tunnel) = (None, None);
            if asked.protocol.is_some() {
                let (promise, promised) = Upgrade::promised();
                let incoming = match std::mem::replace(&mut upload, Upload::Empty) {
                    Upload::Http2(reader) => Some(reader),
                    _ => None,
                };
                (upgrade, tunnel) = (Some(promised), Some((promise, incoming)));
            }
            let (head, protocol) = (asked.head, asked.protocol);
            let request = Request { head, body: upload, protocol, upgrade };
            let asked = Asked { bodiless, expects: asked.expects, tunnel };
            work.state = State::Asked(Box::pin((self.service)(request)), asked);
            self.look_at(place);
        }
        self.fresh = fresh;
    }

    /// Looks at what was woken; whether anything was.
    fn run(&mut self) -> bool {
        let mut woken = std::mem::take(&mut self.woken);
        self.wakers.take(&mut woken);
        let any = !woken.is_empty();
        for place in woken.drain(..) {
            if place != LEAVES {
                self.look_at(place);
                continue;
            }
            self.leaving.begin();
            let mut cx = Context::from_waker(&self.leaving.waker);
            if self.leaves.as_mut().is_some_and(|it| it.as_mut().poll(&mut cx).is_ready()) {
                self.leaves = None;
                self.leave();
            }
        }
        self.woken = woken;
        any
    }

    /// Goes on with what is at a place.
    fn look_at(&mut self, place: usize) {
        let Some(work) = self.works.get_mut(place) else { return };
        work.waker.begin();
        match &mut work.state {
            State::Free => return,
            State::Asked(future, asked) => {
                let mut cx = Context::from_waker(&work.waker.waker);
                if let Poll::Ready(response) = future.as_mut().poll(&mut cx) {
                    let tunnel = asked.tunnel.take();
                    let bodiless = asked.bodiless;
                    self.answer(place, response, bodiless, tunnel);
                } else if asked.expects && self.connection.awaits(place) {
                    asked.expects = false;
                    self.connection.go_on(place);
                }
            }
            State::Answered(sending) => {
                if !sending.queued {
                    sending.queued = true;
                    self.sending.push_back(place);
                }
            }
        }
        self.connection.look_after(place);
    }

    fn answer(
        &mut self,
        place: usize,
        response: Response<Answer>,
        bodiless: bool,
        tunnel: Option<Promise>,
    ) {
        let Response { status, mut fields, body } = response;
        if !fields.contains(Known::Date) {
            date::with(|date| fields.append(Known::Date, date));
        }
        let agreed = status == StatusCode::OK;
        let tunnel = tunnel.filter(|(promise, _)| agreed && !promise.is_closed());
        let source = if let Some((promise, Some(incoming))) = tunnel {
            self.connection.answer(place, status, &fields, false);
            let (tunnel, outgoing) = Tunnel::new(incoming);
            // Who does not want it any more drops both ends.
            let _ = promise.send(Box::new(tunnel));
            Source::Tunnel(outgoing)
        } else {
            let bodiless =
                bodiless || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            let over = body.is_end_stream();
            if status == StatusCode::NO_CONTENT {
                // RFC 9110, 8.6
                fields.remove(Known::ContentLength);
            } else if !over && !fields.contains(Known::ContentLength) {
                add_length(&mut fields, body.size_hint().exact());
            }
            self.connection.answer(place, status, &fields, over || bodiless);
            Source::Answer(body)
        };
        let sending = Sending { source, part: Bytes::new(), queued: true, blocked: None };
        self.works[place].state = State::Answered(sending);
        self.sending.push_back(place);
    }

    /// Sends parts of answers in turn, as far as there is room.
    fn send(&mut self) {
        if self.connection.is_wider() {
            self.sending.extend(self.blocked.drain(..));
        }
        while self.connection.out.len() - self.written < MOST_OUT {
            let Some(place) = self.sending.pop_front() else { return };
            match self.send_part(place) {
                Turn::Again => self.sending.push_back(place),
                Turn::Blocked => self.blocked.push(place),
                Turn::Later => {}
            }
        }
    }

    fn send_part(&mut self, place: usize) -> Turn {
        if self.connection.stream(place).is_none() {
            return Turn::Later;
        }
        let Some(Work { waker, state: State::Answered(sending) }) = self.works.get_mut(place)
        else {
            return Turn::Later;
        };
        if sending.part.is_empty() {
            let mut cx = Context::from_waker(&waker.waker);
            match sending.source.poll(&mut cx) {
                Poll::Pending => {
                    sending.queued = false;
                    return Turn::Later;
                }
                Poll::Ready(None) => {
                    self.connection.send(place, &[], true);
                    return Turn::Later;
                }
                Poll::Ready(Some(Err(_))) => {
                    self.connection.reset(place, Reason::Internal);
                    return Turn::Later;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => sending.part = data,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.connection.end(place, &trailers);
                        return Turn::Later;
                    }
                },
            }
        }
        let room = self.connection.room(place).min(sending.part.len());
        if room == 0 && !sending.part.is_empty() {
            sending.blocked.get_or_insert_with(Instant::now);
            return Turn::Blocked;
        }
        sending.blocked = None;
        let ends = room == sending.part.len() && sending.source.is_over();
        if room > 0 || ends {
            self.connection.send(place, &sending.part[..room], ends);
            sending.part.advance(room);
        }
        if ends { Turn::Later } else { Turn::Again }
    }

    fn leave(&mut self) {
        self.times.left = Instant::now();
        self.connection.leave();
    }

    /// When to look at the clock, if nothing happens before.
    fn deadline(&self) -> Instant {
        let waits = if self.connection.is_asked() { PATIENCE } else { KEEP_ALIVE };
        let leaves = match (self.connection.is_told(), self.connection.is_idle()) {
            (true, _) => Some(self.times.left + PATIENCE),
            (_, true) => Some(self.times.asked + KEEP_ALIVE),
            _ => None,
        };
        let stalls = self.blocked.iter().filter_map(|place| self.stalls(*place));
        stalls.chain(leaves).chain([self.times.heard + waits]).min().unwrap_or(self.times.heard)
    }

    /// When an answer has waited for its client for too long.
    fn stalls(&self, place: usize) -> Option<Instant> {
        match &self.works.get(place)?.state {
            State::Answered(sending) => Some(sending.blocked? + STALL),
            State::Free | State::Asked(..) => None,
        }
    }

    fn look_at_the_clock(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.connection.is_asked() {
            if now >= self.times.heard + PATIENCE {
                return Err(End::Io(io::ErrorKind::TimedOut.into()));
            }
        } else if now >= self.times.heard + KEEP_ALIVE {
            self.connection.ask();
            self.times.heard = now;
        }
        if self.connection.is_told() && now >= self.times.left + PATIENCE {
            self.connection.leave_now();
        } else if self.connection.is_idle() && now >= self.times.asked + KEEP_ALIVE {
            self.leave();
        }
        for place in std::mem::take(&mut self.blocked) {
            if self.stalls(place).is_some_and(|stalls| now >= stalls) {
                self.connection.reset(place, Reason::Cancel);
            } else {
                self.blocked.push(place);
            }
        }
        Ok(())
    }
}

/// Says how long a body is, where that is known.
fn add_length(fields: &mut Fields, length: Option<u64>) {
    if let Some(length) = length {
        fields.append(Known::ContentLength, length.to_string());
    }
}
