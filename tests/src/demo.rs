//! The walk that shows what works: each step asks the cluster something, prints question and
//! answer, and checks the answer.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use fairway_model::{ObjectName, Service};
use serde_json::Value;

use crate::api::{NodeInfo, Target};
use crate::apps::load::{Failure, Load, Summary};
use crate::cli::tables;
use crate::cluster;
use crate::lab::{Lab, Lifetime};
use crate::manifest::{self, Manifests};
use crate::names::LabName;
use crate::objects::{Key, Kind, text};
use crate::topology::Backend;
use crate::wait::wait_until;

/// How to walk.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The lab's name
    #[arg(long, default_value = "demo")]
    name: LabName,
    /// Take the lab down at the end; the exit code says whether all was as it should be
    #[arg(long)]
    check: bool,
    /// How nodes reach each other's pods
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// Where the other binaries are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// The application: the guestbook that Kubernetes' own documentation has used for ten years.
const GUESTBOOK: [&str; 3] = [
    include_str!("../examples/guestbook/redis-master.yaml"),
    include_str!("../examples/guestbook/redis-slave.yaml"),
    include_str!("../examples/guestbook/frontend.yaml"),
];

/// Frontends asked for by the manifests.
const FRONTENDS: usize = 3;
/// A client's requests a second, and how many of them may be in flight.
const RATE: u32 = 200;
const IN_FLIGHT: u32 = 8;
/// How long a client goes on after something has happened.
const AFTERMATH: Duration = Duration::from_millis(1500);
/// After this time nothing new reaches an endpoint that has been removed.
const REMOVAL: Duration = Duration::from_secs(1);

/// Walks; fails if a step was not as it should be.
pub(crate) fn run(options: Options) -> Result<()> {
    let lifetime = if options.check { Lifetime::OfValue } else { Lifetime::Endless };
    let mut walk = Walk::default();
    walk.step("Start a cluster of three nodes on this machine");
    let lab = Lab::up_by_self(
        cluster::Options {
            backend: options.backend,
            bin_dir: options.bin_dir,
            ..cluster::Options::named(options.name)
        },
        lifetime,
        walk_note,
    )?;
    let name = lab.name().clone();
    type Step = fn(&mut Walk, &Lab) -> Result<()>;
    let steps: [(&str, Step); 7] = [
        ("Nodes run an agent each", nodes_are_ready),
        ("Pods get addresses from their node's range", pods_get_addresses),
        ("A Service, asked from a pod by its name", service_from_a_pod),
        ("The same NodePort on every node, asked from outside", node_port_from_outside),
        ("A frontend is deleted and replaced, under load", pod_is_deleted),
        ("A frontend is killed without a word, under load", pod_is_killed),
        ("Every agent is killed with SIGKILL, under load", agents_are_killed),
    ];
    for (title, step) in steps {
        walk.step(title);
        if let Err(error) = step(&mut walk, &lab) {
            walk.check(false, &format!("{error:#}"));
        }
    }
    // For the hint below; without a Service there is nothing to hint at.
    let page = node_port_urls(&lab, "/").unwrap_or_default().into_iter().next().unwrap_or_default();
    drop(lab);
    if !options.check {
        println!(
            "\nThe lab goes on running. Look around:\n  \
             fairway-lab get pods --name {name}\n  \
             fairway-lab get services --name {name}\n  \
             fairway-lab exec --name {name} --client -- curl -s {page}\n\
             Stop it:\n  \
             fairway-lab down --name {name}"
        );
    }
    println!("\n{} checks, {} failed", walk.checks, walk.failed);
    if walk.failed > 0 {
        bail!("{} of {} checks failed", walk.failed, walk.checks);
    }
    Ok(())
}

fn nodes_are_ready(walk: &mut Walk, lab: &Lab) -> Result<()> {
    let nodes = lab.nodes()?;
    walk.answer(&tables::nodes(&nodes));
    walk.check(nodes.iter().all(|node| node.ready), "all nodes are ready");
    Ok(())
}

fn pods_get_addresses(walk: &mut Walk, lab: &Lab) -> Result<()> {
    walk.question("fairway-lab apply -f tests/examples/guestbook");
    let mut manifests = Manifests::default();
    for text in GUESTBOOK {
        manifest::parse(text, &mut manifests)?;
    }
    walk.answer(&lab.apply_manifests(manifests)?.join("\n"));
    let frontends = lab.wait_for_pods("default", "tier", "frontend", FRONTENDS)?;
    lab.wait_for_pods("default", "tier", "backend", 3)?;
    for (service, count) in [("redis-master", 1), ("redis-slave", 2), ("frontend", FRONTENDS)] {
        lab.wait_for_endpoints(&ObjectName::new("default", service), count)?;
    }
    walk.question("fairway-lab get pods");
    let pods = lab.list(Kind::Pod)?;
    walk.answer(&tables::pods(&pods));
    let nodes = lab.nodes()?;
    walk.check(
        pods.iter().all(|pod| has_address_of_its_node(pod, &nodes)),
        "each pod's address is from its node's range",
    );
    let mut homes: Vec<_> = frontends.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
    homes.sort();
    homes.dedup();
    walk.check(homes.len() == nodes.len(), "every node has a frontend");
    Ok(())
}

fn service_from_a_pod(walk: &mut Walk, lab: &Lab) -> Result<()> {
    walk.question("fairway-lab get services");
    walk.answer(&tables::services(&lab.model()?.services.values().cloned().collect::<Vec<_>>()));
    let master = &lab.pods("default", "role", "master")?[0];
    let from = pod_target(master);
    let url = |query: &str| format!("http://frontend/guestbook.php?{query}");
    let written = walk.curl(lab, &from, &url("cmd=set&key=messages&value=Hello"))?;
    walk.check(written.contains("Updated"), "the entry is written to the redis master");
    // Replicas follow their master in their own time, and any of them may be asked.
    let read = url("cmd=get&key=messages");
    let mut in_a_row = 0;
    let replicated = wait_until(Duration::from_secs(20), "the entry on every replica", || {
        let has_it = lab.get(from.clone(), &read)?.contains("Hello");
        in_a_row = if has_it { in_a_row + 1 } else { 0 };
        Ok(in_a_row >= 8)
    });
    let answer = walk.curl(lab, &from, &read)?;
    replicated?;
    walk.check(answer.contains("Hello"), "and read back from a replica");
    Ok(())
}

fn node_port_from_outside(walk: &mut Walk, lab: &Lab) -> Result<()> {
    let urls = node_port_urls(lab, "/hostname")?;
    for url in &urls {
        let answer = walk.curl(lab, &Target::Client, url)?;
        walk.check(answer.starts_with("frontend-"), "a frontend answers");
    }
    let load = lab.start_load(Target::Client, &urls, RATE, IN_FLIGHT)?;
    thread::sleep(AFTERMATH);
    let summary = finish(walk, load)?;
    walk.check(summary.ok > 0 && summary.failed == 0, "no request fails");
    let fair = summary.ok / FRONTENDS as u64 / 2;
    walk.check(
        summary.by_pod.len() == FRONTENDS && summary.by_pod.values().all(|count| *count >= fair),
        "all three frontends take their part",
    );
    Ok(())
}

fn pod_is_deleted(walk: &mut Walk, lab: &Lab) -> Result<()> {
    let load = start_load(lab)?;
    let victim = a_frontend(lab)?;
    walk.question(&format!("fairway-lab delete pod {victim}"));
    walk.answer(&lab.delete(vec![Key::new(Kind::Pod, "default", &victim)], false)?.join("\n"));
    let pods = replaced(lab)?;
    walk.answer(&tables::pods(&pods));
    thread::sleep(AFTERMATH);
    let summary = finish(walk, load)?;
    walk.check(
        summary.ok > 0 && summary.failed == 0,
        "no request fails, though none is tried twice",
    );
    let served = |pod: &Value| {
        text(pod, "/metadata/name").is_some_and(|name| summary.by_pod.contains_key(&name))
    };
    walk.check(pods.iter().all(served), "the new frontend takes its part");
    Ok(())
}

fn pod_is_killed(walk: &mut Walk, lab: &Lab) -> Result<()> {
    let load = start_load(lab)?;
    let victim = a_frontend(lab)?;
    walk.question(&format!("fairway-lab delete pod {victim} --force"));
    let removed = since_1970();
    walk.answer(&lab.delete(vec![Key::new(Kind::Pod, "default", &victim)], true)?.join("\n"));
    replaced(lab)?;
    thread::sleep(AFTERMATH);
    let summary = finish(walk, load)?;
    // What had reached it when it died was cut off; what came later found nobody.
    let (in_flight, later): (Vec<&Failure>, Vec<&Failure>) =
        summary.failures.iter().partition(|failure| failure.was_answering);
    let last = later.iter().map(|failure| failure.started_ms).max();
    let window =
        last.map(|last| Duration::from_millis(last).saturating_sub(removed)).unwrap_or_default();
    walk.answer(&format!(
        "{} requests in flight were cut off; {} came too late for the news, the last {} ms after the removal",
        in_flight.len(),
        later.len(),
        window.as_millis()
    ));
    walk.check(
        in_flight.len() <= IN_FLIGHT as usize,
        "of the requests that reached it, only those in flight fail",
    );
    walk.check(window <= REMOVAL, "no new one reaches it a second after its removal");
    Ok(())
}

fn agents_are_killed(walk: &mut Walk, lab: &Lab) -> Result<()> {
    let load = start_load(lab)?;
    for node in lab.nodes()? {
        walk.question(&format!("fairway-lab restart-agent --kill {}", node.name));
        walk.answer(&lab.restart_agent(&node.name, true)?.join("\n"));
    }
    thread::sleep(AFTERMATH);
    let summary = finish(walk, load)?;
    walk.check(summary.ok > 0 && summary.failed == 0, "no request fails");
    walk.answer(&tables::nodes(&lab.nodes()?));
    Ok(())
}

/// Load on the guestbook's front page, slow enough that there is always something in flight.
fn start_load(lab: &Lab) -> Result<Load> {
    let urls = node_port_urls(lab, "/?delay=20")?;
    lab.start_load(Target::Client, &urls, RATE, IN_FLIGHT)
}

fn finish(walk: &mut Walk, load: Load) -> Result<Summary> {
    let summary = load.finish()?;
    let shares: Vec<String> =
        summary.by_pod.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
    walk.answer(&format!(
        "{} requests answered, {} failed, the slowest took {} ms\nanswered by: {}",
        summary.ok,
        summary.failed,
        summary.slowest_ms,
        shares.join(", ")
    ));
    for failure in summary.failures.iter().take(5) {
        walk.answer(&format!("failed after {} ms: {}", failure.took_ms, failure.error));
    }
    Ok(summary)
}

fn a_frontend(lab: &Lab) -> Result<String> {
    let pods = lab.pods("default", "tier", "frontend")?;
    let first = pods.first().context("there is no frontend")?;
    text(first, "/metadata/name").context("a frontend has no name")
}

/// Waits until all frontends are there, and endpoints.
fn replaced(lab: &Lab) -> Result<Vec<Value>> {
    let pods = lab.wait_for_pods("default", "tier", "frontend", FRONTENDS)?;
    lab.wait_for_endpoints(&ObjectName::new("default", "frontend"), FRONTENDS)?;
    Ok(pods)
}

fn service(lab: &Lab, name: &str) -> Result<Service> {
    let name = ObjectName::new("default", name);
    let service = lab.model()?.services.get(&name).cloned();
    let service = service.with_context(|| format!("the control plane knows no Service {name}"))?;
    if service.cluster_ips.is_empty() {
        bail!("Service {name} has no ClusterIP");
    }
    Ok(service)
}

fn node_port_urls(lab: &Lab, path: &str) -> Result<Vec<String>> {
    let port = service(lab, "frontend")?
        .ports
        .iter()
        .find_map(|port| port.node_port)
        .context("Service default/frontend has no node port")?;
    let nodes = lab.nodes()?;
    Ok(nodes.iter().map(|node| format!("http://{}:{port}{path}", node.addresses[0])).collect())
}

fn has_address_of_its_node(pod: &Value, nodes: &[NodeInfo]) -> bool {
    let address = text(pod, "/status/podIP").and_then(|ip| ip.parse::<IpAddr>().ok());
    let node = text(pod, "/spec/nodeName");
    let mut nodes = nodes.iter().filter(|info| Some(&info.name) == node.as_ref());
    match (address, nodes.next()) {
        (Some(address), Some(node)) => node.pod_cidrs.iter().any(|range| range.contains(&address)),
        _ => false,
    }
}

fn pod_target(pod: &Value) -> Target {
    Target::Pod {
        namespace: text(pod, "/metadata/namespace").unwrap_or_default(),
        name: text(pod, "/metadata/name").unwrap_or_default(),
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn walk_note(what: &str) {
    println!("   {what}");
}

/// What has been shown so far.
#[derive(Debug, Default)]
struct Walk {
    steps: u32,
    checks: u32,
    failed: u32,
}

impl Walk {
    fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}. {title}", self.steps);
    }

    fn question(&self, text: &str) {
        println!("   $ {text}");
    }

    fn answer(&self, text: &str) {
        for line in text.lines() {
            println!("     {line}");
        }
    }

    fn check(&mut self, good: bool, what: &str) {
        self.checks += 1;
        if good {
            println!("   ok: {what}");
        } else {
            self.failed += 1;
            println!("   NOT AS IT SHOULD BE: {what}");
        }
    }

    /// Asks once, from `from`; prints both sides.
    fn curl(&mut self, lab: &Lab, from: &Target, url: &str) -> Result<String> {
        let who = match from {
            Target::Pod { name, .. } => name,
            _ => "--client",
        };
        self.question(&format!("fairway-lab exec {who} -- curl {url}"));
        let output = lab.exec(from.clone(), &["curl", "-sS", "--max-time", "5", url])?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        self.answer(&answer);
        self.answer(&String::from_utf8_lossy(&output.stderr));
        Ok(answer)
    }
}
