//! Requests and answers as the gateway has them, whatever HTTP they come and go by.
//!
//! A head is one block of bytes and places in it: see [`Fields`]. Servers make `Request`s of what they read, and write
//! `Response`s; in between nothing is parsed or allocated again.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::body::Cut;
use crate::server::http1::{Change, inbound};
use crate::server::http2;

pub use fields::{Edits, Field, Fields, Iter, Name, Span};
pub use names::Known;
pub use value::Value;

pub(crate) use fields::text;
pub(crate) use value::digits;

mod fields;
mod names;
mod value;

/// The head of a request.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) version: Version,
    target: Span,
    authority: Option<Span>,
    pub(crate) fields: Fields,
}

impl Head {
    /// `target`: path and query, from `/` on, or `*`; without what is behind `#`. `authority`: that of an absolute target, or
    /// `:authority`. Both lie in `fields`; `None`: they are no UTF-8.
    pub(crate) fn new(
        method: Method,
        version: Version,
        target: Span,
        authority: Option<Span>,
        fields: Fields,
    ) -> Option<Self> {
        for span in [Some(target), authority].into_iter().flatten() {
            str::from_utf8(fields.bytes(span)).ok()?;
        }
        Some(Self { method, version, target, authority, fields })
    }

    /// Path and, behind a question mark, query.
    pub(crate) fn target(&self) -> &str {
        str::from_utf8(self.fields.bytes(self.target)).unwrap_or_default()
    }

    /// What stands before the path of an absolute target, or in `:authority`.
    pub(crate) fn authority(&self) -> Option<&str> {
        str::from_utf8(self.fields.bytes(self.authority?)).ok()
    }

    /// The same, as a place in the fields.
    pub(crate) fn authority_place(&self) -> Option<Span> {
        self.authority
    }
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Upload,
    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub(crate) protocol: Option<Bytes>,
    /// How the connection is had when another protocol is agreed upon. It need only be there for requests that
    /// [ask](crate::headers::upgrade) for one, and for extended CONNECTs.
    pub(crate) upgrade: Option<Upgrade>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response<B> {
    pub(crate) status: StatusCode,
    pub(crate) fields: Fields,
    pub(crate) body: B,
}

impl<B> Response<B> {
    /// Of 200, without fields.
    pub(crate) fn new(body: B) -> Self {
        Self { status: StatusCode::OK, fields: Fields::new(), body }
    }

    /// The same with another body.
    pub(crate) fn map<C>(self, map: impl FnOnce(B) -> C) -> Response<C> {
        Response { status: self.status, fields: self.fields, body: map(self.body) }
    }
}

/// What a request's body is read from.
#[derive(Debug)]
pub(crate) enum Upload {
    /// There is none.
    Empty,
    /// It came along with the head.
    Whole(Bytes),
    /// It comes over HTTP/1.
    Http1(inbound::Incoming),
    /// Of a stream of HTTP/2.
    Http2(http2::Reader),
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            whole @ Self::Whole(_) => {
                let Self::Whole(bytes) = std::mem::replace(whole, Self::Empty) else {
                    return Poll::Ready(None);
                };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Http1(incoming) => incoming.poll_frame(cx),
            Self::Http2(reader) => Pin::new(reader).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Http2(reader) => reader.size_hint(),
        }
    }
}

/// What a client and the gateway speak over when another protocol is agreed upon.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Debug + Send + Unpin> Duplex for S {}

/// The way to the client's side of a connection that changes its protocol.
#[derive(Debug)]
pub(crate) enum Upgrade {
    /// Comes when the answer's head is written.
    Promised(oneshot::Receiver<Box<dyn Duplex>>),
    /// That of HTTP/1.
    Http1(Change),
}

impl Upgrade {
    /// One, and who is to be given the stream.
    pub(crate) fn promised() -> (oneshot::Sender<Box<dyn Duplex>>, Self) {
        let (promise, promised) = oneshot::channel();
        (promise, Self::Promised(promised))
    }

    /// Whether nothing has come yet that is meant for another protocol, or is another request: nobody can tell which.
    pub(crate) fn is_clean(&self) -> bool {
        match self {
            Self::Promised(_) => true,
            Self::Http1(change) => change.is_clean(),
        }
    }

    /// Waits until the client has the head of the answer.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn stream(self) -> io::Result<Box<dyn Duplex>> {
        match self {
            Self::Promised(promised) => promised.await.map_err(io::Error::other),
            Self::Http1(change) => change.stream().await,
        }
    }
}
