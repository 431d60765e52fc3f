//! What the environment says: which verb, for which container.

use std::ffi::OsString;
use std::net::IpAddr;

use fairway_netlink::{Mac, NetNs};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure, chain};
use crate::pool::Wanted;
use crate::version::Version;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The version of the specification that brought it.
    pub(crate) const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// What DEL gets by without does not stop it: it complains, and goes on with the default.
    pub(crate) fn unless_del<T: Default>(self, result: Result<T, Failure>) -> Result<T, Failure> {
        match result {
            Err(failure) if self == Self::Del => {
                eprintln!("fairway-cni: DEL ignores this: {}", failure.message);
                Ok(T::default())
            }
            other => other,
        }
    }
}

/// One interface of one container. Its JSON is the specification's, of GC's list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Attachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    #[serde(rename = "ifname")]
    pub(crate) interface: String,
}

/// The pod behind the container, as far as the runtime tells; empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// `IP`: the addresses asked for, as the reference plugins take them.
    pub(crate) wanted: Vec<Wanted>,
    /// `MAC`: of its interface.
    pub(crate) mac: Option<Mac>,
}

pub(crate) struct Call {
    pub(crate) command: Command,
}

impl Call {
    pub(crate) fn parse(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let names = Command::ALL.map(Command::name).join(", ");
        let name = variable(env, "CNI_COMMAND")?.ok_or_else(|| {
            invalid(format!(
                "CNI_COMMAND is not set: this program is executed by a container runtime, \
                 with CNI_COMMAND one of {names}"
            ))
        })?;
        let command = Command::ALL
            .into_iter()
            .find(|command| command.name() == name)
            .ok_or_else(|| invalid(format!("CNI_COMMAND {name:?} is none of {names}")))?;
        Ok(Self { command })
    }

    /// The container the call is about; all that is wrong with the variables in one error.
    pub(crate) fn container(
        &self,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<ContainerCall, Failure> {
        let mut problems = Vec::new();
        let mut required = |name: &str, check: fn(&str) -> Result<(), &'static str>| {
            let value = variable(env, name).and_then(|value| match value {
                Some(value) => match check(&value) {
                    Ok(()) => Ok(value),
                    Err(problem) => Err(invalid(format!("{name} {value:?} {problem}"))),
                },
                None => Err(invalid(format!("{name} is not set"))),
            });
            value.unwrap_or_else(|failure| {
                problems.push(failure.message);
                String::new()
            })
        };
        let container_id = required("CNI_CONTAINERID", check_container_id);
        let interface = required("CNI_IFNAME", check_interface);
        // DEL has to work without: the namespace may be gone, and is not needed.
        let netns = match self.command {
            Command::Del => String::new(),
            _ => required("CNI_NETNS", |_| Ok(())),
        };
        let pod = variable(env, "CNI_ARGS")
            .and_then(|arguments| parse_arguments(&arguments.unwrap_or_default()));
        let pod = self.command.unless_del(pod).unwrap_or_else(|failure| {
            problems.push(failure.message);
            Pod::default()
        });
        if problems.is_empty() {
            Ok(ContainerCall { attachment: Attachment { container_id, interface }, netns, pod })
        } else {
            Err(invalid(problems.join("; ")))
        }
    }
}

/// A call about one container.
#[derive(Debug)]
pub(crate) struct ContainerCall {
    pub(crate) attachment: Attachment,
    /// `CNI_NETNS`: a path; empty for DEL.
    pub(crate) netns: String,
    pub(crate) pod: Pod,
}

impl ContainerCall {
    /// Whom a person takes the call to be about.
    pub(crate) fn subject(&self) -> String {
        if self.pod.name.is_empty() {
            format!("container {}", self.attachment.container_id)
        } else {
            format!("{}/{}", self.pod.namespace, self.pod.name)
        }
    }

    /// The pod's network namespace, which must not be the node's.
    pub(crate) fn open_netns(&self) -> Result<NetNs, Failure> {
        let netns = NetNs::open(&self.netns)
            .map_err(|error| invalid(format!("CNI_NETNS: {}", chain(&error))))?;
        if netns == NetNs::current()? {
            return Err(invalid(format!("CNI_NETNS {} is the node's own namespace", self.netns)));
        }
        Ok(netns)
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidEnvironment, message)
}

/// An empty variable is an absent one.
fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, Failure> {
    match env(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
        Some(Err(value)) => Err(invalid(format!("{name} {value:?} is not UTF-8"))),
    }
}

fn check_container_id(id: &str) -> Result<(), &'static str> {
    if is_name(id) {
        Ok(())
    } else {
        Err("does not consist of a letter or digit and more of these, '_', '.' or '-'")
    }
}

fn check_interface(name: &str) -> Result<(), &'static str> {
    match name {
        "." | ".." => Err("is not an interface name"),
        _ if name.len() > 15 => Err("is longer than 15 bytes"),
        _ if name.contains(['/', ':']) || name.contains(char::is_whitespace) => {
            Err("contains a slash, a colon or white space")
        }
        _ => Ok(()),
    }
}

/// The specification's alphabet for container ids and network names.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// An address, or one with the length of its network, which says nothing here: a pod's is its own.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

/// Six bytes that one interface may have.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let of_one = mac[0] & 1 == 0 && mac != Mac::default();
    (of_one && parts.next().is_none()).then_some(mac)
}

/// `K=V;K=V`. Keys that mean nothing to us are for others in the chain.
fn parse_arguments(text: &str) -> Result<Pod, Failure> {
    let mut pod = Pod::default();
    for argument in text.split(';').filter(|argument| !argument.is_empty()) {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| invalid(format!("CNI_ARGS: {argument:?} is not KEY=VALUE")))?;
        match key {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            "IP" => {
                for text in value.split(',') {
                    let address = parse_address(text).ok_or_else(|| {
                        invalid(format!("CNI_ARGS: IP: {text:?} is not an IP address"))
                    })?;
                    pod.wanted.push(Wanted { key: "CNI_ARGS.IP".to_owned(), address });
                }
            }
            "MAC" => {
                let mac = parse_mac(value).ok_or_else(|| {
                    invalid(format!("CNI_ARGS: MAC: {value:?} is not an interface's MAC address"))
                })?;
                pod.mac = Some(mac);
            }
            _ => {}
        }
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(command: Command, variables: &[(&str, &str)], expected: &[&str]) {
        let env = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        };
        let failure = Call { command }.container(&env).unwrap_err();
        assert_eq!(failure.code, Code::InvalidEnvironment);
        for text in expected {
            assert!(failure.message.contains(text), "{text:?} in {:?}", failure.message);
        }
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        refused(Command::Add, &[], &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]);
        refused(
            Command::Del,
            &[("CNI_CONTAINERID", "-a")],
            &["CNI_CONTAINERID \"-a\"", "CNI_IFNAME"],
        );
        for name in ["..", "a/b", "a b", "a:b", "0123456789abcdef"] {
            let ok = ("CNI_CONTAINERID", "A1_.-");
            refused(Command::Del, &[ok, ("CNI_IFNAME", name)], &["CNI_IFNAME"]);
        }
        let named = [("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "x")];
        refused(Command::Add, &named, &["CNI_NETNS", "CNI_ARGS: \"x\""]);
    }

    #[test]
    fn pod_comes_from_the_arguments() {
        let pod =
            parse_arguments("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;X=a=b;")
                .unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "cart"));
        assert_eq!(parse_arguments("").unwrap(), Pod::default());
    }

    #[test]
    fn addresses_and_a_mac_come_from_the_arguments() {
        let pod = parse_arguments("IP=10.1.0.5/24,fd00::5;MAC=02-00-00-00-00-0a").unwrap();
        let wanted: Vec<_> = pod.wanted.iter().map(|wanted| wanted.address.to_string()).collect();
        assert_eq!(wanted, ["10.1.0.5", "fd00::5"]);
        assert_eq!(pod.mac, Some([2, 0, 0, 0, 0, 10]));
        for (wrong, text) in [("IP=10.1", "\"10.1\""), ("IP=", "\"\""), ("MAC=2", "MAC: \"2\"")] {
            let failure = parse_arguments(wrong).unwrap_err();
            assert!(failure.message.contains(text), "{text} in {}", failure.message);
        }
        for mac in [
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "02:00:00:00:00:01:02",
            "+2:00:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "",
        ] {
            assert_eq!(parse_mac(mac), None, "{mac}");
        }
    }

    #[test]
    fn commands() {
        let parse = |value: &'static str| Call::parse(&move |_| Some(value.into()));
        for command in Command::ALL {
            assert_eq!(parse(command.name()).unwrap().command, command);
        }
        for wrong in ["", "add", "REMOVE"] {
            assert!(parse(wrong).is_err_and(|f| f.message.contains("CNI_COMMAND")));
        }
    }
}
