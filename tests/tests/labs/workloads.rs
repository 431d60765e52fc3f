//! Workloads of every kind become pods where and as they should.

use fairway_tests::api::Target;
use fairway_tests::{Key, Kind, Lab, Options, may_run, unique_name};
use serde_json::Value;

const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each, namespace: shop}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {containers: [{name: c, image: agnhost}]}
---
apiVersion: apps/v1beta1
kind: StatefulSet
metadata: {name: numbered, namespace: shop}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: numbered}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node2}
      containers: [{name: c, image: agnhost}]
---
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: old, namespace: shop}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: old}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: first
        image: agnhost
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1}
      - {name: second, image: busybox}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, labels: {app: host}}
spec:
  nodeName: node1
  hostNetwork: true
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: shop, labels: {app: nowhere}}
spec:
  nodeSelector: {disk: tape}
  containers: [{name: c, image: agnhost}]
";

#[test]
fn every_kind_runs_and_goes() {
    if !may_run("workloads") {
        return;
    }
    let lab = Lab::up(Options { nodes: 2, ..Options::named(unique_name("work")) }).unwrap();
    let lines = lab
        .apply(&format!(
            "{MANIFESTS}\n---\n{{apiVersion: v1, kind: ServiceCIDR, metadata: {{name: c}}}}"
        ))
        .unwrap();
    assert!(lines.last().unwrap().starts_with("ServiceCIDR c skipped"), "{lines:?}");
    let pods = |app: &str, count| lab.wait_for_pods("shop", "app", app, count).unwrap();
    let nodes = |pods: &[Value]| {
        let mut nodes: Vec<_> =
            pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap().to_owned()).collect();
        nodes.sort();
        nodes
    };
    assert_eq!(nodes(&pods("each", 2)), ["node1", "node2"]);
    let numbered = pods("numbered", 2);
    assert_eq!(nodes(&numbered), ["node2", "node2"]);
    assert_eq!(numbered[1]["metadata"]["name"], "numbered-1");
    let old = pods("old", 2);
    assert_eq!(old[0]["status"]["containerStatuses"].as_array().unwrap().len(), 2);

    let host = pods("host", 1).remove(0);
    assert_eq!(host["status"]["podIP"], "192.168.240.11");
    let answer = lab.get(Target::Client, "http://192.168.240.11:8080/hostname").unwrap();
    assert_eq!(answer, "host");

    let nowhere = lab.pods("shop", "app", "nowhere").unwrap().remove(0);
    assert_eq!(nowhere["status"]["conditions"][0]["reason"], "Unschedulable");

    lab.delete(vec![Key::new(Kind::Namespace, "", "shop")], false).unwrap();
    let left: Vec<Value> = lab.list(Kind::Pod).unwrap();
    assert!(left.is_empty(), "{left:?}");
}
