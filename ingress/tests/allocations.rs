//! How often a gateway asks for memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]
#![expect(unsafe_code, reason = "it counts what asks the global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "serving/support.rs"]
mod support;

/// Requests that are measured together.
const REQUESTS: usize = 500;
/// Times that each may ask for memory: for what becomes of it, and what is told of it.
const MOST: usize = 2;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is as the system's allocator does it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: whoever calls this keeps to what that asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads up to the end of a head, and asks for no memory.
fn read_head(stream: &mut TcpStream, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while !buffer[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer[length..]).unwrap() {
            0 => return 0,
            read => length += read,
        }
    }
    length
}

/// Answers all requests of its one connection with the same.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        while read_head(&mut stream, &mut buffer) > 0 {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: x\r\n\
                           Content-Length: 5\r\n\r\nhello";
            stream.write_all(answer).unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_request_over_warm_connections_asks_for_little_memory() {
    let world = support::World::default();
    let world = world.service("web", &[backend()]).host("shop.test", "web");
    let gateway = support::gateway(&world).await;
    let address = gateway.http;
    let least = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut buffer = [0; 4096];
        let mut round = || {
            let before = COUNT.load(Ordering::Relaxed);
            for _ in 0..REQUESTS {
                let request = b"GET /cart?item=7 HTTP/1.1\r\nHost: shop.test\r\n\
                                User-Agent: test/1.0\r\nAccept: */*\r\nX-Own: some value\r\n\
                                Cookie: session=0123456789abcdef\r\n\r\n";
                stream.write_all(request).unwrap();
                let length = read_head(&mut stream, &mut buffer);
                assert!(buffer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
                assert!(
                    buffer[..length].ends_with(b"hello") || {
                        stream.read_exact(&mut buffer[..5]).unwrap();
                        buffer.starts_with(b"hello")
                    }
                );
            }
            COUNT.load(Ordering::Relaxed) - before
        };
        // Whoever has something to do now and then, beside the requests, is not in all of them.
        (0..6).map(|_| round()).min().unwrap()
    });
    let least = least.await.unwrap();
    // Now and then a connection asks for some that many requests need.
    assert!(least / REQUESTS <= MOST, "{least} for {REQUESTS} requests");
}
