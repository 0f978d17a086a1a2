//! A radix tree over token sequences: where prefixes that were seen before end, and what is kept there.

/// A node of a [`RadixTree`]. One that holds a value keeps its number for as long as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(usize);

#[derive(Clone, Debug)]
struct Node {
    /// Tokens between the parent and this node; empty for the root only.
    edge: Vec<u32>,
    parent: Option<NodeId>,
    children: Vec<NodeId>,
    value: Option<u64>,
}

/// Token sequences with a value at the end of each. No node without a value has fewer than two children, so the tree
/// holds at most twice as many nodes as values.
#[derive(Clone, Debug)]
pub(super) struct RadixTree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
}

/// What is known of a token sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// Tokens from the start that some sequence in the tree shares.
    pub(super) shared: usize,
    /// Values whose sequences are prefixes of the one asked for: their lengths, shortest first.
    pub(super) prefixes: Vec<(usize, u64)>,
    /// Values whose sequences share all of `shared` and then go on differently, for a few tokens.
    pub(super) beyond: Vec<(usize, u64)>,
}

const ROOT: NodeId = NodeId(0);

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl RadixTree {
    pub(super) fn new() -> RadixTree {
        let root = Node { edge: Vec::new(), parent: None, children: Vec::new(), value: None };
        RadixTree { nodes: vec![root], free: Vec::new() }
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    fn add(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id.0] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId(self.nodes.len() - 1)
            }
        }
    }

    fn child(&self, id: NodeId, first: u32) -> Option<NodeId> {
        self.node(id).children.iter().copied().find(|&child| self.node(child).edge.first() == Some(&first))
    }

    /// Puts `value` at the end of `tokens`; returns where, and what was there.
    pub(super) fn insert(&mut self, tokens: &[u32], value: u64) -> (NodeId, Option<u64>) {
        let (mut at, mut rest) = (ROOT, tokens);
        while let Some(&first) = rest.first() {
            let Some(child) = self.child(at, first) else {
                let node = Node { edge: rest.to_vec(), parent: Some(at), children: Vec::new(), value: None };
                let leaf = self.add(node);
                self.node_mut(at).children.push(leaf);
                at = leaf;
                break;
            };
            let shared = common(&self.node(child).edge, rest);
            at = if shared < self.node(child).edge.len() { self.split(child, shared) } else { child };
            rest = &rest[shared..];
        }
        (at, self.node_mut(at).value.replace(value))
    }

    /// Puts a node into the edge of `child`, `at` tokens from its parent.
    fn split(&mut self, child: NodeId, at: usize) -> NodeId {
        let parent = self.node(child).parent;
        let lower = self.node_mut(child).edge.split_off(at);
        let upper = std::mem::replace(&mut self.node_mut(child).edge, lower);
        let middle = self.add(Node { edge: upper, parent, children: vec![child], value: None });
        self.node_mut(child).parent = Some(middle);
        if let Some(parent) = parent {
            let place = self.node(parent).children.iter().position(|&other| other == child);
            if let Some(place) = place {
                self.node_mut(parent).children[place] = middle;
            }
        }
        middle
    }

    /// Walks along `tokens`. Values up to `reach` tokens beyond the last shared one are listed too.
    pub(super) fn find(&self, tokens: &[u32], reach: usize) -> Match {
        let mut found = Match::default();
        let (mut at, mut rest) = (ROOT, tokens);
        loop {
            if let Some(value) = self.node(at).value {
                found.prefixes.push((found.shared, value));
            }
            let child = rest.first().and_then(|&first| self.child(at, first));
            let Some(child) = child else {
                for &child in &self.node(at).children {
                    self.collect(child, found.shared, found.shared + reach, &mut found.beyond);
                }
                return found;
            };
            let (start, shared) = (found.shared, common(&self.node(child).edge, rest));
            found.shared += shared;
            rest = &rest[shared..];
            if shared < self.node(child).edge.len() {
                let limit = found.shared + reach;
                self.collect(child, start, limit, &mut found.beyond);
                return found;
            }
            at = child;
        }
    }

    /// Values in the subtree of `id`, whose edge begins at `start`, that lie no deeper than `limit`.
    fn collect(&self, id: NodeId, start: usize, limit: usize, found: &mut Vec<(usize, u64)>) {
        let node = self.node(id);
        let depth = start + node.edge.len();
        if depth > limit {
            return;
        }
        found.extend(node.value.map(|value| (depth, value)));
        for &child in &node.children {
            self.collect(child, depth, limit, found);
        }
    }

    /// Removes the value of a node.
    pub(super) fn remove(&mut self, id: NodeId) {
        self.node_mut(id).value = None;
        self.tidy(id);
    }

    /// The value of the nearest node above that has one.
    pub(super) fn above(&self, id: NodeId) -> Option<u64> {
        let mut at = self.node(id).parent;
        while let Some(parent) = at {
            if let Some(value) = self.node(parent).value {
                return Some(value);
            }
            at = self.node(parent).parent;
        }
        None
    }

    /// Whether values lie below a node.
    pub(super) fn has_below(&self, id: NodeId) -> bool {
        !self.node(id).children.is_empty()
    }

    /// The tokens that lead to a node.
    pub(super) fn tokens(&self, id: NodeId) -> Vec<u32> {
        let (mut edges, mut at) = (Vec::new(), Some(id));
        while let Some(id) = at {
            edges.push(&self.node(id).edge[..]);
            at = self.node(id).parent;
        }
        edges.reverse();
        edges.concat()
    }

    /// Drops a node that nothing needs any more, or joins it with its only child.
    fn tidy(&mut self, id: NodeId) {
        let (Some(parent), None) = (self.node(id).parent, self.node(id).value) else { return };
        match self.node(id).children[..] {
            [] => {
                self.node_mut(parent).children.retain(|&other| other != id);
                self.forget(id);
                self.tidy(parent);
            }
            [child] => {
                let mut edge = std::mem::take(&mut self.node_mut(id).edge);
                edge.extend_from_slice(&self.node(child).edge);
                self.node_mut(child).edge = edge;
                self.node_mut(child).parent = Some(parent);
                for other in &mut self.node_mut(parent).children {
                    if *other == id {
                        *other = child;
                    }
                }
                self.forget(id);
            }
            _ => {}
        }
    }

    fn forget(&mut self, id: NodeId) {
        *self.node_mut(id) = Node { edge: Vec::new(), parent: None, children: Vec::new(), value: None };
        self.free.push(id);
    }

    /// Nodes in use, besides the root.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.nodes.len() - self.free.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(Vec<u32>, u64),
        Remove(Vec<u32>),
        Find(Vec<u32>, usize),
    }

    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..3, 0..9)
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (tokens(), any::<u64>()).prop_map(|(tokens, value)| Op::Insert(tokens, value)),
            tokens().prop_map(Op::Remove),
            (tokens(), 0usize..4).prop_map(|(tokens, reach)| Op::Find(tokens, reach)),
        ];
        prop::collection::vec(op, 1..60)
    }

    /// The same by comparing with every sequence.
    fn find(map: &BTreeMap<Vec<u32>, u64>, tokens: &[u32], reach: usize) -> Match {
        let shared = map.keys().map(|key| common(key, tokens)).max().unwrap_or(0);
        let mut prefixes: Vec<(usize, u64)> = map
            .iter()
            .filter(|(key, _)| tokens.starts_with(key))
            .map(|(key, &value)| (key.len(), value))
            .collect();
        prefixes.sort_unstable();
        let mut beyond: Vec<(usize, u64)> = map
            .iter()
            .filter(|(key, _)| key.len() > shared && key.len() <= shared + reach)
            .filter(|(key, _)| key.starts_with(&tokens[..shared]))
            .map(|(key, &value)| (key.len(), value))
            .collect();
        beyond.sort_unstable();
        Match { shared, prefixes, beyond }
    }

    proptest! {
        #[test]
        fn it_finds_what_comparing_with_every_sequence_finds(ops in ops()) {
            let (mut tree, mut map) = (RadixTree::new(), BTreeMap::new());
            let mut places = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Insert(tokens, value) => {
                        let (place, before) = tree.insert(&tokens, value);
                        prop_assert_eq!(before, map.insert(tokens.clone(), value));
                        places.insert(tokens, place);
                    }
                    Op::Remove(tokens) => {
                        if map.remove(&tokens).is_some() {
                            tree.remove(places[&tokens]);
                        }
                    }
                    Op::Find(tokens, reach) => {
                        let mut found = tree.find(&tokens, reach);
                        found.beyond.sort_unstable();
                        prop_assert_eq!(found, self::find(&map, &tokens, reach));
                    }
                }
                prop_assert!(tree.len() <= 2 * map.len());
                for tokens in map.keys() {
                    let place = places[tokens];
                    prop_assert_eq!(&tree.tokens(place), tokens);
                    let longer = |other: &&Vec<u32>| other.len() > tokens.len() && other.starts_with(tokens);
                    prop_assert_eq!(tree.has_below(place), map.keys().any(|other| longer(&other)));
                    let above = map.iter().filter(|(other, _)| other.len() < tokens.len());
                    let above = above.filter(|(other, _)| tokens.starts_with(other)).max_by_key(|(other, _)| other.len());
                    prop_assert_eq!(tree.above(place), above.map(|(_, &value)| value));
                }
            }
            for tokens in map.keys() {
                tree.remove(places[tokens]);
            }
            prop_assert_eq!(tree.len(), 0);
        }
    }
}
