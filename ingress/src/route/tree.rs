//! Which of many paths is the longest that another one begins with, in time that depends on the latter alone.

/// How much of a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// Whole elements: behind the prefix the path ends or goes on with a slash.
    Elements,
    /// Bytes.
    Bytes,
}

/// Prefixes of paths, each with what is there.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

/// A prefix that is there, or that several of those have in common.
#[derive(Debug, Default)]
struct Node {
    /// Behind that of its parent.
    label: Box<[u8]>,
    /// Places among the nodes; no two labels begin alike.
    children: Vec<usize>,
    /// For [`Whole::Elements`] and [`Whole::Bytes`].
    values: [Option<usize>; 2],
}

impl Tree {
    /// Puts `value` at `prefix`; in place of what may have been there.
    pub(super) fn insert(&mut self, prefix: &[u8], whole: Whole, value: usize) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        let mut rest = prefix;
        while !rest.is_empty() {
            let Some(child) = self.child(at, rest[0]) else {
                self.nodes.push(Node { label: rest.into(), ..Node::default() });
                let new = self.nodes.len() - 1;
                self.nodes[at].children.push(new);
                at = new;
                break;
            };
            let label = &self.nodes[child].label;
            let common = label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if common < label.len() {
                self.split(child, common);
            }
            at = child;
            rest = &rest[common..];
        }
        self.nodes[at].values[whole as usize] = Some(value);
    }

    /// What is at the longest prefix of `path`, and how long that is; of two of the same length the one for
    /// whole elements.
    pub(super) fn longest(&self, path: &[u8]) -> Option<(usize, usize)> {
        let mut best = None;
        let mut at = 0;
        let mut length = 0;
        let mut node = self.nodes.first()?;
        loop {
            let [elements, bytes] = node.values;
            let boundary = matches!(path.get(length), None | Some(b'/'));
            if let Some(value) = elements.filter(|_| boundary).or(bytes) {
                best = Some((value, length));
            }
            let Some(next) = path.get(length).and_then(|byte| self.child(at, *byte)) else { break };
            (at, node) = (next, &self.nodes[next]);
            if !path[length..].starts_with(&node.label) {
                break;
            }
            length += node.label.len();
        }
        best
    }

    /// The child of `node` whose label begins with `byte`.
    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let children = &self.nodes[node].children;
        children.iter().copied().find(|child| self.nodes[*child].label[0] == byte)
    }

    /// Makes `node` end after `length` bytes of its label, and a child of it have the rest.
    fn split(&mut self, node: usize, length: usize) {
        let new = self.nodes.len();
        let node = &mut self.nodes[node];
        let (label, rest) = node.label.split_at(length);
        let (label, rest) = (label.into(), rest.into());
        let children = std::mem::replace(&mut node.children, vec![new]);
        let values = std::mem::take(&mut node.values);
        node.label = label;
        self.nodes.push(Node { label: rest, children, values });
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_longest_prefix_is_found(
            prefixes in vec(("(/?[ab]{0,2}){0,3}", any::<bool>()), 0..12),
            path in "(/[ab]{0,3}){1,4}",
        ) {
            let mut tree = Tree::default();
            for (value, (prefix, elements)) in prefixes.iter().enumerate() {
                let whole = if *elements { Whole::Elements } else { Whole::Bytes };
                tree.insert(prefix.as_bytes(), whole, value);
            }
            let expected = prefixes
                .iter()
                .enumerate()
                .filter(|(_, (prefix, elements))| {
                    let rest = path.strip_prefix(prefix.as_str());
                    rest.is_some_and(|rest| !elements || rest.is_empty() || rest.starts_with('/'))
                })
                .max_by_key(|(value, (prefix, elements))| (prefix.len(), *elements, *value))
                .map(|(value, (prefix, _))| (value, prefix.len()));
            prop_assert_eq!(tree.longest(path.as_bytes()), expected);
        }
    }
}
