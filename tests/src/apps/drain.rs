//! An HTTP server that goes away as a good one does in Kubernetes.
//!
//! SIGTERM and the news that a pod is no longer an endpoint travel apart, and neither waits for
//! the other. So the server goes on accepting for a while after SIGTERM, and says on each answer
//! that the connection ends with it; then it accepts nothing more, finishes what is in flight, and
//! ends.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::query::parameter;
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

/// An answer, known as a whole.
pub(super) type Answer = Response<Full<Bytes>>;

/// Carries the name of the pod that answered.
pub(super) const POD_HEADER: &str = "x-pod";

/// Serves until SIGTERM and then drains. `handle` gets each request and its sender.
pub(super) async fn serve<H, F>(
    listeners: Vec<TcpListener>,
    delay: Duration,
    handle: H,
) -> Result<()>
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let handle = Arc::new(handle);
    let closing = Arc::new(AtomicBool::new(false));
    let graceful = Arc::new(GracefulShutdown::new());
    let acceptors: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let accept =
                accept(listener, Arc::clone(&handle), Arc::clone(&closing), Arc::clone(&graceful));
            tokio::spawn(accept)
        })
        .collect();

    terminate.recv().await;
    closing.store(true, Ordering::Relaxed);
    tokio::time::sleep(delay).await;
    for acceptor in acceptors {
        acceptor.abort();
        // Ends with "cancelled", after which the acceptor's share of `graceful` is gone.
        let _ = acceptor.await;
    }
    if let Some(graceful) = Arc::into_inner(graceful) {
        graceful.shutdown().await;
    }
    Ok(())
}

/// Listens on a port in both families, or in IPv4 alone where the kernel has no IPv6.
pub(super) async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("listen on TCP port {port}")),
    }
}

/// As [`listen`], for UDP.
pub(super) async fn listen_udp(port: u16) -> Result<UdpSocket> {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(socket) => Ok(socket),
        Err(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("listen on UDP port {port}")),
    }
}

/// A peer as it would like to be called: IPv4 as IPv4.
pub(super) fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// The pod's own name.
pub(super) fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

async fn accept<H, F>(
    listener: TcpListener,
    handle: Arc<H>,
    closing: Arc<AtomicBool>,
    graceful: Arc<GracefulShutdown>,
) where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let pod = HeaderValue::from_str(&hostname()).ok();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("accept: {error}");
                // Out of descriptors, most likely: others have to end first.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (handle, closing, pod) = (Arc::clone(&handle), Arc::clone(&closing), pod.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let delay = parameter(request.uri().query(), "delay");
            let delay = delay.and_then(|text| text.parse().ok()).map(Duration::from_millis);
            let answer = handle(request, canonical(peer));
            let (closing, pod) = (Arc::clone(&closing), pod.clone());
            async move {
                if let Some(delay) = delay {
                    tokio::time::sleep(delay).await;
                }
                let mut answer = answer.await;
                if let Some(pod) = pod {
                    answer.headers_mut().insert(POD_HEADER, pod);
                }
                if closing.load(Ordering::Relaxed) {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that goes away is its own affair.
            let _ = connection.await;
        });
    }
}
