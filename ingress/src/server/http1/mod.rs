//! HTTP/1.1 as the gateway speaks it with clients (RFC 9112).
//!
//! A connection is one task: it reads a head, has the request answered, writes the answer, and reads the next head.
//! Where a request's body has not come along with its head, whoever asks for it reads from the connection's stream
//! himself (`inbound.rs`). Nothing else is read ahead but the next request.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};
use hyper::body::Body;
use memchr::memchr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use super::alarm::Alarm;
use super::framing::{self, MAX_HEAD, RequestLine, Violation};
use super::stream::{HEAD, STALL, Stream};
use super::{FIRST, KEEP_ALIVE, LINGER, Phase, buffers, closing};
use crate::body::Cut;
use crate::headers;
use crate::message::{Duplex, Fields, Head, Known, Request, Response, Span, Upgrade};
use head::{End, HeadReader};
use inbound::{Inbound, Shared, lock};
use sending::{Asked, Sending};

pub(crate) mod body;
pub(crate) mod head;
pub(crate) mod inbound;
mod sending;

/// How long a connection keeps the memory that answering takes while it waits for the next request: requests that follow
/// each other more slowly find other memory, and connections that only wait have none.
const SOON: Duration = Duration::from_millis(100);

/// Who answers the requests of a connection.
pub(super) trait Service {
    type Body: Body<Data = Bytes, Error = Cut> + Unpin;

    /// Answers a request. `alarm`: for whoever waits meanwhile, as long as it is the connection's task that does.
    fn serve(
        &self,
        request: Request,
        alarm: &mut Alarm,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Answers what is no request, and the last of its connection; `head`: as far as there is one.
    fn refuse(&self, head: Option<Head>, why: Violation) -> Response<Self::Body>;
}

/// Serves a connection as long as there are requests; also says what of HTTP/1 its client has broken, if that is why there
/// are no more.
pub(super) async fn serve(
    service: impl Service,
    stream: Stream,
    phase: watch::Receiver<Phase>,
) -> (io::Result<Ending>, Option<Violation>) {
    let mut connection = Connection {
        service,
        inbound: Arc::new(Mutex::new(Inbound::new(stream))),
        reader: HeadReader::default(),
        violation: None,
        fresh: true,
        since: None,
        alarm: Alarm::default(),
        closing: Closing::new(phase),
    };
    let last = connection.run().await;
    // Somebody may have the upload still.
    let mut inbound = lock(&connection.inbound);
    let stream = inbound.end();
    (last.map(|last| Ending { last, stream }), connection.violation.or(inbound.violation()))
}

/// A connection that ends.
pub(super) struct Ending {
    last: Last,
    stream: Stream,
}

/// What becomes of a connection over which nothing more is answered.
#[derive(Debug)]
enum Last {
    /// It is closed.
    Close,
    /// The client may be sending something that nobody reads, and would not read its answer if it were cut.
    Linger,
    /// The client could take its end for the end of the answer.
    Reset,
    /// Something else is spoken over it.
    Change(oneshot::Sender<Box<dyn Duplex>>),
}

impl Ending {
    /// Ends it, or hands it on.
    pub(super) async fn end(self) -> io::Result<()> {
        let Self { last, mut stream } = self;
        match last {
            Last::Close => stream.shutdown().await?,
            Last::Linger => {
                let _ = timeout(LINGER, linger(&mut stream)).await;
            }
            Last::Reset => stream.reset(),
            // Whoever wanted it may be gone.
            Last::Change(promise) => drop(promise.send(Box::new(stream))),
        }
        Ok(())
    }
}

async fn linger(stream: &mut Stream) {
    let _ = stream.shutdown().await;
    let mut forgotten = [0; 4096];
    while let Ok(1..) = stream.read(&mut forgotten).await {}
}

struct Connection<S> {
    service: S,
    inbound: Shared,
    reader: HeadReader,
    violation: Option<Violation>,
    /// Nothing of any request has come.
    fresh: bool,
    /// Since when the rest of a head is waited for, or the beginning of one.
    since: Option<Instant>,
    alarm: Alarm,
    closing: Closing,
}

/// What comes next from a client.
enum Next {
    Head(End),
    Refused(Violation),
    /// Nothing, as it seems.
    Over,
    /// Nothing yet.
    Quiet,
}

impl<S: Service> Connection<S> {
    async fn run(&mut self) -> io::Result<Last> {
        loop {
            let end = match poll_fn(|cx| self.poll_head(cx, false)).await? {
                Next::Head(end) => end,
                Next::Refused(why) => return self.refuse(why).await,
                Next::Over | Next::Quiet => return Ok(Last::Close),
            };
            if let Some(last) = Box::pin(self.talk(end)).await? {
                return Ok(last);
            }
        }
    }

    /// Answers requests as long as one follows the other: together they ask once for the memory that answering takes.
    async fn talk(&mut self, mut end: End) -> io::Result<Option<Last>> {
        loop {
            let Some((request, asked, promise)) = self.request(end) else {
                return self.refuse(Violation::Target).await.map(Some);
            };
            after_others().await;
            let answer = {
                let mut serving = pin!(self.service.serve(request, &mut self.alarm));
                let answer = poll_fn(|cx| {
                    if let Poll::Ready(answer) = serving.as_mut().poll(cx) {
                        return Poll::Ready(Some(answer));
                    }
                    lock(&self.inbound).poll_gone(cx).map(|()| None)
                });
                // Dropped with it is what was under way for a client that is gone.
                answer.await.ok_or(io::ErrorKind::ConnectionAborted)?
            };
            after_others().await;
            let changes = answer.status == StatusCode::SWITCHING_PROTOCOLS;
            if let Some(last) = self.send(answer, asked).await? {
                return Ok(Some(match promise {
                    Some(promise) if changes => Last::Change(promise),
                    _ => last,
                }));
            }
            end = match poll_fn(|cx| self.poll_head(cx, true)).await? {
                Next::Head(end) => end,
                Next::Refused(why) => return self.refuse(why).await.map(Some),
                Next::Over => return Ok(Some(Last::Close)),
                Next::Quiet => return Ok(None),
            };
        }
    }

    /// Waits for a head; if it `soon` would have to begin, no longer than that.
    fn poll_head(&mut self, cx: &mut Context<'_>, soon: bool) -> Poll<io::Result<Next>> {
        let mut inbound = lock(&self.inbound);
        loop {
            if !inbound.read.is_empty() {
                self.fresh = false;
                match self.reader.take(&inbound.read) {
                    Ok(Some(end)) => {
                        self.since = None;
                        return Poll::Ready(Ok(Next::Head(end)));
                    }
                    Ok(None) => {}
                    Err((_, why)) => return Poll::Ready(Ok(Next::Refused(why))),
                }
            }
            let between = inbound.read.is_empty();
            match inbound.poll_fill(cx)? {
                Poll::Ready(0) if between => return Poll::Ready(Ok(Next::Over)),
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(_) => {
                    if between {
                        self.since = None;
                    }
                    continue;
                }
                Poll::Pending => {}
            }
            let since = *self.since.get_or_insert_with(Instant::now);
            let (mut deadline, mut late) = (since + HEAD, Next::Refused(Violation::Slow));
            if between {
                inbound.rest();
                (deadline, late) = if soon {
                    (since + SOON, Next::Quiet)
                } else {
                    (since + KEEP_ALIVE, Next::Over)
                };
                if let Some(closing) = self.closing.poll(cx) {
                    // Who has just come has a request on its way, and nobody else to send it to.
                    if !self.fresh {
                        return Poll::Ready(Ok(Next::Over));
                    }
                    deadline = deadline.min(closing + FIRST);
                }
            }
            return self.alarm.poll(cx, deadline).map(|()| Ok(late));
        }
    }

    /// The request whose head is there; `None`: what it asks for has no name.
    #[expect(clippy::type_complexity, reason = "what is known of a request once it is taken apart")]
    fn request(
        &mut self,
        end: End,
    ) -> Option<(Request, Asked, Option<oneshot::Sender<Box<dyn Duplex>>>)> {
        let head = self.head(Some(end.length))?;
        let http_10 = head.version == Version::HTTP_10;
        let says = |word| headers::says(&head.fields, Known::Connection, word);
        let keep = !says("close") && (!http_10 || says("keep-alive"));
        let asked = Asked {
            head_only: head.method == Method::HEAD,
            http_10,
            trailers: headers::takes_trailers(&head.fields),
            keep,
        };
        let expected = head.fields.get(Known::Expect);
        let expected = expected.is_some_and(|it| it.eq_ignore_ascii_case(b"100-continue"));
        let body = inbound::upload(&self.inbound, end.body, expected && !http_10);
        let (promise, upgrade) = headers::upgrade(&head).then(|| self.change()).unzip();
        Some((Request { head, body, protocol: None, upgrade }, asked, promise))
    }

    fn change(&self) -> (oneshot::Sender<Box<dyn Duplex>>, Upgrade) {
        let (promise, stream) = oneshot::channel();
        let inbound = Arc::downgrade(&self.inbound);
        (promise, Upgrade::Http1(Change { stream, inbound }))
    }

    /// Takes a head out of what was read; or what there is of one, if that goes no further.
    fn head(&mut self, length: Option<usize>) -> Option<Head> {
        let mut inbound = lock(&self.inbound);
        let length = length.unwrap_or_else(|| inbound.read.len().min(MAX_HEAD));
        let block = inbound.read.split_to(length).freeze();
        let line = match self.reader.request() {
            Some(line) => line.clone(),
            None => begun(&block)?,
        };
        let method = Method::from_bytes(&block[line.method]).ok()?;
        let mut fields = Fields::with_block(block);
        for (name, value) in self.reader.fields() {
            fields.push_span(name, value);
        }
        self.reader.reset();
        let (target, authority) = target(&mut fields, line.target)?;
        let version = if line.http_10 { Version::HTTP_10 } else { Version::HTTP_11 };
        Head::new(method, version, target, authority, fields)
    }

    /// Answers what is no request, if anybody is to hear that.
    async fn refuse(&mut self, why: Violation) -> io::Result<Last> {
        self.violation = Some(why);
        let whole =
            matches!(why, Violation::TargetTooLong | Violation::HeadTooLong | Violation::Fields);
        let head = if whole { self.head(None) } else { None };
        let answer = self.service.refuse(head, why);
        if why != Violation::Slow {
            let asked = Asked { head_only: false, http_10: false, trailers: false, keep: false };
            self.send(answer, asked).await?;
        }
        Ok(Last::Linger)
    }

    /// Sends an answer; says what becomes of the connection if no other request may come.
    async fn send(
        &mut self,
        answer: Response<S::Body>,
        mut asked: Asked,
    ) -> io::Result<Option<Last>> {
        let mut room = buffers::take();
        {
            let mut inbound = lock(&self.inbound);
            room.put_slice(inbound.take_interim());
            asked.keep &= !inbound.is_abandoned();
        }
        asked.keep &= !self.closing.is();
        let mut sending = Sending::new(room, answer, asked);
        let sent = poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.poll(&self.inbound, cx) {
                return Poll::Ready(sent);
            }
            let gone = lock(&self.inbound).poll_gone(cx);
            gone.map(|()| Err(io::ErrorKind::ConnectionAborted.into()))
        });
        sent.await?;
        let (keeps, broken, open) = (sending.keeps(), sending.is_broken(), sending.is_open());
        buffers::give(sending.into_room());
        if broken && open {
            return Ok(Some(Last::Reset));
        }
        let mut since = None;
        let whole = poll_fn(|cx| self.poll_next(cx, &mut since)).await?;
        if whole && keeps && !broken {
            return Ok(None);
        }
        let unread = !whole || !lock(&self.inbound).read.is_empty();
        Ok(Some(if unread { Last::Linger } else { Last::Close }))
    }

    /// Waits until nobody has the upload; whether the next request comes then. An endpoint that has answered may take no more
    /// of it: that is waited for no longer than [`STALL`], or twice that. `since`: when it was looked at whether any was taken.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        since: &mut Option<Instant>,
    ) -> Poll<io::Result<bool>> {
        let mut inbound = lock(&self.inbound);
        if let Poll::Ready(whole) = inbound.poll_next(cx) {
            return Poll::Ready(whole);
        }
        loop {
            let begun = *since.get_or_insert_with(Instant::now);
            ready!(self.alarm.poll(cx, begun + STALL));
            if !inbound.has_moved() {
                return Poll::Ready(Ok(false));
            }
            *since = None;
        }
    }
}

/// What there is of a first line that does not end.
fn begun(head: &[u8]) -> Option<RequestLine> {
    // See `HeadReader::take`.
    let begin = if head.starts_with(b"\r\n") { 2 } else { 0 };
    let method = begin..begin + memchr(b' ', &head[begin..])?;
    let target = method.end + 1..head.len();
    Some(RequestLine { method, target, http_10: false })
}

/// Where the path and the query of a target are, and the authority of one that has one. `range`: where the target
/// is, in the block. `None`: it is none (RFC 9112, 3.2).
fn target(fields: &mut Fields, range: Range<usize>) -> Option<(Span, Option<Span>)> {
    let span = fields.span(range);
    let bytes = fields.bytes(span);
    if bytes == b"*" {
        return Some((span, None));
    }
    if let Some(path) = framing::path(bytes) {
        return Some((span.part(0..path.len()), None));
    }
    let uri = Uri::try_from(bytes).ok()?;
    // A host alone is no address, and another scheme none of the gateway's.
    uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let path = match uri.path_and_query().map_or("", PathAndQuery::as_str) {
        path if path.starts_with('/') => path.to_owned(),
        // An address without a path (RFC 9112, 3.2.1).
        query => format!("/{query}"),
    };
    let authority = uri.authority().map(|it| fields.keep(it.as_str().as_bytes()));
    Some((fields.keep(path.as_bytes()), authority))
}

/// Lets other connections go first that have been woken already. Asked between what is read and what is written, all
/// read first, then all write: whoever is written to on the same machine is woken once, and not for each of them.
async fn after_others() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Whether the gateway takes nothing new any more.
struct Closing {
    phase: watch::Receiver<Phase>,
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whom that wakes.
    waker: Option<Waker>,
    since: Option<Instant>,
}

impl Closing {
    fn new(phase: watch::Receiver<Phase>) -> Self {
        let closing = Box::pin(closing(phase.clone()));
        Self { phase, closing, waker: None, since: None }
    }

    fn is(&self) -> bool {
        *self.phase.borrow() == Phase::Closing
    }

    /// Since when it is known. The task of `cx` is woken when it comes to that.
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Instant> {
        let wakes = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        // Without who decides it is closing, too.
        let changed = !wakes || self.phase.has_changed().unwrap_or(true);
        if changed && self.since.is_none() {
            self.phase.mark_unchanged();
            self.waker = Some(cx.waker().clone());
            if self.closing.as_mut().poll(cx).is_ready() {
                self.since = Some(Instant::now());
            }
        }
        self.since
    }
}

/// The client's side of a connection that changes its protocol, when the answer has said so.
#[derive(Debug)]
pub(crate) struct Change {
    stream: oneshot::Receiver<Box<dyn Duplex>>,
    inbound: Weak<Mutex<Inbound>>,
}

impl Change {
    /// Whether nothing has come behind the request: nobody could tell what it was meant to be.
    pub(crate) fn is_clean(&self) -> bool {
        self.inbound.upgrade().is_some_and(|inbound| lock(&inbound).is_clean())
    }

    /// Waits until the client has the head of the answer.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn stream(self) -> io::Result<Box<dyn Duplex>> {
        self.stream.await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod talks;
#[cfg(test)]
mod tests;
