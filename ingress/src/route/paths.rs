//! Which route of a host a path belongs to.
//!
//! - An [`Exact`](PathType::Exact) path that is the request's comes first.
//! - Then the longest of the others that the request's path begins with. Of two of the same length
//!   [`Prefix`](PathType::Prefix) comes first; `/a` and `/a/` as prefixes are for the same requests, and the
//!   longer one has them.
//! - An expression is as long as its beginning without special characters, and comes before others of that
//!   length. Of several that fit, the one with the longest text has the request. Where the quirks of
//!   ingress-nginx make all paths of a host expressions, that is the whole rule.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fairway_model::PathType;
use regex::bytes::Regex;

use super::tree::{Tree, Whole};
use super::{Quirk, Route};

/// The paths of a host.
#[derive(Debug, Default)]
pub(super) struct Paths {
    routes: Vec<Arc<Route>>,
    /// Places among the routes.
    exact: HashMap<Vec<u8>, usize>,
    prefixes: Tree,
    /// In the order in which they are tried.
    expressions: Vec<Expression>,
    /// Paths that ingress-nginx answers with the way to the same path with a slash behind it.
    slashless: HashSet<Vec<u8>>,
}

#[derive(Debug)]
struct Expression {
    route: usize,
    /// How many bytes it begins with that stand for themselves.
    literal: usize,
}

/// What there is for a path.
#[derive(Debug)]
pub(super) enum Found<'t> {
    /// A route, and the quirk without which it would not be the one.
    Route(&'t Arc<Route>, Option<Quirk>),
    /// Nothing; but for the path with a slash behind it there is.
    WithSlash(&'t Arc<Route>),
    /// Nothing.
    Nothing,
}

impl Paths {
    /// Of `routes`, whose rules differ and whose paths are in their normal form, if they are no expressions.
    pub(super) fn new(routes: Vec<Arc<Route>>) -> Self {
        let mut paths = Self::default();
        for (place, route) in routes.iter().enumerate() {
            let path = route.path.as_bytes();
            let bare = path.strip_suffix(b"/").unwrap_or(path);
            match (&route.expression, route.kind) {
                (Some(_), _) => paths
                    .expressions
                    .push(Expression { route: place, literal: literal(&route.path) }),
                (None, PathType::Exact) => {
                    paths.exact.insert(path.to_vec(), place);
                }
                (None, PathType::Prefix) => {
                    let shorter = route.path.len() == bare.len();
                    let other = || routes.iter().any(|other| other.is_prefix_with_slash(bare));
                    if !shorter || !other() {
                        paths.prefixes.insert(bare, Whole::Elements, place);
                    }
                }
                (None, PathType::ImplementationSpecific) => {
                    paths.prefixes.insert(path, Whole::Bytes, place);
                }
            }
        }
        paths.slashless = routes
            .iter()
            .filter(|route| route.nginx && route.expression.is_none())
            .filter_map(|route| route.path.strip_suffix('/'))
            .filter(|bare| !bare.is_empty() && !routes.iter().any(|route| route.path == *bare))
            .map(|bare| bare.as_bytes().to_vec())
            .collect();
        let text = |expression: &Expression| &*routes[expression.route].path;
        paths.expressions.sort_by(|a, b| {
            let (a, b) = (text(a), text(b));
            b.len().cmp(&a.len()).then_with(|| b.cmp(a))
        });
        paths.routes = routes;
        paths
    }

    /// All routes, as they came.
    pub(super) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// What there is for `path`, in its normal form.
    pub(super) fn find(&self, path: &[u8]) -> Found<'_> {
        if let Some(place) = self.exact.get(path) {
            return Found::Route(&self.routes[*place], None);
        }
        let prefix = self.prefixes.longest(path);
        let shortest = prefix.map_or(0, |(_, length)| length);
        let expression = self.expressions.iter().find(|expression| {
            let route = &self.routes[expression.route];
            expression.literal >= shortest
                && route.may_fit(path, expression.literal)
                && route.fits(path)
        });
        if let Some(expression) = expression {
            let route = &self.routes[expression.route];
            return Found::Route(route, route.expression_quirk(path, expression.literal));
        }
        if self.slashless.contains(path) {
            let mut slashed = path.to_vec();
            slashed.push(b'/');
            if let Found::Route(route, _) = self.find(&slashed) {
                return Found::WithSlash(route);
            }
        }
        match prefix {
            Some((place, length)) => {
                let route = &self.routes[place];
                let whole =
                    length == path.len() || path[length] == b'/' || path[..length].ends_with(b"/");
                let quirk = (route.nginx && !whole).then_some(Quirk::PartOfElement);
                Found::Route(route, quirk)
            }
            None => Found::Nothing,
        }
    }
}

impl Route {
    fn is_prefix_with_slash(&self, bare: &[u8]) -> bool {
        self.kind == PathType::Prefix
            && self.expression.is_none()
            && self.path.as_bytes().strip_suffix(b"/") == Some(bare)
    }

    /// Whether `path` begins as the expression does: most do not, which is found out faster so.
    fn may_fit(&self, path: &[u8], literal: usize) -> bool {
        let begin = path.get(..literal);
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(&self.path.as_bytes()[..literal]))
    }

    fn fits(&self, path: &[u8]) -> bool {
        self.expression.as_ref().is_some_and(|expression| expression.is_match(path))
    }

    /// The quirk without which an expression would not be for `path`.
    fn expression_quirk(&self, path: &[u8], literal: usize) -> Option<Quirk> {
        let text = self.path.as_bytes();
        let plain = match self.kind {
            PathType::Exact => path == text,
            PathType::Prefix => {
                let bare = text.strip_suffix(b"/").unwrap_or(text);
                path.strip_prefix(bare).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            }
            PathType::ImplementationSpecific => true,
        };
        if !self.nginx {
            None
        } else if path.get(..literal) != text.get(..literal) {
            Some(Quirk::IgnoredCase)
        } else {
            (!plain).then_some(Quirk::Expression)
        }
    }
}

/// `pattern`, from the beginning of a path on, as ingress-nginx has it: without regard to case, of bytes.
pub(super) fn expression(pattern: &str) -> Result<Regex, regex::Error> {
    regex::bytes::RegexBuilder::new(&format!("^(?:{pattern})"))
        .case_insensitive(true)
        .unicode(false)
        .size_limit(1 << 20)
        .build()
}

/// How many bytes `pattern` begins with that stand for themselves in all it fits.
fn literal(pattern: &str) -> usize {
    let special = |byte: u8| b"\\.+*?()|[]{}^$".contains(&byte);
    let length = pattern.bytes().position(special).unwrap_or(pattern.len());
    match pattern.as_bytes().get(length) {
        _ if has_alternatives(pattern) => 0,
        Some(b'?' | b'*' | b'{') => length.saturating_sub(1),
        _ => length,
    }
}

/// Whether it has a `|` outside of groups, which neither an escaped parenthesis nor one in brackets begins or ends.
fn has_alternatives(pattern: &str) -> bool {
    let (mut groups, mut brackets) = (0_i32, 0_i32);
    let mut bytes = pattern.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => _ = bytes.next(),
            b'[' => {
                brackets += 1;
                // The first one may be what is meant.
                let _ = bytes.next_if_eq(&b'^');
                let _ = bytes.next_if_eq(&b']');
            }
            b']' => brackets = (brackets - 1).max(0),
            b'(' if brackets == 0 => groups += 1,
            b')' if brackets == 0 => groups -= 1,
            b'|' if brackets == 0 && groups == 0 => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn an_expression_is_as_long_as_what_it_surely_begins_with() {
        for (pattern, length) in [
            ("/api", 4),
            ("/api/(.*)", 5),
            ("/api?", 3),
            ("/api*", 3),
            ("/api+", 4),
            ("/a|/b", 0),
            ("/a(|/b)", 2),
            (r"/a\(x|/b", 0),
            (r"/a(\)x|/b)", 2),
            ("/a[(]x|/b", 0),
            ("/a([)]x|/b)", 2),
            ("/a[](|]x", 2),
            ("/a[^](]x|/b", 0),
            ("/a[[:alpha:](]x|/b", 0),
            ("/(.*)", 1),
            ("(.*)", 0),
        ] {
            assert_eq!(literal(pattern), length, "{pattern}");
        }
    }
}
