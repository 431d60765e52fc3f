//! Which HTTP a connection without TLS speaks: its first bytes say so (RFC 9113, 3.3). HTTP/2 is what begins with
//! exactly its preface; all else is for HTTP/1 to look at. Over TLS it is waited for as well, as the library behind
//! this would wait for ever.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

use super::KEEP_ALIVE;
use super::stream::HEAD;

const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection begins with; the bytes are to be read once more by whoever speaks that.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Http1(Bytes),
    Http2(Bytes),
    /// Something that was not waited for to its end.
    Slow,
}

/// Reads no more than it takes to know.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Beginning> {
    let (mut read, mut length) = ([0; PREFACE.len()], 0);
    let mut deadline = Instant::now() + KEEP_ALIVE;
    loop {
        let more = match timeout_at(deadline, stream.read(&mut read[length..])).await {
            Ok(more) => more?,
            Err(_) if length > 0 => return Ok(Beginning::Slow),
            Err(late) => return Err(late.into()),
        };
        if length == 0 {
            deadline = Instant::now() + HEAD;
        }
        length += more;
        let fits = PREFACE.starts_with(&read[..length]);
        let bytes = || Bytes::copy_from_slice(&read[..length]);
        if fits && length == PREFACE.len() {
            return Ok(Beginning::Http2(bytes()));
        }
        if !fits || more == 0 {
            return Ok(Beginning::Http1(bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn http_2_is_what_begins_with_its_preface() {
        let of = async |parts: &[&[u8]]| {
            let (mut client, mut served) = tokio::io::duplex(256);
            let parts: Vec<_> = parts.iter().map(|part| part.to_vec()).collect();
            tokio::spawn(async move {
                for part in parts {
                    client.write_all(&part).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            read(&mut served).await.unwrap()
        };
        let (one, other) = PREFACE.split_at(7);
        let http2 = || Beginning::Http2(Bytes::from_static(&PREFACE));
        assert_eq!(of(&[&PREFACE, b"more"]).await, http2());
        assert_eq!(of(&[one, other]).await, http2());
        for (parts, bytes) in [
            (&[&b"GET / HTTP/1.1\r\n"[..]][..], &b"GET / HTTP/1.1\r\n"[..]),
            (&[b"P", b"OST / HTTP/1.1\r\n"], b"POST / HTTP/1.1\r\n"),
            (&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"),
            (&[b"PRI * HTTP/1.1\r\n\r\n"], b"PRI * HTTP/1.1\r\n\r\n"),
            (&[b"PRI"], b"PRI"),
            (&[], b""),
        ] {
            assert_eq!(of(parts).await, Beginning::Http1(Bytes::from_static(bytes)));
        }
    }

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_begin_is_not_waited_for() {
        let silent = (&b""[..], KEEP_ALIVE, Err(io::ErrorKind::TimedOut));
        for (begun, patience, came) in [silent, (b"PRI", HEAD, Ok(Beginning::Slow))] {
            let (mut client, mut served) = tokio::io::duplex(256);
            client.write_all(begun).await.unwrap();
            let since = Instant::now();
            assert_eq!(read(&mut served).await.map_err(|error| error.kind()), came);
            assert_eq!(since.elapsed(), patience);
        }
    }
}
