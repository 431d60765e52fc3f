//! One process takes over from another.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ChildStderr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use fairway_model::{Protocol, Stream};
use rustix::process::{geteuid, kill_process_group};

use super::*;

/// A process that has said where it serves, and its log. Whatever it has started ends with it.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    at: [String; 3],
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Running {
    /// With HTTP, TLS and what it tells of itself at these addresses, and what to serve from a feed or a folder.
    fn start(folder: &Path, source: &str, at: [&str; 3], workers: usize) -> Self {
        Self::start_that_waits(folder, source, at, workers, 0)
    }

    /// The same, and it serves for so many seconds when it is told to stop.
    fn start_that_waits(
        folder: &Path,
        source: &str,
        at: [&str; 3],
        workers: usize,
        wait: u32,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-ingress"));
        let kind = if source.starts_with("http:") { "--feed" } else { "--manifests" };
        command.args(["run", kind, source, "--workers", &workers.to_string()]);
        command.args(["--http", at[0], "--https", at[1], "--admin", at[2]]);
        command.args(["--drain-wait", &wait.to_string(), "--drain-timeout", "20"]);
        command.args(["--access-log", "off"]);
        command.arg("--state-dir").arg(folder);
        command.env("NOTIFY_SOCKET", folder.join("notify"));
        command.stderr(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut gateway = Self { child, log, at: Default::default() };
        let line = gateway.says("the gateway runs");
        gateway.at = ["http", "https", "admin"].map(|name| field(&line, name).unwrap());
        gateway
    }

    /// Another one at the same place.
    fn next(&self, folder: &Path, source: &str, workers: usize) -> Self {
        let at = self.at.each_ref().map(|address| address.as_str());
        Self::start(folder, source, at, workers)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// The next line with this in it.
    fn says(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "{text}: it has ended");
        }
        line
    }

    fn is_ready(&self) -> bool {
        get(&self.at[2], "localhost", "/readyz").starts_with("HTTP/1.1 200")
    }

    fn ends(&mut self) {
        let mut ended = None;
        wait_for("the end of the old one", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.unwrap().success());
    }
}

/// Clients that come one after the other, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(addresses: &[String]) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |address: &String| {
            let (address, stop, answered) =
                (address.clone(), Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let answer = get(&address, "a.example", "/");
                    assert!(answer.ends_with("word"), "{address}: {answer:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let threads = addresses.iter().map(client).collect();
        Self { stop, answered, threads }
    }

    /// Until so many more are answered.
    fn goes_on(&self, more: usize) {
        let before = self.answered.load(Ordering::SeqCst);
        wait_for("answers", || {
            let failed = self.threads.iter().any(JoinHandle::is_finished);
            failed || self.answered.load(Ordering::SeqCst) >= before + more
        });
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("every client is answered");
        }
    }
}

/// With a port that is passed on to the same backend.
fn with_port(port: u16) -> Arc<Model> {
    let stream = Stream {
        protocol: Protocol::Tcp,
        port,
        service: ObjectName::new("shop", "web"),
        backend_port: BackendPort::Number(80),
        ..Stream::default()
    };
    let settings = fairway_model::Gateway { streams: vec![stream], ..Default::default() };
    let mut model = Model::clone(&model(backend()));
    model.gateways.insert(settings);
    Arc::new(model)
}

const ANYWHERE: [&str; 3] = ["127.0.0.1:0"; 3];

#[test]
fn no_client_notices_that_another_process_takes_over() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let (_publisher, models) = watch::channel(Some(with_port(port.port())));
    let feed = Feed::start(models);
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Running::start(folder.path(), &feed.url(), ANYWHERE, 2);
    wait_for("ready", || gateway.is_ready());
    let load = Load::start(&[gateway.at[0].clone(), gateway.at[0].clone(), port.to_string()]);
    load.goes_on(20);
    for workers in [2, 1, 3, 2, 1, 1, 4, 2, 3, 2] {
        let mut next = gateway.next(folder.path(), &feed.url(), workers);
        assert_eq!(next.at, gateway.at);
        gateway.ends();
        next.says("has taken over");
        gateway = next;
        assert!(gateway.is_ready());
        load.goes_on(20);
    }

    // One that is killed before it knows what to serve.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    drop(gateway.next(folder.path(), &silent, 2));
    gateway.says("goes on");
    load.goes_on(20);
    assert!(gateway.is_ready());
    let mut next = gateway.next(folder.path(), &feed.url(), 2);
    gateway.ends();
    next.says("has taken over");
    load.goes_on(20);
    load.stop();

    // What a killed one leaves behind is in nobody's way.
    drop(next);
    assert!(folder.path().join("handover").exists());
    let last = Running::start(folder.path(), &feed.url(), ANYWHERE, 1);
    wait_for("ready", || last.is_ready());
}

#[test]
fn a_folder_of_manifests_is_read_by_one_process_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (manifests, state) = (folder.path().join("manifests"), folder.path().join("state"));
    std::fs::create_dir(&manifests).unwrap();
    let source = manifests.to_str().unwrap();
    let mut gateway = Running::start(&state, source, ANYWHERE, 1);
    wait_for("ready", || gateway.is_ready());
    for _ in 0..2 {
        // One that has nothing to read fails.
        drop(gateway.next(&state, &format!("{source}/missing"), 1));
        gateway.says("goes on");
        let mut next = gateway.next(&state, source, 1);
        gateway.ends();
        next.says("has taken over");
        assert!(next.is_ready());
        gateway = next;
    }
}

#[test]
fn a_gateway_that_was_told_to_stop_is_relieved_and_follows_until_then() {
    let (publisher, models) = watch::channel(Some(model(backend())));
    let feed = Feed::start(models);
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Running::start_that_waits(folder.path(), &feed.url(), ANYWHERE, 1, 300);
    wait_for("ready", || gateway.is_ready());
    kill_process(gateway.pid(), Signal::TERM).unwrap();
    wait_for("not ready", || !gateway.is_ready());
    publisher.send_replace(Some(Arc::new(Model::default())));
    wait_for("the new model", || get(&gateway.at[0], "a.example", "/").contains(" 404 "));
    publisher.send_replace(Some(model(backend())));
    // Whoever comes is told what the feed has told this one, and no less.
    wait_for("the model again", || get(&gateway.at[0], "a.example", "/").ends_with("word"));
    let mut next = gateway.next(folder.path(), &feed.url(), 2);
    gateway.ends();
    next.says("has taken over");
    assert!(next.is_ready() && get(&next.at[0], "a.example", "/").ends_with("word"));
}

#[test]
fn who_is_still_served_by_a_gateway_that_was_relieved_is_not_cut_by_the_first_signal() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let (_publisher, models) = watch::channel(Some(with_port(port.port())));
    let feed = Feed::start(models);
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Running::start(folder.path(), &feed.url(), ANYWHERE, 1);
    wait_for("ready", || gateway.is_ready());
    let mut client = TcpStream::connect(port).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let open = format!("_connections{{port=\"{}\",protocol=\"TCP\"}} 1", port.port());
    wait_for("the client", || get(&gateway.at[2], "localhost", "/metrics").contains(&open));
    let mut next = gateway.next(folder.path(), &feed.url(), 1);
    next.says("has taken over");
    gateway.says("another gateway has taken over");
    kill_process(gateway.pid(), Signal::TERM).unwrap();
    gateway.says("told once more");
    client.write_all(b"ask").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("word"), "{answer}");
    drop(client);
    gateway.ends();
}

#[test]
fn sockets_are_for_the_same_user_alone() {
    if !geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root, to be somebody else");
        eprintln!("skipped: needs root, to be somebody else");
        return;
    }
    let (_publisher, models) = watch::channel(None);
    let feed = Feed::start(models);
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Running::start(folder.path(), &feed.url(), ANYWHERE, 1);
    // Even if the folder were open to all.
    let all = || std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), all()).unwrap();
    std::fs::set_permissions(folder.path().join("handover"), all()).unwrap();
    let ask = "socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, pack_sockaddr_un($ARGV[0])) \
        or die $!; print sysread(S, $heard, 4)";
    let mut perl = Command::new("perl");
    perl.args(["-MSocket", "-e", ask]).arg(folder.path().join("handover"));
    let said = perl.uid(65534).gid(65534).current_dir("/").output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(String::from_utf8_lossy(&said.stdout), "0");
    gateway.says("of user 65534");
}

#[test]
fn a_signal_replaces_the_program_and_the_service_manager_hears_of_it() {
    let (_publisher, models) = watch::channel(Some(model(backend())));
    let feed = Feed::start(models);
    let folder = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hears = || {
        let mut said = [0; 100];
        let length = manager.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..length]).into_owned()
    };
    // A signal starts it with the same arguments: ports have to be known.
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let at = [free(), free(), free()].map(|address| address.to_string());
    let at = at.each_ref().map(|address| address.as_str());
    let mut gateway = Running::start(folder.path(), &feed.url(), at, 1);
    assert_eq!(hears(), "READY=1");
    wait_for("ready", || gateway.is_ready());
    let load = Load::start(&[gateway.at[0].clone()]);
    load.goes_on(5);
    kill_process(gateway.pid(), Signal::HUP).unwrap();
    assert_eq!(hears(), "READY=1");
    let other = hears();
    let other: i32 = other.strip_prefix("MAINPID=").expect(&other).parse().unwrap();
    gateway.ends();
    load.goes_on(5);
    load.stop();
    assert!(gateway.is_ready());
    kill_process(Pid::from_raw(other).unwrap(), Signal::TERM).unwrap();
    wait_for("the end of the new one", || TcpStream::connect(&gateway.at[0]).is_err());
}
