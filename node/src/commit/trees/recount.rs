//! Leaves against the data that they stand for (M6): read page by page beside the commit path, and made
//! again by it.

use antientropy::merkle::{Leaf, LeafChange, TreeHash};
use model::{KeyspaceId, PartitionIndex, Record, StorageKey, Token};

use super::rows::Change;
use super::{READ_BYTES, TreeStage, Trees, leaf_range};
use crate::commit::dues;
use crate::replica::decode_stored;
use crate::storage::{Storage, StorageError, WriteBatch};

/// A leaf's data.
#[derive(Default)]
pub(crate) struct LeafData {
    /// Sound records.
    pub(crate) records: u64,
    /// The XOR of their hashes.
    pub(crate) hash: TreeHash,
    /// Bytes read.
    pub(crate) bytes: usize,
    /// Keys of records that are damaged: nobody knows their hashes.
    pub(crate) damaged: Vec<StorageKey>,
    /// Rows under keys that are none.
    pub(crate) unreadable: u64,
    /// Records that may be purged some day, without their values.
    dues: Vec<(StorageKey, Record)>,
}

impl LeafData {
    /// True if a leaf is what its data say.
    pub(crate) fn is(&self, leaf: &Leaf) -> bool {
        (self.hash, self.records) == (leaf.hash, u64::from(leaf.records))
    }
}

/// A leaf made again from its data.
pub(in crate::commit) struct Recount {
    /// As it was.
    pub(in crate::commit) before: Leaf,
    /// As its data say.
    pub(in crate::commit) after: Leaf,
    data: LeafData,
    keyspace: KeyspaceId,
    partition: PartitionIndex,
}

impl Recount {
    /// A record goes from the leaf.
    pub(in crate::commit) fn remove(&mut self, hash: TreeHash) {
        self.after = self.after.after(LeafChange { hash, records: -1 });
    }

    /// A record comes into the leaf.
    pub(in crate::commit) fn add(&mut self, hash: TreeHash) {
        self.after = self.after.after(LeafChange { hash, records: 1 });
    }
}

impl Trees {
    /// The leaf behind a token of a keyspace, or the first one: of all keyspaces, in their order, those
    /// without records among them.
    pub(crate) fn leaf_behind(
        &self,
        behind: Option<(KeyspaceId, Token)>,
    ) -> Option<(KeyspaceId, Leaf)> {
        let partitions = self.settings.get()?.partitions;
        let (first, token) = match behind {
            None => (KeyspaceId(0), Some(Token(0))),
            Some((keyspace, token)) => (keyspace, token.0.checked_add(1).map(Token)),
        };
        let forest = self.lock();
        let (keyspace, trees, from) = forest.range(first..).find_map(|(keyspace, trees)| {
            let from = if *keyspace == first { token } else { Some(Token(0)) };
            Some((*keyspace, trees, from?))
        })?;
        let leaves = trees[from.partition(partitions).index()].leaves();
        let leaf = leaves.get(leaves.partition_point(|it| it.last() < from));
        Some((keyspace, *leaf.expect("the leaves of a tree tile its partition")))
    }

    /// Reads the data of a leaf's range. `None` before anything is known of the cluster.
    pub(crate) fn leaf_data(
        &self,
        storage: &impl Storage,
        keyspace: KeyspaceId,
        leaf: &Leaf,
    ) -> Result<Option<LeafData>, StorageError> {
        let Some(hasher) = self.hasher() else { return Ok(None) };
        let mut request = leaf_range(keyspace, leaf, READ_BYTES);
        let mut data = LeafData::default();
        loop {
            let page = storage.range(&request)?;
            let next = page.following(&request);
            for (row, value) in page.rows {
                data.bytes += row.len() + value.len();
                let Some(key) = StorageKey::parse(row) else {
                    data.unreadable += 1;
                    continue;
                };
                let Ok(stored) = decode_stored(&key, value) else {
                    data.damaged.push(key);
                    continue;
                };
                data.records += 1;
                data.hash ^= hasher.hash(&key, &stored.record);
                if stored.record.due().is_some() {
                    let header = bytes::Bytes::copy_from_slice(stored.record.header());
                    let header = Record::parse(header).expect("the header of a record is one");
                    data.dues.push((key, header));
                }
            }
            match next {
                Some(next) => request = next,
                None => return Ok(Some(data)),
            }
        }
    }
}

impl TreeStage {
    /// Counts the leaf of a token again, between two groups. `None` before anything is known of the
    /// cluster.
    pub(in crate::commit) fn recount(
        &self,
        storage: &impl Storage,
        keyspace: KeyspaceId,
        token: Token,
    ) -> Result<Option<Recount>, StorageError> {
        let (Some((_, before)), Some(partition)) =
            (self.trees.leaf(keyspace, token), self.trees.partition_of(token))
        else {
            return Ok(None);
        };
        let Some(data) = self.trees.leaf_data(storage, keyspace, &before)? else { return Ok(None) };
        let records = u32::try_from(data.records).unwrap_or(u32::MAX);
        let after = Leaf { records, hash: data.hash, ..before };
        Ok(Some(Recount { before, after, data, keyspace, partition }))
    }

    /// Puts the leaf into a batch, and what the index of what may be purged has to say of its records.
    pub(in crate::commit) fn write_recount(&mut self, recount: &Recount, batch: &mut WriteBatch) {
        let change = Change::Leaf(recount.keyspace, recount.after);
        self.journal.append(batch, &self.trees, &[change]);
        for (key, record) in &recount.data.dues {
            dues::stage(batch, key, recount.partition, None, Some(record));
        }
    }

    /// What was recounted is written.
    pub(in crate::commit) fn keep_recount(&mut self, recount: &Recount) {
        self.journal.keep();
        self.trees.replace(recount.keyspace, &[recount.after]);
        if recount.after.is_overfull() {
            self.overfull.insert((recount.keyspace, recount.after.first));
        }
    }

    /// The hash of a record; zero before anything is known of the cluster.
    pub(in crate::commit) fn hash(&self, key: &StorageKey, record: &Record) -> TreeHash {
        self.trees.hasher().map_or(TreeHash::ZERO, |it| it.hash(key, record))
    }
}
