//! Clusters in a few words, questions in a line, and answers as another implementation reads them.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairway_dns::{Buffer, Client, Options, Transport, Verdict, Zone};
use fairway_model::{
    Endpoint, EndpointState, Endpoints, Hints, Model, Node, Object, ObjectName, Protocol, Service,
    ServicePort, ServiceRange,
};
use hickory_proto::op::Message;
use hickory_proto::rr::{Record, RecordType};

/// A cluster that most tests are content with.
pub(crate) const PLAIN: &str = "
    service shop/web 10.96.0.7 http:80
    alias shop/db db.example.com
";

/// The zone of a cluster, as [`cluster`] reads it.
pub(crate) fn zone(text: &str) -> Zone {
    Zone::new(Options::default()).next(&cluster(text), 9)
}

/// A model, one object a line:
///
/// ```text
/// service|foreign NAMESPACE/NAME IP[,IP] [PORTNAME[/PROTOCOL]:NUMBER]...
/// headless NAMESPACE/NAME [PORT]...
/// alias NAMESPACE/NAME TARGET
/// endpoint NAMESPACE/NAME PORTNAME|- IP:PORT [HOSTNAME|- [STATE]]
/// range CIDR...
/// node CIDR...
/// ```
pub(crate) fn cluster(text: &str) -> Model {
    let mut endpoints: BTreeMap<ObjectName, Endpoints> = BTreeMap::new();
    let mut model = Model::default();
    let mut put = |object| model.apply(fairway_model::Change::Put(object));
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let name = || {
            let (namespace, name) = words[1].split_once('/').unwrap();
            ObjectName::new(namespace, name)
        };
        let cidrs = || words[1..].iter().map(|cidr| cidr.parse().unwrap()).collect();
        match words[0] {
            kind @ ("service" | "foreign") => {
                let ips: Vec<IpAddr> = words[2].split(',').map(|ip| ip.parse().unwrap()).collect();
                let (cluster_ips, foreign_ips) =
                    if kind == "service" { (ips, vec![]) } else { (vec![], ips) };
                let ports = words[3..].iter().map(|port| port_of(port)).collect();
                put(Object::Service(Service {
                    name: name(),
                    cluster_ips,
                    foreign_ips,
                    ports,
                    ..Service::default()
                }));
            }
            "headless" => {
                let ports = words[2..].iter().map(|port| port_of(port)).collect();
                put(Object::Service(Service { name: name(), ports, ..Service::default() }));
            }
            "alias" => {
                let external_name = Some(words[2].into());
                put(Object::Service(Service { name: name(), external_name, ..Service::default() }));
            }
            "endpoint" => {
                let (address, port) = words[3].rsplit_once(':').unwrap();
                let given = |at: usize| words.get(at).copied().filter(|word| *word != "-");
                let endpoint = Endpoint {
                    address: address.parse().unwrap(),
                    port: port.parse().unwrap(),
                    node: None,
                    state: match given(5) {
                        None => EndpointState::Ready,
                        Some("NotReady") => EndpointState::NotReady,
                        Some("ServingTerminating") => EndpointState::ServingTerminating,
                        Some(other) => panic!("{other}"),
                    },
                    hints: Hints::default(),
                    weight: 1,
                    hostname: given(4).map(Into::into),
                };
                let of = endpoints
                    .entry(name())
                    .or_insert_with(|| Endpoints { service: name(), ports: BTreeMap::new() });
                of.ports.entry(given(2).unwrap_or_default().to_owned()).or_default().push(endpoint);
            }
            "range" => put(Object::ServiceRange(ServiceRange {
                name: "kubernetes".into(),
                cidrs: cidrs(),
            })),
            "node" => {
                put(Object::Node(Node { name: "n1".into(), pod_cidrs: cidrs(), ..Node::default() }))
            }
            other => panic!("{other}"),
        }
    }
    for mut of in endpoints.into_values() {
        of.ports.values_mut().for_each(|list| list.sort());
        put(Object::Endpoints(of));
    }
    model.validate().unwrap();
    model
}

fn port_of(text: &str) -> ServicePort {
    let (name, port) = text.split_once(':').unwrap();
    let (name, protocol) = name.split_once('/').unwrap_or((name, "tcp"));
    let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
    ServicePort { name: name.into(), protocol, port: port.parse().unwrap(), node_port: None }
}

/// Lines of endpoints without hostnames.
pub(crate) fn endpoints(service: &str, port: &str, count: usize) -> String {
    let address = |nth: usize| format!("10.244.{}.{}", nth / 250, nth % 250);
    let lines = (0..count).map(|nth| format!("endpoint {service} {port} {}:80\n", address(nth)));
    lines.collect()
}

/// Who asks in tests.
pub(crate) fn client(transport: Transport, namespace: Option<&str>) -> Client {
    let namespace = namespace.map(Into::into);
    Client { address: "10.244.0.2:4242".parse().unwrap(), namespace, transport }
}

/// A query.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    /// As it is written, in any case.
    pub(crate) text: String,
    pub(crate) kind: u16,
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// Size, version, and whether it wants signatures.
    pub(crate) edns: Option<(u16, u8, bool)>,
    pub(crate) transport: Transport,
    pub(crate) namespace: Option<String>,
}

impl Asking {
    /// `NAME TYPE`, plain, by a datagram.
    pub(crate) fn of(question: &str) -> Self {
        let (text, kind) = question.split_once(' ').unwrap();
        let kind: RecordType = kind.parse().unwrap();
        Self {
            text: text.to_owned(),
            kind: kind.into(),
            id: 0x1234,
            flags: 0x0100,
            edns: None,
            transport: Transport::Udp,
            namespace: None,
        }
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(self.id.to_be_bytes());
        message.extend(self.flags.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())]);
        message.extend(wire(&self.text));
        message.extend(self.kind.to_be_bytes());
        message.extend([0, 1]);
        if let Some((size, version, dnssec)) = self.edns {
            message.extend([0, 0, 41]);
            message.extend(size.to_be_bytes());
            message.extend([0, version, u8::from(dnssec) << 7, 0, 0, 0]);
        }
        message
    }

    /// The answer's bytes; `None` if it is not the zone that answers.
    pub(crate) fn bytes(&self, zone: &Zone) -> Option<Vec<u8>> {
        self.of_buffer(zone, &mut Buffer::new(42)).ok()
    }

    /// The same, in a buffer that goes on.
    pub(crate) fn of_buffer(&self, zone: &Zone, buffer: &mut Buffer) -> Result<Vec<u8>, String> {
        let client = client(self.transport, self.namespace.as_deref());
        match zone.answer(&self.message(), &client, buffer) {
            Verdict::Answer { bytes, kind } => {
                assert_eq!(kind, self.kind);
                Ok(bytes.to_vec())
            }
            Verdict::Forward(forward) => {
                let names: Vec<_> = forward.names.iter().map(ToString::to_string).collect();
                Err(format!("forward {}", names.join(" ")))
            }
            Verdict::Drop(reason) => Err(format!("{reason:?}")),
        }
    }

    /// The answer, line by line: the outcome, each record, EDNS.
    pub(crate) fn of_zone(&self, zone: &Zone) -> Vec<String> {
        match self.of_buffer(zone, &mut Buffer::new(42)) {
            Ok(bytes) => lines(&bytes),
            Err(other) => vec![other],
        }
    }
}

fn wire(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|label| [&[length(label)], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

/// What a message says, as hickory reads it.
pub(crate) fn lines(bytes: &[u8]) -> Vec<String> {
    let message = Message::from_vec(bytes)
        .unwrap_or_else(|error| panic!("{error}: {:02x?}", &bytes[..bytes.len().min(600)]));
    let mut lines = vec![format!("{:?}", message.metadata.response_code)];
    lines.extend(message.answers.iter().map(line));
    lines.extend(message.authorities.iter().map(|record| format!("authority: {}", line(record))));
    lines.extend(message.additionals.iter().map(|record| format!("additional: {}", line(record))));
    if let Some(edns) = &message.edns {
        let dnssec = if edns.flags().dnssec_ok { " dnssec" } else { "" };
        lines.push(format!("edns {} version {}{dnssec}", edns.max_payload(), edns.version()));
    }
    lines
}

fn line(record: &Record) -> String {
    format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data)
}

fn length(label: &str) -> u8 {
    label.len().try_into().unwrap()
}
