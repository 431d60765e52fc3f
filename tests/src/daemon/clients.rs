//! Answers what clients ask.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::{Context, Result};
use fairway_netlink::NetNs;
use serde_json::Value;

use super::parts::Parts;
use super::spawn;
use crate::api::{Request, Response, Target};
use crate::cluster::Cluster;
use crate::kubelet;
use crate::manager;
use crate::objects::Kind;
use crate::process::Place;

/// What an answer may need.
pub(super) struct Desk {
    /// The lab.
    pub cluster: Arc<Cluster>,
    /// What runs in it.
    pub parts: Arc<Parts>,
    /// Where to say that the lab shall end.
    pub end: Sender<String>,
}

/// Answers clients, each on a thread of its own, as long as the process lives.
pub(super) fn serve(desk: Desk) -> Result<()> {
    let path = desk.cluster.names.socket();
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    let desk = Arc::new(desk);
    spawn("clients", move || {
        for stream in listener.incoming() {
            let served = stream.context("accept a client").and_then(|stream| {
                let desk = Arc::clone(&desk);
                spawn("client", move || {
                    if let Err(error) = desk.serve(stream) {
                        tracing::warn!("a client: {error:#}");
                    }
                })
            });
            if let Err(error) = served {
                tracing::error!("{error:#}");
            }
        }
    })?;
    Ok(())
}

impl Desk {
    fn serve(&self, mut stream: UnixStream) -> Result<()> {
        let reader = BufReader::new(stream.try_clone().context("duplicate the socket")?);
        for line in reader.lines() {
            let line = line.context("read a request")?;
            let answer = serde_json::from_str(&line)
                .context("read a request")
                .and_then(|request| self.answer(request))
                .unwrap_or_else(|error| Response::Error(format!("{error:#}")));
            let mut line = serde_json::to_vec(&answer).context("encode an answer")?;
            line.push(b'\n');
            stream.write_all(&line).context("answer")?;
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> Result<Response> {
        let cluster = &*self.cluster;
        Ok(match request {
            Request::Apply { objects } => Response::Done(manager::apply(cluster, objects)?),
            Request::Delete { keys, force } => {
                Response::Done(manager::delete(cluster, &keys, force)?)
            }
            Request::List { kind } => Response::Objects(list(cluster, kind)),
            Request::Model => Response::Model(Box::new(cluster.model()?)),
            Request::InStep => {
                manager::wait_in_step(cluster)?;
                Response::Done(Vec::new())
            }
            Request::Nodes => Response::Nodes(self.parts.nodes()),
            Request::Locate { target } => Response::Place(locate(cluster, &target)?),
            Request::Scale { key, replicas } => {
                Response::Done(manager::scale(cluster, &key, replicas)?)
            }
            Request::Logs { target } => Response::Files(logs(cluster, &target)?),
            Request::RestartAgent { node, kill } => {
                Response::Done(self.parts.restart_agent(&node, kill)?)
            }
            Request::Agent { node, run } => {
                self.parts.run_agent(&node, run)?;
                Response::Done(Vec::new())
            }
            Request::Gateway { node, run } => {
                self.parts.run_gateway(&node, run)?;
                Response::Done(Vec::new())
            }
            Request::Convert { node } => Response::Done(self.parts.convert(&node)?),
            Request::Power { node, power } => {
                self.parts.power(&node, power)?;
                Response::Done(Vec::new())
            }
            Request::Controlplane { run } => {
                self.parts.run_controlplane(run)?;
                Response::Done(Vec::new())
            }
            Request::Down => {
                // Nobody listens if the lab is on its way down already.
                let _ = self.end.send("asked to".to_owned());
                Response::Done(Vec::new())
            }
        })
    }
}

fn list(cluster: &Cluster, kind: Kind) -> Vec<Value> {
    let (objects, _) = cluster.store.snapshot();
    let found = objects.into_iter().filter(|(key, _)| key.kind == kind);
    found.map(|(_, object)| Arc::unwrap_or_clone(object)).collect()
}

fn locate(cluster: &Cluster, target: &Target) -> Result<Place> {
    let names = &cluster.names;
    Ok(match target {
        Target::Pod { namespace, name } => {
            let (key, pod) = manager::pod_of(cluster, namespace, name)?;
            let node =
                pod.spec.node_name.with_context(|| format!("{key}: is not on a node yet"))?;
            let uid = &pod.metadata.uid;
            let beside = cluster.pod_process(uid).with_context(|| {
                format!("{key}: nothing runs in it; see `fairway-lab logs {name}`")
            })?;
            let netns = if pod.spec.host_network {
                names.node_netns(&node)
            } else {
                names.pod_netns(namespace, name, uid)
            };
            Place {
                netns: NetNs::path(&netns),
                cgroup: names.pod_cgroup(&node, uid),
                beside: Some(beside),
            }
        }
        // On the node's own network.
        Target::Node { node } | Target::Gateway { node } => Place {
            netns: NetNs::path(&names.node_netns(&cluster.node(node)?.name)),
            cgroup: names.system_cgroup(node),
            beside: None,
        },
        Target::Client => Place {
            netns: NetNs::path(&names.client_netns()),
            cgroup: names.outside_cgroup(),
            beside: None,
        },
        Target::Controlplane | Target::Daemon => Place {
            netns: NetNs::path(&names.underlay_netns()),
            cgroup: names.outside_cgroup(),
            beside: None,
        },
    })
}

fn logs(cluster: &Cluster, target: &Target) -> Result<Vec<PathBuf>> {
    let names = &cluster.names;
    Ok(match target {
        Target::Pod { namespace, name } => {
            let (key, pod) = manager::pod_of(cluster, namespace, name)?;
            let containers = pod.spec.containers.iter();
            containers
                .map(|container| names.log(&kubelet::log_name(&key, &container.name)))
                .collect()
        }
        Target::Node { node } => vec![names.log(&cluster.node(node)?.name)],
        Target::Gateway { node } => vec![names.gateway_log(&cluster.node(node)?.name)],
        Target::Controlplane => vec![names.log("controlplane")],
        Target::Client | Target::Daemon => vec![names.log("daemon")],
    })
}
