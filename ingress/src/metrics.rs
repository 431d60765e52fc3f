//! What a worker counts, as Prometheus is told of it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::record::Record;
use crate::route::{Quirk, Route, Table};
use crate::series::{Known, Place};

/// How long series of a route that is gone are told: so that Prometheus hears how they ended.
const GONE: Duration = Duration::from_secs(120);

/// Upper bounds in seconds.
const SECONDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds in bytes.
const BYTES: [f64; 8] = [10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];

/// What a worker has counted. Others look at it only when Prometheus asks.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// The series that there may be, of all workers.
    known: Arc<Known>,
    series: Mutex<AllSeries>,
    /// Connections so far.
    pub(crate) accepted: AtomicU64,
    /// Connections now.
    pub(crate) open: AtomicU64,
    /// Requests that were no requests, by why.
    violations: Mutex<HashMap<String, u64>>,
    /// Requests that depended on a habit of ingress-nginx, by which.
    quirks: Mutex<HashMap<Quirk, u64>>,
    /// Handshakes that failed.
    pub(crate) handshakes_failed: AtomicU64,
    /// Requests that were sent to another endpoint.
    pub(crate) retries: AtomicU64,
}

#[derive(Debug, Default)]
struct AllSeries {
    all: Vec<Series>,
    /// Where they are, by labels.
    by_labels: HashMap<String, usize>,
    /// The same of late, so that not each request's labels are written. They keep their routes, so that no other one
    /// has the same address; [`Metrics::forget`] lets go of them.
    recent: HashMap<Recent, (Option<usize>, Option<Arc<Route>>)>,
    /// The last one of them: most often it is the next one, too.
    last: Option<(Recent, Option<usize>)>,
    /// What is no other series'.
    others: Series,
}

/// All that decides about labels: the address of a route, a method, a status.
type Recent = (usize, &'static str, StatusCode);

impl AllSeries {
    fn find(&mut self, record: &Record, known: &Known) -> Option<usize> {
        let route = record.route.as_ref();
        let method = method(record);
        let recent = (route.map_or(0, |route| Arc::as_ptr(route).addr()), method, record.status);
        if let Some((last, at)) = self.last
            && last == recent
        {
            return at;
        }
        if let Some((at, _)) = self.recent.get(&recent) {
            self.last = Some((recent, *at));
            return *at;
        }
        let labels = labels(record, method);
        let at = self.by_labels.get(&labels).copied().or_else(|| {
            let place = known.place(&labels)?;
            let at = self.all.len();
            self.all.push(Series {
                detail: place.detailed.then(Box::default),
                _place: Some(place),
                route: route.map(|route| (route.host.clone(), route.identity())),
                ..Series::default()
            });
            self.by_labels.insert(labels, at);
            Some(at)
        });
        self.recent.insert(recent, (at, route.cloned()));
        at
    }

    /// Drops those of routes that have been gone for long. Answers whether there were any.
    fn drop_gone(&mut self, table: &Table, now: Instant) -> bool {
        for series in &mut self.all {
            match &series.route {
                Some((host, route)) if !table.has_route(host, *route) => {
                    series.gone.get_or_insert(now);
                }
                _ => series.gone = None,
            }
        }
        let goes = |series: &Series| series.gone.is_some_and(|gone| now >= gone + GONE);
        if !self.all.iter().any(goes) {
            return false;
        }
        let before = std::mem::take(&mut self.all);
        let mut before: Vec<_> = before.into_iter().map(Some).collect();
        self.by_labels.retain(|_, at| {
            let Some(series) = before[*at].take().filter(|series| !goes(series)) else {
                return false;
            };
            *at = self.all.len();
            self.all.push(series);
            true
        });
        true
    }
}

#[derive(Clone, Debug, Default)]
struct Series {
    requests: u64,
    /// If it is one that has any.
    detail: Option<Box<Detail>>,
    _place: Option<Place>,
    /// Of requests that had one: the host's name as rules have it, and the route's identity.
    route: Option<(String, u64)>,
    /// Since when that is not there.
    gone: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Detail {
    seconds: Histogram<13>,
    header_seconds: Histogram<13>,
    response_seconds: Histogram<13>,
    received: Histogram<8>,
    sent: Histogram<8>,
}

impl Series {
    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        if let Some(theirs) = &other.detail {
            let mine = self.detail.get_or_insert_default();
            mine.seconds.merge(&theirs.seconds);
            mine.header_seconds.merge(&theirs.header_seconds);
            mine.response_seconds.merge(&theirs.response_seconds);
            mine.received.merge(&theirs.received);
            mine.sent.merge(&theirs.sent);
        }
    }
}

#[derive(Clone, Debug)]
struct Histogram<const N: usize> {
    buckets: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [0; N], count: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&mut self, bounds: &[f64; N], value: f64) {
        if let Some(at) = bounds.iter().position(|bound| value <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
    }

    fn write(&self, text: &mut String, name: &str, labels: &str, bounds: &[f64; N]) {
        let mut below = 0;
        for (count, bound) in self.buckets.iter().zip(bounds) {
            below += count;
            _ = writeln!(text, "{PREFIX}{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        _ = writeln!(text, "{PREFIX}{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        _ = writeln!(text, "{PREFIX}{name}_sum{{{labels}}} {}", self.sum);
        _ = writeln!(text, "{PREFIX}{name}_count{{{labels}}} {}", self.count);
    }
}

/// Dashboards are there for these names.
pub(crate) const PREFIX: &str = "nginx_ingress_controller_";

impl Metrics {
    /// Of a worker whose series are those of others.
    pub(crate) fn new(known: Arc<Known>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Counts what was no request.
    pub(crate) fn violation(&self, why: &str) {
        let mut violations = lock(&self.violations);
        *violations.entry(why.to_owned()).or_default() += 1;
    }

    pub(crate) fn count(&self, record: &Record, now: Instant) {
        if let Some(quirk) = record.quirk {
            *lock(&self.quirks).entry(quirk).or_default() += 1;
        }
        let mut series = lock(&self.series);
        let at = series.find(record, &self.known);
        let AllSeries { all, others, .. } = &mut *series;
        let one = match at.and_then(|at| all.get_mut(at)) {
            Some(own) => {
                own.requests += 1;
                own.detail.as_mut()
            }
            None => {
                others.requests += 1;
                None
            }
        };
        let one = one.unwrap_or_else(|| others.detail.get_or_insert_default());
        let since = |then| now.saturating_duration_since(then).as_secs_f64();
        one.seconds.add(&SECONDS, since(record.begun));
        if let Some(time) = record.endpoint_time {
            one.header_seconds.add(&SECONDS, time.as_secs_f64());
        }
        if let Some(asked) = record.asked {
            one.response_seconds.add(&SECONDS, since(asked));
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody sends 2^52 bytes")]
        let (received, sent) = (record.received as f64, record.sent as f64);
        one.received.add(&BYTES, received);
        one.sent.add(&BYTES, sent);
    }

    /// Lets go of routes that may not be any more.
    pub(crate) fn forget(&self, table: &Table) {
        let mut series = lock(&self.series);
        (series.recent, series.last) = Default::default();
        if series.drop_gone(table, Instant::now()) {
            self.known.tidy();
        }
    }

    /// All workers' in Prometheus' text format; those with ingress-nginx's names say whose they are by the labels `own`.
    pub(crate) fn render(all: &[&Self], own: &str) -> String {
        let mut series: HashMap<String, Series> = HashMap::new();
        let mut others = Series::default();
        let mut violations: HashMap<String, u64> = HashMap::new();
        let mut quirks: BTreeMap<Quirk, u64> = BTreeMap::new();
        for one in all {
            // Copied at once: whoever serves requests waits for this lock.
            let (all, by_labels) = {
                let series = lock(&one.series);
                others.merge(&series.others);
                (series.all.clone(), series.by_labels.clone())
            };
            for (labels, at) in by_labels {
                series.entry(labels).or_default().merge(&all[at]);
            }
            for (quirk, count) in &*lock(&one.quirks) {
                *quirks.entry(*quirk).or_default() += count;
            }
            for (why, count) in &*lock(&one.violations) {
                *violations.entry(why.clone()).or_default() += count;
            }
        }
        if others.requests > 0 || others.detail.is_some() {
            series.insert("overflow=\"true\"".to_owned(), others);
        }
        let mut series: Vec<_> =
            series.into_iter().map(|(labels, one)| (format!("{own},{labels}"), one)).collect();
        series.sort_by(|one, other| one.0.cmp(&other.0));
        let sum = |field: fn(&Self) -> &AtomicU64| -> u64 {
            all.iter().map(|one| field(one).load(Ordering::Relaxed)).sum()
        };
        let mut text = String::new();
        about(&mut text, PREFIX, "requests", "counter", "Requests that are over");
        for (labels, one) in &series {
            _ = writeln!(text, "{PREFIX}requests{{{labels}}} {}", one.requests);
        }
        type Write = fn(&Detail, &mut String, &str, &str);
        let histograms: [(&str, &str, Write); 6] = [
            (
                "request_duration_seconds",
                "From the first byte of a request to the last of its answer",
                |one, text, name, labels| {
                    one.seconds.write(text, name, labels, &SECONDS);
                },
            ),
            (
                "header_duration_seconds",
                "From asking an endpoint to the head of its answer",
                |one, text, name, labels| {
                    one.header_seconds.write(text, name, labels, &SECONDS);
                },
            ),
            (
                "response_duration_seconds",
                "From asking an endpoint to the last byte of its answer",
                |one, text, name, labels| {
                    one.response_seconds.write(text, name, labels, &SECONDS);
                },
            ),
            ("request_size", "Bytes of requests' bodies", |one, text, name, labels| {
                one.received.write(text, name, labels, &BYTES);
            }),
            ("response_size", "Bytes of answers' bodies", |one, text, name, labels| {
                one.sent.write(text, name, labels, &BYTES);
            }),
            ("bytes_sent", "The same, under its older name", |one, text, name, labels| {
                one.sent.write(text, name, labels, &BYTES);
            }),
        ];
        for (name, help, write) in histograms {
            about(&mut text, PREFIX, name, "histogram", help);
            for (labels, one) in &series {
                if let Some(one) = &one.detail {
                    write(one, &mut text, name, labels);
                }
            }
        }
        let process = "nginx_ingress_controller_nginx_process_";
        about(&mut text, process, "connections", "gauge", "Clients' connections");
        _ = writeln!(
            text,
            "{process}connections{{{own},state=\"active\"}} {}",
            sum(|one| &one.open)
        );
        about(&mut text, process, "connections_total", "counter", "Clients' connections so far");
        _ = writeln!(
            text,
            "{process}connections_total{{{own},state=\"accepted\"}} {}",
            sum(|one| &one.accepted)
        );
        let fairway = "fairway_ingress_";
        about(
            &mut text,
            fairway,
            "handshakes_failed_total",
            "counter",
            "TLS handshakes that failed",
        );
        _ = writeln!(
            text,
            "{fairway}handshakes_failed_total {}",
            sum(|one| &one.handshakes_failed)
        );
        about(&mut text, fairway, "retries_total", "counter", "Requests sent to another endpoint");
        _ = writeln!(text, "{fairway}retries_total {}", sum(|one| &one.retries));
        about(
            &mut text,
            fairway,
            "quirks_total",
            "counter",
            "Requests that depended on a habit of ingress-nginx",
        );
        for (quirk, count) in quirks {
            _ = writeln!(text, "{fairway}quirks_total{{quirk=\"{quirk}\"}} {count}");
        }
        about(
            &mut text,
            fairway,
            "refused_bytes_total",
            "counter",
            "Connections cut because of what was no request",
        );
        let mut violations: Vec<_> = violations.into_iter().collect();
        violations.sort();
        for (why, count) in violations {
            _ = writeln!(text, "{fairway}refused_bytes_total{{reason=\"{why}\"}} {count}");
        }
        text
    }
}

/// The lines before a metric.
pub(crate) fn about(text: &mut String, prefix: &str, name: &str, kind: &str, help: &str) {
    _ = writeln!(text, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}");
}

/// One of a few, so that no client makes series.
fn method(record: &Record) -> &'static str {
    match record.head.method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// Those of ingress-nginx. The host is that of the rule, so that no client makes series.
fn labels(record: &Record, method: &str) -> String {
    let route = record.route.as_deref();
    let ingress = route.and_then(|route| route.ingress.as_ref());
    let mut text = String::with_capacity(160);
    let mut label = |name: &str, value: &str| {
        let comma = if text.is_empty() { "" } else { "," };
        _ = write!(text, "{comma}{name}=\"{}\"", quoted(value));
    };
    label("canary", &record.canary());
    label("host", route.map_or("", |route| &route.host));
    label("ingress", ingress.map_or("", |name| &name.name));
    label("method", method);
    label("namespace", ingress.map_or("", |name| &name.namespace));
    label("path", route.map_or("", |route| &route.path));
    label("service", route.map_or("", |route| &route.backend.service));
    label("status", record.status.as_str());
    text
}

/// As it stands between the quotes of a label's value.
pub(crate) fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, said};

    #[test]
    fn workers_are_added_up_and_no_client_makes_series() {
        let (one, other) = (Metrics::default(), Metrics::default());
        one.count(&record(), Instant::now());
        let mut odd = record();
        odd.head.method = "X\"".parse().unwrap_or(Method::TRACE);
        one.count(&odd, Instant::now());
        other.count(&said("somebody's", "/", "", ""), Instant::now());
        other.violation("not a chunk");
        let text = Metrics::render(&[&one, &other], "own=\"\"");
        let series = |line: &str| assert!(text.lines().any(|have| have == line), "{line}: {text}");
        let labels = "namespace=\"\",path=\"\",service=\"\",status=\"404\"";
        series(&format!(
            "nginx_ingress_controller_requests{{own=\"\",canary=\"\",host=\"\",ingress=\"\",method=\"GET\",{labels}}} 2"
        ));
        series(&format!(
            "nginx_ingress_controller_requests{{own=\"\",canary=\"\",host=\"\",ingress=\"\",method=\"OTHER\",{labels}}} 1"
        ));
        series("fairway_ingress_refused_bytes_total{reason=\"not a chunk\"} 1");
        assert!(
            text.contains(
                "nginx_ingress_controller_request_duration_seconds_bucket{own=\"\",canary="
            )
        );
    }

    #[test]
    fn series_are_few_and_go_with_their_routes() {
        let metrics = Metrics::new(Arc::new(Known::new(2, 1)));
        let with = |status| {
            let mut record = record();
            record.status = status;
            record
        };
        for status in [StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY] {
            metrics.count(&with(status), Instant::now());
        }
        let values = |name: &str| -> Vec<String> {
            let text = Metrics::render(&[&metrics], "");
            let begin = format!("{PREFIX}{name}{{");
            let lines = text.lines().filter(|line| line.starts_with(&begin));
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .map(|(_, value)| value.to_owned())
                .collect()
        };
        assert_eq!(values("requests"), ["1", "1", "1"], "the last are all others");
        assert_eq!(values("request_duration_seconds_count"), ["1", "2"]);

        let now = Instant::now();
        let mut series = lock(&metrics.series);
        let ingress = serde_json::json!({
            "name": { "namespace": "shop", "name": "web" },
            "rules": [{ "host": "shop.test", "paths": [
                { "path": "/", "type": "Prefix", "backend": { "service": "web", "port": 80 } },
            ]}],
        });
        let model = serde_json::from_value(serde_json::json!({ "ingresses": [ingress] }));
        let table = Table::compile(&model.unwrap(), "").0;
        let route = table.routes()[0].1.identity();
        series.all[0].route = Some(("shop.test".to_owned(), route));
        assert!(!series.drop_gone(&table, now + GONE));
        let gone = Table::default();
        assert!(!series.drop_gone(&gone, now) && !series.drop_gone(&gone, now + GONE / 2));
        assert!(series.drop_gone(&gone, now + GONE));
        let left: Vec<_> = series.by_labels.values().copied().collect();
        assert_eq!((left, series.all.len()), (vec![0], 1));
        drop(series);
        assert_eq!(values("requests").len(), 2);
    }
}
