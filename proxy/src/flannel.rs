//! flannel's files: its configuration, read, and what it tells other plugins, written.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tracing::{error, info};

use crate::options::{BackendOption, Options};
use crate::traces::Traces;

/// flannel's configuration, `net-conf.json`, checked key by key.
///
/// Keys are found whatever their case, as flannel finds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// `Network`, if `EnableIPv4`: the range of all pods.
    pub network: Option<Ipv4Net>,
    /// `IPv6Network`, if `EnableIPv6`.
    pub ipv6_network: Option<Ipv6Net>,
    /// `Backend.Type`, and for `vxlan` also `Backend.DirectRouting`.
    pub backend: BackendOption,
    /// `Backend.VNI`.
    pub vni: Option<u32>,
    /// `Backend.Port`.
    pub port: Option<u16>,
    /// `Backend.ListenPort`, of WireGuard packets.
    pub wireguard_port: Option<u16>,
    /// `Backend.PersistentKeepaliveInterval`, in seconds.
    pub wireguard_keepalive: Option<u16>,
    /// `Backend.MTU`: of packets between nodes.
    pub mtu: Option<u32>,
    /// What the file says and Fairway does in another way, for a person.
    pub notes: Vec<String>,
}

impl NetConf {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self> {
        let about = || format!("read flannel's configuration {}", path.display());
        let text = fs::read_to_string(path).with_context(about)?;
        Self::parse(&text).with_context(about)
    }

    fn parse(text: &str) -> Result<Self> {
        let top: Map<String, Value> = serde_json::from_str(text).context("not a JSON object")?;
        let mut top = Keys::new("", top);
        let mut notes = Vec::new();

        let v4 = top.take("EnableIPv4")?.unwrap_or(true);
        let v6 = top.take("EnableIPv6")?.unwrap_or(false);
        let network: Option<Ipv4Net> = top.take("Network")?;
        let ipv6_network: Option<Ipv6Net> = top.take("IPv6Network")?;
        if v4 && network.is_none() {
            bail!("key Network is missing although EnableIPv4 is true (its default)");
        }
        if v6 && ipv6_network.is_none() {
            bail!("key IPv6Network is missing although EnableIPv6 is true");
        }
        if !v4 && !v6 {
            bail!("EnableIPv4 and EnableIPv6 are both false: pods would have no address");
        }
        for key in SUBNET_KEYS {
            if top.take::<Value>(key)?.is_some() {
                notes.push(format!(
                    "{key} does nothing: each node's range is its Node's spec.podCIDRs"
                ));
            }
        }
        if top.take("EnableNFTables")?.unwrap_or(false) {
            notes.push("EnableNFTables does nothing: Fairway needs no such rules".to_owned());
        }

        let backend: Map<String, Value> =
            top.take("Backend")?.ok_or_else(|| anyhow!("key Backend is missing"))?;
        let mut keys = Keys::new("Backend.", backend);
        let kind: String =
            keys.take("Type")?.ok_or_else(|| anyhow!("key Backend.Type is missing"))?;
        let direct = keys.take("DirectRouting")?.unwrap_or(false);
        let conf = Self {
            network: network.filter(|_| v4),
            ipv6_network: ipv6_network.filter(|_| v6),
            backend: backend_of(&kind, direct)?,
            vni: keys.take("VNI")?,
            port: keys.take("Port")?.filter(|port| *port != 0),
            wireguard_port: keys.take("ListenPort")?.filter(|port| *port != 0),
            wireguard_keepalive: keys.take("PersistentKeepaliveInterval")?,
            mtu: keys.take("MTU")?.filter(|mtu| *mtu != 0),
            notes: Vec::new(),
        };
        if let Some(vni) = conf.vni.filter(|vni| !(1..1 << 24).contains(vni)) {
            bail!("key Backend.VNI: expected a number from 1 to 16777215, found {vni}");
        }
        if let Some(mtu) = conf.mtu.filter(|mtu| !MTUS.contains(mtu)) {
            let (low, high) = (MTUS.start(), MTUS.end());
            bail!("key Backend.MTU: expected a number from {low} to {high}, found {mtu}");
        }
        if conf.backend == BackendOption::Wireguard
            && keys.take::<String>("PSK")?.is_some_and(|psk| !psk.is_empty())
        {
            bail!("key Backend.PSK: Fairway's nodes share no further key; remove it");
        }
        for (key, why) in [
            ("GBP", "group policies travel in no tunnel packet"),
            ("Learning", "the tunnel's other ends are known, and are learned from no packet"),
        ] {
            if keys.take(key)?.unwrap_or(false) {
                notes.push(format!("Backend.{key} does nothing: {why}"));
            }
        }
        if keys.take::<String>("MacPrefix")?.is_some_and(|prefix| !prefix.is_empty()) {
            notes.push("Backend.MacPrefix does nothing: the device's address is random".to_owned());
        }
        notes.extend(top.rest().chain(keys.rest()));
        Ok(Self { notes, ..conf })
    }

    /// Puts into the options what they were not given explicitly; `given` says which were, by field.
    pub(crate) fn apply(&self, options: &mut Options, given: impl Fn(&str) -> bool) {
        if !given("backend") {
            options.backend = self.backend;
        }
        if let Some(vni) = self.vni.filter(|_| !given("vni")) {
            options.vni = vni;
        }
        if let Some(port) = self.port.filter(|_| !given("vxlan_port")) {
            options.vxlan_port = port;
        }
        if let Some(port) = self.wireguard_port.filter(|_| !given("wireguard_port")) {
            options.wireguard_port = port;
        }
        if let Some(seconds) = self.wireguard_keepalive.filter(|_| !given("wireguard_keepalive")) {
            options.wireguard_keepalive = seconds;
        }
        if !given("underlay_mtu") {
            options.underlay_mtu = self.mtu;
        }
    }
}

/// What an IPv4 link has to carry, and the most that IP can say.
const MTUS: std::ops::RangeInclusive<u32> = 576..=65535;

const SUBNET_KEYS: [&str; 6] =
    ["SubnetLen", "SubnetMin", "SubnetMax", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"];

fn backend_of(kind: &str, direct_routing: bool) -> Result<BackendOption> {
    match kind {
        "vxlan" if direct_routing => Ok(BackendOption::Auto),
        // Ours alone, and no backend of flannel's.
        "auto" => Err(unknown(kind)),
        _ => BackendOption::from_str(kind, false).map_err(|_| unknown(kind)),
    }
}

fn unknown(kind: &str) -> anyhow::Error {
    let known = BackendOption::value_variants().iter().filter(|b| **b != BackendOption::Auto);
    let known = known.filter_map(|b| Some(b.to_possible_value()?.get_name().to_owned()));
    let known = known.collect::<Vec<_>>().join(", ");
    anyhow!("key Backend.Type: {kind:?} is none of the supported backends ({known})")
}

/// Typed access by key, so that an error says which; what is left at the end is not known.
struct Keys {
    above: &'static str,
    /// By the key in lower case; with the key as it was written.
    values: BTreeMap<String, (String, Value)>,
}

impl Keys {
    fn new(above: &'static str, object: Map<String, Value>) -> Self {
        let values = object.into_iter().map(|(key, value)| (key.to_lowercase(), (key, value)));
        Self { above, values: values.collect() }
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.values.remove(&key.to_lowercase()) {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, value)) => T::deserialize(&value)
                .map(Some)
                .with_context(|| format!("key {}{key}: found {value}", self.above)),
        }
    }

    fn rest(self) -> impl Iterator<Item = String> {
        let keys = self.values.into_values();
        keys.map(move |(key, _)| {
            format!("{}{key} does nothing: Fairway knows no such key", self.above)
        })
    }
}

/// The file by which flannel tells other plugins of the node's range, `subnet.env`.
pub(crate) struct SubnetEnv {
    path: PathBuf,
    conf: NetConf,
    masquerade: bool,
    traces: Arc<Traces>,
    /// What was last said that could not be written.
    said: Option<String>,
}

impl SubnetEnv {
    pub(crate) fn new(path: &Path, conf: &NetConf, masquerade: bool, traces: &Arc<Traces>) -> Self {
        let (path, conf, traces) = (path.to_owned(), conf.clone(), Arc::clone(traces));
        Self { path, conf, masquerade, traces, said: None }
    }

    /// Writes the file if it says something else. A failure is logged once: pods of Fairway's own
    /// do not need the file.
    pub(crate) fn keep(&mut self, pod_cidrs: &[IpNet], pod_mtu: u32) {
        let said = self.write(pod_cidrs, pod_mtu).map_err(|error| format!("{error:#}")).err();
        if let Some(error) = said.as_ref().filter(|_| said != self.said) {
            error!(file = %self.path.display(), error, "cannot tell other plugins of the node's range");
        }
        self.said = said;
    }

    fn write(&self, pod_cidrs: &[IpNet], pod_mtu: u32) -> Result<()> {
        let contents = subnet_env(&self.conf, pod_cidrs, pod_mtu, self.masquerade)?;
        if fs::read(&self.path).is_ok_and(|found| found == contents.as_bytes()) {
            return Ok(());
        }
        self.traces.file(&self.path)?;
        fairway_feed::disk::replace(&self.path, contents.as_bytes()).context("write the file")?;
        info!(file = %self.path.display(), "told other plugins of the node's range");
        Ok(())
    }
}

/// The file's contents, line for line as flannel writes them. The subnets' addresses are the first
/// that a pod may have.
fn subnet_env(conf: &NetConf, pod_cidrs: &[IpNet], mtu: u32, masquerade: bool) -> Result<String> {
    let mut text = String::new();
    let v4 = conf.network.map(|network| ("FLANNEL", "podCIDR for IPv4", IpNet::V4(network)));
    let v6 = conf.ipv6_network.map(|n| ("FLANNEL_IPV6", "podCIDR for IPv6", IpNet::V6(n)));
    for (prefix, what, network) in v4.into_iter().chain(v6) {
        let mut cidrs = pod_cidrs.iter();
        let own = cidrs.find(|cidr| cidr.addr().is_ipv4() == network.addr().is_ipv4());
        let own = own.ok_or_else(|| anyhow!("the Node has no {what}"))?;
        if !network.contains(own) {
            bail!("the Node's {what}, {own}, is not within {network} of flannel's configuration");
        }
        let first = own.hosts().find(|host| *host != own.network());
        let first = first.ok_or_else(|| anyhow!("the Node's {what}, {own}, has no address"))?;
        let length = own.prefix_len();
        writeln!(text, "{prefix}_NETWORK={network}\n{prefix}_SUBNET={first}/{length}")?;
    }
    writeln!(text, "FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={masquerade}")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> NetConf {
        NetConf::parse(text).expect(text)
    }

    /// What flannel's own manifest brings.
    const USUAL: &str = r#"{"Network": "10.244.0.0/16", "EnableNFTables": false,
                            "Backend": {"Type": "vxlan"}}"#;

    #[test]
    fn flannels_own_manifest_means_our_defaults_but_vxlan_to_every_peer() {
        let conf = parsed(USUAL);
        assert_eq!(conf.network, Some("10.244.0.0/16".parse().expect("a range")));
        assert_eq!((conf.backend, conf.vni, conf.port), (BackendOption::Vxlan, None, None));
        assert!(conf.notes.is_empty(), "{:?}", conf.notes);
    }

    #[test]
    fn direct_routing_is_auto_and_numbers_are_taken() {
        let conf = parsed(
            r#"{"network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00::/48",
                "Backend": {"type": "vxlan", "DirectRouting": true, "VNI": 7, "Port": 4789,
                            "MTU": 1400, "GBP": false}}"#,
        );
        assert_eq!(conf.backend, BackendOption::Auto);
        assert_eq!((conf.vni, conf.port, conf.mtu), (Some(7), Some(4789), Some(1400)));
        assert_eq!(conf.ipv6_network, Some("fd00::/48".parse().expect("a range")));
        let host_gw = parsed(r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "host-gw"}}"#);
        assert_eq!(host_gw.backend, BackendOption::HostGw);
    }

    #[test]
    fn wireguards_numbers_are_taken_and_a_shared_key_is_refused() {
        let text = |more: &str| {
            format!(
                r#"{{"Network": "10.0.0.0/8", "Backend": {{"Type": "wireguard", "ListenPort": 51900,
                    "PersistentKeepaliveInterval": 25{more}}}}}"#
            )
        };
        let conf = parsed(&text(""));
        assert_eq!(conf.backend, BackendOption::Wireguard);
        assert_eq!((conf.wireguard_port, conf.wireguard_keepalive), (Some(51900), Some(25)));
        let error = NetConf::parse(&text(r#", "PSK": "x""#)).expect_err("a key").to_string();
        assert!(error.contains("Backend.PSK"), "{error}");
    }

    #[test]
    fn what_does_nothing_is_noted_by_its_key() {
        let conf = parsed(
            r#"{"Network": "10.0.0.0/8", "SubnetLen": 24, "EnableNFTables": true, "More": 1,
                "Backend": {"Type": "vxlan", "GBP": true, "Learning": true, "MacPrefix": "0E-2A",
                            "Psk": "x"}}"#,
        );
        for key in [
            "SubnetLen",
            "EnableNFTables",
            "Backend.GBP",
            "Backend.Learning",
            "Backend.MacPrefix",
            "More",
            "Backend.Psk",
        ] {
            assert!(conf.notes.iter().any(|note| note.starts_with(key)), "{key}: {:?}", conf.notes);
        }
        assert!(conf.notes[0].contains("spec.podCIDRs"), "{:?}", conf.notes);
    }

    #[test]
    fn each_mistake_names_its_key() {
        let check = |text: &str, names: &str| {
            let error = format!("{:#}", NetConf::parse(text).expect_err(text));
            assert!(error.contains(names), "{names}: {error}");
        };
        check("[]", "JSON object");
        check(r#"{"Backend": {"Type": "vxlan"}}"#, "Network");
        check(r#"{"Network": "10.0.0.0/33"}"#, "key Network: found \"10.0.0.0/33\"");
        check(r#"{"Network": "10.0.0.0/8"}"#, "key Backend is missing");
        check(r#"{"EnableIPv4": false, "Backend": {"Type": "vxlan"}}"#, "both false");
        check(r#"{"Network": "10.0.0.0/8", "EnableIPv6": true}"#, "IPv6Network");
        let backend = |keys: &str| format!(r#"{{"Network": "10.0.0.0/8", "Backend": {{{keys}}}}}"#);
        check(&backend(""), "Backend.Type is missing");
        for kind in ["udp", "ipsec", "auto", ""] {
            check(&backend(&format!(r#""Type": "{kind}""#)), "key Backend.Type");
        }
        check(&backend(r#""Type": "udp""#), "vxlan, host-gw, wireguard");
        check(&backend(r#""Type": "vxlan", "VNI": 16777216"#), "key Backend.VNI");
        check(&backend(r#""Type": "vxlan", "VNI": "1""#), "key Backend.VNI: found \"1\"");
        check(&backend(r#""Type": "vxlan", "Port": 65536"#), "key Backend.Port");
        check(&backend(r#""Type": "vxlan", "MTU": 10"#), "key Backend.MTU");
    }

    #[test]
    fn subnet_env_is_flannels_to_the_byte() {
        let cidrs = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().expect("a range")).collect()
        };
        let conf = parsed(USUAL);
        let text = subnet_env(&conf, &cidrs(&["10.244.3.0/24"]), 1450, true).expect("a file");
        let expected = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
                        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(text, expected);

        let both = NetConf { ipv6_network: Some("fd00::/48".parse().expect("a range")), ..conf };
        let own = cidrs(&["fd00:0:0:7::/64", "10.244.3.0/24"]);
        let text = subnet_env(&both, &own, 1430, false).expect("a file");
        let expected = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
                        FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n\
                        FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";
        assert_eq!(text, expected);

        for (own, names) in
            [(cidrs(&["10.244.3.0/24"]), "IPv6"), (cidrs(&["10.1.0.0/24"]), "10.244.0.0/16")]
        {
            let error = subnet_env(&both, &own, 1430, false).expect_err("no such range");
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    #[test]
    fn subnet_env_is_rewritten_when_something_changes_and_remembered_for_an_uninstall() {
        let folder = tempfile::tempdir().expect("a folder");
        let traces = Arc::new(Traces::open(folder.path()).expect("a record"));
        let path = folder.path().join("flannel/subnet.env");
        let mut env = SubnetEnv::new(&path, &parsed(USUAL), true, &traces);
        let own = ["10.244.3.0/24".parse().expect("a range")];
        env.keep(&own, 1450);
        env.keep(&own, 1400);
        assert!(fs::read_to_string(&path).expect("a file").contains("FLANNEL_MTU=1400\n"));
        assert!(traces.files().contains(&path));
        // Without a range there is nothing to say; what was said stays.
        env.keep(&[], 1400);
        assert!(env.said.as_ref().is_some_and(|said| said.contains("podCIDR")));
        assert!(path.exists());
    }
}
