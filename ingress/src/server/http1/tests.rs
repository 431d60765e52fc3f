//! Requests as bytes of a connection, and what is made of them.

use super::super::framing::{MAX_CHUNK_LINE, MAX_FIELDS, MAX_HEAD, MAX_TRAILERS, Violation};
use crate::hostile::{self, Requests};

/// What is read however the bytes arrive: all at once, one by one, and in pieces.
fn read(bytes: &[u8]) -> Requests {
    let at_once = hostile::requests(bytes, usize::MAX);
    for piece in [1, 2, 3, 5, 100] {
        let slowly = hostile::requests(bytes, piece);
        assert_eq!(slowly, at_once, "{} in pieces of {piece}", bytes.escape_ascii());
    }
    at_once
}

#[test]
fn requests_that_say_one_thing_pass() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://a/x?y HTTP/1.1\r\nhost:a\r\nX: \ta b\t\r\nEmpty:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\n\r\0",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\n\n\r\0\r\n0\r\nT: 1\r\n\r\n",
    ] {
        for times in 1..=3 {
            let requests = read(request.repeat(times).as_bytes());
            let ends = requests.passed.iter().map(|passed| passed.end.unwrap());
            let expected = (1..=times).map(|number| number * request.len());
            assert!(ends.eq(expected) && requests.refused.is_none(), "{request:?}: {requests:?}");
        }
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    use Violation::*;
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n");
    for (request, why) in [
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), BareLf),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), BareLf),
        ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".to_owned(), BareCr),
        ("\r\n\r\nGET / HTTP/1.1\r\n".to_owned(), RequestLine),
        ("GET  / HTTP/1.1\r\n".to_owned(), RequestLine),
        ("GET /\t HTTP/1.1\r\n".to_owned(), RequestLine),
        ("GET / HTTP/1.1 \r\n".to_owned(), RequestLine),
        ("GET / HTTP/2.0\r\n".to_owned(), RequestLine),
        ("GET /\r\n".to_owned(), RequestLine),
        ("G(T / HTTP/1.1\r\n".to_owned(), RequestLine),
        ("CONNECT a:443 HTTP/1.1\r\n".to_owned(), Connect),
        (format!("{post}A: b\r\n c\r\n\r\n"), Fold),
        (format!("{post}Content-Length : 5\r\n\r\n"), FieldName),
        (format!("{post}Content Length: 5\r\n\r\n"), FieldName),
        (format!("{post}: 5\r\n\r\n"), FieldName),
        (format!("{post}no colon\r\n\r\n"), FieldName),
        (format!("{post}A: \0\r\n\r\n"), FieldValue),
        (format!("{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: 5, 5\r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: +5\r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: \r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: 99999999999999999999\r\n\r\n"), ContentLength),
        (format!("{chunked}Content-Length: 5\r\n\r\n"), LengthAndEncoding),
        (
            format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            LengthAndEncoding,
        ),
        (format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n"), TransferEncoding),
        (format!("{post}Transfer-Encoding: identity\r\n\r\n"), TransferEncoding),
        (format!("{post}Transfer-Encoding: xchunked\r\n\r\n"), TransferEncoding),
        (format!("{chunked}Transfer-Encoding: chunked\r\n\r\n"), TransferEncoding),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), TransferEncoding),
        (format!("{post}Host: b\r\n\r\n"), Host),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), Host),
        (format!("GET /{}", "a".repeat(MAX_HEAD)), TargetTooLong),
        ("G".repeat(MAX_HEAD + 1), RequestLine),
        (format!("{post}A: {}\r\n\r\n", "b".repeat(MAX_HEAD)), HeadTooLong),
        (format!("{post}{}\r\n\r\n", "A:\r\n".repeat(MAX_FIELDS)), Fields),
        (format!("{post}Content-Length: 0x5\r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: 5 5\r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: -5\r\n\r\n"), ContentLength),
        (format!("{post}Content-Length: 5\r\n 5\r\n\r\n"), Fold),
        (format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n"), TransferEncoding),
        (format!("{post}Transfer-Encoding: \x0bchunked\r\n\r\n"), FieldValue),
        (format!("{post}Transfer-Encoding: \"chunked\"\r\n\r\n"), TransferEncoding),
        (format!("{post}Transfer\u{131}-Encoding: chunked\r\n\r\n"), FieldName),
        (format!("{post}A: b\r\r\n\r\n"), BareCr),
        (format!("{chunked}\r\n-1\r\n"), Chunk),
        (format!("{chunked}\r\n0x1\r\n"), Chunk),
        (format!("{chunked}\r\n 1\r\n"), Chunk),
        (format!("{chunked}\r\n1 \r\n"), Chunk),
        (format!("{chunked}\r\n\r\n"), Chunk),
        (format!("{chunked}\r\n10000000000000000\r\n"), Chunk),
        (format!("{chunked}\r\n1\nA\r\n"), BareLf),
        (format!("{chunked}\r\n1;a\n\r\n"), BareLf),
        (format!("{chunked}\r\n1;a\rb\r\n"), BareCr),
        (format!("{chunked}\r\n1;a=\0\r\n"), Chunk),
        (format!("{chunked}\r\n\u{661}\r\n"), Chunk),
        (format!("{chunked}\r\n1\r\nA0\r\n\r\n"), Chunk),
        (format!("{chunked}\r\n1\r\nA\n0\r\n\r\n"), BareLf),
        (format!("{chunked}\r\nfffffffffffffffff\r\n"), Chunk),
        (format!("{chunked}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), Trailer),
        (format!("{chunked}\r\n0\r\nHost: b\r\n\r\n"), Trailer),
        (format!("{chunked}\r\n0\r\nA: b\r\n c\r\n\r\n"), Fold),
        (format!("{chunked}\r\n1\r\nAB\r\n"), Chunk),
        (format!("{chunked}\r\n1;{}\r\n", "a".repeat(MAX_CHUNK_LINE)), Chunk),
        (format!("{chunked}\r\n0\r\nContent-Length: 5\r\n\r\n"), Trailer),
        (format!("{chunked}\r\n0\r\nA: {}\r\n", "b".repeat(MAX_TRAILERS)), Trailer),
    ] {
        let refused = read(request.as_bytes()).refused.map(|(_, why)| why);
        assert_eq!(refused, Some(why.to_string()), "{:?}", &request[..request.len().min(120)]);
    }
    let most = format!("{post}{}\r\n", "A:\r\n".repeat(MAX_FIELDS - 1));
    assert_eq!(read(most.as_bytes()).passed.len(), 1);
}

#[test]
fn a_body_is_what_was_said_to_be_one() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let next = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (rest, body) in [
        ("Content-Length: 3\r\n\r\n\n\r\0", "\n\r\0"),
        ("Content-Length: 0\r\n\r\n", ""),
        (
            "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\n\n\r\0\r\n00a\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
            "\n\r\x000123456789",
        ),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""),
    ] {
        let requests = read(format!("{post}{rest}{next}").as_bytes());
        let [first, second] = &requests.passed[..] else { panic!("{rest:?}: {requests:?}") };
        assert_eq!(first.received, body.as_bytes(), "{rest:?}");
        assert_eq!(first.end, Some(second.begin));
        assert!(second.received.is_empty() && second.end.is_some());
    }
}
