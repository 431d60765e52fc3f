//! Ingresses and the Secrets that they name: each is followed by its name, and no other is looked at.

use fairway_controlplane::ingress::Settings;
use fairway_model::ObjectName;
use serde_json::json;

use super::*;

fn run_options() -> source::Options {
    source::Options { pace: PACE, ingresses: Settings::of_folder(), ..source::Options::default() }
}

fn ingress(name: &str, class: &str, secret: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {
            "nginx.ingress.kubernetes.io/auth-type": "basic",
            "nginx.ingress.kubernetes.io/auth-secret": secret,
            "nginx.ingress.kubernetes.io/proxy-body-size": "8m"}},
        "spec": {"ingressClassName": class, "rules": [{"host": format!("{name}.example"), "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}})
}

fn users(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "namespace": "shop"}, "stringData": {"auth": text}})
}

/// The names by which Secrets were asked for.
fn names(run: &Run) -> Vec<String> {
    let mut asked = run.server.asked();
    asked.retain(|asked| asked.resource == "secrets");
    assert!(asked.iter().all(|asked| ["list", "watch"].contains(&asked.verb)), "{asked:?}");
    let names = asked.iter().map(|asked| {
        let name = asked.query.get("fieldSelector").and_then(|text| text.split_once('='));
        name.expect("all Secrets were asked for").1.to_owned()
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// Parity with a folder, for both ways of listing.
#[tokio::test]
async fn a_folder_makes_the_same_of_ingresses_and_what_they_name() {
    for streams in [true, false] {
        let mut run = Run::with(run_options(), |server| {
            server.behave(|behaviour| behaviour.streams_lists = streams);
            shop(server);
            server.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
                "metadata": {"name": "web", "annotations": {"fairway.dev/gateway": "edge"}},
                "spec": {"controller": "k8s.io/ingress-nginx"}}));
            server.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "fairway-gateway", "namespace": "kube-system"},
                "data": {"use-gzip": "true"}}));
            server.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "tcp-services", "namespace": "ingress-nginx"},
                "data": {"5432": "shop/db:80"}}));
            server.put(ingress("a", "web", "users"));
            server.put(ingress("b", "other", "others"));
            server.put(users("users", "me:$apr1$x"));
            server.put(users("others", "you:$apr1$y"));
            server.put(users("unnamed", "nobody:$apr1$z"));
        })
        .await;
        let model = run.settles().await;
        let found = (model.ingresses.len(), model.secrets.len(), model.gateways.len());
        assert_eq!(found, (1, 1, 1));
        let made = model.ingresses.values().next().unwrap();
        assert_eq!((made.gateway.as_deref(), made.nginx), (Some("edge"), true));
        // Nothing was ever published with a route whose users were not known.
        for model in run.published.lock().unwrap().iter() {
            assert_eq!(model.secrets.len(), 1);
        }
        assert_eq!(names(&run), ["users"]);

        run.server.put(users("users", "me:$apr1$new"));
        run.settles().await;
        run.server.put(ingress("b", "web", "others"));
        let model = run.settles().await;
        assert_eq!(model.secrets.len(), 2);
        assert_eq!(names(&run), ["others", "users"]);
        // Nobody names it any more: it is not followed, and gone from the model.
        run.server.delete("Ingress", "shop", "a");
        let model = run.settles().await;
        assert_eq!(model.secrets.keys().collect::<Vec<_>>(), [&ObjectName::new("shop", "others")]);
        run.server.put(users("users", "me:$apr1$newer"));
        run.server.put(ingress("a", "web", "users"));
        run.settles().await;
    }
}

/// A Secret that may not be read keeps nothing back but itself.
#[tokio::test]
async fn a_secret_that_may_not_be_read_is_named_and_tried_again() {
    let mut run = Run::with(run_options(), |server| {
        shop(server);
        server.put(ingress("a", "nginx", "users"));
        server.put(users("users", "me:$apr1$x"));
        server.fail(fail("watch", "secrets", 4, What::Refuse(403, "Forbidden")));
    })
    .await;
    run.complains("Secret shop/users: the API server cannot be followed: 403").await;
    run.settles().await;
    run.is_content().await;
    // Its contents are nobody's business.
    run.server.put(users("users", "hush"));
    run.complains("Secret shop/users: a line of it is not USER:HASH").await;
    let problems = run.source.problems.borrow().clone();
    assert!(problems.iter().all(|problem| !problem.to_string().contains("hush")), "{problems:?}");
    let model = run.source.model.borrow().clone().unwrap();
    assert_eq!(model.secrets.len(), 1, "what it had before stays");
}
