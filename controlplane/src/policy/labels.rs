//! Label selectors in a form that two of the same meaning share.

use std::collections::BTreeSet;
use std::fmt;

use crate::kubernetes::Labels;
use crate::kubernetes::policy::{Expression, LabelSelector, Operator};

/// What must be so of a set of labels. As text, each means one thing only: keys and values of labels have
/// no commas, spaces, brackets or signs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Requirements(BTreeSet<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: String,
    must: Must,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Must {
    BeIn(BTreeSet<String>),
    NotBeIn(BTreeSet<String>),
    Exist,
    NotExist,
}

impl Requirements {
    /// That a label has this value.
    pub(crate) fn label(key: &str, value: &str) -> Self {
        let must = Must::BeIn(BTreeSet::from([value.to_owned()]));
        Self(BTreeSet::from([Requirement { key: key.to_owned(), must }]))
    }

    /// Whether they hold.
    pub(crate) fn hold(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, must }| match (must, labels.get(key)) {
            (Must::BeIn(values), Some(value)) => values.contains(value),
            (Must::NotBeIn(values), Some(value)) => !values.contains(value),
            (Must::Exist, found) => found.is_some(),
            (Must::NotExist, found) => found.is_none(),
            (Must::BeIn(_), None) => false,
            // As in Kubernetes: what is not there has none of the values.
            (Must::NotBeIn(_), None) => true,
        })
    }

    /// The labels that matter.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|requirement| requirement.key.as_str())
    }

    /// Whether they ask for nothing.
    pub(crate) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, if all they ask for is that this label has it.
    pub(crate) fn only(&self, key: &str) -> Option<&str> {
        let only = self.0.first().filter(|first| self.0.len() == 1 && first.key == key)?;
        match &only.must {
            Must::BeIn(values) if values.len() == 1 => values.first().map(String::as_str),
            _ => None,
        }
    }
}

impl From<&LabelSelector> for Requirements {
    fn from(selector: &LabelSelector) -> Self {
        let labels = selector.match_labels.iter();
        let labels = labels.map(|(key, value)| Requirement {
            key: key.clone(),
            must: Must::BeIn(BTreeSet::from([value.clone()])),
        });
        Self(labels.chain(selector.match_expressions.iter().map(Requirement::from)).collect())
    }
}

impl From<&Expression> for Requirement {
    fn from(Expression { key, operator, values }: &Expression) -> Self {
        let values = || values.iter().cloned().collect();
        let must = match operator {
            Operator::In => Must::BeIn(values()),
            Operator::NotIn => Must::NotBeIn(values()),
            Operator::Exists => Must::Exist,
            Operator::DoesNotExist => Must::NotExist,
        };
        Self { key: key.clone(), must }
    }
}

/// As `kubectl` takes them: `app=web,tier in (a,b),!old`.
impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, must }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match must {
                Must::BeIn(values) if values.len() == 1 => {
                    write!(f, "{key}={}", values.first().map_or("", String::as_str))?;
                }
                Must::BeIn(values) => write!(f, "{key} in ({})", list(values))?,
                Must::NotBeIn(values) => write!(f, "{key} notin ({})", list(values))?,
                Must::Exist => f.write_str(key)?,
                Must::NotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

fn list(values: &BTreeSet<String>) -> String {
    values.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn requirements(selector: Value) -> Requirements {
        Requirements::from(&serde_json::from_value::<LabelSelector>(selector).unwrap())
    }

    #[test]
    fn each_operator_means_what_it_does_in_kubernetes() {
        let express = |operator: &str, values: &[&str]| {
            let expression = json!({"key": "a", "operator": operator, "values": values});
            requirements(json!({"matchExpressions": [expression]}))
        };
        for (selector, text, of_x, of_y, of_none) in [
            (express("In", &["x"]), "a=x", true, false, false),
            (express("In", &["y", "x", "y"]), "a in (x,y)", true, true, false),
            (express("NotIn", &["x"]), "a notin (x)", false, true, true),
            (express("Exists", &[]), "a", true, true, false),
            (express("DoesNotExist", &[]), "!a", false, false, true),
            (requirements(json!({"matchLabels": {"a": "x"}})), "a=x", true, false, false),
            (requirements(json!({})), "", true, true, true),
        ] {
            assert_eq!(selector.to_string(), text);
            let hold = |labels: Value| selector.hold(&serde_json::from_value(labels).unwrap());
            let found = [json!({"a": "x"}), json!({"a": "y", "b": "x"}), json!({"b": "x"})];
            assert_eq!(found.map(hold), [of_x, of_y, of_none], "{text}");
        }
    }

    #[test]
    fn all_parts_must_hold_and_their_order_does_not_matter() {
        let expression = json!({"key": "b", "operator": "Exists"});
        let both = requirements(
            json!({"matchLabels": {"a": "x", "c": ""}, "matchExpressions": [expression]}),
        );
        assert_eq!(both.to_string(), "a=x,b,c=");
        let expressions = json!([
            {"key": "c", "operator": "In", "values": [""]}, {"key": "b", "operator": "Exists"},
            {"key": "a", "operator": "In", "values": ["x"]},
        ]);
        assert_eq!(requirements(json!({"matchExpressions": expressions})), both);
        let labels = |labels: &[(&str, &str)]| {
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(both.hold(&labels(&[("a", "x"), ("b", "1"), ("c", "")])));
        assert!(!both.hold(&labels(&[("a", "x"), ("b", "1")])));
    }
}
