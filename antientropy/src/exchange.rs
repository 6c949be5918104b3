//! The comparison of two replicas: from trees to leaves, from leaves to records, and then only the
//! newer records move, both ways. Rules: docs/protocol.md, M4 and M5.
//!
//! One side asks, the other answers from what it holds at that moment and remembers nothing. First the
//! leaves: whatever their cuts, two trees have a common tiling, and where its hashes differ the finer
//! side's leaves are looked into. Then the records of such a range: each side throws them into as many
//! buckets, by a salted hash of their keys, and only the records of buckets that differ are named. What
//! is named by a hash of a few bits may be mistaken for another: a new salt makes up for it next time,
//! and until then the leaves still differ.

mod sketch;

use model::{Mutant, Token};

use crate::merkle::{Leaf, TreeHash};

pub use sketch::{
    Differences, Moves, NamedRecord, RecordDigest, Sketch, Width, compare, decide, name_all,
    name_of,
};

/// A range of tokens that share their leading bits: a leaf's, or that of several side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenRange {
    /// The first token.
    pub first: Token,
    /// How many leading bits all tokens share, 64 at most.
    pub bits: u8,
}

impl TokenRange {
    /// A range; `None` if there is no such range.
    pub fn new(first: Token, bits: u8) -> Option<Self> {
        let within = u64::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
        (bits <= 64 && first.0 & within == 0).then_some(Self { first, bits })
    }

    /// A leaf's range.
    pub fn of(leaf: &Leaf) -> Self {
        Self { first: leaf.first, bits: leaf.bits }
    }

    /// The last token, inclusive.
    pub fn last(self) -> Token {
        Leaf::empty(self.first, self.bits).last()
    }

    /// True if every token of the other range is in this one.
    pub fn contains(self, other: Self) -> bool {
        self.bits <= other.bits && self.first <= other.first && other.last() <= self.last()
    }

    /// The range of so many leading bits around this one.
    fn widened(self, bits: u8) -> Self {
        let outside = u64::MAX.checked_shl(64 - u32::from(bits)).unwrap_or(0);
        Self { first: Token(self.first.0 & outside), bits }
    }
}

/// A range and the hash of its records, short: it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The range.
    pub range: TokenRange,
    /// Half of the hash. XOR as the whole one.
    pub hash: u64,
}

/// How many bits a tiling goes down at most: 4,096 tiles.
const TILING_DEPTH: u8 = 12;
const TILE_BYTES: usize = 1 + 8;

/// The leaves of a range as tiles, those that lie deep taken together. Leaves that are no tiling of
/// the range make no tiling.
pub fn tiling(range: TokenRange, leaves: &[Leaf]) -> Vec<Tile> {
    let depth_max = range.bits.saturating_add(TILING_DEPTH).min(64);
    let mut tiles: Vec<Tile> = Vec::new();
    for leaf in leaves {
        let own = TokenRange::of(leaf);
        let own = if own.bits > depth_max { own.widened(depth_max) } else { own };
        match tiles.last_mut().filter(|it| it.range == own) {
            Some(tile) => tile.hash ^= leaf.hash.short(),
            None => tiles.push(Tile { range: own, hash: leaf.hash.short() }),
        }
    }
    tiles
}

/// As it is sent: bits and hash of each tile, whose place follows from those before it.
pub fn encode_tiling(tiles: &[Tile]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(tiles.len() * TILE_BYTES);
    for tile in tiles {
        bytes.push(tile.range.bits);
        bytes.extend_from_slice(&tile.hash.to_be_bytes());
    }
    bytes
}

/// What was sent; `None` if it does not tile the range.
pub fn decode_tiling(range: TokenRange, bytes: &[u8]) -> Option<Vec<Tile>> {
    let (tiles, []) = bytes.as_chunks::<TILE_BYTES>() else { return None };
    let (mut next, end) = (u128::from(range.first.0), u128::from(range.last().0) + 1);
    let mut tiling = Vec::with_capacity(tiles.len());
    for [bits, hash @ ..] in tiles {
        let own = TokenRange::new(Token(u64::try_from(next).ok()?), *bits)?;
        if !range.contains(own) {
            return None;
        }
        tiling.push(Tile { range: own, hash: u64::from_be_bytes(*hash) });
        next = u128::from(own.last().0) + 1;
    }
    (next == end).then_some(tiling)
}

/// The ranges in which two tilings of one range differ, those of the finer one.
pub fn differing(ours: &[Tile], theirs: &[Tile]) -> Vec<TokenRange> {
    let (mut ours, mut theirs) = (ours, theirs);
    if Mutant::CompareSkipsLastLeaf.is_on() && ours.len() > 1 {
        ours = &ours[..ours.len() - 1];
    }
    let mut found = Vec::new();
    while let (Some(our), Some(their)) = (ours.first(), theirs.first()) {
        // One of the two contains the other: the bits of both halve the same range.
        let wide = if our.range.bits <= their.range.bits { our.range } else { their.range };
        let (our_part, our_rest) = within(ours, wide);
        let (their_part, their_rest) = within(theirs, wide);
        if sum(our_part) != sum(their_part) {
            let finer = if our_part.len() >= their_part.len() { our_part } else { their_part };
            found.extend(finer.iter().map(|it| it.range));
        }
        (ours, theirs) = (our_rest, their_rest);
    }
    found
}

fn within(tiles: &[Tile], wide: TokenRange) -> (&[Tile], &[Tile]) {
    tiles.split_at(tiles.partition_point(|it| it.range.first <= wide.last()))
}

fn sum(tiles: &[Tile]) -> u64 {
    tiles.iter().fold(0, |sum, it| sum ^ it.hash)
}

impl TreeHash {
    /// Half of the hash: enough to tell two replicas' records apart, which nobody chooses against
    /// the key.
    pub fn short(self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.to_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests;
