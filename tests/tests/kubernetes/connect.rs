//! How the control plane gets to an API server that lets nobody in without a proof: as a pod, and as kubectl does.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_kubernetes::connect::Connect;
use fairway_kubernetes::source::{self, Source};
use fairway_tests::apiserver::{ApiServer, Authority};
use fairway_tests::binaries::binaries;
use fairway_tests::may_run;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{PACE, PATIENCE, shop};

/// What every API server's certificate is for, among other names.
const NAME: &str = "kubernetes.default.svc";

/// A server behind TLS that wants the token "sesame", or a certificate.
async fn locked(authority: &Authority, names: &[&str]) -> ApiServer {
    let server = ApiServer::start_tls(authority, names).await.unwrap();
    server.behave(|behaviour| behaviour.token = Some("sesame".into()));
    shop(&server);
    server
}

/// The program as in a pod: `given` is what the kubelet mounts, in a mount namespace of its own. The folder in which
/// others would be is covered.
async fn in_pod(given: &Path, state: &Path, server: &ApiServer, more: &[&str]) -> Child {
    let script = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
                  mount --bind \"$GIVEN\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(binaries().unwrap().join("fairway-controlplane"));
    command.args(["run", "--kubernetes", "--listen", "127.0.0.1:0", "--state-dir"]).arg(state);
    command.args(more).env("GIVEN", given).env_remove("FAIRWAY_LOG");
    let (host, port) = server.address();
    command.env("KUBERNETES_SERVICE_HOST", host).env("KUBERNETES_SERVICE_PORT", port);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

/// Reads the log until a line has these words in it.
async fn says(running: &mut Child, words: &str) {
    let mut log = BufReader::new(running.stderr.take().unwrap()).lines();
    let mut all = Vec::new();
    let found = timeout(PATIENCE, async {
        while let Some(line) = log.next_line().await.unwrap() {
            all.push(line);
            if all.last().is_some_and(|line| line.contains(words)) {
                return true;
            }
        }
        false
    });
    assert!(found.await.unwrap_or(false), "never: {words}: {all:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_let_in_by_what_it_is_given() {
    if !may_run("connect") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let given = |name: &str, ca: &Authority, token: &str| -> PathBuf {
        let given = folder.path().join(name);
        std::fs::create_dir(&given).unwrap();
        for (file, text) in
            [("ca.crt", ca.pem().as_str()), ("token", token), ("namespace", "kube-system")]
        {
            std::fs::write(given.join(file), text).unwrap();
        }
        given
    };
    let good = given("good", &authority, "sesame");
    let state = folder.path().join("state");

    // By the cluster's address of it, and by one that needs no network of pods.
    let here = locked(&authority, &["127.0.0.1"]).await;
    says(&mut in_pod(&good, &state, &here, &[]).await, "leads: writes status").await;
    let there = locked(&authority, &[NAME]).await;
    let url = there.url();
    let more = ["--api-server", url.as_str()];
    says(&mut in_pod(&good, &state, &there, &more).await, "leads: writes status").await;

    let stranger = given("stranger", &authority, "poppy");
    says(&mut in_pod(&stranger, &state, &there, &more).await, "401 Unauthorized").await;
    let fooled = given("fooled", &other, "sesame");
    says(&mut in_pod(&fooled, &state, &there, &more).await, "invalid peer certificate").await;
    // It is not what it is called.
    let elsewhere = locked(&authority, &["elsewhere.example"]).await;
    let url = elsewhere.url();
    let more = ["--api-server", url.as_str()];
    says(&mut in_pod(&good, &state, &elsewhere, &more).await, "invalid peer certificate").await;
}

/// Follows by a kubeconfig with this CA and user.
async fn follow(
    folder: &Path,
    server: &ApiServer,
    ca: &Authority,
    user: serde_json::Value,
) -> Source {
    let cluster = json!({"server": server.url(),
        "certificate-authority-data": STANDARD.encode(ca.pem())});
    let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": cluster}], "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}]});
    let path = folder.join("config");
    std::fs::write(&path, file.to_string()).unwrap();
    let connect = Connect { kubeconfig: Some(path), ..Connect::default() };
    let client = connect.client().await.unwrap();
    source::start(&client, source::Options { pace: PACE, ..Default::default() }).unwrap()
}

async fn complains(source: &mut Source, words: &str) {
    let found = source
        .problems
        .wait_for(|problems| problems.iter().any(|problem| problem.to_string().contains(words)));
    let found = timeout(PATIENCE, found).await.map(drop);
    assert!(found.is_ok(), "nobody said {words:?}: {:?}", source.problems.borrow());
}

async fn follows(source: &mut Source) {
    let found = timeout(PATIENCE, source.model.wait_for(Option::is_some)).await.map(drop);
    assert!(found.is_ok(), "{:?}", source.problems.borrow());
}

#[tokio::test]
async fn a_kubeconfig_lets_in_by_certificate_and_by_token() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let server = locked(&authority, &["127.0.0.1"]).await;
    let (certificate, key) = authority.certificate(&[]).unwrap();
    let me = json!({"client-certificate-data": STANDARD.encode(certificate),
        "client-key-data": STANDARD.encode(key)});
    follows(&mut follow(folder.path(), &server, &authority, me.clone()).await).await;
    complains(&mut follow(folder.path(), &server, &other, me).await, "invalid peer certificate")
        .await;
    let nobody = follow(folder.path(), &server, &authority, json!({})).await;
    complains(&mut { nobody }, "401 Unauthorized").await;

    let file = folder.path().join("token");
    std::fs::write(&file, "sesame").unwrap();
    let mut by_token = follow(folder.path(), &server, &authority, json!({"tokenFile": file})).await;
    follows(&mut by_token).await;
}

/// The server takes tokens back, as it does with those that expire.
#[tokio::test]
async fn whoever_is_shut_out_for_a_while_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let server = locked(&authority, &["127.0.0.1"]).await;
    let user = json!({"token": "sesame"});
    let mut source = follow(folder.path(), &server, &authority, user).await;
    follows(&mut source).await;
    let before = source.model.borrow().clone();
    server.behave(|behaviour| behaviour.token = Some("poppy".into()));
    server.end_watches();
    complains(&mut source, "401 Unauthorized").await;
    // What is known stays.
    assert_eq!(*source.model.borrow(), before);
    server.behave(|behaviour| behaviour.token = Some("sesame".into()));
    let content = timeout(PATIENCE, source.problems.wait_for(Vec::is_empty)).await.map(drop);
    assert!(content.is_ok(), "{:?}", source.problems.borrow());
}
