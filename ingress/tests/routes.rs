//! Which route a request takes, and what is answered where there is none.

use fairway_ingress::message::{Fields, Known};
use fairway_ingress::route::{Decision, Problem, Request, Table};
use fairway_model::{
    Backend, BackendPort, Ingress, IngressPath, IngressRule, Model, ObjectName, Options, PathType,
    Service, ServicePort,
};
use http::Method;
use proptest::collection::vec;
use proptest::prelude::*;

/// A model of rules like `shop/web example.com Prefix /cart cart`, one a line, from older to younger: Ingress,
/// host (`_` for none), how the path is compared, the path, and the Service. With a `!` before it, the Ingress
/// has the quirks of ingress-nginx; with a `?`, `use-regex`; with a `~`, both. All Services of one letter or word in
/// `shop` exist, except `gone`.
fn model(rules: &str) -> Model {
    let mut model = Model::default();
    for (created, line) in (1..).zip(lines(rules)) {
        let [name, host, kind, path, service] = words(line);
        let bare = name.trim_start_matches(['!', '?', '~']);
        let (namespace, bare) = bare.split_once('/').expect("namespace/name");
        let bare = ObjectName::new(namespace, bare);
        let known = model.ingresses.get(&bare).cloned();
        let mut ingress = known.unwrap_or(Ingress { name: bare, created, ..Ingress::default() });
        ingress.nginx = name.starts_with(['!', '~']);
        if name.starts_with(['?', '~']) {
            ingress.options = Box::new(Options { use_regex: true, ..Options::default() });
        }
        ingress.rules.push(IngressRule {
            host: host.replace('_', ""),
            paths: vec![IngressPath {
                path: path.to_owned(),
                kind: match kind {
                    "Exact" => PathType::Exact,
                    "Prefix" => PathType::Prefix,
                    _ => PathType::ImplementationSpecific,
                },
                backend: backend(service),
            }],
        });
        model.ingresses.insert(ingress);
        if service != "gone" {
            model.services.insert(Service {
                name: ObjectName::new(namespace, service),
                ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
                ..Service::default()
            });
        }
    }
    model
}

fn backend(service: &str) -> Backend {
    Backend { service: service.to_owned(), port: BackendPort::Number(80) }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn words<const N: usize>(line: &str) -> [&str; N] {
    let words: Vec<_> = line.split_whitespace().collect();
    words.try_into().unwrap_or_else(|words| panic!("{line}: {words:?}"))
}

/// What becomes of a request for `target` at `host`: the Service, or status and `Location`, and the quirk.
fn outcome(table: &Table, host: &str, target: &str) -> String {
    let request = Request {
        method: &Method::GET,
        host: Some(host),
        target,
        headers: &Fields::new(),
        peer: ([192, 0, 2, 1], 40_000).into(),
        port: 80,
        tls: None,
        id: "1",
        dice: 0,
    };
    match table.decide(&request) {
        Decision::Forward(forward) => match forward.quirk {
            Some(quirk) => format!("{} {quirk:?}", forward.target.service.name),
            None => forward.target.service.name.clone(),
        },
        Decision::Answer(answer) => {
            let location = answer.headers.text(Known::Location);
            let location = location.map(|to| format!(" {to}"));
            format!("{}{}", answer.status.as_u16(), location.unwrap_or_default())
        }
    }
}

/// Holds requests like `example.com /cart -> cart`, one a line, against the rules.
fn check(what: &str, rules: &str, requests: &str) {
    let (table, _) = Table::compile(&model(rules), "");
    for line in lines(requests) {
        let (request, expected) = line.split_once(" -> ").expect("request -> outcome");
        let [host, target] = words(request);
        assert_eq!(outcome(&table, host, target), expected, "{what}: {line}");
    }
}

/// As the conformance tests of Kubernetes' Ingress have it.
#[test]
fn paths_of_kubernetes() {
    check(
        "exact",
        "shop/a exact.test Exact /foo a",
        "exact.test /foo -> a
         exact.test /foo?x=/bar -> a
         exact.test /foo/ -> 404
         exact.test /FOO -> 404
         exact.test /foobar -> 404
         exact.test /foo/bar -> 404
         exact.test / -> 404",
    );
    check(
        "exact with a slash at its end",
        "shop/a exact.test Exact /foo/ a",
        "exact.test /foo/ -> a
         exact.test /foo -> 404
         exact.test /foo/x -> 404",
    );
    check(
        "prefix",
        "shop/a prefix.test Prefix /foo a
         shop/a prefix.test Prefix /aaa/bb b",
        "prefix.test /foo -> a
         prefix.test /foo/ -> a
         prefix.test /foo/x/y -> a
         prefix.test /foobar -> 404
         prefix.test /aaa/bb -> b
         prefix.test /aaa/bb/c -> b
         prefix.test /aaa/bbb -> 404
         prefix.test /aaa -> 404
         prefix.test /Foo -> 404",
    );
    check(
        "prefix with a slash at its end",
        "shop/a prefix.test Prefix /aaa/bbb/ a",
        "prefix.test /aaa/bbb -> a
         prefix.test /aaa/bbb/ -> a
         prefix.test /aaa/bbb/c -> a
         prefix.test /aaa/bbbxyz -> 404",
    );
    check(
        "the longer of two prefixes that differ in the slash",
        "shop/a prefix.test Prefix /foo a
         shop/a prefix.test Prefix /foo/ b",
        "prefix.test /foo -> b
         prefix.test /foo/ -> b
         prefix.test /foo/x -> b",
    );
    check(
        "all paths",
        "shop/a prefix.test Prefix / a",
        "prefix.test / -> a
         prefix.test /x -> a
         prefix.test //x/../y -> a",
    );
    check(
        "longest first, exact before prefix",
        "shop/a mixed.test Prefix / root
         shop/a mixed.test Prefix /foo prefix
         shop/a mixed.test Exact /foo exact
         shop/a mixed.test Prefix /foo/bar longer",
        "mixed.test /foo -> exact
         mixed.test /foo/ -> prefix
         mixed.test /foo/x -> prefix
         mixed.test /foo/bar -> longer
         mixed.test /foo/bar/x -> longer
         mixed.test /foo/barx -> prefix
         mixed.test /fo -> root",
    );
    check(
        "begins with",
        "shop/a specific.test ImplementationSpecific /foo a
         shop/a specific.test Prefix /foo/b b",
        "specific.test /foo -> a
         specific.test /foobar -> a
         specific.test /foo/x -> a
         specific.test /foo/b/c -> b
         specific.test /fo -> 404",
    );
}

#[test]
fn paths_are_compared_in_their_normal_form() {
    check(
        "normal form",
        "shop/a normal.test Prefix / root
         shop/a normal.test Prefix /admin admin
         shop/a normal.test Exact /caf%C3%A9 cafe",
        "normal.test //admin -> admin
         normal.test /x/../admin/y -> admin
         normal.test /%61dmin -> admin
         normal.test /admin%2Fusers -> admin
         normal.test /x/%2e%2e/admin -> admin
         normal.test /caf%c3%a9 -> cafe
         normal.test /x/..%2Fadmin -> 400
         normal.test /x/..;/admin -> 400
         normal.test /a%00 -> 400
         normal.test /.. -> 400
         normal.test admin -> 400",
    );
}

#[test]
fn hosts() {
    check(
        "hosts",
        "shop/a foo.test Prefix / exact
         shop/a *.foo.test Prefix / wildcard
         shop/a _ Prefix / any",
        "foo.test / -> exact
         FOO.Test / -> exact
         foo.test:8080 / -> exact
         foo.test. / -> exact
         bar.foo.test / -> wildcard
         baz.bar.foo.test / -> any
         .foo.test / -> any
         xfoo.test / -> any
         192.0.2.7 / -> any
         [2001:db8::1]:80 / -> any
         foo.test:x / -> 400
         a@b / -> 400
         a/b / -> 400
         : / -> 400",
    );
    check(
        "a wildcard is for one label, and not for the name without it",
        "shop/a *.foo.test Prefix / wildcard",
        "bar.foo.test / -> wildcard
         BAR.foo.test:443 / -> wildcard
         foo.test / -> 404
         baz.bar.foo.test / -> 404
         barfoo.test / -> 404",
    );
    check(
        "a host's paths are its own",
        "shop/a foo.test Prefix /foo foo
         shop/a *.test Prefix /bar bar
         shop/a _ Prefix /baz baz",
        "foo.test /foo -> foo
         foo.test /bar -> 404
         foo.test /baz -> 404
         x.test /bar -> bar
         x.test /baz -> 404
         x.y /baz -> baz",
    );
}

#[test]
fn of_several_that_want_the_same_the_oldest_has_it() {
    let rules = "shop/z foo.test Prefix /a old
                 shop/a foo.test Prefix /a young
                 shop/a foo.test Prefix /b b
                 shop/a foo.test Prefix /c gone
                 shop/a foo.test Prefix /x/..%2Fy b";
    check(
        "oldest",
        rules,
        "foo.test /a -> old
         foo.test /b -> b
         foo.test /c -> 503",
    );
    let (_, problems) = Table::compile(&model(rules), "");
    let texts: Vec<_> = problems.iter().map(Problem::to_string).collect();
    assert_eq!(
        texts,
        [
            "Ingress shop/a: path /a of host foo.test: shop/z has it already",
            "Ingress shop/a: path /x/..%2Fy of host foo.test: the path has dots that only some would resolve: 503",
            "Ingress shop/a: there is no Service shop/gone with a TCP port 80: 503",
        ]
    );
}

#[test]
fn expressions() {
    check(
        "nginx: one Ingress makes the host's paths expressions, without case and without end",
        "!shop/a regex.test Exact /exact exact
         !shop/a regex.test Prefix / root
         ~shop/b regex.test ImplementationSpecific /api/v[0-9]+ api
         ~shop/b regex.test ImplementationSpecific /[A-Z]{3}9 three",
        "regex.test /exact -> exact
         regex.test /exactly -> exact Expression
         regex.test /EXACT -> exact IgnoredCase
         regex.test /api/v1/x -> api
         regex.test /API/V1 -> api IgnoredCase
         regex.test /abc9 -> three
         regex.test /abc -> root
         regex.test /x/api/v1 -> root",
    );
    check(
        "nginx: the longest text first, even before an exact path",
        "!shop/a regex.test Exact /uuid exact
         ~shop/b regex.test ImplementationSpecific /[A-Z]{3} three",
        "regex.test /uuid -> three",
    );
    check(
        "no quirks: an Ingress' own paths are expressions, nobody else's",
        "?shop/b regex.test ImplementationSpecific /api/v[0-9]+ api
         ?shop/b regex.test ImplementationSpecific /(.*) all
         shop/a regex.test Exact /exact exact
         shop/a regex.test Prefix /web web
         shop/a regex.test Prefix /api/v1/own own",
        "regex.test /exact -> exact
         regex.test /exactly -> all
         regex.test /EXACT -> all
         regex.test /web/x -> web
         regex.test /api/v2 -> api
         regex.test /api/v1/own -> own",
    );
    check(
        "nginx: the longest text first, whatever it fits",
        "~shop/a regex.test ImplementationSpecific /foo.* short
         ~shop/a regex.test ImplementationSpecific /foo/(bar|x) long",
        "regex.test /foo/bar -> long
         regex.test /foo/baz -> short",
    );
    check(
        "nginx: one that cannot be read costs nobody else",
        "~shop/a regex.test ImplementationSpecific /a(?=b) a
         ~shop/a regex.test ImplementationSpecific /b b",
        "regex.test /ab -> 503
         regex.test /b -> b",
    );
}

/// Who protects a path that cannot be read does not want it to be served by somebody who protects less.
#[test]
fn what_cannot_be_read_is_not_served_by_a_shorter_path() {
    check(
        "a path",
        "shop/a a.test Prefix / root
         shop/b a.test Prefix /admin/%zz admin
         shop/b a.test Prefix /own own",
        "a.test /admin/%25zz -> 503
         a.test /admin/x -> 503
         a.test /administer -> root
         a.test /own -> own
         a.test / -> root",
    );
    for owner in ["~shop/b", "?shop/b"] {
        check(
            "an expression",
            &format!(
                "shop/a a.test Prefix / root
                 {owner} a.test ImplementationSpecific /admin/(?=x) admin
                 {owner} a.test ImplementationSpecific /own own"
            ),
            "a.test /admin/x/y -> 503
             a.test /Admin/y -> 503
             a.test /adm -> root
             a.test /own -> own
             a.test / -> root",
        );
    }
    let mut model = model(
        "shop/a a.test Prefix / root
         shop/b a.test Prefix /admin admin",
    );
    let name = ObjectName::new("shop", "b");
    let denied = Ingress { denied: true, ..model.ingresses.get(&name).expect("b").clone() };
    model.ingresses.insert(denied);
    let (table, problems) = Table::compile(&model, "");
    assert_eq!((outcome(&table, "a.test", "/admin/x"), problems), ("503".to_owned(), Vec::new()));
    assert_eq!(outcome(&table, "a.test", "/administer"), "root");
}

/// An Ingress with a path that the reader refuses keeps its paths from going where another one's shorter path leads.
#[test]
fn paths_of_an_ingress_that_cannot_be_read_go_nowhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let ingress = |name: &str, paths: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {{name: {name}}},
              spec: {{rules: [{{host: a.test, http: {{paths: [{paths}]}}}}]}}}}\n---\n"
        )
    };
    let path = |path: &str, kind: &str, port: &str| {
        format!("{{path: {path}, pathType: {kind}, backend: {{service: {{name: {port}}}}}}}")
    };
    let text = ingress("a", &path("/", "Prefix", "root, port: {number: 80}"))
        + &ingress("b", &path("/admin", "Prefix", "admin"))
        + &ingress("c", &path("/x//y", "Prefix", "c, port: {number: 80}"))
        + "{apiVersion: v1, kind: Service, metadata: {name: root}, spec: {ports: [{port: 80}]}}";
    std::fs::write(folder.path().join("all.yaml"), text).expect("a file");
    let ranges = vec!["10.96.0.0/16".parse().expect("a range")];
    let checked =
        fairway_controlplane::manifests::check(&[folder.path().into()], ranges, 30000..=32767);
    let (table, _) = Table::compile(&checked.expect("manifests").model, "");
    for (target, expected) in
        [("/", "root"), ("/admin/x", "503"), ("/x/y/z", "503"), ("/x//y", "503"), ("/x", "root")]
    {
        assert_eq!(outcome(&table, "a.test", target), expected, "{target}");
    }
}

#[test]
fn slashes_of_nginx() {
    check(
        "only with a slash: the client is sent there",
        "!shop/a slash.test Prefix /foo/ a
         !shop/a slash.test Exact /bar/ b
         !shop/a slash.test ImplementationSpecific /baz/ c
         !shop/a slash.test Prefix / root",
        "slash.test /foo -> 301 /foo/
         slash.test /foo?a=1 -> 301 /foo/?a=1
         slash.test /foo/ -> a
         slash.test /foo/x -> a
         slash.test /bar -> 301 /bar/
         slash.test /baz -> 301 /baz/
         slash.test //foo -> 301 /foo/
         slash.test /x -> root",
    );
    check(
        "without one there is something",
        "!shop/a slash.test Prefix /foo/ a
         !shop/a slash.test Exact /foo b
         !shop/a slash.test ImplementationSpecific /bar c
         !shop/a slash.test Prefix /bar/ d",
        "slash.test /foo -> b
         slash.test /bar -> d
         slash.test /barx -> c PartOfElement",
    );
}

#[test]
fn a_gateway_serves_what_is_for_it() {
    let mut model = model("shop/a foo.test Prefix / a");
    let mut ingress = model.ingresses.values().next().unwrap().clone();
    ingress.gateway = Some("inner".to_owned());
    model.ingresses.insert(ingress);
    let (outer, _) = Table::compile(&model, "outer");
    let (inner, _) = Table::compile(&model, "inner");
    assert_eq!(outcome(&outer, "foo.test", "/"), "404");
    assert_eq!(outcome(&inner, "foo.test", "/"), "a");
}

#[test]
fn default_backends() {
    let mut model = model("shop/a foo.test Prefix /a a\nshop/b bar.test Prefix /b b");
    let mut with = |name: &str, service: &str| {
        let known = model.ingresses.get(&ObjectName::new("shop", name)).cloned();
        let mut ingress = known.unwrap_or_default();
        ingress.name = ObjectName::new("shop", name);
        ingress.default_backend = Some(backend(service));
        model.ingresses.insert(ingress);
        Table::compile(&model, "").0
    };
    let of_a_host = with("b", "a");
    assert_eq!(outcome(&of_a_host, "bar.test", "/x"), "a");
    assert_eq!(outcome(&of_a_host, "foo.test", "/x"), "a");
    let of_all = with("bare", "b");
    assert_eq!(outcome(&of_all, "bar.test", "/x"), "a");
    assert_eq!(outcome(&of_all, "foo.test", "/x"), "b");
    assert_eq!(outcome(&of_all, "nobody.test", "/x"), "b");
}

/// The rule for a path, found the slow way: no quirks, no expressions.
fn naive<'r>(rules: &'r [(PathType, String)], path: &str) -> Option<&'r (PathType, String)> {
    let elements = |path: &str| -> Vec<String> {
        path.split('/').filter(|element| !element.is_empty()).map(str::to_owned).collect()
    };
    let fits = |(kind, rule): &&(PathType, String)| match kind {
        PathType::Exact => rule == path,
        PathType::Prefix => elements(path).starts_with(&elements(rule)),
        PathType::ImplementationSpecific => path.starts_with(rule.as_str()),
    };
    let bare = |rule: &str| rule.strip_suffix('/').unwrap_or(rule).len();
    rules.iter().filter(fits).max_by_key(|(kind, rule)| match kind {
        PathType::Exact => (1, 0, 0, 0),
        PathType::Prefix => (0, bare(rule), 1, rule.len()),
        PathType::ImplementationSpecific => (0, rule.len(), 0, 0),
    })
}

/// Models of one Ingress with this path.
fn one_path(path: &str, kind: PathType, nginx: bool, use_regex: bool) -> Model {
    let mut model = model("shop/a x.test Exact /x a");
    let mut ingress = model.ingresses.values().next().cloned().expect("it has one");
    ingress.nginx = nginx;
    ingress.options = Box::new(Options { use_regex, ..Options::default() });
    ingress.rules[0].paths =
        vec![IngressPath { path: path.to_owned(), kind, backend: backend("a") }];
    model.ingresses.insert(ingress);
    model
}

fn kind() -> impl Strategy<Value = PathType> {
    use PathType::{Exact, ImplementationSpecific, Prefix};
    prop_oneof![Just(Exact), Just(Prefix), Just(ImplementationSpecific)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn routes_are_those_of_a_slow_matcher(
        rules in vec((kind(), "(/[ab]{1,2}){0,3}/?"), 1..10),
        path in "(/[ab]{1,3}){0,4}/?",
    ) {
        let slash = |path: String| if path.starts_with('/') { path } else { "/".to_owned() };
        let rules: Vec<_> = rules.into_iter().map(|(kind, rule)| (kind, slash(rule))).collect();
        let path = slash(path);
        let paths = rules.iter().map(|(kind, path)| IngressPath {
            path: path.clone(),
            kind: *kind,
            backend: backend("a"),
        });
        let mut model = model("shop/a x.test Exact /x a");
        let mut ingress = model.ingresses.values().next().unwrap().clone();
        ingress.rules[0].paths = paths.collect();
        model.ingresses.insert(ingress);
        let (table, _) = Table::compile(&model, "");
        let request = Request {
            method: &Method::GET,
            host: Some("x.test"),
            target: &path,
            headers: &Fields::new(),
            peer: ([192, 0, 2, 1], 40_000).into(),
            port: 80,
            tls: None,
            id: "1",
            dice: 0,
        };
        let found = match table.decide(&request) {
            Decision::Forward(forward) => Some((forward.route.kind, forward.route.path.clone())),
            Decision::Answer(answer) => {
                prop_assert_eq!(answer.status, 404);
                None
            }
        };
        prop_assert_eq!(found, naive(&rules, &path).cloned());
    }

    #[test]
    fn expressions_are_tried_from_the_longest_on(
        rules in vec("/[aB]{0,2}(|\\(b\\|/\\)\\?|[ab]\\*|\\|/b|[.]+|\\(\\?-i\\)B|\\$)", 1..8),
        path in "/|(/[abB]{1,3}){1,2}",
    ) {
        let mut model = one_path("/", PathType::ImplementationSpecific, true, true);
        let mut ingress = model.ingresses.values().next().cloned().expect("it has one");
        ingress.rules[0].paths = rules
            .iter()
            .map(|path| IngressPath { path: path.clone(), ..ingress.rules[0].paths[0].clone() })
            .collect();
        model.ingresses.insert(ingress);
        let (table, _) = Table::compile(&model, "");
        let mut sorted = rules;
        sorted.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| b.cmp(a)));
        let expected = sorted.iter().find(|rule| {
            let made = regex::bytes::RegexBuilder::new(&format!("^(?:{rule})"))
                .case_insensitive(true)
                .unicode(false)
                .build();
            made.is_ok_and(|made| made.is_match(path.as_bytes()))
        });
        let host = "x.test";
        let (headers, peer) = (Fields::new(), ([192, 0, 2, 1], 40_000).into());
        let request = Request {
            method: &Method::GET,
            host: Some(host),
            target: &path,
            headers: &headers,
            peer,
            port: 80,
            tls: None,
            id: "1",
            dice: 0,
        };
        let found = match table.decide(&request) {
            Decision::Forward(forward) => Some(forward.route.path.clone()),
            Decision::Answer(_) => None,
        };
        prop_assert_eq!(found.as_ref(), expected);
    }

    #[test]
    fn no_rule_is_too_strange(
        rule in "(/|[ab]|\\.|%|[(\\[\\])*+?{}|^$0-9]|é){0,12}|\\PC{0,12}",
        kind in kind(),
        nginx in any::<bool>(),
        use_regex in any::<bool>(),
        path in "(/|[ab]|é){0,8}",
    ) {
        let (table, problems) = Table::compile(&one_path(&rule, kind, nginx, use_regex), "");
        let outcome = outcome(&table, "x.test", &format!("/{path}"));
        prop_assert!(problems.is_empty() || outcome.starts_with(|status: char| status.is_ascii_digit()), "{problems:?}: {outcome}");
    }
}
