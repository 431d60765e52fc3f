//! What annotations make of a request, one case a line.

use std::net::SocketAddr;

use fairway_ingress::message::{Edits, Fields, Known};
use fairway_ingress::route::{
    ClientCertificate, Decision, Forward, Limiter, Public, Refused, Request, Sticky, Table, Tls,
    Verdict, Why,
};
use fairway_model::Model;
use http::{HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use serde_json::{Value, json};

/// An Ingress `shop/NAME` with `options` and a path for each Service: `/` is for `web`, `/api` for `api`.
fn ingress(name: &str, host: &str, options: &Value) -> Value {
    let path = |path: &str, service: &str| json!({ "path": path, "type": "Prefix", "backend": { "service": service, "port": 80 } });
    json!({
        "name": { "namespace": "shop", "name": name },
        "nginx": true,
        "rules": [{ "host": host, "paths": [path("/", "web"), path("/api", "api")] }],
        "options": options,
    })
}

/// Services and Secrets that there are, and what else `more` says of a model.
fn model(more: &Value) -> Model {
    let service = |name: &str| {
        json!({
            "name": { "namespace": "shop", "name": name },
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80 }],
        })
    };
    let name = |name: &str| json!({ "namespace": "shop", "name": name });
    let mut model = json!({
        "services": [service("web"), service("api"), service("next"), service("errors")],
        "secrets": [
            { "name": name("users"), "users": "ann:{PLAIN}secret" },
            { "name": name("ca"), "ca": "PEM" },
        ],
    });
    for (key, value) in more.as_object().expect("an object") {
        model[key] = value.clone();
    }
    serde_json::from_value(model).expect("a model")
}

/// The table of one Ingress for `shop.test`, with TLS if `tls` says so.
fn table(options: &Value, tls: bool) -> Table {
    let mut ingress = ingress("web", "shop.test", options);
    if tls {
        ingress["tls"] = json!([{ "hosts": ["shop.test"] }]);
    }
    Table::compile(&model(&json!({ "ingresses": [ingress] })), "").0
}

/// A request like `GET https://shop.test/a?b=c; Header: value`, and who asks.
struct Asked {
    method: Method,
    tls: bool,
    host: String,
    target: String,
    headers: Fields,
    peer: SocketAddr,
    dice: u64,
}

impl Asked {
    fn new(text: &str) -> Self {
        let mut pieces = text.split("; ");
        let (method, url) =
            pieces.next().and_then(|first| first.split_once(' ')).expect("METHOD URL");
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let slash = rest.find('/').unwrap_or(rest.len());
        let mut asked = Self {
            method: method.parse().expect("a method"),
            tls: scheme == "https",
            host: rest[..slash].to_owned(),
            target: rest[slash..].to_owned(),
            headers: Fields::new(),
            peer: ([192, 0, 2, 1], 40_000).into(),
            dice: 99,
        };
        for piece in pieces {
            let (name, value) = piece.split_once(": ").expect("Name: value");
            match name {
                "from" => asked.peer = SocketAddr::new(value.parse().expect("an address"), 40_000),
                "dice" => asked.dice = value.parse().expect("a number"),
                name => asked.headers.append(name, value),
            }
        }
        asked
    }

    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            host: Some(&self.host),
            target: &self.target,
            headers: &self.headers,
            peer: self.peer,
            port: if self.tls { 443 } else { 80 },
            tls: self.tls.then_some(Tls { server_name: Some(&self.host), client: None }),
            id: "id",
            dice: self.dice,
        }
    }
}

/// In one line: `SERVICE PATH`, with what is still owed, or `STATUS LOCATION`.
fn outcome(table: &Table, request: &Request<'_>) -> String {
    match table.decide(request) {
        Decision::Forward(forward) => {
            let mut text = forward.target.service.name.clone();
            if let Some(path) = &forward.path_and_query {
                text = format!("{text} {path}");
            }
            if forward.password.is_some() {
                text.push_str(" password");
            }
            if let Some(question) = &forward.question {
                text = format!("{text} asks {}", question.url);
            }
            text
        }
        Decision::Answer(answer) => {
            let location = answer.headers.text(Known::Location);
            let location = location.map(|to| format!(" {to}")).unwrap_or_default();
            format!("{}{location}", answer.status.as_u16())
        }
    }
}

/// Holds requests, one a line with what becomes of it behind ` -> `, against an Ingress with `options`.
fn check(what: &str, options: Value, requests: &str) {
    check_table(what, &table(&options, false), requests);
}

fn check_table(what: &str, table: &Table, requests: &str) {
    for line in requests.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (request, expected) = line.split_once(" -> ").expect("request -> outcome");
        assert_eq!(outcome(table, &Asked::new(request).request()), expected, "{what}: {line}");
    }
}

/// The request that a backend gets.
fn forwarded<'t>(table: &'t Table, request: &Request<'_>) -> Box<Forward<'t>> {
    match table.decide(request) {
        Decision::Forward(forward) => forward,
        Decision::Answer(answer) => panic!("{answer:?}"),
    }
}

/// What a backend gets of a header; `None`: it is removed, or as the client sent it.
fn header(forward: &Forward<'_>, name: &str) -> Option<String> {
    set(&forward.headers, name)
}

/// What a header is set to; `None`: it is removed, or stays.
fn set(edits: &Edits, name: &str) -> Option<String> {
    let value = edits.get(name).flatten()?;
    Some(String::from_utf8(value.to_vec()).expect("ASCII"))
}

/// Whether a header is removed.
fn removed(edits: &Edits, name: &str) -> bool {
    edits.get(name) == Some(None)
}

#[test]
fn methods_and_hosts() {
    check(
        "methods and hosts",
        json!({}),
        "GET http://shop.test/ -> web
         PROPFIND http://shop.test/ -> web
         TRACE http://shop.test/ -> 405
         CONNECT http://shop.test/ -> 405
         GET http:/// -> 400
         GET http://other.test/ -> 404",
    );
}

#[test]
fn redirects_to_https() {
    let plain = "GET http://shop.test/api?a=b -> api
                 GET https://shop.test/api -> api";
    let sent = "GET http://shop.test/api?a=b -> 308 https://shop.test/api?a=b
                GET http://shop.test:8080/ -> 308 https://shop.test/
                GET http://shop.test/.well-known/acme-challenge/x -> web
                GET https://shop.test/api -> api
                GET http://shop.test/; X-Forwarded-Proto: https -> 308 https://shop.test/";
    check_table("no TLS", &table(&json!({}), false), plain);
    check_table("TLS", &table(&json!({}), true), sent);
    check_table("off", &table(&json!({ "sslRedirect": false }), true), plain);
    check_table("forced", &table(&json!({ "forceSslRedirect": true }), false), sent);
    let trusting = model(&json!({
        "ingresses": [ingress("web", "shop.test", &json!({ "forceSslRedirect": true }))],
        "gateways": [{ "name": "", "trusted": ["10.0.0.0/8"], "forwardedHeaders": true, "redirectStatus": 301 }],
    }));
    check_table(
        "somebody in front",
        &Table::compile(&trusting, "").0,
        "GET http://shop.test/; X-Forwarded-Proto: https; from: 10.0.0.1 -> web
         GET http://shop.test/; X-Forwarded-Proto: http; from: 10.0.0.1 -> 301 https://shop.test/
         GET http://shop.test/; X-Forwarded-Proto: https -> 301 https://shop.test/",
    );
    let proxied = model(&json!({
        "ingresses": [ingress("web", "shop.test", &json!({ "forceSslRedirect": true }))],
        "gateways": [{ "name": "", "proxyProtocol": true }],
    }));
    let (table, _) = Table::compile(&proxied, "");
    let asked = Asked::new("GET http://shop.test/");
    assert_eq!(outcome(&table, &asked.request()), "308 https://shop.test/");
    assert_eq!(outcome(&table, &Request { port: 443, ..asked.request() }), "web");
    let table = table.at(Public { https: Some(8443), ..Public::default() });
    let elsewhere = "308 https://shop.test:8443/";
    assert_eq!(outcome(&table, &Request { port: 443, ..asked.request() }), elsewhere);
    assert_eq!(outcome(&table, &Request { port: 8443, ..asked.request() }), "web");
    let table = table.at(Public { http: Some(80), https: Some(443) });
    assert_eq!(outcome(&table, &asked.request()), "308 https://shop.test/");
}

#[test]
fn redirects() {
    check(
        "redirect",
        json!({ "redirect": { "to": "https://new.test$request_uri", "status": 301 } }),
        "GET http://shop.test/a?b=c -> 301 https://new.test/a?b=c
         POST http://shop.test/api -> 301 https://new.test/api",
    );
    check(
        "what a client sends stays in its place",
        json!({ "redirect": { "to": "https://new.test$uri?from=$http_referer", "status": 302 } }),
        "GET http://shop.test/a%0d%0ab%3fc; Referer: x&y=z -> 302 https://new.test/a%0D%0Ab%3Fc?from=x%26y%3Dz",
    );
    check(
        "app root",
        json!({ "appRoot": "/shop" }),
        "GET http://shop.test/ -> 302 /shop
         GET http://shop.test/?a=b -> 302 /shop
         GET http://shop.test/x -> web",
    );
    let more = json!({ "ingresses": [
        ingress("root", "shop.test", &json!({})),
        ingress("web", "shop.test", &json!({ "appRoot": "/shop", "redirect": { "to": "/", "status": 301 } })),
    ] });
    check_table(
        "it is the host's, whoever has the path",
        &Table::compile(&model(&more), "").0,
        "GET http://shop.test/ -> 302 /shop
         GET http://shop.test/x -> web",
    );
    check(
        "with and without www",
        json!({ "fromToWww": true }),
        "GET http://www.shop.test/a?b -> 308 http://shop.test/a?b
         GET https://www.shop.test/a -> 308 https://shop.test/a
         GET http://shop.test/a -> web",
    );
    let www = ingress("web", "www.shop.test", &json!({ "fromToWww": true }));
    check_table(
        "and the other way round",
        &Table::compile(&model(&json!({ "ingresses": [www] })), "").0,
        "GET http://shop.test/a?b -> 308 http://www.shop.test/a?b
         GET http://www.shop.test/a -> web
         GET http://www.www.shop.test/a -> 404",
    );
    let mut more = json!({ "ingresses": [
        ingress("web", "shop.test", &json!({ "fromToWww": true, "serverAliases": ["alias.test", "own.test"] })),
        ingress("www", "www.shop.test", &json!({})),
        ingress("own", "own.test", &json!({ "rewriteTarget": "/own" })),
    ] });
    more["ingresses"][0]["created"] = json!(1);
    check_table(
        "another Ingress has the name",
        &Table::compile(&model(&more), "").0,
        "GET http://www.shop.test/a -> web
         GET http://alias.test/a -> web
         GET http://own.test/a -> web /own",
    );
}

#[test]
fn rewrites() {
    let table = |path: &str, target: &str| {
        let mut ingress = ingress("web", "shop.test", &json!({ "rewriteTarget": target }));
        ingress["rules"][0]["paths"][0]["path"] = json!(path);
        ingress["rules"][0]["paths"].as_array_mut().expect("a list").truncate(1);
        Table::compile(&model(&json!({ "ingresses": [ingress] })), "").0
    };
    check_table(
        "a prefix is taken away",
        &table("/shop(/|$)(.*)", "/$2"),
        "GET http://shop.test/shop -> web /
         GET http://shop.test/shop/a/b?c=d -> web /a/b?c=d
         GET http://shop.test/SHOP/a -> web /a
         GET http://shop.test/shop/a%20b%3Fc%25 -> web /a%20b%3Fc%25
         GET http://shop.test/shop/caf%C3%A9 -> web /caf%C3%A9
         GET http://shop.test/x/../shop/y -> web /y
         GET http://shop.test/shopping -> 404
         GET http://shop.test/a -> 404",
    );
    check_table(
        "a query of its own comes first",
        &table("/item/([0-9]+)", "/items?id=$1"),
        "GET http://shop.test/item/7 -> web /items?id=7
         GET http://shop.test/item/7?x=y -> web /items?id=7&x=y",
    );
    check_table(
        "a group stays one parameter",
        &table("/find/(.*)", "/items?q=$1"),
        "GET http://shop.test/find/a%26admin=1 -> web /items?q=a%26admin%3D1",
    );
    check_table(
        "the client's query is dropped",
        &table("/a", "/b?"),
        "GET http://shop.test/a?x=y -> web /b",
    );
    check_table(
        "an address is a redirect",
        &table("/a/(.*)", "https://other.test/$1"),
        "GET http://shop.test/a/b?c -> 302 https://other.test/b?c",
    );
    check_table("without a slash", &table("/a/(.*)", "$1"), "GET http://shop.test/a/b -> web /b");
    check_table(
        "the path itself is no rewrite, and no expression",
        &table("/a", "/a"),
        "GET http://shop.test/a -> web
         GET http://shop.test/ab -> 404",
    );
    check(
        "dots are resolved for backends as well",
        json!({}),
        "GET http://shop.test/x/../api/y?z=.. -> api /api/y?z=..
         GET http://shop.test//api -> api",
    );
}

/// What is found by an expression must not lead out of where the target puts it.
#[test]
fn rewritten_paths_have_no_dots() {
    let mut ingress = ingress("web", "shop.test", &json!({ "rewriteTarget": "/assets/$1" }));
    ingress["rules"][0]["paths"][0]["path"] = "/static(.*)".into();
    let model = model(&json!({ "ingresses": [ingress] }));
    check_table(
        "dots",
        &Table::compile(&model, "").0,
        "GET http://shop.test/static/a?b=/../c -> web /assets//a?b=/../c
         GET http://shop.test/static/..a/b -> web /assets//..a/b
         GET http://shop.test/static../private -> 400
         GET http://shop.test/static..%2Fprivate -> 400
         GET http://shop.test/static. -> 400
         GET http://shop.test/static..;x/private -> 400",
    );
}

#[test]
fn addresses() {
    check(
        "let in",
        json!({ "allow": ["198.51.100.0/24", "2001:db8::/32"] }),
        "GET http://shop.test/; from: 198.51.100.7 -> web
         GET http://shop.test/; from: ::ffff:198.51.100.7 -> web
         GET http://shop.test/; from: 2001:db8::1 -> web
         GET http://shop.test/; from: 192.0.2.1 -> 403
         GET http://shop.test/; from: 192.0.2.1; X-Forwarded-For: 198.51.100.7 -> 403",
    );
    check(
        "kept out",
        json!({ "allow": ["192.0.2.0/24"], "deny": ["192.0.2.7/32"] }),
        "GET http://shop.test/; from: 192.0.2.1 -> web
         GET http://shop.test/; from: 192.0.2.7 -> 403",
    );
    let auth = json!({ "secret": { "namespace": "shop", "name": "users" }, "realm": "shop" });
    check(
        "address and password",
        json!({ "allow": ["192.0.2.0/24"], "basicAuth": auth }),
        "GET http://shop.test/ -> web password
         GET http://shop.test/; from: 198.51.100.1 -> 403",
    );
    check(
        "address or password",
        json!({ "allow": ["192.0.2.0/24"], "basicAuth": auth, "satisfyAny": true }),
        "GET http://shop.test/ -> web
         GET http://shop.test/; from: 198.51.100.1 -> web password",
    );
    check(
        "any of nothing but an address",
        json!({ "allow": ["192.0.2.0/24"], "satisfyAny": true }),
        "GET http://shop.test/; from: 198.51.100.1 -> 403",
    );
}

#[test]
fn the_client_is_whom_those_name_who_are_believed() {
    let gateway = |forwarded: bool| {
        let more = json!({
            "ingresses": [ingress("web", "shop.test", &json!({ "sslRedirect": false }))],
            "gateways": [{ "name": "", "trusted": ["10.0.0.0/8"], "forwardedHeaders": forwarded }],
        });
        Table::compile(&model(&more), "").0
    };
    let sent = "GET http://shop.test/; X-Forwarded-For: 203.0.113.9, 198.51.100.2, 10.9.9.9; \
                X-Forwarded-Proto: https; X-Forwarded-Host: public.test, inner.test; X-Forwarded-Port: 8443; \
                Forwarded: for=x; X-Forwarded-Prefix: /x; ssl-client-verify: SUCCESS; Proxy: x";
    let believed = Asked::new(&format!("{sent}; from: 10.0.0.1"));
    let table = gateway(true);
    let forward = forwarded(&table, &believed.request());
    assert_eq!(forward.client.to_string(), "198.51.100.2");
    for (name, value) in [
        ("host", Some("public.test")),
        ("x-real-ip", Some("198.51.100.2")),
        ("x-forwarded-for", Some("198.51.100.2")),
        ("x-original-forwarded-for", Some("203.0.113.9, 198.51.100.2, 10.9.9.9")),
        ("x-forwarded-host", Some("public.test")),
        ("x-forwarded-port", Some("8443")),
        ("x-forwarded-proto", Some("https")),
        ("x-scheme", Some("https")),
        ("x-request-id", Some("id")),
        ("ssl-client-verify", None),
        ("proxy", None),
    ] {
        assert_eq!(header(&forward, name).as_deref(), value, "{name}");
    }
    assert_eq!(forward.headers.get("forwarded"), None, "it stays");

    for (table, from) in [(gateway(true), "192.0.2.1"), (gateway(false), "10.0.0.1")] {
        let stranger = Asked::new(&format!("{sent}; from: {from}"));
        let forward = forwarded(&table, &stranger.request());
        assert_eq!(forward.client.to_string(), from);
        for (name, value) in [
            ("host", Some("shop.test")),
            ("x-forwarded-for", Some(from)),
            ("x-forwarded-host", Some("shop.test")),
            ("x-forwarded-port", Some("80")),
            ("x-forwarded-proto", Some("http")),
        ] {
            assert_eq!(header(&forward, name).as_deref(), value, "{name}");
        }
        for name in ["forwarded", "x-forwarded-prefix", "ssl-client-verify", "proxy"] {
            assert!(removed(&forward.headers, name), "{name}");
        }
    }
    let table = gateway(true);
    for (chain, client) in [
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("203.0.113.9, nonsense", "10.0.0.1"),
        ("[2001:db8::7]:443, 10.2.2.2", "2001:db8::7"),
        ("203.0.113.9:1234", "203.0.113.9"),
    ] {
        let asked =
            Asked::new(&format!("GET http://shop.test/; X-Forwarded-For: {chain}; from: 10.0.0.1"));
        assert_eq!(forwarded(&table, &asked.request()).client.to_string(), client, "{chain}");
    }
}

#[test]
fn headers_of_requests() {
    let options = json!({
        "upstreamVhost": "inner.$service_name.test",
        "forwardedPrefix": "/outer",
        "rewriteTarget": "/$1",
        "requestHeaders": [["X-User", "$http_x_name"], ["X-Agent", "$cookie_agent at $remote_addr"]],
        "choice": { "hash": "$arg_key" },
        "mirror": { "url": "https://mirror.test$request_uri", "noBody": true },
    });
    let table = table(&options, false);
    let asked =
        Asked::new("GET http://shop.test/a?key=7&x; Cookie: a=b; Cookie: agent=007; X-User: me");
    let forward = forwarded(&table, &asked.request());
    assert_eq!(header(&forward, "host").as_deref(), Some("inner.web.test"));
    assert_eq!(header(&forward, "x-forwarded-prefix").as_deref(), Some("/outer"));
    assert_eq!(header(&forward, "x-user"), None);
    assert_eq!(header(&forward, "x-agent").as_deref(), Some("007 at 192.0.2.1"));
    assert_eq!(forward.hash.as_deref(), Some(&b"7"[..]));
    let mirror = forward.mirror.expect("there is one");
    assert_eq!((mirror.url.as_str(), mirror.body), ("https://mirror.test/a?key=7&x", false));
}

#[test]
fn headers_of_answers() {
    let options = json!({
        "responseHeaders": [["X-Own", "1"]],
        "cookiePath": ["/", "/shop/"],
        "cookieDomain": ["inner.test", "shop.test"],
        "proxyRedirect": ["http://inner.test/", "https://shop.test/"],
        "cors": { "origins": ["https://*.app.test"], "exposeHeaders": ["X-A"] },
    });
    let table = table(&options, true);
    let asked = Asked::new("GET https://shop.test/; Origin: https://a.app.test");
    let forward = forwarded(&table, &asked.request());
    let mut headers = Fields::from_iter([
        ("location", "http://inner.test/a"),
        ("refresh", "5; URL=http://inner.test/b"),
        ("set-cookie", "a=path=/; Path=/; HttpOnly"),
        ("set-cookie", "b=c; domain=.Inner.test; path=/x"),
    ]);
    forward.reply.apply_to_backend(&mut headers);
    let all = |name| headers.texts(name).collect::<Vec<_>>();
    assert_eq!(all("location"), ["https://shop.test/a"]);
    assert_eq!(all("refresh"), ["5; URL=https://shop.test/b"]);
    assert_eq!(
        all("set-cookie"),
        ["a=path=/; Path=/shop/; HttpOnly", "b=c; domain=shop.test; path=/shop/x"]
    );
    assert_eq!(all("x-own"), ["1"]);
    assert_eq!(all("strict-transport-security"), ["max-age=31536000; includeSubDomains"]);
    assert_eq!(all("access-control-allow-origin"), ["https://a.app.test"]);
    assert_eq!(all("access-control-allow-credentials"), ["true"]);
    assert_eq!(all("access-control-expose-headers"), ["X-A"]);
    assert_eq!(all("vary"), ["Origin"]);
}

#[test]
fn scripts_of_other_sites() {
    let auth = json!({ "secret": { "namespace": "shop", "name": "users" }, "realm": "shop" });
    check(
        "a browser's question comes before the one for a password",
        json!({ "cors": {}, "basicAuth": auth }),
        "OPTIONS http://shop.test/; Origin: https://a.test -> 204
         OPTIONS http://shop.test/ -> web password
         GET http://shop.test/; Origin: https://a.test -> web password",
    );
    check(
        "not everybody's",
        json!({ "cors": { "origins": ["https://a.test"] } }),
        "OPTIONS http://shop.test/; Origin: https://a.test -> 204
         OPTIONS http://shop.test/; Origin: https://b.test -> web",
    );
    let open = table(&json!({ "cors": {} }), false);
    let asked = Asked::new("OPTIONS http://shop.test/; Origin: https://a.test");
    let Decision::Answer(answer) = open.decide(&asked.request()) else { panic!("a preflight") };
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, PUT, POST, DELETE, PATCH, OPTIONS"),
        ("access-control-max-age", "1728000"),
    ] {
        assert_eq!(answer.headers.text(name), Some(value));
    }
}

#[test]
fn passwords() {
    let options = |secret: &str| {
        let secret = json!({ "namespace": "shop", "name": secret });
        json!({ "basicAuth": { "secret": secret, "realm": "the shop" } })
    };
    let table = table(&options("users"), false);
    let asked = Asked::new("GET http://shop.test/; Authorization: Basic YW5uOnNlY3JldA==");
    let forward = forwarded(&table, &asked.request());
    let password = forward.password.expect("one is asked for");
    assert!(password.check(&asked.headers));
    assert!(!password.check(&Fields::new()));
    assert_eq!(password.challenge(), "Basic realm=\"the shop\"");
    assert!(removed(&forward.headers, "authorization"));
    check("without users nobody comes in", options("gone"), "GET http://shop.test/ -> 503");
}

#[test]
fn somebody_else_is_asked() {
    let options = json!({ "externalAuth": {
        "url": "http://auth.test/check?from=$host",
        "signin": "https://auth.test/start",
        "responseHeaders": ["x-user", "x-group"],
        "requestHeaders": [["X-Extra", "$request_method"]],
        "cacheKey": "$cookie_session",
    } });
    let table = table(&options, false);
    let asked = Asked::new("POST http://shop.test/a?b=c; Cookie: session=7; X-User: forged");
    let forward = forwarded(&table, &asked.request());
    let question = forward.question.expect("somebody is asked");
    assert_eq!(question.url, "http://auth.test/check?from=shop.test");
    assert_eq!(question.method, Method::GET, "as nginx asks, whatever the client wants to do");
    assert_eq!(question.cache_key.as_deref(), Some(&b"7"[..]));
    let edit = |name| set(&question.headers, name);
    assert_eq!(edit("x-original-url").as_deref(), Some("http://shop.test/a?b=c"));
    assert_eq!(edit("x-auth-request-redirect").as_deref(), Some("/a?b=c"));
    assert_eq!(edit("x-extra").as_deref(), Some("POST"));
    assert_eq!(edit("content-length"), None);

    let said = Fields::from_iter([("x-user", "ann"), ("set-cookie", "s=1")]);
    let Verdict::Pass { headers, cookies, always } = question.verdict(StatusCode::OK, &said) else {
        panic!("it passes")
    };
    assert_eq!(set(&headers, "x-user").as_deref(), Some("ann"));
    assert!(removed(&headers, "x-group") && headers.get("x-other").is_none());
    assert_eq!((cookies.iter().count(), always), (1, false));
    for (status, answer) in [(401, 302), (403, 403), (500, 500), (302, 500), (404, 500)] {
        let status = StatusCode::from_u16(status).unwrap();
        let Verdict::Refuse(refused, headers) = question.verdict(status, &said) else {
            panic!("{status} does not pass")
        };
        assert_eq!(refused.as_u16(), answer, "{status}");
        let to = headers.text(Known::Location);
        let start = "https://auth.test/start?rd=http://shop.test%2Fa%3Fb%3Dc";
        assert_eq!(to, (answer == 302).then_some(start));
        assert_eq!(headers.contains(Known::SetCookie), answer == 302);
    }
}

#[test]
fn whoever_is_asked_or_gets_a_copy_is_told_nothing_by_clients_in_the_gateways_name() {
    let options = json!({
        "externalAuth": { "url": "http://auth.test/" },
        "mirror": { "url": "http://copies.test/" },
    });
    let table = table(&options, false);
    let forged = "GET http://shop.test/; ssl-client-verify: SUCCESS; ssl-client-subject-dn: CN=admin; \
         Forwarded: for=10.0.0.1; X-Forwarded-Host: admin.test; X-Forwarded-Port: 1; \
         X-Forwarded-Scheme: https; X-Scheme: https; X-Forwarded-Prefix: /a";
    let asked = Asked::new(forged);
    let forward = forwarded(&table, &asked.request());
    let question = forward.question.as_ref().expect("somebody is asked");
    let mirror = forward.mirror.as_ref().expect("somebody gets a copy");
    for edits in [&question.headers, &mirror.headers] {
        let mut headers = asked.headers.clone();
        headers.apply(edits);
        let said = |name| headers.text(name);
        for gone in [
            "ssl-client-verify",
            "ssl-client-subject-dn",
            "forwarded",
            "x-forwarded-prefix",
            "host",
        ] {
            assert_eq!(said(gone), None, "{gone}");
        }
        for (name, value) in [
            ("x-forwarded-host", "shop.test"),
            ("x-forwarded-port", "80"),
            ("x-forwarded-scheme", "http"),
            ("x-scheme", "http"),
        ] {
            assert_eq!(said(name), Some(value), "{name}");
        }
    }
}

/// `auth-tls-secret` holds for a default backend too, whatever the host.
#[test]
fn certificates_of_clients_of_default_backends() {
    let bare = json!({
        "name": { "namespace": "shop", "name": "else" },
        "defaultBackend": { "service": "web", "port": 80 },
        "options": { "clientTls": { "secret": { "namespace": "shop", "name": "ca" } } },
    });
    let mut with_rules = ingress("else", "shop.test", &bare["options"]);
    with_rules["nginx"] = false.into();
    with_rules["defaultBackend"] = bare["defaultBackend"].clone();
    let mut other = ingress("other", "other.test", &json!({}));
    other["rules"][0]["paths"].as_array_mut().unwrap().remove(0);
    for last in [bare, with_rules] {
        let model = model(&json!({ "ingresses": [last, other] }));
        let table = Table::compile(&model, "").0;
        assert!(
            table.host_tls(Some("x.test")).client.is_some()
                && table.host_tls(None).client.is_some()
        );
        let ask = |url: &str, name: &str, client| {
            let tls = url.starts_with("https").then_some(Tls { server_name: Some(name), client });
            outcome(&table, &Request { tls, ..Asked::new(&format!("GET {url}")).request() })
        };
        let good = Some(ClientCertificate::default());
        assert_eq!(ask("https://x.test/", "x.test", good), "web");
        assert_eq!(ask("https://x.test/", "x.test", None), "400");
        assert_eq!(ask("http://x.test/", "", None), "400");
        // There is no path for it at a host that asks for none.
        assert_eq!(ask("https://other.test/", "other.test", good), "421");
        assert_eq!(ask("https://other.test/", "x.test", None), "400");
        assert_eq!(ask("http://other.test/", "", None), "400");
        assert_eq!(ask("https://other.test/api", "other.test", None), "api");
    }
}

#[test]
fn what_the_gateway_says_of_tls_holds_for_names_that_nobody_has() {
    let model = model(&json!({
        "ingresses": [ingress("web", "shop.test", &json!({ "fromToWww": true }))],
        "gateways": [{ "name": "", "options": { "minTls": "1.3", "ciphers": ["X"] } }],
    }));
    let table = Table::compile(&model, "").0;
    for name in [None, Some("x.test"), Some("www.shop.test"), Some("shop.test")] {
        let tls = table.host_tls(name);
        assert_eq!(tls.min_version, Some(fairway_model::TlsVersion::V13), "{name:?}");
        assert_eq!(tls.ciphers, ["X"], "{name:?}");
    }
}

#[test]
fn certificates_of_clients() {
    let ca = json!({ "namespace": "shop", "name": "ca" });
    let outcomes = |options: Value| {
        let options = json!({ "clientTls": options, "sslRedirect": false });
        let table = table(&options, true);
        let good = ClientCertificate {
            subject: "CN=ann,O=shop",
            common_name: "ann",
            pem: "-----\n",
            ..ClientCertificate::default()
        };
        let bad = ClientCertificate { rejected: Some("expired"), ..good };
        let asked = Asked::new("GET https://shop.test/; ssl-client-verify: forged");
        let with = |client| {
            let tls = Tls { server_name: Some("shop.test"), client };
            outcome(&table, &Request { tls: Some(tls), ..asked.request() })
        };
        let plain = outcome(&table, &Request { tls: None, ..asked.request() });
        let elsewhere = Tls { server_name: Some("x.test"), client: Some(good) };
        let elsewhere = outcome(&table, &Request { tls: Some(elsewhere), ..asked.request() });
        [with(Some(good)), with(Some(bad)), with(None), plain, elsewhere].join(", ")
    };
    for (options, expected) in [
        (json!({ "secret": ca }), "web, 400, 400, 400, 421"),
        (json!({ "secret": ca, "verify": "optional" }), "web, 400, web, web, 421"),
        (json!({ "secret": ca, "verify": "optionalNoCa" }), "web, web, web, web, 421"),
        (json!({ "secret": ca, "verify": "off" }), "web, web, web, web, web"),
        (json!({ "secret": ca, "commonName": "CN=(ann|bob)" }), "web, 400, 400, 400, 421"),
        (json!({ "secret": ca, "commonName": "bob" }), "403, 400, 400, 400, 421"),
        (json!({ "secret": ca, "commonName": "(?=a)" }), "403, 400, 400, 400, 421"),
        (
            json!({ "secret": ca, "errorPage": "https://help.test/" }),
            "web, 302 https://help.test/, 302 https://help.test/, 400, 421",
        ),
        (json!({ "secret": { "namespace": "shop", "name": "gone" } }), "503, 503, 503, 503, 421"),
    ] {
        assert_eq!(outcomes(options.clone()), expected, "{options}");
    }
    let table = table(&json!({ "clientTls": { "secret": ca, "pass": true } }), true);
    let client =
        ClientCertificate { subject: "CN=ann", pem: "a b", ..ClientCertificate::default() };
    let asked = Asked::new("GET https://shop.test/");
    let tls = Tls { server_name: Some("shop.test"), client: Some(client) };
    let forward = forwarded(&table, &Request { tls: Some(tls), ..asked.request() });
    assert_eq!(header(&forward, "ssl-client-verify").as_deref(), Some("SUCCESS"));
    assert_eq!(header(&forward, "ssl-client-subject-dn").as_deref(), Some("CN=ann"));
    assert_eq!(header(&forward, "ssl-client-cert").as_deref(), Some("a%20b"));
}

#[test]
fn bodies() {
    check(
        "a megabyte by default",
        json!({}),
        "POST http://shop.test/; Content-Length: 1048576 -> web
         POST http://shop.test/; Content-Length: 1048577 -> 413",
    );
    check(
        "any",
        json!({ "bodySize": 0 }),
        "POST http://shop.test/; Content-Length: 99999999 -> web",
    );
    check("less", json!({ "bodySize": 7 }), "POST http://shop.test/; Content-Length: 8 -> 413");
}

#[test]
fn canaries() {
    let table = |canary: Value| {
        let mut next = ingress("next", "shop.test", &json!({ "canary": canary }));
        next["rules"][0]["paths"] = json!([
            { "path": "/", "type": "Prefix", "backend": { "service": "next", "port": "http" } },
            { "path": "/nobody", "type": "Prefix", "backend": { "service": "next", "port": 80 } },
        ]);
        let main = ingress("web", "shop.test", &json!({ "responseHeaders": [["X-Main", "1"]] }));
        let (table, problems) = Table::compile(&model(&json!({ "ingresses": [main, next] })), "");
        let nobody = "path /nobody of host shop.test: nobody else has it";
        let told = problems.iter().filter(|problem| problem.text.starts_with(nobody)).count();
        assert_eq!(told, 1, "{problems:?}");
        table
    };
    check_table(
        "by chance",
        &table(json!({ "weight": 30 })),
        "GET http://shop.test/; dice: 29 -> next
         GET http://shop.test/; dice: 30 -> web
         GET http://shop.test/; dice: 129 -> next
         GET http://shop.test/api; dice: 0 -> api",
    );
    check_table(
        "of a total",
        &table(json!({ "weight": 1, "total": 1000 })),
        "GET http://shop.test/; dice: 0 -> next
         GET http://shop.test/; dice: 1 -> web",
    );
    check_table(
        "header before cookie before chance",
        &table(json!({ "weight": 100, "header": "x-next", "cookie": "next" })),
        "GET http://shop.test/ -> next
         GET http://shop.test/; X-Next: never -> web
         GET http://shop.test/; X-Next: never; Cookie: next=always -> web
         GET http://shop.test/; X-Next: x; Cookie: next=never -> web
         GET http://shop.test/; Cookie: a=b; Cookie: next=never -> web",
    );
    check_table(
        "a value",
        &table(json!({ "header": "x-next", "value": "yes", "pattern": ".*" })),
        "GET http://shop.test/; X-Next: yes -> next
         GET http://shop.test/; X-Next: always -> web",
    );
    check_table(
        "an expression",
        &table(json!({ "header": "x-next", "pattern": "^v[0-9]$" })),
        "GET http://shop.test/; X-Next: v7 -> next
         GET http://shop.test/; X-Next: v77 -> web",
    );
    check_table(
        "an expression that cannot be read fits nothing",
        &table(json!({ "header": "x-next", "pattern": "(?=a)" })),
        "GET http://shop.test/; X-Next: a -> web
         GET http://shop.test/; X-Next: always -> web",
    );
    check_table(
        "a header that says neither leaves it to the cookie, and that to chance",
        &table(json!({ "weight": 50, "header": "x-next", "cookie": "next" })),
        "GET http://shop.test/; X-Next: x; Cookie: next=always; dice: 99 -> next
         GET http://shop.test/; X-Next: x; Cookie: next=x; dice: 49 -> next
         GET http://shop.test/; X-Next: x; Cookie: next=x; dice: 50 -> web
         GET http://shop.test/; X-Next: always; Cookie: next=never; dice: 99 -> next",
    );
    let table = table(json!({ "weight": 100 }));
    let forward = forwarded(&table, &Asked::new("GET http://shop.test/").request());
    assert!(forward.canary);
    let mut headers = Fields::new();
    forward.reply.apply_to_backend(&mut headers);
    assert_eq!(headers.text("x-main"), Some("1"), "what holds for the main one holds for it");
}

#[test]
fn a_client_is_kept_where_it_is() {
    let table = |affinity: Value, canary: Value| {
        let web = json!({ "affinity": affinity });
        let next = json!({ "canary": { "weight": 50 }, "affinity": canary });
        let mut next = ingress("next", "shop.test", &next);
        next["rules"][0]["paths"] = json!([
            { "path": "/", "type": "Prefix", "backend": { "service": "next", "port": 80 } },
        ]);
        let web = ingress("web", "shop.test", &web);
        Table::compile(&model(&json!({ "ingresses": [web, next] })), "").0
    };
    let endpoint = SocketAddr::from(([10, 0, 0, 7], 8080));
    let given = |table: &Table, url: &str| {
        let forward = forwarded(table, &Asked::new(url).request());
        let sticky = forward.sticky.expect("by a cookie");
        assert_eq!(sticky.kept, None);
        sticky.cookie(endpoint)
    };
    let plain = table(json!({ "name": "at" }), json!(null));
    let (main, next) = (
        given(&plain, "GET http://shop.test/; dice: 99"),
        given(&plain, "GET http://shop.test/; dice: 0"),
    );
    assert!(main.ends_with("; Path=/; HttpOnly") && main != next, "{main} {next}");
    let pair = |cookie: &str| cookie.split(';').next().unwrap().to_owned();
    for (cookie, service, kept) in [
        (pair(&main), "web", true),
        (pair(&next), "next", true),
        ("at=7-7".to_owned(), "web", false),
        ("at=\u{7f}".to_owned(), "web", false),
        (format!("{}; other=1", pair(&next).to_uppercase().replace("AT=", "at=")), "next", true),
    ] {
        let mut asked = Asked::new("GET http://shop.test/; dice: 99");
        asked.headers.append(Known::Cookie, &cookie);
        let forward = forwarded(&plain, &asked.request());
        assert_eq!(forward.target.service.name, service, "{cookie}");
        let is_kept = forward.sticky.expect("by a cookie").kept == Some(Sticky::key(endpoint));
        assert_eq!(is_kept, kept, "{cookie}");
    }
    let legacy = table(json!({ "name": "at" }), json!({ "name": "next", "canaryLegacy": true }));
    let url = format!("GET http://shop.test/; dice: 99; Cookie: {}", pair(&next));
    check_table("by chance alone", &legacy, &format!("{url} -> web"));
    let all = json!({
        "name": "at", "path": "/a", "domain": "shop.test", "maxAge": 7, "sameSite": "Lax",
    });
    assert!(
        given(&table(all, json!(null)), "GET https://shop.test/")
            .ends_with("; Path=/a; Domain=shop.test; Max-Age=7; Secure; HttpOnly; SameSite=Lax")
    );
}

#[test]
fn what_has_no_service() {
    check(
        "default backend of an Ingress",
        json!({ "defaultBackend": { "service": "errors", "port": 80 }, "customErrors": [503, 404] }),
        "GET http://shop.test/ -> web",
    );
    let mut ingress = ingress(
        "web",
        "shop.test",
        &json!({ "defaultBackend": { "service": "errors", "port": 80 } }),
    );
    ingress["rules"][0]["paths"][0]["backend"]["service"] = json!("gone");
    let model = model(&json!({ "ingresses": [ingress] }));
    let (table, problems) = Table::compile(&model, "");
    check_table("in place of what is gone", &table, "GET http://shop.test/ -> errors");
    assert_eq!(problems.len(), 1, "{problems:?}");
    let asked = Asked::new("GET http://shop.test/a?b");
    let route = forwarded(&table, &asked.request()).route;
    assert_eq!(route.error_target, route.spare);
    let headers = route.error_headers(StatusCode::NOT_FOUND, None, "/a?b", "id");
    for (name, value) in [
        ("x-code", "404"),
        ("x-original-uri", "/a?b"),
        ("x-namespace", "shop"),
        ("x-ingress-name", "web"),
        ("x-service-name", "gone"),
        ("x-service-port", "80"),
        ("x-request-id", "id"),
    ] {
        assert_eq!(headers.text(name), Some(value));
    }
}

/// `tls` without rules has long been a trap: the certificate was not used.
#[test]
fn what_has_no_rules_or_rules_without_paths() {
    let bare = json!({
        "name": { "namespace": "shop", "name": "bare" },
        "nginx": true,
        "defaultBackend": { "service": "web", "port": 80 },
        "tls": [{ "hosts": ["bare.test"], "secret": { "namespace": "shop", "name": "bare" } }],
    });
    let (table, problems) = Table::compile(&model(&json!({ "ingresses": [bare] })), "");
    assert!(problems.is_empty(), "{problems:?}");
    check_table(
        "no rules",
        &table,
        "GET https://bare.test/ -> web
         GET https://bare.test/x -> web
         GET http://any.test/ -> web",
    );
    let certificate = table.certificate(Some("bare.test"));
    assert_eq!(certificate.secret.map(|secret| secret.name.as_str()), Some("bare"));

    let mut hosts = ingress("web", "shop.test", &json!({}));
    hosts["rules"][0]["paths"] = json!([]);
    let of = |ingress: &Value| Table::compile(&model(&json!({ "ingresses": [ingress] })), "").0;
    check_table("a host alone", &of(&hosts), "GET http://shop.test/ -> 404");
    hosts["defaultBackend"] = json!({ "service": "next", "port": 80 });
    check_table(
        "a host alone, and what is for all else",
        &of(&hosts),
        "GET http://shop.test/ -> next
         GET http://shop.test/x -> next",
    );
}

#[test]
fn a_port_by_name_or_number() {
    let mut ingress = ingress("web", "shop.test", &json!({}));
    ingress["rules"][0]["paths"] = json!([
        { "path": "/name", "type": "Prefix", "backend": { "service": "web", "port": "http" } },
        { "path": "/number", "type": "Prefix", "backend": { "service": "web", "port": 80 } },
        { "path": "/no-name", "type": "Prefix", "backend": { "service": "web", "port": "80" } },
        { "path": "/no-number", "type": "Prefix", "backend": { "service": "web", "port": 81 } },
    ]);
    let (table, problems) = Table::compile(&model(&json!({ "ingresses": [ingress] })), "");
    check_table(
        "ports",
        &table,
        "GET http://shop.test/name -> web
         GET http://shop.test/number -> web
         GET http://shop.test/no-name -> 503
         GET http://shop.test/no-number -> 503",
    );
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn strict_transport_security() {
    let said = |hsts: Value, url: &str| {
        let mut ingress = ingress("web", "shop.test", &json!({ "sslRedirect": false }));
        ingress["tls"] = json!([{ "hosts": ["*.test"] }]);
        let gateway = json!({ "name": "", "hsts": hsts });
        let model = model(&json!({ "ingresses": [ingress], "gateways": [gateway] }));
        let (table, _) = Table::compile(&model, "");
        let mut headers = Fields::new();
        forwarded(&table, &Asked::new(url).request()).reply.apply(&mut headers);
        headers.text("strict-transport-security").map(ToOwned::to_owned)
    };
    let https = "GET https://shop.test/";
    let year = "max-age=31536000; includeSubDomains";
    assert_eq!(said(json!(null), https).as_deref(), Some(year));
    assert_eq!(said(json!(null), "GET http://shop.test/"), None);
    assert_eq!(said(json!({}), https), None);
    let own = json!({ "maxAge": 7, "preload": true });
    assert_eq!(said(own, https).as_deref(), Some("max-age=7; preload"));
}

#[test]
fn limits() {
    let limits = json!({ "perSecond": 1, "burst": 2, "connections": 4, "exempt": ["10.0.0.0/8"] });
    let table = table(&json!({ "limits": limits }), false);
    let mut limiter = Limiter::new(2);
    let mut enter = |from: &str, now: u64| {
        let asked = Asked::new(&format!("GET http://shop.test/; from: {from}"));
        let forward = forwarded(&table, &asked.request());
        let now = std::time::Duration::from_millis(now);
        limiter.enter(forward.route, forward.client, now)
    };
    let mut seats: Vec<_> =
        (0..3).map(|_| enter("192.0.2.1", 0).unwrap().expect("they are counted")).collect();
    assert!(matches!(enter("192.0.2.1", 0), Err(Refused::Rate)));
    assert!(matches!(enter("192.0.2.2", 0), Ok(Some(_))), "somebody else");
    assert!(matches!(enter("10.0.0.1", 0), Ok(None)), "nobody counts");
    seats.push(enter("192.0.2.1", 1000).unwrap().expect("one has run out"));
    assert!(matches!(enter("192.0.2.1", 9000), Err(Refused::AtOnce)));
    limiter.leave(seats.pop().unwrap());
    let asked = Asked::new("GET http://shop.test/");
    let forward = forwarded(&table, &asked.request());
    let later = std::time::Duration::from_secs(9);
    assert!(limiter.enter(forward.route, forward.client, later).is_ok());
}

#[test]
fn certificates_of_hosts() {
    let secret = |name: &str| json!({ "namespace": "shop", "name": name });
    let mut ingress = ingress("web", "shop.test", &json!({ "minTls": "1.3", "ciphers": ["X"] }));
    ingress["tls"] = json!([
        { "hosts": ["shop.test"], "secret": secret("exact") },
        { "hosts": ["*.shop.test"], "secret": secret("wildcard") },
        { "hosts": ["own.test"] },
    ]);
    let mut model = model(&json!({ "ingresses": [ingress] }));
    let certificate = |model: &Model, name: &str| {
        let (table, _) = Table::compile(model, "");
        let certificate = table.certificate(Some(name).filter(|name| !name.is_empty()));
        let secret = certificate.secret.map(|secret| secret.name.clone());
        (secret.unwrap_or_default(), certificate.why)
    };
    let (table, _) = Table::compile(&model, "");
    for (name, secret, why) in [
        ("shop.test", "exact", Why::Exact),
        ("a.shop.test", "wildcard", Why::Wildcard),
        ("b.a.shop.test", "", Why::Nobody),
        ("own.test", "", Why::Nobody),
        ("", "", Why::Nobody),
    ] {
        assert_eq!(certificate(&model, name), (secret.to_owned(), why), "{name}");
    }
    let names: Vec<_> = table.certificates().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["*.shop.test", "own.test", "shop.test"]);
    assert_eq!(table.host_tls(Some("shop.test")).ciphers, ["X"]);
    assert!(table.host_tls(Some("shop.test")).min_version.is_some());
    assert_eq!(table.host_tls(Some("x.test")), table.host_tls(None));
    let gateway = json!({ "name": "", "defaultCertificate": secret("gateway") });
    model.gateways.insert(serde_json::from_value::<fairway_model::Gateway>(gateway).unwrap());
    assert_eq!(certificate(&model, "own.test"), ("gateway".to_owned(), Why::Default));
}

#[test]
fn what_is_passed_on_as_it_is() {
    let table = table(&json!({ "passthrough": true }), false);
    let target = table.host_tls(Some("shop.test")).passthrough.expect("a Service");
    assert_eq!((target.service.name.as_str(), target.port), ("web", 80));
    check_table("sent to TLS", &table, "GET http://shop.test/ -> 308 https://shop.test/");
}

#[test]
fn only_who_has_the_root_of_a_host_has_its_tls_passed_on() {
    let passthrough = json!({ "passthrough": true });
    let of = |older: &Value, younger: &Value| {
        let mut younger = ingress("young", "shop.test", younger);
        younger["created"] = 9.into();
        younger["rules"][0]["paths"][1]["path"] = "/young".into();
        let older = ingress("old", "shop.test", older);
        let (table, problems) =
            Table::compile(&model(&json!({ "ingresses": [older, younger] })), "");
        let told = problems.iter().filter(|problem| problem.text.contains("not passed on")).count();
        (table.host_tls(Some("shop.test")).passthrough.is_some(), told)
    };
    assert_eq!(of(&json!({}), &passthrough), (false, 1), "the older one's rules would be gone");
    assert_eq!(of(&passthrough, &json!({})), (true, 0));
    assert_eq!(of(&passthrough, &passthrough), (true, 1));
}

#[test]
fn ten_thousand_hosts_are_compiled_in_a_moment() {
    let mut model = model(&json!({}));
    for number in 0..10_000 {
        let ingress = ingress(&format!("web-{number}"), &format!("h{number}.test"), &json!({}));
        model.ingresses.insert(serde_json::from_value::<fairway_model::Ingress>(ingress).unwrap());
    }
    let start = std::time::Instant::now();
    let (table, problems) = Table::compile(&model, "");
    // It takes some tens of milliseconds, without optimisation some hundreds.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert!(problems.is_empty());
    check_table("the last of them", &table, "GET http://h9999.test/api/x -> api");
}

#[test]
fn decisions_are_explained() {
    let mut ingress =
        ingress("web", "shop.test", &json!({ "fromToWww": true, "serverAliases": ["alias.test"] }));
    ingress["rules"][0]["paths"][1]["path"] = json!("/api/");
    ingress["rules"].as_array_mut().unwrap().push(json!({ "host": "*.shop.test", "paths": [] }));
    let (table, _) = Table::compile(&model(&json!({ "ingresses": [ingress] })), "");
    for (request, lines) in [
        (
            "GET http://shop.test/api//x",
            &[
                "host shop.test: it has rules of its own",
                "path /api//x: compared as /api/x",
                "rule Prefix /api/ of Ingress shop/web, which is read as ingress-nginx does",
                "the client is 192.0.2.1",
                "forwarded to Service shop/api, port 80",
            ][..],
        ),
        (
            "GET http://alias.test/api",
            &[
                "host alias.test: it is another name of shop.test",
                "rule Prefix /api/ of Ingress shop/web, which is read as ingress-nginx does",
                "a habit of ingress-nginx: a path that is there only with a slash behind it is asked for without one",
                "answered with 301 to /api/: the path is there with a slash behind it",
            ],
        ),
        (
            "GET http://a.shop.test/",
            &[
                "host a.shop.test: the rules of *.shop.test hold",
                "answered with 404: no rule is for this host and path",
            ],
        ),
        (
            "GET http://www.shop.test/",
            &[
                "host www.shop.test: it is shop.test with or without www.",
                "answered with 308 to http://shop.test/: the host's name is another one",
            ],
        ),
        (
            "GET http://x.test/",
            &[
                "host x.test: nobody has rules for it",
                "answered with 404: no rule is for this host and path",
            ],
        ),
    ] {
        assert_eq!(table.explain(&Asked::new(request).request()), lines, "{request}");
    }
    let routes: Vec<_> =
        table.routes().into_iter().map(|(host, route)| format!("{host} {route}")).collect();
    assert_eq!(
        routes,
        [
            "alias.test Prefix /",
            "alias.test Prefix /api/",
            "shop.test Prefix /",
            "shop.test Prefix /api/",
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_request_is_too_strange(
        host in "\\PC{0,12}",
        target in "(/|\\.|\\?|%|&|=|é|[ -~]){0,16}",
        header in proptest::collection::vec(any::<u8>(), 0..12),
    ) {
        let options = json!({
            "rewriteTarget": "/$2?x=$1",
            "upstreamVhost": "$host$http_x$uri",
            "requestHeaders": [["x-a", "$uri$args$http_x$cookie_x$arg_x"]],
            "mirror": { "url": "http://m.test/$http_x?$args" },
            "cors": { "origins": ["https://*.test"] },
            "canary": null,
        });
        let table = table(&options, true);
        let mut headers = Fields::new();
        if let Ok(value) = HeaderValue::from_bytes(&header) {
            for name in ["x", "cookie", "origin", "content-length", "x-forwarded-for", "authorization"] {
                headers.push(name.as_bytes(), value.as_bytes());
            }
        }
        for host in [host.as_str(), "shop.test"] {
            let asked = Asked::new("GET https://shop.test/");
            let request = Request { host: Some(host), target: &target, headers: &headers, ..asked.request() };
            if let Decision::Forward(forward) = table.decide(&request) {
                let path = forward.path_and_query.as_deref().unwrap_or(&target);
                prop_assert!(path.starts_with('/'));
                prop_assert!(path.bytes().all(|byte| byte.is_ascii_graphic()) || path == target, "{path}");
            }
        }
    }
}
