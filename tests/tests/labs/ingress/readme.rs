//! What the examples' own page tells its readers to type.

use std::path::Path;
use std::process::Command;

use fairway_tests::Lab;

/// What `cargo xtask lab` would do with the lab that is there, and with what has been built.
const CARGO: &str = r#"cargo() { shift 2; case $1 in up | down) ;; *) "$LAB" "$@" ;; esac; }"#;

pub(super) fn commands_do_what_they_say(lab: &Lab) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("tests/examples/README.md")).unwrap();
    let block = page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let built = lab.program().parent().unwrap().to_str().unwrap();
    let block = block.replace("target/release", built);
    let output = Command::new("timeout")
        .args(["120", "sh", "-ec", &format!("{CARGO}\n{block}rm -r $keys")])
        .env("LAB", lab.program())
        .env("FAIRWAY_LAB_NAME", lab.name().as_str())
        .current_dir(root)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
    for part in [
        "Ingress shop/shop created",
        // A pod of the Deployment web.
        "\nweb-",
        "host shop.example.com: it has rules of its own",
        "rule Prefix /cart of Ingress shop/shop",
        "tomcat.example.com",
        "shop/shop-tls",
        "[shop-web-80]",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}\n{complaints}");
    }
}
