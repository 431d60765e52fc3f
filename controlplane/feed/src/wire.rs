//! What the two ends say to each other, one JSON document a line.

use std::collections::BTreeMap;

use fairway_model::{Key, Object, WireGuardKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;

/// The longest line either end takes: the endpoints of the largest Service with room to spare.
pub(crate) const MAX_LINE: usize = 16 << 20;

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
    Reset { epoch: Epoch },
    /// What follows builds on what the client said it has.
    Resume(Position),
    /// Adds or replaces an object.
    #[serde(borrow)]
    Put(&'a RawValue),
    /// Removes one.
    #[serde(borrow)]
    Delete(&'a RawValue),
    /// The lines since the last one of these are one step.
    Sync(Sync),
    /// Nothing happened.
    Ping {},
}

/// The end of a batch.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sync {
    /// Of the model that the batch completes.
    pub(crate) revision: u64,
    /// Over all objects of that model, by kind, so that a client can check the kinds it knows.
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
    Reset { epoch: &'a str },
    /// See [`Line::Resume`].
    Resume(&'a Position),
    /// See [`Line::Put`].
    Put(&'a RawValue),
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

/// What a node without a certificate asks for one with.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    pub(crate) token: String,
    pub(crate) node: String,
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

/// The answer to both.
#[derive(Serialize, Deserialize)]
pub(crate) struct Certified {
    /// As PEM.
    pub(crate) certificate: String,
    /// Whose certificates to trust from now on, as PEM.
    pub(crate) ca: String,
}
