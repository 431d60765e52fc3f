//! The program, as a person runs it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BROKEN: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  ports:
  - port: 80
    nodePort: 99
";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-controlplane"));
    command.env_remove("FAIRWAY_LOG");
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = program().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn check_names_every_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(run(&["check", "-f", path]).0, Some(0));

    fs::write(folder.path().join("web.yaml"), BROKEN).unwrap();
    let (code, out, _) = run(&["check", "-f", path]);
    let message = "99 is not in the node port range 30000-32767";
    let expected =
        format!("{path}/web.yaml:8: Service shop/web: spec.ports[0].nodePort: {message}\n");
    assert_eq!((code, out), (Some(1), expected));

    let (code, out, _) = run(&["check", "-o", "json", "-f", path]);
    let expected = serde_json::json!([{
        "file": format!("{path}/web.yaml"), "line": 8, "object": "Service shop/web",
        "field": "spec.ports[0].nodePort", "message": message, "severity": "error",
    }]);
    assert_eq!(code, Some(1));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), expected);

    let (code, _, _) = run(&["check", "--node-port-range", "90-99", "--manifests", path]);
    assert_eq!(code, Some(0));
}

#[test]
fn check_warns_of_what_is_not_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let web = "\
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    service.kubernetes.io/topology-mode: Auto
spec:
  ports:
  - port: 80
";
    fs::write(folder.path().join("web.yaml"), web).unwrap();
    let (code, out, error) = run(&["check", "-f", path]);
    let expected = format!(
        "{path}/web.yaml:6: warning: Service default/web: \
         metadata.annotations.service.kubernetes.io/topology-mode: not honoured without \
         EndpointSlices: endpoints are chosen without regard to where they are\n"
    );
    assert_eq!((code, out), (Some(0), expected));
    assert_eq!(error, "fine: 0 nodes, 1 Services, 1 warnings\n");

    // Where slices say who is meant for whom, it has been honoured.
    let slice = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: []
";
    fs::write(folder.path().join("slice.yaml"), slice).unwrap();
    assert_eq!(run(&["check", "-f", path]).1, "");

    // What others take care of, and what says that it asks for nothing.
    let theirs = "labels: {service.kubernetes.io/service-proxy-name: other}\n  annotations:";
    fs::remove_file(folder.path().join("slice.yaml")).unwrap();
    for plain in [web.replace("annotations:", theirs), web.replace("Auto", "Disabled")] {
        fs::write(folder.path().join("web.yaml"), plain).unwrap();
        assert_eq!(run(&["check", "-f", path]).1, "");
    }
}

#[test]
fn no_output_shows_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let pods = "\
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n1}, status: {podIP: 10.0.0.1}}
";
    fs::write(folder.path().join("pods.yaml"), pods).unwrap();
    let head = "\
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {tls: [{secretName: web, hosts: [shop.example]}]}
---
apiVersion: v1
kind: Secret
metadata: {name: web}
type: kubernetes.io/tls
";
    for data in [
        "stringData: {tls.crt: certificate-5ec2e7, tls.key: 5ec2e7}",
        "stringData: {tls.crt: x, tls.key: {of: 5ec2e7}}",
        "stringData: {tls.key: [5ec2e7",
        "stringData:\n  tls.key: |\n    5ec2e7\n   5ec2e7: 5ec2e7\n",
        "data: {tls.crt: 5ec2e7, tls.key: '%5ec2e7'}",
        "data: 5ec2e7",
        "data: {auth: 5ec2e75ec2e7}",
    ] {
        fs::write(folder.path().join("web.yaml"), format!("{head}{data}")).unwrap();
        for args in [
            &["check", "-f", path][..],
            &["check", "-o", "json", "-f", path],
            &["explain", "--manifests", path, "pod/a", "10.0.0.2:80"],
        ] {
            let (_, out, error) = run(args);
            assert!(!out.contains("5ec2e7") && !error.contains("5ec2e7"), "{data}: {out}{error}");
        }
    }
}

/// Neither does a control plane that has them, and it has no others than those of the Ingress's own namespace.
#[test]
fn no_dump_and_no_log_shows_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (manifests, state, log) = (within("manifests"), within("state"), within("log"));
    fs::create_dir(&manifests).unwrap();
    let made =
        ["certificate", "create", "operator/a", "--state-dir", &state, "--out", &within("a")];
    assert_eq!(run(&made).0, Some(0));
    // YAML takes the lines of a block indented.
    let pem = |name: &str| fs::read_to_string(within(name)).unwrap().replace('\n', "\n    ");
    let (certificate, key) = (pem("a/tls.crt"), pem("a/tls.key"));
    let tls = format!("stringData:\n  tls.crt: |\n    {certificate}\n  tls.key: |\n    {key}\n");
    let ingress = "\
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: web
  namespace: shop
  annotations:
    nginx.ingress.kubernetes.io/auth-type: basic
    nginx.ingress.kubernetes.io/auth-secret: users
spec:
  tls: [{secretName: web, hosts: [a.example]}, {secretName: theirs, hosts: [b.example]}]
  rules: [{host: a.example}]
";
    let theirs = ingress.replace("secretName: theirs", "secretName: bank/theirs");
    fs::write(within("manifests/all.yaml"), theirs).unwrap();
    let (code, out, _) = run(&["check", "-f", &manifests]);
    assert_eq!(code, Some(1));
    assert!(out.contains(r#"tls[1].secretName: "bank/theirs" is no name of a Secret"#), "{out}");
    let mut all = ingress.to_owned();
    for (namespace, name, rest) in [
        ("shop", "web", format!("type: kubernetes.io/tls\n{tls}")),
        ("bank", "theirs", format!("type: kubernetes.io/tls\n{tls}")),
        ("shop", "users", "stringData: {auth: 'a:5ec2e7'}\n".to_owned()),
        ("bank", "users", "stringData: {auth: 'b:5ec2e7'}\n".to_owned()),
    ] {
        all += "---\napiVersion: v1\nkind: Secret\n";
        all += &format!("metadata: {{name: {name}, namespace: {namespace}}}\n{rest}");
    }
    fs::write(within("manifests/all.yaml"), all).unwrap();

    let mut command = program();
    command.args(["run", "--listen", "127.0.0.1:0", "--manifests", &manifests, "--state-dir"]);
    command.arg(&state).env("FAIRWAY_LOG", "debug").stderr(fs::File::create(&log).unwrap());
    let _running = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut last = String::new();
    let dump = loop {
        let said = fs::read_to_string(&log).unwrap();
        let address = said.lines().find_map(|line| Some(line.split_once("address=")?.1.trim()));
        if let Some(address) = address {
            let (code, out, error) = run(&["dump", "--feed", &format!("http://{address}")]);
            if code == Some(0) {
                break out;
            }
            last = error;
        }
        assert!(Instant::now() < deadline, "it never serves: {last}{said}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = fs::read_to_string(&log).unwrap();
    for secret in ["5ec2e7", key.lines().nth(1).unwrap().trim()] {
        assert!(!dump.contains(secret) && !said.contains(secret), "{dump}{said}");
    }
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let secrets = dump["secrets"].as_array().unwrap_or_else(|| panic!("{dump}{said}"));
    let names: Vec<_> = secrets.iter().map(|secret| secret["name"].to_string()).collect();
    let own = |name: &str| format!(r#"{{"name":"{name}","namespace":"shop"}}"#);
    assert_eq!(names, [own("users"), own("web")]);
    assert_eq!((&secrets[0]["users"], &secrets[1]["key"]), (&"set".into(), &"set".into()));
}

#[test]
fn what_cannot_begin_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let state = format!("{path}/state");
    let serve = |manifests: &str, listen: &str| {
        run(&["--manifests", manifests, "--listen", listen, "--state-dir", &state])
    };
    let (code, _, error) = serve("/nowhere", "127.0.0.1:0");
    let expected = "fairway-controlplane: manifest folder /nowhere: cannot be read: \
                    No such file or directory (os error 2)\n";
    assert_eq!((code, error.as_str()), (Some(1), expected));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, error) = serve(path, &address);
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!("cannot listen on {address}; is another control plane running?")),
        "{error}"
    );

    let (code, _, error) = run(&[]);
    assert_eq!(code, Some(2));
    assert!(error.contains("say what to serve: --manifests DIR or --kubernetes"), "{error}");
}

#[test]
fn what_belongs_to_an_api_server_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let run = |args: &[&str]| {
        let common = ["run", "--listen", "127.0.0.1:0", "--state-dir", state];
        let (code, _, error) = run(&[&common[..], args].concat());
        (code, error)
    };
    let (code, error) = run(&["--manifests", state, "--kubernetes"]);
    assert!(code == Some(2) && error.contains("cannot be used with"), "{error}");
    let (code, error) = run(&["--manifests", state, "--kubeconfig", "x"]);
    assert!(code == Some(2) && error.contains("cannot be used with"), "{error}");
    let (code, error) = run(&["--context", "x"]);
    assert!(code == Some(2) && error.contains("--kubernetes"), "{error}");
    let (code, error) = run(&["--kubernetes", "--kubeconfig", "/nowhere"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("kubeconfig /nowhere: cannot be used: "), "{error}");
    let (code, error) = run(&["--kubernetes", "--api-server", "x y"]);
    let expected = "fairway-controlplane: \"x y\" is no URL of an API server: ";
    assert!(code == Some(1) && error.starts_with(expected), "{error}");
    let (code, error) = run(&["--kubernetes", "--cluster-cidr", "10.0.0.0/28"]);
    let expected = "fairway-controlplane: 10.0.0.0/28 cannot be cut into ranges of /24 for nodes\n";
    assert_eq!((code, error.as_str()), (Some(1), expected));
}

#[test]
fn serves_until_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    command.arg("--manifests").arg(&manifests);
    command.arg("--state-dir").arg(folder.path().join("state"));
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());

    // The log says which port it got.
    let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let serving = log.find_map(|line| {
        let line = line.unwrap();
        line.split_once("address=").map(|(_, address)| address.trim().to_owned())
    });
    let address = serving.unwrap();

    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok\n"), "{answer}");

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    // The log ends when the program does.
    let last = log.map(Result::unwrap).last();
    assert!(last.is_some_and(|line| line.contains("told to stop by SIGTERM")));
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn no_core_shows_its_keys() {
    use std::os::unix::process::ExitStatusExt as _;
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name);
    fs::create_dir(within("manifests")).unwrap();
    // Cores are as large as they like, and lie where it runs unless the machine says otherwise.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_fairway-controlplane"));
    command.args(["run", "--listen", "127.0.0.1:0", "--tls", "on"]);
    command.arg("--manifests").arg(within("manifests")).arg("--state-dir").arg(within("state"));
    command.env_remove("FAIRWAY_LOG").current_dir(folder.path()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("address=")), "it never serves");

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-ABRT", &pid]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: std::collections::BTreeSet<_> = left.collect();
    assert_eq!(left, ["manifests", "state"].map(Into::into).into());
}

/// Ends the program also when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
