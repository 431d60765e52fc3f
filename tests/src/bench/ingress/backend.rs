//! The backend that all proxies share: answers that lie ready, and echoes of WebSocket frames.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::http1::{Head, find_head};
use super::websocket::{ACCEPT, Frame};
use crate::bench::worker;

/// The usual answer has so many bytes.
pub(super) const SMALL: usize = 1024;
/// A large body, up or down.
pub(super) const LARGE: usize = 1 << 20;
/// Paths by what is answered.
pub(super) const SMALL_PATH: &str = "/small";
pub(super) const LARGE_PATH: &str = "/large";
pub(super) const UPLOAD_PATH: &str = "/upload";
pub(super) const ECHO_PATH: &str = "/echo";

/// Answers until dropped, in a thread of its own.
#[derive(Debug)]
pub(super) struct Backend {
    /// Where it is.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Backend {
    /// Starts it on this CPU.
    pub(super) fn start(cpu: usize) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("listen for the proxies")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the backend's runtime")?;
        let serve = move || {
            if let Err(error) = worker::settle_on(cpu) {
                eprintln!("the backend runs where it likes: {error:#}");
            }
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name("backend".to_owned()).spawn(serve)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell; a panic has told already.
            let _ = thread.join();
        }
    }
}

/// What is answered, ready to be written.
struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let answer = |length: usize| {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
            );
            [head.as_bytes(), &vec![b'x'; length]].concat()
        };
        Self { small: answer(SMALL), large: answer(LARGE) }
    }
}

async fn accept(listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("the backend cannot listen: {error}"),
    };
    let answers = Arc::new(Answers::new());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answers = Arc::clone(&answers);
                // Proxies close connections in the middle of things when they end.
                tokio::spawn(async move { drop(serve(stream, &answers).await) });
            }
            Err(error) => return eprintln!("the backend takes no more connections: {error}"),
        }
    }
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(64 << 10);
    loop {
        let end = loop {
            if let Some(end) = find_head(&buffer) {
                break end;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = Head::parse(&buffer[..end])?;
        let path = head.target();
        let answer = match path {
            ECHO_PATH => {
                buffer.advance(end);
                return echo(stream, buffer).await;
            }
            LARGE_PATH => &answers.large,
            _ => &answers.small,
        };
        let (length, chunked) = (head.length, head.chunked);
        buffer.advance(end);
        if chunked {
            skip_chunks(&mut stream, &mut buffer).await?;
        } else {
            skip(&mut stream, &mut buffer, length.unwrap_or(0)).await?;
        }
        stream.write_all(answer).await?;
    }
}

/// Drops so many bytes of what comes.
async fn skip(stream: &mut TcpStream, buffer: &mut BytesMut, mut length: usize) -> Result<()> {
    loop {
        let here = length.min(buffer.len());
        buffer.advance(here);
        length -= here;
        if length == 0 {
            return Ok(());
        }
        buffer.reserve(64 << 10);
        if stream.read_buf(buffer).await? == 0 {
            bail!("the body ends before its end");
        }
    }
}

async fn skip_chunks(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<()> {
    loop {
        let line = loop {
            if let Some(at) = buffer.windows(2).position(|two| two == b"\r\n") {
                break buffer.split_to(at + 2);
            }
            if stream.read_buf(buffer).await? == 0 {
                bail!("the body ends before its end");
            }
        };
        let digits = std::str::from_utf8(&line)?.trim().split(';').next().unwrap_or_default();
        let length = usize::from_str_radix(digits, 16).context("the length of a chunk")?;
        skip(stream, buffer, length + 2).await?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Agrees to WebSocket, and sends back what comes.
async fn echo(mut stream: TcpStream, mut buffer: BytesMut) -> Result<()> {
    let agreed = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(agreed.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        answer.clear();
        while let Some((frame, length)) = Frame::parse(&buffer)? {
            frame.write_unmasked(&mut answer);
            buffer.advance(length);
        }
        stream.write_all(&answer).await?;
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
