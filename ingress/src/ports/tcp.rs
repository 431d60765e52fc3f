//! Connections that are passed on as they are.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, error};

use super::Port;
use super::session::{Session, Status};
use crate::server::stream::proxy_header;
use crate::server::{PROXY_HEADER, Phase, closing, is_trusted};
use crate::state::Snapshot;
use crate::tunnel;
use crate::upstream::balance::Pending;
use crate::worker::Worker;

/// How long nobody may say anything.
const SILENCE: Duration = Duration::from_secs(600);

/// Takes connections until the phase changes.
pub(super) async fn accept(
    worker: Arc<Worker>,
    port: Arc<Port>,
    socket: OwnedFd,
    phase: watch::Receiver<Phase>,
) {
    let listener = match TcpListener::from_std(socket.into()) {
        Ok(listener) => listener,
        Err(error) => {
            error!(%error, "a worker cannot listen on port {port}");
            return;
        }
    };
    let room = Arc::new(Semaphore::new(worker.most_connections));
    let accepting = async {
        // It is never closed.
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((client, peer)) => {
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    worker.metrics.accepted.fetch_add(1, Ordering::Relaxed);
                    let session = Session::new(Arc::clone(&port), worker.log.clone(), peer);
                    let worker = Arc::clone(&worker);
                    tokio::spawn(async move {
                        let open = worker.open();
                        let mut session = session;
                        if let Err(error) = pass(&worker, client, &mut session).await {
                            session.reason = Some(error.to_string());
                        }
                        drop((session, open, place));
                    });
                }
                Err(error) => {
                    debug!(%error, "cannot take a connection");
                    // Out of descriptors, most likely: give others time to return some.
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = closing(phase) => {}
    }
}

async fn pass(
    worker: &Arc<Worker>,
    mut client: TcpStream,
    session: &mut Session,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let Port { protocol, number, .. } = *session.port;
    let stream = worker.state.peek().stream(protocol, number).cloned();
    let stream = stream.ok_or_else(|| io::Error::other("the port is passed on no more"))?;
    session.service = Some(stream.service.clone());
    let local = client.local_addr()?;
    let mut server = SocketAddr::new(local.ip().to_canonical(), local.port());
    if stream.accept_proxy {
        session.status = Status::BadRequest;
        let said = timeout(PROXY_HEADER, proxy_header(&mut client)).await??;
        // Whoever is not trusted may say what he wants.
        if let Some(said) = said.filter(|_| is_trusted(worker, session.peer.ip())) {
            (session.client, server) = (said.client, said.server);
        }
    }
    let (mut endpoint, pending) = connect(worker, session).await?;
    if stream.send_proxy {
        endpoint.write_all(proxy_line(session.client, server).as_bytes()).await?;
    }
    tunnel::both(Counted { inner: client, session }, endpoint, SILENCE).await?;
    drop(pending);
    Ok(())
}

/// Connects to an endpoint, or to another one if that fails.
async fn connect(worker: &Arc<Worker>, session: &mut Session) -> io::Result<(TcpStream, Pending)> {
    let Port { protocol, number, .. } = *session.port;
    let upstream = |snapshot: &Snapshot| {
        snapshot.stream(protocol, number).and_then(|stream| snapshot.behind(stream)).cloned()
    };
    session.status = Status::Unavailable;
    let connected = tunnel::connect(worker, upstream, |address| {
        session.endpoint = Some(address);
        session.status = Status::BadGateway;
    });
    let connected = connected.await?;
    session.status = Status::Done;
    Ok(connected)
}

/// The header of the PROXY protocol, version 1, for a connection of `client` to `server`.
fn proxy_line(client: SocketAddr, server: SocketAddr) -> String {
    let family = match (client.ip(), server.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return "PROXY UNKNOWN\r\n".to_owned(),
    };
    let (from, to) = (client.ip(), server.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), server.port())
}

/// A client's end; what passes is counted at once, as connections last.
struct Counted<'a> {
    inner: TcpStream,
    session: &'a mut Session,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
        me.session.receives(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = ready!(Pin::new(&mut me.inner).poll_write(cx, buf))?;
        me.session.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_told_whom_a_connection_is_of() {
        let line = |client: &str, server: &str| {
            proxy_line(client.parse().unwrap(), server.parse().unwrap())
        };
        assert_eq!(
            line("192.0.2.1:1234", "192.0.2.2:80"),
            "PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"
        );
        assert_eq!(
            line("[2001:db8::1]:1", "[2001:db8::2]:2"),
            "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"
        );
        assert_eq!(line("192.0.2.1:1234", "[2001:db8::2]:2"), "PROXY UNKNOWN\r\n");
    }
}
