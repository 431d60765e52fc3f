//! Answers that are compressed on their way to clients that can read that, by the rules of nginx.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use fairway_model::Gzip;
use flate2::{Compress, Compression, FlushCompress, Status};
use http::{HeaderMap, Method, StatusCode, Version};
use hyper::body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::Cut;
use crate::headers::says;
use crate::message::{Fields, Head, Known, Response, text};

/// Bytes that are compressed in one go: less than a millisecond, at any level.
const STEP: usize = 16 << 10;
/// After so many bytes it is the turn of others.
const TURN: usize = 64 << 10;
/// Answers of a worker that are compressed at a time, which take some 300 KiB each. What comes beyond that goes as
/// it is.
const MOST: usize = 256;
/// Compressors that a worker keeps for the next answers.
const SPARE: usize = 4;

/// Bytes; where nothing is said.
const MIN_LENGTH: u64 = 256;
/// Media types that are worth it, where nothing is said; `text/html` always is.
const TYPES: [&str; 17] = [
    "application/atom+xml",
    "application/javascript",
    "application/json",
    "application/rss+xml",
    "application/vnd.ms-fontobject",
    "application/x-font-ttf",
    "application/x-javascript",
    "application/x-web-app-manifest+json",
    "application/xhtml+xml",
    "application/xml",
    "font/opentype",
    "image/svg+xml",
    "image/x-icon",
    "text/css",
    "text/javascript",
    "text/plain",
    "text/x-component",
];

/// Whether whoever asks can read what is compressed; `None`: his answers are left alone in any case.
pub(crate) fn asked_for(request: &Head) -> Option<bool> {
    let has_body = request.method != Method::HEAD;
    has_body.then(|| request.version > Version::HTTP_10 && takes_gzip(&request.fields))
}

/// Whether `Accept-Encoding` has gzip. That it has `*` is not enough, nor is it for nginx.
fn takes_gzip(fields: &Fields) -> bool {
    let mut codings = fields.texts(Known::AcceptEncoding).flat_map(|value| value.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        gzip && weight.is_none_or(|weight| weight.parse().is_ok_and(|weight: f32| weight > 0.0))
    })
}

/// Whether an answer with a body of so many bytes, where that is known, is one to compress.
fn is_worth_it<B>(rules: &Gzip, answer: &Response<B>, length: Option<u64>) -> bool {
    let fields = &answer.fields;
    let statuses = [StatusCode::OK, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND];
    let long = length.is_none_or(|length| length >= rules.min_length.unwrap_or(MIN_LENGTH).max(1));
    // What is said about the bytes would be about others.
    let fixed = [
        Known::ContentEncoding,
        Known::ContentRange,
        Known::ContentDigest,
        Known::ContentMd5,
        Known::Digest,
        Known::ReprDigest,
    ];
    statuses.contains(&answer.status)
        && long
        && !fixed.into_iter().any(|name| fields.contains(name))
        && !says(fields, Known::CacheControl, "no-transform")
        && fields.get(Known::ContentType).is_some_and(|value| is_type(rules, value))
}

fn is_type(rules: &Gzip, value: &[u8]) -> bool {
    let Some(value) = text(value) else { return false };
    let found = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // Its messages are compressed one by one, if at all.
    if found.starts_with("application/grpc") {
        return false;
    }
    let is = |kind: &str| kind == "*" || kind.eq_ignore_ascii_case(&found);
    found == "text/html"
        || if rules.types.is_empty() {
            TYPES.contains(&&*found)
        } else {
            rules.types.iter().any(|kind| is(kind))
        }
}

/// Says in the head of an answer that what is compressed is not what others get, and, where it is compressed now,
/// that it is. `None`: it goes as it is.
pub(crate) fn begin<B>(
    lender: &Arc<Lender>,
    rules: &Gzip,
    taken: bool,
    answer: &mut Response<B>,
    length: Option<u64>,
) -> Option<Squeeze> {
    if !is_worth_it(rules, answer, length) {
        return None;
    }
    let fields = &mut answer.fields;
    if !says(fields, Known::Vary, "accept-encoding") && !says(fields, Known::Vary, "*") {
        fields.append(Known::Vary, "Accept-Encoding");
    }
    let lent = if taken { lender.lend(rules.level.unwrap_or(1))? } else { return None };
    fields.set(Known::ContentEncoding, "gzip");
    fields.remove(Known::ContentLength);
    fields.remove(Known::AcceptRanges);
    match fields.get(Known::ETag).map(weak) {
        Some(Some(tag)) => fields.set(Known::ETag, tag),
        _ => fields.remove(Known::ETag),
    }
    Some(Squeeze::new(lent))
}

/// The tag of what means the same, byte for byte or not (RFC 9110, 8.8.1).
fn weak(tag: &[u8]) -> Option<Vec<u8>> {
    match tag {
        [b'W', b'/', ..] => Some(tag.to_vec()),
        [b'"', ..] => Some([b"W/", tag].concat()),
        _ => None,
    }
}

/// The compressors of a worker.
#[derive(Debug)]
pub(crate) struct Lender {
    room: Arc<Semaphore>,
    /// By their level.
    spare: Mutex<Vec<(u8, Compress)>>,
}

impl Default for Lender {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MOST)), spare: Mutex::default() }
    }
}

impl Lender {
    fn lend(self: &Arc<Self>, level: u8) -> Option<Lent> {
        let room = Arc::clone(&self.room).try_acquire_owned().ok()?;
        let level = level.clamp(1, 9);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of a level that nobody asks for any more go, too.
        let same = std::iter::from_fn(|| spare.pop()).find(|(of, _)| *of == level);
        let (_, compress) =
            same.unwrap_or_else(|| (level, Compress::new_gzip(Compression::new(level.into()), 15)));
        Some(Lent { level, compress: Some(compress), lender: Arc::clone(self), _room: room })
    }
}

/// A compressor, for one answer.
#[derive(Debug)]
struct Lent {
    level: u8,
    /// There until this is dropped.
    compress: Option<Compress>,
    lender: Arc<Lender>,
    _room: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.lender.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut compress) = self.compress.take().filter(|_| spare.len() < SPARE) {
            compress.reset();
            spare.push((self.level, compress));
        }
    }
}

impl Lent {
    /// Takes all of `input`, and gives what there is of output, which may be nothing before a flush.
    fn run(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        flush: FlushCompress,
    ) -> Result<(), Cut> {
        let compress = self.compress.as_mut().ok_or(Cut::Compression)?;
        loop {
            out.reserve(STEP / 2);
            let before = compress.total_in();
            let status = compress.compress_vec(input, out, flush);
            let status = status.map_err(|_| Cut::Compression)?;
            let taken = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
            input = input.get(taken..).unwrap_or_default();
            let over = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                // What does not fill its room is all there is.
                _ => input.is_empty() && out.len() < out.capacity(),
            };
            if over {
                return Ok(());
            }
        }
    }
}

/// A body that is being compressed.
#[derive(Debug)]
pub(crate) struct Squeeze {
    /// `None`: the last of it is out.
    lent: Option<Lent>,
    /// What has come and is not compressed.
    input: Bytes,
    /// What is compressed and too little to be sent by itself.
    out: Vec<u8>,
    /// Something has come that the client cannot read yet.
    unread: bool,
    /// Nothing comes any more.
    over: bool,
    trailers: Option<HeaderMap>,
    /// Bytes since others had their turn.
    turn: usize,
}

impl Squeeze {
    fn new(lent: Lent) -> Self {
        let (input, out, trailers) = (Bytes::new(), Vec::new(), None);
        Self { lent: Some(lent), input, out, unread: false, over: false, trailers, turn: 0 }
    }

    /// Whether all of it was given.
    pub(crate) fn is_over(&self) -> bool {
        self.lent.is_none() && self.trailers.is_none()
    }

    /// The next part of what `source` becomes. Where that pauses, the client gets all that there was of it.
    pub(crate) fn poll<S>(
        &mut self,
        source: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>>
    where
        S: Body<Data = Bytes, Error = Cut> + Unpin,
    {
        loop {
            let Some(lent) = &mut self.lent else {
                let trailers = self.trailers.take();
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            };
            if self.input.is_empty() && !self.over {
                match Pin::new(&mut *source).poll_frame(cx) {
                    Poll::Pending => {
                        self.turn = 0;
                        if !std::mem::take(&mut self.unread) {
                            return Poll::Pending;
                        }
                        let flushed = lent.run(&[], &mut self.out, FlushCompress::Sync);
                        return Poll::Ready(Some(flushed.map(|()| self.part())));
                    }
                    Poll::Ready(Some(Err(cut))) => return Poll::Ready(Some(Err(cut))),
                    Poll::Ready(None) => self.over = true,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            self.input = data;
                            self.over = source.is_end_stream();
                        }
                        Err(frame) => {
                            self.trailers = frame.into_trailers().ok();
                            self.over = true;
                        }
                    },
                }
            }
            if self.turn >= TURN {
                self.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let part = self.input.split_to(self.input.len().min(STEP));
            self.turn += part.len();
            self.unread |= !part.is_empty();
            let last = self.over && self.input.is_empty();
            let flush = if last { FlushCompress::Finish } else { FlushCompress::None };
            if let Err(cut) = lent.run(&part, &mut self.out, flush) {
                return Poll::Ready(Some(Err(cut)));
            }
            if last {
                self.lent = None;
            }
            if last || self.out.len() >= STEP / 2 {
                return Poll::Ready(Some(Ok(self.part())));
            }
        }
    }

    fn part(&mut self) -> Frame<Bytes> {
        Frame::data(std::mem::take(&mut self.out).into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read as _;

    use super::*;
    use crate::message::Span;

    #[test]
    fn who_takes_what_is_compressed() {
        for (said, taken) in [
            ("gzip", true),
            ("deflate, GZip ; q=0.5, br", true),
            ("gzip;q=1.000", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("gzip;q=x", false),
            ("br, identity, *", false),
            ("xgzip, gzipped", false),
            ("", false),
        ] {
            assert_eq!(asked(Method::GET, Version::HTTP_11, said), Some(taken), "{said}");
        }
        assert_eq!(asked(Method::HEAD, Version::HTTP_11, "gzip"), None);
        assert_eq!(asked(Method::GET, Version::HTTP_10, "gzip"), Some(false));
        assert_eq!(asked(Method::GET, Version::HTTP_2, "gzip"), Some(true));
    }

    fn asked(method: Method, version: Version, said: &str) -> Option<bool> {
        let fields = Fields::from_iter([(Known::AcceptEncoding, said)]);
        asked_for(&Head::new(method, version, Span::default(), None, fields).unwrap())
    }

    fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Response<()> {
        let status = StatusCode::from_u16(status).unwrap();
        Response { status, fields: headers.iter().copied().collect(), body: () }
    }

    #[test]
    fn what_is_compressed_is_what_nginx_compresses() {
        let kind = |kind| ("content-type", kind);
        let html = kind("text/html; charset=utf-8");
        for (status, headers, length, worth_it) in [
            (200, &[html][..], None, true),
            (404, &[html], Some(256), true),
            (403, &[kind("Application/JSON")], None, true),
            (200, &[html], Some(255), false),
            (500, &[html], None, false),
            (206, &[html], None, false),
            (200, &[html, ("content-range", "bytes 0-9/10")], None, false),
            (200, &[html, ("content-encoding", "br")], None, false),
            (200, &[html, ("content-digest", "sha-256=:x:")], None, false),
            (200, &[html, ("digest", "sha-256=x")], None, false),
            (200, &[html, ("content-md5", "x")], None, false),
            (200, &[html, ("cache-control", "public, No-Transform")], None, false),
            (200, &[kind("image/png")], None, false),
            (200, &[kind("text/event-stream")], None, false),
            (200, &[], None, false),
        ] {
            let found = is_worth_it(&Gzip::default(), &head(status, headers), length);
            assert_eq!(found, worth_it, "{status} {headers:?} {length:?}");
        }
        let types = |types: &[&str]| {
            let types = types.iter().map(|kind| (*kind).to_owned()).collect();
            Gzip { types, min_length: Some(0), ..Gzip::default() }
        };
        for (rules, said, worth_it) in [
            (types(&["text/event-stream"]), "text/event-stream", true),
            (types(&["text/event-stream"]), "text/html", true),
            (types(&["text/event-stream"]), "text/css", false),
            (types(&["*"]), "image/png", true),
            (types(&["*"]), "application/grpc+proto", false),
        ] {
            let head = head(200, &[("content-type", said)]);
            assert_eq!(is_worth_it(&rules, &head, Some(1)), worth_it, "{rules:?} {said}");
            assert!(!is_worth_it(&rules, &head, Some(0)), "there is nothing");
        }
    }

    fn after(taken: bool, headers: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut all = vec![("content-type", "text/css")];
        all.extend(headers);
        let mut head = head(200, &all);
        let squeeze = begin(&Arc::default(), &Gzip::default(), taken, &mut head, None);
        assert_eq!(squeeze.is_some(), taken);
        head.fields.remove(Known::ContentType);
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let found = head.fields.iter().map(|field| (text(field.name), text(field.value)));
        let mut found: Vec<_> = found.collect();
        found.sort();
        found
    }

    #[test]
    fn the_head_says_what_has_become_of_the_body() {
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            pairs.collect::<Vec<_>>()
        };
        let vary = ("vary", "Accept-Encoding");
        let gzip = ("content-encoding", "gzip");
        let whole = [("accept-ranges", "bytes"), ("content-length", "999"), ("etag", "\"a\"")];
        assert_eq!(after(true, &whole), pairs(&[gzip, ("etag", "W/\"a\""), vary]));
        assert_eq!(after(true, &[("etag", "W/\"a\"")]), pairs(&[gzip, ("etag", "W/\"a\""), vary]));
        assert_eq!(after(true, &[("etag", "odd")]), pairs(&[gzip, vary]));
        let kept = [&whole[..], &[vary]].concat();
        assert_eq!(after(false, &whole), pairs(&kept));
        for said in ["Origin, accept-encoding", "*"] {
            assert_eq!(after(false, &[("vary", said)]), pairs(&[("vary", said)]));
        }
        assert_eq!(
            after(false, &[("vary", "Origin")]),
            pairs(&[("vary", "Accept-Encoding"), ("vary", "Origin")])
        );
    }

    /// Parts, and pauses between them.
    struct Script(VecDeque<Option<Frame<Bytes>>>);

    impl Body for Script {
        type Data = Bytes;
        type Error = Cut;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
            match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(None) => Poll::Pending,
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            }
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    /// What comes out, part by part, and whether it ended with trailers. `None`: it paused.
    fn squeeze(level: u8, parts: Vec<Option<Frame<Bytes>>>) -> (Vec<Option<Bytes>>, bool) {
        let lender = Arc::default();
        let mut squeeze = Squeeze::new(Lender::lend(&lender, level).unwrap());
        let mut script = Script(parts.into());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut out, mut trailers) = (Vec::new(), false);
        while !squeeze.is_over() {
            match squeeze.poll(&mut script, &mut cx) {
                Poll::Pending => out.push(None),
                Poll::Ready(None) => break,
                Poll::Ready(Some(frame)) => match frame.unwrap().into_data() {
                    Ok(data) => out.push(Some(data)),
                    Err(_) => trailers = true,
                },
            }
        }
        assert_eq!(lender.room.available_permits(), MOST);
        (out, trailers)
    }

    fn read(parts: &[Option<Bytes>]) -> Vec<u8> {
        let all: Vec<u8> = parts.iter().flatten().flat_map(|part| part.to_vec()).collect();
        let mut text = Vec::new();
        // What is not there yet is an error at its end, and no loss.
        let _ = flate2::read::GzDecoder::new(&*all).read_to_end(&mut text);
        text
    }

    #[test]
    fn all_of_it_arrives_in_small_steps() {
        let text: Vec<u8> = (0..60_000_u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
        for level in [1, 9] {
            let (out, _) = squeeze(level, vec![Some(Frame::data(text.clone().into()))]);
            assert_eq!(read(&out), text);
            let pauses = out.iter().filter(|part| part.is_none()).count();
            assert!(pauses >= text.len() / TURN - 1, "others have their turn: {pauses}");
            assert!(out.iter().flatten().all(|part| part.len() < 8 * STEP));
        }
        let (out, trailers) = squeeze(
            1,
            vec![Some(Frame::data("x".into())), Some(Frame::trailers(HeaderMap::new()))],
        );
        assert_eq!((read(&out), trailers), (b"x".to_vec(), true));
    }

    #[test]
    fn where_the_backend_pauses_the_client_has_all_that_there_was() {
        let event = |text: &'static str| Some(Frame::data(Bytes::from_static(text.as_bytes())));
        let (out, _) =
            squeeze(6, vec![event("data: 1\n\n"), None, None, event("data: 2\n\n"), None]);
        assert_eq!(out.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, true]);
        assert_eq!(read(&out[..1]), b"data: 1\n\n");
        assert_eq!(read(&out[..3]), b"data: 1\n\ndata: 2\n\n");
    }

    #[test]
    fn no_more_answers_are_compressed_than_there_is_room_for() {
        let lender =
            Arc::new(Lender { room: Arc::new(Semaphore::new(1)), spare: Mutex::default() });
        let one = Lender::lend(&lender, 3);
        assert!(one.is_some() && Lender::lend(&lender, 3).is_none());
        drop(one);
        let spare = |lender: &Lender| lender.spare.lock().unwrap().len();
        assert_eq!(spare(&lender), 1);
        let again = Lender::lend(&lender, 3);
        assert_eq!(spare(&lender), 0);
        drop(again);
        drop(Lender::lend(&lender, 4));
        let levels: Vec<_> = lender.spare.lock().unwrap().iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [4], "those of before are of no use");
    }
}
