//! A node whose agent has all names from a control plane, and a pod that asks it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use fairway_model::{
    Change, Model, Node as Object_, ObjectName, Pod, Protocol, Service, ServicePort,
};

use super::client::{Client, Site};
use super::ours;
use super::records::{Records, changing, endpoint};
use crate::bench::agent::Agent;
use crate::bench::bed::{self, Bed, NAMESPACE};
use crate::bench::control::ControlPlane;
use crate::bench::worker;
use crate::process::Place;
use crate::topology::NodePlan;

/// What pods ask: the address of `kube-system/kube-dns`.
pub(super) const SERVER: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 95, 0, 10), PORT));
const PORT: u16 = 53;
const POD: &str = "client";
/// From the pod's start to its first right answer, and from a change to one that has it.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two changes.
const APART: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Node<'a> {
    bed: &'a Bed,
    plan: &'a NodePlan,
    control: ControlPlane,
    agent: Agent,
    model: Model,
    /// The pod.
    pub(super) place: Place,
    client: Client,
    changes: u32,
}

impl<'a> Node<'a> {
    /// The bed's node of that index, whose agent runs on `cpu`, and has the kernel answer or not.
    pub(super) fn start(
        bed: &'a Bed,
        index: usize,
        records: Records,
        kernel: bool,
        cpu: usize,
    ) -> Result<Self> {
        let plan = bed.node(index)?;
        let mut model = Model::default();
        model.nodes.insert(Object_ {
            name: plan.name.clone(),
            addresses: plan.addresses.ips(),
            pod_cidrs: plan.pod_cidrs.clone(),
            ..Object_::default()
        });
        let pod = format!("{POD}-{index}");
        model.pods.insert(Pod {
            name: ObjectName::new(NAMESPACE, &pod),
            uid: bed::uid(plan, &pod),
            node: plan.name.clone(),
            ..Pod::default()
        });
        let port = |name: &str, protocol| ServicePort {
            name: name.to_owned(),
            protocol,
            port: PORT,
            ..ServicePort::default()
        };
        model.services.insert(Service {
            name: ObjectName::new("kube-system", "kube-dns"),
            cluster_ips: vec![SERVER.ip()],
            ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
            ..Service::default()
        });
        ours::put_all(records, &mut model);
        model.validate().map_err(|errors| anyhow!("the model is bad: {errors:?}"))?;
        let control = ControlPlane::start(bed, plan, model.clone())?;
        // Whoever is started stays where the one who starts it is.
        let here = worker::last_cpu()?;
        worker::settle_on(cpu)?;
        let kernel = if kernel { "on" } else { "off" };
        let arguments = ["--dns", "on", "--dns-kernel", kernel, "--dns-rate", "0"];
        let agent = Agent::follow_with(bed, plan, control.address, &arguments);
        worker::settle_on(here)?;
        let mut agent = agent?;
        agent.wait_until_ready(bed, plan)?;
        let place = bed.cni_pod(plan, &pod)?.place;
        let client = Client::of(SERVER, &Site::of(place.clone()))?;
        bed.wait_until(LIMIT, "a first answer", || {
            Ok(client.address(&changing())? == Some(endpoint(0, 0, 0)))
        })?;
        Ok(Self { bed, plan, control, agent, model, place, client, changes: 0 })
    }

    /// The agent's process.
    pub(super) fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// Queries that the kernel has answered so far.
    pub(super) fn answers_of_kernel(&self) -> Result<u64> {
        let answer = self.bed.cluster.ask_agent(&self.plan.name, "/metrics")?;
        let text = String::from_utf8_lossy(&answer.body);
        let values = text.lines().filter_map(|line| {
            line.strip_prefix("fairway_dns_kernel_answers_total{")?.rsplit(' ').next()
        });
        values.map(|value| value.parse::<u64>().context("read a metric")).sum()
    }

    /// Has an endpoint of a headless Service change its address; returns how long it took from then until the pod was told.
    pub(super) fn change(&mut self) -> Result<Duration> {
        // One that does not come soon after another, as the feed would gather them.
        thread::sleep(APART);
        self.changes += 1;
        self.model.apply(Change::Put(ours::endpoints(0, self.changes)));
        let (name, expected) = (changing(), endpoint(0, 0, self.changes));
        let model = self.model.clone();
        let began = Instant::now();
        self.control.publish(model);
        while self.client.address(&name)? != Some(expected) {
            ensure!(began.elapsed() < LIMIT, "the agent does not see a change");
        }
        Ok(began.elapsed())
    }
}
