//! How far the other nodes say that their hybrid clocks have come.

use std::collections::BTreeMap;

use model::{Hlc, NodeId};

use super::OtherNode;

/// The highest reading that each node has told. It stays true while a node is away: a hybrid clock
/// only rises, over restarts too.
#[derive(Debug, Default)]
pub(crate) struct ToldClocks(BTreeMap<NodeId, Hlc>);

impl ToldClocks {
    /// Notes what a node has told; one outside the layout has no say.
    pub(crate) fn note(&mut self, node: NodeId, clock: Hlc, others: &[OtherNode]) {
        if others.iter().any(|it| it.node == node) {
            let highest = self.0.entry(node).or_default();
            *highest = clock.max(*highest);
        }
        self.0.retain(|it, _| others.iter().any(|other| other.node == *it));
    }

    /// The highest reading that a majority of all nodes has reached, this one, at `own`, among them.
    pub(crate) fn reached_by_most(&self, own: Hlc, others: &[OtherNode]) -> Hlc {
        let told = others.iter().map(|it| self.0.get(&it.node).copied().unwrap_or_default());
        let mut all: Vec<_> = told.chain([own]).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all[all.len() / 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_carries_a_clock_along() {
        let others: Vec<_> =
            (1..=2).map(|it| OtherNode { node: NodeId(it), local: true }).collect();
        let (near, far) = (Hlc::from_ms(1_000), Hlc::from_ms(3_600_000));
        let mut told = ToldClocks::default();
        told.note(NodeId(1), far, &others);
        told.note(NodeId(9), far, &others);
        assert_eq!(told.reached_by_most(near, &others), near, "one node and a stranger");
        told.note(NodeId(2), far.next(), &others);
        assert_eq!(told.reached_by_most(near, &others), far);
        told.note(NodeId(2), near, &others);
        assert_eq!(told.reached_by_most(near, &others), far, "what was told stays");
        assert_eq!(told.reached_by_most(far.next(), &others), far.next());
        assert_eq!(ToldClocks::default().reached_by_most(near, &[]), near);
    }
}
