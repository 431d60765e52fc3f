//! What holds for every input of a call, however hostile. The fuzz target and the test that replays
//! the corpus share it.

use std::ffi::OsString;

use serde_json::Value;

/// Verbs, and whether they are about a container.
const VERBS: [(&str, bool); 6] = [
    ("ADD", true),
    ("DEL", true),
    ("CHECK", true),
    ("GC", false),
    ("STATUS", false),
    ("VERSION", false),
];

/// Reads `input` as each verb would: a configuration, or `CNI_ARGS`, a zero byte, and one.
///
/// # Panics
/// An answer is not as it should be.
pub(crate) fn check(input: &[u8]) {
    let (arguments, config) = match input.iter().position(|byte| *byte == 0) {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (&[][..], input),
    };
    let arguments = String::from_utf8_lossy(arguments).into_owned();
    let run = |verb: &str, of_container: bool, config: &[u8]| {
        let env = |name: &str| -> Option<OsString> {
            match name {
                "CNI_COMMAND" => Some(verb.into()),
                "CNI_CONTAINERID" if of_container => Some("c1".into()),
                "CNI_IFNAME" if of_container => Some("eth0".into()),
                "CNI_NETNS" if of_container => Some("/nowhere".into()),
                "CNI_ARGS" if of_container => Some(arguments.clone().into()),
                _ => None,
            }
        };
        let cidrs = ["10.1.0.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().expect("a prefix"));
        fairway_cni::dry_run(&env, config, &cidrs)
    };
    for (verb, of_container) in VERBS {
        match run(verb, of_container, config) {
            Err(error) => check_error(verb, &error),
            Ok(Some(result)) if of_container => {
                // What one reads of another's result, the next one reads the same.
                let mut again: Value = serde_json::from_slice(config).expect("read before");
                again["prevResult"] = result.clone();
                let again = again.to_string();
                assert_eq!(run(verb, of_container, again.as_bytes()), Ok(Some(result)), "{verb}");
            }
            Ok(_) => {}
        }
    }
    assert!(run("VERSION", false, config).is_ok(), "VERSION never fails");
    if run("ADD", true, config).is_ok() {
        assert!(run("DEL", true, config).is_ok(), "what was added can be deleted");
    }
}

/// The specification's own codes, and a text.
fn check_error(verb: &str, error: &Value) {
    let code = error["code"].as_u64();
    assert!(code.is_some_and(|code| [1, 2, 4, 6, 7].contains(&code)), "{verb}: {error}");
    assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()), "{verb}: {error}");
    let version = error["cniVersion"].as_str().expect("a version");
    assert!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].contains(&version), "{verb}: {error}");
}
