//! A message in, a verdict out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairway_core::dns::{self, Query, Unfit, kind, rcode};

use super::find::{Found, address_of};
use super::writer::{Buffer, Data, Owner, Reply, Section, header_alone};
use super::{Client, Forward, NAME_CHUNKS, Reason, Transport, Verdict};
use crate::name::{Name, labels};
use crate::zone::Zone;
use crate::zone::names::{Headless, Label, Names, What};

/// Aliases of aliases that are followed within the zone.
const MOST_ALIASES: usize = 8;
/// The version of the names' schema (Kubernetes DNS-Based Service Discovery, 2.2).
const SCHEMA: &[u8] = b"\x051.1.0";
/// What there is instead of everything (RFC 8482, 4.2).
const HINFO: &[u8] = b"\x07RFC8482\0";
/// Of SRV records; those of a Service share it (RFC 2782).
const WEIGHT: usize = 100;

/// A query as it is being answered.
struct Asked<'a> {
    query: Query,
    message: &'a [u8],
    /// In small letters, and what of it is below the zone.
    name: &'a [u8],
    prefix: &'a [u8],
    client: &'a Client,
}

impl Asked<'_> {
    fn reply<'b>(&self, out: &'b mut Buffer) -> Reply<'b> {
        Reply::begin(&self.query, self.message, self.client.transport, out)
    }

    fn answer<'b>(&self, bytes: &'b [u8]) -> Verdict<'b> {
        Verdict::Answer { bytes, kind: self.query.kind }
    }

    /// Where the zone's name is in the message.
    fn zone(&self) -> u16 {
        dns::HEADER + u16::try_from(self.prefix.len()).unwrap_or_default()
    }

    fn wants_address(&self) -> bool {
        matches!(self.query.kind, kind::A | kind::AAAA)
    }
}

impl Zone {
    /// What becomes of a message of `client`. Its answer is written to `out`.
    pub fn answer<'a>(&self, message: &[u8], client: &Client, out: &'a mut Buffer) -> Verdict<'a> {
        let mut name = [[0; 8]; NAME_CHUNKS];
        let query = match dns::parse(message, &mut name) {
            Ok(query) => query,
            Err(unfit) => return unreadable(message, unfit, out),
        };
        let name = &name.as_flattened()[..query.name.into()];
        let prefix = self.prefix_of(name);
        let below = &name[..prefix.unwrap_or_default()];
        let asked = Asked { query, message, name, prefix: below, client };
        let refusal = match query {
            Query { edns: Some(edns), .. } if edns.version != 0 => Some(rcode::BAD_VERS),
            Query { class, kind, .. } if class != dns::IN || is_transfer(kind) => {
                Some(rcode::REFUSED)
            }
            _ => None,
        };
        if let Some(rcode) = refusal {
            return asked.answer(asked.reply(out).finish(rcode));
        }
        if prefix.is_none() {
            return self.outside(&asked, out);
        }
        match self.find(below) {
            Found::Absent => self.search(&asked, out),
            Found::Service(Names { what: What::Alias(target), .. }) => {
                self.follow(&asked, target, out)
            }
            found => {
                let dice = out.dice();
                let mut reply = asked.reply(out);
                reply.authoritative();
                self.write(&asked, found, Owner::QUESTION, dice, &mut reply);
                asked.answer(reply.finish(rcode::NO_ERROR))
            }
        }
    }

    /// Says that the name of a search list is not there, nor any that it could stand for.
    pub fn absent<'a>(
        &self,
        forward: &Forward,
        message: &[u8],
        transport: Transport,
        out: &'a mut Buffer,
    ) -> &'a [u8] {
        let mut reply = Reply::begin(&forward.query, message, transport, out);
        reply.authoritative();
        if let Some(prefix) = self.prefix_of(forward.question.as_wire()) {
            let zone = dns::HEADER + u16::try_from(prefix).unwrap_or_default();
            self.write_nothing(zone, &mut reply);
        }
        reply.finish(rcode::NX_DOMAIN)
    }

    fn write_nothing(&self, zone: u16, reply: &mut Reply<'_>) {
        reply.ready(Section::Authority, dns::soa(zone, self.options.ttl, self.serial));
    }

    /// What is not in the zone: names of our addresses, and whatever others know.
    fn outside<'a>(&self, asked: &Asked<'_>, out: &'a mut Buffer) -> Verdict<'a> {
        if let Some((address, prefix)) = address_of(asked.name) {
            let is_ours = self.is_ours(address);
            // What others call an address that is not the cluster's is more than that it has one.
            let known = self.services_of(address).filter(|names| is_ours || names.calls(address));
            let mut known = known.peekable();
            if known.peek().is_some() || is_ours {
                let is_absent = known.peek().is_none();
                let mut reply = asked.reply(out);
                reply.authoritative();
                if asked.query.kind == kind::PTR {
                    known.for_each(|names| self.write_pointers(names, address, &mut reply));
                } else if asked.query.kind == kind::ANY && !is_absent {
                    self.write_any(Owner::QUESTION, &mut reply);
                }
                if reply.is_empty() {
                    let zone = dns::HEADER + u16::try_from(prefix).unwrap_or_default();
                    self.write_nothing(zone, &mut reply);
                }
                let rcode = if is_absent { rcode::NX_DOMAIN } else { rcode::NO_ERROR };
                return asked.answer(reply.finish(rcode));
            }
        }
        match Name::from_wire(asked.name) {
            Some(name) => Verdict::Forward(Box::new(Forward::plain(asked.query, name))),
            None => Verdict::Drop(Reason::Malformed),
        }
    }

    /// A name of the zone that is not there. If it is the first of the client's search list, what would be found along
    /// the rest of the list is its answer.
    fn search<'a>(&self, asked: &Asked<'_>, out: &'a mut Buffer) -> Verdict<'a> {
        let mut names = Vec::new();
        if let Some(base) = self.base_of(asked) {
            let zone = &self.options.zone;
            let svc = Name::below(b"\x03svc", zone);
            let own = svc.iter().chain([zone]).chain(&self.options.search);
            let listed = own.filter_map(|suffix| Name::below(base, suffix));
            for name in listed.chain(Name::below(base, &Name::root())) {
                match name.prefix_in(zone) {
                    None => names.push(name),
                    Some(prefix) => match self.find(prefix) {
                        Found::Absent => {}
                        // A name in full is last in the list, and yet nobody else would have one that ends so.
                        _ => return self.follow(asked, &name, out),
                    },
                }
            }
        }
        let forward = |question| Forward {
            query: asked.query,
            question,
            names,
            via: Vec::new(),
            search: true,
            ttl: self.options.ttl,
        };
        match Name::from_wire(asked.name).map(forward) {
            Some(forward) if !forward.names.is_empty() => Verdict::Forward(Box::new(forward)),
            _ => {
                let mut reply = asked.reply(out);
                reply.authoritative();
                self.write_nothing(asked.zone(), &mut reply);
                asked.answer(reply.finish(rcode::NX_DOMAIN))
            }
        }
    }

    /// The name that a pod's process looked for, as labels, if its resolver made this one of it as the first of its
    /// search list, `NAMESPACE.svc.ZONE`.
    fn base_of<'b>(&self, asked: &Asked<'b>) -> Option<&'b [u8]> {
        let namespace = asked.client.namespace.as_ref().filter(|_| self.options.autopath)?;
        if !asked.wants_address() {
            return None;
        }
        let own = asked.prefix.strip_suffix(b"\x03svc")?;
        let base = own.len().checked_sub(namespace.len() + 1).filter(|base| *base > 0)?;
        let (length, label) = own[base..].split_first()?;
        let is_own = usize::from(*length) == namespace.len()
            && label.eq_ignore_ascii_case(namespace.as_bytes());
        let base = &own[..base];
        // What looks like that could begin within a label.
        let whole = labels(base).map(|label| label.len() + 1).sum::<usize>() == base.len();
        (is_own && whole).then_some(base)
    }

    /// Answers with what `target` is, of which the name that was asked for is an alias.
    fn follow<'a>(&self, asked: &Asked<'_>, target: &Name, out: &'a mut Buffer) -> Verdict<'a> {
        let Some(question) = Name::from_wire(asked.name) else {
            return Verdict::Drop(Reason::Malformed);
        };
        let ttl = self.options.ttl;
        if matches!(asked.query.kind, kind::CNAME | kind::ANY) {
            let mut reply = asked.reply(out);
            reply.authoritative();
            reply.aliases([&question, target].into_iter(), ttl);
            return asked.answer(reply.finish(rcode::NO_ERROR));
        }
        let mut via = Vec::new();
        let mut target = target;
        let found = loop {
            let Some(prefix) = target.prefix_in(&self.options.zone) else {
                let (query, names) = (asked.query, vec![target.clone()]);
                let forward = Forward { query, question, names, via, search: false, ttl };
                return Verdict::Forward(Box::new(forward));
            };
            match self.find(prefix) {
                Found::Service(Names { what: What::Alias(next), .. }) => {
                    if via.len() == MOST_ALIASES {
                        return asked.answer(asked.reply(out).finish(rcode::SERV_FAIL));
                    }
                    via.push(target.clone());
                    target = next;
                }
                found => break found,
            }
        };
        let dice = out.dice();
        let mut reply = asked.reply(out);
        reply.authoritative();
        reply.aliases([&question].into_iter().chain(&via).chain([target]), ttl);
        let rcode = match found {
            Found::Absent => rcode::NX_DOMAIN,
            _ => rcode::NO_ERROR,
        };
        self.write(asked, found, Owner::Name(target.as_wire()), dice, &mut reply);
        asked.answer(reply.finish(rcode))
    }

    /// Writes the records of the type that was asked for; if there are none, that there is such a name.
    fn write(
        &self,
        asked: &Asked<'_>,
        found: Found<'_>,
        owner: Owner<'_>,
        dice: u32,
        reply: &mut Reply<'_>,
    ) {
        let before = reply.count();
        let ttl = self.options.ttl;
        match (found, asked.query.kind) {
            (Found::Between | Found::Absent, _) => {}
            (_, kind::ANY) => self.write_any(owner, reply),
            (Found::Apex, kind::SOA) => {
                reply.ready(Section::Answer, dns::soa(asked.zone(), ttl, self.serial));
            }
            (Found::Apex, kind::NS) => {
                if let Some(server) = Name::below(b"\x02ns\x03dns", &self.options.zone) {
                    reply.record(
                        Section::Answer,
                        owner,
                        kind::NS,
                        ttl,
                        Data::Name(server.as_wire()),
                    );
                }
            }
            (Found::Version, kind::TXT) => {
                reply.record(Section::Answer, owner, kind::TXT, ttl, Data::Bytes(SCHEMA));
            }
            (Found::Service(names) | Found::Server(Some(names)), of @ (kind::A | kind::AAAA)) => {
                self.write_addresses(names, of, owner, dice, reply);
            }
            (Found::Host(headless, label), of @ (kind::A | kind::AAAA)) => {
                let all = (0..).map_while(|nth| headless.host(label, nth));
                for address in all.filter(|address| kind_of(*address) == of) {
                    self.write_address(address, owner, Section::Answer, reply);
                }
            }
            (Found::Pod(address), of) if kind_of(address) == of => {
                self.write_address(address, owner, Section::Answer, reply);
            }
            (Found::Port(names, port), kind::SRV) => {
                self.write_port(names, port, owner, dice, reply);
            }
            _ => {}
        }
        if reply.count() == before && !reply.is_truncated() {
            self.write_nothing(asked.zone(), reply);
        }
    }

    fn write_any(&self, owner: Owner<'_>, reply: &mut Reply<'_>) {
        reply.record(Section::Answer, owner, kind::HINFO, self.options.ttl, Data::Bytes(HINFO));
    }

    fn write_addresses(
        &self,
        names: &Names,
        of: u16,
        owner: Owner<'_>,
        dice: u32,
        reply: &mut Reply<'_>,
    ) {
        let (v4, v6): (&[Ipv4Addr], &[Ipv6Addr]) = match &names.what {
            What::Balanced { v4, v6, .. } => (v4.as_slice(), v6.as_slice()),
            What::Headless(Headless { v4, v6, .. }) => (v4, v6),
            What::Alias(_) => (&[], &[]),
        };
        let mut write = |address| self.write_address(address, owner, Section::Answer, reply);
        // Those behind one that does not fit would not, either.
        let _all = match of {
            kind::A => shuffled(v4.len(), dice).all(|nth| write(v4[nth].into())),
            _ => shuffled(v6.len(), dice).all(|nth| write(v6[nth].into())),
        };
    }

    fn write_address(
        &self,
        address: IpAddr,
        owner: Owner<'_>,
        section: Section,
        reply: &mut Reply<'_>,
    ) -> bool {
        let ttl = self.options.ttl;
        match (address, owner) {
            (IpAddr::V4(ip), Owner::At(dns::HEADER)) => {
                reply.ready(section, dns::a(ttl, ip.octets()))
            }
            (IpAddr::V6(ip), Owner::At(dns::HEADER)) => {
                reply.ready(section, dns::aaaa(ttl, ip.octets()))
            }
            (IpAddr::V4(ip), _) => {
                reply.record(section, owner, kind::A, ttl, Data::Bytes(&ip.octets()))
            }
            (IpAddr::V6(ip), _) => {
                reply.record(section, owner, kind::AAAA, ttl, Data::Bytes(&ip.octets()))
            }
        }
    }

    /// Says what address a target has that stands in the answer already. Where there is no room for it, it is left out,
    /// and the client asks once more.
    fn write_glue(&self, address: IpAddr, at: u16, reply: &mut Reply<'_>) {
        if at != NOWHERE {
            self.write_address(address, Owner::At(at), Section::Additional, reply);
        }
    }

    /// Where a port is served, and, as far as there is room, what addresses that has.
    fn write_port(
        &self,
        names: &Names,
        port: &fairway_model::ServicePort,
        owner: Owner<'_>,
        dice: u32,
        reply: &mut Reply<'_>,
    ) {
        let mut service = names.key.as_wire().to_vec();
        service.extend_from_slice(b"\x03svc");
        service.extend_from_slice(self.options.zone.as_wire());
        let mut targets = Vec::new();
        match &names.what {
            What::Headless(headless) => {
                let on_port = headless.on_port(&port.name);
                let weight = (WEIGHT / on_port.len().max(1)).max(1);
                for nth in shuffled(on_port.len(), dice) {
                    let (label, number) = &on_port[nth];
                    let mut target = Vec::with_capacity(service.len() + 64);
                    label.write(&mut target);
                    let length = target.len();
                    target.extend_from_slice(&service);
                    let Some(at) = self.write_srv(weight, *number, &target, owner, reply) else {
                        break;
                    };
                    targets.push((at, target[1..length].to_vec()));
                }
                for (at, label) in targets {
                    let all = (0..).map_while(|nth| headless.host(&label, nth));
                    for address in all {
                        self.write_glue(address, at, reply);
                    }
                }
            }
            _ => {
                if let Some(at) = self.write_srv(WEIGHT, port.port, &service, owner, reply) {
                    for address in names.addresses() {
                        self.write_glue(address, at, reply);
                    }
                }
            }
        }
    }

    /// Answers where the target's name is, or [`NOWHERE`] that a pointer leads to; `None` if the record did not fit.
    fn write_srv(
        &self,
        weight: usize,
        port: u16,
        target: &[u8],
        owner: Owner<'_>,
        reply: &mut Reply<'_>,
    ) -> Option<u16> {
        let [w0, w1] = u16::try_from(weight).unwrap_or(u16::MAX).to_be_bytes();
        let [p0, p1] = port.to_be_bytes();
        let data = Data::Plain(&[0, 0, w0, w1, p0, p1], target);
        let fits = reply.record(Section::Answer, owner, kind::SRV, self.options.ttl, data);
        let at = reply.position().checked_sub(target.len())?;
        fits.then(|| u16::try_from(at).ok().filter(|at| *at < 1 << 14).unwrap_or(NOWHERE))
    }

    fn write_pointers(&self, names: &Names, address: IpAddr, reply: &mut Reply<'_>) {
        let mut write = |label: Option<&Label<'_>>| {
            let mut target = Vec::with_capacity(128);
            if let Some(label) = label {
                label.write(&mut target);
            }
            target.extend_from_slice(names.key.as_wire());
            target.extend_from_slice(b"\x03svc");
            target.extend_from_slice(self.options.zone.as_wire());
            let data = Data::Name(&target);
            reply.record(Section::Answer, Owner::QUESTION, kind::PTR, self.options.ttl, data);
        };
        match &names.what {
            What::Headless(headless) => {
                headless.labels_of(address).for_each(|label| write(Some(&label)))
            }
            _ => write(None),
        }
    }
}

/// The offset of a name that is too far behind for a pointer.
const NOWHERE: u16 = 0;

fn is_transfer(of: u16) -> bool {
    matches!(of, kind::AXFR | kind::IXFR)
}

fn kind_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { kind::A } else { kind::AAAA }
}

/// What becomes of a message that is no plain query.
fn unreadable<'a>(message: &[u8], unfit: Unfit, out: &'a mut Buffer) -> Verdict<'a> {
    let rcode = match unfit {
        Unfit::Short => return Verdict::Drop(Reason::Short),
        Unfit::Answer => return Verdict::Drop(Reason::Answer),
        Unfit::Question => return Verdict::Drop(Reason::Malformed),
        Unfit::Header if message.get(2).is_some_and(|flags| flags & 0x78 != 0) => rcode::NOT_IMP,
        Unfit::Header | Unfit::Rest => rcode::FORM_ERR,
    };
    match header_alone(message, rcode, out) {
        Some(bytes) => Verdict::Answer { bytes, kind: 0 },
        None => Verdict::Drop(Reason::Short),
    }
}

/// The numbers below `count`, each once, in an order at random: from anywhere, in steps that meet all.
fn shuffled(count: usize, dice: u32) -> impl Iterator<Item = usize> {
    let start = (dice >> 16) as usize;
    let wanted = (dice & 0xffff) as usize % count.max(1) + 1;
    let step = (wanted..wanted + count).find(|step| gcd(*step, count) == 1).unwrap_or(1);
    (0..count).map(move |nth| (start + nth * step) % count)
}

fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn shuffled_numbers_are_all_there_in_many_orders() {
        for count in 0..70 {
            let mut orders = BTreeSet::new();
            for dice in 0..200_u32 {
                let order: Vec<_> = shuffled(count, dice.wrapping_mul(0x9e37_79b9)).collect();
                let all: BTreeSet<_> = order.iter().copied().collect();
                assert!(
                    all.iter().copied().eq(0..count) && order.len() == count,
                    "{count}: {order:?}"
                );
                orders.insert(order);
            }
            let most = [1, 1, 2, 6].get(count).copied().unwrap_or(7);
            assert!(orders.len() >= most, "{count}: {} orders", orders.len());
        }
    }
}
