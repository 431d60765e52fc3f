//! How a call fails: a code that the runtime acts on, and a text for the person who reads its log.

use std::error::Error;

use serde_json::{Value, json};

use crate::version::Version;

/// Codes below 100 are the specification's, the others are ours. A number never changes meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    IncompatibleVersion = 1,
    /// The message contains the key and its value.
    UnsupportedField = 2,
    /// The message contains the names of the variables.
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    /// The same call may succeed later.
    TryAgain = 11,
    /// STATUS: an ADD would fail now; pods that exist are not affected.
    NotAvailable = 50,
    /// The kernel refused.
    Kernel = 100,
    /// The pod has an interface of that name already, or the attachment one on the node.
    InterfaceExists = 101,
    /// The agent refused, for a reason that waiting does not change.
    AgentRefused = 102,
    /// CHECK: something is not as ADD left it; `details` lists all of it.
    Changed = 103,
    /// DEL or GC could not remove everything; `details` lists what.
    Incomplete = 104,
}

/// A call that failed. What it had begun is undone by the time this exists.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: Vec<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    pub(crate) fn with_details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// Says in front what the call was.
    pub(crate) fn about(mut self, call: &str) -> Self {
        self.message = format!("{call}: {}", self.message);
        self
    }

    pub(crate) fn to_json(&self, version: Version) -> Value {
        let mut json = json!({
            "cniVersion": version.name(),
            "code": self.code as u32,
            "msg": self.message,
        });
        if !self.details.is_empty() {
            json["details"] = self.details.join("; ").into();
        }
        json
    }
}

impl From<fairway_netlink::Error> for Failure {
    fn from(error: fairway_netlink::Error) -> Self {
        Self::new(Code::Kernel, chain(&error))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
