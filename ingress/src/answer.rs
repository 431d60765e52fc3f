//! The body of an answer, and the record that ends with it.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame, SizeHint};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::{Cut, Download};
use crate::buffer::Ahead;
use crate::compress::Squeeze;
use crate::message::{Known, Response};
use crate::record::Record;
use crate::upstream::balance::Pending;
use crate::upstream::pool::Connection;
use crate::worker::Worker;

/// What a client gets, part by part.
#[derive(Debug)]
pub(crate) struct Answer {
    source: Source,
    /// Told of when this is dropped: then all of it was sent, or the client is gone.
    record: Option<(Box<Record>, Arc<Worker>)>,
    /// The request that an endpoint has.
    pending: Option<Pending>,
    held: Vec<Arc<dyn Any + Send + Sync>>,
    pace: Option<Box<Pace>>,
    squeeze: Option<Box<Squeeze>>,
}

/// So many bytes a second, and no more.
#[derive(Debug)]
struct Pace {
    rate: u64,
    /// Bytes that are not counted.
    after: u64,
    begun: Instant,
    sent: u64,
    /// What has come and may not go yet.
    held: Bytes,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// When the next byte may go.
    fn due(&self) -> Instant {
        let counted = self.sent.saturating_sub(self.after);
        let millis = counted.saturating_mul(1000) / self.rate.max(1);
        self.begun + Duration::from_millis(millis)
    }

    /// The next part of what is held: what may go in a quarter of a second.
    fn part(&mut self) -> Bytes {
        let most = usize::try_from(self.rate / 4).unwrap_or(usize::MAX).max(1);
        let part = self.held.split_to(self.held.len().min(most));
        self.sent += part.len() as u64;
        part
    }
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Backend(Download<Connection>),
    Ahead(Ahead),
}

impl Body for Source {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Backend(download) => Pin::new(download).poll_frame(cx),
            Self::Ahead(ahead) => Pin::new(ahead).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Backend(download) => download.is_end_stream(),
            Self::Ahead(ahead) => ahead.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Backend(download) => download.size_hint(),
            Self::Ahead(ahead) => ahead.size_hint(),
        }
    }
}

impl Answer {
    /// The gateway's own.
    pub(crate) fn own(text: impl Into<Bytes>) -> Self {
        let text = Some(text.into()).filter(|text| !text.is_empty());
        Self::of(Source::Own(text), None)
    }

    /// A backend's.
    pub(crate) fn backend(download: Download<Connection>, pending: Option<Pending>) -> Self {
        Self::of(Source::Backend(download), pending)
    }

    /// A backend's that is taken ahead of the client.
    pub(crate) fn ahead(ahead: Ahead) -> Self {
        Self::of(Source::Ahead(ahead), None)
    }

    fn of(source: Source, pending: Option<Pending>) -> Self {
        Self { source, record: None, pending, held: Vec::new(), pace: None, squeeze: None }
    }

    /// Keeps something for as long as this takes.
    pub(crate) fn hold(&mut self, held: Arc<dyn Any + Send + Sync>) {
        self.held.push(held);
    }

    /// Gives back what it was to keep.
    pub(crate) fn release(&mut self) -> Vec<Arc<dyn Any + Send + Sync>> {
        std::mem::take(&mut self.held)
    }

    /// Goes in place of another one: keeps what that does, and is no faster.
    pub(crate) fn replace(&mut self, other: &mut Self) {
        self.held.append(&mut other.held);
        self.pace = other.pace.take();
    }

    /// Sends no more than `rate` bytes a second, when `after` bytes have gone.
    pub(crate) fn pace(&mut self, rate: u64, after: u64) {
        let (begun, sent, held, timer) = (Instant::now(), 0, Bytes::new(), None);
        self.pace = Some(Box::new(Pace { rate, after, begun, sent, held, timer }));
    }

    /// Sends it compressed.
    pub(crate) fn squeeze(&mut self, squeeze: Squeeze) {
        self.squeeze = Some(Box::new(squeeze));
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.squeeze {
            Some(squeeze) => squeeze.poll(&mut self.source, cx),
            None => Pin::new(&mut self.source).poll_frame(cx),
        }
    }

    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(pace) = &mut self.pace {
            let due = pace.due();
            if due > Instant::now() {
                let timer = pace.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
                ready!(timer.as_mut().poll(cx));
            }
            pace.timer = None;
            if !pace.held.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(pace.part()))));
            }
        }
        let frame = ready!(self.poll_source(cx));
        match (&mut self.pace, frame) {
            (Some(pace), Some(Ok(frame))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => {
                    pace.held = data;
                    Frame::data(pace.part())
                }
                Err(frame) => frame,
            }))),
            (_, frame) => Poll::Ready(frame),
        }
    }

    /// To be told of at the end.
    pub(crate) fn record(&mut self, record: Box<Record>, worker: &Arc<Worker>) {
        self.record = Some((record, Arc::clone(worker)));
    }
}

/// An answer that says no more than its status.
pub(crate) fn plain(status: StatusCode) -> Response<Answer> {
    let text = match status {
        status if status.is_redirection() || status == StatusCode::NO_CONTENT => String::new(),
        status => format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or("")),
    };
    let is_empty = text.is_empty();
    let mut response = Response::new(Answer::own(text));
    response.status = status;
    if !is_empty {
        response.fields.set(Known::ContentType, "text/plain; charset=utf-8");
    }
    response
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let me = self.get_mut();
        let frame = me.poll_paced(cx);
        let record = me.record.as_mut().map(|(record, _)| record);
        match (&frame, record) {
            (Poll::Ready(Some(Ok(frame))), Some(record)) => {
                record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            (Poll::Ready(Some(Err(cut))), Some(record)) => record.reason = Some(cut.to_string()),
            _ => {}
        }
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            me.pending = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        if self.pace.as_ref().is_some_and(|pace| !pace.held.is_empty()) {
            return false;
        }
        match &self.squeeze {
            Some(squeeze) => squeeze.is_over(),
            None => self.source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.pace.as_ref().is_some_and(|pace| !pace.held.is_empty());
        if held || self.squeeze.is_some() {
            return SizeHint::default();
        }
        self.source.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let over = self.is_end_stream();
        if let Some((mut record, worker)) = self.record.take() {
            if !over && record.reason.is_none() && record.head.method != http::Method::HEAD {
                record.reason = Some("the client went away".to_owned());
            }
            record.finish(&worker.log, &worker.metrics);
        }
    }
}
