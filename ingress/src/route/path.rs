//! Paths of requests, brought to the one form in which they are compared.
//!
//! A path is decoded once, its dots are resolved and slashes that follow each other count as one, so that
//! whoever guards `/admin` guards `//admin`, `/x/../admin`, `/%61dmin` and `/admin%2Fusers`, too. Backends get
//! the bytes that the client sent, except that dots are resolved for them as well: what has been decided about
//! one path is never another one behind the gateway. Dots that a backend might find where nobody else does,
//! next to an encoded slash, a backslash or a semicolon, make the request a bad one.

use std::borrow::Cow;

/// A path in its normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normal<'a> {
    /// Decoded: what rules are held against.
    pub(super) decoded: Cow<'a, [u8]>,
    /// Encoded as the client did it, dots resolved: what backends get.
    pub(super) raw: Cow<'a, str>,
    /// Dots were resolved, or slashes counted as one.
    pub(super) changed: bool,
}

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAPath {
    /// It is no path.
    #[error("the path does not begin with a slash")]
    Relative,
    /// A percent sign.
    #[error("a percent sign in the path has no two hexadecimal digits behind it")]
    Escape,
    /// A zero byte, encoded or not.
    #[error("a zero byte in the path")]
    Zero,
    /// One that is not encoded: some take it for a slash, and it may not stand in a path (RFC 3986, 3.3).
    #[error("a backslash in the path is not encoded")]
    Backslash,
    /// More `..` than there are elements before them.
    #[error("the path leaves the root")]
    AboveRoot,
    /// Dots next to an encoded slash, a backslash or a semicolon.
    #[error("the path has dots that only some would resolve")]
    HiddenDots,
}

/// The normal form of `path`, which has no query.
pub(super) fn normal(path: &str) -> Result<Normal<'_>, NotAPath> {
    if !path.starts_with('/') {
        return Err(NotAPath::Relative);
    }
    let mut before = 0;
    let plain = path.bytes().all(|byte| {
        let odd = matches!(byte, b'%' | b'\\' | b';' | 0)
            || before == b'/' && matches!(byte, b'/' | b'.');
        before = byte;
        !odd
    });
    if plain {
        let decoded = Cow::Borrowed(path.as_bytes());
        return Ok(Normal { decoded, raw: Cow::Borrowed(path), changed: false });
    }
    resolve(path)
}

/// What `path`, which has no normal form, begins with that has one.
pub(super) fn beginning(path: &str) -> String {
    let odd = path.find(['%', '\\', ';', '\0']).unwrap_or(path.len());
    let dots = path.find("/.").map_or(path.len(), |slash| slash + 1);
    let begin = &path[..odd.min(dots)];
    let begin = format!("/{}", begin.trim_start_matches('/'));
    // Nothing of that needs more than slashes that count as one.
    normal(&begin)
        .ok()
        .and_then(|path| String::from_utf8(path.decoded.into_owned()).ok())
        .unwrap_or_else(|| "/".to_owned())
}

/// The same for a path that may need work.
fn resolve(path: &str) -> Result<Normal<'_>, NotAPath> {
    if path.contains('\\') {
        return Err(NotAPath::Backslash);
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut raw = String::with_capacity(path.len());
    // Where elements begin, with their slash, in both.
    let mut elements = Vec::new();
    let (mut dots, mut slashes) = (false, false);
    let mut element = Vec::new();
    let mut rest = path[1..].split('/').peekable();
    let mut open = false;
    while let Some(text) = rest.next() {
        let last = rest.peek().is_none();
        decode(text, &mut element)?;
        match element.as_slice() {
            b"" => {
                slashes |= !last;
                open = last;
            }
            b"." => (dots, open) = (true, last),
            b".." => {
                let (in_decoded, in_raw) = elements.pop().ok_or(NotAPath::AboveRoot)?;
                decoded.truncate(in_decoded);
                raw.truncate(in_raw);
                (dots, open) = (true, last);
            }
            _ => {
                if hides_dots(&element) {
                    return Err(NotAPath::HiddenDots);
                }
                elements.push((decoded.len(), raw.len()));
                raw.push('/');
                raw.push_str(text);
                push_merged(&mut decoded, b'/');
                element.iter().for_each(|byte| push_merged(&mut decoded, *byte));
                open = false;
            }
        }
    }
    if open || decoded.is_empty() {
        raw.push('/');
        push_merged(&mut decoded, b'/');
    }
    let raw = if dots { Cow::Owned(raw) } else { Cow::Borrowed(path) };
    Ok(Normal { decoded: Cow::Owned(decoded), raw, changed: dots || slashes })
}

/// Adds `byte`, unless it is a slash after a slash.
fn push_merged(path: &mut Vec<u8>, byte: u8) {
    if byte != b'/' || path.last() != Some(&b'/') {
        path.push(byte);
    }
}

/// Brings what `text` encodes to `element`.
fn decode(text: &str, element: &mut Vec<u8>) -> Result<(), NotAPath> {
    element.clear();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || {
                let digit = bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(NotAPath::Escape)
            };
            digit()? << 4 | digit()?
        } else {
            byte
        };
        if byte == 0 {
            return Err(NotAPath::Zero);
        }
        element.push(byte);
    }
    Ok(())
}

/// Whether somebody who splits `element` at slashes or backslashes, or cuts it at a semicolon, finds dots.
fn hides_dots(element: &[u8]) -> bool {
    element.iter().any(|byte| b"/\\;".contains(byte))
        && element.split(|byte| b"/\\".contains(byte)).any(|piece| {
            let name = piece.split(|byte| *byte == b';').next().unwrap_or_default();
            name == b"." || name == b".."
        })
}

/// Encodes what may not stand in a path as it is, as nginx does it.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        push_encoded(&mut text, *byte, b"\"#%<>?\\^`{|}");
    }
    text
}

/// Encodes what is to be the value of a parameter of a query.
pub(super) fn encode_argument(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            push_encoded(&mut text, *byte, &[*byte]);
        }
    }
    text
}

/// Adds `byte`, encoded if it is among `special`, a space, a control character or none of ASCII.
pub(super) fn push_encoded(text: &mut String, byte: u8, special: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_graphic() && !special.contains(&byte) {
        text.push(char::from(byte));
    } else {
        text.push('%');
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_brought_to_their_normal_form() {
        for (path, decoded, raw) in [
            ("/", "/", "/"),
            ("/a/b", "/a/b", "/a/b"),
            ("/a/b/", "/a/b/", "/a/b/"),
            ("//a///b", "/a/b", "//a///b"),
            ("////", "/", "////"),
            ("/a//", "/a/", "/a//"),
            ("/a/./b", "/a/b", "/a/b"),
            ("/a/../b", "/b", "/b"),
            ("/a//../b", "/b", "/b"),
            ("/a/b/..", "/a/", "/a/"),
            ("/a/b/.", "/a/b/", "/a/b/"),
            ("/a/..", "/", "/"),
            ("/a/%2e%2E/b", "/b", "/b"),
            ("/%61dmin", "/admin", "/%61dmin"),
            ("/a%2Fb", "/a/b", "/a%2Fb"),
            ("/x/../a%2Fb", "/a/b", "/a%2Fb"),
            ("/a/%2F/b", "/a/b", "/a/%2F/b"),
            ("/%2Fa", "/a", "/%2Fa"),
            ("/a%2F", "/a/", "/a%2F"),
            ("/a%2F/..", "/", "/"),
            (
                "/.well-known/acme-challenge/x",
                "/.well-known/acme-challenge/x",
                "/.well-known/acme-challenge/x",
            ),
            ("/...", "/...", "/..."),
            ("/a;v=1/b", "/a;v=1/b", "/a;v=1/b"),
            ("/a%5Cb", "/a\\b", "/a%5Cb"),
            ("/%25", "/%", "/%25"),
        ] {
            let normal = normal(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(normal.decoded, decoded.as_bytes(), "{path}");
            assert_eq!(normal.raw, raw, "{path}");
        }
    }

    #[test]
    fn a_path_that_means_different_things_to_different_readers_is_refused() {
        for (path, why) in [
            ("", NotAPath::Relative),
            ("*", NotAPath::Relative),
            ("a/b", NotAPath::Relative),
            ("/%", NotAPath::Escape),
            ("/%4", NotAPath::Escape),
            ("/%4g", NotAPath::Escape),
            ("/%+4", NotAPath::Escape),
            ("/a%00b", NotAPath::Zero),
            ("/..", NotAPath::AboveRoot),
            ("/a/../../b", NotAPath::AboveRoot),
            ("/a/..%2Fb", NotAPath::HiddenDots),
            ("/a%2F..%2Fb", NotAPath::HiddenDots),
            ("/a%2f%2e%2e", NotAPath::HiddenDots),
            ("/a/..\\b", NotAPath::Backslash),
            ("/\\a", NotAPath::Backslash),
            ("/a/..%5cb", NotAPath::HiddenDots),
            ("/a/..;/b", NotAPath::HiddenDots),
            ("/a/.;x/b", NotAPath::HiddenDots),
            ("/a/..;x=1/b", NotAPath::HiddenDots),
        ] {
            assert_eq!(normal(path).unwrap_err(), why, "{path}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_read_has_a_beginning_that_can() {
        for (path, begin) in [
            ("/admin/%zz", "/admin/"),
            ("//admin%zz", "/admin"),
            ("/a/b\\c", "/a/b"),
            ("/a/../../b", "/a/"),
            ("/a;x/..;y", "/a"),
            ("/é/%FF", "/é/"),
            ("admin", "/admin"),
            ("*", "/*"),
            ("/..", "/"),
            ("", "/"),
        ] {
            assert_eq!(beginning(path), begin, "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_of_a_normal_form_is_the_same(path in "(/|\\.|%2[eEfF]|%5C|;|a|%C3|é){0,12}") {
            let path = format!("/{path}");
            if let Ok(first) = normal(&path) {
                let again = normal(&first.raw).expect("a normal form has one");
                prop_assert_eq!(&again.decoded, &first.decoded);
                prop_assert_eq!(&again.raw, &first.raw);
                // What was decoded has neither dots to resolve nor slashes to merge.
                let encoded = encode(&first.decoded);
                let decoded = normal(&encoded).expect("what is encoded can be read");
                prop_assert_eq!(&decoded.decoded, &first.decoded);
                prop_assert!(!decoded.changed);
            }
        }

        #[test]
        fn no_path_is_too_strange(path in "\\PC*") {
            let _ = normal(&path);
        }
    }
}
