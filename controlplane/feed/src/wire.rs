//! What the two ends say to each other, one JSON document a line.

use std::collections::BTreeMap;

use fairway_model::{Endpoint, Endpoints, Key, Object, ObjectName, WireGuardKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::{Digest, hash, hash_on};

/// The longest line either end takes, in bytes: the endpoints of the largest Service with room to spare.
/// Whoever makes models has to see to it that no object's JSON is longer.
pub const MAX_LINE: usize = 16 << 20;

/// What this end speaks: each version changes what old clients would not understand. A client says what it
/// reads, the server answers with what it writes, which is no more than that.
pub(crate) const VERSION: u32 = 2;

/// The kind of pods, which each node gets its own of.
pub(crate) const POD: &str = "pod";

/// One life of a server. Revisions of different epochs have nothing to do with each other.
pub(crate) type Epoch = String;

/// Where in the sequence of models one stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) epoch: Epoch,
    pub(crate) revision: u64,
}

/// A line as the client reads it. A verb it does not know is an error: skipping what may change the
/// meaning of the rest is no way to stay right.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Line<'a> {
    /// A complete model follows, up to the next sync.
    Reset { epoch: Epoch, version: u32 },
    /// What follows builds on what the client said it has.
    Resume { epoch: Epoch, revision: u64, version: u32 },
    /// Adds or replaces an object.
    #[serde(borrow)]
    Put(&'a RawValue),
    /// Replaces some of an object's elements.
    #[serde(borrow)]
    Edit(&'a RawValue),
    /// Removes one.
    #[serde(borrow)]
    Delete(&'a RawValue),
    /// The lines since the last one of these are one step.
    Sync(Sync),
    /// Nothing happened.
    Ping {},
}

/// The end of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sync {
    /// Of the model that the batch completes.
    pub(crate) revision: u64,
    /// Over all objects of that model that this client gets, by kind, so that it can check the kinds it
    /// knows: after a reset all kinds that there are objects of, otherwise those of which the step says
    /// anything.
    pub(crate) digest: BTreeMap<String, Digest>,
}

/// The kind of an object or key, whatever else it holds.
#[derive(Deserialize)]
pub(crate) struct Kind {
    pub(crate) kind: String,
}

/// A line as the server writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Say<'a> {
    /// See [`Line::Reset`].
    Reset { epoch: &'a str, version: u32 },
    /// See [`Line::Resume`].
    Resume { epoch: &'a str, revision: u64, version: u32 },
    /// See [`Line::Put`].
    Put(&'a RawValue),
    /// See [`Line::Edit`].
    Edit(Edit<'a>),
    /// See [`Line::Delete`].
    Delete(&'a Key),
    /// See [`Line::Sync`].
    Sync(&'a Sync),
    /// See [`Line::Ping`].
    Ping {},
}

impl Say<'_> {
    /// Appends the line and its end.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(&mut *out, self).expect("lines are plain data and go to memory");
        out.push(b'\n');
    }
}

/// The endpoints of a Service's port from `at` on: `remove` of them go and `put` come in their place.
#[derive(Serialize)]
pub(crate) struct Edit<'a> {
    #[serde(flatten)]
    pub(crate) key: Key,
    pub(crate) port: &'a str,
    pub(crate) at: usize,
    pub(crate) remove: usize,
    pub(crate) put: &'a [Endpoint],
}

/// The same as the client reads it.
#[derive(Deserialize)]
pub(crate) struct RawEdit<'a> {
    pub(crate) key: ObjectName,
    pub(crate) port: String,
    pub(crate) at: usize,
    pub(crate) remove: usize,
    #[serde(borrow)]
    pub(crate) put: Vec<&'a RawValue>,
}

/// Endpoints whose elements are still the text that was sent.
#[derive(Deserialize)]
pub(crate) struct RawEndpoints<'a> {
    pub(crate) service: ObjectName,
    #[serde(borrow)]
    pub(crate) ports: BTreeMap<String, Vec<&'a RawValue>>,
}

/// What stands for an object in its kind's digest, by its text. Endpoints are the exception: see
/// [`list_hash`].
pub(crate) fn text_hash(text: &str) -> u64 {
    hash(text.as_bytes())
}

/// Endpoints change one at a time, and there are many of them. So what stands for them is a sum: over the
/// object, each of its lists, and each element of those, which knows its place by the hash of the list.
pub(crate) fn list_hash(service: &ObjectName, port: Option<&str>) -> u64 {
    let name = hash_on(hash(service.namespace.as_bytes()), b"/");
    let name = hash_on(name, service.name.as_bytes());
    match port {
        Some(port) => hash_on(hash_on(name, b":"), port.as_bytes()),
        None => name,
    }
}

/// Of an element of the list with this hash, by its text.
pub(crate) fn element_hash(list: u64, text: &str) -> u64 {
    hash_on(hash_on(list, b" "), text.as_bytes())
}

/// The same, of what is not text yet.
pub(crate) fn endpoint_hash(service: &ObjectName, port: &str, endpoint: &Endpoint) -> u64 {
    element_hash(list_hash(service, Some(port)), &endpoint_text(endpoint))
}

/// Of all of a Service's.
pub(crate) fn endpoints_hash(endpoints: &Endpoints) -> u64 {
    let mut sum = Digest::of(list_hash(&endpoints.service, None));
    for (port, list) in &endpoints.ports {
        let list_hash = list_hash(&endpoints.service, Some(port));
        sum.add(list_hash);
        list.iter().for_each(|endpoint| sum.add(element_hash(list_hash, &endpoint_text(endpoint))));
    }
    sum.value()
}

fn endpoint_text(endpoint: &Endpoint) -> String {
    serde_json::to_string(endpoint).expect("endpoints are plain data")
}

/// An object's JSON, the text that is sent and that the digest is taken of.
pub(crate) fn encode(object: &Object) -> Box<RawValue> {
    serde_json::value::to_raw_value(object).expect("objects are plain data")
}

/// What a node says of itself, which nobody else can know. What a newer node adds is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// What encrypts to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_key: Option<WireGuardKey>,
    /// See [`Node::resolver`](fairway_model::Node::resolver).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resolver: bool,
}

/// What each node has said of itself, by its name.
pub type NodeFacts = BTreeMap<String, Facts>;

/// What a node says it has put in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ack {
    pub(crate) node: String,
    pub(crate) epoch: Epoch,
    pub(crate) revision: u64,
}

/// What a node or a gateway without a certificate asks for one with.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    pub(crate) token: String,
    /// Whose it is to be: a node's...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// ...or a gateway's, as `GROUP/REPLICA`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
    /// PKCS #10, as PEM.
    pub(crate) request: String,
}

/// What a node with a certificate asks for another with.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Renew {
    /// PKCS #10, as PEM.
    pub(crate) request: String,
}

/// What a client says on its own stream: a line for each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Heard {
    /// This revision of the stream's epoch is in force.
    Ack {
        /// Which.
        revision: u64,
    },
}

/// The answer to both.
#[derive(Serialize, Deserialize)]
pub(crate) struct Certified {
    /// As PEM.
    pub(crate) certificate: String,
    /// Whose certificates to trust from now on, as PEM.
    pub(crate) ca: String,
}
