//! A disk that takes no more: alone in its process, as the limit that stands for it is the process's.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairway_feed::client::{self, Follower};
use fairway_feed::{Facts, server};
use fairway_model::{Model, Node, Object};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of a file.
const ROOM: u64 = 64 << 10;
/// What comes to a process that writes beyond its limit, and would end it.
const SIGXFSZ: i32 = 25;

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// So many nodes.
fn model(nodes: usize) -> Arc<Model> {
    let node = |number| Node { name: format!("node-{number:0100}"), ..Node::default() };
    Arc::new((0..nodes).map(|number| Object::Node(node(number))).collect())
}

fn follow(address: &str, folder: &Path) -> Follower {
    let options = client::Options {
        endpoints: vec![format!("http://{address}")],
        node: "n1".into(),
        snapshot: folder.join("snapshot"),
        facts: watch::channel(Facts::default()).1,
    };
    client::follow(options).unwrap()
}

async fn has(follower: &mut Follower, wanted: &Model) {
    let fits = |model: &Option<Arc<Model>>| model.as_deref() == Some(wanted);
    timeout(PATIENCE, follower.model.wait_for(fits)).await.unwrap().unwrap();
}

/// Files in the folder, once they are as wanted.
async fn files(folder: &Path, wanted: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = std::fs::read_dir(folder).unwrap();
        let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let found: Vec<_> = found.collect();
        if wanted(&found) {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn allow(bytes: Option<u64>) {
    let limit = rustix::process::Rlimit { current: bytes, ..getrlimit(Resource::Fsize) };
    setrlimit(Resource::Fsize, limit).unwrap();
}

#[tokio::test]
async fn a_disk_that_is_full_in_the_middle_of_a_write_keeps_what_was_there() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).init();
    // Whoever hears of it goes on, and the write fails.
    let _caught = signal(SignalKind::from_raw(SIGXFSZ)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let models = watch::Sender::new(Some(model(1)));
    let serve = |listener: TcpListener, models: &watch::Sender<_>| {
        let mut task = JoinSet::new();
        let options = server::Options::default();
        task.spawn(server::serve(listener, server::Plain, models.subscribe(), options));
        task
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = serve(listener, &models);
    let mut follower = follow(&address, path);
    has(&mut follower, &model(1)).await;
    files(path, |found| found == ["snapshot"]).await;
    let kept = std::fs::read(path.join("snapshot")).unwrap();
    drop(follower);

    // What the control plane says counts, whether or not it can be kept.
    allow(Some(ROOM));
    let mut follower = follow(&address, path);
    let large = model(1000);
    models.send_replace(Some(Arc::clone(&large)));
    has(&mut follower, &large).await;
    let deadline = Instant::now() + PATIENCE;
    while !log.text().contains("cannot keep the last good state") {
        assert!(Instant::now() < deadline, "it is never said");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Nothing is left of the part that was written.
    files(path, |found| found == ["snapshot"]).await;
    drop((follower, task));

    // A start without the control plane has the old state, whole.
    let mut follower = follow(&address, path);
    has(&mut follower, &model(1)).await;
    assert_eq!(std::fs::read(path.join("snapshot")).unwrap(), kept);
    drop(follower);

    // With room again, the new one is kept.
    allow(None);
    let listener = TcpListener::bind(&address).await.unwrap();
    let _task = serve(listener, &models);
    let mut follower = follow(&address, path);
    has(&mut follower, &large).await;
    let deadline = Instant::now() + PATIENCE;
    while std::fs::metadata(path.join("snapshot")).unwrap().len() < ROOM {
        assert!(Instant::now() < deadline, "it is never kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
