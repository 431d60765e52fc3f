//! What annotations of ingress-nginx say, as its users write it, to what that means. Whatever is not meant
//! for a value is refused, so that no text of a user's is ever anything but a value.

use std::net::IpAddr;

use fairway_model::{ObjectName, Part, Template, Variable};
use ipnet::IpNet;

/// How large an expression may be when it is compiled, in bytes.
const LARGEST_EXPRESSION: usize = 1 << 20;
/// The longest value of an annotation that is looked at.
const LONGEST: usize = 4096;

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(false),
        _ => Err(wrong(text, "neither true nor false")),
    }
}

/// `on` and `off`, and what else people write for them.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => boolean(other).map_err(|_| wrong(text, "neither on nor off")),
    }
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = text.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| wrong(text, "no number, or too large a one; nothing may stand behind it"))
}

/// `8m` is 8 MiB.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let refused = || wrong(text, "no size, such as 512k, 8m or 1g");
    let (digits, shift) = match text.bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = number(digits).map_err(|_| refused())?;
    number.checked_mul(1 << shift).ok_or_else(refused)
}

/// Seconds, or with a unit: `90`, `30s`, `5m`, `2h`, `1d`.
pub(super) fn duration(text: &str) -> Result<u32, String> {
    let refused = || wrong(text, "no time, such as 90, 30s or 5m");
    let (digits, seconds) = match text.bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        Some(b'd') => (&text[..text.len() - 1], 86_400),
        _ => (text, 1),
    };
    let number: u32 = number(digits).map_err(|_| refused())?;
    number.checked_mul(seconds).ok_or_else(refused)
}

/// Between commas, without the white space around; none of them empty.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Ranges and addresses between commas.
pub(super) fn ranges(text: &str) -> Result<Vec<IpNet>, String> {
    let range = |item: &str| {
        let address = item.parse::<IpAddr>().ok().map(IpNet::from);
        let range = item.parse::<IpNet>().ok().map(|range| range.trunc());
        address
            .or(range)
            .ok_or_else(|| wrong(item, "neither a range such as 10.0.0.0/8 nor an address"))
    };
    let all: Vec<_> = list(text).map(range).collect::<Result<_, _>>()?;
    match all.is_empty() {
        true => Err("names no range; nobody would know whether all or none is meant".to_owned()),
        false => Ok(all),
    }
}

pub(super) fn template(text: &str) -> Result<Template, String> {
    short(text)?.parse().map_err(|error: fairway_model::NotATemplate| error.to_string())
}

/// A template that is an address, or a path where `path` allows it.
pub(super) fn address(text: &str, path: bool) -> Result<Template, String> {
    let template = template(text)?;
    let good = match template.0.as_slice() {
        [Part::Text(text), rest @ ..] => {
            let host = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
            host.is_some_and(|host| {
                !(host.starts_with(['/', '?']) || host.is_empty() && rest.is_empty())
            }) || path && text.starts_with('/')
        }
        [Part::Variable(Variable::Scheme | Variable::PassAccessScheme), Part::Text(text), ..] => {
            text.starts_with("://")
        }
        _ => false,
    };
    let spaces =
        template.0.iter().any(|part| matches!(part, Part::Text(text) if text.contains(' ')));
    match good && !spaces {
        true => Ok(template),
        false => Err(wrong(text, "no address that begins with http:// or https://")),
    }
}

/// A path that begins with `/`.
pub(super) fn path(text: &str) -> Result<String, String> {
    let good = text.starts_with('/') && !text.contains(|c: char| c.is_control() || c == ' ');
    if good { Ok(short(text)?.to_owned()) } else { Err(wrong(text, "no path that begins with /")) }
}

/// A token of HTTP: a method or the name of a header (RFC 9110, 5.6.2).
pub(super) fn token(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !text.is_empty() && text.len() <= LONGEST && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err(wrong(text, "no name of a header or a method")),
    }
}

/// Tokens between commas, as they are.
pub(super) fn tokens(text: &str) -> Result<Vec<String>, String> {
    list(text).map(token).collect()
}

/// Names of headers between commas, in lower case.
pub(super) fn headers(text: &str) -> Result<Vec<String>, String> {
    Ok(tokens(text)?.into_iter().map(|name| name.to_ascii_lowercase()).collect())
}

pub(super) fn method(text: &str) -> Result<String, String> {
    let text = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    match known.contains(&text.as_str()) {
        true => Ok(text),
        false => Err(wrong(&text, "no method of HTTP")),
    }
}

/// What may be a header's value.
pub(super) fn line(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err("a control character".to_owned()),
        false => Ok(short(text)?.to_owned()),
    }
}

/// `*`, or a scheme and a host, whose first label may be `*`.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let host = |rest: &str| {
        let bare = rest.strip_prefix("*.").unwrap_or(rest);
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        !bare.is_empty() && bare.bytes().all(good)
    };
    let good = text == "*"
        || text == "null"
        || text.split_once("://").is_some_and(|(scheme, rest)| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
            !scheme.is_empty() && scheme.bytes().all(plain) && host(rest)
        });
    if good {
        Ok(text.to_owned())
    } else {
        Err(wrong(text, "no origin, such as https://shop.example"))
    }
}

/// The name of a host, in lower case.
pub(super) fn host(text: &str) -> Result<String, String> {
    crate::kubernetes::ingress::check_host(text)?;
    Ok(text.to_ascii_lowercase())
}

/// An expression of bytes, as gateways have it, which takes time in proportion to what is looked at, whatever it is.
pub(super) fn expression(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err("a control character".to_owned());
    }
    let mut builder = regex::bytes::RegexBuilder::new(short(text)?);
    builder.size_limit(LARGEST_EXPRESSION).case_insensitive(true).unicode(false);
    let built = builder.build();
    built.map(|_| text.to_owned()).map_err(|error| {
        let last = error.to_string();
        let last = last.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!(
            "no expression that is known here (no lookaround and no backreferences, which can take for \
             ever): {last}"
        )
    })
}

/// An object of the namespace, which may be named in front.
pub(super) fn object(text: &str, namespace: &str) -> Result<ObjectName, String> {
    let (of, name) = text.split_once('/').unwrap_or((namespace, text));
    let is_name = crate::kubernetes::ingress::is_object_name;
    if !is_name(of) || !is_name(name) {
        return Err(wrong(text, "neither NAMESPACE/NAME nor NAME"));
    }
    match of == namespace {
        true => Ok(ObjectName::new(of, name)),
        false => {
            Err(format!("{text:.300} is of another namespace, whose owner has not agreed to that"))
        }
    }
}

/// Two words, the first to be replaced by the second; `None` of `off`.
pub(super) fn replacement(text: &str) -> Result<Option<(String, String)>, String> {
    let words: Vec<_> = line(text)?.split_whitespace().map(str::to_owned).collect();
    match <[String; 2]>::try_from(words) {
        Ok([from, to]) if !from.starts_with('~') => Ok(Some((from, to))),
        Err(words) if words == ["off"] => Ok(None),
        _ => Err(wrong(text, "not two texts, what is there and what is to be there")),
    }
}

fn short(text: &str) -> Result<&str, String> {
    match text.len() <= LONGEST {
        true => Ok(text),
        false => Err(format!("longer than {LONGEST} bytes")),
    }
}

pub(super) fn wrong(text: &str, what: &str) -> String {
    format!("\"{text:.300}\" is {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        for (text, bytes) in
            [("0", 0), ("1024", 1024), ("8k", 8192), ("1M", 1 << 20), ("2g", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1t", "-1", "1.5m", "99999999999999999999", "18014398509481984k", "é"]
        {
            assert!(size(text).is_err(), "{text}");
        }
        for (text, seconds) in [("60", 60), ("30s", 30), ("5m", 300), ("1h", 3600), ("1d", 86_400)]
        {
            assert_eq!(duration(text), Ok(seconds), "{text}");
        }
        assert!(duration("1w").is_err() && duration("50000d").is_err());
    }

    #[test]
    fn addresses_of_others() {
        for text in ["http://a", "https://$host/x", "$scheme://a", "http://$host"] {
            assert!(address(text, false).is_ok(), "{text}");
        }
        for text in [
            "",
            "a",
            "/a",
            "http://",
            "http:///a",
            "ftp://a",
            "javascript:x",
            "http://a b",
            "http://a\n",
        ] {
            assert!(address(text, false).is_err(), "{text}");
        }
        assert!(address("/a", true).is_ok());
    }

    #[test]
    fn expressions_that_can_take_for_ever_are_refused() {
        for text in ["/a(/|$)(.*)", "a|b", "^v[0-9]+$", "("] {
            assert_eq!(expression(text).is_ok(), text != "(", "{text}");
        }
        for text in ["(?=a)b", "(a)\\1", "(?:a{1000}){1000}", ")("] {
            assert!(expression(text).is_err(), "{text}");
        }
    }
}
