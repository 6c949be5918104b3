//! The Merkle trees of a node's data: in memory for whoever compares, and on disk in
//! [`Space::Trees`](crate::storage::Space::Trees), where the changed leaves of a group are put whole, as one
//! row of a journal, into the batch that changes their records (rule M2). So they are exact after every
//! crash, and opening reads leaves and no data.

mod journal;
mod load;
mod recount;
mod rows;
mod stage;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use antientropy::exchange::{Tile, TokenRange, tiling};
use antientropy::merkle::{Leaf, RecordHasher, Tree, TreeHash};
use model::{KeyspaceId, PartitionIndex, StorageKey, Token};

use crate::replica::decode_stored;
use crate::storage::{RangeRequest, Space, Storage, StorageError};

pub(super) use stage::{Cut, TreeStage};

/// What the trees of a cluster depend on. Never changes.
#[derive(Clone, Copy, Debug)]
pub struct TreeSettings {
    /// The key of the hashes, made with the cluster.
    pub cluster_key: [u8; 16],
    /// Into how many partitions the ring is cut.
    pub partitions: u32,
}

/// The trees of all keyspaces. The commit path alone changes them.
#[derive(Default)]
pub struct Trees {
    settings: OnceLock<TreeSettings>,
    forest: Mutex<Forest>,
}

/// Trees by keyspace and partition; a keyspace has all of them from its first record on.
type Forest = BTreeMap<KeyspaceId, Vec<Tree>>;

/// A keyspace and the first token of a leaf.
type LeafId = (KeyspaceId, Token);

/// How large the trees are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStatistics {
    /// Records in all trees, tombstones included.
    pub records: u64,
    /// Leaves of all trees.
    pub leaves: u64,
    /// Bytes of memory that the leaves take.
    pub memory_bytes: u64,
}

/// A tree that is not what the data say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongTree {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The partition.
    pub partition: PartitionIndex,
    /// The tree's hash, and how many records it counts.
    pub found: (TreeHash, u64),
    /// Those of the data.
    pub expected: (TreeHash, u64),
    /// Rows of the partition that are damaged: what they say is not in `expected`.
    pub damaged: usize,
}

impl Trees {
    /// Tells what the trees depend on, once it is known: before the first record. Later calls change
    /// nothing.
    pub fn configure(&self, settings: TreeSettings) {
        self.settings.get_or_init(|| settings);
    }

    /// Hash and number of the records of a partition; `None` while nothing can have been written.
    pub fn partition(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
    ) -> Option<(TreeHash, u64)> {
        self.settings.get()?;
        let forest = self.lock();
        let tree = forest.get(&keyspace).and_then(|it| it.get(partition.index()));
        Some(tree.map_or((TreeHash::ZERO, 0), |it| (it.hash(), it.records())))
    }

    /// The hashes of some partitions' records.
    pub fn roots(&self, keyspace: KeyspaceId, partitions: &[PartitionIndex]) -> Vec<TreeHash> {
        let forest = self.lock();
        let trees = forest.get(&keyspace);
        let root = |it: &PartitionIndex| trees.and_then(|trees| trees.get(it.index()));
        partitions.iter().map(|it| root(it).map_or(TreeHash::ZERO, Tree::hash)).collect()
    }

    /// The leaves of a range; `None` if one of them covers more than the range, or the range is not
    /// within one partition.
    pub fn tiling(&self, keyspace: KeyspaceId, range: TokenRange) -> Option<Vec<Tile>> {
        let settings = self.settings.get()?;
        let partition = range.first.partition(settings.partitions);
        let forest = self.lock();
        let tree = forest.get(&keyspace).and_then(|it| it.get(partition.index()));
        let empty = Tree::root(partition, settings.partitions);
        let leaves = tree.map_or(std::slice::from_ref(&empty), Tree::leaves);
        let first = leaves.partition_point(|it| it.last() < range.first);
        let end = leaves.partition_point(|it| it.first <= range.last());
        let leaves = &leaves[first..end.max(first)];
        let within = TokenRange::of(&empty).contains(range)
            && leaves.iter().all(|it| range.contains(TokenRange::of(it)));
        within.then(|| tiling(range, leaves))
    }

    /// The partition of a token; `None` before anything is known of the cluster.
    pub fn partition_of(&self, token: Token) -> Option<PartitionIndex> {
        self.settings.get().map(|it| token.partition(it.partitions))
    }

    /// What hashes records; `None` before anything is known of the cluster.
    pub fn hasher(&self) -> Option<RecordHasher> {
        self.settings.get().map(|it| it.hasher())
    }

    /// How large the trees are.
    pub fn statistics(&self) -> TreeStatistics {
        let forest = self.lock();
        let trees = || forest.values().flatten();
        let leaves: u64 = trees().map(|it| count(it.leaves().len())).sum();
        TreeStatistics {
            records: trees().map(Tree::records).sum(),
            leaves,
            memory_bytes: leaves * count(size_of::<Leaf>())
                + count(trees().count() * size_of::<Tree>()),
        }
    }

    /// Compares the trees of a keyspace with its data, all of them read. Only while nothing is written,
    /// or some will differ.
    pub fn verify(
        &self,
        storage: &impl Storage,
        keyspace: KeyspaceId,
    ) -> Result<Vec<WrongTree>, StorageError> {
        let Some(settings) = self.settings.get() else { return Ok(Vec::new()) };
        let mut wrong = Vec::new();
        for partition in partitions(*settings) {
            let whole = Tree::root(partition, settings.partitions);
            let read = settings.read(storage, keyspace, &whole, usize::MAX)?;
            let hash = read.records.iter().fold(TreeHash::ZERO, |sum, it| sum ^ it.1);
            let expected = (hash, count(read.records.len()));
            let found = self.partition(keyspace, partition).unwrap_or_default();
            if found != expected {
                let damaged = read.damaged;
                wrong.push(WrongTree { keyspace, partition, found, expected, damaged });
            }
        }
        Ok(wrong)
    }

    /// The leaf of a key, and its place in its tree; `None` before anything is known of the cluster.
    fn leaf(&self, keyspace: KeyspaceId, token: Token) -> Option<(usize, Leaf)> {
        let settings = self.settings.get()?;
        let partition = token.partition(settings.partitions);
        let forest = self.lock();
        let tree = forest.get(&keyspace).and_then(|it| it.get(partition.index()));
        let empty = || (0, Tree::root(partition, settings.partitions));
        Some(tree.map_or_else(empty, |it| it.leaf(token)))
    }

    /// Puts leaves in the place of the one whose range they tile.
    fn replace(&self, keyspace: KeyspaceId, leaves: &[Leaf]) {
        let (Some(settings), [first, ..]) = (self.settings.get(), leaves) else { return };
        tree_of(&mut self.lock(), *settings, keyspace, first.first).replace(leaves);
    }

    /// Puts leaves, each in the place of the one with its range.
    fn set_each(&self, leaves: impl ExactSizeIterator<Item = (KeyspaceId, usize, Leaf)>) {
        let Some(settings) = self.settings.get().filter(|_| leaves.len() > 0) else { return };
        let mut forest = self.lock();
        for (keyspace, at, leaf) in leaves {
            tree_of(&mut forest, *settings, keyspace, leaf.first).replace_at(at, leaf);
        }
    }

    fn remove(&self, keyspace: KeyspaceId) {
        self.lock().remove(&keyspace);
    }

    /// Whoever panicked with the lock was between two leaves, which are whole.
    fn lock(&self) -> MutexGuard<'_, Forest> {
        self.forest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records of a range of tokens, as hashes.
#[derive(Default)]
struct Read {
    /// In the order of their tokens.
    records: Vec<(Token, TreeHash)>,
    /// Rows that are damaged, whose hash nobody knows.
    damaged: usize,
    /// False if there are more bytes than were to be read.
    complete: bool,
}

impl TreeSettings {
    fn hasher(&self) -> RecordHasher {
        RecordHasher::new(self.cluster_key)
    }

    /// Reads the records of a leaf's range, as many as have about so many bytes.
    fn read(
        &self,
        storage: &impl Storage,
        keyspace: KeyspaceId,
        leaf: &Leaf,
        bytes_max: usize,
    ) -> Result<Read, StorageError> {
        let mut request = leaf_range(keyspace, leaf, READ_BYTES.min(bytes_max));
        let (hasher, mut read, mut bytes) = (self.hasher(), Read::default(), 0);
        loop {
            let page = storage.range(&request)?;
            for (row, value) in &page.rows {
                bytes += row.len() + value.len();
                let key = StorageKey::parse(row.clone());
                match key
                    .and_then(|key| Some((decode_stored(&key, value.clone()).ok()?.record, key)))
                {
                    Some((record, key)) => {
                        read.records.push((key.token(), hasher.hash(&key, &record)));
                    }
                    None => read.damaged += 1,
                }
            }
            match page.following(&request) {
                Some(_) if bytes >= bytes_max => return Ok(read),
                Some(next) => request = next,
                None => return Ok(Read { complete: true, ..read }),
            }
        }
    }
}

fn partitions(settings: TreeSettings) -> impl Iterator<Item = PartitionIndex> {
    let last = u16::try_from(settings.partitions - 1).expect("65,536 partitions at most");
    (0..=last).map(PartitionIndex)
}

fn tree_of(
    forest: &mut Forest,
    settings: TreeSettings,
    keyspace: KeyspaceId,
    token: Token,
) -> &mut Tree {
    let trees = forest.entry(keyspace).or_insert_with(|| {
        partitions(settings).map(|it| Tree::empty(it, settings.partitions)).collect()
    });
    &mut trees[token.partition(settings.partitions).index()]
}

/// The rows of a leaf's range, by pages of so many bytes.
fn leaf_range(keyspace: KeyspaceId, leaf: &Leaf, bytes_max: usize) -> RangeRequest {
    let (start, end) = StorageKey::token_range(keyspace, leaf.first, leaf.last());
    RangeRequest { space: Space::Data, start, end, reverse: false, rows_max: usize::MAX, bytes_max }
}

fn count(it: usize) -> u64 {
    u64::try_from(it).unwrap_or(u64::MAX)
}

/// Data of one page while leaves are made again.
const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
