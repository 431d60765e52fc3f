//! The annotation by which a Service gives some of its endpoints more new connections than others.

use std::collections::BTreeMap;

/// Weights from here to there can be said.
const RANGE: std::ops::RangeInclusive<u16> = 0..=1000;
/// Of an endpoint that nothing is said about.
const DEFAULT: u16 = 1;

/// What is said of endpoints by where they are and by their pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weights<'a> {
    pods: BTreeMap<&'a str, u16>,
    nodes: BTreeMap<&'a str, u16>,
    zones: BTreeMap<&'a str, u16>,
}

impl<'a> Weights<'a> {
    /// Reads `pod/NAME=WEIGHT`, `node/NAME=WEIGHT` and `zone/NAME=WEIGHT` between commas; white space
    /// around them does not count.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub(crate) fn read(text: &'a str) -> Result<Self, String> {
        let mut weights = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let shape = || format!("\"{part}\" is none of pod/NAME=WEIGHT, node/... and zone/...");
            let (who, weight) = part.split_once('=').ok_or_else(shape)?;
            let (kind, name) = who.trim().split_once('/').ok_or_else(shape)?;
            let of_kind = match kind {
                "pod" => &mut weights.pods,
                "node" => &mut weights.nodes,
                "zone" => &mut weights.zones,
                _ => return Err(shape()),
            };
            if name.is_empty() {
                return Err(shape());
            }
            let number = weight.trim().parse().ok().filter(|number| RANGE.contains(number));
            let (least, most) = (RANGE.start(), RANGE.end());
            let number =
                number.ok_or_else(|| format!("\"{part}\": a weight is {least} to {most}"))?;
            if of_kind.insert(name, number).is_some() {
                return Err(format!("{kind}/{name} is there twice"));
            }
        }
        Ok(weights)
    }

    /// The weight of an endpoint, as far as it is known where it is: what is said of its pod counts
    /// before what is said of its node, and that before what is said of its zone.
    pub(crate) fn of(&self, pod: Option<&str>, node: Option<&str>, zone: Option<&str>) -> u16 {
        let said = |all: &BTreeMap<&str, u16>, name: Option<&str>| all.get(name?).copied();
        said(&self.pods, pod)
            .or_else(|| said(&self.nodes, node))
            .or_else(|| said(&self.zones, zone))
            .unwrap_or(DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_word_counts() {
        let text = "zone/a=3, node/n2=2 ,pod/web-0=0, zone/b = 1000,";
        let weights = Weights::read(text).expect("weights");
        let of = |pod, node, zone| weights.of(Some(pod), Some(node), Some(zone));
        assert_eq!(of("web-0", "n2", "a"), 0);
        assert_eq!(of("web-1", "n2", "a"), 2);
        assert_eq!(of("web-1", "n1", "a"), 3);
        assert_eq!(of("web-1", "n1", "b"), 1000);
        assert_eq!(of("web-1", "n1", "c"), 1);
        assert_eq!(weights.of(None, None, None), 1);
        assert_eq!(Weights::read(""), Ok(Weights::default()));
    }

    #[test]
    fn what_is_no_weight_is_named() {
        let shape = "is none of pod/NAME=WEIGHT, node/... and zone/...";
        for (text, expected) in [
            ("zone/a", format!("\"zone/a\" {shape}")),
            ("zone/a=1,rack/b=2", format!("\"rack/b=2\" {shape}")),
            ("web=2", format!("\"web=2\" {shape}")),
            ("pod/=2", format!("\"pod/=2\" {shape}")),
            ("zone/a=1001", "\"zone/a=1001\": a weight is 0 to 1000".to_owned()),
            ("zone/a=-1", "\"zone/a=-1\": a weight is 0 to 1000".to_owned()),
            ("zone/a=x", "\"zone/a=x\": a weight is 0 to 1000".to_owned()),
            ("node/a=1,node/a=1", "node/a is there twice".to_owned()),
        ] {
            assert_eq!(Weights::read(text), Err(expected), "{text}");
        }
    }
}
