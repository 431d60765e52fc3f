//! What owners of objects are told: Events about these objects, which `kubectl describe` shows; written by the leader.
//!
//! ```text
//! Notices ─► Plan (when is which to be said) ─► Event, made or counted
//! ```
//!
//! An Event's name follows from what it says of which object. So what was said before, by whichever replica, is found
//! again and counted, not said twice, and nothing is remembered beyond the process. Events end by themselves after an
//! hour by default: what still holds is said again before that. Who does not get through tries again, ever more slowly;
//! nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::notices::{Notice, Notices, Reason};
use http::Method;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::rest::{self, Error};
use plan::Plan;

mod plan;

/// Who says it.
const CONTROLLER: &str = "fairway.dev/controlplane";
/// The longest name of an object.
const LONGEST_NAME: usize = 253;
/// The longest name of who says it.
const LONGEST_INSTANCE: usize = 128;
/// How often it is looked whether something is to be said, without being told.
const IDLE: Duration = Duration::from_secs(300);

/// How quickly it is said.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which replica this is.
    pub instance: String,
    /// How long something must hold before it is said: much is made in an order in which it does not fit at first.
    pub grace: Duration,
    /// So many are written at once...
    pub burst: u32,
    /// ...and then one in this time.
    pub pause: Duration,
    /// After this time the same is said again, at the earliest.
    pub again: Duration,
    /// After this time the same is said again if it still holds.
    pub refresh: Duration,
    /// After a first error; it doubles.
    pub first_pause: Duration,
    /// For an answer.
    pub answer: Duration,
}

impl Options {
    /// Of fifty at once and then one a second, each at most every five minutes.
    pub fn new(instance: String) -> Self {
        Self {
            instance,
            grace: Duration::from_secs(5),
            burst: 50,
            pause: Duration::from_secs(1),
            again: Duration::from_secs(300),
            refresh: Duration::from_secs(1500),
            first_pause: Duration::from_secs(2),
            answer: Duration::from_secs(5),
        }
    }
}

/// A task that says it, until it is dropped.
#[derive(Debug)]
pub struct Herald(JoinHandle<()>);

impl Drop for Herald {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Says what is to be said while this replica leads. Must be called within a Tokio runtime.
pub fn start(
    client: Client,
    notices: watch::Receiver<Arc<Notices>>,
    leads: watch::Receiver<bool>,
    options: Options,
) -> Herald {
    Herald(tokio::spawn(run(client, notices, leads, options)))
}

async fn run(
    client: Client,
    mut notices: watch::Receiver<Arc<Notices>>,
    mut leads: watch::Receiver<bool>,
    options: Options,
) {
    let mut plan = Plan::new(options.clone(), Instant::now());
    let mut complained = None;
    loop {
        let (now, leading) = (Instant::now(), *leads.borrow_and_update());
        let wanted = Arc::clone(&notices.borrow_and_update());
        plan.want(&wanted, now);
        // Whoever does not lead knows what there is to say, and that somebody else says it.
        let next = if leading { plan.next(now) } else { Err(now + IDLE) };
        let until = match next {
            Ok((notice, count)) => {
                let done = say(&client, &notice, count, &options).await;
                if let Err(error) = &done {
                    complain(&notice, error, &mut complained);
                }
                plan.done(&notice, Instant::now(), done.map_err(|error| error.again()));
                continue;
            }
            Err(until) => until,
        };
        tokio::select! {
            () = sleep_until(until) => {}
            changed = notices.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
        }
    }
}

/// Logs that something could not be said, but not for each thing.
fn complain(notice: &Notice, error: &Error, last: &mut Option<Instant>) {
    const QUIET: Duration = Duration::from_secs(300);
    // The namespace is gone, or about to.
    if error.code() == Some(404) || last.is_some_and(|last| last.elapsed() < QUIET) {
        return;
    }
    *last = Some(Instant::now());
    tracing::warn!(object = %notice.object, %error, "owners cannot be told by Events; trying again later");
}

/// Says it, for the first time here or after it was said so many times; answers how often it was.
async fn say(
    client: &Client,
    notice: &Notice,
    count: Option<u64>,
    options: &Options,
) -> Result<u64, Error> {
    let namespace = &notice.object.name.namespace;
    let collection = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let path = format!("{collection}/{}", name(notice));
    let send = async |method, uri: &str, kind, object: &Value| {
        rest::write(client, method, uri, (kind, object), options.answer).await
    };
    let patch = async |object: Value| {
        send(Method::PATCH, &path, "application/merge-patch+json", &object).await
    };
    let counted = async |count: u64| patch(series(count + 1)).await.map(|_| count + 1);
    if let Some(count) = count {
        match counted(count).await {
            // Its time was over.
            Err(error) if error.code() == Some(404) => {}
            done => return done,
        }
    }
    let event = event(notice, &options.instance);
    match send(Method::POST, &collection, "application/json", &event).await {
        Err(error) if error.code() == Some(409) => {}
        done => return done.map(|_| 1),
    }
    // It was said before this replica led. An empty patch changes nothing, and shows how often and when.
    let found = patch(json!({})).await?;
    let count = found["series"]["count"].as_u64().unwrap_or(1);
    match is_recent(&found, options.again) {
        true => Ok(count),
        false => counted(count).await,
    }
}

/// Whether the Event was last said less than so long ago.
fn is_recent(event: &Value, time: Duration) -> bool {
    let last = event["series"]["lastObservedTime"].as_str().or(event["eventTime"].as_str());
    let last = last.and_then(|text| text.parse::<Timestamp>().ok());
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    last.is_some_and(|last| Timestamp::now().duration_since(last) < time)
}

fn event(notice: &Notice, instance: &str) -> Value {
    let Notice { object, uid, reason, note } = notice;
    let mut regarding = json!({"apiVersion": "networking.k8s.io/v1", "kind": object.kind.to_string(),
        "namespace": object.name.namespace, "name": object.name.name});
    if !uid.is_empty() {
        regarding["uid"] = uid.as_str().into();
    }
    let instance = &instance[..instance.floor_char_boundary(LONGEST_INSTANCE)];
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"namespace": object.name.namespace, "name": name(notice)},
        "eventTime": now(), "reportingController": CONTROLLER, "reportingInstance": instance,
        "action": "Serve", "reason": reason.to_string(), "regarding": regarding, "note": note,
        "type": if *reason == Reason::Served { "Normal" } else { "Warning" }})
}

fn series(count: u64) -> Value {
    json!({"series": {"count": count, "lastObservedTime": now()}})
}

/// The name of the Event that says it; another one for anything that is not the same.
fn name(notice: &Notice) -> String {
    let Notice { object, uid, reason, note } = notice;
    let text = format!("{object}\n{uid}\n{reason}\n{note}");
    // FNV-1a: the same in every release.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let end = format!(".{hash:016x}");
    let head = &object.name.name;
    let head = &head[..head.floor_char_boundary(LONGEST_NAME - end.len())];
    format!("{}{end}", head.trim_end_matches(['-', '.']))
}

/// With microseconds, as Events have it.
fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

#[cfg(test)]
mod tests {
    use fairway_controlplane::kubernetes::{Kind, ObjectId};
    use fairway_model::ObjectName;

    use super::*;

    #[test]
    fn an_event_is_one_that_kubectl_shows_with_the_object() {
        let notice = |note: &str, uid: &str| Notice {
            object: ObjectId { kind: Kind::Ingress, name: ObjectName::new("shop", "web") },
            uid: uid.to_owned(),
            reason: Reason::SecretUnusable,
            note: note.to_owned(),
        };
        let mut made = event(&notice("spec.tls[0].secretName: gone", "u"), "me_1");
        made.as_object_mut().unwrap().remove("eventTime");
        let name = made["metadata"]["name"].take();
        assert_eq!(
            made,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"namespace": "shop", "name": null}, "reportingController": CONTROLLER,
                "reportingInstance": "me_1", "action": "Serve", "reason": "SecretUnusable", "type": "Warning",
                "regarding": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "namespace": "shop",
                    "name": "web", "uid": "u"},
                "note": "spec.tls[0].secretName: gone"})
        );
        // The same today and tomorrow.
        assert_eq!(name, "web.8bf14ba3a17ff5ef");
        let other =
            |note: &str, uid: &str| event(&notice(note, uid), "")["metadata"]["name"].clone();
        assert_ne!(other("spec.tls[0].secretName: gone", "v"), name);
        assert_ne!(other("something else", "u"), name);
        let mut long = notice("", "");
        long.object.name.name = format!("{}-{}", "a".repeat(235), "b".repeat(17));
        let name = event(&long, "")["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.len() <= LONGEST_NAME && name.contains("a."), "{name}");
    }

    #[test]
    fn what_was_said_a_moment_ago_need_not_be_said_again() {
        let minute = Duration::from_secs(60);
        assert!(is_recent(&json!({"eventTime": now()}), minute));
        let old = "2026-01-01T00:00:00.000000Z";
        assert!(!is_recent(&json!({"eventTime": old}), minute));
        assert!(is_recent(
            &json!({"eventTime": old, "series": {"lastObservedTime": now()}}),
            minute
        ));
        assert!(!is_recent(&json!({"eventTime": null}), minute));
    }
}
