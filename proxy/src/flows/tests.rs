//! Housekeeping of literal records in real tables.

use std::collections::{BTreeMap, BTreeSet};

use fairway_abi::V4;
use fairway_compile::{Choice, EndpointList, ListName};
use fairway_model::{ObjectName, Protocol};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::*;
use crate::sandbox::sandbox;

const CLIENT: V4 = [10, 244, 1, 2];
const OTHER_CLIENT: V4 = [10, 244, 1, 3];
const FRONTEND: V4 = [10, 96, 0, 1];
const ENDPOINT: V4 = [10, 244, 2, 2];
const OTHER_ENDPOINT: V4 = [10, 244, 2, 3];

/// A flow from a client's port to port 80 of the frontend, led to port 8080 of an endpoint.
#[derive(Clone, Copy)]
struct Open {
    stage: Stage,
    protocol: u8,
    client: V4,
    port: u16,
    endpoint: V4,
    service: u32,
    /// When each direction last carried a packet, and what it saw.
    original: (u32, u32),
    reply: (u32, u32),
}

const TCP: Open = Open {
    stage: Stage::Established,
    protocol: protocol::TCP,
    client: CLIENT,
    port: 40_000,
    endpoint: ENDPOINT,
    service: 1,
    original: (0, 0),
    reply: (0, 0),
};
const UDP: Open = Open { protocol: protocol::UDP, service: 2, ..TCP };

impl Open {
    fn half_open(self) -> Self {
        Self { stage: Stage::HalfOpen, ..self }
    }

    fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Both records, the original direction's first.
    fn records(&self) -> [(FlowKey<V4>, Flow<V4>); 2] {
        let client = (self.client, U16::new(self.port));
        let (frontend, endpoint) = ((FRONTEND, U16::new(80)), (self.endpoint, U16::new(8080)));
        let record = |[from, to, becomes_from, becomes_to]: [(V4, U16); 4], (seen, state)| {
            let key = FlowKey {
                source: from.0,
                destination: to.0,
                source_port: from.1,
                destination_port: to.1,
                protocol: self.protocol,
                reserved: [0; 3],
            };
            let flow = Flow {
                source: becomes_from.0,
                destination: becomes_to.0,
                source_port: becomes_from.1,
                destination_port: becomes_to.1,
                last_seen: U32::new(seen),
                service: U32::new(self.service),
                state: U32::new(state),
            };
            (key, flow)
        };
        let (seen, state) = self.reply;
        [
            record([client, frontend, client, endpoint], self.original),
            record([endpoint, client, frontend, client], (seen, state | flow::REPLY)),
        ]
    }
}

/// Tables that hold these flows.
fn holding(dataplane: &mut Dataplane, flows: &[Open]) -> FlowTables<V4> {
    let mut tables = FlowTables::adopt(dataplane, "4").expect("tables");
    for open in flows {
        for (key, flow) in open.records() {
            table(&mut tables, open.stage).put(&key, &flow).expect("room");
        }
    }
    tables
}

fn table(tables: &mut FlowTables<V4>, stage: Stage) -> &mut Table<FlowKey<V4>, Flow<V4>> {
    match stage {
        Stage::HalfOpen => &mut tables.half_open,
        Stage::Established => &mut tables.established,
    }
}

/// Asserts that exactly these flows are left, whole.
#[track_caller]
fn assert_left(tables: &FlowTables<V4>, flows: &[Open]) {
    for (stage, table) in
        [(Stage::HalfOpen, &tables.half_open), (Stage::Established, &tables.established)]
    {
        let left = table.entries().expect("records").into_iter().map(|(key, _)| key);
        let expected = flows.iter().filter(|open| open.stage == stage);
        let expected = expected.flat_map(Open::records).map(|(key, _)| key);
        assert_eq!(left.collect::<BTreeSet<_>>(), expected.collect(), "{stage:?}");
    }
}

#[test]
fn open_flows_are_shown_once_each() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let flow = |port: u16, stage, own, other| Open {
            port,
            stage,
            original: (1, own),
            reply: (1, other | flow::REPLY),
            ..TCP
        };
        let (half, full) = (Stage::HalfOpen, Stage::Established);
        let both = flow(1, full, 0, 0);
        let open = [
            flow(2, half, 0, 0),
            both,
            // On its way from one table to the other.
            Open { stage: half, ..both },
            flow(3, full, flow::FIN, 0),
            flow(4, full, flow::FIN, flow::FIN),
            flow(5, full, 0, flow::RST),
        ];
        let tables = holding(&mut dataplane, &open);
        let mut seen = Vec::new();
        tables.open(|key| seen.push(key)).expect("tables");
        assert_eq!(seen.len(), 3, "{seen:?}");
        let (address, port) = (ENDPOINT, U16::new(8080));
        let endpoint = LoadKey { address, port, protocol: protocol::TCP, reserved: 0 };
        assert!(seen.iter().all(|key| *key == endpoint), "{seen:?}");
    });
}

/// Asserts that a flow, last seen at second 1000, is there one second before `limit` and gone then.
fn check_expiry(tables: &mut FlowTables<V4>, what: &str, open: Open, limit: u32) {
    const SEEN: u32 = 1000;
    // The other direction may have been silent for longer.
    let records =
        Open { original: (SEEN, open.original.1), reply: (SEEN - 500, open.reply.1), ..open }
            .records();
    for (key, flow) in records {
        table(tables, open.stage).put(&key, &flow).expect("room");
    }
    let mut expire = |now: u32| {
        tables.expire(IdleLimits::default(), |then| now.wrapping_sub(then)).expect("tables")
    };
    assert_eq!(expire(SEEN + limit - 1), 1, "{what}: too early");
    assert_eq!(expire(SEEN + limit), 0, "{what}: too late");
    assert_left(tables, &[]);
}

#[test]
fn silent_flows_are_forgotten_by_their_state() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = holding(&mut dataplane, &[]);
        let both = |original, reply| Open { original: (0, original), reply: (0, reply), ..TCP };
        let delegated = |original| both(original | flow::DELEGATED, 0);
        for (what, open, limit) in [
            ("TCP that is answered elsewhere", delegated(0), 8_000),
            ("the same, closed by the client", delegated(flow::FIN), 120),
            ("the same, reset by it", delegated(flow::RST), 30),
            ("TCP without an answer", TCP.half_open(), 30),
            ("UDP without an answer", UDP.half_open(), 30),
            ("established TCP", TCP, 24 * 60 * 60),
            ("established UDP", UDP, 120),
            ("half-closed TCP", both(flow::FIN, 0), 24 * 60 * 60),
            ("TCP closed by both", both(flow::FIN, flow::FIN), 30),
            ("TCP reset by the client", both(flow::RST, 0), 30),
            ("TCP reset by the endpoint", both(0, flow::RST), 30),
            ("TCP reset before it was answered", both(flow::RST, 0).half_open(), 30),
        ] {
            check_expiry(&mut tables, what, open, limit);
        }
    });
}

/// Its server may still take packets from there for the old connection's.
#[test]
fn a_port_that_others_share_stays_with_a_closed_connection_for_longer() {
    const NODE: V4 = [192, 0, 2, 1];
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = holding(&mut dataplane, &[]);
        let closed = Open { original: (0, flow::FIN), reply: (0, flow::FIN), ..TCP };
        let [(key, mut original), (mut answers, reply)] = closed.records();
        (original.source, answers.destination) = (NODE, NODE);
        for (key, flow) in [(key, original), (answers, reply)] {
            tables.established.put(&key, &flow).expect("room");
        }
        let mut expire =
            |now| tables.expire(IdleLimits::default(), |then| now - then).expect("tables");
        assert_eq!((expire(TIME_WAIT - 1), expire(TIME_WAIT)), (1, 0));
        assert_left(&tables, &[]);
    });
}

#[test]
fn a_flow_of_others_goes_on_unless_it_has_records_of_its_own() {
    let adopted = |open: Open| {
        let [(key, original), (answers, reply)] = open.records();
        let answered = open.stage == Stage::Established;
        Adopted { key, original, answers, reply, answered, to_host: false }
    };
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        // A program saw a packet in its midst, and chose; of another, it saw the first.
        let guess = Open { endpoint: OTHER_ENDPOINT, ..TCP.half_open() };
        let known = TCP.port(40_001).half_open();
        let mut tables = holding(&mut dataplane, &[guess, known]);
        let mut go_on_with = |open| tables.go_on_with(&adopted(open)).expect("tables");
        let silent = UDP.half_open();
        assert_eq!([TCP, silent].map(&mut go_on_with), [Adoption::Done; 2]);
        // Again, and one whose answers have another's records.
        let taken = Open { endpoint: ENDPOINT, ..TCP.port(40_001) };
        assert_eq!([TCP, silent, taken].map(&mut go_on_with), [Adoption::Known; 3]);
        assert_left(&tables, &[TCP, silent, known]);
    });
}

#[test]
fn the_hosts_own_stack_gets_a_flow_when_the_kernel_has_forgotten_it() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = holding(&mut dataplane, &[]);
        let [(key, original), (answers, reply)] = TCP.records();
        let flow = Adopted { key, original, answers, reply, answered: true, to_host: true };
        assert_eq!(tables.go_on_with(&flow.untouched()).expect("tables"), Adoption::Done);
        let mut asked = false;
        let forget = || {
            asked = true;
            Ok(true)
        };
        tables.take_over(&flow, forget).expect("tables");
        assert!(asked);
        assert_left(&tables, &[TCP]);
        assert_eq!(tables.established.get(&key).expect("a table"), Some(original));
    });
}

#[test]
fn half_a_flow_is_forgotten_soon() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = holding(&mut dataplane, &[TCP]);
        let [(original, _), _] = TCP.records();
        table(&mut tables, Stage::Established).remove(&original).expect("a record");
        tables.expire(IdleLimits::default(), |_| 30).expect("tables");
        assert_left(&tables, &[]);
    });
}

#[test]
fn ages_survive_the_clock_s_wrap() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let late = Open { original: (u32::MAX - 9, 0), reply: (u32::MAX - 9, 0), ..UDP };
        let mut tables = holding(&mut dataplane, &[late]);
        let mut expire = |now: u32| {
            tables.expire(IdleLimits::default(), |then| now.wrapping_sub(then)).expect("tables")
        };
        assert_eq!((expire(109), expire(110)), (1, 0));
    });
}

#[test]
fn a_pod_that_goes_takes_its_flows_at_either_end_and_no_other() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let of_client = TCP.port(1);
        let to_client = Open { client: OTHER_CLIENT, endpoint: CLIENT, ..UDP.port(2) };
        let unanswered = TCP.half_open().port(3);
        let of_other = Open { client: OTHER_CLIENT, ..TCP.port(4) };
        let mut tables = holding(&mut dataplane, &[of_client, to_client, unanswered, of_other]);
        tables.forget_address(CLIENT).expect("tables");
        assert_left(&tables, &[of_other]);
    });
}

#[test]
fn flows_to_endpoints_that_left_are_forgotten_unless_a_connection_is_open() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let services = serving(&mut dataplane);
        let gone = |open: Open| Open { endpoint: OTHER_ENDPOINT, ..open };
        let served = [TCP.port(1), UDP.port(2), TCP.half_open().port(3), UDP.half_open().port(4)];
        let open = gone(TCP.port(5));
        let outdated = [
            gone(UDP.port(6)),
            gone(TCP.half_open().port(7)),
            gone(UDP.half_open().port(8)),
            Open { service: 9, ..UDP.port(10) },
        ];
        let flows = [served.as_slice(), &[open], &outdated].concat();
        let mut tables = holding(&mut dataplane, &flows);
        tables.forget_outdated(&services).expect("tables");
        assert_left(&tables, &[served.as_slice(), &[open]].concat());
    });
}

#[test]
fn flows_past_a_service_that_was_not_known_find_it_unless_a_connection_is_open() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let services = serving(&mut dataplane);
        // Masquerade alone: they went where they wanted to.
        let past = |open: Open| Open { service: 0, ..open };
        let open = past(TCP.port(1));
        let unanswered = [TCP, UDP].map(Open::half_open);
        let outdated = [unanswered[0].port(2), unanswered[1].port(3), UDP.port(4)].map(past);
        let flows = [[open].as_slice(), &outdated].concat();
        let mut tables = holding(&mut dataplane, &flows);
        tables.forget_outdated(&services).expect("tables");
        assert_left(&tables, &[open]);
    });
}

/// What the endpoint's node has of them: an address of the frontend, or of the peer, as the answers' source.
#[test]
fn flows_that_another_node_was_asked_for_are_pairs_and_belong_to_no_service_here() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let services = serving(&mut dataplane);
        let mut tables = holding(&mut dataplane, &[]);
        for state in [flow::ON_BEHALF, flow::BY_PEER] {
            let [(asked, _), (reply_key, reply)] = Open { service: 0, ..UDP }.records();
            let key = FlowKey {
                destination: reply_key.source,
                destination_port: reply_key.source_port,
                ..asked
            };
            let kept = Flow {
                source: key.source,
                source_port: key.source_port,
                destination: key.destination,
                destination_port: key.destination_port,
                state: U32::new(0),
                ..reply
            };
            let reply = Flow { state: U32::new(flow::REPLY | state), ..reply };
            let keys = BTreeSet::from([key, reply_key]);
            for (key, record) in [(key, kept), (reply_key, reply)] {
                tables.established.put(&key, &record).expect("room");
            }
            tables.forget_outdated(&services).expect("tables");
            let left = |tables: &FlowTables<V4>| -> BTreeSet<_> {
                let records = tables.established.entries().expect("records");
                records.into_iter().map(|(key, _)| key).collect()
            };
            assert_eq!(left(&tables), keys, "{state}");
            assert_eq!(tables.expire(IdleLimits::default(), |_| 119).expect("tables"), 1);
            assert_eq!(left(&tables), keys, "{state}");
            assert_eq!(tables.expire(IdleLimits::default(), |_| 120).expect("tables"), 0);
        }
    });
}

/// Service number 1 with the frontend for TCP, number 2 for UDP, both led to the endpoint.
fn serving(dataplane: &mut Dataplane) -> ServiceTables<V4> {
    let list = |protocol: Protocol| EndpointList {
        name: ListName::Service {
            service: ObjectName::new("shop", "web"),
            port: protocol.to_string(),
            protocol,
            local: false,
        },
        frontends: BTreeMap::from([(
            fairway_abi::FrontendKey {
                address: FRONTEND,
                port: U16::new(80),
                protocol: protocol.number(),
                scope: fairway_abi::scope::INTERNAL,
            },
            0,
        )]),
        endpoints: BTreeSet::from([Endpoint {
            address: ENDPOINT,
            port: U16::new(8080),
            reserved: [0; 2],
        }]),
        weights: BTreeMap::new(),
        lingering: BTreeSet::new(),
        choice: Choice::default(),
        growth: 0,
        source_ranges: BTreeSet::new(),
    };
    let mut services = ServiceTables::adopt(dataplane, "4").expect("tables");
    services.reconcile(&[list(Protocol::Tcp), list(Protocol::Udp)], Vec::new()).expect("room");
    services
}

#[test]
fn limits_that_somebody_asks_for_hold_for_what_they_name() {
    let limits = IdleLimits { tcp: Some(7200), udp: Some(5), udp_stream: None };
    use Stage::{Established, HalfOpen};
    for (number, stage, closed, seconds) in [
        (protocol::TCP, Established, false, 7200),
        (protocol::TCP, Established, true, 30),
        (protocol::TCP, HalfOpen, false, 30),
        (protocol::UDP, HalfOpen, false, 5),
        (protocol::UDP, Established, false, 120),
        (protocol::SCTP, Established, false, 300),
    ] {
        assert_eq!(limits.of(number, stage, closed), seconds, "{number} {stage:?} {closed}");
    }
}
