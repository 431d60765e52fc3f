//! Requests of the gateway's own: to who says whether a client may pass, to mirrors, for pages of errors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairway_model::{BackendPort, BackendTls, ObjectName};
use http::uri::Scheme;
use http::{Method, Uri};
use tokio::time::timeout;

use crate::body::{Begun, Download, Progress};
use crate::message::{Fields, Known, Response};
use crate::route::Target;
use crate::state::Snapshot;
use crate::upstream::Ask;
use crate::upstream::balance::Method as Choose;
use crate::upstream::pool::{Connection, Destination, Identity, Unanswered};
use crate::worker::Worker;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// For the head of the answer, and between two parts of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something to ask.
pub(crate) struct Question<'a> {
    pub(crate) method: Method,
    /// `http://…` or `https://…`
    pub(crate) url: &'a str,
    /// `None`: that of the URL.
    pub(crate) host: Option<String>,
    /// Without those of single connections.
    pub(crate) fields: Fields,
    pub(crate) body: Begun,
}

/// Asks whoever has the URL.
pub(crate) async fn url(
    worker: &Arc<Worker>,
    snapshot: &Snapshot,
    question: Question<'_>,
) -> Result<Response<Download<Connection>>, String> {
    let uri: Uri = question.url.parse().map_err(|_| "the address is no URL".to_owned())?;
    let authority = uri.authority().ok_or("the address has no host")?;
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let name = authority.host().trim_matches(['[', ']']);
    let address = resolve(worker, snapshot, name, port).await?;
    let tls = if secure {
        let tls = BackendTls { server_name: true, ..BackendTls::default() };
        Some(snapshot.clients.get(&tls, name, false, &snapshot.model)?)
    } else {
        None
    };
    let by_tls = tls.as_ref().map(|(config, name)| (config.number, name.clone()));
    let identity = Identity::new(address, false, by_tls);
    let destination = Destination {
        identity: Arc::new(identity),
        tls: tls.map(|(config, _)| config),
        patience: CONNECT,
    };
    let host = question.host.as_deref().unwrap_or(authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let Question { method, fields, body, .. } = question;
    ask(worker, &destination, Asked { method, path, host, fields, body }).await
}

/// Asks some endpoint of a Service.
pub(crate) async fn target(
    worker: &Arc<Worker>,
    snapshot: &Snapshot,
    target: &Target,
    host: &str,
    fields: Fields,
) -> Result<Response<Download<Connection>>, String> {
    let endpoint = snapshot.upstream(target, false);
    let endpoint = endpoint.and_then(|upstream| upstream.choose(Choose::Ewma, &[], worker.dice()));
    let endpoint = endpoint.ok_or_else(|| format!("{} has no endpoints", target.service))?;
    let identity = Arc::clone(&endpoint.plain);
    let destination = Destination { identity, tls: None, patience: CONNECT };
    let (method, path, body) = (Method::GET, "/", Begun::empty());
    ask(worker, &destination, Asked { method, path, host, fields, body }).await
}

struct Asked<'a> {
    method: Method,
    path: &'a str,
    host: &'a str,
    fields: Fields,
    body: Begun,
}

async fn ask(
    worker: &Arc<Worker>,
    destination: &Destination,
    asked: Asked<'_>,
) -> Result<Response<Download<Connection>>, String> {
    let Asked { method, path, host, mut fields, mut body } = asked;
    fields.remove(Known::Expect);
    fields.remove(Known::ContentLength);
    fields.set(Known::Host, host);
    let asks = Ask { method: &method, target: path, fields: &fields, uri: None };
    let mut fresh = false;
    loop {
        let there = body.is_there();
        let take = || worker.pool.take(&destination.identity, there);
        let waiting = (!fresh).then(take).flatten();
        let mut connection = match waiting {
            Some(connection) => connection,
            None => {
                let made = worker.pool.connect(destination, there).await;
                made.map_err(|error| error.to_string())?
            }
        };
        let now = Instant::now();
        let sent = timeout(PATIENCE, async {
            if connection.is_direct() {
                connection.ask(&asks, body.whole(), &Progress::new(now)).await
            } else {
                connection.send(&asks, body.upload(now).0).await
            }
        })
        .await;
        match sent.map_err(|_| "no answer in time".to_owned())? {
            Ok(response) => {
                return Ok(response.map(|body| Download::new(body, PATIENCE, connection)));
            }
            Err(Unanswered::Unsent(upload, _)) if connection.used => {
                upload.into_iter().for_each(|upload| body.restore(*upload));
            }
            Err(Unanswered::Closed(_))
                if connection.used && (method.is_idempotent() && body.is_whole()) =>
            {
                // Closed at the same moment, most likely.
                fresh = true;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Where a name leads. Those of the cluster's Services are known here.
async fn resolve(
    worker: &Worker,
    snapshot: &Snapshot,
    name: &str,
    port: u16,
) -> Result<SocketAddr, String> {
    if let Some(service) = of_cluster(name) {
        let known = snapshot.any_endpoint(&service, &BackendPort::Number(port), worker.dice());
        return known.ok_or_else(|| format!("Service {service} has no endpoints at port {port}"));
    }
    if let Ok(address) = name.parse() {
        return Ok(SocketAddr::new(address, port));
    }
    let sought = name.to_owned();
    let look_up = async move {
        let found = tokio::net::lookup_host((&*sought, port)).await;
        let mut found = found.map_err(|error| format!("{sought}: {error}"))?;
        found.next().map(|found| found.ip()).ok_or_else(|| format!("{sought} has no address"))
    };
    let address = worker.names.find(name, look_up).await?;
    Ok(SocketAddr::new(address, port))
}

/// `web.shop.svc`, `web.shop.svc.cluster.local`
fn of_cluster(name: &str) -> Option<ObjectName> {
    let mut labels = name.trim_end_matches('.').split('.');
    let (service, namespace) = (labels.next()?, labels.next()?);
    let rest: Vec<_> = labels.collect();
    let ours = rest == ["svc"] || rest == ["svc", "cluster", "local"];
    ours.then(|| ObjectName::new(namespace, service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        let auth = Some(ObjectName::new("sso", "auth"));
        for name in ["auth.sso.svc", "auth.sso.svc.cluster.local", "auth.sso.svc.cluster.local."] {
            assert_eq!(of_cluster(name), auth, "{name}");
        }
        for name in ["auth", "auth.sso", "auth.example.com", "auth.sso.svc.example.com"] {
            assert_eq!(of_cluster(name), None, "{name}");
        }
    }
}
