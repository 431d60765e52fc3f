//! `runtimeConfig.bandwidth`: how much the pod may send and receive, as the conventions of CNI define
//! it for the reference plugin `bandwidth`; the same keys are taken beside `type`, too, and then win.

use fairway_cni_protocol::{Bandwidth, Rate};
use serde_json::{Map, Value};

use crate::config::wrong;
use crate::failure::Failure;

/// In front of the keys, for error messages.
const PREFIX: &str = "runtimeConfig.bandwidth.";

/// The names of the four keys.
const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// The reference plugin's own bound, in bits: what its traffic shaper can hold in 32 bits of bytes.
const BURST_LIMIT: u64 = 8 * u32::MAX as u64;

/// The limits asked for, by the plain keys of the configuration or else by the runtime.
pub(crate) fn parse(
    plain: &Map<String, Value>,
    runtime: Option<&Value>,
) -> Result<Bandwidth, Failure> {
    if KEYS.iter().any(|key| plain.get(*key).is_some_and(|value| !value.is_null())) {
        return limits("", plain);
    }
    match runtime {
        None => Ok(Bandwidth::default()),
        Some(Value::Object(keys)) => limits(PREFIX, keys),
        Some(other) => Err(wrong("runtimeConfig.bandwidth", "expected an object", other)),
    }
}

fn limits(prefix: &str, keys: &Map<String, Value>) -> Result<Bandwidth, Failure> {
    Ok(Bandwidth {
        ingress: limit(prefix, keys, KEYS[0], KEYS[1])?,
        egress: limit(prefix, keys, KEYS[2], KEYS[3])?,
    })
}

fn limit(
    prefix: &str,
    keys: &Map<String, Value>,
    rate_key: &str,
    burst_key: &str,
) -> Result<Option<Rate>, Failure> {
    let (rate, burst) = (number(prefix, keys, rate_key)?, number(prefix, keys, burst_key)?);
    let complain = |key: &str, problem: &str, found: u64| {
        Err(wrong(&format!("{prefix}{key}"), problem, &found.into()))
    };
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => complain(burst_key, &format!("has to come with {rate_key}"), burst),
        (0, _) => complain(rate_key, &format!("has to come with {burst_key}"), rate),
        _ if burst >= BURST_LIMIT => {
            complain(burst_key, &format!("expected less than {BURST_LIMIT} bits"), burst)
        }
        _ => Ok(Some(Rate { rate, burst })),
    }
}

/// An absent number is 0, and 0 is no limit.
fn number(prefix: &str, keys: &Map<String, Value>, key: &str) -> Result<u64, Failure> {
    let Some(value) = keys.get(key).filter(|value| !value.is_null()) else { return Ok(0) };
    let problem = "expected a number of bits";
    value.as_u64().ok_or_else(|| wrong(&format!("{prefix}{key}"), problem, value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(plain: Value, runtime: Value) -> Result<Bandwidth, Failure> {
        let Value::Object(plain) = plain else { panic!("an object") };
        parse(&plain, Some(&runtime))
    }

    const SLOW: Option<Rate> = Some(Rate { rate: 1000, burst: 8000 });

    #[test]
    fn each_direction_on_its_own_and_zero_for_none() {
        let both =
            json!({"ingressRate": 1000, "ingressBurst": 8000, "egressRate": 0, "egressBurst": 0});
        assert_eq!(parsed(json!({}), both).unwrap(), Bandwidth { ingress: SLOW, egress: None });
        assert_eq!(parsed(json!({}), json!({})).unwrap(), Bandwidth::default());
        assert_eq!(parse(&Map::new(), None).unwrap(), Bandwidth::default());
    }

    #[test]
    fn plain_keys_win() {
        let plain = json!({"egressRate": 1000, "egressBurst": 8000});
        let runtime = json!({"ingressRate": 5, "ingressBurst": 5});
        let expected = Bandwidth { ingress: None, egress: SLOW };
        assert_eq!(parsed(plain, runtime).unwrap(), expected);
    }

    #[test]
    fn each_mistake_names_its_key() {
        let check = |plain: Value, runtime: Value, texts: &[&str]| {
            let failure = parsed(plain, runtime).unwrap_err();
            for text in texts {
                assert!(failure.message.contains(text), "{text:?} in {:?}", failure.message);
            }
        };
        let none = json!({});
        check(none.clone(), json!(5), &["runtimeConfig.bandwidth", "found 5"]);
        check(none.clone(), json!({"ingressRate": 5}), &["bandwidth.ingressBurst", "ingressRate"]);
        check(none.clone(), json!({"egressBurst": 5}), &["bandwidth.egressRate", "egressBurst"]);
        check(none.clone(), json!({"egressRate": -5}), &["bandwidth.egressRate", "found -5"]);
        let too_much = json!({"egressRate": 1, "egressBurst": 34_359_738_360_u64});
        check(none, too_much, &["bandwidth.egressBurst", "34359738360"]);
        check(json!({"egressRate": "1M"}), json!({}), &["\"egressRate\"", "1M"]);
    }
}
