//! What kube-proxy was told: its configuration file (`kubeproxy.config.k8s.io/v1alpha1`) and its flags,
//! so that a node's manifest can stay as it is.
//!
//! What has a meaning here is taken; what has none is accepted and named once; an unknown key is an
//! error. Values that say nothing (`null`, `""`, `0`, `0s`, `false`, nothing in a list) are those of a
//! file that lists all keys.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Value};

use crate::options::{NodePortAddresses, Options};

/// Port of the health checks.
pub const HEALTHZ_PORT: u16 = 10256;
/// Port of the metrics.
pub const METRICS_PORT: u16 = 10249;

/// What a configuration file says that has a meaning here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// `mode`.
    pub mode: Option<String>,
    /// `nodePortAddresses`.
    pub nodeport_addresses: Option<Vec<NodePortAddresses>>,
    /// `iptables.localhostNodePorts`.
    pub localhost_nodeports: Option<bool>,
    /// `healthzBindAddress`.
    pub healthz_bind: Option<SocketAddr>,
    /// `metricsBindAddress`.
    pub metrics_bind: Option<SocketAddr>,
    /// `hostnameOverride`.
    pub node_name: Option<String>,
    /// `conntrack.tcpEstablishedTimeout`.
    pub tcp_established: Option<Duration>,
    /// `conntrack.udpTimeout`.
    pub udp: Option<Duration>,
    /// `conntrack.udpStreamTimeout`.
    pub udp_stream: Option<Duration>,
    /// Keys that say something which has no meaning here.
    pub meaningless: Vec<String>,
}

/// Keys that are accepted without a look at what is below them. A group's keys follow its name and a dot.
const MEANINGLESS: &[&str] = &[
    "bindAddress",
    "bindAddressHardFail",
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.kubeconfig",
    "clientConnection.qps",
    "clusterCIDR",
    "configSyncPeriod",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpBeLiberal",
    "conntrack.tcpCloseWaitTimeout",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "detectLocalMode",
    "enableProfiling",
    "featureGates",
    "iptables.masqueradeAll",
    "iptables.masqueradeBit",
    "iptables.minSyncPeriod",
    "iptables.syncPeriod",
    "ipvs.excludeCIDRs",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.syncPeriod",
    "ipvs.tcpFinTimeout",
    "ipvs.tcpTimeout",
    "ipvs.udpTimeout",
    "logging",
    "nftables.masqueradeAll",
    "nftables.masqueradeBit",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "windowsRunAsService",
    "winkernel",
];

/// Keys with keys below them.
const GROUPS: &[&str] =
    &["clientConnection", "conntrack", "detectLocal", "iptables", "ipvs", "nftables"];

impl Configuration {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self> {
        let about = || format!("read kube-proxy's configuration {}", path.display());
        let text = fs::read_to_string(path).with_context(about)?;
        Self::parse(&text).with_context(about)
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_saphyr::from_str(text).context("neither YAML nor JSON")?;
        let Value::Object(mut keys) = value else { bail!("must be keys and their values") };
        for (key, expected) in
            [("apiVersion", "kubeproxy.config.k8s.io/v1alpha1"), ("kind", "KubeProxyConfiguration")]
        {
            match keys.remove(key) {
                Some(found) if found == expected => {}
                Some(found) => bail!("key {key}: found {found}, expected {expected:?}"),
                None => bail!("key {key} is missing, which is {expected:?}"),
            }
        }
        let mut configuration = Self::default();
        configuration.take_all("", keys)?;
        configuration.meaningless.sort();
        Ok(configuration)
    }

    fn take_all(&mut self, above: &str, keys: Map<String, Value>) -> Result<()> {
        for (key, value) in keys {
            let key = format!("{above}{key}");
            match value {
                Value::Object(below) if GROUPS.contains(&&*key) => {
                    self.take_all(&format!("{key}."), below)?;
                }
                Value::Null if GROUPS.contains(&&*key) => {}
                value => self.take(&key, &value)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, key: &str, value: &Value) -> Result<()> {
        let says = !says_nothing(value);
        if MEANINGLESS.contains(&key) {
            self.meaningless.extend(says.then(|| key.to_owned()));
            return Ok(());
        }
        let text = || value.as_str().ok_or_else(|| anyhow!("found {value}, expected a text"));
        let bind = |port| text().and_then(|text| bind_address(text, port).map_err(|e| anyhow!(e)));
        let duration = || text().and_then(|text| duration(text).map_err(|e| anyhow!(e)));
        let mut take = || -> Result<bool> {
            match key {
                "mode" if says => self.mode = Some(text()?.to_owned()),
                "nodePortAddresses" if says => self.nodeport_addresses = Some(addresses(value)?),
                // Where nothing is said, it depends on the mode.
                "iptables.localhostNodePorts" if !value.is_null() => {
                    let on = value.as_bool();
                    self.localhost_nodeports =
                        Some(on.ok_or_else(|| anyhow!("found {value}, expected true or false"))?);
                }
                "healthzBindAddress" if says => self.healthz_bind = Some(bind(HEALTHZ_PORT)?),
                "metricsBindAddress" if says => self.metrics_bind = Some(bind(METRICS_PORT)?),
                "hostnameOverride" if says => self.node_name = Some(text()?.to_owned()),
                "conntrack.tcpEstablishedTimeout" if says => {
                    self.tcp_established = Some(duration()?);
                }
                "conntrack.udpTimeout" if says => self.udp = Some(duration()?),
                "conntrack.udpStreamTimeout" if says => self.udp_stream = Some(duration()?),
                "mode"
                | "nodePortAddresses"
                | "iptables.localhostNodePorts"
                | "healthzBindAddress"
                | "metricsBindAddress"
                | "hostnameOverride"
                | "conntrack.tcpEstablishedTimeout"
                | "conntrack.udpTimeout"
                | "conntrack.udpStreamTimeout" => {}
                _ => return Ok(false),
            }
            Ok(true)
        };
        match take().with_context(|| format!("key {key}"))? {
            true => Ok(()),
            false => bail!("key {key}: there is no such key"),
        }
    }

    /// Puts into the options what they were not given explicitly; `given` says which were, by field.
    pub(crate) fn apply(self, options: &mut Options, given: impl Fn(&str) -> bool) {
        fn put<T>(to: &mut T, from: Option<T>, given: bool) {
            if let Some(value) = from.filter(|_| !given) {
                *to = value;
            }
        }
        let said = (self.nodeport_addresses.is_some(), self.localhost_nodeports.is_some());
        let by_flag = options.kube_proxy.mode.clone();
        let mode = by_flag.or(self.mode.clone());
        let compat = mode.as_deref() == Some(IPTABLES);
        put(&mut options.iptables_compat, Some(compat), given("iptables_compat"));
        if options.iptables_compat {
            let everywhere = ["0.0.0.0/0", "::/0"].map(|range| range.parse::<NodePortAddresses>());
            let everywhere = everywhere.into_iter().flatten().collect();
            let all = Some(everywhere).filter(|_| !said.0);
            put(&mut options.nodeport_addresses, all, given("nodeport_addresses"));
            let loopback = Some(true).filter(|_| !said.1);
            put(&mut options.localhost_nodeports, loopback, given("localhost_nodeports"));
        }
        let nodeports = self.nodeport_addresses;
        put(&mut options.nodeport_addresses, nodeports, given("nodeport_addresses"));
        put(
            &mut options.localhost_nodeports,
            self.localhost_nodeports,
            given("localhost_nodeports"),
        );
        put(&mut options.healthz_bind, self.healthz_bind, given("healthz_bind"));
        put(&mut options.metrics_bind, self.metrics_bind, given("metrics_bind"));
        put(&mut options.node_name, self.node_name.map(Some), given("node_name"));
        let tcp = self.tcp_established.map(Some);
        put(&mut options.tcp_idle, tcp, given("tcp_idle"));
        put(&mut options.udp_idle, self.udp.map(Some), given("udp_idle"));
        put(&mut options.udp_stream_idle, self.udp_stream.map(Some), given("udp_stream_idle"));
        let named = &mut options.kube_proxy.meaningless;
        named.extend(self.meaningless);
        named.extend(self.mode.filter(|mode| !is_followed(mode)).map(|_| "mode".to_owned()));
    }
}

/// kube-proxy's mode that [`Options::iptables_compat`] is like.
const IPTABLES: &str = "iptables";

/// Whether what a mode does is what the agent does, or can do.
fn is_followed(mode: &str) -> bool {
    matches!(mode, "" | IPTABLES | "nftables")
}

fn addresses(value: &Value) -> Result<Vec<NodePortAddresses>> {
    let list = value.as_array().ok_or_else(|| anyhow!("found {value}, expected a list"))?;
    let one = |one: &Value| {
        let text = one.as_str().ok_or_else(|| anyhow!("found {one}, expected a text"))?;
        text.parse::<NodePortAddresses>().map_err(|error| anyhow!(error))
    };
    list.iter().map(one).collect()
}

/// Whether a value is what it would be if its key were not there.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.values().all(says_nothing),
    }
}

/// An address to listen on, with or without a port.
pub(crate) fn bind_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let with_port = text.parse().ok();
    let without = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    with_port
        .or_else(without)
        .ok_or_else(|| format!("{text:?} is no address, such as 0.0.0.0:{port}"))
}

/// A duration as Go writes it: `90s`, `1h30m`, `1.5h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let mistake = || format!("{text:?} is no duration, such as 90s or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c)).ok_or_else(mistake)?);
        let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(mistake)?.1;
        seconds += number.parse::<f64>().map_err(|_| mistake())? * unit;
        rest = after;
    }
    if text.is_empty() {
        return Err(mistake());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| mistake())
}

/// Flags of kube-proxy's that have no meaning here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Those that were given, and keys of the file that say something without a meaning here.
    pub meaningless: Vec<String>,
    /// `--proxy-mode`.
    pub mode: Option<String>,
}

/// Those that have a value.
const WITH_VALUE: &[&str] = &[
    "bind-address",
    "cluster-cidr",
    "config-sync-period",
    "conntrack-max-per-core",
    "conntrack-min",
    "conntrack-tcp-timeout-close-wait",
    "detect-local-mode",
    "feature-gates",
    "iptables-masquerade-bit",
    "iptables-min-sync-period",
    "iptables-sync-period",
    "ipvs-exclude-cidrs",
    "ipvs-min-sync-period",
    "ipvs-scheduler",
    "ipvs-sync-period",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kubeconfig",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "logging-format",
    "master",
    "oom-score-adj",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "proxy-port-range",
    "show-hidden-metrics-for-version",
    "v",
    "vmodule",
];

/// The one whose value counts.
const MODE: &str = "proxy-mode";

/// Those that may stand alone.
const SWITCHES: &[&str] = &[
    "bind-address-hard-fail",
    "conntrack-tcp-be-liberal",
    "ipvs-strict-arp",
    "log-json-split-stream",
    "log-text-split-stream",
    "masquerade-all",
    "profiling",
];

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let all = WITH_VALUE.iter().chain(SWITCHES);
        let given = all.filter(|name| matches.value_source(name) == Some(ValueSource::CommandLine));
        let mode = matches.get_many::<String>(MODE).and_then(|mut all| all.next_back()).cloned();
        let strange = mode.iter().filter(|mode| !is_followed(mode)).map(|_| MODE);
        let named = given.copied().chain(strange);
        Ok(Self { meaningless: named.map(|name| format!("--{name}")).collect(), mode })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let hidden = |name: &'static str| Arg::new(name).long(name).hide(true);
        let values = WITH_VALUE.iter().map(|name| hidden(name).action(ArgAction::Append));
        let switches = SWITCHES.iter().map(|name| {
            let switch = hidden(name).action(ArgAction::Append).num_args(0..=1);
            switch.require_equals(true).default_missing_value("true")
        });
        let mode = hidden(MODE).action(ArgAction::Append);
        command.args(values).args(switches).arg(mode)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::options::Cli;

    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parsed(text: &str) -> Configuration {
        Configuration::parse(&format!("{HEAD}{text}")).expect(text)
    }

    /// As kubeadm writes it.
    const KUBEADM: &str = r#"
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

    #[test]
    fn a_file_that_lists_every_key_says_little() {
        let meaningless = ["bindAddress", "clientConnection.kubeconfig", "clusterCIDR"];
        let meaningless = meaningless.map(str::to_owned).to_vec();
        assert_eq!(parsed(KUBEADM), Configuration { meaningless, ..Configuration::default() });
    }

    #[test]
    fn what_has_a_meaning_is_taken() {
        let text = r#"
mode: ipvs
nodePortAddresses: [192.0.2.0/24, "2001:db8::/32"]
healthzBindAddress: "[::]:1234"
metricsBindAddress: 0.0.0.0
hostnameOverride: worker-1
conntrack: {tcpEstablishedTimeout: 2h, udpTimeout: 45s, udpStreamTimeout: 1m30s, min: 7}
iptables: {localhostNodePorts: true, masqueradeAll: true}
"#;
        let range = |text: &str| NodePortAddresses::Within(text.parse().expect("a range"));
        let expected = Configuration {
            nodeport_addresses: Some(vec![range("192.0.2.0/24"), range("2001:db8::/32")]),
            localhost_nodeports: Some(true),
            healthz_bind: "[::]:1234".parse().ok(),
            metrics_bind: "0.0.0.0:10249".parse().ok(),
            mode: Some("ipvs".to_owned()),
            node_name: Some("worker-1".to_owned()),
            tcp_established: Some(Duration::from_secs(7200)),
            udp: Some(Duration::from_secs(45)),
            udp_stream: Some(Duration::from_secs(90)),
            meaningless: ["conntrack.min", "iptables.masqueradeAll"].map(str::to_owned).to_vec(),
        };
        assert_eq!(parsed(text), expected);
        let json = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                       "kind": "KubeProxyConfiguration", "nodePortAddresses": ["primary"]}"#;
        let json = Configuration::parse(json).expect("JSON");
        assert_eq!(json.nodeport_addresses, Some(vec![NodePortAddresses::Primary]));
    }

    #[test]
    fn a_mistake_is_named_by_its_key() {
        for (text, part) in [
            ("nodePortAdresses: [primary]", "key nodePortAdresses"),
            ("conntrack: {udpTimeOut: 5s}", "key conntrack.udpTimeOut"),
            ("conntrack: 7", "key conntrack"),
            ("conntrack: {udpTimeout: 5}", "key conntrack.udpTimeout: found 5"),
            ("conntrack: {udpTimeout: 5 s}", "key conntrack.udpTimeout: \"5 s\""),
            ("nodePortAddresses: 192.0.2.0/24", "key nodePortAddresses: found"),
            ("nodePortAddresses: [192.0.2.0/33]", "192.0.2.0/33"),
            ("healthzBindAddress: everywhere", "key healthzBindAddress"),
            ("mode: [nftables]", "key mode: found"),
            ("iptables: {localhostNodePorts: 1}", "key iptables.localhostNodePorts"),
        ] {
            let error = Configuration::parse(&format!("{HEAD}{text}")).expect_err(text);
            let error = format!("{error:#}");
            assert!(error.contains(part), "{text}: {error:?} should say {part:?}");
        }
        for (text, part) in [
            ("kind: KubeProxyConfiguration", "apiVersion is missing"),
            ("apiVersion: kubeproxy.config.k8s.io/v1\nkind: X", "kubeproxy.config.k8s.io/v1alpha1"),
            ("- a", "keys"),
        ] {
            let error = format!("{:#}", Configuration::parse(text).expect_err(text));
            assert!(error.contains(part), "{text}: {error:?} should say {part:?}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, seconds) in [
            ("0", 0.0),
            ("0s", 0.0),
            ("90s", 90.0),
            ("1h30m", 5400.0),
            ("1.5h", 5400.0),
            ("2ms", 0.002),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "s", "5", "5 s", "1d", "-1s", "h1", "1..5s", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_beat_the_file_and_those_without_a_meaning_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.conf");
        let text = "healthzBindAddress: 127.0.0.1:1\nmetricsBindAddress: 127.0.0.1:2\n\
                    hostnameOverride: file\nnodePortAddresses: [192.0.2.0/24]\nmode: nftables\n\
                    iptables: {localhostNodePorts: true}\nconntrack: {udpTimeout: 5s}\n";
        fs::write(&file, format!("{HEAD}{text}")).expect("a file");
        let read = |more: &str| {
            let file = file.display();
            let words = format!("fairway-proxy --feed http://x:1 --config={file} {more}");
            let matches = Cli::command().try_get_matches_from(words.split_whitespace());
            Cli::read(&matches.expect(more)).expect(more).agent
        };
        let options = read("");
        assert_eq!(options.healthz_bind.port(), 1);
        assert_eq!(options.metrics_bind.port(), 2);
        assert_eq!(options.node_name.as_deref(), Some("file"));
        assert!(options.localhost_nodeports);
        assert_eq!(options.udp_idle, Some(Duration::from_secs(5)));
        assert_eq!(options.kube_proxy.meaningless, [""; 0]);
        let options = read(
            "--healthz-bind-address=0.0.0.0 --metrics-bind-address 127.0.0.1:7 --v=2 \
             --hostname-override=flag --nodeport-addresses=primary --proxy-mode=ipvs \
             --cluster-cidr 10.0.0.0/8 --masquerade-all --iptables-localhost-nodeports=false \
             --conntrack-udp-timeout=9s --conntrack-tcp-timeout-established 1h",
        );
        assert_eq!(options.healthz_bind, "0.0.0.0:10256".parse().expect("an address"));
        assert_eq!(options.metrics_bind.port(), 7);
        assert_eq!(options.node_name.as_deref(), Some("flag"));
        assert!(options.node_port_ranges().is_empty() && !options.localhost_nodeports);
        assert_eq!(options.udp_idle, Some(Duration::from_secs(9)));
        assert_eq!(options.tcp_idle, Some(Duration::from_secs(3600)));
        let mut named = options.kube_proxy.meaningless.clone();
        named.sort();
        assert_eq!(named, ["--cluster-cidr", "--masquerade-all", "--proxy-mode", "--v"]);
    }

    #[test]
    fn the_iptables_mode_is_followed_where_it_is_asked_for_and_in_what_nobody_says_otherwise() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.conf");
        let read = |text: &str, more: &str| {
            fs::write(&file, format!("{HEAD}{text}\n")).expect("a file");
            let file = file.display();
            let words = format!("fairway-proxy --feed http://x:1 --config={file} {more}");
            let matches = Cli::command().try_get_matches_from(words.split_whitespace());
            let options = Cli::read(&matches.expect(more)).expect(more).agent;
            let ranges: Vec<_> =
                options.node_port_ranges().iter().map(ToString::to_string).collect();
            let named = options.kube_proxy.meaningless.join(" ");
            (options.iptables_compat, ranges.join(" "), options.localhost_nodeports, named)
        };
        let everywhere = "0.0.0.0/0 ::/0";
        for (text, more, (compat, ranges, loopback, named)) in [
            ("mode: nftables", "", (false, "", false, "")),
            ("mode: \"\"", "", (false, "", false, "")),
            ("mode: ipvs", "", (false, "", false, "mode")),
            ("mode: iptables", "", (true, everywhere, true, "")),
            ("mode: iptables", "--proxy-mode nftables", (false, "", false, "")),
            ("mode: iptables", "--iptables-compat=false", (false, "", false, "")),
            ("mode: nftables", "--proxy-mode=iptables", (true, everywhere, true, "")),
            ("", "--iptables-compat", (true, everywhere, true, "")),
            ("", "--iptables-compat --nodeport-addresses=primary", (true, "", true, "")),
            (
                "mode: iptables\nnodePortAddresses: [192.0.2.0/24]",
                "",
                (true, "192.0.2.0/24", true, ""),
            ),
            (
                "mode: iptables\niptables: {localhostNodePorts: false}",
                "",
                (true, everywhere, false, ""),
            ),
            ("mode: iptables", "--localhost-nodeports=false", (true, everywhere, false, "")),
        ] {
            let expected = (compat, ranges.to_owned(), loopback, named.to_owned());
            assert_eq!(read(text, more), expected, "{text:?} {more}");
        }
    }
}
