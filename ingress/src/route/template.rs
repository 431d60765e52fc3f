//! Templates, filled with what a request brings.

use std::cell::OnceCell;
use std::net::IpAddr;

use fairway_model::{Part, Template, Variable};
use regex::bytes::Captures;

use super::path::{encode, push_encoded};
use super::{Request, Route, path};
use crate::message::Known;

/// A request as it has been read.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) request: &'a Request<'a>,
    /// The host's name, without a port, in lower case.
    pub(super) host: &'a str,
    /// In its normal form.
    pub(super) path: &'a path::Normal<'a>,
    pub(super) query: Option<&'a str>,
    /// Who asks, as whoever is trusted says it.
    pub(super) client: IpAddr,
    /// `http` or `https`, as whoever is trusted says it.
    pub(super) scheme: &'static str,
    /// The host with its port, as whoever is trusted says it.
    pub(super) authority: &'a str,
}

/// What a [`Variable`] comes to.
enum Value<'a> {
    /// To be encoded before it is part of a URL.
    Plain(std::borrow::Cow<'a, [u8]>),
    /// It has been part of one, or may be.
    Url(std::borrow::Cow<'a, str>),
}

/// A template, and what there is to fill it with.
pub(super) struct Fill<'a> {
    pub(super) asked: &'a Asked<'a>,
    pub(super) route: &'a Route,
    /// What the groups of the path's expression found, once somebody wants to know.
    groups: OnceCell<Option<Captures<'a>>>,
}

impl<'a> Fill<'a> {
    /// For a request that takes `route`.
    pub(super) fn new(asked: &'a Asked<'a>, route: &'a Route) -> Self {
        Self { asked, route, groups: OnceCell::new() }
    }

    /// The bytes, as they are.
    pub(super) fn bytes(&self, template: &Template) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &template.0 {
            match self.value(part) {
                Value::Plain(plain) => bytes.extend_from_slice(&plain),
                Value::Url(url) => bytes.extend_from_slice(url.as_bytes()),
            }
        }
        bytes
    }

    /// A URL, or path and query. What the request brings becomes part of a path in front of the template's
    /// question mark, and part of a parameter behind it; neither ends what it is part of.
    pub(super) fn url(&self, template: &Template) -> String {
        let mut url = String::new();
        let mut query = false;
        for part in &template.0 {
            match self.value(part) {
                Value::Plain(plain) if query => {
                    plain
                        .iter()
                        .for_each(|byte| push_encoded(&mut url, *byte, b"\"#%&+;<=>?\\^`{|}"));
                }
                Value::Plain(plain) => url.push_str(&encode(&plain)),
                Value::Url(text) => {
                    query |= text.contains('?');
                    text.bytes().for_each(|byte| push_encoded(&mut url, byte, b"\"<>\\^`{|}"));
                }
            }
        }
        url
    }

    fn value<'v>(&'v self, part: &'v Part) -> Value<'v> {
        let Asked { request, .. } = self.asked;
        let name = |name: Option<&'v str>| Value::Url(name.unwrap_or_default().into());
        let ingress = self.route.ingress.as_ref();
        let variable = match part {
            Part::Text(text) => return Value::Url(text.into()),
            Part::Group(group) => {
                let groups = self.groups.get_or_init(|| {
                    self.route.expression.as_ref()?.captures(&self.asked.path.decoded)
                });
                let found = groups.as_ref().and_then(|groups| groups.get(usize::from(*group)));
                return Value::Plain(
                    found.map(|found| found.as_bytes()).unwrap_or_default().into(),
                );
            }
            Part::Variable(variable) => variable,
        };
        match variable {
            Variable::Host => name(Some(self.asked.host)),
            Variable::HttpHost => name(request.host),
            Variable::BestHttpHost => name(Some(self.asked.authority)),
            Variable::Scheme => name(Some(request.scheme())),
            Variable::PassAccessScheme => name(Some(self.asked.scheme)),
            Variable::RequestUri => name(Some(request.target)),
            Variable::EscapedRequestUri => {
                Value::Url(path::encode_argument(request.target.as_bytes()).into())
            }
            Variable::Uri => Value::Plain(self.asked.path.decoded.as_ref().into()),
            Variable::Args => name(self.asked.query),
            Variable::RequestMethod => name(Some(request.method.as_str())),
            Variable::RemoteAddr => Value::Url(self.asked.client.to_string().into()),
            Variable::RemotePort => Value::Url(request.peer.port().to_string().into()),
            Variable::RequestId => name(Some(request.id)),
            Variable::ServerName => name(Some(&self.route.host)),
            Variable::ServerPort => Value::Url(request.port.to_string().into()),
            Variable::ServiceName => name(Some(&self.route.backend.service)),
            Variable::Namespace => name(ingress.map(|name| &*name.namespace)),
            Variable::IngressName => name(ingress.map(|name| &*name.name)),
            Variable::Header(header) => {
                let value = request.headers.get(header.as_str());
                Value::Plain(value.unwrap_or_default().into())
            }
            Variable::Cookie(wanted) => {
                Value::Plain(cookie(request, wanted).unwrap_or_default().into())
            }
            Variable::Arg(wanted) => {
                let arguments = self.asked.query.unwrap_or_default().split('&');
                let mut pairs = arguments.filter_map(|argument| argument.split_once('='));
                name(pairs.find(|(key, _)| key == wanted).map(|(_, value)| value))
            }
            Variable::Ssl(wanted) => Value::Plain(ssl(request, wanted).into()),
        }
    }
}

/// A cookie that the client sent.
pub(super) fn cookie<'a>(request: &Request<'a>, wanted: &str) -> Option<&'a [u8]> {
    let headers = request.headers.get_all(Known::Cookie);
    let mut cookies = headers.flat_map(|header| header.split(|byte| *byte == b';'));
    cookies.find_map(|cookie| {
        let rest = cookie.trim_ascii().strip_prefix(wanted.as_bytes())?;
        rest.strip_prefix(b"=")
    })
}

/// nginx's `$ssl_` variables, as far as they are about the client's certificate.
pub(super) fn ssl(request: &Request<'_>, wanted: &str) -> Vec<u8> {
    let tls = request.tls.unwrap_or_default();
    let client = tls.client.unwrap_or_default();
    match wanted {
        "client_verify" => match tls.client {
            None => "NONE".into(),
            Some(client) => match client.rejected {
                None => "SUCCESS".into(),
                Some(why) => format!("FAILED:{why}").into(),
            },
        },
        "client_s_dn" => client.subject.into(),
        "client_i_dn" => client.issuer.into(),
        "client_serial" => client.serial.into(),
        "client_fingerprint" => client.fingerprint.into(),
        "client_escaped_cert" => path::encode_argument(client.pem.as_bytes()).into(),
        "server_name" => tls.server_name.unwrap_or_default().into(),
        _ => Vec::new(),
    }
}
