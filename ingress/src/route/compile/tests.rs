//! Tables that are made from the ones before are what they would be if made at once.

use fairway_model::{
    Affinity, Backend, BackendPort, Canary, Change, ClientTls, Endpoint, EndpointState, Endpoints,
    Hints, IngressPath, IngressRule, IngressTls, Object, PathType, Protocol, Secret, Sensitive,
    ServicePort, Template, TlsVersion,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const NAMES: [&str; 7] =
    ["", "a.test", "www.a.test", "b.test", "*.b.test", "x.b.test", "www.x.b.test"];

fn secret_name(number: u8) -> ObjectName {
    ObjectName::new("shop", format!("secret-{number}"))
}

fn backend() -> impl Strategy<Value = Backend> {
    let port = select(vec![BackendPort::Number(80), BackendPort::Name("web".to_owned())]);
    (select(vec!["a", "b", "c"]), port)
        .prop_map(|(service, port)| Backend { service: service.to_owned(), port })
}

fn path() -> impl Strategy<Value = IngressPath> {
    let kind = select(vec![PathType::Exact, PathType::Prefix, PathType::ImplementationSpecific]);
    let path = select(vec!["/", "/a", "/a/", "/b(.*)", "/(", "/a/../b", ""]);
    (path, kind, backend()).prop_map(|(path, kind, backend)| IngressPath {
        path: path.to_owned(),
        kind,
        backend,
    })
}

/// One annotation, more or less.
fn say(options: &mut Options, what: u8, value: u8) {
    let name = NAMES[usize::from(value) % NAMES.len()].to_owned();
    match what {
        0 => options.use_regex = true,
        1 => options.rewrite_target = Some(Template::text("/a")),
        2 => options.from_to_www = true,
        3 if !name.is_empty() => options.server_aliases.push(name),
        4 => options.canary = Some(Canary { weight: value.into(), ..Canary::default() }),
        5 => {
            options.basic_auth =
                Some(BasicAuth { secret: secret_name(value % 3), realm: String::new() });
        }
        6 => {
            let verify = [VerifyClient::On, VerifyClient::Off][usize::from(value) % 2];
            let (secret, common_name) = (secret_name(value % 3), Some("CN=(".to_owned()));
            let common_name = common_name.filter(|_| value > 4);
            options.client_tls =
                Some(ClientTls { secret, verify, common_name, ..ClientTls::default() });
        }
        7 => {
            let (service, port) =
                (["a", "b", "c"][usize::from(value) % 3], BackendPort::Number(80));
            options.default_backend = Some(Backend { service: service.to_owned(), port });
        }
        8 => options.app_root = Some(["/app", "elsewhere"][usize::from(value) % 2].to_owned()),
        9 => options.passthrough = true,
        10 => options.min_tls = Some(TlsVersion::V13),
        11 => options.ciphers = vec![format!("CIPHER-{value}")],
        12 => options.affinity = Some(Affinity { name, ..Affinity::default() }),
        _ => options.body_size = Some(value.into()),
    }
}

fn ingress() -> impl Strategy<Value = Ingress> {
    let name = select(NAMES.to_vec());
    let rule = (name.clone(), vec(path(), 0..4))
        .prop_map(|(host, paths)| IngressRule { host: host.to_owned(), paths });
    let hosts = vec(select(NAMES[1..].to_vec()).prop_map(str::to_owned), 0..3);
    let tls = (hosts, option::of(0..3_u8))
        .prop_map(|(hosts, secret)| IngressTls { hosts, secret: secret.map(secret_name) });
    let said = vec((0..14_u8, 0..7_u8), 0..4);
    let gateway = select(vec![None, None, Some("own"), Some("other")]);
    (
        (0..6_u8, 0..3_u64, gateway, any::<bool>(), prop::bool::weighted(0.1)),
        (vec(rule, 0..4), vec(tls, 0..3), option::weighted(0.3, backend()), said),
    )
        .prop_map(|((name, created, gateway, nginx, denied), (rules, tls, backend, said))| {
            let mut options = Box::<Options>::default();
            said.into_iter().for_each(|(what, value)| self::say(&mut options, what, value));
            Ingress {
                name: ObjectName::new("shop", format!("ingress-{name}")),
                created,
                gateway: gateway.map(str::to_owned),
                nginx,
                default_backend: backend,
                rules,
                denied,
                tls,
                options,
            }
        })
}

fn service() -> impl Strategy<Value = Service> {
    let port = (select(vec!["web", "other"]), select(vec![80, 81]));
    (select(vec!["a", "b", "c"]), vec(port, 0..3)).prop_map(|(name, ports)| {
        let ports = ports.into_iter().map(|(name, port)| ServicePort {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            port,
            node_port: None,
        });
        Service {
            name: ObjectName::new("shop", name),
            ports: ports.collect(),
            ..Service::default()
        }
    })
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    let lists = vec((select(vec!["web", "other"]), vec(1..4_u8, 0..3)), 0..3);
    (select(vec!["a", "b", "c"]), lists).prop_map(|(service, lists)| {
        let endpoint = |last: u8| Endpoint {
            address: [192, 0, 2, last].into(),
            port: 80,
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        let list = |lasts: Vec<u8>| lasts.into_iter().map(endpoint).collect();
        let ports = lists.into_iter().map(|(name, lasts)| (name.to_owned(), list(lasts)));
        Endpoints { service: ObjectName::new("shop", service), ports: ports.collect() }
    })
}

fn secret() -> impl Strategy<Value = Secret> {
    let users = option::of(select(vec!["me:{PLAIN}x", "me:?", "you:{PLAIN}y"]));
    (0..3_u8, users, option::of(select(vec!["one", "two"]))).prop_map(|(name, users, ca)| Secret {
        name: secret_name(name),
        users: users.map(|users| Sensitive::new(users.to_owned())),
        ca: ca.map(str::to_owned),
        ..Secret::default()
    })
}

fn gateway() -> impl Strategy<Value = Gateway> {
    let default_backend = option::of((select(vec!["a", "b"]), Just(BackendPort::Number(80))));
    let said = vec((0..14_u8, 0..7_u8), 0..3);
    (select(vec!["", "own", "other"]), default_backend, option::of(0..3_u8), said).prop_map(
        |(name, default_backend, certificate, said)| {
            let mut gateway = Gateway {
                name: name.to_owned(),
                default_backend: default_backend
                    .map(|(service, port)| (ObjectName::new("shop", service), port)),
                default_certificate: certificate.map(secret_name),
                ..Gateway::default()
            };
            said.into_iter()
                // Of everybody's there is none.
                .filter(|(what, _)| ![3, 4].contains(what))
                .for_each(|(what, value)| self::say(&mut gateway.options, what, value));
            gateway
        },
    )
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let put = prop_oneof![
        12 => ingress().prop_map(Object::Ingress),
        4 => service().prop_map(Object::Service),
        4 => endpoints().prop_map(Object::Endpoints),
        4 => secret().prop_map(Object::Secret),
        1 => gateway().prop_map(Object::Gateway),
    ];
    (put, prop::bool::weighted(0.3)).prop_map(|(object, gone)| match gone {
        true => Change::Delete(object.key()),
        false => Change::Put(object),
    })
}

/// All that a table decides by, in an order.
fn said(table: &Table) -> Vec<String> {
    let host = |name: &str, host: &Arc<Host>| {
        let Host { name: own, paths, fallback, app_root, tls, certified, .. } = &**host;
        let Host { min_tls, ciphers, passthrough, identities, .. } = &**host;
        let rest = (app_root, tls, certified, min_tls, ciphers, passthrough, identities);
        format!("host {name:?}: {own:?} {:?} {fallback:?} {rest:?}", paths.routes())
    };
    let mut said = Vec::new();
    for (name, named) in table.hosts.iter() {
        said.push(match named {
            Named::Host(known) => host(name, known),
            Named::Twin(of) => format!("host {name:?}: the twin of {of:?}"),
        });
    }
    said.extend(table.wildcards.iter().map(|(name, known)| host(&format!("*.{name}"), known)));
    said.extend(table.any.iter().map(|known| host("", known)));
    let Certificates { exact, wildcards, unnamed, default } = &table.certificates;
    said.extend(exact.iter().map(|(name, secret)| format!("certificate {name}: {secret:?}")));
    said.extend(wildcards.iter().map(|(name, secret)| format!("certificate *.{name}: {secret:?}")));
    said.push(format!("{unnamed:?} {default:?} {:?} {:?}", table.fallback, table.certified));
    let Table { min_tls, ciphers, trust, hsts, redirect_status, .. } = table;
    said.push(format!("{min_tls:?} {ciphers:?} {trust:?} {hsts:?} {redirect_status:?}"));
    said.sort();
    said
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn objects_that_change_one_by_one_make_what_all_of_them_make_at_once(
        steps in vec(vec(change(), 1..4), 1..10),
    ) {
        let mut model = Model::default();
        let mut compiler = Compiler::new("own", Public::default());
        let mut known = BTreeSet::new();
        for step in steps {
            step.into_iter().for_each(|change| model.apply(change));
            let Update { problems, .. } = compiler.update(&Arc::new(model.clone()));
            for problem in problems.over {
                prop_assert!(known.remove(&problem), "{}", problem);
            }
            for problem in problems.new {
                prop_assert!(known.insert(problem.clone()), "{}", problem);
            }
            let (whole, problems) = Table::compile(&model, "own");
            prop_assert_eq!(said(compiler.table()), said(&whole));
            prop_assert_eq!(known.iter().cloned().collect::<Vec<_>>(), problems);
            prop_assert_eq!(compiler.problems(), known.len());
        }
    }
}

fn of_host(name: &str, host: &str, path: &str) -> Ingress {
    let backend = Backend { service: "web".to_owned(), port: BackendPort::Number(80) };
    let paths = vec![IngressPath { path: path.to_owned(), kind: PathType::Prefix, backend }];
    Ingress {
        name: ObjectName::new("shop", name),
        rules: vec![IngressRule { host: host.to_owned(), paths }],
        ..Ingress::default()
    }
}

/// The hosts of two tables that are not shared.
fn different(one: &Table, other: &Table) -> Vec<String> {
    let same = |name: &str, named: &Named| match (named, other.hosts.get(name)) {
        (Named::Host(host), Some(Named::Host(other))) => Arc::ptr_eq(host, other),
        _ => false,
    };
    let all = one.hosts.iter().filter(|(name, named)| !same(name, named));
    all.map(|(name, _)| name.clone()).collect()
}

#[test]
fn a_change_makes_the_hosts_that_it_is_about_and_no_others() {
    let mut model = Model::default();
    let service = Service { name: ObjectName::new("shop", "web"), ..Service::default() };
    model.services.insert(service.clone());
    for number in 0..1000 {
        let name = format!("host-{number}");
        model.ingresses.insert(of_host(&name, &format!("{name}.test"), "/"));
    }
    let mut compiler = Compiler::new("", Public::default());
    assert_eq!(compiler.update(&Arc::new(model.clone())).hosts, 1000);
    let mut check = |model: &Model, hosts: usize, names: &[&str]| {
        let before = Arc::clone(compiler.table());
        let update = compiler.update(&Arc::new(model.clone()));
        assert_eq!(update.hosts, hosts);
        let mut different = different(compiler.table(), &before);
        different.sort();
        assert_eq!(different, names);
    };

    model.ingresses.insert(of_host("host-7", "host-7.test", "/other"));
    check(&model, 1, &["host-7.test"]);
    // Another one for the same host, and one that takes it to another host.
    model.ingresses.insert(of_host("more", "host-8.test", "/more"));
    check(&model, 1, &["host-8.test"]);
    model.ingresses.insert(of_host("more", "new.test", "/more"));
    check(&model, 2, &["host-8.test", "new.test"]);

    // Whom they lead to, if that is another port; what lets clients in, if it lets others in.
    model.services.insert(Service { affinity: Some(7), ..service.clone() });
    check(&model, 0, &[]);
    let mut own = of_host("own", "own.test", "/");
    own.rules[0].paths[0].backend.service = "own".to_owned();
    own.options.basic_auth = Some(BasicAuth { secret: secret_name(1), ..BasicAuth::default() });
    model.ingresses.insert(own);
    check(&model, 1, &["own.test"]);
    let ports = vec![ServicePort { port: 80, ..ServicePort::default() }];
    model.services.insert(Service { name: ObjectName::new("shop", "own"), ports, ..service });
    check(&model, 1, &["own.test"]);
    for (number, hosts) in [(1, 1), (2, 0)] {
        model.secrets.insert(Secret { name: secret_name(number), ..Secret::default() });
        check(&model, hosts, &["own.test"][..hosts]);
    }
    // What holds for all.
    model.gateways.insert(Gateway::default());
    check(&model, 0, &[]);
    let hsts = Some(Hsts::default());
    model.gateways.insert(Gateway { hsts, ..Gateway::default() });
    assert_eq!(compiler.update(&Arc::new(model)).hosts, 1002);
}
