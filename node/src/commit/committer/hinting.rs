//! Keeps hints, delivers them from the disk, and marks dirty what is not kept.

use model::{KeyspaceId, Mutant, NodeId, Record, Refusal, StorageKey, Version};
use xxhash_rust::xxh3::xxh3_64;

use bytes::Bytes;

use super::{CommitAnswerKind, CommitCounters, Committer};
use crate::{
    commit::{
        DirtyMark, HintEnd,
        dirty::{generation_of, marks_of},
        hints::{HintClass, decode_hint, hint_bytes, hint_key},
    },
    storage::{Space, Storage},
};

/// A hint as it is kept.
#[derive(Clone)]
pub(super) struct Kept {
    class: HintClass,
    record: Record,
}

impl Kept {
    fn stamp_ms(&self) -> u64 {
        self.record.version().hlc.ms()
    }
}

/// A hint's row and what is there.
struct HintRow {
    target: NodeId,
    keyspace: KeyspaceId,
    row: Bytes,
    hash: u64,
    found: Found,
}

enum Found {
    Absent,
    Sound(Kept),
    Damaged { class: HintClass, bytes: u64 },
}

impl HintRow {
    /// What is there counts as so many bytes of a class.
    fn bytes(&self, class: HintClass) -> u64 {
        match &self.found {
            Found::Sound(kept) if kept.class == class => self.bytes_with(kept),
            Found::Damaged { class: damaged, bytes } if *damaged == class => *bytes,
            _ => 0,
        }
    }

    fn bytes_with(&self, kept: &Kept) -> u64 {
        hint_bytes(self.row.len(), kept.record.as_bytes().len())
    }
}

impl<S: Storage> Committer<S> {
    /// Keeps a hint, or a dirty mark past the bound. Of two hints for a key the newer one stays:
    /// versions commute. It stands for both writes then, and for ANY if one of them does.
    pub(super) fn stage_hint(
        &mut self,
        target: NodeId,
        key: &StorageKey,
        record: Record,
        class: HintClass,
        replaces: Option<Version>,
    ) -> CommitAnswerKind {
        let row = match self.hint_row(target, key) {
            Ok(row) => row,
            Err(refusal) => {
                self.owed.insert(DirtyMark::of(target, key));
                return CommitAnswerKind::HintRefused(refusal);
            }
        };
        let mut new = Kept { class, record };
        match &row.found {
            Found::Absent => {}
            Found::Sound(old) => {
                new.class = new.class.max(old.class);
                if old.record.version() >= new.record.version() {
                    if old.class == new.class {
                        return CommitAnswerKind::HintStored;
                    }
                    new.record = old.record.clone();
                }
            }
            // What it said is lost, and it may have been the newer one.
            Found::Damaged { .. } => self.mark_dirty(DirtyMark::of(target, key)),
        }
        if self.has_room(&row, &new) || Mutant::BoundsIgnored.is_on() {
            self.put_hint(&row, new);
            CommitCounters::add(&self.counters.hints_stored, 1);
            return CommitAnswerKind::HintStored;
        }
        if let Found::Sound(old) = &row.found
            && Some(old.record.version()) == replaces
        {
            self.remove_hint(&row);
        }
        self.mark_dirty(DirtyMark::of(target, key));
        CommitAnswerKind::HintMarkedDirty
    }

    /// Of a hint that the target durably has, or whose write is gone: removes it. A damaged one
    /// leaves a dirty mark.
    pub(super) fn stage_drop(&mut self, target: NodeId, key: &StorageKey, version: Version) {
        self.end_hint(target, key, |it| it.record.version() <= version);
    }

    /// Gives up a hint that cannot be delivered, but never one of ANY (CE24).
    pub(super) fn stage_end(
        &mut self,
        target: NodeId,
        key: &StorageKey,
        version: Version,
        why: HintEnd,
    ) {
        let ended = self.end_hint(target, key, |it| {
            it.class == HintClass::Ordinary && it.record.version() <= version
        });
        match why {
            HintEnd::Aged if ended => {
                CommitCounters::add(&self.counters.hints_aged, 1);
                if !Mutant::AgedHintsUnmarked.is_on() {
                    self.mark_dirty(DirtyMark::of(target, key));
                }
            }
            HintEnd::Orphaned if ended => CommitCounters::add(&self.counters.hints_orphaned, 1),
            HintEnd::Aged | HintEnd::Orphaned => {}
        }
    }

    /// True if there was a sound hint and it is removed.
    fn end_hint(
        &mut self,
        target: NodeId,
        key: &StorageKey,
        ends: impl FnOnce(&Kept) -> bool,
    ) -> bool {
        // A hint that cannot be read is met once more: versions commute.
        let Ok(row) = self.hint_row(target, key) else { return false };
        match &row.found {
            Found::Sound(kept) if ends(kept) => {
                self.remove_hint(&row);
                true
            }
            Found::Damaged { .. } => {
                self.remove_hint(&row);
                self.mark_dirty(DirtyMark::of(target, key));
                false
            }
            Found::Sound(_) | Found::Absent => false,
        }
    }

    fn has_room(&self, row: &HintRow, new: &Kept) -> bool {
        let (settings, added) = (&self.settings, row.bytes_with(new));
        let (kept, limit) = match new.class {
            HintClass::Ordinary => {
                (self.ledger.ordinary_bytes(row.target), settings.hint_bytes_per_target_max)
            }
            HintClass::Any => (self.ledger.any_bytes(), settings.any_hint_bytes_max),
        };
        kept.saturating_sub(row.bytes(new.class)).saturating_add(added) <= limit
    }

    fn put_hint(&mut self, row: &HintRow, new: Kept) {
        self.count_removed(row);
        let (bytes, stamp_ms) = (row.bytes_with(&new), new.stamp_ms());
        self.ledger.add(row.target, row.keyspace, new.class, stamp_ms, bytes);
        let value = [&[new.class.to_byte()][..], new.record.as_bytes()];
        self.group.batch.put(Space::Hints, &row.row, value);
        self.group.hints.set(row.hash, &row.row, Some(new));
    }

    fn remove_hint(&mut self, row: &HintRow) {
        self.count_removed(row);
        self.group.batch.delete(Space::Hints, &row.row);
        self.group.hints.set(row.hash, &row.row, None);
    }

    fn count_removed(&mut self, row: &HintRow) {
        match &row.found {
            Found::Absent => {}
            Found::Sound(kept) => {
                let (class, stamp_ms) = (kept.class, Some(kept.stamp_ms()));
                let bytes = row.bytes_with(kept);
                self.ledger.remove(row.target, row.keyspace, class, stamp_ms, bytes);
            }
            Found::Damaged { class, bytes } => {
                self.ledger.remove(row.target, row.keyspace, *class, None, *bytes);
            }
        }
    }

    fn hint_row(&self, target: NodeId, key: &StorageKey) -> Result<HintRow, Refusal> {
        let row = hint_key(target, key);
        let hash = xxh3_64(&row);
        let found = match self.group.hints.get(hash, &row) {
            Some(staged) => staged.clone().map_or(Found::Absent, Found::Sound),
            None => match self.read(Space::Hints, &row)? {
                None => Found::Absent,
                Some(value) => {
                    let bytes = hint_bytes(row.len(), value.len().saturating_sub(1));
                    match decode_hint(key, value) {
                        (class, Some(record)) => Found::Sound(Kept { class, record }),
                        (class, None) => {
                            self.note_corrupt(&row, &DamagedHint);
                            Found::Damaged { class, bytes }
                        }
                    }
                }
            },
        };
        Ok(HintRow { target, keyspace: key.keyspace(), row, hash, found })
    }

    /// A mark in place of a hint, now or once there is room.
    pub(super) fn mark_for_hint(&mut self, mark: DirtyMark) {
        self.group.in_place_of_hints.push(mark);
        self.mark_dirty(mark);
    }

    /// Adds marks that are owed: a few, and to a group that may fail for want of room only when the one
    /// before has found some.
    pub(super) fn stage_owed(&mut self) {
        if Mutant::RefusedHintsUnmarked.is_on() {
            return;
        }
        for _ in 0..OWED_AT_ONCE {
            let Some(mark) = self.owed.pop_first() else { break };
            self.mark_for_hint(mark);
        }
    }

    /// Notes durably that the target may lack writes in this part of the ring.
    pub(super) fn mark_dirty(&mut self, mark: DirtyMark) {
        CommitCounters::add(&self.counters.hints_marked_dirty, 1);
        if let Some(Some(_)) = self.group.marks.get(&mark) {
            return;
        }
        // A drop that is on its way must not take this write's mark along.
        let generation = self.generation(mark);
        if generation.is_none() {
            self.ledger.add_mark(mark);
        }
        let generation = generation.unwrap_or(0) + 1;
        self.group.batch.put(Space::System, &mark.system_key(), [&generation.to_be_bytes()[..]]);
        self.group.marks.insert(mark, Some(generation));
    }

    /// What a mark covered at a generation has been compared.
    pub(super) fn unmark(&mut self, mark: DirtyMark, generation: u64) {
        if self.generation(mark) == Some(generation) {
            self.group.batch.delete(Space::System, &mark.system_key());
            self.group.marks.insert(mark, None);
            self.ledger.remove_mark(mark);
        }
    }

    /// Nobody is left to be compared with.
    pub(super) fn forget_marks(&mut self, target: NodeId) {
        let start = marks_of(target);
        if let Some(end) = StorageKey::prefix_end(&start) {
            self.group.batch.delete_range(Space::System, &start, &end);
        }
        self.group.marks.retain(|mark, _| mark.target != target);
        self.group.forgotten.push(target);
        self.ledger.forget_marks(target);
    }

    /// The generation of a mark, if it is set.
    fn generation(&self, mark: DirtyMark) -> Option<u64> {
        let staged = self.group.marks.get(&mark).copied();
        // One that cannot be read is put once more.
        let stored = || self.read(Space::System, &mark.system_key()).ok().flatten();
        match staged {
            Some(staged) => staged,
            // Its rows are still on the disk.
            None if self.group.forgotten.contains(&mark.target) => None,
            None => stored().map(|it| generation_of(&it)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a hint fails its checksum")]
struct DamagedHint;

/// Marks that are owed and go with one group.
const OWED_AT_ONCE: usize = 64;
