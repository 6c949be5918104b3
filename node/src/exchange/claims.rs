//! Which partitions are being brought together, and with whom: with one node at a time. A replica that
//! returns lacks the same records of several others, and each would send them.
//!
//! No guarantee depends on it, only how much moves. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use model::{KeyspaceId, NodeId, PartitionIndex};

/// Who has begun the round for which partitions are claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Begun {
    /// This node: its claim ends with the round.
    Here,
    /// The other one: its claim ends when it asks for nothing more for [`CLAIM_US`].
    There,
}

/// How long a node may think between two steps of a round: longer than a step may take.
const CLAIM_US: u64 = 15_000_000;

struct Claim {
    keyspace: KeyspaceId,
    partitions: BTreeSet<PartitionIndex>,
    until_us: u64,
}

/// The claims of the rounds with each node: one for each direction.
#[derive(Default)]
pub(super) struct Claims(BTreeMap<(NodeId, Begun), Claim>);

impl Claims {
    /// Claims partitions for the rounds with a node, instead of those that it had: the ones that no
    /// other node has.
    pub(super) fn claim(
        &mut self,
        (with, begun): (NodeId, Begun),
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
        now_us: u64,
    ) -> Vec<PartitionIndex> {
        self.0.retain(|_, it| it.until_us > now_us);
        let others = || self.0.iter().filter(|it| it.0.0 != with && it.1.keyspace == keyspace);
        let is_free = |it: &&PartitionIndex| !others().any(|other| other.1.partitions.contains(it));
        let free: Vec<_> = partitions.iter().filter(is_free).copied().collect();
        let until_us = until(begun, now_us);
        let partitions = free.iter().copied().collect();
        self.0.insert((with, begun), Claim { keyspace, partitions, until_us });
        free
    }

    /// A node has gone on with the round that it has begun.
    pub(super) fn renew(&mut self, with: NodeId, now_us: u64) {
        if let Some(claim) = self.0.get_mut(&(with, Begun::There)) {
            claim.until_us = until(Begun::There, now_us);
        }
    }

    /// What was claimed for the rounds with a node is free again.
    pub(super) fn end(&mut self, with: NodeId, begun: Begun) {
        self.0.remove(&(with, begun));
    }
}

fn until(begun: Begun, now_us: u64) -> u64 {
    match begun {
        Begun::Here => u64::MAX,
        Begun::There => now_us.saturating_add(CLAIM_US),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(1);
    const A: NodeId = NodeId(7);
    const B: NodeId = NodeId(8);
    const C: NodeId = NodeId(9);

    fn claim(claims: &mut Claims, with: (NodeId, Begun), ids: &[u16], now_us: u64) -> Vec<u16> {
        let partitions: Vec<_> = ids.iter().map(|it| PartitionIndex(*it)).collect();
        claims.claim(with, KEYSPACE, &partitions, now_us).iter().map(|it| it.0).collect()
    }

    #[test]
    fn a_partition_is_brought_together_with_one_node_at_a_time() {
        let mut claims = Claims::default();
        assert_eq!(claim(&mut claims, (A, Begun::Here), &[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(claim(&mut claims, (B, Begun::There), &[2, 3, 4], 0), [4]);
        assert_eq!(claim(&mut claims, (A, Begun::There), &[3, 4], 0), [3], "of one pair no matter");
        let other = claims.claim((C, Begun::Here), KeyspaceId(2), &[PartitionIndex(3)], 0);
        assert_eq!(other.len(), 1, "another keyspace");
        assert_eq!(
            claim(&mut claims, (A, Begun::Here), &[5], 0),
            [5],
            "instead of the first three"
        );
        assert_eq!(claim(&mut claims, (C, Begun::Here), &[1, 2, 3, 5], 0), [1, 2]);
        claims.end(A, Begun::There);
        assert_eq!(claim(&mut claims, (C, Begun::Here), &[3, 5], 0), [3]);
    }

    #[test]
    fn the_claim_of_a_node_that_is_gone_ends() {
        let mut claims = Claims::default();
        assert_eq!(claim(&mut claims, (A, Begun::There), &[1], 0), [1]);
        assert_eq!(claim(&mut claims, (B, Begun::There), &[1], CLAIM_US - 1), [0_u16; 0]);
        claims.renew(A, CLAIM_US - 1);
        assert_eq!(claim(&mut claims, (B, Begun::There), &[1], CLAIM_US), [0_u16; 0], "goes on");
        assert_eq!(claim(&mut claims, (B, Begun::There), &[1], 2 * CLAIM_US), [1]);
        assert_eq!(claim(&mut claims, (A, Begun::Here), &[2], 0), [2]);
        assert_eq!(claim(&mut claims, (B, Begun::There), &[2], u64::MAX - 1), [0_u16; 0]);
    }
}
