//! hyper's requests in the gateway's words, and answers in hyper's.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use hyper::body::Incoming;
use hyper::ext::Protocol;

use crate::answer::Answer;
use crate::headers;
use crate::message::{Fields, Head, Request, Response, Upgrade, Upload};

/// A request's head; `None`: it is no UTF-8.
pub(super) fn head(request: &http::Request<Incoming>) -> Option<Head> {
    let mut fields = Fields::from(request.headers());
    let uri = request.uri();
    let target = fields.keep(uri.path_and_query().map_or("/", PathAndQuery::as_str).as_bytes());
    let authority = uri.authority().map(Authority::as_str);
    let authority = authority.map(|authority| fields.keep(authority.as_bytes()));
    Head::new(request.method().clone(), request.version(), target, authority, fields)
}

/// A request with this head; `kept` is kept with it.
pub(super) fn request(
    mut request: http::Request<Incoming>,
    head: Head,
    kept: Option<Arc<dyn Any + Send + Sync>>,
) -> Request {
    let protocol = request.extensions_mut().remove::<Protocol>();
    let protocol = protocol.map(|protocol| Bytes::copy_from_slice(protocol.as_ref()));
    let upgrades = protocol.is_some() || headers::upgrade(&head);
    let upgrade = upgrades.then(|| Upgrade::Hyper(hyper::upgrade::on(&mut request)));
    Request { head, body: Upload::Hyper(request.into_body()), protocol, upgrade, kept }
}

/// An answer.
pub(super) fn response(answer: Response<Answer>) -> http::Response<Answer> {
    let Response { status, fields, body } = answer;
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = (&fields).into();
    response
}
