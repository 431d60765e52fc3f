//! `fairway-proxy cleanup --kube-proxy`: takes away what kube-proxy left on the node.
//!
//! Its chains of iptables go by the tools that made them, its table of nftables and its device by netlink.
//! Rules of others stay, and so do the chains that the kubelet keeps beside kube-proxy's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use fairway_netlink::conntrack::{self, Phase};
use fairway_netlink::{Netlink, nftables};

use crate::uninstall::Report;

/// What `fairway-proxy cleanup` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Remove kube-proxy's rules, tables and device, when it does not run any more
    #[arg(long, required = true)]
    pub kube_proxy: bool,
}

/// The tools that show and change rules of both kinds and families. Those without a kind in their name
/// are of one of the two.
const TOOLS: [&str; 6] = [
    "iptables-legacy",
    "ip6tables-legacy",
    "iptables-nft",
    "ip6tables-nft",
    "iptables",
    "ip6tables",
];
const FAMILIES: [(u8, &str); 2] = [(nftables::IPV4, "ip"), (nftables::IPV6, "ip6")];
const TABLE: &str = "kube-proxy";
const DEVICE: &str = "kube-ipvs0";

/// Cleans up in the network namespace of the calling thread. An error means that nothing was done.
pub fn run(Options { kube_proxy: _ }: &Options) -> Result<Report> {
    if let Some(process) = running()? {
        bail!(
            "kube-proxy runs here (process {process}) and would put everything back: remove it first"
        );
    }
    let mut report = Report::or("nothing of kube-proxy's is on this node");
    let translated = translated();
    let mut tools = 0;
    for tool in TOOLS {
        report.step(saved(tool).and_then(|saved| {
            let Some(saved) = saved else { return Ok(None) };
            tools += 1;
            remove_chains(tool, &saved)
        }));
    }
    for (family, name) in FAMILIES {
        let removed = nftables::delete_table(family, TABLE).map_err(anyhow::Error::from);
        let said = |there: bool| there.then(|| format!("removed nftables table {name} {TABLE}"));
        report.step(removed.map(said));
    }
    if report.has_done() {
        report.step(translated.map(|count| {
            (count > 0).then(|| {
                format!(
                    "note: the kernel still translates {count} open connections; unless others have rules \
                     that translate, too, these end now"
                )
            })
        }));
    }
    report.step(remove_device());
    report.step(Ok((tools == 0).then(|| {
        "note: there is no iptables here, so kube-proxy's rules of it are neither seen nor removed; \
         run this where it is (a container has none), or restart the node"
            .to_owned()
    })));
    report.step(Ok(fs::read_to_string("/proc/net/ip_vs")
        .ok()
        .filter(|text| has_servers(text))
        .map(|_| {
            "note: there are virtual servers of IPVS, which without that device get no packets of \
             Services; ipvsadm --clear removes all of them, those of others included"
                .to_owned()
        })));
    Ok(report)
}

/// How many open connections lead elsewhere than to where they were opened, by the kernel and not by an
/// agent.
fn translated() -> Result<usize> {
    let mut count = 0;
    if conntrack::count() > 0 {
        conntrack::connections(|connection| {
            let led = connection.original.destination != connection.answers.source;
            count += usize::from(led && connection.phase == Phase::Open);
            ControlFlow::Continue(())
        })?;
    }
    Ok(count)
}

/// A process of that name in this network namespace, as far as processes can be seen from here.
fn running() -> Result<Option<String>> {
    let here =
        fs::read_link("/proc/thread-self/ns/net").context("look at the network namespace")?;
    for process in fs::read_dir("/proc").context("list processes")? {
        let process = process.context("list processes")?;
        // One that ends meanwhile has no name any more.
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let is_here = || fs::read_link(process.path().join("ns/net")).is_ok_and(|at| at == here);
        if name.trim_end() == "kube-proxy" && is_here() {
            return Ok(Some(process.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Whether the kernel's list has more than its head.
fn has_servers(text: &str) -> bool {
    text.lines().any(|line| ["TCP", "UDP", "SCTP", "FWM"].iter().any(|kind| line.starts_with(kind)))
}

fn remove_device() -> Result<Option<String>> {
    let mut netlink = Netlink::open()?;
    match netlink.link(DEVICE)? {
        Some(link) => {
            netlink.delete_link(link.index)?;
            Ok(Some(format!("removed device {DEVICE}")))
        }
        None => Ok(None),
    }
}

/// What one of the tools shows; none where it is not installed.
fn saved(tool: &str) -> Result<Option<String>> {
    let save = format!("{tool}-save");
    let output = match Command::new(&save).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        output => output.with_context(|| format!("start {save}"))?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        // A kernel without such rules has none of them.
        let none = ["does not exist", "not supported", "Protocol not"];
        if none.iter().any(|text| said.contains(text)) {
            return Ok(Some(String::new()));
        }
        bail!("{save}: {}: {}", output.status, said.trim());
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// By one of the tools, of what it shows.
fn remove_chains(tool: &str, saved: &str) -> Result<Option<String>> {
    let Removal { script, chains, rules } = removal(saved);
    if chains == 0 {
        return Ok(None);
    }
    let restore = format!("{tool}-restore");
    let mut child = Command::new(&restore)
        .args(["--noflush", "--wait", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {restore}"))?;
    let written = child.stdin.take().context("its input")?.write_all(script.as_bytes());
    let output = child.wait_with_output().with_context(|| format!("wait for {restore}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{restore}: {}: {}", output.status, said.trim());
    }
    written.with_context(|| format!("write to {restore}"))?;
    Ok(Some(format!("removed {chains} chains of {tool}, and {rules} rules that led to them")))
}

/// What takes kube-proxy's chains away.
#[derive(Debug, Default, PartialEq, Eq)]
struct Removal {
    /// For `iptables-restore --noflush`.
    script: String,
    chains: usize,
    /// In chains of others.
    rules: usize,
}

/// From what `iptables-save` prints.
fn removal(saved: &str) -> Removal {
    /// Of one table: chains to go, and rules of others that lead to them.
    #[derive(Default)]
    struct Table<'a> {
        chains: Vec<&'a str>,
        rules: Vec<&'a str>,
    }
    let mut tables: BTreeMap<&str, Table<'_>> = BTreeMap::new();
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            if is_kube_proxys(name) {
                tables.entry(table).or_default().chains.push(name);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split(' ').next().unwrap_or_default();
            if !is_kube_proxys(chain) && target(rule).is_some_and(is_kube_proxys) {
                tables.entry(table).or_default().rules.push(rule);
            }
        }
    }
    let mut removal = Removal::default();
    for (name, Table { chains, rules }) in tables {
        let script = &mut removal.script;
        // Writing to a string cannot fail. A chain that is named is emptied.
        let _ = writeln!(script, "*{name}");
        for chain in &chains {
            let _ = writeln!(script, ":{chain} - [0:0]");
        }
        for rule in &rules {
            let _ = writeln!(script, "-D {rule}");
        }
        for chain in &chains {
            let _ = writeln!(script, "-X {chain}");
        }
        let _ = writeln!(script, "COMMIT");
        removal.chains += chains.len();
        removal.rules += rules.len();
    }
    removal
}

/// Where a rule leads. What stands in quotes is a comment.
fn target(rule: &str) -> Option<&str> {
    let mut words = Vec::new();
    for (index, part) in rule.split('"').enumerate() {
        if index % 2 == 0 {
            words.extend(part.split_whitespace());
        }
    }
    let at = words.iter().position(|word| matches!(*word, "-j" | "-g"))?;
    words.get(at + 1).copied()
}

/// Whether it is a chain of kube-proxy's; the kubelet and network policies of others have chains whose
/// names begin alike.
fn is_kube_proxys(chain: &str) -> bool {
    const CHAINS: [&str; 13] = [
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-LOAD-BALANCER",
        "KUBE-MARK-MASQ",
        "KUBE-NODE-PORT",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-PROXY-CANARY",
        "KUBE-PROXY-FIREWALL",
        "KUBE-SERVICES",
        "KUBE-SOURCE-RANGES-FIREWALL",
    ];
    const FAMILIES: [&str; 6] =
        ["KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-SVL-", "KUBE-EXT-"];
    CHAINS.contains(&chain) || FAMILIES.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::sandbox;

    const SAVED: &str = r#"# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:KUBE-SEP-XYZ - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -p tcp -m tcp --dport 9 -m comment --comment "not -j KUBE-SERVICES" -j ACCEPT
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "shop/web" -m tcp --dport 80 -j KUBE-SVC-ABC
-A KUBE-SVC-ABC -j KUBE-SEP-XYZ
-A KUBE-SEP-XYZ -s 10.244.0.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-XYZ -p tcp -m tcp -j DNAT --to-destination 10.244.0.2:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -j KUBE-ROUTER-INPUT
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
COMMIT
"#;

    /// What is to be left of it.
    const LEFT: [&str; 9] = [
        "-A INPUT -j KUBE-FIREWALL",
        "-A INPUT -j KUBE-ROUTER-INPUT",
        "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
        "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000",
        "-A PREROUTING -p tcp -m tcp --dport 9 -m comment --comment \"not -j KUBE-SERVICES\" -j ACCEPT",
        ":KUBE-FIREWALL",
        ":KUBE-KUBELET-CANARY",
        ":KUBE-MARK-DROP",
        ":KUBE-ROUTER-INPUT",
    ];

    #[test]
    fn what_is_kube_proxys_goes_and_what_is_others_stays() {
        let expected = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:KUBE-SEP-XYZ - [0:0]
:KUBE-MARK-MASQ - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-ABC
-X KUBE-SEP-XYZ
-X KUBE-MARK-MASQ
COMMIT
"#;
        let removal = removal(SAVED);
        assert_eq!(removal.script, expected);
        assert_eq!((removal.chains, removal.rules), (4, 1));
    }

    #[test]
    fn a_list_of_virtual_servers_has_a_head() {
        let head =
            "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler\n";
        assert!(!has_servers(head));
        assert!(has_servers(&format!("{head}TCP  0A600001:0050 rr\n")));
    }

    #[test]
    fn a_node_is_cleaned_by_the_tools_it_has_and_only_once() {
        sandbox(|_| {
            let run = |program: &str, words: &str, input: &str| {
                let mut child = Command::new(program)
                    .args(words.split_whitespace())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .ok()?;
                // A tool that refuses does not read.
                let _ = child.stdin.take()?.write_all(input.as_bytes());
                let output = child.wait_with_output().ok()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                output.status.success().then_some(text)
            };
            // As far as this kernel and its tools have such rules.
            let kinds = ["iptables-legacy", "iptables-nft"];
            let used: Vec<&str> = kinds
                .into_iter()
                .filter(|tool| run(&format!("{tool}-restore"), "", SAVED).is_some())
                .collect();
            assert!(!used.is_empty(), "neither kind of iptables works here");
            let nft = "add table ip kube-proxy\nadd chain ip kube-proxy services\n\
                       add chain ip kube-proxy web\nadd rule ip kube-proxy services jump web\n\
                       add table ip6 kube-proxy\nadd table ip others\n";
            run("nft", "-f -", nft).expect("nftables");
            // Of a kind that every kernel of ours has.
            Netlink::open().and_then(|mut n| n.create_bridge(DEVICE)).expect("a device");

            let options = Options { kube_proxy: true };
            let report = super::run(&options).expect("a report");
            assert!(report.is_complete(), "{report}");
            let said = report.to_string();
            for tool in &used {
                assert!(said.contains(&format!("removed 4 chains of {tool},")), "{said}");
            }
            for part in ["table ip kube-proxy", "table ip6 kube-proxy", "device kube-ipvs0"] {
                assert!(said.contains(part), "{said}");
            }
            for tool in &used {
                let saved = run(&format!("{tool}-save"), "", "").expect("rules");
                let left = saved
                    .lines()
                    .filter(|line| line.starts_with(":KUBE") || line.starts_with("-A"));
                let left = left.map(|line| line.split(" - [").next().expect("a line"));
                let mut left: Vec<&str> = left.collect();
                left.sort();
                left.dedup();
                assert_eq!(left, LEFT, "{tool}");
            }
            let tables = run("nft", "list tables", "").expect("nftables");
            assert!(!tables.contains("kube-proxy") && tables.contains("ip others"), "{tables}");
            let again = super::run(&options).expect("a report");
            assert_eq!(again.to_string(), "nothing of kube-proxy's is on this node");
        });
    }
}
