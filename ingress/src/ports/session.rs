//! A connection through a port that is passed on, and what is told of it when it is over.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use fairway_model::{ObjectName, Protocol};
use serde::Serialize;

use super::Port;
use crate::record::{Log, LogFormat, common, rfc3339};

/// What became of it, as nginx numbers that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// An endpoint had it.
    Done = 200,
    /// It did not begin as it had to.
    BadRequest = 400,
    /// No endpoint could be connected to.
    BadGateway = 502,
    /// There was no endpoint.
    Unavailable = 503,
}

/// A connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) port: Arc<Port>,
    log: Log,
    begun: Instant,
    pub(super) peer: SocketAddr,
    /// Who it comes from: the peer, or whoever that names.
    pub(super) client: SocketAddr,
    pub(super) service: Option<ObjectName>,
    /// The endpoint that was asked last.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) status: Status,
    /// Bytes of the client.
    pub(super) received: Arc<AtomicU64>,
    sent: u64,
    /// Why it ended, if not because both wanted that.
    pub(super) reason: Option<String>,
}

impl Session {
    pub(super) fn new(port: Arc<Port>, log: Log, peer: SocketAddr) -> Self {
        port.connections.fetch_add(1, Ordering::Relaxed);
        port.open.fetch_add(1, Ordering::Relaxed);
        Self {
            port,
            log,
            begun: Instant::now(),
            peer,
            client: peer,
            service: None,
            endpoint: None,
            status: Status::Unavailable,
            received: Arc::default(),
            sent: 0,
            reason: None,
        }
    }

    /// The client has sent so many bytes more.
    pub(super) fn receives(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.port.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The client was sent so many bytes more.
    pub(super) fn sent(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        self.sent += bytes;
        self.port.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    fn json(&self, now: SystemTime) -> String {
        let line = Line {
            time: rfc3339(now),
            client: self.client.ip(),
            peer: self.peer,
            protocol: self.port.protocol,
            port: self.port.number,
            status: self.status as u16,
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent,
            seconds: self.begun.elapsed().as_secs_f64(),
            service: self.service.as_ref().map(ToString::to_string),
            endpoint: self.endpoint,
            reason: self.reason.as_deref(),
        };
        let mut line = serde_json::to_string(&line).unwrap_or_default();
        line.push('\n');
        line
    }

    /// The format that ingress-nginx has for these by default.
    fn nginx(&self, now: SystemTime) -> String {
        format!(
            "[{}] [{}] {} {} {} {} {:.3}\n",
            self.client.ip(),
            common(now),
            self.port.protocol,
            self.status as u16,
            self.sent,
            self.received.load(Ordering::Relaxed),
            self.begun.elapsed().as_secs_f64()
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.port.open.fetch_sub(1, Ordering::Relaxed);
        if matches!(self.status, Status::BadGateway | Status::Unavailable) {
            self.port.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.log.say(|format, now| match format {
            LogFormat::Json => self.json(now),
            _ => self.nginx(now),
        });
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    client: IpAddr,
    peer: SocketAddr,
    protocol: Protocol,
    port: u16,
    status: u16,
    received: u64,
    sent: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_as_nginx_has_it() {
        let log = Log::start(LogFormat::Off).unwrap();
        let port = Arc::new(Port::new((Protocol::Tcp, 9000)));
        let mut session = Session::new(Arc::clone(&port), log, "192.0.2.1:4321".parse().unwrap());
        session.receives(7);
        session.sent(1000);
        session.client = "192.0.2.7:1".parse().unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_323_199_250);
        let line = session.nginx(then);
        assert!(
            line.starts_with("[192.0.2.7] [28/Feb/2026:23:59:59 +0000] TCP 503 1000 7 0.0"),
            "{line}"
        );
        let line: serde_json::Value = serde_json::from_str(&session.json(then)).unwrap();
        assert_eq!((&line["protocol"], &line["port"]), (&"TCP".into(), &9000.into()));
        assert_eq!(line["peer"], "192.0.2.1:4321");
        drop(session);
        let counts = [&port.connections, &port.open, &port.failed, &port.received, &port.sent];
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [1, 0, 1, 7, 1000]);
    }
}
