//! The Merkle trees of a node's data: in memory for whoever compares, and on disk in
//! [`Space::Trees`], where each changed leaf is put whole into the batch that changes its records
//! (rule M2). So they are exact after every crash, and opening reads leaves and no data.
//!
//! A row is `keyspace (4) | first token (8)` -> `hash format (1) | bits (1) | records (4) | hash (16) |
//! CRC32C (4) of key and value`. The left one of two new leaves takes the row of the one that was cut.

mod recount;
mod stage;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use antientropy::exchange::{Tile, TokenRange, tiling};
use antientropy::merkle::{HASH_FORMAT, Leaf, RecordHasher, Tree, TreeHash};
use bytes::{BufMut, Bytes, BytesMut};
use model::{KeyspaceId, PartitionIndex, StorageKey, Token};

use crate::replica::decode_stored;
use crate::storage::{Durability, RangeRequest, Space, Storage, StorageError, WriteBatch};

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

    /// Reads all leaves. Those of a tree that is damaged, or of another format, are made again from its
    /// data.
    pub(super) fn load(&self, storage: &impl Storage) -> Result<(), StorageError> {
        let Some(settings) = self.settings.get() else { return Ok(()) };
        let mut found: BTreeMap<(KeyspaceId, PartitionIndex), Vec<Option<Leaf>>> = BTreeMap::new();
        let mut request = RangeRequest::prefix(Space::Trees, Vec::new());
        request.rows_max = LOAD_ROWS;
        loop {
            let page = storage.range(&request)?;
            for (key, value) in &page.rows {
                if let Some((keyspace, first)) = parse_key(key) {
                    let at = (keyspace, first.partition(settings.partitions));
                    found.entry(at).or_default().push(parse_leaf(key, first, value));
                }
            }
            match page.following(&request) {
                Some(next) => request = next,
                None => break,
            }
        }
        let mut forest = Forest::new();
        for ((keyspace, partition), leaves) in found {
            let sound = leaves.into_iter().collect::<Option<Vec<_>>>();
            let tree =
                sound.and_then(|it| Tree::from_leaves(partition, settings.partitions, it).ok());
            let tree = match tree {
                Some(tree) => tree,
                None => settings.make_again(storage, keyspace, partition)?,
            };
            let first = partition.first_token(settings.partitions);
            *tree_of(&mut forest, *settings, keyspace, first) = tree;
        }
        *self.lock() = forest;
        Ok(())
    }

    /// The leaf of a key; `None` before anything is known of the cluster.
    fn leaf(&self, keyspace: KeyspaceId, token: Token) -> Option<Leaf> {
        let settings = self.settings.get()?;
        let partition = token.partition(settings.partitions);
        let forest = self.lock();
        let tree = forest.get(&keyspace).and_then(|it| it.get(partition.index()));
        Some(tree.map_or_else(|| Tree::root(partition, settings.partitions), |it| it.leaf(token)))
    }

    /// Puts leaves in the place of the one whose range they tile.
    fn replace(&self, keyspace: KeyspaceId, leaves: &[Leaf]) {
        let (Some(settings), [first, ..]) = (self.settings.get(), leaves) else { return };
        tree_of(&mut self.lock(), *settings, keyspace, first.first).replace(leaves);
    }

    /// Puts leaves, each in the place of the one with its range.
    fn set_each(&self, leaves: impl ExactSizeIterator<Item = (KeyspaceId, Leaf)>) {
        let Some(settings) = self.settings.get().filter(|_| leaves.len() > 0) else { return };
        let mut forest = self.lock();
        for (keyspace, leaf) in leaves {
            tree_of(&mut forest, *settings, keyspace, leaf.first).replace(&[leaf]);
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

    /// A tree from its data, and on disk with the next flush.
    fn make_again(
        &self,
        storage: &impl Storage,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
    ) -> Result<Tree, StorageError> {
        tracing::warn!(?keyspace, ?partition, "a damaged tree is made again from its data");
        let whole = Tree::root(partition, self.partitions);
        let leaves = whole.cut(&self.read(storage, keyspace, &whole, usize::MAX)?.records);
        let mut batch = WriteBatch::new();
        delete_leaves(&mut batch, keyspace, whole.first, whole.last());
        leaves.iter().for_each(|it| put_leaf(&mut batch, keyspace, it));
        storage.write(&batch, Durability::Buffered)?;
        Ok(Tree::from_leaves(partition, self.partitions, leaves)
            .expect("cut from the whole partition"))
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

/// Removes the leaves that begin within a range of tokens.
fn delete_leaves(batch: &mut WriteBatch, keyspace: KeyspaceId, first: Token, last: Token) {
    let (start, end) = StorageKey::token_range(keyspace, first, last);
    let end = end.unwrap_or_else(|| Bytes::from_static(&[0xff; KEY_BYTES + 1]));
    batch.delete_range(Space::Trees, &start, &end);
}

fn put_leaf(batch: &mut WriteBatch, keyspace: KeyspaceId, leaf: &Leaf) {
    let key = leaf_key(keyspace, leaf.first);
    let mut value = BytesMut::with_capacity(VALUE_BYTES);
    value.put_u8(HASH_FORMAT);
    value.put_u8(leaf.bits);
    value.put_u32(leaf.records);
    value.put_slice(&leaf.hash.to_bytes());
    value.put_u32(crc32c::crc32c_append(crc32c::crc32c(&key), &value));
    batch.put(Space::Trees, &key, [&value]);
}

fn leaf_key(keyspace: KeyspaceId, first: Token) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&keyspace.0.to_be_bytes());
    key[4..].copy_from_slice(&first.0.to_be_bytes());
    key
}

fn parse_key(key: &[u8]) -> Option<(KeyspaceId, Token)> {
    let (keyspace, first) = key.split_at_checked(4)?;
    let first = u64::from_be_bytes(first.try_into().ok()?);
    Some((KeyspaceId(u32::from_be_bytes(keyspace.try_into().ok()?)), Token(first)))
}

fn parse_leaf(key: &[u8], first: Token, value: &[u8]) -> Option<Leaf> {
    let (body, crc) = value.split_at_checked(VALUE_BYTES - 4)?;
    let crc = u32::from_be_bytes(crc.try_into().ok()?);
    let sound = crc == crc32c::crc32c_append(crc32c::crc32c(key), body);
    let [HASH_FORMAT, bits @ 0..=64, rest @ ..] = body else { return None };
    let (records, hash) = rest.split_at_checked(4).filter(|_| sound)?;
    let records = u32::from_be_bytes(records.try_into().ok()?);
    Some(Leaf { first, bits: *bits, records, hash: TreeHash::from_bytes(hash.try_into().ok()?) })
}

fn count(it: usize) -> u64 {
    u64::try_from(it).unwrap_or(u64::MAX)
}

const KEY_BYTES: usize = 4 + 8;
const VALUE_BYTES: usize = 1 + 1 + 4 + 16 + 4;
/// Leaves of one page at a start.
const LOAD_ROWS: usize = 4_096;
/// Data of one page while leaves are made again.
const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
