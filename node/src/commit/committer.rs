//! Judges and writes one group at a time.

mod hinting;
mod mending;
mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::{
    Hlc, KeyspaceId, Mutant, NodeId, PartitionIndex, Record, Refusal, StorageKey, Version,
    WriteAnswer,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::dues;
use super::floors::FloorStage;
use super::hint_ledger::{HintLedger, HintTotals};
use super::overlay::Overlay;
use super::trees::{Cut, TreeStage};
use super::{
    CommitAnswer, CommitAnswerKind, CommitCounters, CommitItem, CommitSettings, DirtyMark, Mend,
    Origin, SystemDone,
};
use crate::replica::{RecentVersions, Stored, receive};
use crate::shared::system_key;
use crate::storage::{Durability, Space, Storage, StorageError, WriteBatch, announce_first};
use hinting::Kept;

/// The one writer of a storage.
pub struct Committer<S> {
    storage: Arc<S>,
    settings: CommitSettings,
    counters: Arc<CommitCounters>,
    recent: RecentVersions,
    ledger: HintLedger,
    trees: Option<TreeStage>,
    floors: FloorStage,
    failure: Option<StorageError>,
    group: Group,
    /// What is to be put right once the group is answered.
    mends: Vec<Mend>,
    /// The fence of each partition when a record of it was last replaced in this life of the process.
    healed_below: BTreeMap<(KeyspaceId, PartitionIndex), Hlc>,
    /// Marks in place of hints that were refused with their groups.
    owed: BTreeSet<DirtyMark>,
    /// The last group that needed room found it.
    has_room: bool,
}

/// What the group at hand has come to so far. Kept for its memory.
struct Group {
    batch: WriteBatch,
    /// `None` where the group removes the record.
    records: Overlay<Option<Stored>>,
    hints: Overlay<Option<Kept>>,
    /// Dirty marks put, with their generation, or removed.
    marks: BTreeMap<DirtyMark, Option<u64>>,
    /// Targets whose marks were all removed before these.
    forgotten: Vec<NodeId>,
    /// The marks that stand for this group's hints, should it be refused.
    in_place_of_hints: Vec<DirtyMark>,
    done: Vec<SystemDone>,
    /// A lone item needs no overlay.
    alone: bool,
}

impl<S: Storage> Committer<S> {
    /// Takes over the writing of a storage, which nobody else may write from now on.
    pub fn open(storage: Arc<S>, settings: CommitSettings) -> Result<Self, StorageError> {
        let ledger = HintLedger::load(&*storage)?;
        let trees = settings.trees.clone().map(|it| TreeStage::open(it, &*storage)).transpose()?;
        let floors = FloorStage::open(Arc::clone(&settings.floors), &*storage)?;
        let batch = WriteBatch::new();
        let (records, hints) = (Overlay::new(), Overlay::new());
        let marks = BTreeMap::new();
        let group = Group {
            batch,
            records,
            hints,
            marks,
            forgotten: Vec::new(),
            in_place_of_hints: Vec::new(),
            done: Vec::new(),
            alone: false,
        };
        let counters = Arc::default();
        let recent = RecentVersions::new();
        Ok(Self {
            storage,
            settings,
            counters,
            recent,
            ledger,
            trees,
            floors,
            failure: None,
            group,
            mends: Vec::new(),
            healed_below: BTreeMap::new(),
            owed: BTreeSet::new(),
            has_room: true,
        })
    }

    /// What this committer counts.
    pub fn counters(&self) -> Arc<CommitCounters> {
        Arc::clone(&self.counters)
    }

    /// How many hints are kept for whom.
    pub fn hint_totals(&self) -> Arc<HintTotals> {
        self.ledger.published()
    }

    /// The storage.
    pub fn storage(&self) -> &Arc<S> {
        &self.storage
    }

    /// Drains a group: judges its items in order, writes them in one batch, and appends an answer
    /// for every mutation and hint once the batch is durable.
    ///
    /// On an error nothing of the group is known to be written and every answer is a refusal:
    /// `DiskFull`, and the next group may succeed; or `Failed`, because the storage
    /// has failed, and then no group ever succeeds again: the node must stop.
    pub fn commit<D>(
        &mut self,
        group: &mut Vec<CommitItem<D>>,
        answers: &mut Vec<(D, CommitAnswer)>,
    ) -> Result<(), StorageError> {
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        CommitCounters::add(&self.counters.items, group.len());
        let items = u64::try_from(group.len()).unwrap_or(u64::MAX);
        self.counters.group_items_max.fetch_max(items, Ordering::Relaxed);

        let first_answer = answers.len();
        self.group.alone = group.len() == 1;
        let mut items = group.drain(..);
        while !items.as_slice().is_empty() {
            let announced = announce_first(&self.storage, items.as_slice(), |it| match it {
                CommitItem::Mutation { key, .. } => Some(key.as_bytes()),
                _ => None,
            });
            items.by_ref().take(announced).for_each(|it| self.stage(it, answers));
        }
        if self.has_room && !self.group.batch.is_empty() {
            self.stage_owed();
        }
        let needs_room = !self.group.batch.is_empty();
        let written = self.write();
        self.has_room = if needs_room { written.is_ok() } else { self.has_room };
        if let Err(error) = &written {
            self.undo(error);
            self.owed.extend(self.group.in_place_of_hints.drain(..));
            let refusal = refusal_of(error);
            for (_, answer) in &mut answers[first_answer..] {
                answer.refuse(refusal);
            }
        }
        self.ledger.keep();
        if written.is_ok() {
            self.floors.keep();
            if let Some(trees) = &mut self.trees {
                trees.keep();
            }
        }
        self.group.batch.clear();
        self.group.records.clear();
        self.group.hints.clear();
        self.group.marks.clear();
        self.group.forgotten.clear();
        self.group.in_place_of_hints.clear();
        let owed = u64::try_from(self.owed.len()).unwrap_or(u64::MAX);
        self.counters.marks_owed.store(owed, Ordering::Relaxed);
        for done in self.group.done.drain(..) {
            done(written.clone());
        }
        written
    }

    /// What can wait until a group of so many items has been answered: cuts leaves of trees that have
    /// grown. On an error the node must stop, as after [`Committer::commit`].
    pub fn tend(&mut self, items: usize) -> Result<(), StorageError> {
        if self.failure.is_none() {
            self.mend_all()?;
        }
        let Some(trees) = self.trees.as_mut().filter(|_| self.failure.is_none()) else {
            return Ok(());
        };
        // Each leaf that is cut has taken as many new records as half of it holds.
        for _ in 0..=items / CUT_EVERY {
            match trees.cut_one(&*self.storage) {
                Ok(Cut::Nothing) => return Ok(()),
                Ok(Cut::Done) => self.counters.leaves_cut.fetch_add(1, Ordering::Relaxed),
                Ok(Cut::Mended { leaf }) => {
                    tracing::error!(?leaf, "a leaf of a Merkle tree was not what the data say");
                    // Rows may be in memory that the disk has lost: what brings them back would seem known.
                    self.storage.forget_rows();
                    self.counters.leaves_mended.fetch_add(1, Ordering::Relaxed)
                }
                Err(error @ StorageError::Failed { .. }) => {
                    self.failure = Some(error.clone());
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "a leaf of a Merkle tree stays as large as it is");
                    return Ok(());
                }
            };
        }
        Ok(())
    }

    fn stage<D>(&mut self, item: CommitItem<D>, answers: &mut Vec<(D, CommitAnswer)>) {
        match item {
            CommitItem::Mutation {
                destination,
                operation,
                slot,
                key,
                record,
                origin,
                want_newest,
            } => {
                let version = record.version();
                let (answer, newest) = self.stage_mutation(&key, record, origin, want_newest);
                let kind = CommitAnswerKind::Mutation(answer);
                answers
                    .push((destination, CommitAnswer { operation, slot, version, kind, newest }));
            }
            CommitItem::Hint {
                destination,
                operation,
                slot,
                target,
                key,
                record,
                class,
                replaces,
            } => {
                let version = record.version();
                self.group.in_place_of_hints.push(DirtyMark::of(target, &key));
                let kind = self.stage_hint(target, &key, record, class, replaces);
                answers.push((
                    destination,
                    CommitAnswer { operation, slot, version, kind, newest: None },
                ));
            }
            CommitItem::System { key, value, done } => {
                match value {
                    Some(value) => self.group.batch.put(Space::System, &key, [&value]),
                    None => self.group.batch.delete(Space::System, &key),
                }
                self.group.done.push(done);
            }
            CommitItem::DropHint { target, key, version } => self.stage_drop(target, &key, version),
            CommitItem::EndHint { target, key, version, why } => {
                self.stage_end(target, &key, version, why);
            }
            CommitItem::MarkDirty { mark } => self.mark_for_hint(mark),
            // Not with others, which they might fail.
            CommitItem::MarkOwed if self.group.alone => self.stage_owed(),
            CommitItem::MarkOwed => {}
            CommitItem::DropDirtyMark { mark, generation } => self.unmark(mark, generation),
            CommitItem::ForgetDirtyMarks { target } => self.forget_marks(target),
            CommitItem::Floor { keyspace, partition, change }
                if self.is_barred(keyspace, partition, change) => {}
            CommitItem::Floor { keyspace, partition, change } => {
                self.floors.change(keyspace, partition, change, &mut self.group.batch);
            }
            CommitItem::Purge { key } => self.stage_purge(&key),
            CommitItem::Discard { key, version } => self.stage_discard(&key, version),
            CommitItem::Fill { generation, ends, identity, done } => {
                self.floors.fill(generation, ends, &mut self.group.batch);
                if let Some(identity) = identity {
                    self.group.batch.put(Space::System, system_key::IDENTITY, [&identity]);
                }
                self.group.done.push(done);
            }
            CommitItem::Mend(mend) => self.mends.push(mend),
            CommitItem::Settled { done } => self.group.done.push(done),
            CommitItem::DropKeyspace { keyspace } => self.stage_drop_keyspace(keyspace),
        }
    }

    /// Judges a mutation and, if it is newer than what is here, adds it to the batch.
    fn stage_mutation(
        &mut self,
        key: &StorageKey,
        record: Record,
        origin: Origin,
        want_newest: bool,
    ) -> (WriteAnswer, Option<Record>) {
        if let Some(refusal) = self.floors.refuse(key, self.partition(key), &record, origin) {
            CommitCounters::add(&self.counters.below_fence, 1);
            return (WriteAnswer::Refused(refusal), None);
        }
        let hash = self.hash(key);
        let stored = match self.stored(hash, key) {
            Ok(stored) => stored,
            Err(refusal) => return (WriteAnswer::Refused(refusal), None),
        };
        let version = record.version();
        let recent = &mut self.recent;
        let (answer, newest) = receive(hash, stored.as_ref(), version, recent);
        if let Some(previous) = newest {
            if !self.stage_record(hash, key, stored, Stored { record, previous }) {
                return (WriteAnswer::Refused(Refusal::NotReady), None);
            }
            return (answer, None);
        }
        let stored = stored.expect("without a record everything is the newest");
        if version == stored.record.version() && record.crc() != stored.record.crc() {
            self.settle_conflict(hash, key, record, stored);
        } else if matches!(answer, WriteAnswer::Superseded { .. }) {
            self.counters.superseded.fetch_add(1, Ordering::Relaxed);
            return (answer, want_newest.then_some(stored.record));
        }
        (answer, None)
    }

    /// Two records of one version with different contents: the higher checksum wins on every
    /// replica, whatever the order of arrival. Only a request id that was used twice leads here.
    fn settle_conflict(&mut self, hash: u64, key: &StorageKey, record: Record, stored: Stored) {
        self.counters.conflicting_records.fetch_add(1, Ordering::Relaxed);
        let (version, wins) = (record.version(), record.crc() > stored.record.crc());
        tracing::error!(?key, %version, wins, "two records of one version differ");
        if wins {
            let previous = stored.previous;
            self.stage_record(hash, key, Some(stored), Stored { record, previous });
        }
    }

    /// False if the trees do not know of a cluster yet, and nothing was staged.
    fn stage_record(
        &mut self,
        hash: u64,
        key: &StorageKey,
        replaced: Option<Stored>,
        stored: Stored,
    ) -> bool {
        let replaced = replaced.as_ref().map(|it| &it.record);
        if let Some(trees) = &mut self.trees
            && !trees.change(key, replaced, Some(&stored.record))
        {
            return false;
        }
        let partition = self.partition(key);
        dues::stage(&mut self.group.batch, key, partition, replaced, Some(&stored.record));
        let value = [&stored.record.as_bytes()[..], &stored.trailer()];
        self.group.batch.put(Space::Data, key.as_bytes(), value);
        self.counters.records_written.fetch_add(1, Ordering::Relaxed);
        if !self.group.alone {
            self.group.records.set(hash, key.as_bytes(), Some(stored));
        }
        true
    }

    /// Removes a record that the partition's floor covers (F6).
    fn stage_purge(&mut self, key: &StorageKey) {
        let (hash, partition) = (self.hash(key), self.partition(key));
        // One that cannot be read stays, and is met again.
        let Ok(Some(stored)) = self.stored(hash, key) else { return };
        let floor = self.floors.of(key.keyspace(), partition).floor;
        if stored.record.purgeable_at(floor) && self.remove(hash, key, &stored) {
            CommitCounters::add(&self.counters.records_purged, 1);
        }
    }

    /// Removes a record that no source holds, while its partition is being filled (F7).
    fn stage_discard(&mut self, key: &StorageKey, version: Version) {
        let (hash, partition) = (self.hash(key), self.partition(key));
        if self.floors.counts(key.keyspace(), partition) {
            return;
        }
        let Ok(Some(stored)) = self.stored(hash, key) else { return };
        if stored.record.version() == version && self.remove(hash, key, &stored) {
            CommitCounters::add(&self.counters.records_discarded, 1);
        }
    }

    /// Removes a record: the row, and what trees and index say of it. False if the trees do not know of a
    /// cluster yet, and nothing was staged.
    fn remove(&mut self, hash: u64, key: &StorageKey, stored: &Stored) -> bool {
        if let Some(trees) = &mut self.trees
            && !trees.change(key, Some(&stored.record), None)
        {
            return false;
        }
        let partition = self.partition(key);
        dues::stage(&mut self.group.batch, key, partition, Some(&stored.record), None);
        self.group.batch.delete(Space::Data, key.as_bytes());
        if !self.group.alone {
            self.group.records.set(hash, key.as_bytes(), None);
        }
        true
    }

    fn hash(&self, key: &StorageKey) -> u64 {
        xxh3_64_with_seed(key.as_bytes(), self.settings.hash_seed)
    }

    fn partition(&self, key: &StorageKey) -> PartitionIndex {
        let trees = self.settings.trees.as_ref();
        trees.and_then(|it| it.partition_of(key.token())).unwrap_or(PartitionIndex(0))
    }

    fn stage_drop_keyspace(&mut self, keyspace: KeyspaceId) {
        let start = keyspace.0.to_be_bytes();
        let end = match keyspace.0.checked_add(1) {
            Some(next) => next.to_be_bytes().to_vec(),
            None => vec![0xff; STORAGE_KEY_BYTES_MAX],
        };
        // The overlay keeps what the group has written before: other keyspaces need it, and nothing
        // asks for this one again.
        self.group.batch.delete_range(Space::Data, &start, &end);
        dues::drop_keyspace(&mut self.group.batch, keyspace);
        self.floors.drop_keyspace(keyspace, &mut self.group.batch);
        if let Some(trees) = &mut self.trees {
            trees.drop_keyspace(keyspace);
        }
    }

    fn write(&mut self) -> Result<(), StorageError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.ledger.stage(&mut self.group.batch);
        if let Some(trees) = &mut self.trees {
            trees.write(&mut self.group.batch);
        }
        if self.group.batch.is_empty() {
            return Ok(());
        }
        let written = self.storage.write(&self.group.batch, self.durability());
        if matches!(written, Err(StorageError::Failed { .. })) && Mutant::FailedSyncIgnored.is_on()
        {
            return Ok(());
        }
        written
    }

    /// As set, but for deliberate bugs, which leave alone what the node knows about itself.
    fn durability(&self) -> Durability {
        let has_data = || self.group.batch.changes().any(|it| it.0 == Space::Data);
        let unsynced = (Mutant::AcknowledgedBeforeSync.is_on() && has_data())
            || (Mutant::HintsNotSynced.is_on() && !has_data());
        match unsynced && self.group.done.is_empty() {
            true => Durability::Buffered,
            false => self.settings.durability,
        }
    }

    /// Takes back what staging the group has noted in memory, and latches a failure. The lists of
    /// recent versions need nothing: one that does not end in what is stored is not used.
    fn undo(&mut self, error: &StorageError) {
        self.ledger.undo();
        self.floors.undo();
        if let Some(trees) = &mut self.trees {
            trees.undo();
        }
        if let StorageError::Full { .. } = error {
            self.counters.groups_full.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "a group of writes was refused");
            return;
        }
        self.counters.groups_failed.fetch_add(1, Ordering::Relaxed);
        if self.failure.is_none() {
            tracing::error!(%error, "storage has failed; this node accepts no more writes");
            self.failure = Some(error.clone());
        }
    }
}

fn refusal_of(error: &StorageError) -> Refusal {
    match error {
        StorageError::Full { .. } => Refusal::DiskFull,
        StorageError::Corruption { .. } | StorageError::Failed { .. } => Refusal::Failed,
    }
}

/// One leaf may be cut for so many items of a group.
const CUT_EVERY: usize = 32;

/// Above every storage key: the head, an escaped partition key of 4 KiB, its end, a sort key of
/// 1 KiB, and a byte.
const STORAGE_KEY_BYTES_MAX: usize = 12 + 2 * (4 << 10) + 2 + (1 << 10) + 1;

#[cfg(test)]
mod tests;
