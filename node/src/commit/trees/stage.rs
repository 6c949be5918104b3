//! What one group changes of the trees, and the leaves that have grown too large.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use antientropy::merkle::{Leaf, LeafChange, TreeHash};
use model::{KeyspaceId, Mutant, Record, RecordKind, StorageKey, Token};

use super::journal::Journal;
use super::rows::{self, Change};
use super::{LeafId, Trees};
use crate::storage::{Durability, Storage, StorageError, WriteBatch};

/// Most of the data that is read to cut one leaf, while nothing else is written: a leaf of larger
/// records stays whole, and costs an exchange more.
const CUT_BYTES_MAX: usize = 16 << 20;

/// The trees' part of a commit path.
pub(in crate::commit) struct TreeStage {
    pub(super) trees: Arc<Trees>,
    pub(super) journal: Journal,
    /// The leaves that this group changes, as they are once it is written, and their places.
    changed: BTreeMap<LeafId, (usize, Leaf)>,
    dropped: Vec<KeyspaceId>,
    /// Leaves to cut.
    pub(super) overfull: BTreeSet<LeafId>,
    /// Leaves that could not be cut when they had so many records.
    uncut: BTreeMap<LeafId, u32>,
    /// Of a deliberate bug: leaves that are written with the next group.
    late: Vec<Change>,
}

impl TreeStage {
    /// Takes over the changing of trees, read from `storage`.
    pub(in crate::commit) fn open(
        trees: Arc<Trees>,
        storage: &impl Storage,
    ) -> Result<Self, StorageError> {
        let journal = trees.load(storage)?;
        Ok(Self {
            trees,
            journal,
            changed: BTreeMap::new(),
            dropped: Vec::new(),
            overfull: BTreeSet::new(),
            uncut: BTreeMap::new(),
            late: Vec::new(),
        })
    }

    /// Notes that a record takes the place of another one, or goes. False if nothing is known yet of the
    /// cluster: then nothing may be written either.
    pub(in crate::commit) fn change(
        &mut self,
        key: &StorageKey,
        old: Option<&Record>,
        new: Option<&Record>,
    ) -> bool {
        let (keyspace, token) = (key.keyspace(), key.token());
        let Some(settings) = self.trees.settings.get() else { return false };
        let Some((at, leaf)) = self.trees.leaf(keyspace, token) else { return false };
        let is_tombstone = |it: &Record| it.kind() == RecordKind::Tombstone;
        if Mutant::TreeForgetsTombstones.is_on() && new.is_some_and(is_tombstone) {
            return true;
        }
        let hasher = settings.hasher();
        let mut change = LeafChange::default();
        if let Some(old) = old {
            change.hash ^= hasher.hash(key, old);
            change.records -= 1;
        }
        if let Some(new) = new {
            change.hash ^= hasher.hash(key, new);
            change.records += 1;
        }
        // Leaves are cut between groups only: the one of the first change is that of all.
        let (_, changed) = self.changed.entry((keyspace, leaf.first)).or_insert((at, leaf));
        *changed = changed.after(change);
        true
    }

    /// Notes that a keyspace goes.
    pub(in crate::commit) fn drop_keyspace(&mut self, keyspace: KeyspaceId) {
        self.dropped.push(keyspace);
    }

    /// Puts the changed leaves into the group's batch.
    pub(in crate::commit) fn write(&mut self, batch: &mut WriteBatch) {
        let dropped = &self.dropped;
        self.changed.retain(|id, _| !dropped.contains(&id.0));
        for keyspace in dropped {
            rows::delete_leaves(batch, *keyspace, Token(0), Token(u64::MAX));
        }
        let mut changes: Vec<Change> = dropped.iter().map(|it| Change::Dropped(*it)).collect();
        changes.extend(self.changed.iter().map(|(id, it)| Change::Leaf(id.0, it.1)));
        if Mutant::TreeWrittenLate.is_on() {
            std::mem::swap(&mut changes, &mut self.late);
        }
        self.journal.append(batch, &self.trees, &changes);
    }

    /// The group is written: so are its leaves.
    pub(in crate::commit) fn keep(&mut self) {
        self.journal.keep();
        self.dropped.drain(..).for_each(|it| self.trees.remove(it));
        self.trees.set_each(self.changed.iter().map(|(id, (at, leaf))| (id.0, *at, *leaf)));
        for (id, (_, leaf)) in std::mem::take(&mut self.changed) {
            if leaf.is_overfull() {
                let was_tried_at = self.uncut.get(&id).copied().unwrap_or(0);
                if leaf.records / 2 >= was_tried_at {
                    self.overfull.insert(id);
                }
            }
        }
    }

    /// The group is not written.
    pub(in crate::commit) fn undo(&mut self) {
        self.changed.clear();
        self.dropped.clear();
    }

    /// Cuts one leaf that has grown too large. What it writes may be lost with the power, but never
    /// without everything that is written after it.
    pub(in crate::commit) fn cut_one(
        &mut self,
        storage: &impl Storage,
    ) -> Result<Cut, StorageError> {
        let Some(settings) = self.trees.settings.get() else { return Ok(Cut::Nothing) };
        let Some((keyspace, first)) = self.overfull.pop_first() else { return Ok(Cut::Nothing) };
        let leaf = self.trees.leaf(keyspace, first).map(|it| it.1);
        let Some(leaf) = leaf.filter(|it| it.first == first && it.is_overfull()) else {
            return Ok(Cut::Nothing);
        };
        self.uncut.insert((keyspace, first), leaf.records);
        let read = settings.read(storage, keyspace, &leaf, CUT_BYTES_MAX)?;
        if !read.complete || read.damaged > 0 {
            return Ok(Cut::Nothing);
        }
        let leaves = leaf.cut(&read.records);
        let sum = leaves.iter().fold(TreeHash::ZERO, |sum, it| sum ^ it.hash);
        let is_exact = sum == leaf.hash && read.records.len() == leaf.records as usize;
        if leaves.len() == 1 && is_exact {
            return Ok(Cut::Nothing);
        }
        let mut batch = WriteBatch::new();
        let changes: Vec<_> = leaves.iter().map(|it| Change::Leaf(keyspace, *it)).collect();
        self.journal.append(&mut batch, &self.trees, &changes);
        storage.write(&batch, Durability::Buffered)?;
        self.journal.keep();
        self.trees.replace(keyspace, &leaves);
        self.uncut.remove(&(keyspace, first));
        Ok(if is_exact { Cut::Done } else { Cut::Mended { leaf } })
    }
}

/// What became of a leaf that was to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commit) enum Cut {
    /// There is none, or it stays whole.
    Nothing,
    /// It is now several.
    Done,
    /// So it is, but it was not what the data say. Alarm.
    Mended {
        /// What it was.
        leaf: Leaf,
    },
}
