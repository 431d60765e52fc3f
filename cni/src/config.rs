//! The network configuration: what was typed, checked key by key.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fairway_cni_protocol::{Bandwidth, HostPort};
use fairway_netlink::Mac;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::bandwidth;
use crate::call::{Attachment, Command, is_name, parse_address, parse_mac};
use crate::failure::{Code, Failure};
use crate::ipam::Owner;
use crate::pool::{GivenRange, RangeSets, Wanted};
use crate::portmap;
use crate::result::{AddResult, Dns};
use crate::version::Version;
use crate::wiring::gateway;

/// The keys that mean something to us. Others are tolerated: each version of the specification and
/// each runtime brings more of them, and they are for somebody else.
#[derive(Debug)]
pub(crate) struct Config {
    /// `name`: the network's. GC is about the attachments of one network; the addresses are the
    /// node's, and all networks share them.
    pub(crate) network: String,
    /// `socket`: where the agent listens, if not in the usual place.
    pub(crate) socket: Option<PathBuf>,
    /// `dataDir`.
    pub(crate) data_dir: PathBuf,
    /// `mtu`: instead of the agent's.
    pub(crate) mtu: Option<u32>,
    /// `runtimeConfig.ipRanges`, or else `ipam.ranges`; the node's pod CIDRs if neither.
    pub(crate) ranges: Option<RangeSets>,
    /// `ipam.routes`: where the pod sends through this interface; everywhere if absent.
    pub(crate) routes: Option<Vec<IpNet>>,
    /// `runtimeConfig.ips` and `args.cni.ips`.
    pub(crate) wanted: Vec<Wanted>,
    /// `runtimeConfig.mac`, or else `args.cni.mac`.
    pub(crate) mac: Option<Mac>,
    /// `dns`: passed through to the result, with `runtimeConfig.dns` in place of its parts.
    pub(crate) dns: Dns,
    /// `runtimeConfig.portMappings`.
    pub(crate) host_ports: Vec<HostPort>,
    /// `runtimeConfig.bandwidth`, or its keys beside `type`.
    pub(crate) bandwidth: Bandwidth,
    /// `prevResult`, not looked into: DEL must not stumble over it.
    previous: Option<Value>,
    /// `cni.dev/valid-attachments`; absent says nothing about any attachment.
    pub(crate) valid_attachments: Option<Vec<Attachment>>,
}

/// The JSON object on standard input.
pub(crate) fn decode(input: &[u8]) -> Result<Map<String, Value>, Failure> {
    serde_json::from_slice(input).map_err(|error| {
        Failure::new(
            Code::Decode,
            format!("the network configuration is not a JSON object: {error}"),
        )
    })
}

/// The version to answer in.
pub(crate) fn version(json: &Map<String, Value>) -> Result<Version, Failure> {
    let text = Keys(json).required_string("cniVersion")?;
    Version::parse(text).ok_or_else(|| {
        let supported = Version::ALL.map(Version::name).join(", ");
        Failure::new(
            Code::IncompatibleVersion,
            format!("cniVersion {text:?} is none of those supported ({supported})"),
        )
    })
}

impl Config {
    /// For DEL the keys it does not need may be wrong: the pod was added with others.
    pub(crate) fn parse(json: &Map<String, Value>, command: Command) -> Result<Self, Failure> {
        let keys = Keys(json);
        let network = keys.required_string("name")?;
        if !is_name(network) {
            let problem = "expected a letter or digit and more of these, '_', '.' or '-'";
            return Err(wrong("name", problem, &json["name"]));
        }
        let ipam = command.unless_del(keys.ipam())?;
        let of_runtime = command.unless_del(keys.ip_ranges())?;
        Ok(Self {
            network: network.to_owned(),
            socket: keys.absolute_path("socket")?,
            data_dir: keys
                .absolute_path("dataDir")?
                .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR)),
            mtu: command.unless_del(keys.mtu("mtu"))?,
            ranges: of_runtime.or(ipam.ranges),
            routes: ipam.routes,
            wanted: command.unless_del(keys.wanted())?,
            mac: command.unless_del(keys.mac())?,
            dns: command.unless_del(keys.dns())?,
            host_ports: command.unless_del(keys.host_ports())?,
            bandwidth: command.unless_del(keys.bandwidth())?,
            previous: keys.get("prevResult").cloned(),
            valid_attachments: command.unless_del(keys.valid_attachments())?,
        })
    }

    /// Who holds the addresses of an attachment to this network.
    pub(crate) fn owner(&self, attachment: &Attachment) -> Owner {
        Owner { network: self.network.clone(), attachment: attachment.clone() }
    }

    /// What the plugins before this one in the chain, or this one's ADD, have made.
    pub(crate) fn previous_result(&self) -> Result<Option<AddResult>, Failure> {
        let Some(previous) = &self.previous else {
            return Ok(None);
        };
        let refused = |problem: String| {
            Failure::new(Code::Decode, format!("key \"prevResult\": {problem}, in {previous}"))
        };
        let result: AddResult = serde_path_to_error::deserialize(previous)
            .map_err(|error| refused(format!("{}: {}", error.path(), error.inner())))?;
        result.contradiction().map_or(Ok(Some(result)), |problem| Err(refused(problem)))
    }
}

pub(crate) const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// Where addresses are kept unless the configuration's `dataDir` says otherwise. In `/run`, which a
/// reboot empties: no pod outlives one, and so no address does. It is in memory, so that a pod's start
/// does not wait for a disk that is busy with images.
pub const DEFAULT_DATA_DIR: &str = "/run/fairway/cni";

/// Typed access by key, so that an error says which.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// `null` is an absent key.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, Failure> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| wrong(key, "expected a string", value)))
            .transpose()
    }

    fn required_string(&self, key: &str) -> Result<&'a str, Failure> {
        self.string(key)?
            .ok_or_else(|| Failure::new(Code::InvalidConfig, format!("key {key:?} is missing")))
    }

    fn absolute_path(&self, key: &str) -> Result<Option<PathBuf>, Failure> {
        let Some(text) = self.string(key)? else {
            return Ok(None);
        };
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            return Err(wrong(key, "expected an absolute path", &text.into()));
        }
        Ok(Some(path.to_owned()))
    }

    fn mtu(&self, key: &str) -> Result<Option<u32>, Failure> {
        let check = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number
                .filter(|mtu| (68..=65535).contains(mtu))
                .ok_or_else(|| wrong(key, "expected a number from 68 to 65535", value))
        };
        self.get(key).map(check).transpose()
    }

    /// What the runtime passes for a capability that the configuration declares.
    fn capability(&self, name: &str) -> Result<Option<&'a Value>, Failure> {
        match self.get("runtimeConfig") {
            None => Ok(None),
            Some(Value::Object(capabilities)) => Ok(Keys(capabilities).get(name)),
            Some(other) => Err(wrong("runtimeConfig", "expected an object", other)),
        }
    }

    fn host_ports(&self) -> Result<Vec<HostPort>, Failure> {
        let mappings = self.capability("portMappings")?;
        mappings.map(portmap::parse).transpose().map(Option::unwrap_or_default)
    }

    fn bandwidth(&self) -> Result<Bandwidth, Failure> {
        bandwidth::parse(self.0, self.capability("bandwidth")?)
    }

    /// Ours are the addresses, whatever a plugin of the IPAM kind would make of them.
    fn ipam(&self) -> Result<Ipam, Failure> {
        let Some(ipam) = self.get("ipam") else { return Ok(Ipam::default()) };
        match ipam.get("type") {
            None | Some(Value::Null) => {}
            Some(kind) if kind == "" || kind == "fairway" => {}
            Some(_) => {
                return Err(Failure::new(
                    Code::UnsupportedField,
                    format!(
                        "key \"ipam.type\" is not supported, as addresses come from the node's pod \
                         CIDRs: {ipam}"
                    ),
                ));
            }
        }
        let given: GivenIpam = read("ipam", ipam)?;
        let ranges = given.ranges.map(|sets| RangeSets { key: "ipam.ranges", sets });
        let route = |(n, route): (usize, GivenRoute)| match route.gw {
            Some(gw) if gw != gateway(gw) => {
                let problem = format!("a pod's gateway is always {}", gateway(gw));
                Err(wrong(&format!("ipam.routes[{n}].gw"), &problem, &gw.to_string().into()))
            }
            _ => Ok(route.dst.trunc()),
        };
        let routes = given.routes.map(|routes| routes.into_iter().enumerate().map(route).collect());
        Ok(Ipam { ranges, routes: routes.transpose()? })
    }

    fn ip_ranges(&self) -> Result<Option<RangeSets>, Failure> {
        const KEY: &str = "runtimeConfig.ipRanges";
        let sets: Option<Vec<Vec<GivenRange>>> =
            self.capability("ipRanges")?.map(|value| read(KEY, value)).transpose()?;
        // None asked for is none given.
        Ok(sets.filter(|sets| !sets.is_empty()).map(|sets| RangeSets { key: KEY, sets }))
    }

    fn wanted(&self) -> Result<Vec<Wanted>, Failure> {
        let places = [
            ("args.cni.ips", self.argument("ips")?),
            ("runtimeConfig.ips", self.capability("ips")?),
        ];
        let mut wanted = Vec::new();
        for (key, value) in places {
            let Some(value) = value else { continue };
            let texts: Vec<String> = read(key, value)?;
            for (n, text) in texts.into_iter().enumerate() {
                let key = format!("{key}[{n}]");
                let address = parse_address(&text)
                    .ok_or_else(|| wrong(&key, "expected an IP address", &text.into()))?;
                wanted.push(Wanted { key, address });
            }
        }
        Ok(wanted)
    }

    fn mac(&self) -> Result<Option<Mac>, Failure> {
        let places = [
            ("runtimeConfig.mac", self.capability("mac")?),
            ("args.cni.mac", self.argument("mac")?),
        ];
        let given = places
            .into_iter()
            .find_map(|(key, value)| value.filter(|value| **value != "").map(|value| (key, value)));
        let Some((key, value)) = given else { return Ok(None) };
        let mac = value.as_str().and_then(parse_mac);
        mac.map(Some)
            .ok_or_else(|| wrong(key, "expected a MAC address that one interface may have", value))
    }

    fn dns(&self) -> Result<Dns, Failure> {
        const KEY: &str = "runtimeConfig.dns";
        let mut dns: Dns = self.typed("dns")?.unwrap_or_default();
        let Some(value) = self.capability("dns")? else { return Ok(dns) };
        let RuntimeDns { servers, searches, options } = read(KEY, value)?;
        let parts = [
            (servers, &mut dns.nameservers),
            (searches, &mut dns.search),
            (options, &mut dns.options),
        ];
        for (given, part) in parts {
            if let Some(given) = given.filter(|given| !given.is_empty()) {
                *part = given;
            }
        }
        Ok(dns)
    }

    /// What a person passes for this pod by the convention of `args`.
    fn argument(&self, name: &str) -> Result<Option<&'a Value>, Failure> {
        let mut found = self.get("args");
        let mut path = "args".to_owned();
        for name in ["cni", name] {
            let Some(value) = found else { return Ok(None) };
            let Value::Object(keys) = value else {
                return Err(wrong(&path, "expected an object", value));
            };
            found = keys.get(name).filter(|value| !value.is_null());
            path = format!("{path}.{name}");
        }
        Ok(found)
    }

    fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, Failure> {
        match self.typed(VALID_ATTACHMENTS)? {
            Some(attachments) => Ok(Some(attachments)),
            // The name in the first print of the specification, which libcni still sends.
            None => self.typed("cni.dev/attachments"),
        }
    }

    fn typed<T: Deserialize<'a>>(&self, key: &str) -> Result<Option<T>, Failure> {
        self.get(key).map(|value| read(key, value)).transpose()
    }
}

/// `ipam`, understood.
#[derive(Default)]
struct Ipam {
    ranges: Option<RangeSets>,
    routes: Option<Vec<IpNet>>,
}

/// `ipam`, as typed. What is not known is refused: it would be meant to choose addresses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenIpam {
    #[serde(rename = "type")]
    _type: Option<String>,
    ranges: Option<Vec<Vec<GivenRange>>>,
    routes: Option<Vec<GivenRoute>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenRoute {
    dst: IpNet,
    gw: Option<IpAddr>,
}

/// As the conventions spell it, and as containerd does.
#[derive(Deserialize)]
struct RuntimeDns {
    #[serde(alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(alias = "Options")]
    options: Option<Vec<String>>,
}

fn read<'a, T: Deserialize<'a>>(key: &str, value: &'a Value) -> Result<T, Failure> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, problem) = (error.path().to_string(), error.inner());
        let path = match path.as_str() {
            "." => key.to_owned(), // the whole of it
            path if path.starts_with('[') => format!("{key}{path}"),
            path => format!("{key}.{path}"),
        };
        wrong(&path, &problem.to_string(), value)
    })
}

pub(crate) fn wrong(key: &str, problem: &str, found: &Value) -> Failure {
    Failure::new(Code::InvalidConfig, format!("key {key:?}: {problem}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Config, Failure> {
        let json = decode(json.as_bytes())?;
        version(&json)?;
        Config::parse(&json, Command::Add)
    }

    #[test]
    fn defaults_and_unknown_keys() {
        let config = parse(
            r#"{"cniVersion": "1.0.0", "name": "pods", "type": "fairway-cni", "socket": null,
                "capabilities": {"portMappings": true}, "runtimeConfig": {"x": 1}, "ipam": {}}"#,
        )
        .unwrap();
        assert_eq!(config.network, "pods");
        assert_eq!(config.socket, None);
        assert_eq!(config.data_dir, Path::new(DEFAULT_DATA_DIR));
        assert_eq!(config.mtu, None);
        assert!(config.previous_result().unwrap().is_none());
        assert!(config.valid_attachments.is_none());
    }

    #[test]
    fn each_mistake_has_its_code_and_names_its_key() {
        let check = |json: &str, code: Code, texts: &[&str]| {
            let failure = parse(json).unwrap_err();
            assert_eq!(failure.code, code, "{json}");
            for text in texts {
                assert!(failure.message.contains(text), "{text:?} in {:?}", failure.message);
            }
        };
        check("", Code::Decode, &["JSON"]);
        check("{", Code::Decode, &["JSON", "line 1"]);
        check("[]", Code::Decode, &["JSON object"]);
        check("{}", Code::InvalidConfig, &["cniVersion", "missing"]);
        check(r#"{"cniVersion": 1}"#, Code::InvalidConfig, &["cniVersion", "found 1"]);
        check(r#"{"cniVersion": "0.2.0"}"#, Code::IncompatibleVersion, &["0.2.0", "1.1.0"]);
        check(r#"{"cniVersion": "1.2.0"}"#, Code::IncompatibleVersion, &["1.2.0"]);
        check(r#"{"cniVersion": "1.1.0"}"#, Code::InvalidConfig, &["\"name\" is missing"]);
        let with = |keys: &str| format!(r#"{{"cniVersion": "1.1.0", "name": "n", {keys}}}"#);
        check(r#"{"cniVersion": "1.1.0", "name": "../n"}"#, Code::InvalidConfig, &["\"name\""]);
        check(&with(r#""mtu": "1500""#), Code::InvalidConfig, &["\"mtu\"", "\"1500\""]);
        check(&with(r#""mtu": 67"#), Code::InvalidConfig, &["68 to 65535", "found 67"]);
        check(&with(r#""mtu": 4294968796"#), Code::InvalidConfig, &["found 4294968796"]);
        check(&with(r#""socket": "agent""#), Code::InvalidConfig, &["\"socket\"", "absolute"]);
        check(&with(r#""dataDir": 1"#), Code::InvalidConfig, &["\"dataDir\"", "string"]);
        check(&with(r#""dns": {"search": "x"}"#), Code::InvalidConfig, &["\"dns.search\""]);
        check(
            &with(r#""ipam": {"type": "host-local"}"#),
            Code::UnsupportedField,
            &["\"ipam.type\"", "host-local"],
        );
        let key = |json: &str, texts: &[&str]| check(&with(json), Code::InvalidConfig, texts);
        key(r#""ipam": {"subnet": "10.1.0.0/24"}"#, &["\"ipam", "subnet"]);
        key(r#""ipam": {"ranges": [{"subnet": "10.1.0.0/24"}]}"#, &["\"ipam.ranges[0]"]);
        key(r#""ipam": {"ranges": [[{"subnet": "x"}]]}"#, &["\"ipam.ranges[0][0].subnet\""]);
        key(r#""ipam": {"routes": [{"dst": "10/8"}]}"#, &["\"ipam.routes[0].dst\""]);
        let gw = r#""ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]}"#;
        key(gw, &["\"ipam.routes[0].gw\"", "169.254.1.1"]);
        let runtime = |json: &str| format!(r#""runtimeConfig": {{{json}}}"#);
        key(&runtime(r#""ips": "10.1.0.2""#), &["\"runtimeConfig.ips\""]);
        key(&runtime(r#""ips": ["10.1.0.2", "b"]"#), &["\"runtimeConfig.ips[1]\"", "\"b\""]);
        key(&runtime(r#""mac": "01:00:00:00:00:00""#), &["\"runtimeConfig.mac\"", "01:00"]);
        key(&runtime(r#""mac": 7"#), &["\"runtimeConfig.mac\"", "found 7"]);
        key(&runtime(r#""ipRanges": [[{}]]"#), &["\"runtimeConfig.ipRanges[0][0]", "subnet"]);
        key(&runtime(r#""dns": {"servers": "x"}"#), &["\"runtimeConfig.dns.servers\""]);
        key(r#""args": {"cni": {"ips": [1]}}"#, &["\"args.cni.ips[0]\""]);
        key(r#""args": {"cni": {"mac": "x"}}"#, &["\"args.cni.mac\"", "\"x\""]);
        key(r#""args": 1"#, &["\"args\"", "object"]);
        key(r#""args": {"cni": []}"#, &["\"args.cni\"", "object"]);
        check(
            &with(r#""cni.dev/valid-attachments": [{"containerID": "a"}]"#),
            Code::InvalidConfig,
            &["\"cni.dev/valid-attachments[0]\"", "ifname"],
        );
    }

    #[test]
    fn what_the_runtime_says_goes_before_what_was_typed() {
        let config = parse(
            r#"{"cniVersion": "1.0.0", "name": "pods",
                "ipam": {"type": "fairway", "ranges": [[{"subnet": "10.1.0.0/25"}]],
                         "routes": [{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8", "gw": "fe80::1"}]},
                "dns": {"nameservers": ["192.0.2.1"], "search": ["a"], "domain": "b"},
                "args": {"cni": {"ips": ["10.1.0.9"], "mac": "02:00:00:00:00:01"}},
                "runtimeConfig": {
                    "ipRanges": [[{"subnet": "10.1.0.128/25"}]], "mac": "02:00:00:00:00:02",
                    "ips": ["fd00::9/64"], "aliases": ["x"], "dns": {"Servers": ["192.0.2.2"]}}}"#,
        )
        .unwrap();
        assert_eq!(config.ranges.unwrap().key, "runtimeConfig.ipRanges");
        assert_eq!(config.routes.unwrap().len(), 2);
        assert_eq!(config.mac, Some([2, 0, 0, 0, 0, 2]));
        let keys: Vec<_> = config.wanted.iter().map(|wanted| wanted.key.as_str()).collect();
        assert_eq!(keys, ["args.cni.ips[0]", "runtimeConfig.ips[0]"]);
        assert_eq!(config.dns.nameservers, ["192.0.2.2"]);
        assert_eq!((config.dns.search[0].as_str(), config.dns.domain.as_str()), ("a", "b"));
    }

    #[test]
    fn a_bad_previous_result_is_met_only_when_it_is_needed() {
        let config =
            parse(r#"{"cniVersion": "1.0.0", "name": "n", "prevResult": {"ips": 1}}"#).unwrap();
        let failure = config.previous_result().unwrap_err();
        assert_eq!(failure.code, Code::Decode);
        assert!(failure.message.contains("prevResult"));
    }

    #[test]
    fn valid_attachments_under_either_name() {
        for key in [VALID_ATTACHMENTS, "cni.dev/attachments"] {
            let json = format!(
                r#"{{"cniVersion": "1.1.0", "name": "n",
                     "{key}": [{{"containerID": "a", "ifname": "eth0"}}]}}"#
            );
            assert_eq!(parse(&json).unwrap().valid_attachments.unwrap()[0].container_id, "a");
        }
    }
}
