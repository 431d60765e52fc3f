//! The body of an answer, and the record that ends with it.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};

use crate::body::{Cut, Download};
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
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Backend(Download<Connection>),
}

impl Answer {
    /// The gateway's own.
    pub(crate) fn own(text: impl Into<Bytes>) -> Self {
        let text = Some(text.into()).filter(|text| !text.is_empty());
        Self { source: Source::Own(text), record: None, pending: None, held: Vec::new() }
    }

    /// A backend's.
    pub(crate) fn backend(download: Download<Connection>, pending: Option<Pending>) -> Self {
        let source = Source::Backend(download);
        Self { source, record: None, pending, held: Vec::new() }
    }

    /// Keeps something for as long as this takes.
    pub(crate) fn hold(&mut self, held: Arc<dyn Any + Send + Sync>) {
        self.held.push(held);
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
    *response.status_mut() = status;
    if !is_empty {
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
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
        let frame = match &mut me.source {
            Source::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Backend(download) => Pin::new(download).poll_frame(cx),
        };
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
        match &self.source {
            Source::Own(text) => text.is_none(),
            Source::Backend(download) => download.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Source::Backend(download) => download.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let over = self.is_end_stream();
        if let Some((mut record, worker)) = self.record.take() {
            if !over && record.reason.is_none() && record.method != http::Method::HEAD {
                record.reason = Some("the client went away".to_owned());
            }
            record.finish(&worker.log, &worker.metrics);
        }
    }
}
