//! Fairway itself: the real agent with a folder of manifests, on one node.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::plan::{PORT, Plan, TARGET_PORT};
use crate::bench::bed::{Bed, pod_range};
use crate::process;
use crate::topology::NodePlan;
use crate::underlay::UPLINK;

/// How long an agent has until it is ready.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it has to end.
const GRACE: Duration = Duration::from_secs(5);

/// A node's agent; ends with this value.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    manifests: PathBuf,
}

impl Agent {
    /// Starts it over an empty folder of manifests; returns when it is ready.
    pub(super) fn start(bed: &Bed, node: &NodePlan) -> Result<Self> {
        let names = &bed.cluster.names;
        let manifests = names.node_state(&node.name).join("manifests");
        fs::create_dir_all(&manifests)
            .with_context(|| format!("create {}", manifests.display()))?;
        let mut command = Command::new(&bed.cluster.programs.proxy);
        command
            .args(["--node-name", &node.name])
            .arg("--manifests")
            .arg(&manifests)
            .args(["--pod-cidr", &pod_range(node)?.to_string()])
            .args(["--service-cidr", &bed.cluster.options.service_cidr[0].to_string()])
            .args(["--uplink", UPLINK])
            .arg("--bpffs")
            .arg(names.node_bpffs(&node.name))
            .arg("--cgroup")
            .arg(names.node_cgroup(&node.name))
            .arg("--state-dir")
            .arg(names.node_state(&node.name).join("agent"))
            .arg("--socket")
            .arg(names.agent_socket(&node.name));
        let log = names.log(&node.name);
        process::supervised(&mut command, &log)?;
        bed.host(node).apply(&mut command)?;
        bed.check()?;
        let child = command.spawn().context("start fairway-proxy")?;
        let mut agent = Self { child, manifests };
        bed.wait_until(START_LIMIT, &format!("the agent of {}", node.name), || {
            if let Some(status) = agent.child.try_wait().context("watch the agent")? {
                bail!("it has ended: {status}");
            }
            Ok(bed.cluster.ask_agent(&node.name, "/healthz")?.status == 200)
        })
        .with_context(|| format!("its log ends with:\n{}\n", tail(&log)))?;
        Ok(agent)
    }

    /// Gives it the Services of `plan`: one file, which appears with its whole content.
    pub(super) fn write(&self, plan: &Plan) -> Result<()> {
        let file = self.manifests.join("services.yaml");
        let draft = self.manifests.with_extension("draft");
        fs::write(&draft, manifests(plan))
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        process::signal(&self.child, Signal::TERM);
        if let Err(error) = process::end(&mut self.child, GRACE) {
            eprintln!("end an agent: {error}");
        }
    }
}

/// The Services, each with its endpoints given: what would be read from an API server.
fn manifests(plan: &Plan) -> String {
    let [a, b] = plan.endpoints;
    let mut text = String::new();
    for service in plan.services() {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\n\
             apiVersion: v1\n\
             kind: Service\n\
             metadata: {{name: {name}, namespace: bench}}\n\
             spec:\n  \
               clusterIP: {address}\n  \
               ports: [{{name: http, port: {PORT}, targetPort: {TARGET_PORT}}}]\n\
             ---\n\
             apiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\n\
             metadata:\n  \
               name: {name}\n  \
               namespace: bench\n  \
               labels: {{kubernetes.io/service-name: {name}}}\n\
             addressType: IPv4\n\
             ports: [{{name: http, port: {TARGET_PORT}}}]\n\
             endpoints: [{{addresses: [{a}]}}, {{addresses: [{b}]}}]\n",
            name = service.name,
            address = service.address,
        );
    }
    text
}

/// The last lines of a log.
fn tail(log: &std::path::Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::plan::example;
    use super::*;
    use crate::manifest::{Manifests, parse};

    #[test]
    fn each_service_has_its_address_and_both_endpoints() {
        let mut read = Manifests::default();
        parse(&manifests(&example(2)), &mut read).unwrap();
        let names: Vec<String> = read.objects.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        let (_, service) = &read.objects[2];
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.12");
        let (_, slice) = &read.objects[3];
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "service-1");
        assert_eq!(slice["endpoints"][1]["addresses"][0], "10.244.0.4");
    }
}
