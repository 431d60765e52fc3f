//! Whole connections: what clients say, and what they hear.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};

use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::message::Upload;

/// Answers as the path says.
struct Paths;

#[derive(Debug, Default)]
struct Parts {
    parts: VecDeque<Result<Frame<Bytes>, Cut>>,
    /// Nobody is told how long it is.
    open: bool,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Poll::Ready(self.get_mut().parts.pop_front())
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let lengths = self.parts.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len);
        let length = lengths.sum::<usize>() as u64;
        if self.open { SizeHint::default() } else { SizeHint::with_exact(length) }
    }
}

impl Parts {
    fn data(texts: &[&str]) -> Self {
        let data = |text: &&str| Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes())));
        Self { parts: texts.iter().map(data).collect(), open: false }
    }

    fn open(mut self, last: Option<Result<Frame<Bytes>, Cut>>) -> Self {
        self.parts.extend(last);
        self.open = true;
        self
    }
}

impl Service for Paths {
    type Body = Parts;

    async fn serve(&self, request: Request, _: &mut Alarm) -> Response<Parts> {
        let Request { head, body, upgrade, .. } = request;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-last", "1".parse().unwrap());
        trailers.insert("content-length", "1".parse().unwrap());
        let mut response = Response::new(Parts::default());
        response.body = match head.target() {
            "/early" => Parts::data(&["early"]),
            "/open" => Parts::data(&["one", "", "two"]).open(None),
            "/trailers" => Parts::data(&["one"]).open(Some(Ok(Frame::trailers(trailers)))),
            "/broken" => Parts::data(&["one"]).open(Some(Err(Cut::Backend))),
            "/long" => Parts::data(&[&"x".repeat(100_000), "y", &"z".repeat(5000)]).open(None),
            "/short" | "/excess" => {
                let length = if head.target() == "/short" { "4" } else { "2" };
                response.fields.append(Known::ContentLength, length);
                Parts::data(&["one"])
            }
            "/204" => {
                response.status = StatusCode::NO_CONTENT;
                response.fields.append(Known::ContentLength, "0");
                Parts::default()
            }
            "/304" => {
                response.status = StatusCode::NOT_MODIFIED;
                response.fields.append(Known::ContentLength, "7");
                Parts::default()
            }
            "/close" => {
                response.fields.append(Known::Connection, "x, close");
                Parts::default()
            }
            "/never" => std::future::pending().await,
            "/held" | "/held-and-broken" => {
                tokio::spawn(async move {
                    let _held = body;
                    std::future::pending::<()>().await;
                });
                let parts = Parts::data(&["one"]);
                match head.target() {
                    "/held" => parts,
                    _ => parts.open(Some(Err(Cut::Backend))),
                }
            }
            "/change" => {
                let upgrade = upgrade.unwrap();
                if upgrade.is_clean() {
                    response.status = StatusCode::SWITCHING_PROTOCOLS;
                    response.fields.append(Known::Connection, "upgrade");
                    tokio::spawn(async move {
                        let mut stream = upgrade.stream().await.unwrap();
                        let mut said = [0; 5];
                        stream.read_exact(&mut said).await.unwrap();
                        said.reverse();
                        stream.write_all(&said).await.unwrap();
                        stream.shutdown().await.unwrap();
                    });
                }
                Parts::default()
            }
            _ => echo(&head, body).await,
        };
        response
    }

    fn refuse(&self, head: Option<Head>, why: Violation) -> Response<Parts> {
        let method = head.as_ref().map_or("none", |head| head.method.as_str());
        let mut response = Response::new(Parts::data(&[method, " ", &why.to_string()]));
        response.status = why.status();
        response
    }
}

async fn echo(head: &Head, body: Upload) -> Parts {
    let said = format!("{} {}", head.method, head.target());
    let host = head.authority().map(|host| format!(" of {host}")).unwrap_or_default();
    let Ok(body) = body.collect().await else { return Parts::data(&[&said, " cut"]) };
    let last = body.trailers().and_then(|trailers| trailers.get("x-last")).is_some();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    Parts::data(&[&said, &host, " [", &body, "]", if last { "+" } else { "" }])
}

/// A client, and what becomes of its connection.
async fn connect() -> (TcpStream, tokio::task::JoinHandle<Option<Violation>>, watch::Sender<Phase>)
{
    let (client, stream) = pair().await;
    let (phase, phases) = watch::channel(Phase::Serving);
    (client, tokio::spawn(serve_to_its_end(Paths, stream, phases)), phase)
}

async fn serve_to_its_end(
    service: impl Service,
    stream: TcpStream,
    phases: watch::Receiver<Phase>,
) -> Option<Violation> {
    let (ended, violation) = serve(service, Stream::plain(stream), phases).await;
    if let Ok(ending) = ended {
        // The client may be gone.
        let _ = ending.end().await;
    }
    violation
}

/// Both ends of a connection: the client's, and the gateway's.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// What a client hears until the end that says this in pieces of so many bytes. Dates are left out.
async fn hear(says: &[u8], piece: usize) -> String {
    let (mut client, _served, _phase) = connect().await;
    for piece in says.chunks(piece) {
        // It may be cut.
        let _ = client.write_all(piece).await;
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    rest(&mut client).await
}

async fn rest(client: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    if timeout(Duration::from_secs(100), client.read_to_end(&mut heard)).await.unwrap().is_err() {
        heard.extend(b"<cut>");
    }
    let heard = String::from_utf8(heard).unwrap();
    let lines = heard.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
    let text: String = lines.collect();
    assert!(heard.matches("HTTP/1.").count() >= heard.matches("\r\ndate: ").count());
    text.replace("HTTP/1.1 200 OK\r\n", "OK\r\n")
}

const HOST: &str = "Host: a\r\n";

#[tokio::test]
async fn requests_are_answered_however_they_come() {
    let last = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let end = "OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\nGET /last []";
    let post = format!("POST / HTTP/1.1\r\n{HOST}");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    for (request, answer) in [
        (
            format!("GET /a?b#c HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ncontent-length: 11\r\n\r\nGET /a?b []",
        ),
        (format!("\r\nGET / HTTP/1.1\r\n{HOST}\r\n"), "OK\r\ncontent-length: 8\r\n\r\nGET / []"),
        (
            format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ncontent-length: 12\r\n\r\nOPTIONS * []",
        ),
        (
            format!("GET http://b/x HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ncontent-length: 14\r\n\r\nGET /x of b []",
        ),
        (
            format!("GET http://b?x HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ncontent-length: 15\r\n\r\nGET /?x of b []",
        ),
        (
            format!("{post}Content-Length: 3\r\n\r\nabc"),
            "OK\r\ncontent-length: 12\r\n\r\nPOST / [abc]",
        ),
        (
            format!("{chunked}3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n"),
            "OK\r\ncontent-length: 14\r\n\r\nPOST / [abcde]",
        ),
        (
            format!("{chunked}3\r\nabc\r\n0\r\nX-Last: 1\r\n\r\n"),
            "OK\r\ncontent-length: 13\r\n\r\nPOST / [abc]+",
        ),
        (format!("HEAD /early HTTP/1.1\r\n{HOST}\r\n"), "OK\r\ncontent-length: 5\r\n\r\n"),
        (format!("HEAD /open HTTP/1.1\r\n{HOST}\r\n"), "OK\r\n\r\n"),
        (format!("GET /204 HTTP/1.1\r\n{HOST}\r\n"), "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            format!("GET /304 HTTP/1.1\r\n{HOST}\r\n"),
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
        ),
        (
            format!("GET /open HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
        ),
        (
            format!("GET /trailers HTTP/1.1\r\n{HOST}TE: trailers\r\n\r\n"),
            "OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\nx-last: 1\r\n\r\n",
        ),
        (
            format!("GET /trailers HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
        ),
        (
            "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n".to_owned(),
            "HTTP/1.0 200 OK\r\ncontent-length: 8\r\nconnection: keep-alive\r\n\r\nGET / []",
        ),
        (
            format!("POST /early HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\n12345"),
            "OK\r\ncontent-length: 5\r\n\r\nearly",
        ),
    ] {
        for piece in [1, 3, 1000] {
            let heard = hear(format!("{request}{last}").as_bytes(), piece).await;
            // What is answered before all of it has come may end the connection.
            if request.starts_with("POST /early") && piece < 1000 {
                assert!(heard.contains("early"), "{request:?}: {heard:?}");
                continue;
            }
            assert_eq!(heard, format!("{answer}{end}"), "{request:?} in pieces of {piece}");
        }
        // One behind the other.
        let heard = hear(format!("{}{last}", request.repeat(3)).as_bytes(), 1000).await;
        assert_eq!(heard, format!("{}{end}", answer.repeat(3)), "{request:?} three times");
    }
}

#[tokio::test]
async fn connections_end_where_they_have_to() {
    let long = format!(
        "OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n186a0\r\n{}\r\n1\r\ny\r\n1388\r\n{}\r\n0\r\n\r\n",
        "x".repeat(100_000),
        "z".repeat(5000)
    );
    for (request, answer) in [
        (
            format!("GET /close HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ),
        (
            "GET / HTTP/1.0\r\n\r\n".to_owned(),
            "HTTP/1.0 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\nGET / []",
        ),
        (
            "GET /open HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(),
            "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nonetwo",
        ),
        (
            format!("GET /broken HTTP/1.1\r\n{HOST}\r\n"),
            "OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
        ),
        ("GET /broken HTTP/1.0\r\n\r\n".to_owned(), "<cut>"),
        ("POST /held-and-broken HTTP/1.0\r\nContent-Length: 9000\r\n\r\nhalf".to_owned(), "<cut>"),
        (format!("GET /short HTTP/1.1\r\n{HOST}\r\n"), "OK\r\ncontent-length: 4\r\n\r\none"),
        (format!("GET /excess HTTP/1.1\r\n{HOST}\r\n"), "OK\r\ncontent-length: 2\r\n\r\n"),
        (
            format!("POST /early HTTP/1.1\r\n{HOST}Content-Length: 90\r\n\r\nhalf"),
            "OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly",
        ),
        (
            format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef"),
            "OK\r\ncontent-length: 10\r\nconnection: close\r\n\r\nPOST / cut",
        ),
        (format!("GET /long HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"), &long),
        (
            format!("GET a/b HTTP/1.1\r\n{HOST}\r\n"),
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 34\r\nconnection: close\r\n\r\nnone neither a path nor an address",
        ),
        (
            format!("GET example.org HTTP/1.1\r\n{HOST}\r\n"),
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 34\r\nconnection: close\r\n\r\nnone neither a path nor an address",
        ),
        (
            format!("GET a:80 HTTP/1.1\r\n{HOST}\r\n"),
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 34\r\nconnection: close\r\n\r\nnone neither a path nor an address",
        ),
        (
            format!("GET ftp://a/x HTTP/1.1\r\n{HOST}\r\n"),
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 34\r\nconnection: close\r\n\r\nnone neither a path nor an address",
        ),
        (
            format!("GET /a<b HTTP/1.1\r\n{HOST}\r\n"),
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 34\r\nconnection: close\r\n\r\nnone neither a path nor an address",
        ),
        (
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 26\r\nconnection: close\r\n\r\nnone Host missing or twice",
        ),
        (
            format!("GET /{}", "x".repeat(40_000)),
            "HTTP/1.1 414 URI Too Long\r\ncontent-length: 35\r\nconnection: close\r\n\r\nGET a request line that is too long",
        ),
        (
            format!("PUT / HTTP/1.1\r\n{HOST}{}\r\n", "X:\r\n".repeat(128)),
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 20\r\nconnection: close\r\n\r\nPUT too many headers",
        ),
    ] {
        let behind = format!("{request}GET /smuggled HTTP/1.1\r\n{HOST}\r\n");
        for says in [&request, &behind] {
            let heard = hear(says.as_bytes(), 1 << 20).await;
            if answer == "<cut>" {
                assert!(heard.ends_with(answer), "{request:.100}: {heard:.300}");
            } else {
                assert_eq!(heard, answer, "{request:.100}");
            }
        }
    }
}

#[tokio::test]
async fn who_waits_to_be_asked_for_a_body_is_asked_once_it_is_wanted() {
    let head = format!(
        "POST / HTTP/1.1\r\n{HOST}Content-Length: 3\r\nExpect: 100-Continue\r\nConnection: close\r\n\r\n"
    );
    let (mut client, ..) = connect().await;
    client.write_all(head.as_bytes()).await.unwrap();
    let mut heard = [0; 25];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"abc").await.unwrap();
    assert!(rest(&mut client).await.ends_with("\r\n\r\nPOST / [abc]"));
    // Who did not wait, or is answered at once, is not.
    let heard = hear(format!("{head}abc").as_bytes(), 1000).await;
    assert!(heard.starts_with("OK\r\n") && heard.ends_with("[abc]"), "{heard}");
    let early = head.replace("POST /", "POST /early").replace("Connection: close\r\n", "");
    assert_eq!(
        hear(early.as_bytes(), 1000).await,
        "OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly"
    );
    let old = head.replace("1.1", "1.0");
    let heard = hear(format!("{old}abc").as_bytes(), old.len()).await;
    assert!(heard.starts_with("HTTP/1.0 200"), "{heard}");
}

#[tokio::test]
async fn another_protocol_has_the_stream_and_nothing_before_it() {
    let request =
        format!("GET /change HTTP/1.1\r\n{HOST}Connection: upgrade\r\nUpgrade: x\r\n\r\n");
    let (mut client, ..) = connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n"));
    client.write_all(b"hello").await.unwrap();
    assert_eq!(rest(&mut client).await, "olleh");
    let heard = hear(format!("{request}hello GET / HTTP/1.1\r\n\r\n").as_bytes(), 1000).await;
    assert!(heard.starts_with("OK\r\n"), "{heard}");
}

#[tokio::test]
async fn who_goes_away_is_not_answered() {
    let request = format!("GET /never HTTP/1.1\r\n{HOST}\r\n");
    let (mut client, served, _phase) = connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    drop(client);
    let served = timeout(Duration::from_secs(10), served).await.expect("an end");
    assert_eq!(served.unwrap(), None);
}

// Where nobody has anything to do, time passes by itself.
#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_takes_is_not_waited_for_for_ever() {
    let head = format!("POST /held HTTP/1.1\r\n{HOST}Content-Length: 90\r\n\r\n");
    let answer = "OK\r\ncontent-length: 3\r\n\r\none";
    let (mut client, served, _phase) = connect().await;
    let begun = Instant::now();
    client.write_all(format!("{head}half").as_bytes()).await.unwrap();
    assert_eq!(rest(&mut client).await, answer);
    assert_eq!(begun.elapsed(), STALL);
    drop(client);
    assert_eq!(served.await.unwrap(), None);
    // Nor at all where no more of it can come.
    let (mut client, served, _phase) = connect().await;
    let begun = Instant::now();
    client.write_all(format!("{head}half").as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, answer);
    assert_eq!((served.await.unwrap(), begun.elapsed()), (None, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_and_stays_has_its_connection_for_a_while() {
    for stays in [true, false] {
        let (mut client, served, _phase) = connect().await;
        let begun = Instant::now();
        client.write_all(b"no request\r\n\r\n").await.unwrap();
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 400"));
        if !stays {
            drop(client);
        }
        assert!(served.await.unwrap().is_some());
        assert_eq!(begun.elapsed(), if stays { LINGER } else { Duration::ZERO });
    }
}

// Where nobody has anything to do, time passes by itself.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_closes_ends_connections_between_requests() {
    let request = format!("GET / HTTP/1.1\r\n{HOST}\r\n");
    let answer = "OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\nGET / []";
    // One that has said nothing is waited for, but not for long.
    for (says, seconds) in [(&request[..], 0), ("", 5)] {
        let (mut client, _, phase) = connect().await;
        phase.send_replace(Phase::Closing);
        let begun = Instant::now();
        client.write_all(says.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut client).await, if says.is_empty() { "" } else { answer });
        assert_eq!(begun.elapsed().as_secs(), seconds);
    }
    // One that has had its answer is not.
    let (mut client, served, phase) = connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"[]") {
        heard.push(client.read_u8().await.unwrap());
    }
    let begun = Instant::now();
    phase.send_replace(Phase::Closing);
    assert_eq!(rest(&mut client).await, "");
    assert_eq!((begun.elapsed().as_secs(), served.await.unwrap()), (0, None));
}

// Where nobody has anything to do, time passes by itself.
#[tokio::test(start_paused = true)]
async fn a_connection_that_has_rested_goes_on() {
    let request = format!("GET / HTTP/1.1\r\n{HOST}\r\n");
    let (mut client, served, _phase) = connect().await;
    for pause in [SOON / 2, SOON * 3, KEEP_ALIVE - SOON, Duration::ZERO] {
        client.write_all(request.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"[]") {
            heard.push(client.read_u8().await.unwrap());
        }
        tokio::time::sleep(pause).await;
    }
    let begun = Instant::now();
    assert_eq!((rest(&mut client).await.as_str(), served.await.unwrap()), ("", None));
    let after = begun.elapsed();
    assert!((KEEP_ALIVE - SOON..KEEP_ALIVE + SOON).contains(&after), "{after:?}");
}

/// Notes what is asked and what is sent, and how many bytes of its clients nobody has read then.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    notes: Vec<(&'static str, u64)>,
    /// The gateway's ends of connections.
    sockets: Vec<OwnedFd>,
}

impl Notes {
    fn note(&self, what: &'static str) {
        let Seen { notes, sockets } = &mut *self.0.lock().unwrap();
        let unread = sockets.iter().map(|socket| rustix::io::ioctl_fionread(socket).unwrap());
        notes.push((what, unread.sum()));
    }
}

impl Body for Notes {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.note("sent");
        Poll::Ready(None)
    }
}

impl Service for Notes {
    type Body = Self;

    async fn serve(&self, _: Request, _: &mut Alarm) -> Response<Self> {
        self.note("asked");
        Response::new(self.clone())
    }

    fn refuse(&self, _: Option<Head>, _: Violation) -> Response<Self> {
        Response::new(self.clone())
    }
}

#[tokio::test]
async fn what_comes_at_once_is_read_before_anything_is_written() {
    async fn hear(client: &mut TcpStream) {
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n0\r\n\r\n") {
            heard.push(client.read_u8().await.unwrap());
        }
    }
    let (notes, mut clients) = (Notes::default(), Vec::new());
    let (_phase, phases) = watch::channel(Phase::Serving);
    let request = format!("GET / HTTP/1.1\r\n{HOST}\r\n");
    for _ in 0..3 {
        let (mut client, stream) = pair().await;
        notes.0.lock().unwrap().sockets.push(stream.as_fd().try_clone_to_owned().unwrap());
        let (notes, phases) = (notes.clone(), phases.clone());
        tokio::spawn(serve_to_its_end(notes, stream, phases));
        // From then on it waits for the next one.
        client.write_all(request.as_bytes()).await.unwrap();
        hear(&mut client).await;
        clients.push(client);
    }
    notes.0.lock().unwrap().notes.clear();
    for client in &clients {
        assert_eq!(client.try_write(request.as_bytes()).unwrap(), request.len());
    }
    for client in &mut clients {
        hear(client).await;
    }
    let all = [[("asked", 0); 3], [("sent", 0); 3]].concat();
    assert_eq!(notes.0.lock().unwrap().notes, all);
}
