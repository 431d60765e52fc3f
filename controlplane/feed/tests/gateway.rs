//! A gateway as a subscriber: what it is sent, and what it leaves on its disk.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairway_feed::client::{self, Follower, GatewayOptions, Sealed, SealingKey, Status};
use fairway_feed::server;
use fairway_feed::tickets::TicketKeys;
use fairway_model::{
    Ingress, IngressTls, Model, Node, Object, ObjectName, Secret, Sensitive, Service, TicketKey,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);
/// Stands in everything that must not be on a disk.
const SECRET: &str = "5ec2e7";

type Publisher = watch::Sender<Option<Arc<Model>>>;

async fn serve(publisher: &Publisher, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = server::Options { coalesce: Duration::ZERO, ..server::Options::default() };
    tasks.spawn(server::serve(listener, server::Plain, publisher.subscribe(), options));
    address
}

#[tokio::test]
async fn gateways_are_given_the_keys_of_tickets() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(Some(Arc::default()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tickets = Some(TicketKeys::random().unwrap());
    let options = server::Options { tickets, ..server::Options::default() };
    let mut tasks = JoinSet::new();
    tasks.spawn(server::serve(listener, server::Plain, publisher.subscribe(), options));
    let mut follower = follow(address, folder.path(), None);
    assert_eq!(*first(&mut follower).await, Model::default());
    publisher.send_replace(whole(1).map(|model| {
        let mut model = Model::clone(&model);
        model.ticket_keys = Default::default();
        Arc::new(model)
    }));
    let has_keys = |model: &Option<Arc<Model>>| {
        model.as_ref().is_some_and(|model| model.ticket_keys.len() == 3 && model.secrets.len() == 1)
    };
    timeout(PATIENCE, follower.model.wait_for(has_keys)).await.unwrap().unwrap();
}

fn follow(address: SocketAddr, folder: &Path, key: Option<u8>) -> Follower {
    follow_as("edge/a", address, folder, key)
}

fn follow_as(name: &str, address: SocketAddr, folder: &Path, key: Option<u8>) -> Follower {
    let secrets = key.map(|key| Sealed {
        file: folder.join("secrets"),
        key: SealingKey::new(&[key; 32]).unwrap(),
    });
    let options = GatewayOptions {
        endpoints: vec![format!("http://{address}")],
        gateway: name.parse().unwrap(),
        snapshot: folder.join("snapshot"),
        secrets,
    };
    client::follow_as_gateway(options, client::Plain).unwrap()
}

/// Whether the secrets of the models that gateways have are there.
#[derive(Clone, Copy)]
enum With {
    Secrets,
    Nothing,
}

/// A host with TLS, as the gateway of this name is to have it. `version` is its certificate's.
fn part(version: u8, with: With) -> Model {
    let name = |name: &str| ObjectName::new("shop", name);
    let tls = IngressTls { hosts: vec!["shop.example".into()], secret: Some(name("tls")) };
    let ingress = Ingress { name: name("web"), gateway: Some("edge".into()), ..Ingress::default() };
    let routes = [
        Object::Service(Service { name: name("web"), ..Service::default() }),
        Object::Ingress(Ingress { tls: vec![tls], ..ingress }),
    ];
    let secret = Secret {
        name: name("tls"),
        certificate: Some(format!("{SECRET} certificate {version}")),
        key: Some(Sensitive::new(format!("{SECRET} key"))),
        ..Secret::default()
    };
    let key = Sensitive::new(SECRET.repeat(11)[..64].to_owned());
    let tickets = TicketKey { name: SECRET.repeat(6)[..32].to_owned(), since: 0, key };
    let secrets = match with {
        With::Secrets => vec![Object::Secret(secret), Object::TicketKey(tickets)],
        With::Nothing => Vec::new(),
    };
    routes.into_iter().chain(secrets).collect()
}

/// That, and what is none of its business.
fn whole(version: u8) -> Option<Arc<Model>> {
    let node = Object::Node(Node { name: "n1".into(), ..Node::default() });
    let other = Object::Secret(Secret {
        name: ObjectName::new("shop", "other"),
        key: Some(Sensitive::new(SECRET)),
        ..Secret::default()
    });
    Some(Arc::new(part(version, With::Secrets).objects().chain([node, other]).collect()))
}

/// The secrets without what is in memory alone.
fn kept(version: u8) -> Model {
    let objects = part(version, With::Secrets);
    objects.objects().filter(|object| !matches!(object, Object::TicketKey(_))).collect()
}

async fn has(follower: &mut Follower, wanted: &Model) {
    let fits = |model: &Option<Arc<Model>>| model.as_deref() == Some(wanted);
    let found = timeout(PATIENCE, follower.model.wait_for(fits)).await.is_ok();
    assert!(found, "{:?}", follower.model.borrow());
}

/// The first model that there is, which is the disk's where nobody serves.
async fn first(follower: &mut Follower) -> Arc<Model> {
    let found = timeout(PATIENCE, follower.model.wait_for(Option::is_some)).await.unwrap();
    found.unwrap().clone().unwrap()
}

/// Waits for files to be there, and again once they are others.
async fn written(folder: &Path, names: &[&str], before: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let read = names.iter().map(|name| std::fs::read(folder.join(name)));
        if let Ok(files) = read.collect::<Result<Vec<_>, _>>()
            && files.iter().zip(before).all(|(file, before)| file != before)
        {
            return files;
        }
        assert!(Instant::now() < deadline, "never written: {names:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// No file of the folder, whoever made it, tells a secret.
fn nothing_is_told(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let told = bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
        assert!(!told, "{}", path.display());
    }
}

#[tokio::test]
async fn without_a_key_secrets_are_in_memory_alone() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(whole(1));
    let mut tasks = JoinSet::new();
    let address = serve(&publisher, &mut tasks).await;
    let mut follower = follow(address, folder.path(), None);
    has(&mut follower, &part(1, With::Secrets)).await;
    written(folder.path(), &["snapshot"], &[]).await;
    nothing_is_told(folder.path());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    drop(follower);

    // Without the control plane there are routes; with it, secrets as well, though nothing else has changed.
    tasks.shutdown().await;
    let mut follower = follow(address, folder.path(), None);
    assert_eq!(*first(&mut follower).await, part(1, With::Nothing));
    drop(follower);
    let address = serve(&publisher, &mut tasks).await;
    let mut follower = follow(address, folder.path(), None);
    has(&mut follower, &part(1, With::Secrets)).await;
}

#[tokio::test]
async fn with_a_key_secrets_are_there_before_the_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(whole(1));
    let mut tasks = JoinSet::new();
    let address = serve(&publisher, &mut tasks).await;
    let mut follower = follow(address, folder.path(), Some(b'a'));
    has(&mut follower, &part(1, With::Secrets)).await;
    let before = written(folder.path(), &["secrets", "snapshot"], &[]).await;
    publisher.send_replace(whole(2));
    has(&mut follower, &part(2, With::Secrets)).await;
    // The routes are the same.
    written(folder.path(), &["secrets"], &before[..1]).await;
    nothing_is_told(folder.path());
    drop(follower);
    tasks.shutdown().await;

    let mut follower = follow(address, folder.path(), Some(b'a'));
    assert_eq!(*first(&mut follower).await, kept(2));
    drop(follower);

    // Another replica would begin with the same. Of another group it has nothing that is its own.
    let mut follower = follow_as("edge/b", address, folder.path(), Some(b'a'));
    assert_eq!(*first(&mut follower).await, kept(2));
    drop(follower);
    let mut follower = follow_as("inner/a", address, folder.path(), Some(b'a'));
    let tried = |status: &Status| status.error.is_some();
    timeout(PATIENCE, follower.status.wait_for(tried)).await.unwrap().unwrap();
    assert_eq!(*follower.model.borrow(), None);
    drop(follower);

    // Of another key, and damaged: routes without secrets, until they are sent again.
    let mut follower = follow(address, folder.path(), Some(b'b'));
    assert_eq!(*first(&mut follower).await, part(2, With::Nothing));
    drop(follower);
    std::fs::write(folder.path().join("secrets"), "damaged").unwrap();
    let mut follower = follow(address, folder.path(), Some(b'a'));
    assert_eq!(*first(&mut follower).await, part(2, With::Nothing));
    drop(follower);
    let address = serve(&publisher, &mut tasks).await;
    let mut follower = follow(address, folder.path(), Some(b'a'));
    has(&mut follower, &part(2, With::Secrets)).await;
    written(folder.path(), &["secrets"], &[b"damaged".to_vec()]).await;
}
