//! How pods appear outside the cluster: what the command line says, or a file in the form of
//! ip-masq-agent's, which is read again whenever it changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use fairway_compile::Masquerade;
use fairway_netlink::sysctl;
use ipnet::IpNet;
use serde_json::Value;
use tracing::{info, warn};

use crate::options::{MasqueradeOption, Options};
use crate::traces::Traces;

/// The node's setting, and where it comes from.
pub(crate) struct Setting {
    ports: RangeInclusive<u16>,
    now: Masquerade,
    file: Option<File>,
}

/// A file of ip-masq-agent's form.
struct File {
    path: PathBuf,
    /// What was last in it; none: it was not there.
    seen: Option<Vec<u8>>,
}

impl Setting {
    /// What is asked for.
    ///
    /// # Errors
    /// If ports are asked for that others need, or the file does not say what it should.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let ports = options.masquerade_ports.clone();
        if options.manifests.is_some() {
            check_ports(&ports, &options.node_port_range)?;
        }
        let now = Masquerade {
            direct: match options.masquerade {
                MasqueradeOption::On => options.no_masquerade.clone(),
                MasqueradeOption::Off => everything(),
            },
            link_local: options.masquerade_link_local,
            ports: ports.clone(),
        };
        let Some(path) = options.ip_masq_agent_config.clone() else {
            return Ok(Self { ports, now, file: None });
        };
        let seen = read(&path)?;
        let now = parse(&path, seen.as_deref(), &ports)?;
        Ok(Self { ports, now, file: Some(File { path, seen }) })
    }

    /// What is in force now.
    pub(crate) fn now(&self) -> &Masquerade {
        &self.now
    }

    /// Looks at the file again; true if it says something else than before.
    ///
    /// # Errors
    /// Once for each content that does not say what it should; what held before holds on.
    pub(crate) fn follow(&mut self) -> Result<bool> {
        let Some(File { path, seen }) = &mut self.file else { return Ok(false) };
        let content = read(path)?;
        if content == *seen {
            return Ok(false);
        }
        seen.clone_from(&content);
        let said = parse(path, content.as_deref(), &self.ports)
            .context("the masquerade stays as it was")?;
        info!(file = %path.display(), direct = ?said.direct, link_local = said.link_local, "the masquerade changed");
        let changed = said != self.now;
        self.now = said;
        Ok(changed)
    }
}

/// Refuses ports that are not the masquerade's to take.
fn check_ports(ports: &RangeInclusive<u16>, node_ports: &RangeInclusive<u16>) -> Result<()> {
    if ports.start() <= node_ports.end() && node_ports.start() <= ports.end() {
        bail!(
            "--masquerade-ports {}-{} and --node-port-range {}-{} have ports in common: a client of \
             a node port and the answer to a pod could not be told apart",
            ports.start(),
            ports.end(),
            node_ports.start(),
            node_ports.end()
        );
    }
    Ok(())
}

/// Both families' addresses.
fn everything() -> Vec<IpNet> {
    vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

/// The content of a file; none if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// What ip-masq-agent excludes unless told otherwise (RFC 1918).
const PRIVATE: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
/// How many ranges it takes unless told otherwise.
const LIMIT: u64 = 64;

/// Reads ip-masq-agent's configuration, YAML or JSON. Without a file, or a key in it, that agent's
/// defaults hold. Keys may be written in any case, as there.
fn parse(path: &Path, content: Option<&[u8]>, ports: &RangeInclusive<u16>) -> Result<Masquerade> {
    let parsed = keys(content.unwrap_or_default()).and_then(|keys| interpret(keys, ports));
    parsed.with_context(|| format!("{}", path.display()))
}

fn keys(content: &[u8]) -> Result<BTreeMap<String, (String, Value)>> {
    let text = std::str::from_utf8(content).context("not UTF-8")?;
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let value: Value = serde_saphyr::from_str(text).context("neither YAML nor JSON")?;
    let keys = match value {
        Value::Null => serde_json::Map::new(),
        Value::Object(keys) => keys,
        _ => bail!("must be keys and their values, such as nonMasqueradeCIDRs: [10.0.0.0/8]"),
    };
    Ok(keys.into_iter().map(|(key, value)| (key.to_lowercase(), (key, value))).collect())
}

fn interpret(
    mut keys: BTreeMap<String, (String, Value)>,
    ports: &RangeInclusive<u16>,
) -> Result<Masquerade> {
    let mut take = |key: &str| keys.remove(&key.to_lowercase()).map(|(_, value)| value);
    let direct = match take("nonMasqueradeCIDRs") {
        None | Some(Value::Null) => {
            PRIVATE.iter().map(|range| cidr(range)).collect::<Result<_>>()?
        }
        Some(Value::Array(ranges)) => {
            let range = |(at, value): (usize, &Value)| {
                let text = value.as_str().ok_or_else(|| anyhow!("{value} is not a string"));
                text.and_then(cidr).with_context(|| format!("nonMasqueradeCIDRs[{at}]"))
            };
            ranges.iter().enumerate().map(range).collect::<Result<_>>()?
        }
        Some(other) => bail!("nonMasqueradeCIDRs: {other} is not a list of ranges"),
    };
    let direct: Vec<IpNet> = direct;
    let limit = match take("cidrLimit") {
        None | Some(Value::Null) => LIMIT,
        Some(value) => {
            value.as_u64().ok_or_else(|| anyhow!("cidrLimit: {value} is not a number"))?
        }
    };
    if direct.len() as u64 > limit {
        bail!("nonMasqueradeCIDRs: {} ranges, and cidrLimit is {limit}", direct.len());
    }
    let mut flag = |key: &str| match take(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(other) => Err(anyhow!("{key}: {other} is neither true nor false")),
    };
    let link_local = flag("masqLinkLocal")?;
    if flag("masqLinkLocalIPv6")? {
        warn!(
            "masqLinkLocalIPv6 has no effect: a packet to an IPv6 link-local address never leaves its link"
        );
    }
    match take("resyncInterval") {
        // The file is looked at every second.
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if is_duration(&text) => {}
        Some(other) => bail!("resyncInterval: {other} is not a duration such as \"60s\""),
    }
    if let Some((key, _)) = keys.into_values().next() {
        bail!(
            "{key}: there is no such key; those there are: nonMasqueradeCIDRs, cidrLimit, \
             masqLinkLocal, masqLinkLocalIPv6, resyncInterval"
        );
    }
    Ok(Masquerade { direct, link_local, ports: ports.clone() })
}

fn cidr(text: &str) -> Result<IpNet> {
    let range: IpNet = text.parse().map_err(|error| anyhow!("{text:?}: {error}"))?;
    if range.trunc() != range {
        bail!("{text:?} is not the beginning of a range; {} is", range.trunc());
    }
    Ok(range)
}

/// A duration as Go writes it: numbers with units.
fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 7] = ["ns", "us", "µs", "ms", "s", "m", "h"];
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let number =
            rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (digits, after) = rest.split_at(number);
        let unit = after.len() - after.trim_start_matches(char::is_alphabetic).len();
        let (unit, after) = after.split_at(unit);
        if digits.parse::<f64>().is_err() || !UNITS.contains(&unit) {
            return false;
        }
        rest = after;
        parts += 1;
    }
    parts > 0
}

/// The ports that the kernel does not give to sockets that ask for any.
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
/// The ports that it does give.
const LOCAL: &str = "net/ipv4/ip_local_port_range";

/// Keeps the masquerade's ports from sockets of the node that ask for any port. One that asks for one
/// of them by number gets it: the programs look for it before they take a port.
///
/// What an administrator reserved stays reserved, now and after an uninstall.
pub(crate) fn reserve(ports: &RangeInclusive<u16>, traces: &Traces) -> Result<()> {
    let local = sysctl::get(LOCAL)?;
    let local: Vec<u16> = local.split_whitespace().filter_map(|port| port.parse().ok()).collect();
    let &[first, last] = local.as_slice() else {
        bail!("{LOCAL} is {local:?}, which is not two ports");
    };
    let reserved = PortSet::parse(&sysctl::get(RESERVED)?)?;
    // The range of an agent before this one may have been another: what was there before it counts.
    let before = match traces.setting(RESERVED) {
        Some((before, ours)) if PortSet::parse(&ours)? == reserved => PortSet::parse(&before)?,
        _ => reserved,
    };
    let wanted = before.with(ports);
    if !(first..=last).any(|port| !wanted.has(port)) {
        bail!(
            "--masquerade-ports {}-{} leaves none of the ports {first}-{last} ({LOCAL}) to the \
             node's own connections; choose others, or change that setting",
            ports.start(),
            ports.end()
        );
    }
    traces.set(RESERVED, &wanted.to_string()).context("reserve the masquerade's ports")?;
    Ok(())
}

/// A set of ports as the kernel writes it: `8080,9000-9010`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    fn parse(text: &str) -> Result<Self> {
        let port = |text: &str| {
            text.trim().parse::<u16>().with_context(|| format!("{text:?} is not a port"))
        };
        let mut set = Self::default();
        for part in text.trim().split(',').filter(|part| !part.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            set = set.with(&(port(first)?..=port(last)?));
        }
        Ok(set)
    }

    fn has(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Both, in order and without overlap, as the kernel would write them.
    fn with(&self, ports: &RangeInclusive<u16>) -> Self {
        let mut ranges = self.0.clone();
        ranges.push(ports.clone());
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl std::fmt::Display for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let (first, last) = (range.start(), range.end());
            let comma = if at == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::sandbox;

    const PORTS: RangeInclusive<u16> = 1024..=29_999;

    fn says(content: &str) -> Result<Masquerade> {
        parse(Path::new("/etc/config/ip-masq-agent"), Some(content.as_bytes()), &PORTS)
    }

    fn ranges(ranges: &[&str]) -> Vec<IpNet> {
        ranges.iter().map(|range| range.parse().expect("a range")).collect()
    }

    #[test]
    fn files_as_they_are_in_use() {
        for (content, direct, link_local) in [
            ("", PRIVATE.as_slice(), false),
            ("# nothing\n", &PRIVATE, false),
            ("nonMasqueradeCIDRs: []\nmasqLinkLocal: true\n", &[], true),
            (
                "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - \"fd00::/8\"\nresyncInterval: 60s\n\
                 masqLinkLocal: false\nmasqLinkLocalIPv6: false\ncidrLimit: 2\n",
                &["10.0.0.0/8", "fd00::/8"],
                false,
            ),
            (
                r#"{"NonMasqueradeCIDRs":["10.244.0.0/16"],"MasqLinkLocal":true,"ResyncInterval":"1m0s"}"#,
                &["10.244.0.0/16"],
                true,
            ),
        ] {
            let said = says(content).expect(content);
            assert_eq!((said.direct, said.link_local), (ranges(direct), link_local), "{content}");
            assert_eq!(said.ports, PORTS);
        }
        let absent = parse(Path::new("/x"), None, &PORTS).expect("defaults");
        assert_eq!(absent.direct, ranges(&PRIVATE));
    }

    #[test]
    fn a_mistake_is_named_by_its_key() {
        let many = format!("nonMasqueradeCIDRs: [{}]", vec!["10.0.0.0/8"; 65].join(", "));
        for (content, parts) in [
            ("nonMasqueradeCIDRs: 10.0.0.0/8", ["nonMasqueradeCIDRs", "not a list"]),
            (
                "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.0/33]",
                ["nonMasqueradeCIDRs[1]", "10.0.0.0/33"],
            ),
            ("nonMasqueradeCIDRs: [10.0.0.1/8]", ["nonMasqueradeCIDRs[0]", "10.0.0.0/8 is"]),
            ("nonMasqueradeCIDRs: [7]", ["nonMasqueradeCIDRs[0]", "7 is not a string"]),
            (&many, ["65 ranges", "cidrLimit is 64"]),
            ("masqLinkLocal: maybe", ["masqLinkLocal", "neither true nor false"]),
            ("masqLinkLocalIPv6: 1", ["masqLinkLocalIPv6", "neither true nor false"]),
            ("resyncInterval: 60", ["resyncInterval", "duration"]),
            ("resyncInterval: soon", ["resyncInterval", "duration"]),
            ("cidrLimit: few", ["cidrLimit", "not a number"]),
            ("masqLinkLocl: true", ["masqLinkLocl", "no such key"]),
            ("- 10.0.0.0/8", ["ip-masq-agent", "must be keys"]),
            ("nonMasqueradeCIDRs: [", ["ip-masq-agent", "neither YAML nor JSON"]),
        ] {
            let error = format!("{:#}", says(content).expect_err(content));
            for part in parts {
                assert!(error.contains(part), "{content}: {error:?} should say {part:?}");
            }
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for good in ["60s", "1m0s", "0", "1.5h", "100ms", "-1s", "1h15m30.918s"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in ["", "60", "s", "1d", "one", "1 s", "+"] {
            assert!(!is_duration(bad), "{bad}");
        }
    }

    #[test]
    fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ip-masq-agent");
        fs::write(&path, "nonMasqueradeCIDRs: [10.0.0.0/8]").expect("a file");
        let seen = read(&path).expect("read");
        let now = parse(&path, seen.as_deref(), &PORTS).expect("good");
        let mut setting =
            Setting { ports: PORTS, now, file: Some(File { path: path.clone(), seen }) };
        assert!(!setting.follow().expect("unchanged"));

        fs::write(&path, "nonMasqueradeCIDRs: [192.0.2.0/24]").expect("a file");
        assert!(setting.follow().expect("changed"));
        assert_eq!(setting.now().direct, ranges(&["192.0.2.0/24"]));

        fs::write(&path, "nonMasqueradeCIDRs: [192.0.2.0/240]").expect("a file");
        let error = format!("{:#}", setting.follow().expect_err("broken"));
        assert!(error.contains("nonMasqueradeCIDRs[0]"), "{error}");
        assert!(!setting.follow().expect("said once"));
        assert_eq!(setting.now().direct, ranges(&["192.0.2.0/24"]));

        // The same in other words.
        fs::write(&path, "{nonMasqueradeCIDRs: [192.0.2.0/24]}").expect("a file");
        assert!(!setting.follow().expect("nothing new"));
        fs::remove_file(&path).expect("removed");
        assert!(setting.follow().expect("changed"));
        assert_eq!(setting.now().direct, ranges(&PRIVATE));
    }

    #[test]
    fn ports_of_node_ports_are_refused() {
        assert!(check_ports(&PORTS, &(30_000..=32_767)).is_ok());
        assert!(check_ports(&(32_768..=65_535), &(30_000..=32_767)).is_ok());
        for (first, last) in [(1024, 30_000), (32_767, 40_000), (31_000, 31_000), (1024, 65_535)] {
            let error = check_ports(&(first..=last), &(30_000..=32_767)).expect_err("overlap");
            let error = error.to_string();
            assert!(error.contains(&format!("--masquerade-ports {first}-{last}")), "{error}");
            assert!(error.contains("--node-port-range 30000-32767"), "{error}");
        }
    }

    #[test]
    fn sets_of_ports_are_written_as_the_kernel_writes_them() {
        for (text, add, merged) in [
            ("", 1024..=29_999, "1024-29999"),
            ("8080,40000-40010", 1024..=29_999, "1024-29999,40000-40010"),
            ("30000", 1024..=29_999, "1024-30000"),
            ("1,3", 2..=2, "1-3"),
            ("65535", 65_000..=65_535, "65000-65535"),
            (" 7 , 9-10\n", 20..=20, "7,9-10,20"),
        ] {
            assert_eq!(PortSet::parse(text).expect(text).with(&add).to_string(), merged);
        }
        assert!(PortSet::parse("a").is_err() && PortSet::parse("1-70000").is_err());
    }

    #[test]
    fn what_an_administrator_reserved_stays_and_comes_back() {
        sandbox(|_| {
            let state = tempfile::tempdir().expect("a folder");
            let reserved = || sysctl::get(RESERVED).expect("a setting");
            for before in ["", "1234,40000-40010"] {
                sysctl::set(RESERVED, before).expect("set");
                fs::remove_file(state.path().join(crate::traces::FILE)).ok();
                let traces = Traces::open(state.path()).expect("a record");
                let set = PortSet::parse(before).expect("a set");
                for ports in [1024..=29_999, 1024..=29_999, 50_000..=50_100] {
                    reserve(&ports, &traces).expect("reserved");
                    assert_eq!(
                        reserved(),
                        set.with(&ports).to_string(),
                        "the range before is free again"
                    );
                }
                assert!(traces.restore_settings().iter().all(Result::is_ok));
                assert_eq!(reserved(), before);
            }
            let traces = Traces::open(state.path()).expect("a record");
            sysctl::set(LOCAL, "2000 3000").expect("set");
            let error = format!("{:#}", reserve(&PORTS, &traces).expect_err("no port is left"));
            assert!(error.contains("2000-3000") && error.contains(LOCAL), "{error}");
        });
    }
}
