//! YAML and JSON text to values that remember their lines.
//!
//! Each document is read on its own, so that a broken one does not take its neighbours along.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter as _, Spanned};

/// A document's text within its file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Line of the file it begins on, from 1.
    first_line: u64,
    text: &'a str,
}

/// Why a document cannot be read, and the line of the file where that shows, if known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) line: Option<u64>,
    pub(super) message: String,
}

/// A value and the line of the file it stands on.
#[derive(Debug)]
pub(super) struct Located {
    line: u64,
    node: Node,
}

#[derive(Debug)]
enum Node {
    Scalar(Value),
    List(Vec<Located>),
    Map(Vec<(String, Located)>),
}

/// The documents of a file. A line that begins with `---` and then ends or goes on with white space
/// separates documents wherever it stands, even within a block of text: YAML allows it nowhere else.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut first_line = 1;
    let (mut start, mut offset) = (0, 0);
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let rest = content.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push(Document { first_line, text: &text[start..offset] });
            first_line = line;
            start = offset;
        }
        offset += content.len();
    }
    documents.push(Document { first_line, text: &text[start..] });
    documents
}

impl Document<'_> {
    /// Reads it; `None` if it holds nothing but comments.
    pub(super) fn read(&self) -> Result<Option<Located>, Unreadable> {
        let options = serde_saphyr::options! {
            // YAML 1.2: `no` is a word. Kubernetes manifests say true and false.
            strict_booleans: true,
            emit_comments: false,
            with_snippet: false,
        };
        let read = serde_saphyr::from_str_with_options::<Spanned<Node>>(self.text, options);
        let mut located = Located::from(read.map_err(|error| self.unreadable(&error))?);
        located.shift(self.first_line - 1);
        let nothing = matches!(located.node, Node::Scalar(Value::Null));
        Ok((!nothing).then_some(located))
    }

    fn unreadable(&self, error: &serde_saphyr::Error) -> Unreadable {
        let line = error.location().map(|location| location.line());
        Unreadable {
            line: line.filter(|line| *line > 0).map(|line| line + self.first_line - 1),
            message: DefaultMessageFormatter.format_message(error.without_snippet()).into_owned(),
        }
    }
}

impl Located {
    /// The plain value. Keys without a value are left out: to Kubernetes `labels:` with nothing
    /// behind it is the same as no `labels` at all.
    pub(super) fn to_value(&self) -> Value {
        match &self.node {
            Node::Scalar(value) => value.clone(),
            Node::List(items) => items.iter().map(Self::to_value).collect(),
            Node::Map(entries) => {
                let present = entries
                    .iter()
                    .filter(|(_, value)| !matches!(value.node, Node::Scalar(Value::Null)));
                let values = present.map(|(key, value)| (key.clone(), value.to_value()));
                Value::Object(values.collect::<Map<_, _>>())
            }
        }
    }

    /// The line it begins on.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The value of a key, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.node {
            Node::Map(entries) => {
                let mut entries = entries.iter();
                entries.find(|(name, _)| name == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The keys, if this is a map, but for those without a value.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let entries = match &self.node {
            Node::Map(entries) => &entries[..],
            _ => &[],
        };
        let said = |value: &Self| !matches!(value.node, Node::Scalar(Value::Null));
        entries.iter().filter(move |(_, value)| said(value)).map(|(key, _)| &**key)
    }

    /// The text, if this is text.
    pub(super) fn as_str(&self) -> Option<&str> {
        match &self.node {
            Node::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The items, if this is a list.
    pub(super) fn items(&self) -> Option<&[Self]> {
        match &self.node {
            Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The line of a field such as `spec.ports[1].nodePort`, or of the innermost part of it that is
    /// there: what is missing is missing from that.
    pub(super) fn line_of(&self, field: &str) -> u64 {
        let mut here = self;
        let mut rest = field;
        while !rest.is_empty() {
            let next = match (&here.node, rest.strip_prefix('[')) {
                (Node::List(items), Some(inside)) => {
                    inside.split_once(']').and_then(|(at, tail)| {
                        let item = at.parse::<usize>().ok().and_then(|at| items.get(at));
                        item.map(|item| (item, tail))
                    })
                }
                // Keys may hold dots themselves, as labels do: take the one that fits.
                (Node::Map(entries), None) => entries.iter().find_map(|(key, value)| {
                    let tail = rest.strip_prefix(key.as_str())?;
                    let whole = tail.is_empty() || tail.starts_with(['.', '[']);
                    whole.then_some((value, tail))
                }),
                _ => None,
            };
            let Some((value, tail)) = next else { break };
            here = value;
            rest = tail.strip_prefix('.').unwrap_or(tail);
        }
        here.line
    }

    fn shift(&mut self, lines: u64) {
        self.line += lines;
        match &mut self.node {
            Node::Scalar(_) => {}
            Node::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Node::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.shift(lines)),
        }
    }
}

impl From<Spanned<Node>> for Located {
    fn from(spanned: Spanned<Node>) -> Self {
        Self { line: spanned.referenced.line(), node: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value);
        let number = number.ok_or_else(|| E::custom("not a finite number"))?;
        Ok(Node::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Node>>()? {
            list.push(item.into());
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::<(String, Located)>::new();
        while let Some((key, value)) = entries.next_entry::<String, Spanned<Node>>()? {
            if key.is_empty() {
                return Err(A::Error::custom("a key is empty"));
            }
            map.push((key, value.into()));
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Vec<Result<Option<Value>, Unreadable>> {
        let documents = split(text);
        let read = documents.iter().map(Document::read);
        read.map(|read| read.map(|found| found.map(|found| found.to_value()))).collect()
    }

    #[test]
    fn a_broken_document_leaves_its_neighbours_alone() {
        let text =
            "a: 1\n---\nb: [1\n---\nc: |\n  text\n--- # comment\n{\"d\":\t4}\n---\n# nothing\n";
        let read = read(text);
        assert_eq!(read[0], Ok(Some(json!({"a": 1}))));
        let broken = read[1].as_ref().unwrap_err();
        assert!(broken.line.is_some_and(|line| (3..=4).contains(&line)), "{broken:?}");
        assert_eq!(read[2], Ok(Some(json!({"c": "text\n"}))));
        assert_eq!(read[3], Ok(Some(json!({"d": 4}))));
        assert_eq!(read[4], Ok(None));
        assert_eq!(read.len(), 5);
    }

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        let text = "a: yes\nb: true\nc: 80\nd: '80'\ne: 1.5\nf:\ng: 2026-11-20T10:00:00Z\nh: -3\n";
        assert_eq!(
            read(text)[0],
            Ok(Some(json!({
                "a": "yes", "b": true, "c": 80, "d": "80", "e": 1.5,
                "g": "2026-11-20T10:00:00Z", "h": -3,
            })))
        );
    }

    #[test]
    fn json_as_programs_write_it() {
        let text = "{\n\t\"a\": [\n\t\t{\"b\": \"x\\u00e9\\/\"}\n\t]\n}\n";
        assert_eq!(read(text)[0], Ok(Some(json!({"a": [{"b": "xé/"}]}))));
    }

    #[test]
    fn fields_have_lines() {
        let text = "---\nkind: Service\nspec:\n  ports:\n  - port: 80\n  - port: 81\n    nodePort: 1\n  labels:\n    a.b/c: d\n";
        let located = split(text)[1].read().unwrap().unwrap();
        for (field, line) in [
            ("kind", 2),
            ("spec.ports[0].port", 5),
            ("spec.ports[1].nodePort", 7),
            ("spec.ports[1].name", 6),
            ("spec.labels.a.b/c", 9),
            ("metadata.name", 2),
        ] {
            assert_eq!(located.line_of(field), line, "{field}");
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "[".repeat(100_000);
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..10 {
            let references = format!("*a{},", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{references}]\n");
        }
        for text in [deep, bomb, "a: 1\na: 2\n".to_owned(), "? {}\n: 1\n".to_owned()] {
            let read = read(&text);
            assert!(read[0].is_err(), "{:.40}", text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_is_read_or_refused(text in "(?s)[-a-z:{}\\[\\]&*#|>'\"\n \t]{0,80}") {
            for document in split(&text) {
                if let Ok(Some(located)) = document.read() {
                    prop_assert!(located.line() >= 1);
                }
            }
        }
    }
}
