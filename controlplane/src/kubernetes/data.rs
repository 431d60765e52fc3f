//! Secrets and ConfigMaps, of which only those are looked into that something else names.
//!
//! Nothing in them is a reason to refuse the object: what nobody names does not matter, and who names
//! something says what is wrong with it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_model::Sensitive;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// A v1 Secret. It is written nowhere: serialized, it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Secret {
    /// As `kubernetes.io/tls`.
    #[serde(skip)]
    pub r#type: String,
    /// In Base64.
    #[serde(skip)]
    data: BTreeMap<String, Sensitive>,
    /// As it is; goes before the other.
    #[serde(skip)]
    string_data: BTreeMap<String, Sensitive>,
}

/// A v1 ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigMap {
    /// What it says.
    pub data: BTreeMap<String, String>,
}

impl Secret {
    /// Its keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.data.keys().chain(self.string_data.keys()).map(String::as_str)
    }

    /// What it has under a key, as text; `None` if it has nothing there.
    ///
    /// # Errors
    /// It is no Base64 or no text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, &'static str> {
        if let Some(text) = self.string_data.get(key) {
            return Ok(Some(text.reveal().to_owned()).filter(|text| !text.is_empty()));
        }
        let Some(text) = self.data.get(key) else { return Ok(None) };
        let plain: String = text.reveal().split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(plain).map_err(|_| "no base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "no text")?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The same in Base64, of bytes that are no text.
    ///
    /// # Errors
    /// It is no Base64.
    pub(crate) fn base64(&self, key: &str) -> Result<Option<String>, &'static str> {
        if let Some(text) = self.string_data.get(key) {
            return Ok(Some(STANDARD.encode(text.reveal())));
        }
        let Some(text) = self.data.get(key) else { return Ok(None) };
        let plain: String = text.reveal().split_ascii_whitespace().collect();
        STANDARD.decode(&plain).map_err(|_| "no base64")?;
        Ok(Some(plain).filter(|plain| !plain.is_empty()))
    }
}

/// What of a map is text.
fn texts(object: &mut Map<String, Value>, field: &str) -> BTreeMap<String, String> {
    let Some(Value::Object(entries)) = object.remove(field) else { return BTreeMap::new() };
    let texts = entries.into_iter().filter_map(|(key, value)| match value {
        Value::String(text) => Some((key, text)),
        _ => None,
    });
    texts.collect()
}

/// An error of serde would show the value.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Map::deserialize(deserializer)?;
        let sensitive = |texts: BTreeMap<String, String>| {
            texts.into_iter().map(|(key, text)| (key, Sensitive::new(text))).collect()
        };
        let r#type = object.get("type").and_then(Value::as_str).unwrap_or("Opaque").to_owned();
        let data = sensitive(texts(&mut object, "data"));
        let string_data = sensitive(texts(&mut object, "stringData"));
        Ok(Self { r#type, data, string_data })
    }
}

impl<'de> Deserialize<'de> for ConfigMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Map::deserialize(deserializer)?;
        Ok(Self { data: texts(&mut object, "data") })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_read_and_shown_to_nobody() {
        let value = json!({"type": "kubernetes.io/tls", "data": {"a": "aHVzaCE=", "b": "?", "n": 5},
            "stringData": {"c": "hush!", "a2": ""}});
        let secret: Secret = serde_json::from_value(value).unwrap();
        assert_eq!(secret.text("a"), Ok(Some("hush!".to_owned())));
        assert_eq!(secret.text("b"), Err("no base64"));
        assert_eq!(secret.text("c"), Ok(Some("hush!".to_owned())));
        assert_eq!(secret.text("a2"), Ok(None));
        assert_eq!(secret.text("n"), Ok(None));
        assert_eq!(secret.base64("c"), Ok(Some("aHVzaCE=".to_owned())));
        let shown = format!("{secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert!(!shown.contains("hush") && !shown.contains("aHVz"), "{shown}");
    }
}
