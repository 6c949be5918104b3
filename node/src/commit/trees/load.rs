//! Trees as they were when the node stopped, whatever stopped it.

use std::collections::{BTreeMap, BTreeSet};

use antientropy::merkle::{Leaf, Tree};
use model::{KeyspaceId, PartitionIndex};

use super::journal::Journal;
use super::rows::{self, Change, JournalRow, Row};
use super::{Forest, LeafId, READ_BYTES, TreeSettings, Trees, partitions, tree_of};
use crate::storage::{Durability, RangeRequest, Space, Storage, StorageError, WriteBatch};

/// The rows of a database.
#[derive(Default)]
struct Found {
    /// `None` for those that are damaged.
    leaves: BTreeMap<LeafId, Option<Leaf>>,
    /// What the journal has said of a leaf.
    journaled: BTreeSet<LeafId>,
    /// The number of the journal's first row, and the one behind its last.
    numbers: Option<(u64, u64)>,
    /// That of the first row that is needed, as the last one says.
    needed: u64,
    /// Rows of the journal are damaged or missing: no leaf can be trusted.
    broken: bool,
}

impl Trees {
    /// Reads all leaves. Those of a tree that is damaged, or of another format, are made again from its
    /// data. What the journal says is put under the leaves' own keys, and a new journal begins.
    pub(super) fn load(&self, storage: &impl Storage) -> Result<Journal, StorageError> {
        let Some(settings) = self.settings.get() else { return Ok(Journal::default()) };
        let mut found = Found::read(storage)?;
        let mut fold = Fold::new(storage);
        if found.is_empty() && !keyspaces_with_data(storage)?.is_empty() {
            found.miss_all(&mut fold);
        }
        let mut by_partition = BTreeMap::<(KeyspaceId, PartitionIndex), Vec<Option<Leaf>>>::new();
        for ((keyspace, first), leaf) in &found.leaves {
            let at = (*keyspace, first.partition(settings.partitions));
            by_partition.entry(at).or_default().push(*leaf);
        }
        if found.is_broken() {
            tracing::error!("Merkle trees or their journal are lost: all are made again");
            let mut keyspaces = keyspaces_with_data(storage)?;
            keyspaces.extend(by_partition.keys().map(|it| it.0));
            for keyspace in keyspaces {
                let none = |it| ((keyspace, it), vec![None]);
                by_partition.extend(partitions(*settings).map(none));
            }
        }
        let mut forest = Forest::new();
        for ((keyspace, partition), leaves) in by_partition {
            let sound = leaves.into_iter().collect::<Option<Vec<_>>>();
            let tree =
                sound.and_then(|it| Tree::from_leaves(partition, settings.partitions, it).ok());
            let tree = match tree {
                Some(tree) => {
                    let journaled = |it: &&Leaf| found.journaled.contains(&(keyspace, it.first));
                    tree.leaves()
                        .iter()
                        .filter(journaled)
                        .try_for_each(|it| fold.put(keyspace, it))?;
                    tree
                }
                None => {
                    if !found.is_broken() {
                        tracing::warn!(?keyspace, ?partition, "a damaged tree is made again");
                    }
                    let tree = settings.make_again(storage, keyspace, partition)?;
                    fold.replace(settings, keyspace, partition, &tree)?;
                    tree
                }
            };
            let first = partition.first_token(settings.partitions);
            *tree_of(&mut forest, *settings, keyspace, first) = tree;
        }
        *self.lock() = forest;
        fold.end(&found)
    }
}

impl Found {
    fn read(storage: &impl Storage) -> Result<Self, StorageError> {
        let mut found = Self::default();
        let mut request = RangeRequest::prefix(Space::Trees, Vec::new());
        request.bytes_max = READ_BYTES;
        loop {
            let page = storage.range(&request)?;
            for (key, value) in &page.rows {
                match rows::parse(key, value) {
                    Some(Row::Leaf(id, leaf)) => {
                        found.leaves.insert(id, leaf);
                    }
                    Some(Row::Journal(number, row)) => found.follow(number, row),
                    None => {}
                }
            }
            match page.following(&request) {
                Some(next) => request = next,
                None => return Ok(found),
            }
        }
    }

    fn follow(&mut self, number: u64, row: Option<JournalRow>) {
        let (first, expected) = self.numbers.unwrap_or((number, number));
        self.broken |= number != expected;
        self.numbers = Some((first, number.saturating_add(1)));
        let Some(row) = row else {
            self.broken = true;
            return;
        };
        self.needed = row.first;
        for change in row.changes {
            match change {
                Change::Leaf(keyspace, leaf) => {
                    self.leaves.insert((keyspace, leaf.first), Some(leaf));
                    self.journaled.insert((keyspace, leaf.first));
                }
                Change::Dropped(keyspace) => self.leaves.retain(|id, _| id.0 != keyspace),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.numbers.is_none()
    }

    /// Nothing was found beside data. Says so by a journal whose first row is missing, until all trees are on
    /// disk: only some of them would pass for all.
    fn miss_all(&mut self, fold: &mut Fold<'_, impl Storage>) {
        let (needed, number) = (0, 1);
        rows::put_journal(&mut fold.batch, number, needed, &[]);
        (self.needed, self.numbers) = (needed, Some((number, number + 1)));
    }

    fn is_broken(&self) -> bool {
        self.broken || self.numbers.is_some_and(|it| it.0 > self.needed)
    }
}

fn keyspaces_with_data(storage: &impl Storage) -> Result<BTreeSet<KeyspaceId>, StorageError> {
    let mut keyspaces = BTreeSet::new();
    let mut request = RangeRequest::prefix(Space::Data, Vec::new());
    request.rows_max = 1;
    while let Some((row, _)) = storage.range(&request)?.rows.pop() {
        let Some((id, _)) = row.split_first_chunk() else { break };
        let id = u32::from_be_bytes(*id);
        keyspaces.insert(KeyspaceId(id));
        let Some(next) = id.checked_add(1) else { break };
        request.start = next.to_be_bytes().to_vec().into();
    }
    Ok(keyspaces)
}

impl TreeSettings {
    /// A tree from its data.
    fn make_again(
        &self,
        storage: &impl Storage,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
    ) -> Result<Tree, StorageError> {
        let whole = Tree::root(partition, self.partitions);
        let leaves = whole.cut(&self.read(storage, keyspace, &whole, usize::MAX)?.records);
        Ok(Tree::from_leaves(partition, self.partitions, leaves)
            .expect("cut from the whole partition"))
    }
}

/// Puts leaves under their own keys, as many at a time as a batch should have. What is written may be lost
/// with the power: the journal is as well, or is still there.
struct Fold<'a, S> {
    storage: &'a S,
    batch: WriteBatch,
    rows: usize,
    /// The disk is full: the journal stays, and the next start does it.
    full: bool,
}

impl<'a, S: Storage> Fold<'a, S> {
    fn new(storage: &'a S) -> Self {
        Self { storage, batch: WriteBatch::new(), rows: 0, full: false }
    }

    fn put(&mut self, keyspace: KeyspaceId, leaf: &Leaf) -> Result<(), StorageError> {
        rows::put_leaf(&mut self.batch, keyspace, leaf);
        self.rows += 1;
        if self.rows.is_multiple_of(BATCH_ROWS) { self.write() } else { Ok(()) }
    }

    fn replace(
        &mut self,
        settings: &TreeSettings,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
        tree: &Tree,
    ) -> Result<(), StorageError> {
        let whole = Tree::root(partition, settings.partitions);
        rows::delete_leaves(&mut self.batch, keyspace, whole.first, whole.last());
        tree.leaves().iter().try_for_each(|it| self.put(keyspace, it))
    }

    fn end(mut self, found: &Found) -> Result<Journal, StorageError> {
        let Some((first, end)) = found.numbers else {
            self.write()?;
            return Ok(Journal::default());
        };
        rows::delete_journal(&mut self.batch, first, end);
        self.write()?;
        // Rows that are missing stay so for the next start.
        let needed = first.min(found.needed);
        Ok(if self.full { Journal::with_rows(needed, end) } else { Journal::default() })
    }

    fn write(&mut self) -> Result<(), StorageError> {
        let batch = std::mem::take(&mut self.batch);
        if self.full || batch.is_empty() {
            return Ok(());
        }
        match self.storage.write(&batch, Durability::Buffered) {
            Err(StorageError::Full { .. }) => self.full = true,
            written => written?,
        }
        Ok(())
    }
}

/// Leaves of one batch.
const BATCH_ROWS: usize = if cfg!(test) { 4 } else { 4_096 };
