//! Bytes of a connection without one, for who holds it against inputs of any kind.

use std::collections::HashMap;

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::connection::Connection;
use super::frames::{self, Header, Reason};
use super::hpack::Decoder;
use crate::message::{Fields, Known, Upload};

/// What a client's bytes have come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Played {
    /// Method and target of each request, and its body as far as it came.
    pub(crate) asked: Vec<(String, String, Vec<u8>)>,
    /// What the client is sent.
    pub(crate) sent: Vec<u8>,
    /// Why it is not listened to any more.
    pub(crate) ended: Option<String>,
}

/// Takes the bytes behind a preface in pieces of this size. Requests are answered as they come, with what was sent of them,
/// if `answers`; else they are taken up when all bytes have come.
///
/// # Panics
/// What the client is sent is no HTTP/2, or more than it takes.
pub(crate) fn play(bytes: &[u8], size: usize, answers: bool) -> Played {
    let (mut connection, mut played) = (Connection::default(), Played::default());
    let mut answering = Vec::new();
    let mut taken = connection.receive(frames::PREFACE);
    let mut pieces = bytes.chunks(size.max(1));
    while taken.is_ok() {
        let Some(piece) = pieces.next() else { break };
        taken = connection.receive(piece);
        if answers && taken.is_ok() {
            take_up(&mut connection, &mut played, &mut answering);
            answering.retain_mut(|answer| go_on(&mut connection, &mut played, answer));
        }
    }
    take_up(&mut connection, &mut played, &mut answering);
    for answering in &mut answering {
        read(&mut answering.upload, &mut played.asked[answering.number].2);
    }
    played.ended = taken.err().map(|fault| fault.to_string());
    played.sent = std::mem::take(&mut connection.out);
    check(&played.sent);
    played
}

/// A request that was taken up.
struct Answering {
    number: usize,
    place: usize,
    upload: Upload,
    /// The client has the head of its answer.
    begun: bool,
}

fn take_up(connection: &mut Connection, played: &mut Played, answering: &mut Vec<Answering>) {
    connection.closed(|closed| answering.retain(|it| it.place != closed));
    let mut fresh = Vec::new();
    connection.fresh(&mut fresh);
    for place in fresh {
        let Some((asked, upload)) = connection.begin(place) else { continue };
        let (method, target) = (asked.head.method.to_string(), asked.head.target().to_owned());
        answering.push(Answering { number: played.asked.len(), place, upload, begun: false });
        played.asked.push((method, target, Vec::new()));
    }
}

/// Sends what was read, as far as the client takes it; whether there may be more.
fn go_on(connection: &mut Connection, played: &mut Played, answer: &mut Answering) -> bool {
    let place = answer.place;
    let body = &mut played.asked[answer.number].2;
    let before = body.len();
    if !std::mem::replace(&mut answer.begun, true) {
        let fields: Fields = [(Known::Server, "x"), (Known::Date, "today")].into_iter().collect();
        connection.answer(place, StatusCode::OK, &fields, false);
    }
    let good = read(&mut answer.upload, body);
    connection.look_after(place);
    if !good {
        connection.reset(place, Reason::Internal);
        return false;
    }
    let room = connection.room(place).min(body.len() - before);
    let ends = answer.upload.is_end_stream();
    if room > 0 || ends {
        connection.send(place, &body[before..before + room], ends);
    }
    !ends
}

/// Reads what there is; whether that is good.
fn read(upload: &mut Upload, body: &mut Vec<u8>) -> bool {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        match std::pin::pin!(upload.frame()).poll(&mut cx) {
            std::task::Poll::Ready(Some(Ok(frame))) => {
                body.extend(frame.into_data().unwrap_or_default());
            }
            std::task::Poll::Ready(Some(Err(_))) => return false,
            std::task::Poll::Ready(None) | std::task::Poll::Pending => return true,
        }
    }
}

/// Whole frames, each where it may be.
fn check(sent: &[u8]) {
    let (mut rest, mut decoder) = (sent, Decoder::default());
    // Whether a stream has an answer's head, and its end.
    let mut streams: HashMap<u32, (bool, bool)> = HashMap::new();
    while let Some(header) = Header::read(rest) {
        let length = frames::HEADER + header.length;
        assert!(header.length <= frames::MOST_PAYLOAD && rest.len() >= length, "{header:?}");
        let (payload, more) = rest[frames::HEADER..].split_at(header.length);
        rest = more;
        let (begun, ended) = streams.entry(header.stream).or_default();
        match header.kind {
            frames::HEADERS => {
                assert!(header.has(frames::END_HEADERS) && !*ended, "{header:?}");
                let fields = decoder.decode(payload, &mut Vec::new(), |_, _| Ok(()));
                fields.expect("a head");
                *begun = true;
            }
            frames::DATA => assert!(*begun && !*ended, "{header:?}"),
            frames::WINDOW_UPDATE | frames::RST_STREAM => assert_eq!(header.length, 4),
            frames::PING | frames::GOAWAY => assert_eq!((header.length, header.stream), (8, 0)),
            frames::SETTINGS => assert_eq!((header.length % 6, header.stream), (0, 0)),
            kind => panic!("a frame of kind {kind}"),
        }
        let ends =
            matches!(header.kind, frames::DATA | frames::HEADERS) && header.has(frames::END_STREAM);
        *ended |= ends || header.kind == frames::RST_STREAM;
    }
    assert!(rest.is_empty(), "half a frame");
}
