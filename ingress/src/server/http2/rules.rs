//! The rules of RFC 9113, one by one: what a client says, and what it hears.

use std::fmt::Write as _;

use http::StatusCode;

use super::connection::Connection;
use super::frames::{self, *};
use super::hpack::{Decoder, Encoder};
use super::{CONNECTION_WINDOW, HEAD, STREAMS, WINDOW};
use crate::message::{Fields, Known, Upload};

mod floods;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::write(&mut frame, kind, flags, stream, payload);
    frame
}

/// A block that remembers nothing.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|it| *it < 127).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "https");
const PATH: (&str, &str) = (":path", "/");
const AUTHORITY: (&str, &str) = (":authority", "a.example");
const GET: [(&str, &str); 4] = [METHOD, SCHEME, PATH, AUTHORITY];
const END: u8 = END_STREAM | END_HEADERS;
const PADDED: u8 = 0x8;
const PRIORITIZED: u8 = 0x20;

/// A request without a body, with more fields.
fn get(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END, stream, &block(&[&GET[..], more].concat()))
}

/// The same to which the answer is there at once.
fn answered(stream: u32) -> Vec<u8> {
    frame(HEADERS, END, stream, &block(&[METHOD, SCHEME, (":path", "/answer"), AUTHORITY]))
}

/// A request whose body is to come, with more fields.
fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let all = [&[(":method", "POST"), SCHEME, PATH, AUTHORITY][..], more].concat();
    frame(HEADERS, END_HEADERS, stream, &block(&all))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn update(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn data(stream: u32, length: usize) -> Vec<u8> {
    frame(DATA, 0, stream, &vec![b'x'; length])
}

/// A client and the end that it speaks to; requests are taken up, those for `/answer` answered.
struct Talk {
    connection: Connection,
    decoder: Decoder,
    heard: String,
    /// Bodies that nobody reads.
    uploads: Vec<Upload>,
}

impl Talk {
    fn new() -> Self {
        let (connection, decoder) = (Connection::default(), Decoder::default());
        let mut talk = Self { connection, decoder, heard: String::new(), uploads: Vec::new() };
        talk.say(PREFACE);
        talk
    }

    /// The same behind the first frame of both.
    fn begun() -> Self {
        let mut talk = Self::new();
        talk.say(&frame(SETTINGS, 0, 0, &[]));
        talk.heard.clear();
        talk
    }

    fn say(&mut self, bytes: &[u8]) {
        if self.connection.receive(bytes).is_err() {
            return self.hear();
        }
        self.connection.closed(|_| ());
        let mut fresh = Vec::new();
        self.connection.fresh(&mut fresh);
        for place in fresh {
            let (asked, upload) = self.connection.begin(place).expect("a request");
            let (method, target) = (&asked.head.method, asked.head.target());
            writeln!(self.heard, "asks {method} {target}").unwrap();
            self.uploads.push(upload);
            if target == "/answer" {
                self.connection.answer(place, StatusCode::OK, &Fields::new(), false);
                self.connection.send(place, b"good", true);
            }
        }
        self.hear();
    }

    fn hear(&mut self) {
        let out = std::mem::take(&mut self.connection.out);
        let mut rest = &out[..];
        while let Some(header) = Header::read(rest) {
            let (payload, more) = rest[frames::HEADER..].split_at(header.length);
            rest = more;
            let line = self.line(header, payload);
            writeln!(self.heard, "{line}").unwrap();
        }
        assert!(rest.is_empty());
    }

    fn line(&mut self, header: Header, payload: &[u8]) -> String {
        let Header { stream, kind, .. } = header;
        let end =
            if matches!(kind, DATA | HEADERS) && header.has(END_STREAM) { " end" } else { "" };
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            DATA => format!("DATA {stream} {}{end}", payload.len()),
            HEADERS => {
                let mut fields = String::new();
                let decoded = self.decoder.decode(payload, &mut Vec::new(), |name, value| {
                    let text = String::from_utf8_lossy(value);
                    match name {
                        b":status" => write!(fields, "{text}").unwrap(),
                        name => write!(fields, " {}={text}", name.escape_ascii()).unwrap(),
                    }
                    Ok(())
                });
                decoded.unwrap();
                format!("HEADERS {stream} {fields}{end}")
            }
            RST_STREAM => format!("RST_STREAM {stream} {}", reason(word(0))),
            SETTINGS if header.has(ACK) => "SETTINGS ack".to_owned(),
            SETTINGS => format!("SETTINGS {}", payload.escape_ascii()),
            PING if header.has(ACK) => format!("PING ack {}", payload.escape_ascii()),
            PING => "PING".to_owned(),
            GOAWAY => format!("GOAWAY {} {}", word(0), reason(word(4))),
            WINDOW_UPDATE => format!("WINDOW_UPDATE {stream} {}", word(0)),
            kind => panic!("a frame of kind {kind}"),
        }
    }
}

fn reason(code: u32) -> String {
    use Reason::*;
    let all = [
        NoError,
        Protocol,
        Internal,
        FlowControl,
        StreamClosed,
        FrameSize,
        RefusedStream,
        Cancel,
        Compression,
        EnhanceYourCalm,
    ];
    all.into_iter().find(|reason| reason.code() == code).expect("a reason").to_string()
}

/// A section, what is said in it, and what is heard: lines with a slash in between.
type Case = (&'static str, Vec<u8>, &'static str);

/// What is said at once, byte by byte, and in odd pieces makes no difference.
fn check(cases: &[Case], begin: fn() -> Talk) {
    for (section, said, heard) in cases {
        for size in [usize::MAX, 1, 7] {
            let mut talk = begin();
            for piece in said.chunks(size) {
                talk.say(piece);
                if talk.heard.contains("GOAWAY") {
                    break;
                }
            }
            let lines = talk.heard.trim_end().replace('\n', " / ");
            // Nothing is taken up of what is followed by an error at once.
            let same = lines == *heard || (size > 7 && heard.ends_with(&lines));
            assert!(same, "{section}, {size} bytes at a time: {lines}");
        }
    }
}

#[test]
fn a_connection_begins_with_preface_and_settings() {
    let settings = [(0x3_u16, STREAMS), (0x4, WINDOW), (0x6, HEAD), (0x8, 1)];
    let settings: Vec<u8> = settings
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    let first = format!(
        "SETTINGS {} / WINDOW_UPDATE 0 {} / ",
        settings.escape_ascii(),
        CONNECTION_WINDOW - 65_535
    );
    for (section, said, heard) in [
        ("3.4", [PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat(), "SETTINGS ack"),
        ("3.4: no preface", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "3.4: another preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r".to_vec(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "3.4: no SETTINGS",
            [PREFACE, &frame(PING, 0, 0, &[0; 8])[..]].concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        ("3.4: a request first", [PREFACE, &get(1, &[])[..]].concat(), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "3.4: an acknowledgement first",
            [PREFACE, &frame(SETTINGS, ACK, 0, &[])[..]].concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
    ] {
        for size in [usize::MAX, 1] {
            let (connection, decoder) = (Connection::default(), Decoder::default());
            let mut talk = Talk { connection, decoder, heard: String::new(), uploads: Vec::new() };
            for piece in said.chunks(size) {
                talk.say(piece);
                if talk.heard.contains("GOAWAY") {
                    break;
                }
            }
            let lines = talk.heard.trim_end().replace('\n', " / ");
            assert_eq!(lines, format!("{first}{heard}"), "{section}, {size} bytes at a time");
        }
    }
}

#[test]
fn frames_have_their_place_and_their_length() {
    let cases: Vec<Case> = vec![
        ("4.1: flags that mean nothing", frame(PING, 0xfe, 0, b"12345678"), "PING ack 12345678"),
        ("4.1: a kind that nobody knows", frame(0x16, 0xff, 0, &[0; 8]), ""),
        ("5.5: the same of a stream", frame(0x16, 0, 1, &[0; 8]), ""),
        ("4.2: longer than may be", data(1, MOST_PAYLOAD + 1), "GOAWAY 0 FRAME_SIZE_ERROR"),
        ("4.2: as long as may be", frame(0x16, 0, 0, &[0; MOST_PAYLOAD]), ""),
        ("4.3: no block", frame(HEADERS, END, 1, &[0x80]), "GOAWAY 0 COMPRESSION_ERROR"),
        ("4.3: half a field", frame(HEADERS, END, 1, &[0x40]), "GOAWAY 0 COMPRESSION_ERROR"),
        (
            "4.3: another frame in a head",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), frame(PING, 0, 0, &[0; 8])].concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "4.3: another head in a head",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), get(3, &[])].concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "4.3: another stream's head goes on",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), frame(CONTINUATION, END_HEADERS, 3, &[])]
                .concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "4.3: a kind that nobody knows in a head",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), frame(0x16, 0, 1, &[])].concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        ("6.1: DATA of the connection", data(0, 1), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "6.1: nothing but padding",
            [post(1, &[]), frame(DATA, PADDED | END_STREAM, 1, &[2, 0, 0])].concat(),
            "asks POST /",
        ),
        (
            "6.1: more padding than there is",
            [post(1, &[]), frame(DATA, PADDED, 1, &[3, 0, 0])].concat(),
            "asks POST / / GOAWAY 1 PROTOCOL_ERROR",
        ),
        (
            "6.2: HEADERS of the connection",
            frame(HEADERS, END, 0, &block(&GET)),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "6.2: a priority, and padding",
            frame(
                HEADERS,
                END | PADDED | PRIORITIZED,
                1,
                &[&[1, 0, 0, 0, 3, 7][..], &block(&GET), &[0]].concat(),
            ),
            "asks GET /",
        ),
        (
            "6.2: more padding than there is",
            frame(HEADERS, END | PADDED, 1, &[&[255][..], &block(&GET)].concat()),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "6.3: PRIORITY of the connection",
            frame(PRIORITY, 0, 0, &[0; 5]),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        ("6.3: PRIORITY of nobody", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]), ""),
        (
            "6.3: PRIORITY of another length",
            [get(1, &[]), frame(PRIORITY, 0, 1, &[0; 4])].concat(),
            "asks GET / / RST_STREAM 1 FRAME_SIZE_ERROR",
        ),
        ("6.4: RST_STREAM of the connection", reset(0), "GOAWAY 0 PROTOCOL_ERROR"),
        ("6.4: RST_STREAM of nobody", reset(1), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "6.4: RST_STREAM of another length",
            [get(1, &[]), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            "asks GET / / GOAWAY 1 FRAME_SIZE_ERROR",
        ),
        ("6.5: SETTINGS of a stream", frame(SETTINGS, 0, 1, &[]), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "6.5: SETTINGS of another length",
            frame(SETTINGS, 0, 0, &[0; 5]),
            "GOAWAY 0 FRAME_SIZE_ERROR",
        ),
        (
            "6.5: an acknowledgement that says something",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            "GOAWAY 0 FRAME_SIZE_ERROR",
        ),
        ("6.5: SETTINGS", setting(0x3, 0), "SETTINGS ack"),
        ("6.5.2: ENABLE_PUSH", setting(0x2, 2), "GOAWAY 0 PROTOCOL_ERROR"),
        ("6.5.2: INITIAL_WINDOW_SIZE", setting(0x4, 1 << 31), "GOAWAY 0 FLOW_CONTROL_ERROR"),
        (
            "6.5.2: MAX_FRAME_SIZE, too small",
            setting(0x5, (1 << 14) - 1),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        ("6.5.2: MAX_FRAME_SIZE, too large", setting(0x5, 1 << 24), "GOAWAY 0 PROTOCOL_ERROR"),
        ("6.5.2: MAX_FRAME_SIZE", setting(0x5, 1 << 14), "SETTINGS ack"),
        ("6.5.2: one that nobody knows", setting(0xff, u32::MAX), "SETTINGS ack"),
        ("RFC 8441, 3: ENABLE_CONNECT_PROTOCOL", setting(0x8, 2), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "6.6: PUSH_PROMISE",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        ("6.7: PING", frame(PING, 0, 0, b"12345678"), "PING ack 12345678"),
        ("6.7: an answer to nobody's PING", frame(PING, ACK, 0, b"12345678"), ""),
        ("6.7: PING of a stream", frame(PING, 0, 1, &[0; 8]), "GOAWAY 0 PROTOCOL_ERROR"),
        ("6.7: PING of another length", frame(PING, 0, 0, &[0; 6]), "GOAWAY 0 FRAME_SIZE_ERROR"),
        ("6.8: GOAWAY of a stream", frame(GOAWAY, 0, 1, &[0; 8]), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "6.8: GOAWAY of another length",
            frame(GOAWAY, 0, 0, &[0; 7]),
            "GOAWAY 0 FRAME_SIZE_ERROR",
        ),
        ("6.8: GOAWAY with a word", frame(GOAWAY, 0, 0, &[0; 17]), ""),
        ("6.9: WINDOW_UPDATE of nothing", update(0, 0), "GOAWAY 0 PROTOCOL_ERROR"),
        (
            "6.9: of nothing, for a stream",
            [get(1, &[]), update(1, 0)].concat(),
            "asks GET / / RST_STREAM 1 PROTOCOL_ERROR",
        ),
        (
            "6.9: of another length",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            "GOAWAY 0 FRAME_SIZE_ERROR",
        ),
        (
            "6.9.1: more than there may be",
            [update(0, (1 << 31) - 1 - 65_535), update(0, 1)].concat(),
            "GOAWAY 0 FLOW_CONTROL_ERROR",
        ),
        (
            "6.9.1: the same of a stream",
            [get(1, &[]), update(1, (1 << 31) - 1)].concat(),
            "asks GET / / RST_STREAM 1 FLOW_CONTROL_ERROR",
        ),
        (
            "6.9.2: the same by a setting",
            [get(1, &[]), update(1, 1), setting(0x4, (1 << 31) - 1)].concat(),
            "asks GET / / GOAWAY 1 FLOW_CONTROL_ERROR",
        ),
        (
            "6.10: a head in parts",
            [
                frame(HEADERS, END_STREAM, 1, &block(&GET[..2])),
                frame(CONTINUATION, 0, 1, &block(&GET[2..3])),
                frame(CONTINUATION, END_HEADERS, 1, &block(&GET[3..])),
            ]
            .concat(),
            "asks GET /",
        ),
        (
            "6.10: CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &block(&GET)),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
        (
            "6.10: CONTINUATION of a whole head",
            [get(1, &[]), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            "asks GET / / GOAWAY 1 PROTOCOL_ERROR",
        ),
        (
            "6.10: CONTINUATION of the connection",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), frame(CONTINUATION, END_HEADERS, 0, &[])]
                .concat(),
            "GOAWAY 0 PROTOCOL_ERROR",
        ),
    ];
    check(&cases, Talk::begun);
}

#[test]
fn frames_fit_the_state_of_their_stream() {
    const ANSWERED: &str = "asks GET /answer / HEADERS 1 200 / DATA 1 4 end";
    let behind = |said: Vec<u8>| [answered(1), said].concat();
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        ("5.1, idle: DATA", data(1, 1), "GOAWAY 0 PROTOCOL_ERROR".into()),
        ("5.1, idle: WINDOW_UPDATE", update(1, 1), "GOAWAY 0 PROTOCOL_ERROR".into()),
        (
            "5.1, half-closed: DATA",
            [get(1, &[]), data(1, 1)].concat(),
            "asks GET / / GOAWAY 1 STREAM_CLOSED".into(),
        ),
        (
            "5.1, half-closed: HEADERS",
            [get(1, &[]), get(1, &[])].concat(),
            "asks GET / / RST_STREAM 1 STREAM_CLOSED".into(),
        ),
        (
            "5.1, half-closed: WINDOW_UPDATE, PRIORITY and RST_STREAM",
            [get(1, &[]), update(1, 1), frame(PRIORITY, 0, 1, &[0; 5]), reset(1)].concat(),
            "asks GET /".into(),
        ),
        ("5.1, closed: DATA", behind(data(1, 1)), format!("{ANSWERED} / GOAWAY 1 STREAM_CLOSED")),
        (
            "5.1, closed: HEADERS",
            behind(get(1, &[])),
            format!("{ANSWERED} / GOAWAY 1 STREAM_CLOSED"),
        ),
        (
            "5.1, closed: WINDOW_UPDATE, PRIORITY and RST_STREAM",
            behind([update(1, 1), frame(PRIORITY, 0, 1, &[0; 5]), reset(1)].concat()),
            ANSWERED.into(),
        ),
        (
            "5.1, reset by the client: DATA",
            [post(1, &[]), reset(1), data(1, 1)].concat(),
            "asks POST / / GOAWAY 1 STREAM_CLOSED".into(),
        ),
        (
            "5.1, reset by the gateway: what was on its way",
            [
                post(1, &[("content-length", "1")]),
                data(1, 2),
                data(1, 1),
                update(1, 1),
                frame(HEADERS, END, 1, &block(&[("a", "b")])),
            ]
            .concat(),
            "asks POST / / RST_STREAM 1 PROTOCOL_ERROR".into(),
        ),
        ("5.1.1: an even number", get(2, &[]), "GOAWAY 0 PROTOCOL_ERROR".into()),
        (
            "5.1.1: a smaller number",
            [get(5, &[]), get(3, &[])].concat(),
            "asks GET / / GOAWAY 5 PROTOCOL_ERROR".into(),
        ),
        (
            "5.1.1: numbers that were left out",
            [get(5, &[]), data(3, 1)].concat(),
            "asks GET / / GOAWAY 5 STREAM_CLOSED".into(),
        ),
        (
            "5.3.2: a priority that depends on itself",
            frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 7]),
            String::new(),
        ),
        (
            "8.1: a body, and fields behind it",
            [post(1, &[]), data(1, 1), frame(HEADERS, END, 1, &block(&[("a", "b")]))].concat(),
            "asks POST /".into(),
        ),
        (
            "8.1: fields behind a body that end nothing",
            [post(1, &[]), frame(HEADERS, END_HEADERS, 1, &block(&[("a", "b")]))].concat(),
            "asks POST / / RST_STREAM 1 PROTOCOL_ERROR".into(),
        ),
        (
            "8.1: a pseudo-header behind a body",
            [post(1, &[]), frame(HEADERS, END, 1, &block(&[(":path", "/")]))].concat(),
            "asks POST / / RST_STREAM 1 PROTOCOL_ERROR".into(),
        ),
        (
            "8.1.1: a body that is too short",
            [post(1, &[("content-length", "2")]), frame(DATA, END_STREAM, 1, b"x")].concat(),
            "asks POST / / RST_STREAM 1 PROTOCOL_ERROR".into(),
        ),
        (
            "8.1.1: the same with fields behind it",
            [
                post(1, &[("content-length", "2")]),
                data(1, 1),
                frame(HEADERS, END, 1, &block(&[("a", "b")])),
            ]
            .concat(),
            "asks POST / / RST_STREAM 1 PROTOCOL_ERROR".into(),
        ),
        (
            "8.1.1: a body of its length, with padding",
            [
                post(1, &[("content-length", "2")]),
                frame(DATA, PADDED | END_STREAM, 1, &[1, b'x', b'x', 0]),
            ]
            .concat(),
            "asks POST /".into(),
        ),
    ];
    for (section, said, heard) in cases {
        // In one piece some of these are answered before they are asked.
        let mut talk = Talk::begun();
        said.chunks(1).for_each(|byte| {
            if !talk.heard.contains("GOAWAY") {
                talk.say(byte);
            }
        });
        assert_eq!(talk.heard.trim_end().replace('\n', " / "), heard, "{section}");
    }
}

#[test]
fn a_head_is_that_of_a_request() {
    let whole = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
    let connect = (":method", "CONNECT");
    let websocket = (":protocol", "websocket");
    let path = |path: &'static str| vec![METHOD, SCHEME, (":path", path), AUTHORITY];
    for (section, fields, good) in [
        ("8.3.1", GET.to_vec(), true),
        ("8.3.1: in another order", vec![AUTHORITY, PATH, SCHEME, METHOD], true),
        ("8.3.1: without an authority", vec![METHOD, SCHEME, PATH, ("host", "a.example")], true),
        ("8.3: behind a field", vec![METHOD, SCHEME, PATH, ("a", "b"), AUTHORITY], false),
        ("8.3: nobody's", whole(&[(":a", "b")]), false),
        ("8.3: an answer's", whole(&[(":status", "200")]), false),
        ("8.3: no name", whole(&[(":", "b")]), false),
        ("8.3.1: no method", vec![SCHEME, PATH, AUTHORITY], false),
        ("8.3.1: no scheme", vec![METHOD, PATH, AUTHORITY], false),
        ("8.3.1: no path", vec![METHOD, SCHEME, AUTHORITY], false),
        ("8.3.1: two methods", whole(&[METHOD]), false),
        ("8.3.1: two schemes", whole(&[SCHEME]), false),
        ("8.3.1: two paths", whole(&[PATH]), false),
        ("8.3.1: two authorities", whole(&[AUTHORITY]), false),
        ("8.3.1: an empty path", path(""), false),
        ("8.3.1: a path without a slash", path("a"), false),
        ("8.3.1: a path that is an address", path("http://a.example/"), false),
        ("8.3.1: a path with a space", path("/ HTTP/1.1"), false),
        ("8.3.1: a path with an end of a line", path("/\r\n"), false),
        ("8.3.1: a path with what only its query may have", path("/a`b"), false),
        ("8.3.1: a path with what no path has", path("/a<b"), false),
        ("8.3.1: a query with what no query has", path("/a?b>c"), false),
        ("8.3.1: a path with a query", path("/a?b=/`"), true),
        ("8.3.1: a path with what is not meant for servers", path("/a#b"), true),
        ("8.3.1: the server, for another method", path("*"), false),
        (
            "8.3.1: the server",
            vec![(":method", "OPTIONS"), SCHEME, (":path", "*"), AUTHORITY],
            true,
        ),
        ("8.3.1: an empty authority", vec![METHOD, SCHEME, PATH, (":authority", "")], false),
        (
            "8.3.1: an authority with a path",
            vec![METHOD, SCHEME, PATH, (":authority", "a/b")],
            false,
        ),
        ("8.3.1: no method", vec![(":method", ""), SCHEME, PATH, AUTHORITY], false),
        ("8.3.1: a method with a space", vec![(":method", "GE T"), SCHEME, PATH, AUTHORITY], false),
        ("8.3.1: no scheme", vec![METHOD, (":scheme", ""), PATH, AUTHORITY], false),
        ("8.2.1: upper case", whole(&[("X-Upper", "b")]), false),
        ("8.2.1: upper case in a name that is known", whole(&[("Accept", "b")]), false),
        ("8.2.1: no name", whole(&[("", "b")]), false),
        ("8.2.1: a space in a name", whole(&[("a b", "c")]), false),
        ("8.2.1: a colon in a name", whole(&[("a:b", "c")]), false),
        ("8.2.1: NUL in a name", whole(&[("a\0", "c")]), false),
        ("8.2.1: a letter of another alphabet in a name", whole(&[("ä", "c")]), false),
        ("8.2.1: NUL in a value", whole(&[("a", "b\0")]), false),
        ("8.2.1: CR in a value", whole(&[("a", "b\rc")]), false),
        ("8.2.1: LF in a value", whole(&[("a", "b\nc")]), false),
        ("8.2.1: a space before a value", whole(&[("a", " b")]), false),
        ("8.2.1: a space behind a value", whole(&[("a", "b\t")]), false),
        ("8.2.1: a tab in a value", whole(&[("a", "b\tc")]), true),
        ("8.2.1: no value", whole(&[("a", "")]), true),
        ("8.2.1: a letter of another alphabet in a value", whole(&[("a", "ä")]), true),
        ("8.2.2: connection", whole(&[("connection", "a")]), false),
        ("8.2.2: keep-alive", whole(&[("keep-alive", "1")]), false),
        ("8.2.2: proxy-connection", whole(&[("proxy-connection", "a")]), false),
        ("8.2.2: transfer-encoding", whole(&[("transfer-encoding", "chunked")]), false),
        ("8.2.2: upgrade", whole(&[("upgrade", "h2c")]), false),
        ("8.2.2: te", whole(&[("te", "gzip")]), false),
        ("8.2.2: te with trailers", whole(&[("te", "trailers")]), true),
        ("8.2.3: cookies in crumbs", whole(&[("cookie", "a=b"), ("cookie", "c=d")]), true),
        ("8.1.1: a length without a body", whole(&[("content-length", "1")]), false),
        ("8.1.1: no length", whole(&[("content-length", "0")]), true),
        ("8.1.1: a length that is none", whole(&[("content-length", "+0")]), false),
        ("8.1.1: a length beyond all", whole(&[("content-length", "99999999999999999999")]), false),
        ("8.1.1: two lengths", whole(&[("content-length", "0"), ("content-length", "0")]), false),
        ("8.5: CONNECT", vec![connect, AUTHORITY], true),
        ("8.5: CONNECT with a path", vec![connect, PATH, AUTHORITY], false),
        ("8.5: CONNECT with a scheme", vec![connect, SCHEME, AUTHORITY], false),
        ("8.5: CONNECT to nobody", vec![connect], false),
        ("RFC 8441, 4", vec![connect, websocket, SCHEME, PATH, AUTHORITY], true),
        ("RFC 8441, 4: of another method", whole(&[websocket]), false),
        ("RFC 8441, 4: without a path", vec![connect, websocket, SCHEME, AUTHORITY], false),
        ("RFC 8441, 4: without an authority", vec![connect, websocket, SCHEME, PATH], false),
        (
            "RFC 8441, 4: two protocols",
            vec![connect, websocket, websocket, SCHEME, PATH, AUTHORITY],
            false,
        ),
    ] {
        let mut talk = Talk::begun();
        talk.say(&frame(HEADERS, END, 1, &block(&fields)));
        let wrong = "RST_STREAM 1 PROTOCOL_ERROR\n";
        assert_eq!(talk.heard.starts_with("asks"), good, "{section}: {}", talk.heard);
        assert_eq!(talk.heard == wrong, !good, "{section}: {}", talk.heard);
        talk.heard.clear();
        talk.say(&get(3, &[]));
        assert_eq!(talk.heard, "asks GET /\n", "after {section}");
    }
}

#[test]
fn a_head_that_is_too_long_is_told_so() {
    let value = "x".repeat(126);
    let long = |count: usize| -> Vec<(&str, &str)> {
        GET.into_iter().chain((0..count).map(|_| ("a", &*value))).collect()
    };
    let size = |fields: &[(&str, &str)]| -> usize {
        fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
    };
    let parts = |fields: &[(&str, &str)]| -> Vec<u8> {
        let block = block(fields);
        let mut parts: Vec<_> = block.chunks(10_000).collect();
        let last = parts.pop().unwrap();
        let first = frame(HEADERS, END_STREAM, 1, parts.first().unwrap());
        let more = parts[1..].iter().flat_map(|part| frame(CONTINUATION, 0, 1, part));
        [first, more.collect(), frame(CONTINUATION, END_HEADERS, 1, last)].concat()
    };
    for (count, heard) in [
        (204, "asks GET /"),
        (206, "HEADERS 1 431 end"),
        (800, "HEADERS 1 431 end"),
        (830, "GOAWAY 0 ENHANCE_YOUR_CALM"),
    ] {
        let fields = long(count);
        let mut talk = Talk::begun();
        talk.say(&parts(&fields));
        assert_eq!(talk.heard.trim_end(), heard, "{}", size(&fields));
    }
    // What is remembered of it is known afterwards, also where it came with a body.
    let mut encoder = Encoder::default();
    let mut head = Vec::new();
    for (name, value) in long(300) {
        encoder.field(name.as_bytes(), value.as_bytes(), &mut head);
    }
    let mut talk = Talk::begun();
    talk.say(&frame(HEADERS, END_HEADERS, 1, &head));
    assert_eq!(talk.heard, "HEADERS 1 431 end\nRST_STREAM 1 NO_ERROR\n");
    talk.heard.clear();
    let mut head = Vec::new();
    for (name, value) in long(1) {
        encoder.field(name.as_bytes(), value.as_bytes(), &mut head);
    }
    talk.say(&[frame(DATA, END_STREAM, 1, b"x"), frame(HEADERS, END, 3, &head)].concat());
    assert_eq!(talk.heard, "asks GET /\n");
}

#[test]
fn windows_are_kept_in_both_directions() {
    let full = |stream: u32| data(stream, MOST_PAYLOAD).repeat(WINDOW as usize / MOST_PAYLOAD);
    // What nobody reads is not given back, and no more of it is taken.
    let mut talk = Talk::begun();
    talk.say(&[post(1, &[]), full(1)].concat());
    assert_eq!(talk.heard, "asks POST /\n");
    talk.say(&data(1, 1));
    assert_eq!(
        talk.heard,
        "asks POST /\nWINDOW_UPDATE 0 262145\nRST_STREAM 1 FLOW_CONTROL_ERROR\n"
    );
    let mut talk = Talk::begun();
    for stream in [1, 3, 5, 7] {
        talk.say(&[post(stream, &[]), full(stream)].concat());
    }
    talk.say(&post(9, &[]));
    talk.heard.clear();
    talk.say(&data(9, 1));
    assert_eq!(talk.heard, "GOAWAY 9 FLOW_CONTROL_ERROR\n");

    // An answer goes as far as the client takes it, which may change its mind.
    let mut talk = Talk::begun();
    talk.say(&[setting(0x4, 10), get(1, &[])].concat());
    let place = 0;
    let connection = &mut talk.connection;
    connection.answer(place, StatusCode::OK, &Fields::new(), false);
    assert_eq!(connection.room(place), 10);
    connection.send(place, b"12345678", false);
    assert_eq!(connection.room(place), 2);
    assert!(connection.is_wider());
    for (said, room) in [
        (setting(0x4, 2), 0),
        (update(1, 6), 0),
        (update(1, 1), 1),
        (setting(0x4, 12), 11),
        (update(1, 1 << 20), MOST_PAYLOAD),
        (setting(0x4, 0), MOST_PAYLOAD),
    ] {
        assert!(!talk.connection.is_wider());
        talk.say(&said);
        assert_eq!(talk.connection.room(place), room);
        assert!(talk.connection.is_wider());
    }
    for _ in 0..3 {
        talk.connection.send(place, &[0; MOST_PAYLOAD], false);
    }
    // The connection has a window, too.
    assert_eq!(talk.connection.room(place), 65_535 - 8 - 3 * MOST_PAYLOAD);
}

#[test]
fn what_is_on_its_way_to_a_stream_that_was_answered_early_is_forgotten() {
    let mut talk = Talk::begun();
    let fields = block(&[(":method", "POST"), SCHEME, (":path", "/answer"), AUTHORITY]);
    talk.say(&frame(HEADERS, END_HEADERS, 1, &fields));
    assert!(talk.heard.ends_with("DATA 1 4 end\nRST_STREAM 1 NO_ERROR\n"), "{}", talk.heard);
    for number in 1..=300 {
        talk.say(&answered(2 * number + 1));
    }
    talk.say(&[data(1, 1), frame(HEADERS, END, 1, &block(&[("a", "b")]))].concat());
    assert!(!talk.heard.contains("GOAWAY"), "{}", talk.heard);
}

#[test]
fn who_has_been_told_which_stream_is_the_last_hears_of_no_later_one() {
    let mut talk = Talk::begun();
    talk.say(&get(1, &[]));
    talk.connection.leave_now();
    talk.say(&get(3, &[]));
    talk.say(&frame(PING, 0, 1, &[0; 8]));
    assert_eq!(talk.heard, "asks GET /\nGOAWAY 1 NO_ERROR\nGOAWAY 1 PROTOCOL_ERROR\n");
}

#[test]
fn what_a_client_has_forgotten_meanwhile_is_not_named() {
    let mut talk = Talk::begun();
    let fields: Fields = [(Known::Server, "x")].into_iter().collect();
    talk.say(&[get(1, &[]), get(3, &[])].concat());
    talk.connection.answer(0, StatusCode::OK, &fields, true);
    let [none, usual] = [0_u32, 4096].map(|size| [&[0, 1][..], &size.to_be_bytes()].concat());
    talk.say(&frame(SETTINGS, 0, 0, &[none, usual].concat()));
    talk.connection.answer(1, StatusCode::OK, &fields, true);
    let head = &talk.connection.out[frames::HEADER..];
    assert_eq!(head[..5], [0x20, 0x3f, 0xe1, 0x1f, 0x88], "RFC 7541, 4.2");
    talk.hear();
    assert!(talk.heard.ends_with("HEADERS 3 200 server=x end\n"), "{}", talk.heard);
}
