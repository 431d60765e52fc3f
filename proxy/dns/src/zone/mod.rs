//! The cluster's names, as a snapshot that is cheap to follow the model with.

use std::sync::Arc;

use fairway_core::dns;
use fairway_model::Model;

use crate::answer::{
    Buffer, Client, Forward, NAME_CHUNKS, Reason, Reply, Section, Transport, Verdict,
};
use crate::name::Name;

/// What a zone does not know from the model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's domain.
    pub zone: Name,
    /// Seconds that answers may be kept; and that something is not there.
    pub ttl: u32,
    /// Whether addresses have names of the form `10-1-2-3.NAMESPACE.pod.ZONE`.
    pub pods: PodNames,
    /// Whether a name of a pod's search list that is not there is looked for along the list at once.
    pub autopath: bool,
    /// The node's own search list, which follows that of the cluster.
    pub search: Vec<Name>,
}

/// Of [`Options`]: which addresses have names of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    Disabled,
    /// Any address, in any namespace.
    #[default]
    Insecure,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            zone: "cluster.local".parse().unwrap_or_else(|_| Name::root()),
            ttl: 5,
            pods: PodNames::default(),
            autopath: true,
            search: Vec::new(),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Zone {
    options: Arc<Options>,
    serial: u32,
}

impl Zone {
    /// Of an empty cluster.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), serial: 0 }
    }

    /// That of `model`; what has not changed since is shared. `serial` tells the two apart and grows, as seconds do.
    #[must_use]
    pub fn next(&self, _model: &Model, serial: u32) -> Self {
        Self { options: Arc::clone(&self.options), serial }
    }

    /// What becomes of a message of `client`. Its answer is written to `out`.
    pub fn answer<'a>(
        &self,
        message: &[u8],
        _client: &Client,
        _out: &'a mut Buffer,
    ) -> Verdict<'a> {
        let mut name = [[0; 8]; NAME_CHUNKS];
        let Ok(query) = dns::parse(message, &mut name) else {
            return Verdict::Drop(Reason::Malformed);
        };
        let name = Name::from_wire(&name.as_flattened()[..query.name.into()]);
        name.map_or(Verdict::Drop(Reason::Malformed), |name| {
            Verdict::Forward(Box::new(Forward::plain(query, name)))
        })
    }

    /// Says that the name of a search list is not there.
    pub fn absent<'a>(
        &self,
        forward: &Forward,
        message: &[u8],
        transport: Transport,
        out: &'a mut Buffer,
    ) -> &'a [u8] {
        let mut reply = Reply::begin(&forward.query, message, transport, out);
        reply.authoritative();
        if let Some(prefix) = forward.question.prefix_in(&self.options.zone) {
            let zone = u16::try_from(prefix.len()).unwrap_or_default() + dns::HEADER;
            reply.ready(Section::Authority, dns::soa(zone, self.options.ttl, self.serial));
        }
        reply.finish(dns::rcode::NX_DOMAIN)
    }
}
