//! By how many others a replica must be filled, and what they have said.

use std::collections::{BTreeMap, BTreeSet};

use model::{Hlc, Mutant, NodeId, PartitionIndex, Refusal, ReplicaSet};
use proto::internal::PartitionFloor;

use crate::{exchange::RoundEnd, view::View};

/// A replica to fill from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) floor: Hlc,
    /// The round of the floor.
    pub(super) round: u64,
    pub(super) fence: Hlc,
}

/// What the other replicas have said.
#[derive(Default)]
pub(super) struct Answers {
    sources: BTreeMap<PartitionIndex, Vec<Source>>,
    asked: BTreeSet<NodeId>,
    answered: BTreeSet<NodeId>,
    /// Those that are to be filled themselves.
    filling: BTreeSet<NodeId>,
    /// Of them, those that have lost their directories after this node had lost its own.
    lost_later: BTreeSet<NodeId>,
}

impl Answers {
    /// It can be reached.
    pub(super) fn ask(&mut self, node: NodeId) {
        self.asked.insert(node);
    }

    pub(super) fn take(&mut self, node: NodeId, floors: &[PartitionFloor]) {
        self.answered.insert(node);
        for it in floors {
            let Ok(partition) = u16::try_from(it.partition) else { continue };
            let source =
                Source { node, floor: Hlc(it.floor), round: it.round, fence: Hlc(it.fence) };
            self.sources.entry(PartitionIndex(partition)).or_default().push(source);
        }
    }

    /// It gives nothing; `lost_later` says whether its directory is younger than this node's.
    pub(super) fn refused(&mut self, node: NodeId, end: RoundEnd, lost_later: bool) {
        if end == RoundEnd::Refused(Refusal::NotReady) {
            self.filling.insert(node);
            if lost_later {
                self.lost_later.insert(node);
            }
        }
    }

    pub(super) fn has(&self, node: NodeId) -> bool {
        self.answered.contains(&node)
    }

    pub(super) fn of(&self, partition: PartitionIndex) -> Vec<Source> {
        self.sources.get(&partition).cloned().unwrap_or_default()
    }
}

/// How many others must have filled a replica before it counts, so that every write that a quorum has
/// acknowledged is among what they hold: of all replicas, and of those of its datacenter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    others: Vec<NodeId>,
    neighbours: Vec<NodeId>,
    required: usize,
    required_neighbours: usize,
}

impl Need {
    /// What this node's replica of a set needs; `None` if it has none. Neighbours that are to be filled
    /// themselves and have lost their disks later are not waited for: what those had acknowledged is lost with
    /// them, or was acknowledged by this directory too. One that has lost its disk before may have taken
    /// writes since, beside the directory that this node has lost: it is filled first.
    pub(super) fn of(
        view: &View,
        set: &ReplicaSet,
        answers: &Answers,
        accept_loss: bool,
    ) -> Option<Self> {
        let (layout, own) = (view.metadata()?.layout(), view.own()?);
        let replica = set.replica(own)?;
        let id = |it| layout.node(set.node(it)).id;
        let is_other = |it: &model::ReplicaIndex| *it != replica;
        let others: Vec<_> = set.all().iter().filter(is_other).map(id).collect();
        let local = set.datacenters().iter().find(|it| it.1.contains(replica))?.1;
        let neighbours: Vec<_> = local.iter().filter(is_other).map(id).collect();
        let lost = neighbours.iter().filter(|it| answers.lost_later.contains(it)).count();
        let mut need = Self {
            required: beside_quorum(others.len() + 1),
            required_neighbours: neighbours_required(neighbours.len(), lost),
            others,
            neighbours,
        };
        if accept_loss {
            // All that can be reached, but for those that have nothing to give.
            let gives = |it: &&NodeId| answers.asked.contains(it) && !answers.filling.contains(it);
            let required = need.others.iter().filter(gives).count();
            (need.required, need.required_neighbours) = (required, 0);
        }
        if Mutant::FilledFromOne.is_on() {
            (need.required, need.required_neighbours) = (need.required.min(1), 0);
        }
        Some(need)
    }

    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> {
        self.others.iter().copied()
    }

    /// True if these are enough.
    pub(super) fn is_met(&self, held: impl Iterator<Item = NodeId>) -> bool {
        let held: BTreeSet<NodeId> = held.collect();
        let among = |nodes: &[NodeId]| nodes.iter().filter(|it| held.contains(it)).count();
        among(&self.others) >= self.required && among(&self.neighbours) >= self.required_neighbours
    }
}

/// How many of so many replicas meet every quorum of them that one more replica was in: N - Q + 1.
fn beside_quorum(replicas: usize) -> usize {
    replicas - (replicas / 2 + 1) + 1
}

/// How many neighbours a replica needs of so many, some of which are lost: as many as a quorum of them and
/// itself requires, or all that are left, so that none of them is passed over that alone still holds what a
/// quorum with the lost ones had acknowledged.
fn neighbours_required(neighbours: usize, lost: usize) -> usize {
    beside_quorum(neighbours + 1).min(neighbours - lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_left_of_a_quorum_is_asked() {
        for neighbours in 1..=8_usize {
            let quorum = neighbours.div_ceil(2) + 1;
            for lost in 0..=neighbours {
                let required = neighbours_required(neighbours, lost);
                assert!(required <= neighbours - lost);
                // This replica and all lost ones were in the quorum; the others that were, are left.
                let holders = (quorum - 1).saturating_sub(lost);
                let without = neighbours - lost - holders;
                assert!(holders == 0 || required > without, "{lost} of {neighbours} are lost");
            }
        }
    }

    fn need(others: u128, neighbours: u128, required: usize, local: usize) -> Need {
        Need {
            others: (1..=others).map(NodeId).collect(),
            neighbours: (1..=neighbours).map(NodeId).collect(),
            required,
            required_neighbours: local,
        }
    }

    #[test]
    fn enough_are_those_that_every_quorum_has_one_of() {
        assert_eq!([1, 2, 3, 4, 5, 9].map(beside_quorum), [1, 1, 2, 2, 3, 5]);
        for replicas in 2..=9 {
            // A quorum with the lost replica has this many others; they cannot all be elsewhere.
            let (quorum, sources) = (replicas / 2 + 1, beside_quorum(replicas));
            assert!(quorum - 1 + sources > replicas - 1, "{replicas}");
        }
    }

    #[test]
    fn of_two_that_are_filled_the_later_one_waits() {
        let mut answers = Answers::default();
        answers.refused(NodeId(1), RoundEnd::Refused(Refusal::NotReady), true);
        answers.refused(NodeId(2), RoundEnd::Refused(Refusal::NotReady), false);
        answers.refused(NodeId(3), RoundEnd::Refused(Refusal::Overloaded), true);
        assert_eq!(answers.filling, BTreeSet::from([NodeId(1), NodeId(2)]), "they give nothing");
        assert_eq!(answers.lost_later, BTreeSet::from([NodeId(1)]));
    }

    #[test]
    fn neighbours_are_needed_beside_the_others() {
        let nodes = |them: &[u128]| them.iter().copied().map(NodeId).collect::<Vec<_>>();
        let it = need(8, 2, 5, 2);
        assert!(it.is_met(nodes(&[1, 2, 3, 4, 5]).into_iter()));
        assert!(!it.is_met(nodes(&[1, 2, 3, 4]).into_iter()), "too few");
        assert!(!it.is_met(nodes(&[2, 3, 4, 5, 6]).into_iter()), "a neighbour is missing");
        assert!(!it.is_met(nodes(&[1, 1, 1, 1, 1]).into_iter()), "one is one");
    }
}
