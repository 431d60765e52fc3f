//! A pod's life on its node.
//!
//! ```text
//! namespace, CNI ADD ─► containers start ─► run, probed, restarted ─► SIGTERM ─► (grace) SIGKILL
//!        │ fails: undone, again later                                                  │
//!        └─────────────────────────────────────────────────────────► CNI DEL, pod removed
//! ```

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_model::Service;
use fairway_netlink::{NetNs, Netlink};
use rustix::process::Signal;
use serde_json::Value;

use super::cni::Attachment;
use super::container::{Container, Setting};
use super::environment;
use super::status::{ContainerStatus, pod_status};
use crate::cluster::Cluster;
use crate::objects::{Key, Kind, text, view};
use crate::process::{Disguise, Place, TICK};
use crate::spec::{Pod, RestartPolicy, has_cluster_ip};
use crate::store::is_terminating;
use crate::sweep;
use crate::topology::NodePlan;
use crate::underlay;
use crate::wait::wait_until;

/// How long a container's start waits for the ClusterIPs of its namespace's Services.
const SERVICES_LIMIT: Duration = Duration::from_secs(5);
/// Pauses before a failed sandbox is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Runs the pod of this name and UID until it is gone or the lab stops.
pub(super) fn run(cluster: &Arc<Cluster>, key: &Key, uid: &str) {
    let Some(object) = cluster.store.get(key) else {
        return;
    };
    let worker = view::<Pod>(key, &object).and_then(|pod| {
        let node = cluster.node(pod.spec.node_name.as_deref().unwrap_or_default())?;
        Ok(Worker {
            cluster,
            key,
            netns: if pod.spec.host_network {
                cluster.names.node_netns(&node.name)
            } else {
                cluster.names.pod_netns(&key.namespace, &key.name, uid)
            },
            node,
            uid,
            pod,
            published: RefCell::default(),
        })
    });
    match worker {
        Ok(worker) => worker.run(),
        Err(error) => tracing::error!("{error:#}"),
    }
}

struct Worker<'a> {
    cluster: &'a Cluster,
    key: &'a Key,
    uid: &'a str,
    pod: Pod,
    node: &'a NodePlan,
    netns: String,
    /// What the pod's object says already.
    published: RefCell<Vec<ContainerStatus>>,
}

/// What the user wants of the pod now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    /// In its own time, at most this long.
    End(Duration),
    /// Its object is gone already.
    EndNow,
    /// The lab stops; the sweep takes care of everything.
    Abandon,
}

impl Worker<'_> {
    fn run(&self) {
        if !self.pod.spec.init_containers.is_empty() {
            tracing::warn!("{}: initContainers are left out: a lab does not run them", self.key);
        }
        let mut containers = self.new_containers();
        let mut addresses = Vec::new();
        while let Some(found) = self.make_sandbox(&containers) {
            tracing::info!("{}: on {} as {found:?}", self.key, self.node.name);
            addresses = found;
            self.keep_running(&mut containers, &addresses);
            if !self.is_off() {
                break;
            }
            self.lose(&mut containers);
        }
        while self.is_off() && !self.cluster.is_stopping() {
            std::thread::sleep(TICK); // nobody there hears that it shall end
        }
        if self.wish() == Wish::Abandon {
            return;
        }
        self.end(&mut containers, &addresses);
        if let Err(error) = self.remove_sandbox() {
            tracing::error!("{}: {error:#}", self.key);
        }
        let dir = self.cluster.names.pod_state(self.uid);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::error!("{}: remove {}: {error}", self.key, dir.display());
        }
        if self.object().is_some()
            && let Err(error) = self.cluster.store.remove(self.key)
        {
            tracing::error!("{}: {error:#}", self.key);
        }
        tracing::info!("{}: gone", self.key);
    }

    fn new_containers(&self) -> Vec<Container> {
        let policy = self.pod.spec.restart_policy.unwrap_or(RestartPolicy::Always);
        let specs = self.pod.spec.containers.iter().cloned();
        specs.map(|spec| Container::new(spec, policy)).collect()
    }

    /// The pod's object, unless it has been replaced by another of its name.
    fn object(&self) -> Option<Arc<Value>> {
        let object = self.cluster.store.get(self.key)?;
        (text(&object, "/metadata/uid").as_deref() == Some(self.uid)).then_some(object)
    }

    fn wish(&self) -> Wish {
        if self.cluster.is_stopping() {
            return Wish::Abandon;
        }
        match self.object() {
            None => Wish::EndNow,
            Some(object) if is_terminating(&object) => {
                let asked = object.pointer("/metadata/deletionGracePeriodSeconds");
                let seconds = asked.and_then(Value::as_u64);
                Wish::End(Duration::from_secs(seconds.unwrap_or(self.pod.spec.grace_seconds())))
            }
            Some(_) => Wish::Run,
        }
    }

    /// Whether the pod's node has no power.
    fn is_off(&self) -> bool {
        self.cluster.is_off(&self.node.name)
    }

    /// What becomes of the pod when its node's power goes.
    fn lose(&self, containers: &mut [Container]) {
        let gone = sweep::kill_all(&self.cgroup()).and_then(|()| {
            if !self.pod.spec.host_network {
                NetNs::delete(&self.netns)?;
            }
            containers.iter_mut().for_each(Container::lose);
            self.cluster.note_pod_process(self.uid, None);
            sweep::remove_cgroup(&self.cgroup())
        });
        if let Err(error) = gone {
            tracing::error!("{}: {error:#}", self.key);
        }
        // What the object says is of the time before.
        self.published.take();
    }

    /// The pod's addresses once it has its network; `None` if it shall end before.
    fn make_sandbox(&self, containers: &[Container]) -> Option<Vec<IpAddr>> {
        let mut pause = FIRST_PAUSE;
        while self.wish() == Wish::Run {
            if self.is_off() {
                pause = FIRST_PAUSE;
                std::thread::sleep(TICK);
                continue;
            }
            match self.try_sandbox() {
                Ok(addresses) => return Some(addresses),
                Err(error) => {
                    let message = format!("{error:#}");
                    tracing::warn!("{}: {message}", self.key);
                    self.publish_message(containers, &message);
                }
            }
            let retry = Instant::now() + pause;
            while self.wish() == Wish::Run && !self.is_off() && Instant::now() < retry {
                std::thread::sleep(TICK);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        None
    }

    fn try_sandbox(&self) -> Result<Vec<IpAddr>> {
        let cgroup = self.cgroup();
        fs::create_dir_all(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        if self.pod.spec.host_network {
            return Ok(self.node.addresses.ips());
        }
        let mut links = Netlink::open_in(&NetNs::create(&self.netns)?)?;
        // A runtime has the plugin `loopback` do this.
        if let Some(loopback) = links.link("lo")? {
            links.set_up(loopback.index)?;
        }
        let added = self.attachment().add().and_then(|addresses| {
            if self.cluster.options.xdp.is_forced() {
                underlay::finish_checksums(&self.netns)?;
            }
            Ok(addresses)
        });
        if added.is_err() {
            self.remove_sandbox()?;
        }
        added
    }

    fn remove_sandbox(&self) -> Result<()> {
        let mut deleted = Ok(());
        if !self.pod.spec.host_network {
            // A runtime calls DEL before the namespace goes, and removes it whatever DEL says.
            deleted = self.attachment().delete();
            NetNs::delete(&self.netns)?;
        }
        sweep::remove_cgroup(&self.cgroup())?;
        deleted
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment {
            cluster: self.cluster,
            node: &self.node.name,
            pod: &self.pod.metadata,
            containers: &self.pod.spec.containers,
            netns: &self.netns,
        }
    }

    fn cgroup(&self) -> PathBuf {
        self.cluster.names.pod_cgroup(&self.node.name, self.uid)
    }

    /// Returns when the pod shall end, or its node's power goes.
    fn keep_running(&self, containers: &mut [Container], addresses: &[IpAddr]) {
        let node = match NetNs::open(NetNs::path(&self.cluster.names.node_netns(&self.node.name))) {
            Ok(node) => node,
            Err(error) => return tracing::error!("{}: {error}", self.key),
        };
        while self.wish() == Wish::Run && !self.is_off() {
            for (index, container) in containers.iter_mut().enumerate() {
                container.watch();
                if container.is_due() {
                    self.start(container, index, addresses);
                }
                if let Some(address) = addresses.first() {
                    container.probe(&node, *address);
                }
            }
            self.publish(containers, addresses);
            std::thread::sleep(TICK);
        }
    }

    fn start(&self, container: &mut Container, index: usize, addresses: &[IpAddr]) {
        let services = self.services();
        let host = self.node.addresses.ips()[0];
        let variables =
            environment::variables(&self.pod, container.spec(), &services, addresses, host);
        let name = &container.spec().name;
        let dir = self.cluster.names.pod_state(self.uid).join(name);
        let programs = &self.cluster.programs;
        let program = self.cluster.images.program(
            container.spec(),
            index == 0,
            &variables,
            &dir,
            &programs.lab,
        );
        let setting = self.disguise(addresses).map(|disguise| Setting {
            place: Place { netns: NetNs::path(&self.netns), cgroup: self.cgroup(), beside: None },
            disguise,
            log: self.cluster.names.log(&log_name(self.key, name)),
            dir,
        });
        match setting {
            Ok(setting) => container.start(program, &variables, &setting),
            Err(error) => tracing::error!("{}: {error:#}", self.key),
        }
    }

    /// The Services of the pod's namespace, once the control plane has given addresses to all of
    /// them and the node knows them, or there has been time enough.
    ///
    /// A pod here starts within milliseconds, and so may ask for a Service before its node has
    /// heard of it; where images are pulled first, nobody notices.
    fn services(&self) -> Vec<Service> {
        if self.pod.spec.enable_service_links == Some(false) {
            return Vec::new();
        }
        let mut services = Vec::new();
        let mut wanted = None;
        let complete = wait_until(SERVICES_LIMIT, "the addresses of Services", || {
            if self.wish() != Wish::Run {
                return Ok(true);
            }
            let (objects, _) = self.cluster.store.snapshot();
            let asked = objects.iter().filter(|(key, object)| {
                key.kind == Kind::Service
                    && key.namespace == self.key.namespace
                    && has_cluster_ip(object)
            });
            let asked = asked.count();
            if asked == 0 {
                return Ok(true);
            }
            let known = self.cluster.model()?.services;
            services = known
                .values()
                .filter(|service| service.name.namespace == self.key.namespace)
                .filter(|service| !service.cluster_ips.is_empty())
                .cloned()
                .collect();
            if services.len() < asked {
                return Ok(false);
            }
            let progress = self.cluster.progress()?;
            let wanted = *wanted.get_or_insert(progress.revision);
            Ok(progress.applied(&self.node.name) >= Some(wanted))
        });
        if let Err(error) = complete {
            tracing::warn!("{}: starts without some Services' variables: {error:#}", self.key);
        }
        services
    }

    /// Writes the files that the pod sees in place of the machine's.
    fn disguise(&self, addresses: &[IpAddr]) -> Result<Disguise> {
        let folder = self.cluster.names.pod_state(self.uid).join("etc");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let hostname = environment::hostname(&self.pod).to_owned();
        // Of a machine without, there is nothing to say.
        let machine = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let files = [
            ("hosts", environment::hosts_file(&self.pod, addresses)),
            ("resolv.conf", environment::resolv_conf(&self.pod, self.cluster.dns(), &machine)),
            ("hostname", format!("{hostname}\n")),
        ];
        let mut binds = Vec::new();
        for (name, text) in files {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            binds.push((file, PathBuf::from("/etc").join(name)));
        }
        Ok(Disguise { hostname, files: binds })
    }

    /// Ends what runs, in the pod's own time if it has any.
    fn end(&self, containers: &mut [Container], addresses: &[IpAddr]) {
        let asked = Instant::now();
        if matches!(self.wish(), Wish::End(_)) {
            for container in containers.iter() {
                container.signal(Signal::TERM);
            }
        }
        while let Wish::End(grace) = self.wish() {
            for container in containers.iter_mut() {
                container.watch();
            }
            self.publish(containers, addresses);
            let still_runs = containers.iter().any(|container| container.pid().is_some());
            if !still_runs || asked.elapsed() >= grace {
                break;
            }
            std::thread::sleep(TICK);
        }
        // Also what the containers started, and what was executed in the pod.
        if let Err(error) = sweep::kill_all(&self.cgroup()) {
            tracing::error!("{}: {error:#}", self.key);
        }
        for container in containers.iter_mut() {
            container.reap();
        }
        self.cluster.note_pod_process(self.uid, None);
    }

    fn publish(&self, containers: &[Container], addresses: &[IpAddr]) {
        let all: Vec<_> = containers.iter().map(Container::status).collect();
        if *self.published.borrow() != all {
            self.write_status(pod_status(&self.node.addresses.ips(), addresses, &all));
            self.published.replace(all);
        }
        // `exec` starts beside this process.
        let pid = containers.iter().find_map(Container::pid);
        self.cluster.note_pod_process(self.uid, pid);
    }

    /// A pod without network: says why.
    fn publish_message(&self, containers: &[Container], message: &str) {
        let all: Vec<_> = containers.iter().map(Container::status).collect();
        let mut status = pod_status(&self.node.addresses.ips(), &[], &all);
        status["message"] = message.into();
        self.write_status(status);
    }

    fn write_status(&self, status: Value) {
        if self.object().is_none() {
            return;
        }
        let written = self.cluster.store.update(self.key, |pod| {
            // Looked at again under the lock: the name may have passed to another pod.
            if pod["metadata"]["uid"] == self.uid {
                pod["status"] = status;
            }
        });
        if let Err(error) = written {
            tracing::error!("{}: {error:#}", self.key);
        }
    }
}

/// Under which name a container's output is logged.
pub(crate) fn log_name(pod: &Key, container: &str) -> String {
    format!("{}.{}.{container}", pod.namespace, pod.name)
}
