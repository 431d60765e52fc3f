//! The classic cases of policies, as data, and what has to come of them: see `cases.yaml`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::oracle::Protocol;

const CASES: &str = include_str!("cases.yaml");
/// The namespaces.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// The pods in each.
pub const PODS: [&str; 3] = ["a", "b", "c"];
/// The ports that each pod serves.
pub const PORTS: [u16; 2] = [80, 81];

/// Someone who talks or listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// A pod, by namespace and name.
    Pod(String, String),
    /// A node.
    Node(String),
    /// A machine outside the cluster.
    Outside,
}

/// As `x/a`, `node1`, `outside`.
impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::Node(name) => f.write_str(name),
            Self::Outside => f.write_str("outside"),
        }
    }
}

/// All pods.
pub fn pods() -> impl Iterator<Item = Party> {
    NAMESPACES.into_iter().flat_map(|namespace| {
        PODS.into_iter().map(|name| Party::Pod(namespace.to_owned(), name.to_owned()))
    })
}

/// Where a pod runs: those called `b` on `node2`, the others on `node1`.
pub fn node_of(pod: &str) -> &'static str {
    if pod == "b" { "node2" } else { "node1" }
}

/// One try to talk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Probe {
    /// Who begins.
    pub from: Party,
    /// Whom it is for.
    pub to: Party,
    /// What is spoken.
    pub protocol: Protocol,
    /// At which port.
    pub port: u16,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, protocol, port } = self;
        write!(f, "{from} -> {to} {port} {protocol:?}")
    }
}

impl Probe {
    /// All that a table is made of: pods, nodes and the machine outside talk to pods, and pods to the machine
    /// outside. Nobody talks to himself.
    pub fn all(protocols: &[Protocol]) -> Vec<Self> {
        let others = ["node1", "node2"].map(|node| Party::Node(node.to_owned()));
        let others: Vec<Party> = others.into_iter().chain([Party::Outside]).collect();
        let mut pairs = Vec::new();
        for to in pods() {
            let from = pods().chain(others.iter().cloned()).filter(|from| *from != to);
            pairs.extend(from.map(|from| (from, to.clone())));
        }
        pairs.extend(pods().map(|from| (from, Party::Outside)));
        let mut probes = Vec::new();
        for (from, to) in pairs {
            for protocol in protocols {
                probes.extend(PORTS.map(|port| Self {
                    from: from.clone(),
                    to: to.clone(),
                    protocol: *protocol,
                    port,
                }));
            }
        }
        probes
    }

    /// Whether the client is the node on which the pod runs, which always reaches it.
    pub fn is_by_own_node(&self) -> bool {
        match (&self.from, &self.to) {
            (Party::Node(node), Party::Pod(_, pod)) => node_of(pod) == node,
            _ => false,
        }
    }
}

/// Several of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Parties {
    All,
    Nodes,
    Outside,
    /// Of a namespace, and of a name; those that are not said do not matter.
    Pods(Option<String>, Option<String>),
}

impl Parties {
    fn have(&self, party: &Party) -> bool {
        match (self, party) {
            (Self::All, _) | (Self::Nodes, Party::Node(_)) | (Self::Outside, Party::Outside) => {
                true
            }
            (Self::Pods(namespace, name), Party::Pod(its_namespace, its_name)) => {
                namespace.as_ref().is_none_or(|wanted| wanted == its_namespace)
                    && name.as_ref().is_none_or(|wanted| wanted == its_name)
            }
            _ => false,
        }
    }
}

impl FromStr for Parties {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let any = |part: &str| (part != "*").then(|| part.to_owned());
        Ok(match (text, text.split_once('/')) {
            ("all", _) => Self::All,
            ("nodes", _) => Self::Nodes,
            ("outside", _) => Self::Outside,
            ("*", _) => Self::Pods(None, None),
            (_, Some((namespace, name))) => Self::Pods(any(namespace), any(name)),
            _ => bail!("{text:?} is nobody"),
        })
    }
}

/// One line of what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    allow: bool,
    from: Parties,
    to: Parties,
    port: Option<u16>,
    protocol: Option<Protocol>,
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let about = || format!("{text:?}: say `deny FROM -> TO [PORT] [PROTOCOL]`");
        let words: Vec<&str> = text.split_whitespace().collect();
        let [action @ ("allow" | "deny"), from, "->", to, rest @ ..] = words.as_slice() else {
            bail!(about());
        };
        let (from, to) = (from.parse()?, to.parse()?);
        let mut line = Self { allow: *action == "allow", from, to, port: None, protocol: None };
        for word in rest {
            match *word {
                "TCP" => line.protocol = Some(Protocol::Tcp),
                "UDP" => line.protocol = Some(Protocol::Udp),
                "SCTP" => line.protocol = Some(Protocol::Sctp),
                port => line.port = Some(port.parse().with_context(about)?),
            }
        }
        Ok(line)
    }
}

/// Who reaches whom: everybody, but for what lines say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(Vec<Line>);

impl Table {
    /// Whether a try has to succeed.
    pub fn allows(&self, probe: &Probe) -> bool {
        let matches = |line: &&Line| {
            line.from.have(&probe.from)
                && line.to.have(&probe.to)
                && line.port.is_none_or(|port| port == probe.port)
                && line.protocol.is_none_or(|protocol| protocol == probe.protocol)
        };
        probe.is_by_own_node() || self.0.iter().rev().find(matches).is_none_or(|line| line.allow)
    }
}

/// A case: some steps from a cluster without policies.
#[derive(Clone, Debug)]
pub struct Case {
    /// In words.
    pub name: String,
    /// Whether it is worth real pods.
    pub lab: bool,
    /// One after the other.
    pub steps: Vec<Step>,
}

/// What is changed, and what has to come of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Objects to add or replace.
    pub apply: Vec<Value>,
    /// Kind, namespace and name of objects to take away.
    pub delete: Vec<(String, String, String)>,
    /// All labels that these pods and namespaces have from now on.
    pub labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Who then reaches whom.
    pub expect: Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: String,
    #[serde(default)]
    lab: bool,
    steps: Vec<RawStep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    #[serde(default)]
    apply: Vec<Value>,
    #[serde(default)]
    delete: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, BTreeMap<String, String>>,
    expect: Vec<String>,
}

/// All cases, in a cluster in which each party (as [`Party`] is displayed) has this address.
///
/// # Errors
/// The file is wrong, or names somebody who has no address.
pub fn cases(address_of: &BTreeMap<String, IpAddr>) -> Result<Vec<Case>> {
    let text = filled(CASES, address_of)?;
    let options = serde_saphyr::options! { strict_booleans: true };
    let cases: Vec<RawCase> =
        serde_saphyr::from_str_with_options(&text, options).context("cases.yaml")?;
    cases.into_iter().map(|case| read(case).context("cases.yaml")).collect()
}

fn read(case: RawCase) -> Result<Case> {
    let about = case.name.clone();
    let step = |step: RawStep| {
        let lines = step.expect.iter().map(|line| line.parse());
        Ok(Step {
            apply: step.apply.into_iter().map(with_version).collect::<Result<_>>()?,
            delete: step.delete.iter().map(|text| object(text)).collect::<Result<_>>()?,
            labels: step.labels,
            expect: Table(lines.collect::<Result<_>>()?),
        })
    };
    let steps = case.steps.into_iter().map(step).collect::<Result<_>>().context(about)?;
    Ok(Case { name: case.name, lab: case.lab, steps })
}

fn with_version(mut object: Value) -> Result<Value> {
    object["apiVersion"] = match object["kind"].as_str() {
        Some("NetworkPolicy") => "networking.k8s.io/v1",
        Some("ClusterNetworkPolicy") => "policy.networking.k8s.io/v1alpha2",
        other => bail!("kind {other:?} in `apply`"),
    }
    .into();
    Ok(object)
}

/// `NetworkPolicy x/deny`, `ClusterNetworkPolicy deny`.
fn object(text: &str) -> Result<(String, String, String)> {
    let (kind, name) = text.split_once(' ').with_context(|| format!("{text:?}: KIND NAME"))?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Ok((kind.to_owned(), namespace.to_owned(), name.to_owned()))
}

/// Puts addresses in the places of `$(…)`.
fn filled(text: &str, address_of: &BTreeMap<String, IpAddr>) -> Result<String> {
    let mut filled = String::new();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("$(") {
            let (what, after) = after.split_once(')').with_context(|| format!("{line:?}"))?;
            // In quotes: an address of IPv6 is full of colons.
            filled += &format!("{before}'{}'", place(what, address_of)?);
            rest = after;
        }
        filled += rest;
        filled.push('\n');
    }
    Ok(filled)
}

fn place(what: &str, address_of: &BTreeMap<String, IpAddr>) -> Result<String> {
    let of = |name: &str| {
        address_of.get(name).copied().with_context(|| format!("$({what}): no such address"))
    };
    let net = |address: IpAddr, v4: u8, v6: u8| {
        let bits = if address.is_ipv4() { v4 } else { v6 };
        IpNet::new(address, bits).map(|net| net.trunc().to_string())
    };
    Ok(match what.split_once(' ') {
        None if what == "everybody" => net(of("outside")?, 0, 0)?,
        None => of(what)?.to_string(),
        Some(("only", name)) => net(of(name)?, 32, 128)?,
        Some(("range", name)) => net(of(name)?, 24, 64)?,
        Some(_) => bail!("$({what}): not known"),
    })
}

/// A namespace of the cases.
pub fn namespace(name: &str, labels: &BTreeMap<String, String>) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pod of the cases, without its addresses; `protocols` are what it serves.
pub fn pod(
    namespace: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    protocols: &[Protocol],
) -> Value {
    let mut ports = Vec::new();
    for protocol in protocols {
        let protocol = format!("{protocol:?}").to_uppercase();
        ports.extend(PORTS.map(|port| {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": port, "protocol": protocol})
        }));
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {
            "nodeName": node_of(name),
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "server", "image": "agnhost", "ports": ports}],
        },
    })
}

/// The labels that a pod or namespace of the cases has at first.
pub fn labels_of(name: &str) -> BTreeMap<String, String> {
    let (key, value) = match name.split_once('/') {
        Some((_, pod)) => ("pod", pod),
        None => ("ns", name),
    };
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(from: &str, to: &str, port: u16, protocol: Protocol) -> Probe {
        let party = |text: &str| match text.split_once('/') {
            Some((namespace, name)) => Party::Pod(namespace.to_owned(), name.to_owned()),
            None if text == "outside" => Party::Outside,
            None => Party::Node(text.to_owned()),
        };
        Probe { from: party(from), to: party(to), port, protocol }
    }

    #[test]
    fn the_last_line_that_matches_counts() {
        let lines = ["deny all -> x/*", "allow y/* -> x/a 80 TCP", "deny */c -> *"];
        let table = Table(lines.iter().map(|line| line.parse().unwrap()).collect());
        let allows =
            |from: &str, to: &str, port| table.allows(&probe(from, to, port, Protocol::Tcp));
        assert!(allows("y/a", "x/a", 80) && !allows("y/a", "x/a", 81) && !allows("z/a", "x/a", 80));
        assert!(!allows("y/c", "x/a", 80) && !allows("x/c", "z/b", 80) && allows("x/a", "z/b", 80));
        assert!(!allows("outside", "x/a", 80) && !allows("node2", "x/a", 80));
        // Their own node, whatever is said.
        assert!(allows("node1", "x/a", 80) && allows("outside", "y/a", 80));
        assert!(!table.allows(&probe("y/a", "x/a", 80, Protocol::Udp)));
    }

    #[test]
    fn lines_with_mistakes_are_refused() {
        for line in ["x/a -> x/b", "deny x/a x/b", "deny x -> y/a", "deny x/a -> x/b eighty"] {
            assert!(line.parse::<Line>().is_err(), "{line}");
        }
    }

    #[test]
    fn addresses_are_filled_in() {
        let of = BTreeMap::from([
            ("x/a".to_owned(), "10.1.2.3".parse().unwrap()),
            ("outside".to_owned(), "fd00::5".parse().unwrap()),
        ]);
        let text =
            "# $(nobody)\n[$(x/a), $(only x/a), $(range x/a), $(only outside), $(everybody)]";
        let expected = "['10.1.2.3', '10.1.2.3/32', '10.1.2.0/24', 'fd00::5/128', '::/0']\n";
        assert_eq!(filled(text, &of).unwrap(), expected);
        assert!(filled("$(x/b)", &of).is_err() && filled("$(all x/a)", &of).is_err());
    }

    #[test]
    fn a_table_has_all_pairs() {
        assert_eq!(Probe::all(&[Protocol::Tcp]).len(), (9 * 11 + 9) * 2);
    }
}
