//! When a gateway says that clients may come.

use std::sync::Arc;

use fairway_ingress::gateway::{Gateway, Options};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::support::*;

/// It takes clients when it knows what to serve, and over TLS when it knows certificates.
#[tokio::test]
async fn a_gateway_that_kept_no_secrets_is_ready_when_it_has_been_told_them() {
    let certificate = Certificate::new("a.example");
    let whole = World::default().service("web", &[]).tls("a.example", "web", &certificate).model();
    let mut kept = (*whole).clone();
    kept.secrets = fairway_model::Objects::default();
    let plain = World::default().service("web", &[]).host("a.example", "web").model();
    for (first, next, at_once) in [
        (Arc::clone(&whole), None, true),
        (plain, None, true),
        (Arc::new(kept.clone()), Some(whole), false),
        // They are nowhere.
        (Arc::new(kept), None, false),
    ] {
        let gateway = Gateway::start(&Options::default()).await.unwrap();
        let ready = async || ask(gateway.admin, get("localhost", "/readyz")).await.0;
        let takes = async || {
            let connects = async |at| TcpStream::connect(at).await.is_ok();
            (connects(gateway.http).await, connects(gateway.https).await)
        };
        let (publish, models) = watch::channel(None);
        let (tell, told) = oneshot::channel::<()>();
        let (applied, mut in_force) = mpsc::unbounded_channel();
        let following = gateway.follow(models, async { _ = told.await }, |model| {
            applied.send(Arc::clone(model)).unwrap()
        });
        let asking = async {
            assert_eq!(ready().await, 503);
            assert_eq!(takes().await, (false, false));
            publish.send_replace(Some(first));
            in_force.recv().await.unwrap();
            assert_eq!(ready().await, if at_once { 200 } else { 503 });
            assert_eq!(takes().await, (true, at_once));
            if let Some(next) = next {
                publish.send_replace(Some(next));
                in_force.recv().await.unwrap();
                assert_eq!(ready().await, 200);
            }
            tell.send(()).unwrap();
            while ready().await != 200 {
                tokio::task::yield_now().await;
            }
            assert_eq!(takes().await, (true, true));
            drop(publish);
        };
        tokio::join!(following, asking).0.unwrap();
    }
}
