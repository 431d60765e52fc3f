//! Which node a pod runs on: the next one, in turn, that has the labels it asks for.

use std::collections::BTreeMap;

use crate::spec::PodSpec;

/// Takes turns over the nodes.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    turn: usize,
}

impl Scheduler {
    /// The name of the node that `pod` shall run on; `None` if no node will do.
    pub(crate) fn choose<'a>(&mut self, pod: &PodSpec, nodes: &'a [String]) -> Option<&'a str> {
        let fits = |node: &&String| {
            let labels = node_labels(node);
            pod.node_selector
                .iter()
                .all(|(label, value)| labels.get(label.as_str()) == Some(&value.as_str()))
        };
        let start = self.turn;
        let in_turn = (0..nodes.len()).map(|offset| (start + offset) % nodes.len());
        let chosen = in_turn.into_iter().find(|index| fits(&&nodes[*index]))?;
        self.turn = chosen + 1;
        Some(&nodes[chosen])
    }
}

/// The labels of a node.
pub(crate) fn node_labels(node: &str) -> BTreeMap<&'static str, &str> {
    BTreeMap::from([
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", ARCHITECTURE),
    ])
}

/// This machine's architecture in Kubernetes' words.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_take_turns_and_selectors_are_honoured() {
        let nodes = ["node1", "node2", "node3"].map(str::to_owned);
        let any: PodSpec = serde_json::from_value(json!({"containers": []})).unwrap();
        let on = |selector| -> PodSpec {
            serde_json::from_value(json!({"containers": [], "nodeSelector": selector})).unwrap()
        };
        let mut scheduler = Scheduler::default();
        let mut next = |pod: &PodSpec| scheduler.choose(pod, &nodes).map(str::to_owned);

        assert_eq!(next(&any).as_deref(), Some("node1"));
        assert_eq!(next(&any).as_deref(), Some("node2"));
        let first = on(json!({"kubernetes.io/hostname": "node1"}));
        assert_eq!(next(&first).as_deref(), Some("node1"));
        assert_eq!(next(&any).as_deref(), Some("node2"));
        assert_eq!(next(&on(json!({"disk": "ssd"}))), None);
        assert_eq!(Scheduler::default().choose(&any, &[]), None);
    }
}
