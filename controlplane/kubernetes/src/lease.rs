//! Who of several replicas writes: the holder of a Lease.
//!
//! A replica that sees the Lease unchanged for as long as its holder promised to renew it, by its own clock
//! that never jumps, takes it. For a moment two may believe that they hold it; that is harmless, because
//! whatever is written is written under the version that was read, and what one object cannot guard is first
//! written down in the Lease itself, which only its holder can.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::rest::{self, Error};

/// Holds the ranges of pods that are being given to nodes, by node.
const RESERVED: &str = "fairway.dev/reserved-pod-cidrs";

/// Ranges that are being given to nodes.
pub(crate) type Reserved = BTreeMap<String, Vec<IpNet>>;

/// Which Lease, and how it is held.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What this replica is called; no other one may be.
    pub identity: String,
    /// For how long it is held without being renewed; whole seconds.
    pub duration: Duration,
    /// How often it is renewed, or looked at.
    pub renewal: Duration,
}

impl Options {
    /// As Kubernetes' own controllers do it, under a name of this process.
    pub fn new(namespace: String) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            namespace,
            name: "fairway-controlplane".to_owned(),
            identity: format!("{}_{:016x}", host.trim(), crate::follow::random()),
            duration: Duration::from_secs(15),
            renewal: Duration::from_secs(2),
        }
    }

    /// Until when after a renewal it counts as held: some time before others may take it.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

/// See the module.
pub(crate) struct Lease {
    client: Client,
    options: Options,
    /// The version that was last seen of others, and since when.
    seen: Option<(String, Instant)>,
    /// The object as it was last written here, and until when it counts.
    held: Option<(Value, Instant)>,
}

impl Lease {
    pub(crate) fn new(client: Client, options: Options) -> Self {
        Self { client, options, seen: None, held: None }
    }

    /// Whether whoever asks may write now.
    pub(crate) fn is_held(&self) -> bool {
        self.held.as_ref().is_some_and(|(_, until)| Instant::now() < *until)
    }

    /// What is noted in it.
    pub(crate) fn reserved(&self) -> Reserved {
        let noted = self.held.as_ref().and_then(|(object, _)| {
            serde_json::from_str(object["metadata"]["annotations"][RESERVED].as_str()?).ok()
        });
        noted.unwrap_or_default()
    }

    /// Notes this in it, and renews it with that.
    ///
    /// # Errors
    /// It is not noted, and perhaps no longer held.
    pub(crate) async fn reserve(&mut self, reserved: &Reserved) -> Result<(), Error> {
        let Some((object, _)) = self.held.clone().filter(|_| self.is_held()) else {
            return Err(Error::Nonsense("the lease is not held".into()));
        };
        let mut next = object;
        let text = serde_json::to_string(reserved).expect("names and ranges are plain data");
        next["metadata"]["annotations"][RESERVED] = text.into();
        self.write(next).await
    }

    /// Renews it, or takes it if nobody holds it.
    ///
    /// # Errors
    /// The server cannot be asked. A lease that is held stays so until its time is over.
    pub(crate) async fn keep(&mut self) -> Result<(), Error> {
        match self.held.clone() {
            Some((object, _)) => self.write(object).await,
            None => self.try_take().await,
        }
    }

    async fn try_take(&mut self) -> Result<(), Error> {
        let limit = self.options.deadline();
        let found = match rest::get(&self.client, &self.options.path(), limit).await {
            Ok(text) => rest::decode::<Value>(&text)?,
            Err(error) if error.code() == Some(404) => return self.create().await,
            Err(error) => return Err(error),
        };
        let version = found["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        let spec = &found["spec"];
        let promised = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(0));
        // Its own after all, if an answer was lost.
        let own = self.options.identity.as_str();
        let free = spec["holderIdentity"].as_str().is_none_or(|by| by.is_empty() || by == own);
        if !free && now.duration_since(since) < promised.max(self.options.duration) {
            return Ok(());
        }
        let mut next = found;
        let transitions = next["spec"]["leaseTransitions"].as_u64().unwrap_or(0) + 1;
        self.claim(&mut next, transitions);
        self.write(next).await
    }

    async fn create(&mut self) -> Result<(), Error> {
        let Options { namespace, name, .. } = &self.options;
        let mut object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"namespace": namespace, "name": name}, "spec": {}});
        self.claim(&mut object, 0);
        object["spec"]["renewTime"] = now().into();
        let (uri, begun) = (self.options.collection(), Instant::now());
        let content = ("application/json", &object);
        let limit = self.options.deadline();
        let made = rest::write(&self.client, Method::POST, &uri, content, limit).await?;
        self.held = Some((made, begun + self.options.deadline()));
        Ok(())
    }

    fn claim(&self, object: &mut Value, transitions: u64) {
        let spec = &mut object["spec"];
        spec["holderIdentity"] = self.options.identity.clone().into();
        spec["leaseDurationSeconds"] = self.options.duration.as_secs().max(1).into();
        spec["acquireTime"] = now().into();
        spec["leaseTransitions"] = transitions.into();
    }

    async fn write(&mut self, mut object: Value) -> Result<(), Error> {
        object["spec"]["renewTime"] = now().into();
        let (uri, begun) = (self.options.path(), Instant::now());
        let content = ("application/json", &object);
        let limit = self.options.deadline();
        match rest::write(&self.client, Method::PUT, &uri, content, limit).await {
            Ok(written) => {
                self.held = Some((written, begun + self.options.deadline()));
                Ok(())
            }
            Err(error) => {
                // Somebody else wrote it, or removed it.
                if matches!(error.code(), Some(404 | 409)) {
                    (self.held, self.seen) = (None, None);
                } else if !self.is_held() {
                    self.held = None;
                }
                Err(error)
            }
        }
    }

    /// Lets others have it at once.
    pub(crate) async fn release(&mut self) {
        if let Some((mut object, _)) = self.held.take() {
            object["spec"]["holderIdentity"] = "".into();
            object["spec"]["leaseDurationSeconds"] = 1.into();
            // If this fails, they wait until its time is over.
            let _ = self.write(object).await;
            self.held = None;
        }
    }
}

/// With microseconds, as Leases have it.
fn now() -> String {
    format!("{:.6}", Timestamp::now())
}
