//! What stands in for a policy that cannot be read and never could: it denies.
//!
//! Somebody wanted pods to be restricted. As far as it can be told which pods and in which direction, those
//! are cut off from everybody, and where it cannot be told, all that may have been meant: of a NetworkPolicy, the
//! pods of its namespace. A policy for the whole cluster whose subject cannot be read is refused and nothing more, as
//! an API server would do: it might have been meant for a single pod, and all others are none of its business.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::check::{LAST_PRIORITY, is_good};
use crate::kubernetes::Kind;
use crate::kubernetes::policy::{ClusterTier, LabelSelector, PolicyType};

/// What its rules are called.
const NAME: &str = "this policy cannot be read";

/// The stand-in for a policy of that kind with that text; `None` of other kinds.
pub(crate) fn stand_in(kind: Kind, value: &Value) -> Option<Value> {
    let nothing = Map::new();
    let spec = value.get("spec").and_then(Value::as_object).unwrap_or(&nothing);
    let spec = Spec(spec);
    match kind {
        Kind::NetworkPolicy => Some(spec.network_policy()),
        Kind::ClusterNetworkPolicy => {
            let tier = spec.0.get("tier").filter(|tier| typed::<ClusterTier>(tier).is_some());
            let tier = tier.cloned().unwrap_or_else(|| json!("Admin"));
            spec.cluster_wide(&json!({"tier": tier, "priority": spec.priority()}))
        }
        Kind::AdminNetworkPolicy => spec.cluster_wide(&json!({"priority": spec.priority()})),
        Kind::BaselineAdminNetworkPolicy => spec.cluster_wide(&json!({})),
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::Endpoints
        | Kind::EndpointSlice
        | Kind::ServiceCIDR
        | Kind::IPAddressPool
        | Kind::L2Advertisement
        | Kind::Ingress
        | Kind::IngressClass
        | Kind::Secret
        | Kind::ConfigMap => None,
    }
}

/// What such a policy says, as far as it can be read.
struct Spec<'a>(&'a Map<String, Value>);

impl Spec<'_> {
    fn network_policy(&self) -> Value {
        let known = ["podSelector", "policyTypes", "ingress", "egress"];
        let types = match self.0.get("policyTypes") {
            _ if !self.has_only(&known) => None,
            Some(types) => typed::<Vec<PolicyType>>(types).filter(|types| !types.is_empty()),
            None if self.0.contains_key("egress") => None,
            None => Some(vec![PolicyType::Ingress]),
        };
        let types = types.unwrap_or(vec![PolicyType::Ingress, PolicyType::Egress]);
        json!({"spec": {"podSelector": selector(self.0.get("podSelector")), "policyTypes": types}})
    }

    /// `None` if it cannot be told whom it restricts.
    fn cluster_wide(&self, spec: &Value) -> Option<Value> {
        let mut spec = spec.clone();
        spec["subject"] = self.subject()?;
        let (ingress, egress) = self.directions();
        for (denied, rules, peers) in [(ingress, "ingress", "from"), (egress, "egress", "to")] {
            if denied {
                // A peer of which nothing is known.
                spec[rules] = json!([{"name": NAME, "action": "Deny", peers: [{}]}]);
            }
        }
        Some(json!({"spec": spec}))
    }

    /// Whether what pods receive is restricted, and what they send.
    fn directions(&self) -> (bool, bool) {
        let known = ["tier", "priority", "subject", "ingress", "egress"];
        match (self.0.contains_key("ingress"), self.0.contains_key("egress")) {
            (false, false) => (true, true),
            named if self.has_only(&known) => named,
            _ => (true, true),
        }
    }

    fn priority(&self) -> i64 {
        let priority = self.0.get("priority").and_then(Value::as_i64);
        let good = priority.filter(|priority| (0..=i64::from(LAST_PRIORITY)).contains(priority));
        good.unwrap_or_default()
    }

    /// Of two selectors, one may be unreadable.
    fn subject(&self) -> Option<Value> {
        let subject = self.0.get("subject")?;
        match (subject.get("namespaces"), subject.get("pods")) {
            (None, Some(pods)) => {
                let parts = ["namespaceSelector", "podSelector"].map(|part| pods.get(part));
                if parts.iter().all(|part| good(*part).is_none()) {
                    return None;
                }
                let [namespaces, pods] = parts.map(selector);
                Some(json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}}))
            }
            (Some(namespaces), None) => Some(json!({"namespaces": good(Some(namespaces))?})),
            _ => None,
        }
    }

    /// Whether it says nothing else. What is misspelt may have been any of them.
    fn has_only(&self, known: &[&str]) -> bool {
        !self.0.is_empty() && self.0.keys().all(|field| known.contains(&field.as_str()))
    }
}

/// The selector if it is a good one, else the one that means all.
fn selector(value: Option<&Value>) -> LabelSelector {
    good(value).unwrap_or_default()
}

fn good(value: Option<&Value>) -> Option<LabelSelector> {
    value.and_then(typed).filter(is_good)
}

fn typed<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

#[cfg(test)]
mod tests {
    use fairway_model::PolicyName;
    use proptest::prelude::*;

    use super::*;
    use crate::decode::decode_unchecked;
    use crate::policy::draft;

    /// Anything that is made of the words of policies.
    fn anything() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            Just(json!("Ingress")),
            Just(json!("Admin")),
            Just(json!("In")),
            Just(json!("a")),
            Just(json!("-")),
            Just(json!(1)),
            Just(json!(-1)),
            Just(json!({})),
            Just(json!([])),
        ];
        let field = prop::sample::select(vec![
            "podSelector",
            "policyTypes",
            "ingress",
            "egress",
            "tier",
            "priority",
            "subject",
            "namespaces",
            "pods",
            "namespaceSelector",
            "matchLabels",
            "matchExpressions",
            "key",
            "operator",
            "values",
            "other",
        ]);
        word.prop_recursive(4, 32, 4, move |inner| {
            let fields = prop::collection::vec((field.clone(), inner.clone()), 0..4);
            let object = fields.prop_map(|fields| {
                let fields = fields.into_iter().map(|(field, value)| (field.to_owned(), value));
                Value::Object(fields.collect())
            });
            prop_oneof![3 => object, 1 => prop::collection::vec(inner, 0..3).prop_map(Value::Array)]
        })
    }

    proptest! {
        #[test]
        fn what_stands_in_for_a_policy_is_a_policy_that_denies(spec in anything()) {
            let kinds = [
                Kind::NetworkPolicy,
                Kind::ClusterNetworkPolicy,
                Kind::AdminNetworkPolicy,
                Kind::BaselineAdminNetworkPolicy,
            ];
            for kind in kinds {
                for value in [json!({"spec": spec}), spec.clone()] {
                    let Some(stand_in) = stand_in(kind, &value) else {
                        prop_assert_ne!(kind, Kind::NetworkPolicy);
                        continue;
                    };
                    let object = decode_unchecked(kind, stand_in).unwrap();
                    prop_assert_eq!(object.check(), []);
                    let name = PolicyName { kind: kind.policy().unwrap(), ..PolicyName::default() };
                    let draft = draft(&name, &object).unwrap();
                    let rules = [&draft.ingress, &draft.egress].into_iter().flatten();
                    prop_assert!(rules.clone().next().is_some(), "it denies nothing");
                    for rule in rules.flatten() {
                        prop_assert_eq!(rule.action, fairway_model::Action::Deny);
                        prop_assert_eq!((&rule.peers, &rule.ports), (&None, &None));
                    }
                }
            }
        }
    }
}
