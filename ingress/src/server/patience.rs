//! How long clients are waited for that say nothing, or only the beginning of something.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_model::{BackendTls, Model};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{Phase, accept};
use crate::record::{Log, LogFormat};
use crate::state::State;
use crate::upstream::tls::Configs;
use crate::worker::Worker;

/// Serves a host, until what is returned is dropped.
async fn serve(tls: bool, proxy: bool) -> (SocketAddr, watch::Sender<Phase>) {
    let path =
        json!({ "path": "/", "type": "Prefix", "backend": { "service": "web", "port": 80 } });
    let model: Model = serde_json::from_value(json!({
        "gateways": [{ "proxyProtocol": proxy }],
        "services": [{
            "name": { "namespace": "shop", "name": "web" },
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80 }],
        }],
        "ingresses": [{
            "name": { "namespace": "shop", "name": "web" },
            "rules": [{ "host": "a", "paths": [path] }],
        }],
    }))
    .unwrap();
    let state = Arc::new(State::new("", Default::default()).unwrap());
    state.apply(&Arc::new(model));
    let worker = Worker::new(state, Log::start(LogFormat::Off).unwrap(), 16).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (phase, phases) = watch::channel(Phase::Serving);
    tokio::spawn(accept(Arc::new(worker), listener, tls, phases));
    (address, phase)
}

/// A client that says this, and what it hears before its connection ends, and when that is.
async fn hear(tls: bool, proxy: bool, says: &[u8]) -> (String, Duration) {
    let (address, _phase) = serve(tls, proxy).await;
    let begun = Instant::now();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(says).await.unwrap();
    let mut heard = Vec::new();
    let end = timeout(Duration::from_secs(600), client.read_to_end(&mut heard)).await;
    // It may be cut.
    let _ = end.expect("an end");
    (String::from_utf8_lossy(&heard).into_owned(), begun.elapsed())
}

/// Its name, whether with TLS and with PROXY headers; what is said, how the answer begins, and the seconds until the end.
type Case<'a> = ((&'a str, bool, bool), &'a [u8], &'a str, u64);

// Where nobody has anything to do, time passes by itself.
#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_for_ever() {
    // A TLS client's first words, but for the most of them.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhal";
    let half = [&preface[..], b"\0\0\x01\x01\x01\0\0\0\x01\x82"].concat();
    let cases: [Case; 11] = [
        (("no PROXY header", false, true), b"", "", 5),
        (("half a PROXY header", true, true), b"PROXY TCP4 192.0.2.1 ", "", 5),
        (("no handshake", true, false), b"", "", 10),
        (("half a handshake", true, false), &hello, "", 10),
        (("half a head", false, false), b"GET / HTTP/1.1\r\nHost: a\r\n", "", 30),
        (("half a method", false, false), b"P", "", 30),
        (("no request", false, false), b"", "", 75),
        (
            ("no other request", false, false),
            b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
            "HTTP/1.1 404 ",
            75,
        ),
        (("half a body", false, false), post, "HTTP/1.1 408 ", 60),
        // It is told to go, and does not listen.
        (("no stream", false, false), preface, "\0\0", 75),
        (("half a head in a stream", false, false), &half, "\0\0", 75),
    ];
    for ((name, tls, proxy), says, answer, seconds) in cases {
        let (heard, after) = hear(tls, proxy, says).await;
        assert!(heard.starts_with(answer), "{name}: {heard:?}");
        let earliest = Duration::from_secs(seconds);
        let latest = earliest + Duration::from_secs(if answer == "\0\0" { 25 } else { 3 });
        assert!((earliest..latest).contains(&after), "{name}: after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_who_agreed_upon_http_2_and_does_not_speak_it() {
    let (address, _phase) = serve(true, false).await;
    let (nothing, tls) = (Model::default(), BackendTls::default());
    let configs = Configs::new(&crate::tls::provider(), None, &nothing);
    let (config, name) = configs.get(&tls, "a", true, &nothing).unwrap();
    for (says, seconds) in [(&b""[..], 75), (b"PRI * HTTP/2.0", 30)] {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&config.tls));
        let mut client = connector.connect(name.clone(), stream).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let begun = Instant::now();
        client.write_all(says).await.unwrap();
        client.flush().await.unwrap();
        let mut heard = Vec::new();
        let end = client.read_to_end(&mut heard);
        let _ = timeout(Duration::from_secs(600), end).await.expect("an end");
        let earliest = Duration::from_secs(seconds);
        let after = begun.elapsed();
        assert!((earliest..earliest + Duration::from_secs(3)).contains(&after), "after {after:?}");
    }
}
