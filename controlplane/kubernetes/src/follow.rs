//! One kind of objects, followed: listed, watched from there, and listed again when the watch cannot go on.
//!
//! ```text
//!          ┌────────────── 410, another history ◄──────────────┐
//!          ▼                                                    │
//!   list ──(all objects, at version V)──► watch from V ──(event: V grows)──┐
//!    ▲ │                                     ▲ │ end, error, silence       │
//!    └─┘ error: pause                        └─┴────── pause ◄─────────────┘
//! ```
//!
//! Where the server streams lists, the list is the beginning of the watch. A list is told as one change, when it
//! is complete.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use fairway_controlplane::kubernetes::{Kind, ObjectId};
use fairway_controlplane::live::{self, Read};
use fairway_model::ObjectName;
use kube::Client;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::resource::Resource;
use crate::rest::{self, Error, Status};

/// How much longer a list takes that is not in pages.
const WHOLE: u32 = 10;
/// Objects a page.
const PAGE: usize = 500;
/// The bookmark that ends the objects at the beginning of a streaming list carries it.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// How often in a row a kind must not be there for its objects to be gone.
const MISSING: u32 = 3;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// An answer, or the next part of a list.
    pub answer: Duration,
    /// A watch without a word, after which the connection is given up. Servers send bookmarks about once a
    /// minute.
    pub silence: Duration,
    /// The pause after a first error; it doubles with each one that follows...
    pub first_pause: Duration,
    /// ...up to this.
    pub longest_pause: Duration,
    /// How often it is looked whether a kind that the cluster does not have has come.
    pub absent: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(30),
            absent: Duration::from_secs(30),
        }
    }
}

/// What happens to the objects of a kind.
pub(crate) enum Change {
    /// These are all of a kind, or what there is of the one that is meant.
    All(Topic, Vec<Read>),
    /// One came or changed.
    Put(Read),
    /// One went.
    Gone(ObjectId),
    /// Why nothing is heard of it at the moment, or that something is.
    Trouble(Topic, Option<String>),
}

/// What is followed: a kind, or one object of it.
pub(crate) type Topic = (Kind, Option<ObjectName>);

/// Follows a kind for as long as somebody listens.
pub(crate) async fn follow(
    client: Client,
    resource: Resource,
    pace: Pace,
    out: mpsc::Sender<Change>,
) {
    let mut follower = Follower {
        client,
        resource,
        pace,
        out,
        version: None,
        streaming: Streaming::Unknown,
        in_pages: true,
        doubted: false,
        listed: false,
        missing: 0,
        failures: 0,
        troubled: false,
    };
    while follower.step().await.is_some() {}
}

struct Follower {
    client: Client,
    resource: Resource,
    pace: Pace,
    out: mpsc::Sender<Change>,
    /// How far the objects are known; none before a list.
    version: Option<String>,
    streaming: Streaming,
    /// Cleared for one list after a page could not be had any more.
    in_pages: bool,
    /// The server may be another since, that knows nothing of this version.
    doubted: bool,
    /// A list was told of.
    listed: bool,
    /// How often in a row the kind was not there.
    missing: u32,
    /// Errors in a row.
    failures: u32,
    troubled: bool,
}

/// Whether the server streams lists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Streaming {
    Unknown,
    Served,
    Refused,
}

/// Nobody listens any more.
struct Alone;

/// Why a step ended early.
enum Stop {
    Error(Error),
    Alone,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Alone> for Stop {
    fn from(_: Alone) -> Self {
        Self::Alone
    }
}

#[derive(Deserialize)]
struct List<'a> {
    metadata: ListMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Follower {
    /// Lists or watches until that ends; `None` if nobody listens any more.
    async fn step(&mut self) -> Option<()> {
        let begun = Instant::now();
        let done = match &self.version {
            None if self.streaming == Streaming::Refused => self.list().await,
            None => self.stream(None).await,
            Some(version) => {
                let version = version.clone();
                self.resume(version).await
            }
        };
        if begun.elapsed() > self.pace.longest_pause {
            self.failures = 0;
        }
        match done {
            Ok(()) => {
                self.failures = 0;
                // A server that ends watches at once is not asked at full speed.
                let left = self.pace.first_pause.saturating_sub(begun.elapsed());
                sleep(jitter(left)).await;
                Some(())
            }
            Err(Stop::Error(error)) => self.recover(error).await.ok(),
            Err(Stop::Alone) => None,
        }
    }

    /// Watches from a version on, unless the server has never come that far.
    async fn resume(&mut self, version: String) -> Result<(), Stop> {
        if self.doubted {
            let uri = self.resource.uri("limit=1");
            let text = rest::get(&self.client, &uri, self.pace.answer).await?;
            let found = rest::decode::<List<'_>>(&text)?.metadata.resource_version;
            if is_before(&found, &version) {
                self.version = None;
                return Ok(());
            }
            self.doubted = false;
        }
        self.stream(Some(version)).await
    }

    /// Reads all pages of a list.
    async fn list(&mut self) -> Result<(), Stop> {
        let kind = self.resource.kind;
        let mut all = Vec::new();
        let mut next = String::new();
        let in_pages = std::mem::replace(&mut self.in_pages, true);
        let limit = self.pace.answer * if in_pages { 1 } else { WHOLE };
        let version = loop {
            let uri = self.resource.uri(&match (in_pages, next.is_empty()) {
                (false, _) => String::new(),
                (true, true) => format!("limit={PAGE}"),
                (true, false) => format!("limit={PAGE}&continue={}", escaped(&next)),
            });
            let text = match rest::get(&self.client, &uri, limit).await {
                Err(error) if is_gone(&error) && !next.is_empty() => {
                    // The pages went on for longer than the server remembers.
                    self.in_pages = false;
                    return Err(error.into());
                }
                text => text?,
            };
            let page = rest::decode::<List<'_>>(&text)?;
            for item in page.items.unwrap_or_default() {
                all.extend(read(kind, item)?);
            }
            next = page.metadata.r#continue;
            if next.is_empty() {
                break page.metadata.resource_version;
            }
        };
        if version.is_empty() {
            return Err(Error::Nonsense("a list without a version".into()).into());
        }
        self.tell_all(all, version).await?;
        Ok(())
    }

    /// Reads a watch to its end, from a version on or with all objects first.
    async fn stream(&mut self, from: Option<String>) -> Result<(), Stop> {
        let seconds = 290 + random() % 290;
        let common = format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}");
        let uri = self.resource.uri(&match &from {
            None => format!("{common}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
            Some(version) => format!("{common}&resourceVersion={}", escaped(version)),
        });
        let opened = rest::lines(&self.client, &uri, self.pace.answer).await;
        let mut lines = match opened {
            // Those that stream no lists say so in this way.
            Err(Error::Refused { code: 400 | 422, .. }) if from.is_none() => {
                self.streaming = Streaming::Refused;
                return Ok(());
            }
            opened => opened?,
        };
        let mut initial = from.is_none().then(BTreeMap::new);
        if from.is_some() {
            self.hear().await?;
        }
        loop {
            let limit = if initial.is_some() { self.pace.answer } else { self.pace.silence };
            let line = match lines.next(limit).await {
                // Perhaps the server ignored what it does not know, and will never end the list.
                Err(Error::Slow(limit))
                    if initial.is_some() && self.streaming == Streaming::Unknown =>
                {
                    self.streaming = Streaming::Refused;
                    return Err(Error::Slow(limit).into());
                }
                // Nothing is wrong with a cluster in which nothing happens.
                Err(Error::Slow(_)) if initial.is_none() => return Ok(()),
                line => line?,
            };
            let Some(line) = line else {
                return match initial {
                    Some(_) => Err(Error::Connection("the list ended too early".into()).into()),
                    None => Ok(()),
                };
            };
            self.take(&line, &mut initial).await?;
        }
    }

    async fn take(
        &mut self,
        line: &[u8],
        initial: &mut Option<BTreeMap<ObjectId, Read>>,
    ) -> Result<(), Stop> {
        let kind = self.resource.kind;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let event = rest::decode::<Event<'_>>(line)?;
        match event.r#type.as_str() {
            "ADDED" | "MODIFIED" => {
                let version = version_of(event.object)?;
                let read = read(kind, event.object)?;
                match initial {
                    Some(all) => all.extend(read.map(|read| (read.id().clone(), read))),
                    None => {
                        self.advance(version)?;
                        if let Some(read) = read {
                            self.tell(Change::Put(read)).await?;
                        }
                    }
                }
            }
            "DELETED" => {
                let version = version_of(event.object)?;
                let object: Value = rest::decode(event.object.get().as_bytes())?;
                let id = live::identify_value(kind, &object).ok();
                match initial {
                    Some(all) => drop(id.and_then(|id| all.remove(&id))),
                    None => {
                        self.advance(version)?;
                        if let Some(id) = id {
                            self.tell(Change::Gone(id)).await?;
                        }
                    }
                }
            }
            "BOOKMARK" => {
                let object: Value = rest::decode(event.object.get().as_bytes())?;
                let annotations = &object["metadata"]["annotations"];
                let version = version_of(event.object)?;
                match initial.take() {
                    Some(all) if annotations[INITIAL_EVENTS_END] == "true" => {
                        self.streaming = Streaming::Served;
                        self.tell_all(all.into_values().collect(), version).await?;
                    }
                    // How far the watch would be; it is not the end of the list.
                    Some(all) => *initial = Some(all),
                    None => self.advance(version)?,
                }
            }
            "ERROR" => {
                let status: Status = rest::decode(event.object.get().as_bytes())?;
                return Err(status.into_error().into());
            }
            // To be ignored, says the API.
            _ => {}
        }
        Ok(())
    }

    /// The objects are known up to this version. Versions grow: if this one is lower, the server has another
    /// history, as after a restored backup, and the objects are listed anew.
    fn advance(&mut self, version: String) -> Result<(), Error> {
        if self.version.as_deref().is_some_and(|known| is_before(&version, known)) {
            self.version = None;
            let message = "the server's history is another one since".to_owned();
            return Err(Error::Nonsense(message));
        }
        self.version = Some(version);
        self.failures = 0;
        Ok(())
    }

    async fn tell_all(&mut self, all: Vec<Read>, version: String) -> Result<(), Alone> {
        self.hear().await?;
        self.version = Some(version);
        (self.listed, self.missing, self.doubted) = (true, 0, false);
        self.tell(Change::All(self.topic(), all)).await
    }

    fn topic(&self) -> Topic {
        (self.resource.kind, self.resource.name.clone())
    }

    /// The server answers.
    async fn hear(&mut self) -> Result<(), Alone> {
        match std::mem::take(&mut self.troubled) {
            true => self.tell(Change::Trouble(self.topic(), None)).await,
            false => Ok(()),
        }
    }

    async fn tell(&mut self, change: Change) -> Result<(), Alone> {
        self.out.send(change).await.map_err(|_| Alone)
    }

    /// Decides how to go on after an error, and waits as long as it takes.
    async fn recover(&mut self, error: Error) -> Result<(), Alone> {
        if error.code() == Some(404) && self.resource.optional {
            self.missing += 1;
            self.version = None;
            if !self.listed || self.missing >= MISSING {
                if !self.listed || self.missing == MISSING {
                    self.hear().await?;
                    self.listed = true;
                    self.missing = MISSING;
                    self.tell(Change::All(self.topic(), Vec::new())).await?;
                }
                sleep(jitter(self.pace.absent)).await;
                return Ok(());
            }
        }
        match &error {
            error if is_gone(error) => self.version = None,
            // Others may answer next time; what is known is still known.
            Error::Connection(_) | Error::Slow(_) => self.doubted = true,
            Error::Refused { code: 429 | 500.., .. } => self.doubted = true,
            Error::Refused { .. } | Error::Nonsense(_) => self.version = None,
        }
        self.failures = self.failures.saturating_add(1);
        let first = is_gone(&error) && self.failures == 1;
        if !first {
            self.troubled = true;
            let of = &self.resource;
            let what = format!("{of}: the API server cannot be followed: {error}; trying again");
            self.tell(Change::Trouble(self.topic(), Some(what))).await?;
            let doubled = self.pace.first_pause * 2u32.saturating_pow((self.failures - 1).min(16));
            let pause = jitter(doubled.min(self.pace.longest_pause));
            // Those that were sent away together do not come back together.
            let asked = error.again().map(|asked| asked + jitter(self.pace.first_pause));
            sleep(pause.max(asked.unwrap_or_default())).await;
        }
        Ok(())
    }
}

/// An object, kept small; `None` of one that cannot even be named, which no API server has.
fn read(kind: Kind, text: &RawValue) -> Result<Option<Read>, Error> {
    let value: Value = rest::decode(text.get().as_bytes())?;
    match live::read(kind, value) {
        Ok(read) => Ok(Some(read)),
        Err(error) => {
            tracing::warn!("{kind}: ignored: {error}");
            Ok(None)
        }
    }
}

fn version_of(object: &RawValue) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        metadata: ListMetadata,
    }
    let versioned: Versioned = rest::decode(object.get().as_bytes())?;
    match versioned.metadata.resource_version {
        version if version.is_empty() => Err(Error::Nonsense("an event without a version".into())),
        version => Ok(version),
    }
}

fn is_gone(error: &Error) -> bool {
    match error {
        Error::Refused { code, reason, .. } => {
            *code == 410 || reason == "Expired" || reason == "Gone"
        }
        _ => false,
    }
}

/// Whether a version is an earlier one; not if it cannot be told.
fn is_before(one: &str, other: &str) -> bool {
    match (one.parse::<u128>(), other.parse::<u128>()) {
        (Ok(one), Ok(other)) => one < other,
        _ => false,
    }
}

/// Text as it may stand in a query.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut escaped = String::new();
    for byte in text.bytes() {
        match plain(byte) {
            true => escaped.push(char::from(byte)),
            false => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

/// Between half of `pause` and all of it.
pub(crate) fn jitter(pause: Duration) -> Duration {
    let half = pause / 2;
    half + half * u32::try_from(random() % 1024).unwrap_or(0) / 1024
}

pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_no_numbers_are_not_compared() {
        for (one, other, expected) in
            [("9", "10", true), ("10", "9", false), ("10", "10", false), ("a", "b", false)]
        {
            assert_eq!(is_before(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn what_a_server_hands_out_is_handed_back_as_it_is() {
        assert_eq!(escaped("eyJ2Ijo+/==&x=1"), "eyJ2Ijo%2B%2F%3D%3D%26x%3D1");
    }
}
