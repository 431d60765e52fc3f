//! A client that behaves in all kinds of ways, and a reconciler that is this file.

use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::*;

/// Limits that a test can wait for.
const SHORT: Limits = Limits { idle: Duration::from_secs(5), line: Duration::from_millis(200) };

/// A socket in a folder of its own, and what arrives at it.
struct Agent {
    folder: tempfile::TempDir,
    commands: mpsc::Receiver<Command>,
}

impl Agent {
    async fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = bind(&folder.path().join("agent.sock")).await.expect("a socket");
        let (sender, commands) = mpsc::channel(8);
        tokio::spawn(accept(listener, super::Agent { commands: sender, dns: None }, limits));
        Self { folder, commands }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("agent.sock")).await.expect("a connection")
    }

    async fn request(&mut self) -> (Request, oneshot::Sender<Response>) {
        let command = timeout(Duration::from_secs(10), self.commands.recv()).await;
        match command.expect("a request in time").expect("a request") {
            Command::Request(request, answer) => (*request, answer),
            _ => panic!("nobody else sends commands"),
        }
    }
}

/// All that the agent says until it hangs up.
async fn rest(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    let read = timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await;
    read.expect("the agent hangs up in time").expect("text");
    text
}

async fn line(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\n") {
        let byte = timeout(Duration::from_secs(10), stream.read_u8()).await;
        bytes.push(byte.expect("an answer in time").expect("an answer"));
    }
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let mut agent = Agent::start(LIMITS).await;
    let mut stream = agent.connect().await;
    for _ in 0..2 {
        stream
            .write_all(b"{\"version\": 1, \"request\": \"nodeConfig\"}\n")
            .await
            .expect("written");
        let (request, answer) = agent.request().await;
        assert_eq!(request, Request::NodeConfig);
        answer.send(Response::Ok).expect("somebody who waits");
        assert_eq!(line(&mut stream).await, "{\"response\":\"ok\"}\n");
    }
    stream.write_all(b"{\"version\": 9, \"request\": \"nodeConfig\"}\n").await.expect("written");
    let refusal = line(&mut stream).await;
    assert!(refusal.contains("version 9") && refusal.contains("\"tryAgain\":true"), "{refusal}");
    drop(stream);
}

#[tokio::test]
async fn half_a_request_is_not_waited_for() {
    let agent = Agent::start(SHORT).await;
    let begin = Instant::now();
    let mut stream = agent.connect().await;
    stream.write_all(b"{\"request\":").await.expect("written");
    assert!(rest(&mut stream).await.contains("was not finished"));
    assert!(begin.elapsed() >= SHORT.line);

    let mut stream = agent.connect().await;
    stream.write_all(b"{\"request\":").await.expect("written");
    stream.shutdown().await.expect("half closed");
    assert!(rest(&mut stream).await.contains("ended within a request"));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_hung_up_on() {
    let limits = Limits { idle: Duration::from_millis(200), ..SHORT };
    let agent = Agent::start(limits).await;
    let mut stream = agent.connect().await;
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn a_request_has_a_size() {
    let agent = Agent::start(LIMITS).await;
    let mut stream = agent.connect().await;
    let size = usize::try_from(MAX_REQUEST).expect("a size");
    stream.write_all(&vec![b' '; size]).await.expect("written");
    assert!(rest(&mut stream).await.contains("longer than"));
}

#[tokio::test]
async fn who_does_not_take_the_answer_is_hung_up_on() {
    let mut agent = Agent::start(SHORT).await;
    let mut stream = agent.connect().await;
    stream.write_all(b"{\"request\": \"nodeConfig\"}\n").await.expect("written");
    let (_, answer) = agent.request().await;
    let message = "x".repeat(8 << 20);
    answer.send(refuse(message)).expect("somebody who waits");
    let end = Instant::now() + Duration::from_secs(10);
    // As long as there is somebody to say something to.
    while stream.try_write(b" ").is_ok() {
        assert!(Instant::now() < end, "the agent waits for ever");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_back() {
    let mut agent = Agent::start(LIMITS).await;
    let mut stream = agent.connect().await;
    stream.write_all(b"{\"request\": \"nodeConfig\"}\n").await.expect("written");
    let (_, mut answer) = agent.request().await;
    assert!(!answer.is_closed());
    drop(stream);
    timeout(Duration::from_secs(10), answer.closed()).await.expect("nobody waits any more");
}

#[tokio::test]
async fn the_socket_is_its_owners_alone() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = parent.path().join("run/agent.sock");
    let _listener = bind(&path).await.expect("a socket");
    let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o7777;
    assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));

    let open = parent.path().join("open");
    fs::create_dir(&open).expect("a folder");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("permissions");
    let error = bind(&open.join("agent.sock")).await.expect_err("a folder for everybody");
    assert!(error.to_string().contains("could replace the socket"), "{error}");
}

#[tokio::test]
async fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI has to run this test as root");
        eprintln!("NOT RUN: this test needs root");
        return;
    }
    let mut agent = Agent::start(LIMITS).await;
    let path = agent.folder.path().join("agent.sock");
    // As if somebody had opened both.
    fs::set_permissions(agent.folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("a mode");
    let stream = std::thread::spawn(move || {
        // Of this thread alone, which is all that the kernel looks at.
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("another user");
        std::os::unix::net::UnixStream::connect(path).expect("a connection")
    });
    let stream = stream.join().expect("a thread that ends");
    stream.set_nonblocking(true).expect("a mode");
    let mut stream = UnixStream::from_std(stream).expect("a stream");
    let answer = rest(&mut stream).await;
    assert!(answer.contains("user 65534 may not"), "{answer}");
    assert!(agent.commands.try_recv().is_err(), "nothing was asked");
}

#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let living = bind(&path).await.expect("a socket");
    let error = bind(&path).await.expect_err("somebody listens");
    assert!(error.to_string().contains("another process listens"), "{error}");
    assert!(UnixStream::connect(&path).await.is_ok(), "the first goes on");
    drop(living);
    drop(bind(&path).await.expect("a socket in the dead one's place"));

    fs::remove_file(&path).expect("removed");
    fs::write(&path, "a letter").expect("a file");
    let error = bind(&path).await.expect_err("no socket");
    assert!(error.to_string().contains("something else"), "{error}");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "a letter");
}
