//! Gateways on nodes: from a client outside, over what an Ingress says, to pods of any node, while everything changes.

mod programs;
mod readme;
mod rolling;
mod scan;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::apiserver::Authority;
use fairway_tests::wait::wait_until;
use fairway_tests::{Key, Kind, Lab, Options, needs_manifests, two_nodes};
use serde_json::json;

/// A change of an object is in force within this time, also on a machine that has much else to do.
const NEWS: Duration = Duration::from_secs(10);

/// For clients that ask for addresses, and for one that calls its host `lab`.
const MORE: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: any, namespace: shop}
spec:
  ingressClassName: fairway
  rules:
  - http:
      paths:
      - {path: /hostname, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}
";

#[test]
fn gateways_serve_pods_of_all_nodes_while_everything_changes() {
    let images = programs::images();
    let change = |options: &mut Options| {
        options.gateways = 2;
        options.images = Some(images.path().to_owned());
    };
    let Some(lab) = two_nodes("ingress", change) else { return };
    readme::commands_do_what_they_say(&lab);
    let site = Site::new(&lab);
    examples_are_served_as_they_are(&site);
    let why = "they have nothing to do with where Ingresses come from";
    let programs =
        needs_manifests("programs of others", why) && programs::of_others_are_served(&site);
    let scans = if programs { scan::start(&site) } else { Vec::new() };
    pods_are_reached_on_other_nodes_and_by_gateways_alone(&site);
    no_request_fails_while_endpoints_come_and_go(&site);
    what_is_under_way_does_not_notice_edits(&site);
    a_broken_secret_changes_nothing_and_a_good_one_is_taken(&site);
    scans.into_iter().for_each(scan::Scan::finish);
    a_gateway_that_is_killed_is_alone_in_it(&site);
    if programs {
        rolling::gateways_are_replaced_one_by_one(&site);
    }
}

/// Also with pods that gateways alone may ask: the shop's.
fn examples_are_served_as_they_are(site: &Site) {
    for node in &site.nodes {
        let answer = site.ask(node, "https://shop.example.com/header?key=X-Forwarded-For", "shop");
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, site.client.as_str()),
            "{answer:?}"
        );
        let answer = site.ask(node, "https://shop.example.com/header?key=X-Real-IP", "shop");
        assert_eq!(answer.body, site.client);
        let answer = site.ask(node, "http://shop.example.com/a?b", "shop");
        let location = "location: https://shop.example.com/a?b";
        assert!(answer.status == 308 && answer.head.contains(location), "{answer:?}");
        assert_eq!(site.ask(node, "https://shop.example.com/cart", "shop").status, 503);
        assert_eq!(site.ask(node, "http://unknown.example.com/", "shop").status, 404);

        // Another name, another certificate; the Service's port leads to what each container calls so.
        let answer = site.ask(node, "https://tomcat.example.com/hostname", "tomcat");
        assert!(answer.body.starts_with("tomcat-"), "{answer:?}");
        let answer = site.ask(node, "http://nginx.example.com/hostname", "shop");
        assert!(answer.body.starts_with("nginx-deployment-"), "{answer:?}");
    }
}

fn pods_are_reached_on_other_nodes_and_by_gateways_alone(site: &Site) {
    let Site { lab, .. } = site;
    lab.scale(Key::new(Kind::Deployment, "shop", "web"), 1).unwrap();
    let pods = lab.wait_for_pods("shop", "app", "web", 1).unwrap();
    lab.wait_for_endpoints(&ObjectName::new("shop", "web"), 1).unwrap();
    let name = pods[0]["metadata"]["name"].as_str().unwrap();
    // It is on one of the two nodes, so one of these gateways is on the other one.
    for node in &site.nodes {
        assert_eq!(site.ask(node, "https://shop.example.com/hostname", "shop").body, name);
    }
    let stranger = &lab.wait_for_pods("default", "app", "tomcat", 2).unwrap()[0];
    let stranger = Target::Pod {
        namespace: "default".to_owned(),
        name: stranger["metadata"]["name"].as_str().unwrap().to_owned(),
    };
    let url = format!("http://{}:8080/hostname", pods[0]["status"]["podIP"].as_str().unwrap());
    let output = lab.exec(stranger, &["curl", "-gsS", "--max-time", "1", &url]).unwrap();
    // curl's word for having waited in vain.
    assert_eq!(output.status.code(), Some(28), "{output:?}");
}

fn no_request_fails_while_endpoints_come_and_go(site: &Site) {
    let Site { lab, .. } = site;
    let web = ObjectName::new("shop", "web");
    let deployment = || Key::new(Kind::Deployment, "shop", "web");
    let urls: Vec<_> = site.nodes.iter().map(|node| format!("http://{node}/hostname")).collect();
    let load = lab.start_load(Target::Client, &urls, 100, 4).unwrap();
    lab.scale(deployment(), 3).unwrap();
    let pods = lab.wait_for_pods("shop", "app", "web", 3).unwrap();
    lab.wait_for_endpoints(&web, 3).unwrap();
    let pod = pods[0]["metadata"]["name"].as_str().unwrap();
    lab.delete(vec![Key::new(Kind::Pod, "shop", pod)], false).unwrap();
    lab.wait_for_pods("shop", "app", "web", 3).unwrap();
    lab.scale(deployment(), 2).unwrap();
    lab.wait_for_pods("shop", "app", "web", 2).unwrap();
    lab.wait_for_endpoints(&web, 2).unwrap();
    let summary = load.finish().unwrap();
    assert_eq!(summary.failed, 0, "{summary:?}");
    assert!(summary.by_pod.len() > 1, "{summary:?}");
}

fn what_is_under_way_does_not_notice_edits(site: &Site) {
    let Site { lab, nodes, .. } = site;
    let edit = |number: u32| {
        let path = |path: &str| json!({"path": path, "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}});
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "lab", "namespace": "shop", "annotations": {
                "nginx.ingress.kubernetes.io/proxy-read-timeout": (100 + number).to_string()}},
            "spec": {"ingressClassName": "fairway", "rules": [{"host": "lab", "http": {
                "paths": [path("/echo"), path(&format!("/edit-{number}"))]}}]}});
        lab.apply(&object.to_string()).unwrap();
    };
    // The pods know no such path, and say so.
    let is_in_force = |number: u32| {
        wait_until(NEWS, &format!("edit {number} to be in force"), || {
            let url = format!("http://lab/edit-{number}");
            Ok(nodes.iter().all(|node| {
                let answer = site.ask(node, &url, "shop");
                answer.body.contains("no /edit-")
            }))
        })
        .unwrap();
    };
    edit(0);
    is_in_force(0);
    let server = (nodes[0], 80).into();
    let mut stream = lab.start_stream_with(Target::Client, server, &["--on-request"]).unwrap();
    let resolve = format!("lab:80:{}", nodes[0]);
    let mut slow = lab.command(Target::Client, "curl").unwrap();
    slow.args(["-gsSf", "--max-time", "30", "--resolve", &resolve]);
    let url = "http://lab/echo?msg=slow&delay=4000";
    let slow = slow.arg(url).stdout(Stdio::piped()).spawn().unwrap();
    for number in 1..=50 {
        edit(number);
        stream.ask().unwrap();
    }
    is_in_force(50);
    stream.ask().unwrap();
    let summary = stream.finish().unwrap();
    // The first question is asked before anybody says so.
    assert!(summary.error.is_none() && summary.answered == 52, "{summary:?}");
    // Not even that there is no such route any more.
    lab.delete(vec![Key::new(Kind::Ingress, "shop", "lab")], false).unwrap();
    wait_until(NEWS, "the route to be gone", || {
        Ok(site.ask(&nodes[0], "http://lab/echo", "shop").status == 404)
    })
    .unwrap();
    let output = slow.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "slow", "{}", output.status);
}

fn a_broken_secret_changes_nothing_and_a_good_one_is_taken(site: &Site) {
    let Site { lab, nodes, .. } = site;
    let url = "https://shop.example.com/hostname";
    let (certificate, key) = Authority::new().unwrap().certificate(&["shop.example.com"]).unwrap();
    let cut = &certificate[..certificate.len() / 2];
    lab.apply(&secret("shop", "shop-tls", cut, &key)).unwrap();
    wait_until(NEWS, "the control plane to complain", || {
        Ok(lab.logs(Target::Controlplane)?.contains("Secret shop/shop-tls"))
    })
    .unwrap();
    // Changes go on, and the certificate is what it was.
    lab.apply(&MORE.replace("/hostname", "/clientip")).unwrap();
    wait_until(NEWS, "another change to be in force", || {
        Ok(nodes
            .iter()
            .all(|node| site.ask(node, &format!("http://{node}/clientip"), "shop").status == 200))
    })
    .unwrap();
    for node in nodes {
        assert_eq!(site.ask(node, url, "shop").status, 200);
    }
    site.give_certificate("shop", "shop-tls", "newer", &["shop.example.com"]);
    wait_until(NEWS, "the new certificate to be shown", || {
        Ok(nodes.iter().all(|node| site.ask(node, url, "newer").status == 200))
    })
    .unwrap();
    let answer = site.ask(&nodes[0], url, "shop");
    assert!(answer.complaint.contains("SSL"), "{answer:?}");
}

/// What it printed is there all the same.
fn a_gateway_that_is_killed_is_alone_in_it(site: &Site) {
    let Site { lab, nodes, .. } = site;
    let url = "https://shop.example.com/hostname";
    lab.kill_gateway("node1").unwrap();
    assert_eq!(site.ask(&nodes[0], url, "newer").status, 0);
    assert_eq!(site.ask(&nodes[1], url, "newer").status, 200);
    lab.start_gateway("node1").unwrap();
    // It is ready when all is in force.
    assert_eq!(site.ask(&nodes[0], url, "newer").status, 200);
    let log = lab.logs(Target::Gateway { node: "node1".to_owned() }).unwrap();
    assert!(log.contains("[shop-web-80]"), "no access log: {log}");
}

/// The examples in a lab, and whom to believe.
struct Site<'a> {
    lab: &'a Lab,
    /// Addresses of the nodes.
    nodes: Vec<IpAddr>,
    /// That of the client.
    client: String,
    /// Certificates of authorities.
    folder: tempfile::TempDir,
}

/// What curl was answered; a status of 0 if nothing.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
    /// Why there was no answer.
    complaint: String,
}

impl<'a> Site<'a> {
    fn new(lab: &'a Lab) -> Self {
        let nodes = lab.nodes().unwrap().iter().map(|node| node.addresses[0]).collect();
        let folder = tempfile::tempdir().unwrap();
        let site = Self { lab, nodes, client: "192.168.250.2".to_owned(), folder };
        site.give_certificate("shop", "shop-tls", "shop", &["shop.example.com"]);
        site.give_certificate("default", "tomcat-tls", "tomcat", &["tomcat.example.com"]);
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ingress");
        lab.apply_files(&[examples]).unwrap();
        lab.apply(MORE).unwrap();
        for (namespace, app, port) in [
            ("shop", "web", "web"),
            ("default", "tomcat", "tomcat"),
            ("default", "nginx", "nginx-service"),
        ] {
            lab.wait_for_pods(namespace, "app", app, 2).unwrap();
            lab.wait_for_endpoints(&ObjectName::new(namespace, port), 2).unwrap();
        }
        site
    }

    /// Makes a Secret with a certificate for `names` from an authority that is called `authority` from now on.
    fn give_certificate(&self, namespace: &str, name: &str, authority: &str, names: &[&str]) {
        let made = Authority::new().unwrap();
        std::fs::write(self.authority(authority), made.pem()).unwrap();
        let (certificate, key) = made.certificate(names).unwrap();
        self.lab.apply(&secret(namespace, name, &certificate, &key)).unwrap();
    }

    fn authority(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks the gateway of a node for a URL, and believes in one authority alone.
    fn ask(&self, node: &IpAddr, url: &str, authority: &str) -> Answer {
        let authority = self.authority(authority);
        let (_, host) = url.split_once("://").unwrap();
        let host = host.split('/').next().unwrap();
        let mut words = vec!["curl", "-gsSi", "--max-time", "5"];
        words.extend(["--cacert", authority.to_str().unwrap()]);
        let resolve = [80, 443].map(|port| format!("{host}:{port}:{node}"));
        if host.parse::<IpAddr>().is_err() {
            words.extend(resolve.iter().flat_map(|resolve| ["--resolve", resolve]));
        }
        words.push(url);
        let output = self.lab.exec(Target::Client, &words).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (head, body) = (head.to_ascii_lowercase(), body.to_owned());
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        Answer { status: status.unwrap_or_default(), head, body, complaint }
    }
}

/// As `kubectl create secret tls` makes one.
fn secret(namespace: &str, name: &str, certificate: &str, key: &str) -> String {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key)}});
    object.to_string()
}
