//! Exact Merkle trees over the ring: what replicas compare. Rules: docs/protocol.md, M1 to M6.
//!
//! A tree covers one partition of one keyspace. Its leaves tile the partition's tokens, and each is the
//! XOR of the hashes of the records in its range. So every write changes one leaf by the hash of the
//! version that goes and of the one that comes, and any two neighbouring ranges can be compared as one.
//! A leaf that has grown is cut in halves, each on its own, down to a single token: trees of equal data
//! may differ in their leaves, never in the hash of a range that both have.

mod hash;

use model::{PartitionIndex, Token};

pub use hash::{HASH_FORMAT, RecordHasher, TreeHash};

/// A leaf with more records is cut. Small enough that the versions of one differing leaf fit a frame,
/// and large enough that leaves are a few bytes per record: 32 bytes for 64 to 128 of them.
pub const LEAF_RECORDS_MAX: u32 = 128;

/// The records of one range of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first token of the range.
    pub first: Token,
    /// How many leading bits all tokens of the range share, 64 at most.
    pub bits: u8,
    /// How many records there are, tombstones included.
    pub records: u32,
    /// The XOR of their hashes.
    pub hash: TreeHash,
}

/// What a write changes of a leaf. Changes of one leaf add up in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafChange {
    /// The XOR of the hashes of what goes and what comes.
    pub hash: TreeHash,
    /// Records more, or fewer.
    pub records: i32,
}

/// Why leaves are not a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the leaves do not cover every token of the partition once: {at} comes where {expected} should"
)]
pub struct NotTiled {
    /// The first token of the leaf out of place, or of what follows the partition.
    pub at: u128,
    /// Where the leaf before it ends.
    pub expected: u128,
}

impl Leaf {
    /// An empty leaf. Panics if `bits` is above 64.
    pub fn empty(first: Token, bits: u8) -> Self {
        assert!(bits <= 64, "{bits} bits of a token");
        Self { first, bits, records: 0, hash: TreeHash::ZERO }
    }

    /// The last token of the range, inclusive.
    pub fn last(&self) -> Token {
        Token(self.first.0 | u64::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0))
    }

    /// The leaf after a change.
    pub fn after(mut self, change: LeafChange) -> Self {
        self.hash ^= change.hash;
        self.records = self.records.saturating_add_signed(change.records);
        self
    }

    /// True if the leaf is to be cut.
    pub fn is_overfull(&self) -> bool {
        self.records > LEAF_RECORDS_MAX && self.bits < 64
    }

    /// The leaves of this one's range, given all its records in the order of their tokens: one if they
    /// are few, or all of one token.
    pub fn cut(&self, records: &[(Token, TreeHash)]) -> Vec<Self> {
        let mut leaves = Vec::new();
        self.cut_into(records, &mut leaves);
        leaves
    }

    fn cut_into(&self, records: &[(Token, TreeHash)], leaves: &mut Vec<Self>) {
        let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let one_token = records.first().map(|it| it.0) == records.last().map(|it| it.0);
        if count <= LEAF_RECORDS_MAX / 2 || one_token || self.bits == 64 {
            let hash = records.iter().fold(TreeHash::ZERO, |sum, it| sum ^ it.1);
            leaves.push(Self { records: count, hash, ..*self });
            return;
        }
        let middle = Token(self.first.0 | 1 << (63 - self.bits));
        let (left, right) = records.split_at(records.partition_point(|it| it.0 < middle));
        Self::empty(self.first, self.bits + 1).cut_into(left, leaves);
        Self::empty(middle, self.bits + 1).cut_into(right, leaves);
    }

    /// The token behind the range; 2^64 behind the last one.
    fn end(&self) -> u128 {
        u128::from(self.last().0) + 1
    }
}

/// The leaves of one partition of one keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    leaves: Vec<Leaf>,
    hash: TreeHash,
    records: u64,
}

impl Tree {
    /// The tree of a partition without records. Panics as [`Token::partition`] does.
    pub fn empty(partition: PartitionIndex, partitions: u32) -> Self {
        Self::of(vec![Self::root(partition, partitions)])
    }

    /// The range of a whole partition, as a leaf without records.
    pub fn root(partition: PartitionIndex, partitions: u32) -> Leaf {
        let bits = u8::try_from(partitions.trailing_zeros()).expect("at most 16 bits");
        Leaf::empty(partition.first_token(partitions), bits)
    }

    /// A tree from its leaves, in the order of their tokens.
    pub fn from_leaves(
        partition: PartitionIndex,
        partitions: u32,
        leaves: Vec<Leaf>,
    ) -> Result<Self, NotTiled> {
        let whole = Self::root(partition, partitions);
        let mut expected = u128::from(whole.first.0);
        for leaf in &leaves {
            let at = u128::from(leaf.first.0);
            if at != expected {
                return Err(NotTiled { at, expected });
            }
            expected = leaf.end();
        }
        let at = whole.end();
        if at != expected {
            return Err(NotTiled { at, expected });
        }
        Ok(Self::of(leaves))
    }

    fn of(leaves: Vec<Leaf>) -> Self {
        let hash = leaves.iter().fold(TreeHash::ZERO, |sum, it| sum ^ it.hash);
        let records = leaves.iter().map(|it| u64::from(it.records)).sum();
        Self { leaves, hash, records }
    }

    /// The hash of all records: equal at two replicas that hold the same.
    pub fn hash(&self) -> TreeHash {
        self.hash
    }

    /// How many records there are, tombstones included.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The leaves, in the order of their tokens.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// The leaf that a token of this partition belongs to, and its place among the leaves, which stays
    /// until a leaf is cut.
    pub fn leaf(&self, token: Token) -> (usize, Leaf) {
        let at = self.position(token);
        (at, self.leaves[at])
    }

    /// Puts leaves in the place of the one whose range they tile.
    ///
    /// Panics if they do not tile it.
    pub fn replace(&mut self, leaves: &[Leaf]) {
        let [first, .., last] = leaves else {
            return leaves.iter().for_each(|it| self.replace_at(self.position(it.first), *it));
        };
        let at = self.position(first.first);
        let whole = self.leaves[at];
        assert!(
            whole.first == first.first && whole.end() == last.end(),
            "not the range of {whole:?}"
        );
        self.leaves.splice(at..=at, leaves.iter().copied());
        *self = Self::of(std::mem::take(&mut self.leaves));
    }

    /// Puts a leaf in the place of the one with its range, whose place is known.
    ///
    /// Panics if the leaf there has another range.
    pub fn replace_at(&mut self, at: usize, leaf: Leaf) {
        let before = std::mem::replace(&mut self.leaves[at], leaf);
        assert!(
            before.first == leaf.first && before.bits == leaf.bits,
            "not the range of {before:?}"
        );
        self.hash ^= before.hash ^ leaf.hash;
        self.records = self.records - u64::from(before.records) + u64::from(leaf.records);
    }

    fn position(&self, token: Token) -> usize {
        self.leaves.partition_point(|it| it.first <= token).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests;
