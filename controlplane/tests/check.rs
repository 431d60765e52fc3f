//! What is likely to be a mistake in manifests that can be read: each case is a manifest and what is said of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::time::{Duration, SystemTime};

use fairway_controlplane::manifests::{self, DEFAULT_NODE_PORTS};
use rcgen::{CertificateParams, KeyPair};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is said, without the folder's path.
fn problems(manifests: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), manifests).unwrap();
    let cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    let paths = [folder.path().into()];
    let checked = manifests::check(&paths, cidrs, DEFAULT_NODE_PORTS).unwrap();
    assert_eq!(checked.problems, [], "it is read for what it says: {manifests}");
    let problems = manifests::lint(&paths, SystemTime::now()).unwrap();
    let folder = format!("{}/", folder.path().display());
    problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
}

/// A certificate and its key for these names, good from and until so many days from now.
fn certificate(names: &[&str], from: i32, until: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let at = |days: i32| match u32::try_from(days) {
        Ok(days) => SystemTime::now() + DAY * days,
        Err(_) => SystemTime::now() - DAY * days.unsigned_abs(),
    };
    (params.not_before, params.not_after) = (at(from).into(), at(until).into());
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// An Ingress for these hosts and the Secret that it names.
fn ingress(hosts: &str, kind: &str, (certificate, key): &(String, String)) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: web, namespace: shop}}
spec:
  tls:
  - secretName: web
    hosts: [{hosts}]
---
apiVersion: v1
kind: Secret
metadata: {{name: web, namespace: shop}}
type: {kind}
stringData:
  tls.crt: |
{}  tls.key: |
{}",
        indented(certificate),
        indented(key)
    )
}

#[test]
fn certificates_that_ingresses_name_are_looked_at() {
    let tls = "kubernetes.io/tls";
    let good = certificate(&["shop.example", "*.shop.example"], -1, 90);
    assert_eq!(problems(&ingress("shop.example, a.shop.example", tls, &good)), [""; 0]);

    let (expired, soon, early) = (
        certificate(&["shop.example"], -9, -1),
        certificate(&["shop.example"], -9, 29),
        certificate(&["shop.example"], 1, 90),
    );
    let mixed = (good.0.clone(), soon.1.clone());
    let nothing = ("none".to_owned(), "none".to_owned());
    for (manifest, expected) in [
        (
            ingress("other.example", tls, &good),
            &[
                "all.yaml:7: Ingress shop/web: spec.tls[0].hosts[0]: the certificate of Secret shop/web \
               is not for other.example, but for shop.example, *.shop.example",
            ][..],
        ),
        (
            ingress("shop.example", tls, &expired),
            &["all.yaml:15: Secret shop/web: stringData.tls.crt: the certificate expired on 20"],
        ),
        (
            ingress("shop.example", tls, &soon),
            &[
                "all.yaml:15: warning: Secret shop/web: stringData.tls.crt: the certificate expires on 20",
            ],
        ),
        (
            ingress("shop.example", tls, &early),
            &[
                "all.yaml:15: Secret shop/web: stringData.tls.crt: the certificate is not good before 20",
            ],
        ),
        (
            ingress("shop.example", tls, &mixed),
            &["stringData.tls.key: not the key of the certificate in tls.crt"],
        ),
        (
            ingress("shop.example", "Opaque", &good),
            &["all.yaml:12: warning: Secret shop/web: type: Opaque, where an Ingress needs \
               kubernetes.io/tls"],
        ),
        (
            ingress("shop.example", "Opaque", &good).replace("  tls.key", "  tls.other"),
            &[
                "all.yaml:12: Secret shop/web: type: Opaque, where an Ingress needs kubernetes.io/tls",
                "all.yaml:14: Secret shop/web: stringData.tls.key: needs to be there",
            ],
        ),
        (
            ingress("shop.example", "example.com/tls", &good),
            &["all.yaml:12: Secret shop/web: type: example.com/tls, where an Ingress needs \
               kubernetes.io/tls"],
        ),
        (
            ingress("shop.example", tls, &nothing),
            &[
                "Secret shop/web: stringData.tls.crt: no certificate in PEM",
                "Secret shop/web: stringData.tls.key: no private key in PEM that can be read",
            ],
        ),
        (
            ingress("shop.example", tls, &good).replace("stringData", "data"),
            &[
                "Secret shop/web: data.tls.crt: no base64",
                "Secret shop/web: data.tls.key: no base64",
            ],
        ),
        (
            ingress("shop.example", tls, &good).replace("  tls.key", "  tls.other"),
            &["all.yaml:14: Secret shop/web: stringData.tls.key: needs to be there"],
        ),
        (
            ingress("shop.example", tls, &good).replace("secretName: web", "secretName: elsewhere"),
            &[
                "all.yaml:6: warning: Ingress shop/web: spec.tls[0].secretName: these manifests have no \
               Secret shop/elsewhere",
            ],
        ),
    ] {
        let said = problems(&manifest);
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.contains(expected), "{said:?} for {expected:?}");
            assert!(!said.contains("PRIVATE"), "{said}");
        }
    }

    // Whoever is asked to make the Secret does so later.
    let elsewhere = ingress("shop.example", tls, &good).replace("Name: web", "Name: elsewhere");
    for (annotation, expected) in [
        ("cert-manager.io/issuer: ours", 0),
        ("cert-manager.io/cluster-issuer: ours", 0),
        ("kubernetes.io/tls-acme: \"true\"", 0),
        ("kubernetes.io/tls-acme: \"false\"", 1),
        ("example.com/other: x", 1),
    ] {
        let annotated = format!("namespace: shop, annotations: {{{annotation}}}");
        let said = problems(&elsewhere.replacen("namespace: shop", &annotated, 1));
        assert_eq!(said.len(), expected, "{annotation}: {said:?}");
    }
}

const WORKLOAD: &str = "
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - ports: [{name: http, containerPort: 8080}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: night, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: night}}}}}}
";

#[test]
fn services_that_no_pod_is_behind_are_warned_about() {
    for (spec, expected) in [
        ("selector: {app: web}, ports: [{port: 80, targetPort: http}]", ""),
        ("selector: {app: web}, ports: [{port: 80, targetPort: 8080}]", ""),
        ("ports: [{port: 80}]", ""),
        // It does not say which ports it has.
        ("selector: {app: night}, ports: [{port: 80}]", ""),
        // Controllers add that label.
        (
            "selector: {app: web, statefulset.kubernetes.io/pod-name: web-0}, ports: [{port: 80}]",
            "",
        ),
        (
            "selector: {app: wbe}, ports: [{port: 80}]",
            "all.yaml:4: warning: Service shop/web: spec.selector: selects none of the pods in these \
             manifests",
        ),
        (
            "selector: {app: web}, ports: [{port: 80, targetPort: https}]",
            "all.yaml:4: warning: Service shop/web: spec.ports[0].targetPort: none of the pods that it \
             selects has a TCP port \"https\"",
        ),
        (
            "selector: {app: web}, ports: [{port: 80, targetPort: http, protocol: UDP}]",
            "all.yaml:4: warning: Service shop/web: spec.ports[0].targetPort: none of the pods that it \
             selects has a UDP port \"http\"",
        ),
        (
            "selector: {app: web}, ports: [{port: 80}]",
            "all.yaml:4: warning: Service shop/web: spec.ports[0].port: the pods that it selects have \
             ports, but no TCP 80",
        ),
    ] {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"
        );
        let said = problems(&format!("{service}{WORKLOAD}"));
        assert_eq!(said, if expected.is_empty() { vec![] } else { vec![expected] }, "{spec}");
        // Where there are no pods at all, they are somebody else's; and slices say what is behind a Service.
        assert_eq!(problems(&service), [""; 0], "{spec}");
        // So it is where only other namespaces have some.
        let others = WORKLOAD.replace("namespace: shop", "namespace: other");
        assert_eq!(problems(&format!("{service}{others}")), [""; 0], "{spec}");
        let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                     metadata: {name: a, namespace: shop, labels: {kubernetes.io/service-name: web}}\n";
        assert_eq!(problems(&format!("{service}{WORKLOAD}{slice}")), [""; 0], "{spec}");
    }
}

#[test]
fn policies_that_mean_nobody_are_warned_about() {
    for (spec, expected) in [
        ("podSelector: {}", ""),
        ("podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]", ""),
        // Controllers add those labels.
        ("podSelector: {matchLabels: {job-name: night-1}}", ""),
        ("podSelector: {matchExpressions: [{key: pod-template-hash, operator: Exists}]}", ""),
        (
            "podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {batch.kubernetes.io/job-name: \
             night-1}}}]}]",
            "",
        ),
        // What is in other namespaces may be in other manifests.
        (
            "podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: \
             {app: wbe}}}]}]",
            "",
        ),
        (
            "podSelector: {matchLabels: {app: wbe}}",
            "spec.podSelector: selects none of the pods in these manifests",
        ),
        (
            "podSelector: {}, egress: [{}, {to: [{podSelector: {matchLabels: {app: wbe}}}]}]",
            "spec.egress[1].to[0].podSelector: selects none of the pods in these manifests",
        ),
        (
            "podSelector: {}, ingress: [{ports: [{port: 80}, {port: htpp}]}]",
            "spec.ingress[0].ports[1].port: none of the pods that it restricts has a TCP port \"htpp\"",
        ),
    ] {
        let policy = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
        );
        let said = problems(&format!("{policy}{WORKLOAD}"));
        let expected = format!("all.yaml:4: warning: NetworkPolicy shop/p: {expected}");
        let expected = if expected.ends_with(": ") { vec![] } else { vec![expected] };
        assert_eq!(said, expected, "{spec}");
        let others = WORKLOAD.replace("namespace: shop", "namespace: other");
        assert_eq!(problems(&format!("{policy}{others}")), [""; 0], "{spec}");
    }
}

#[test]
fn fields_and_annotations_that_nobody_knows_are_warned_about() {
    let manifest = "\
apiVersion: v1
kind: Service
metadata:
  name: web
  lables: {}
  annotations:
    fairway.dev/balancin: maglev
    example.com/other: x
spec:
  sesionAffinity: ClientIP
  ports:
  - port: 80
    nodeport: 30001
    appProtocol: http
status: {}
";
    let expected = [
        "all.yaml:5: warning: Service default/web: metadata.lables: no such field; it is ignored; is it \
         labels?",
        "all.yaml:7: warning: Service default/web: metadata.annotations.fairway.dev/balancin: no such \
         annotation; it is ignored; is it fairway.dev/balancing?",
        "all.yaml:10: warning: Service default/web: spec.sesionAffinity: no such field; it is ignored; is \
         it sessionAffinity?",
        "all.yaml:13: warning: Service default/web: spec.ports[0].nodeport: no such field; it is ignored; \
         is it nodePort?",
    ];
    assert_eq!(problems(manifest), expected);
    // The same of an item of a list.
    let items = manifest.lines().skip(2).map(|line| format!("  {line}\n")).collect::<String>();
    let list = format!("apiVersion: v1\nkind: ServiceList\nitems:\n- {}", &items[2..]);
    assert_eq!(problems(&list).len(), expected.len());
}

#[test]
fn ingresses_that_lead_nowhere_are_warned_about() {
    let service = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
";
    let ingress = |name: &str, annotations: &str, path: &str, backend: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {name}
  namespace: shop
  annotations: {{{annotations}}}
spec:
  rules:
  - host: shop.example
    http:
      paths:
      - {{path: {path}, pathType: Prefix, backend: {{service: {backend}}}}}
---
"
        )
    };
    let by = |port: &str| format!("{{name: web, port: {{{port}}}}}");
    let alone = |annotations: &str, backend: &str| {
        problems(&format!("{service}{}", ingress("a", annotations, "/", backend)))
    };
    let field = "all.yaml:17: warning: Ingress shop/a: spec.rules[0].http.paths[0].backend.service";
    assert_eq!(alone("", &by("number: 80")), [""; 0]);
    assert_eq!(alone("fairway.dev/nginx-paths: \"true\"", &by("name: http")), [""; 0]);
    assert_eq!(
        alone("", &by("number: 81")),
        [format!("{field}.port: Service shop/web has no port 81")]
    );
    assert_eq!(
        alone("", &by("name: https")),
        [format!("{field}.port: Service shop/web has no port https")]
    );
    assert_eq!(
        alone("", "{name: wbe, port: {number: 80}}"),
        [format!("{field}.name: these manifests have no Service shop/wbe")]
    );
    assert_eq!(
        alone("fairway.dev/nginx-path: \"true\"", &by("number: 80")),
        [
            "all.yaml:11: warning: Ingress shop/a: metadata.annotations.fairway.dev/nginx-path: no such \
          annotation; it is ignored; is it fairway.dev/nginx-paths?"
        ]
    );
    // Where nobody wrote Services down, none is missed.
    assert_eq!(problems(&ingress("a", "", "/", &by("number: 1"))), [""; 0]);

    // Two that want the same, and a canary, which is to.
    let two = |annotations: &str, path: &str| {
        let (port, old) = (by("number: 80"), "2026-01-01T00:00:00Z");
        let older = ingress("b", "", "/", &port);
        let older = older
            .replace("namespace: shop", &format!("namespace: shop\n  creationTimestamp: {old}"));
        problems(&format!("{service}{}{older}", ingress("a", annotations, path, &port)))
    };
    assert_eq!(
        two("", "/"),
        [
            "all.yaml:17: warning: Ingress shop/a: spec.rules[0].http.paths[0].path: Ingress shop/b has the same \
          host and path, and goes before: it is older or, of one age, the first by name"
        ]
    );
    assert_eq!(two("", "/a"), [""; 0]);
    assert_eq!(two("nginx.ingress.kubernetes.io/canary: \"true\"", "/"), [""; 0]);

    assert_eq!(
        problems(
            "apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: web}
spec: {backend: {serviceName: web, servicePort: 80}}
"
        ),
        [
            "all.yaml:1: warning: Ingress default/web: apiVersion: API servers since 1.22 do not know \
          extensions/v1beta1; say networking.k8s.io/v1"
        ]
    );
}

#[test]
fn annotations_are_named_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let text = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: web
  annotations:
    nginx.ingress.kubernetes.io/proxy-body-size: 8 MB
    nginx.ingress.kubernetes.io/server-snippet: deny all;
    nginx.ingress.kubernetes.io/auth-type: digest
spec:
  defaultBackend: {service: {name: web, port: {number: 80}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: foreign
  annotations:
    nginx.ingress.kubernetes.io/auth-type: digest
spec:
  ingressClassName: other
";
    std::fs::write(folder.path().join("all.yaml"), text).unwrap();
    let cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    let checked = manifests::check(&[folder.path().into()], cidrs, DEFAULT_NODE_PORTS).unwrap();
    let found = checked.problems.iter().map(|problem| {
        (problem.line.unwrap(), problem.severity, problem.message.split([':', ';']).next().unwrap())
    });
    use manifests::Severity::{Error, Warning};
    assert_eq!(
        found.collect::<Vec<_>>(),
        [
            (1, Error, "it was never good, and is not served until it is"),
            (6, Warning, "not honoured"),
            (7, Warning, "not supported"),
            (8, Error, "digest is not supported"),
        ]
    );
    assert!(checked.model.ingresses.values().all(|ingress| ingress.denied));
}
