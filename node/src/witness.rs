//! What a node has seen of every member's database directory, so that one that was lost, replaced or put
//! back is not taken for the one before (F12, F13).
//!
//! Pure. A directory has an id, of which the later one of a node is the higher, and a clock ceiling, which
//! rises for as long as the node writes: a directory that shows a lower one than others have seen is a copy
//! from before.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use model::{Hlc, NodeId, StorageId};
use xxhash_rust::xxh3::xxh3_64;

/// A node's directory, as it was seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The directory.
    pub storage: StorageId,
    /// The highest clock ceiling that was durable there.
    pub ceiling: Hlc,
}

/// What came of hearing about a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It was known.
    None,
    /// Its ceiling has risen.
    Ceiling,
    /// It is the node's first, as far as is known.
    Met,
    /// It has replaced an earlier one.
    Replaced,
}

/// What others have seen of this node's own directory, against what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnState {
    /// They have seen nothing later.
    Sound,
    /// They have seen this directory with a higher ceiling: it is a copy from before (F5).
    RolledBack,
    /// They know a later directory of this node.
    Superseded,
}

/// Judges this node's own directory by what another node has seen of it.
pub fn judge_own(own: Seen, seen: Seen) -> OwnState {
    match own.storage.cmp(&seen.storage) {
        std::cmp::Ordering::Less => OwnState::Superseded,
        std::cmp::Ordering::Equal if own.ceiling < seen.ceiling => OwnState::RolledBack,
        std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => OwnState::Sound,
    }
}

/// The directories seen, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness(BTreeMap<NodeId, Seen>);

impl Witness {
    /// The most nodes remembered: as many as a layout has, twice over.
    pub const NODES_MAX: usize = 2 * model::Layout::NODES_MAX;

    /// What was seen of a node.
    pub fn of(&self, node: NodeId) -> Option<Seen> {
        self.0.get(&node).copied()
    }

    /// All of it, in the order of nodes.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, Seen)> {
        self.0.iter().map(|(node, seen)| (*node, *seen))
    }

    /// Takes what was seen of a node, here or elsewhere. Nothing that is known is forgotten for it.
    pub fn learn(&mut self, node: NodeId, seen: Seen) -> News {
        let full = self.0.len() >= Self::NODES_MAX;
        match self.0.get_mut(&node) {
            None if full => News::None,
            None => {
                self.0.insert(node, seen);
                News::Met
            }
            Some(known) if known.storage < seen.storage => {
                *known = seen;
                News::Replaced
            }
            Some(known) if known.storage == seen.storage && known.ceiling < seen.ceiling => {
                known.ceiling = seen.ceiling;
                News::Ceiling
            }
            Some(_) => News::None,
        }
    }

    /// Forgets nodes that are no members, once they take up half of the room. True if there were any.
    pub fn make_room(&mut self, members: &[NodeId]) -> bool {
        let before = self.0.len();
        if before > Self::NODES_MAX / 2 {
            let members: BTreeSet<_> = members.iter().collect();
            self.0.retain(|node, _| members.contains(node));
        }
        self.0.len() < before
    }

    /// A hash over the directories of these nodes that have replaced others; 0 if there are none. Two nodes
    /// with the same know of the same replacements, whomever else they have met.
    pub fn storage_ids_hash(&self, nodes: impl IntoIterator<Item = NodeId>) -> u64 {
        let seen = nodes.into_iter().filter_map(|it| Some((it, self.of(it)?)));
        let replaced = seen.filter(|it| it.1.storage.generation() > 0);
        let mut bytes = BytesMut::new();
        for (node, seen) in replaced {
            bytes.put_u128(node.0);
            bytes.put_u128(seen.storage.0);
        }
        if bytes.is_empty() { 0 } else { xxh3_64(&bytes).max(1) }
    }

    /// As it is kept: `node (16) | storage id (16) | ceiling (8)` for each, and a CRC32C.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.0.len() * ENTRY_BYTES + 4);
        for (node, seen) in &self.0 {
            bytes.put_u128(node.0);
            bytes.put_u128(seen.storage.0);
            bytes.put_u64(seen.ceiling.0);
        }
        bytes.put_u32(crc32c::crc32c(&bytes));
        bytes.freeze()
    }

    /// What was kept; `None` if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let (entries, []) = body.as_chunks::<ENTRY_BYTES>() else { return None };
        if u32::from_be_bytes(*crc) != crc32c::crc32c(body) || entries.len() > Self::NODES_MAX {
            return None;
        }
        let entry = |it: &[u8; ENTRY_BYTES]| {
            let node = NodeId::from_slice(it.get(..16)?)?;
            let storage = StorageId::from_slice(it.get(16..32)?)?;
            let ceiling = Hlc(u64::from_be_bytes(it.get(32..)?.try_into().ok()?));
            Some((node, Seen { storage, ceiling }))
        };
        entries.iter().map(entry).collect::<Option<_>>().map(Self)
    }
}

const ENTRY_BYTES: usize = 16 + 16 + 8;

/// Who has compared this node's directory with what they have seen, since its start (F13).
#[derive(Clone, Debug, Default)]
pub struct Inquiry {
    /// Since when.
    agreed: BTreeMap<NodeId, u64>,
    away: BTreeSet<NodeId>,
    /// They are reached by another process of this node.
    doubting: BTreeSet<NodeId>,
}

impl Inquiry {
    /// A node has said what it has seen, and let this one in.
    pub fn agreed(&mut self, node: NodeId, now_us: u64) {
        self.doubting.remove(&node);
        if self.agreed.len() < Witness::NODES_MAX {
            self.agreed.entry(node).or_insert(now_us);
        }
    }

    /// A node cannot be reached.
    pub fn away(&mut self, node: NodeId) {
        self.doubting.remove(&node);
        if self.away.len() < Witness::NODES_MAX {
            self.away.insert(node);
        }
    }

    /// A node has a link to another process of this one, and refuses this one for it (F14). True if that is
    /// news.
    pub fn doubted(&mut self, node: NodeId) -> bool {
        self.doubting.len() < Witness::NODES_MAX && self.doubting.insert(node)
    }

    /// True once one of the other members at least, and all that can be reached, have said what they have
    /// seen, and none doubts that this is the only process of its node. One that neither answers nor refuses
    /// is waited for `patience_us` long from then on.
    pub fn is_over(&self, others: &[NodeId], now_us: u64, patience_us: u64) -> bool {
        if others.is_empty() {
            return true;
        }
        if others.iter().any(|it| self.doubting.contains(it)) {
            return false;
        }
        let first = others.iter().filter_map(|it| self.agreed.get(it)).min();
        let known = |it: &NodeId| self.agreed.contains_key(it) || self.away.contains(it);
        first.is_some_and(|it| now_us >= it + patience_us || others.iter().all(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(generation: u64, ceiling: u64) -> Seen {
        Seen { storage: StorageId::mint(generation, 7), ceiling: Hlc(ceiling) }
    }

    #[test]
    fn a_start_waits_for_whoever_doubts_it() {
        let (mut inquiry, others) = (Inquiry::default(), [NodeId(1), NodeId(2)]);
        inquiry.agreed(NodeId(1), 0);
        inquiry.doubted(NodeId(2));
        assert!(!inquiry.is_over(&others, 9_000_000, 1), "another process is up there");
        inquiry.away(NodeId(2));
        assert!(inquiry.is_over(&others, 9_000_000, 1));
        inquiry.doubted(NodeId(2));
        inquiry.agreed(NodeId(2), 9_000_000);
        assert!(inquiry.is_over(&others, 9_000_000, 1));
        inquiry.doubted(NodeId(9));
        assert!(inquiry.is_over(&others, 9_000_000, 1), "a stranger's word");
    }

    #[test]
    fn the_later_directory_stays_whatever_is_heard_after_it() {
        let mut witness = Witness::default();
        let node = NodeId(1);
        assert_eq!(witness.learn(node, seen(0, 5)), News::Met);
        let hash_of = |it: &Witness| it.storage_ids_hash([NodeId(1), NodeId(2)]);
        assert_eq!(hash_of(&witness), 0, "nothing was replaced");
        assert_eq!(witness.learn(node, seen(0, 9)), News::Ceiling);
        assert_eq!(witness.learn(node, seen(0, 5)), News::None);
        assert_eq!(witness.learn(node, seen(4, 1)), News::Replaced);
        assert_eq!(witness.learn(node, seen(0, 99)), News::None, "it is gone");
        assert_eq!(witness.of(node), Some(seen(4, 1)));
        let hash = hash_of(&witness);
        assert_ne!(hash, 0);
        witness.learn(NodeId(2), seen(0, 3));
        witness.learn(NodeId(3), seen(9, 3));
        assert_eq!(hash_of(&witness), hash, "of replacements alone, and of those nodes");
    }

    #[test]
    fn strangers_take_no_room_from_members() {
        let mut witness = Witness::default();
        let nodes = || (0..).map(NodeId).take(Witness::NODES_MAX);
        for node in nodes() {
            witness.learn(node, seen(0, 1));
        }
        let late = NodeId(u128::MAX);
        assert_eq!(witness.learn(late, seen(0, 1)), News::None, "no room");
        let members = [NodeId(3), late];
        assert!(witness.make_room(&members));
        assert_eq!(witness.iter().map(|it| it.0).collect::<Vec<_>>(), [NodeId(3)]);
        assert_eq!(witness.learn(late, seen(0, 1)), News::Met);
        assert!(!witness.make_room(&members), "there is room");
    }

    #[test]
    fn what_is_kept_is_read_again_and_damage_is_found() {
        let mut witness = Witness::default();
        witness.learn(NodeId(1), seen(0, 5));
        witness.learn(NodeId(2), seen(3, 6));
        let kept = witness.encode();
        assert_eq!(Witness::decode(&kept), Some(witness));
        for bit in 0..kept.len() * 8 {
            let mut damaged = kept.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Witness::decode(&damaged), None, "bit {bit}");
        }
        assert_eq!(Witness::decode(&kept[1..]), None);
    }

    #[test]
    fn a_copy_from_before_is_told_from_a_restart() {
        assert_eq!(judge_own(seen(0, 5), seen(0, 5)), OwnState::Sound);
        assert_eq!(judge_own(seen(0, 6), seen(0, 5)), OwnState::Sound);
        assert_eq!(judge_own(seen(0, 4), seen(0, 5)), OwnState::RolledBack);
        assert_eq!(judge_own(seen(0, 9), seen(1, 0)), OwnState::Superseded);
        assert_eq!(judge_own(seen(2, 0), seen(1, 9)), OwnState::Sound);
    }

    #[test]
    fn an_inquiry_needs_one_answer_and_waits_for_the_rest() {
        let others = [NodeId(1), NodeId(2)];
        let mut inquiry = Inquiry::default();
        assert!(inquiry.is_over(&[], 0, 10), "a node alone asks nobody");
        inquiry.away(NodeId(2));
        assert!(!inquiry.is_over(&others, 1_000, 10), "nobody has answered");
        inquiry.agreed(NodeId(1), 1_000);
        assert!(inquiry.is_over(&others, 1_000, 10));
        let mut inquiry = Inquiry::default();
        inquiry.agreed(NodeId(1), 1_000);
        assert!(!inquiry.is_over(&others, 1_009, 10), "the other may answer yet");
        assert!(inquiry.is_over(&others, 1_010, 10));
        let mut inquiry = Inquiry::default();
        inquiry.agreed(NodeId(3), 1);
        inquiry.agreed(NodeId(1), 1_000);
        assert!(!inquiry.is_over(&others, 1_009, 10), "a stranger's word begins nothing");
    }
}
