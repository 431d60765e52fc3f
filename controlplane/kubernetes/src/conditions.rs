//! What is said on Services and Nodes themselves of what they contradict: a condition, written by the leader.
//!
//! Which objects need one is found out with the model, from the objects as they are; so what was written once
//! is not written again, whoever leads. Nothing else on the object is touched, and no version is asked for:
//! whoever comes second says the same.

use std::collections::BTreeMap;
use std::time::Duration;

use fairway_controlplane::kubernetes::{CONTRADICTION, Kind, ObjectId};
use fairway_controlplane::live::Unsaid;
use http::Method;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::follow::jitter;
use crate::rest::{self, Error};

/// How many pauses long an object is left alone after it was written about.
const PATIENCE: u32 = 50;
/// The longest pause before an object is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What the conditions of objects are to say, and do not yet.
pub type AllUnsaid = BTreeMap<ObjectId, Unsaid>;

/// How quickly it is said.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Between two writes, and after a first error.
    pub pause: Duration,
    /// For an answer.
    pub answer: Duration,
}

impl Default for Options {
    /// Ten writes a second at most.
    fn default() -> Self {
        Self { pause: Duration::from_millis(100), answer: Duration::from_secs(5) }
    }
}

/// A task that says it, until it is dropped.
#[derive(Debug)]
pub struct Teller(JoinHandle<()>);

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Says what is unsaid while this replica leads. Must be called within a Tokio runtime.
pub fn start(
    client: Client,
    unsaid: watch::Receiver<AllUnsaid>,
    leads: watch::Receiver<bool>,
    options: Options,
) -> Teller {
    Teller(tokio::spawn(run(client, unsaid, leads, options)))
}

/// When an object may be written about again, and how often it was in vain.
#[derive(Clone, Copy)]
struct Try {
    due: Instant,
    failures: u32,
}

async fn run(
    client: Client,
    mut unsaid: watch::Receiver<AllUnsaid>,
    mut leads: watch::Receiver<bool>,
    options: Options,
) {
    let mut tries = BTreeMap::<ObjectId, Try>::new();
    loop {
        let now = Instant::now();
        let wanted = unsaid.borrow_and_update().clone();
        tries.retain(|id, of| wanted.contains_key(id) || of.due > now);
        let due = |id: &ObjectId| tries.get(id).map_or(now, |of| of.due);
        let next =
            wanted.iter().min_by_key(|(id, _)| due(id)).filter(|_| *leads.borrow_and_update());
        match next {
            Some((id, what)) if due(id) <= now => {
                let failed = write(&client, id, what, options.answer).await.err();
                let failures = match &failed {
                    None => 0,
                    Some(_) => tries.get(id).map_or(0, |of| of.failures) + 1,
                };
                let pause = match &failed {
                    None => options.pause * PATIENCE,
                    Some(error) => {
                        let doubled = options.pause * 2u32.saturating_pow(failures.min(16));
                        doubled.min(LONGEST_PAUSE).max(error.again().unwrap_or_default())
                    }
                };
                tries.insert(id.clone(), Try { due: Instant::now() + jitter(pause), failures });
                // One that is gone, or another one of that name, has nothing to be told.
                if let Some(error) = failed.filter(|error| !matches!(error.code(), Some(404 | 409)))
                {
                    tracing::warn!(object = %id, %error, "cannot be told what it contradicts; trying again later");
                }
                sleep(options.pause).await;
            }
            next => {
                let until = next.map_or(now + LONGEST_PAUSE, |(id, _)| due(id));
                tokio::select! {
                    () = sleep_until(until) => {}
                    changed = unsaid.changed() => if changed.is_err() { return },
                    changed = leads.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}

async fn write(
    client: &Client,
    id: &ObjectId,
    what: &Unsaid,
    limit: Duration,
) -> Result<(), Error> {
    let Some(path) = status_of(id) else { return Ok(()) };
    let patch = patch(id.kind, what, &format!("{:.0}", Timestamp::now()));
    let content = ("application/strategic-merge-patch+json", &patch);
    rest::write(client, Method::PATCH, &path, content, limit).await.map(drop)
}

/// Where the status of such an object is, if it has conditions.
fn status_of(id: &ObjectId) -> Option<String> {
    let name = &id.name.name;
    match id.kind {
        Kind::Node => Some(format!("/api/v1/nodes/{name}/status")),
        Kind::Service => {
            Some(format!("/api/v1/namespaces/{}/services/{name}/status", id.name.namespace))
        }
        _ => None,
    }
}

/// A patch that says it, of lists that are merged by the type of their items.
fn patch(kind: Kind, what: &Unsaid, now: &str) -> Value {
    let (status, reason) = match &what.message {
        Some(_) => ("True", "OlderObjectHasIt"),
        None => ("False", "NoContradiction"),
    };
    let mut condition = json!({
        "type": CONTRADICTION,
        "status": status,
        "reason": reason,
        "message": what.message.as_deref().unwrap_or_default(),
    });
    if what.turns {
        condition["lastTransitionTime"] = now.into();
    }
    if kind == Kind::Node {
        condition["lastHeartbeatTime"] = now.into();
    }
    let mut patch = json!({"status": {"conditions": [condition]}});
    if let Some(uid) = &what.uid {
        patch["metadata"] = json!({"uid": uid});
    }
    patch
}

#[cfg(test)]
mod tests {
    use fairway_model::ObjectName;

    use super::*;

    #[test]
    fn a_patch_is_of_the_one_condition_and_of_that_life_of_the_object() {
        let message = Some("spec.externalIPs[0]: taken".to_owned());
        let what = Unsaid { uid: Some("u".into()), message, turns: true };
        assert_eq!(
            patch(Kind::Service, &what, "now"),
            json!({"metadata": {"uid": "u"}, "status": {"conditions": [{"type": CONTRADICTION,
                "status": "True", "reason": "OlderObjectHasIt",
                "message": "spec.externalIPs[0]: taken", "lastTransitionTime": "now"}]}})
        );
        let what = Unsaid { uid: None, message: None, turns: false };
        assert_eq!(
            patch(Kind::Node, &what, "now"),
            json!({"status": {"conditions": [{"type": CONTRADICTION, "status": "False",
                "reason": "NoContradiction", "message": "", "lastHeartbeatTime": "now"}]}})
        );
        let id = |kind| ObjectId { kind, name: ObjectName::new("shop", "web") };
        let path = Some("/api/v1/namespaces/shop/services/web/status".to_owned());
        assert_eq!(status_of(&id(Kind::Service)), path);
        assert_eq!(status_of(&id(Kind::Pod)), None);
    }
}
