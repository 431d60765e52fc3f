//! What `deploy/` tells a cluster to run, held against the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{CommandFactory as _, FromArgMatches as _, Parser as _};
use fairway_ingress::options::{Cli as GatewayCli, Verb as Gateway};
use fairway_kubernetes::{ca, vouch};
use fairway_proxy::options::{Cli, Options, Verb};
use fairway_tests::binaries::binaries;
use fairway_tests::{may_run, unique_name};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Where everything is.
const NAMESPACE: &str = "kube-system";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The folders that can be applied.
fn folders() -> Vec<PathBuf> {
    let overlays = fs::read_dir(deploy().join("overlays")).unwrap();
    let overlays = overlays.map(|entry| entry.unwrap().path());
    [deploy().join("base")].into_iter().chain(overlays).collect()
}

fn documents(file: &Path) -> Vec<Value> {
    read(&fs::read_to_string(file).unwrap())
}

fn read(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

/// What a folder comes to: as much of kustomize as is used here, and nothing that is not.
fn rendered(folder: &Path) -> Vec<Value> {
    let [kustomization] = &documents(&folder.join("kustomization.yaml"))[..] else {
        panic!("{}", folder.display())
    };
    let known = ["apiVersion", "kind", "resources", "patches"];
    let keys = kustomization.as_object().unwrap().keys();
    assert!(keys.clone().all(|key| known.contains(&key.as_str())), "{keys:?}");
    let list = |key: &str| kustomization[key].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for resource in list("resources") {
        let path = folder.join(resource.as_str().unwrap());
        all.extend(if path.is_dir() { rendered(&path) } else { documents(&path) });
    }
    for patch in list("patches") {
        let is_meant = |object: &&mut Value| {
            object["kind"] == patch["target"]["kind"]
                && object["metadata"]["name"] == patch["target"]["name"]
        };
        let mut meant: Vec<_> = all.iter_mut().filter(is_meant).collect();
        let [object] = &mut meant[..] else { panic!("{}: {patch}", folder.display()) };
        let steps: Value = serde_saphyr::from_str(patch["patch"].as_str().unwrap()).unwrap();
        for step in steps.as_array().unwrap() {
            take_step(object, step);
        }
    }
    all
}

/// A step of a JSON patch (RFC 6902).
fn take_step(object: &mut Value, step: &Value) {
    let (path, value) = (step["path"].as_str().unwrap(), step["value"].clone());
    let (parent, last) = path.rsplit_once('/').unwrap();
    let last = last.replace("~1", "/").replace("~0", "~");
    match step["op"].as_str().unwrap() {
        "test" => assert_eq!(object.pointer(path), Some(&value), "{step}"),
        "replace" => *object.pointer_mut(path).unwrap_or_else(|| panic!("{step}")) = value,
        "add" => match object.pointer_mut(parent) {
            Some(Value::Array(list)) if last == "-" => list.push(value),
            Some(Value::Object(fields)) => drop(fields.insert(last, value)),
            _ => panic!("{step}"),
        },
        _ => panic!("{step}"),
    }
}

fn find<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = all.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A container's arguments with what its environment says, and the keys of the ConfigMap that this takes.
fn arguments(all: &[Value], container: &Value) -> (Vec<String>, BTreeSet<String>) {
    let (mut args, mut keys) = (strings(&container["args"]), BTreeSet::new());
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap();
        let from = &variable["valueFrom"]["configMapKeyRef"];
        let Some(key) = from["key"].as_str() else { continue };
        let map = find(all, "ConfigMap", from["name"].as_str().unwrap());
        let value = map["data"][key].as_str().unwrap_or_else(|| panic!("no {key}"));
        let reference = format!("$({name})");
        assert!(args.iter().any(|arg| arg.contains(&reference)), "nobody uses {name}");
        args.iter_mut().for_each(|arg| *arg = arg.replace(&reference, value));
        keys.insert(key.to_owned());
    }
    assert!(args.iter().all(|arg| !arg.contains("$(")), "{args:?}");
    (args, keys)
}

/// How the control plane is started, by the folder that most have.
pub(super) fn controlplane_arguments() -> Vec<String> {
    let all = rendered(&deploy().join("base"));
    let pod = &find(&all, "Deployment", "fairway-controlplane")["spec"]["template"]["spec"];
    arguments(&all, &pod["containers"][0]).0
}

fn agent(args: &[String]) -> Cli {
    let words = ["fairway-proxy".to_owned()].into_iter().chain(args.iter().cloned());
    let matches = Cli::command().try_get_matches_from(words).unwrap();
    Cli::from_arg_matches(&matches).unwrap()
}

/// The value of an option as it is written here.
fn option<'a>(args: &'a [String], name: &str) -> &'a str {
    let value = args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("there is no {name} in {args:?}"))
}

/// The Job that takes Fairway from a node.
fn uninstall() -> Value {
    documents(&deploy().join("uninstall.yaml")).remove(0)
}

#[test]
fn what_is_said_is_what_the_api_knows() {
    let all = folders().into_iter().flat_map(|folder| rendered(&folder));
    for object in all.chain([uninstall()]) {
        match object["kind"].as_str().unwrap() {
            "ClusterRole" => is_known::<ClusterRole>(&object),
            "ClusterRoleBinding" => is_known::<ClusterRoleBinding>(&object),
            "ConfigMap" => is_known::<ConfigMap>(&object),
            "DaemonSet" => is_known::<DaemonSet>(&object),
            "Deployment" => is_known::<Deployment>(&object),
            "IngressClass" => is_known::<IngressClass>(&object),
            "Job" => is_known::<Job>(&object),
            "PodDisruptionBudget" => is_known::<PodDisruptionBudget>(&object),
            "Role" => is_known::<Role>(&object),
            "RoleBinding" => is_known::<RoleBinding>(&object),
            "Secret" => is_known::<Secret>(&object),
            "ServiceAccount" => is_known::<ServiceAccount>(&object),
            kind => panic!("{kind}"),
        }
    }
}

/// What the type does not know, it does not give back.
fn is_known<T: DeserializeOwned + Serialize>(object: &Value) {
    let known: T = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(&known).unwrap(), *object);
}

/// Where kustomize itself is there, it makes the same.
#[test]
fn kustomize_comes_to_the_same() {
    for folder in folders() {
        let output = match Command::new("kubectl").arg("kustomize").arg(&folder).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("kubectl is not installed: held against our own reading alone");
                return;
            }
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{output:?}");
        let sorted = |all: Vec<Value>| all.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        let theirs = read(std::str::from_utf8(&output.stdout).unwrap());
        assert_eq!(sorted(rendered(&folder)), sorted(theirs), "{}", folder.display());
    }
}

#[test]
fn a_node_is_rid_of_what_its_agent_had() {
    let all = rendered(&deploy().join("base"));
    let pod = |object: &Value| object["spec"]["template"]["spec"].clone();
    let (agent_pod, job) = (pod(find(&all, "DaemonSet", "fairway-agent")), pod(&uninstall()));
    let (container, own) = (&agent_pod["containers"][0], &job["containers"][0]);
    let (args, _) = arguments(&all, container);
    let Some(Verb::Uninstall(options)) = agent(&strings(&own["args"])).verb else {
        panic!("{own}")
    };
    let started = agent(&args).agent;
    assert_eq!(options.state_dir, started.state_dir);
    assert_eq!(Some(&options.cni_conf), started.cni_conf.as_ref());
    for key in ["image", "securityContext"] {
        assert_eq!(own[key], container[key]);
    }
    assert_eq!(job["securityContext"], agent_pod["securityContext"]);
    let mut had = mounts(&agent_pod, container);
    had.extend(mounts(&agent_pod, &agent_pod["initContainers"][0]));
    // It looks at none of these.
    for other in [
        "/var/run/secrets/fairway",
        "/sys/fs/cgroup",
        "/run/netns",
        "/sys/kernel/rcu_expedited",
        "/run/fairway-rcu-expedited",
    ] {
        had.remove(Path::new(other)).unwrap();
    }
    assert_eq!(mounts(&job, own), had);
}

#[test]
fn agents_are_started_as_they_can_be() {
    for folder in folders() {
        let all = rendered(&folder);
        let spec = &find(&all, "DaemonSet", "fairway-agent")["spec"]["template"]["spec"];
        let (install, container) = (&spec["initContainers"][0], &spec["containers"][0]);
        let (args, mut keys) = arguments(&all, container);
        let Options { feed, healthz_bind, socket, cni_data_dir, .. } = &agent(&args).agent;
        assert!(feed.iter().all(|feed| feed.starts_with("https://")), "{feed:?}");

        // What the program reads of its environment.
        let command = Cli::command();
        let known: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()).collect();
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let is_used = variable["valueFrom"]["configMapKeyRef"].is_object();
            assert!(is_used || known.iter().any(|known| *known == name) || name == "FAIRWAY_LOG");
        }
        let port = &container["ports"][0];
        assert_eq!(port["containerPort"], healthz_bind.port(), "{}", folder.display());
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let probe = &container[probe]["httpGet"];
            assert_eq!((&probe["path"], &probe["port"]), (&json!(path), &port["name"]));
        }

        // Where it keeps things is the node's.
        let options = agent(&args).agent;
        let joins = options.feed_security.join_service_account.as_ref().unwrap();
        let conf = options.cni_conf.as_ref().unwrap();
        let places: [&Path; 10] = [
            &options.state_dir,
            &options.bpffs,
            &options.cgroup,
            socket,
            cni_data_dir,
            Path::new("/run/netns"),
            // As `netlink::grace` has them.
            Path::new("/sys/kernel/rcu_expedited"),
            Path::new("/run/fairway-rcu-expedited"),
            conf,
            joins,
        ];
        let mounts = mounts(spec, container);
        for place in places {
            assert!(mounts.keys().any(|mount| place.starts_with(mount)), "{}", place.display());
        }
        assert!(mounts.keys().all(|mount| places.iter().any(|place| place.starts_with(mount))));
        let Some(Verb::Install(install_options)) = agent(&strings(&install["args"])).verb else {
            panic!("{install}")
        };
        let folders = self::mounts(spec, install);
        assert_eq!(folders.keys().collect::<Vec<_>>(), [&install_options.cni_bin_dir]);

        // Who it is.
        is_identity(&mounts[joins]);
        let account = spec["serviceAccountName"].as_str().unwrap();
        let pod = &find(&all, "Deployment", "fairway-controlplane")["spec"]["template"]["spec"];
        let (args, more) = arguments(&all, &pod["containers"][0]);
        let agents = option(&args, "--agent-service-account");
        assert_eq!(agents, format!("{NAMESPACE}/{account}"));
        assert_eq!(option(&args, "--lease-namespace"), NAMESPACE);

        // Nothing is said in vain.
        keys.extend(more);
        let said = &find(&all, "ConfigMap", "fairway-config")["data"];
        let said: BTreeSet<_> = said.as_object().unwrap().keys().cloned().collect();
        assert_eq!(said, keys);

        // Where agents connect, and the kubelet looks.
        let (_, port) = option(&args, "--listen").rsplit_once(':').unwrap();
        assert!(feed.iter().all(|feed| feed.ends_with(&format!(":{port}"))), "{feed:?}");
        let container = &pod["containers"][0];
        assert_eq!(container["ports"][0]["containerPort"].to_string(), port);
        for (probe, path) in [
            ("startupProbe", "/healthz"),
            ("livenessProbe", "/healthz"),
            ("readinessProbe", "/readyz"),
        ] {
            let probe = &container[probe]["httpGet"];
            assert_eq!((&probe["path"], &probe["scheme"]), (&json!(path), &json!("HTTPS")));
        }
    }
}

#[test]
fn gateways_are_started_as_they_can_be() {
    let all = rendered(&deploy().join("overlays/ingress"));
    let spec = &find(&all, "DaemonSet", "fairway-gateway")["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let (args, _) = arguments(&all, container);
    let words = ["fairway-ingress".to_owned()].into_iter().chain(args);
    let Gateway::Run(options) = GatewayCli::try_parse_from(words).unwrap().verb else {
        panic!("{container}")
    };
    assert!(options.feed.iter().all(|feed| feed.starts_with("https://")), "{:?}", options.feed);
    let ports = container["ports"].as_array().unwrap().iter();
    let ports: Vec<_> = ports.map(|port| port["containerPort"].as_u64().unwrap()).collect();
    let taken = [options.http, options.https, options.admin].map(|place| u64::from(place.port()));
    assert_eq!(ports, taken);
    assert!(options.admin.ip().is_loopback());
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let probe = &container[probe]["httpGet"];
        let said = (&probe["path"], &probe["port"], &probe["host"]);
        assert_eq!(said, (&json!(path), &json!("admin"), &json!("127.0.0.1")));
    }
    let (wait, patience) = options.drain();
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > (wait + patience).as_secs(), "{grace}");
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);

    // Where it keeps things, and who it is.
    let mounts = mounts(spec, container);
    let joins = options.join_service_account.clone().unwrap();
    is_identity(&mounts[&joins]);
    assert_eq!(mounts.keys().collect::<Vec<_>>(), [&options.state_dir, &joins]);
    let account = spec["serviceAccountName"].as_str().unwrap();
    let pod = &find(&all, "Deployment", "fairway-controlplane")["spec"]["template"]["spec"];
    let (args, _) = arguments(&all, &pod["containers"][0]);
    let group = option(&args, "--gateway-service-account");
    let group = group.strip_prefix(&format!("{NAMESPACE}/{account}=")).unwrap();
    let named = json!({"name": "FAIRWAY_GATEWAY", "value": format!("{group}/$(POD_NAME)")});
    assert!(container["env"].as_array().unwrap().contains(&named), "{named}");
    let class = find(&all, "IngressClass", "fairway");
    assert_eq!(class["spec"]["controller"], fairway_controlplane::ingress::CONTROLLER);
}

/// A volume with what a pod joins by.
fn is_identity(volume: &Value) {
    let sources = volume["projected"]["sources"].as_array().unwrap();
    let [token, authority] = &sources[..] else { panic!("{sources:?}") };
    let token = &token["serviceAccountToken"];
    assert_eq!(token["audience"], vouch::AUDIENCE);
    assert_eq!(token["path"], "token");
    assert_eq!(authority["configMap"]["name"], ca::NAME);
    assert_eq!(authority["configMap"]["items"], json!([{"key": "ca.crt", "path": "ca.crt"}]));
}

/// What is mounted into a container, by where.
fn mounts(pod: &Value, container: &Value) -> BTreeMap<PathBuf, Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let volumes = list(&pod["volumes"]);
    let mounts = list(&container["volumeMounts"]).into_iter().map(|mount| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        (mount["mountPath"].as_str().unwrap().into(), volume.unwrap().clone())
    });
    mounts.collect()
}

/// The agent runs with nothing but what its pod is given: in place of a container runtime, a shell in namespaces of
/// its own mounts what is said and leaves the capabilities that are said. The rest is read-only, as runtimes have it.
#[test]
fn an_agent_needs_no_more_than_its_pod_is_given() {
    if !may_run("deploy") {
        return;
    }
    let all = rendered(&deploy().join("base"));
    let pod = &find(&all, "DaemonSet", "fairway-agent")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    // From a folder, as there is nobody to follow; all else is as it is.
    let (mut args, _) = arguments(&all, container);
    args.retain(|arg| !arg.starts_with("--feed=") && !arg.starts_with("--join-service-account="));
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("node.yaml"), NODE).unwrap();

    // What is the node's lies in the test's folder, but for what is the kernel's.
    let host = folder.path().join("host");
    let mut script = PREPARE.to_owned();
    for (target, volume) in mounts(pod, container) {
        let target = target.to_str().unwrap();
        let source = match target {
            "/sys/kernel/rcu_expedited" => target.to_owned(),
            "/sys/fs/cgroup" => "$CGROUP".to_owned(),
            _ => format!("$HOST{target}"),
        };
        let is_file =
            volume["hostPath"]["type"].as_str().is_some_and(|kind| kind.starts_with("File"));
        let make = if is_file { "touch" } else { "mkdir -p" };
        if source.starts_with("$HOST") {
            script += &format!("mkdir -p \"$(dirname \"{source}\")\"; {make} \"{source}\"\n");
        }
        if target == "/sys/fs/bpf" {
            script += &format!("mount -t bpf bpf \"{source}\"\n");
        }
        script += &format!(
            "mkdir -p \"$(dirname {target})\" 2>/dev/null; [ -e {target} ] || {make} {target}\n"
        );
        script += &format!("mount --bind \"{source}\" {target}\n");
    }
    script += START;
    let capabilities = strings(&container["securityContext"]["capabilities"]["add"]);
    let kept = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase()));
    // The shell has a deadline of its own.
    let mut command = Command::new("timeout");
    command.args([
        "180",
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.args(["sh", "-ec", &script, "sh"]);
    command.args(["setpriv", "--no-new-privs", "--inh-caps=-all"]);
    command.arg(format!("--bounding-set=-all{}", kept.collect::<String>()));
    command.arg(binaries().unwrap().join("fairway-proxy")).args(args);
    command.arg("--manifests").arg(&manifests);
    command
        .env("HOST", &host)
        .env("NODE_NAME", "here")
        .env("NAME", unique_name("deploy").to_string());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn pods_have_no_more_power_than_services_of_systemd() {
    let powers = |unit: &str| -> BTreeSet<String> {
        let unit = fs::read_to_string(deploy().join("systemd").join(unit)).unwrap();
        let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        line.unwrap().split(' ').map(|name| name.replace("CAP_", "")).collect()
    };
    for folder in folders() {
        for object in rendered(&folder) {
            let pod = &object["spec"]["template"]["spec"];
            if !pod.is_object() {
                continue;
            }
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null());
            let containers = ["initContainers", "containers"];
            let containers = containers.iter().flat_map(|key| pod[*key].as_array()).flatten();
            let mut used = BTreeSet::new();
            for container in containers {
                let may = &container["securityContext"];
                assert!(may["privileged"].is_null());
                assert_eq!(may["allowPrivilegeEscalation"], false);
                assert_eq!(may["readOnlyRootFilesystem"], true);
                assert_eq!(may["capabilities"]["drop"], json!(["ALL"]));
                let added: BTreeSet<_> = strings(&may["capabilities"]["add"]).into_iter().collect();
                match container["name"].as_str() {
                    Some("agent") => assert_eq!(added, powers("fairway-proxy.service")),
                    Some("gateway") => assert_eq!(added, powers("fairway-ingress.service")),
                    Some("install") => assert_eq!(added, BTreeSet::from(["DAC_OVERRIDE".into()])),
                    _ => assert!(added.is_empty(), "{added:?}"),
                }
                used.extend(mounts(pod, container).into_values().map(|volume| volume.to_string()));
            }
            let volumes = pod["volumes"].as_array().unwrap();
            assert_eq!(used, volumes.iter().map(Value::to_string).collect());
        }
    }
}

#[test]
fn what_is_named_is_there() {
    for folder in folders() {
        let all = rendered(&folder);
        let mut names = BTreeSet::new();
        for object in &all {
            let (kind, meta) = (object["kind"].as_str().unwrap(), &object["metadata"]);
            assert!(names.insert(format!("{kind} {}", meta["name"])), "{kind} {meta}");
            if !kind.starts_with("ClusterRole") && kind != "IngressClass" {
                assert_eq!(meta["namespace"], NAMESPACE, "{kind} {meta}");
            }
            for subject in object["subjects"].as_array().into_iter().flatten() {
                find(&all, subject["kind"].as_str().unwrap(), subject["name"].as_str().unwrap());
                assert_eq!(subject["namespace"], NAMESPACE);
            }
            if let Some(role) = object["roleRef"]["kind"].as_str() {
                find(&all, role, object["roleRef"]["name"].as_str().unwrap());
            }
            let spec = &object["spec"];
            if let Some(account) = spec["template"]["spec"]["serviceAccountName"].as_str() {
                find(&all, "ServiceAccount", account);
                let labels = &spec["template"]["metadata"]["labels"];
                let wanted = spec["selector"]["matchLabels"].as_object().unwrap();
                assert!(wanted.iter().all(|(key, value)| labels[key] == *value), "{labels}");
            }
            if kind == "PodDisruptionBudget" {
                let pods = &find(&all, "Deployment", "fairway-controlplane")["spec"]["selector"];
                assert_eq!(&spec["selector"], pods);
            }
        }
    }
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: here}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

/// An uplink; a cgroup that is not the machine's; and nothing where the pod's mounts are to be.
const PREPARE: &str = r#"
ip link set lo up
ip link add eth0 type veth peer name wire
ip link set eth0 up
ip link set wire up
ip addr add 192.0.2.1/24 dev eth0
ip route add default via 192.0.2.254
mkdir -p "$HOST/cgroups"
mount -t cgroup2 none "$HOST/cgroups"
export CGROUP="$HOST/cgroups/$NAME"
mkdir "$CGROUP"
mount -t sysfs -o ro sysfs /sys
for folder in /etc /run /var/lib; do mount -t tmpfs none $folder; done
"#;

/// Everything else read-only, and the agent until it has the node ready: the network configuration is there.
const START: &str = r#"
for folder in /etc /run /var/lib; do mount -o remount,ro $folder; done
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /
"$@" &
agent=$!
ready=1
for second in $(seq 90); do
    [ -e /etc/cni/net.d/10-fairway.conflist ] && ready=0 && break
    kill -0 $agent 2>/dev/null || break
    sleep 1
done
kill $agent 2>/dev/null || true
wait $agent || true
rmdir "$CGROUP"
exit $ready
"#;
