//! What is told of a request when it is over: a line in the access log. What is counted of it is in `metrics`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use http::{StatusCode, Version};
use serde::Serialize;
use tracing::info;

use crate::few::Few;
use crate::headers;
use crate::message::{Head, Known as Name, Span};
use crate::metrics::Metrics;
use crate::route::{Quirk, Route, Target};
use crate::tls::seconds;

/// How requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line
    Json,
    /// As ingress-nginx does
    #[default]
    Nginx,
    /// Not at all
    Off,
}

/// Lines that wait to be written; more are counted and dropped, because no request waits for a terminal.
const QUEUE: usize = 8192;
/// Bytes of them.
const QUEUED: usize = 16 << 20;
/// Bytes of what a client says of itself or asks for that a line has; of more it has the beginning.
const TEXT: usize = 1024;
/// Lines a second about habits of ingress-nginx; all are counted.
const QUIRKS: u64 = 10;

/// The way to the access log.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    format: LogFormat,
    lines: Option<SyncSender<Said>>,
    quirks: Arc<Few>,
    dropped: Arc<AtomicU64>,
    /// Bytes that wait to be written.
    queued: Arc<AtomicUsize>,
}

/// What the thread that writes hears.
enum Said {
    Line(String),
    /// Somebody waits until all before is written.
    Flush(SyncSender<()>),
}

/// How long the end of the log is waited for: maybe nobody reads it.
const FLUSH: Duration = Duration::from_secs(1);

impl Log {
    /// Starts the thread that writes to standard output.
    pub(crate) fn start(format: LogFormat) -> std::io::Result<Self> {
        let mut log = Self {
            format,
            lines: None,
            quirks: Arc::default(),
            dropped: Arc::default(),
            queued: Arc::default(),
        };
        if format != LogFormat::Off {
            let (lines, queue) = sync_channel(QUEUE);
            let queued = Arc::clone(&log.queued);
            let thread = thread::Builder::new().name("access-log".to_owned());
            thread.spawn(move || write(&queue, &queued))?;
            log.lines = Some(lines);
        }
        Ok(log)
    }

    /// Says the line that is made, if any are wanted.
    pub(crate) fn say(&self, line: impl FnOnce(LogFormat, SystemTime) -> String) {
        let Some(lines) = &self.lines else { return };
        // Of several workers each may be one line beyond it.
        if self.queued.load(Ordering::Relaxed) < QUEUED {
            let line = line(self.format, SystemTime::now());
            let length = line.len();
            self.queued.fetch_add(length, Ordering::Relaxed);
            if lines.try_send(Said::Line(line)).is_ok() {
                return;
            }
            self.queued.fetch_sub(length, Ordering::Relaxed);
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until all that was said is written.
    pub(crate) fn flush(&self) {
        let Some(lines) = &self.lines else { return };
        let (done, written) = sync_channel(1);
        if lines.try_send(Said::Flush(done)).is_ok() {
            // Whoever does not read by then does not want to know.
            let _ = written.recv_timeout(FLUSH);
        }
    }

    /// Lines that nobody wrote.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write(queue: &Receiver<Said>, queued: &AtomicUsize) {
    let mut stdout = std::io::stdout();
    while let Ok(first) = queue.recv() {
        let (mut lines, mut waits) = (String::new(), None);
        let mut next = Some(first);
        while let Some(said) = next {
            match said {
                Said::Line(line) => lines.push_str(&line),
                Said::Flush(done) => waits = Some(done),
            }
            let more = waits.is_none() && lines.len() < 64 << 10;
            next = if more { queue.try_recv().ok() } else { None };
        }
        // If nobody reads it, nobody misses it.
        let _ = stdout.write_all(lines.as_bytes());
        let _ = stdout.flush();
        queued.fetch_sub(lines.len(), Ordering::Relaxed);
        // Only who has waited for too long does not hear it.
        let _ = waits.map(|done| done.try_send(()));
    }
}

/// What a line has of a text: where it is too long the beginning, and `…`.
fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT {
        return text.into();
    }
    let end = text.floor_char_boundary(TEXT);
    format!("{}…", &text[..end]).into()
}

/// A request, from its arrival to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) begun: Instant,
    /// As the client sent it, but for fields that are other ones for endpoints.
    pub(crate) head: Head,
    /// Of [`Self::head`], as all other places here.
    pub(crate) host: Option<Span>,
    pub(crate) peer: SocketAddr,
    pub(crate) client: IpAddr,
    agent: Option<Span>,
    referer: Option<Span>,
    id: Id,
    pub(crate) tls: bool,
    pub(crate) received: u64,
    pub(crate) status: StatusCode,
    pub(crate) sent: u64,
    pub(crate) route: Option<Arc<Route>>,
    /// The habit of ingress-nginx without which it would have gone elsewhere.
    pub(crate) quirk: Option<Quirk>,
    pub(crate) logged: bool,
    /// The endpoint that was asked last.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) endpoint_status: Option<StatusCode>,
    /// To the head of its answer.
    pub(crate) endpoint_time: Option<Duration>,
    /// When it was asked.
    pub(crate) asked: Option<Instant>,
    /// A canary has it.
    pub(crate) canary: bool,
    /// The client's trace.
    trace: Option<Span>,
    pub(crate) tries: u32,
    /// Why the answer is not a backend's, or not whole.
    pub(crate) reason: Option<String>,
}

/// What a request is known by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Id {
    /// As its client says.
    Said(Span),
    Own([u8; 32]),
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    client: IpAddr,
    peer: SocketAddr,
    host: &'a str,
    method: &'a str,
    target: &'a str,
    version: &'a str,
    tls: bool,
    status: u16,
    received: u64,
    sent: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "str::is_empty")]
    agent: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    referer: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_seconds: Option<f64>,
    #[serde(skip_serializing_if = "is_first")]
    tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    quirk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_first(tries: &u32) -> bool {
    *tries < 2
}

impl Record {
    /// Of a request that has just come.
    pub(crate) fn new(head: Head, peer: SocketAddr, tls: bool, id: Id) -> Self {
        Self {
            begun: Instant::now(),
            host: None,
            peer,
            client: peer.ip(),
            agent: head.fields.place(Name::UserAgent),
            referer: head.fields.place(Name::Referer),
            trace: headers::trace(&head.fields),
            id,
            tls,
            received: 0,
            status: StatusCode::OK,
            sent: 0,
            route: None,
            quirk: None,
            logged: true,
            endpoint: None,
            endpoint_status: None,
            endpoint_time: None,
            asked: None,
            canary: false,
            tries: 0,
            reason: None,
            head,
        }
    }

    /// The host that was asked for, if that was said, as it was sent.
    pub(crate) fn host(&self) -> Option<&str> {
        str::from_utf8(self.head.fields.bytes(self.host?)).ok()
    }

    /// What it is known by.
    pub(crate) fn id(&self) -> &str {
        let id = match &self.id {
            Id::Said(place) => self.head.fields.bytes(*place),
            Id::Own(id) => id,
        };
        str::from_utf8(id).unwrap_or_default()
    }

    fn text(&self, place: Option<Span>) -> Cow<'_, str> {
        place.map_or(Cow::Borrowed(""), |at| String::from_utf8_lossy(self.head.fields.bytes(at)))
    }

    /// It is over.
    pub(crate) fn finish(&self, log: &Log, metrics: &Metrics) {
        metrics.count(self, Instant::now());
        self.tell_quirk(log);
        if self.logged {
            log.say(|format, now| match format {
                LogFormat::Json => self.json(now),
                _ => self.nginx(now),
            });
        }
    }

    /// The canary's backend, as ingress-nginx writes it, if it is that which has the request.
    pub(crate) fn canary(&self) -> String {
        let branch = self.route.as_ref().filter(|_| self.canary);
        branch.and_then(|branch| branch.target.as_ref()).map_or_else(String::new, upstream)
    }

    /// Says that it depended on a habit of ingress-nginx, where no other line does.
    fn tell_quirk(&self, log: &Log) {
        let told = self.logged && log.format == LogFormat::Json;
        let Some(quirk) = self.quirk.filter(|_| !told) else { return };
        if !log.quirks.may(seconds(SystemTime::now()), QUIRKS) {
            return;
        }
        let ingress = self.route.as_ref().and_then(|route| route.ingress.as_ref());
        let ingress = ingress.map(ToString::to_string).unwrap_or_default();
        let method = cut(self.head.method.as_str());
        let (host, target) = (escaped(&self.text(self.host)), escaped(self.head.target()));
        info!(%quirk, %ingress, %method, %host, %target, id = %escaped(self.id()), "a habit of ingress-nginx decided");
    }

    fn json(&self, now: SystemTime) -> String {
        let route = self.route.as_deref();
        let said = [self.host, self.agent, self.referer, self.trace].map(|place| self.text(place));
        let [host, agent, referer, trace] = &said;
        let line = Line {
            time: rfc3339(now),
            client: self.client,
            peer: self.peer,
            host: &cut(host),
            method: &cut(self.head.method.as_str()),
            target: &cut(self.head.target()),
            version: version(self.head.version),
            tls: self.tls,
            status: self.status.as_u16(),
            received: self.received,
            sent: self.sent,
            seconds: self.begun.elapsed().as_secs_f64(),
            agent: &cut(agent),
            referer: &cut(referer),
            id: self.id(),
            trace: self.trace.map(|_| &**trace),
            ingress: route.and_then(|route| route.ingress.as_ref()).map(ToString::to_string),
            service: route.and_then(|route| route.target.as_ref()).map(|to| to.service.to_string()),
            endpoint: self.endpoint,
            endpoint_status: self.endpoint_status.map(|status| status.as_u16()),
            endpoint_seconds: self.endpoint_time.map(|time| time.as_secs_f64()),
            tries: self.tries,
            quirk: self.quirk.map(|quirk| quirk.to_string()),
            reason: self.reason.as_deref().map(cut),
        };
        let mut line = serde_json::to_string(&line).unwrap_or_default();
        line.push('\n');
        line
    }

    /// The format that ingress-nginx has by default.
    fn nginx(&self, now: SystemTime) -> String {
        let route = self.route.as_deref();
        let upstream = route.and_then(|route| route.target.as_ref()).map(upstream);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
        format!(
            "{} - - [{}] \"{} {} {}\" {} {} \"{}\" \"{}\" {} {} [{}] [{}] {} {} {} {} {}\n",
            self.client,
            common(now),
            cut(self.head.method.as_str()),
            escaped(self.head.target()),
            version(self.head.version),
            self.status.as_u16(),
            self.sent,
            dash(&self.text(self.referer)),
            dash(&self.text(self.agent)),
            self.received,
            seconds(self.begun.elapsed()),
            upstream.unwrap_or_default(),
            self.canary(),
            or_dash(self.endpoint.map(|endpoint| endpoint.to_string())),
            or_dash(self.endpoint_status.map(|_| self.sent.to_string())),
            or_dash(self.endpoint_time.map(seconds)),
            or_dash(self.endpoint_status.map(|status| status.as_u16().to_string())),
            escaped(self.id()),
        )
    }
}

/// As ingress-nginx names what is behind a Service.
fn upstream(target: &Target) -> String {
    format!("{}-{}-{}", target.service.namespace, target.service.name, target.port)
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { escaped(text) }
}

/// So that no client writes lines of its own, or long ones.
fn escaped(text: &str) -> String {
    let text = cut(text);
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => _ = write!(safe, "\\x{byte:02X}"),
            _ => safe.push(byte.into()),
        }
    }
    safe
}

/// Year, month, day, hour, minute and second of UTC.
fn civil(now: SystemTime) -> [u64; 6] {
    let seconds = seconds(now);
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Of years that begin in March, so that the day that some have and others have not is the last one.
    let days = days + 719_468;
    let era = days / 146_097;
    let day = days % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, after) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    [era * 400 + year + after, month, date, rest / 3600, rest / 60 % 60, rest % 60]
}

pub(crate) fn rfc3339(now: SystemTime) -> String {
    let [year, month, date, hour, minute, second] = civil(now);
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = since.subsec_millis();
    format!("{year}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

fn month_name(month: u64) -> &'static str {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    usize::try_from(month - 1).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"")
}

pub(crate) fn common(now: SystemTime) -> String {
    let [year, month, date, hour, minute, second] = civil(now);
    let month = month_name(month);
    format!("{date:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000")
}

/// As in `Date` (RFC 9110, 5.6.7).
pub(crate) fn http_date(now: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let [year, month, date, hour, minute, second] = civil(now);
    let day = usize::try_from(seconds(now) / 86400 % 7).ok().and_then(|day| DAYS.get(day));
    let (day, month) = (day.unwrap_or(&""), month_name(month));
    format!("{day}, {date:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use http::Method;

    use super::*;
    use crate::message::Fields;

    pub(crate) fn said(host: &str, target: &str, agent: &str, referer: &str) -> Record {
        let mut fields = Fields::from_iter([
            (Name::UserAgent, agent.as_bytes()),
            (Name::Referer, referer.as_bytes()),
        ]);
        let (target, host) = (fields.keep(target.as_bytes()), fields.keep(host.as_bytes()));
        let id = Id::Said(fields.keep(b"01\"23"));
        let head = Head::new(Method::GET, Version::HTTP_11, target, None, fields).unwrap();
        let peer = "192.0.2.1:4321".parse().unwrap();
        let record = Record::new(head, peer, true, id);
        let client = "192.0.2.7".parse().unwrap();
        let (status, reason) = (StatusCode::NOT_FOUND, Some("no rule".to_owned()));
        Record { host: Some(host), client, status, sent: 14, reason, ..record }
    }

    pub(crate) fn record() -> Record {
        said("a.example", "/x?\"\\y", "curl/8\" 200\u{e9}", "")
    }

    #[test]
    fn a_line_is_a_line_whatever_the_client_says() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_323_199_250);
        let line = record().nginx(then);
        let (before, after) = line.split_once(" 0 0.").unwrap();
        assert_eq!(
            before,
            r#"192.0.2.7 - - [28/Feb/2026:23:59:59 +0000] "GET /x?\x22\x5Cy HTTP/1.1" 404 14 "-" "curl/8\x22 200\xC3\xA9""#
        );
        assert!(after.ends_with(" [] [] - - - - 01\\x2223\n"), "{after}");
        let line: serde_json::Value = serde_json::from_str(&record().json(then)).unwrap();
        assert_eq!(line["time"], "2026-02-28T23:59:59.250Z");
        assert_eq!(line["target"], "/x?\"\\y");
        assert_eq!(line["reason"], "no rule");
        assert!(line.get("endpoint").is_none());
    }

    #[test]
    fn lines_that_wait_are_few_and_short() {
        let long = "é\"".repeat(40_000);
        let record = said(&long, &long, &long, &long);
        let record = Record { reason: Some(long), ..record };
        let now = SystemTime::now();
        assert!(record.nginx(now).len() < 16 << 10 && record.json(now).len() < 16 << 10);
        let line: serde_json::Value = serde_json::from_str(&record.json(now)).unwrap();
        assert!(line["target"].as_str().is_some_and(|target| target.ends_with("\"…")), "{line}");

        // Nobody reads them.
        let (lines, _queue) = sync_channel(QUEUE);
        let log = Log { lines: Some(lines), ..Log::start(LogFormat::Off).unwrap() };
        let line = "x".repeat(QUEUED / 8);
        for _ in 0..10 {
            log.say(|_, _| line.clone());
        }
        assert_eq!((log.dropped(), log.queued.load(Ordering::Relaxed)), (2, QUEUED));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_habit_that_decides_is_told_in_one_line_or_another() {
        let told = |format, logged| {
            let (lines, quirk) = (Lines::default(), Some(Quirk::AddedSlash));
            let record = Record { quirk, logged, ..said("a\nb", "/", "", "") };
            let log = Log { format, ..Log::start(LogFormat::Off).unwrap() };
            let writer = lines.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
            tracing::subscriber::with_default(subscriber.finish(), || record.tell_quirk(&log));
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert!(text.is_empty() || text.contains("a\\x0Ab"), "{text}");
            text.lines().count()
        };
        assert_eq!((told(LogFormat::Nginx, true), told(LogFormat::Json, false)), (1, 1));
        assert_eq!(told(LogFormat::Json, true), 0, "it is in its line");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let day = |days: u64| civil(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86400));
        assert_eq!(day(0), [1970, 1, 1, 0, 0, 0]);
        assert_eq!(day(11_016)[..3], [2000, 2, 29]);
        assert_eq!(day(11_017)[..3], [2000, 3, 1]);
        assert_eq!(day(20_818)[..3], [2026, 12, 31]);
        assert_eq!(day(20_819)[..3], [2027, 1, 1]);
    }

    #[test]
    fn dates_of_http_have_a_day() {
        for (seconds, date) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
        ] {
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(http_date(then), date);
        }
    }
}
