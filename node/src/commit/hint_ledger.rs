//! How many hints and dirty marks each target has, of which keyspace, how large the hints are and how old.
//!
//! Kept in memory and written in the batch that changes it, so that neither opening nor asking scans
//! the hints. A row of it counts a target's hints of one class and keyspace whose stamps lie within ten
//! seconds: `prefix | target (16) | class (1) | keyspace (4) | ten seconds (8)` -> `hints (8) | bytes (8)`.
//! The marks of a keyspace are one row more.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Add,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use model::{KeyspaceId, NodeId};

use super::{
    dirty::DirtyMark,
    hints::{HintClass, malformed},
};
use crate::storage::{RangeRequest, Space, Storage, StorageError, WriteBatch};

const LEDGER_PREFIX: &[u8] = b"\0hint-ledger/";

/// The stamps that one row counts together: ages are known to this.
pub const AGE_STEP_MS: u64 = 10_000;

/// Some hints together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintSum {
    /// How many.
    pub hints: u64,
    /// Their bytes, as the bounds count them.
    pub bytes: u64,
    /// The clock of the oldest stamp, rounded down to [`AGE_STEP_MS`]; `None` if there is no hint.
    pub oldest_ms: Option<u64>,
}

/// What is kept for one target, or of one keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptHints {
    /// Hints that a dirty mark may replace.
    pub ordinary: HintSum,
    /// Hints of writes at ANY.
    pub any: HintSum,
    /// Parts of the ring that are dirty.
    pub dirty_marks: u64,
}

impl KeptHints {
    /// Hints of both classes.
    pub fn hints(&self) -> u64 {
        self.ordinary.hints + self.any.hints
    }

    /// The clock of the oldest hint of either class.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.both().oldest_ms
    }

    /// Hints of both classes together.
    pub fn both(&self) -> HintSum {
        self.ordinary + self.any
    }

    fn is_empty(&self) -> bool {
        self.hints() == 0 && self.dirty_marks == 0
    }
}

impl Add for HintSum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            hints: self.hints + other.hints,
            bytes: self.bytes.saturating_add(other.bytes),
            oldest_ms: self.oldest_ms.into_iter().chain(other.oldest_ms).min(),
        }
    }
}

impl Add for KeptHints {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ordinary: self.ordinary + other.ordinary,
            any: self.any + other.any,
            dirty_marks: self.dirty_marks + other.dirty_marks,
        }
    }
}

/// The ledger as it is on disk, for whoever asks.
#[derive(Debug, Default)]
pub struct HintTotals {
    targets: Mutex<BTreeMap<NodeId, Keyspaces>>,
}

/// What is kept for a target, of each keyspace.
type Keyspaces = BTreeMap<KeyspaceId, KeptHints>;

fn total(keyspaces: &Keyspaces) -> KeptHints {
    keyspaces.values().fold(KeptHints::default(), |sum, it| sum + *it)
}

impl HintTotals {
    /// What is kept for one target.
    pub fn of(&self, target: NodeId) -> KeptHints {
        self.lock().get(&target).map(total).unwrap_or_default()
    }

    /// Every target for which something is kept.
    pub fn all(&self) -> BTreeMap<NodeId, KeptHints> {
        self.lock().iter().map(|(target, it)| (*target, total(it))).collect()
    }

    /// What is kept of each keyspace, for all targets together.
    pub fn by_keyspace(&self) -> BTreeMap<KeyspaceId, KeptHints> {
        let mut all = Keyspaces::new();
        for (keyspace, kept) in self.lock().values().flatten() {
            let sum = all.entry(*keyspace).or_default();
            *sum = *sum + *kept;
        }
        all
    }

    /// The bytes of all hints of writes at ANY.
    pub fn any_bytes(&self) -> u64 {
        self.lock().values().flat_map(BTreeMap::values).map(|it| it.any.bytes).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Keyspaces>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    target: NodeId,
    kind: Kind,
    keyspace: KeyspaceId,
    step: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ordinary,
    Any,
    Marks,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    number: u64,
    bytes: u64,
}

/// The ledger of the one who writes the hints.
#[derive(Debug, Default)]
pub(super) struct HintLedger {
    counts: BTreeMap<Place, Count>,
    /// Of all steps; and of all keyspaces, too.
    sums: BTreeMap<(NodeId, Kind, KeyspaceId), Count>,
    totals: BTreeMap<(NodeId, Kind), Count>,
    /// What the places that this group has changed had before it.
    before: BTreeMap<Place, Count>,
    published: Arc<HintTotals>,
}

impl HintLedger {
    pub(super) fn load(storage: &impl Storage) -> Result<Self, StorageError> {
        let rows = storage.range(&RangeRequest::prefix(Space::System, LEDGER_PREFIX))?.rows;
        let mut ledger = Self::default();
        for (key, value) in rows {
            let place = Place::parse(&key).ok_or_else(|| malformed(&key))?;
            ledger.set(place, Count::parse(&value).ok_or_else(|| malformed(&key))?);
        }
        ledger.keep();
        Ok(ledger)
    }

    /// What readers see: the ledger as of the last group that was written.
    pub(super) fn published(&self) -> Arc<HintTotals> {
        Arc::clone(&self.published)
    }

    /// The bytes of a target's ordinary hints.
    pub(super) fn ordinary_bytes(&self, target: NodeId) -> u64 {
        self.totals.get(&(target, Kind::Ordinary)).map_or(0, |it| it.bytes)
    }

    /// The bytes of all hints of writes at ANY.
    pub(super) fn any_bytes(&self) -> u64 {
        self.totals.iter().filter(|it| it.0.1 == Kind::Any).map(|it| it.1.bytes).sum()
    }

    /// A hint is put.
    pub(super) fn add(
        &mut self,
        target: NodeId,
        keyspace: KeyspaceId,
        class: HintClass,
        stamp_ms: u64,
        bytes: u64,
    ) {
        let place = Place { target, kind: class.into(), keyspace, step: stamp_ms / AGE_STEP_MS };
        let before = self.count(place);
        let count = Count { number: before.number + 1, bytes: before.bytes.saturating_add(bytes) };
        self.set(place, count);
    }

    /// A hint is removed. `stamp_ms` is `None` if it was damaged: then it counts as one of the oldest, so that
    /// they are not looked for again and again. Of ANY as one of the newest: no fence may pass one that is left.
    pub(super) fn remove(
        &mut self,
        target: NodeId,
        keyspace: KeyspaceId,
        class: HintClass,
        stamp_ms: Option<u64>,
        bytes: u64,
    ) {
        let kind = class.into();
        let place = |it: u64| Place { target, kind, keyspace, step: it / AGE_STEP_MS };
        let known = stamp_ms.map(place).filter(|it| self.counts.contains_key(it));
        let guessed = || match class {
            HintClass::Ordinary => self.places(target, kind, keyspace).next(),
            HintClass::Any => self.places(target, kind, keyspace).next_back(),
        };
        let Some(place) = known.or_else(guessed) else { return };
        let before = self.count(place);
        let number = before.number.saturating_sub(1);
        let bytes = if number == 0 { 0 } else { before.bytes.saturating_sub(bytes) };
        self.set(place, Count { number, bytes });
    }

    /// A part of the ring becomes dirty.
    pub(super) fn add_mark(&mut self, mark: DirtyMark) {
        let number = self.marks(mark.target, mark.keyspace) + 1;
        self.set_marks(mark.target, mark.keyspace, number);
    }

    /// A part of the ring is clean again.
    pub(super) fn remove_mark(&mut self, mark: DirtyMark) {
        let number = self.marks(mark.target, mark.keyspace).saturating_sub(1);
        self.set_marks(mark.target, mark.keyspace, number);
    }

    /// All of a target's marks go.
    pub(super) fn forget_marks(&mut self, target: NodeId) {
        let [first, last] =
            [0, u32::MAX].map(|keyspace| (target, Kind::Marks, KeyspaceId(keyspace)));
        let marked: Vec<_> = self.sums.range(first..=last).map(|it| it.0.2).collect();
        for keyspace in marked {
            self.set_marks(target, keyspace, 0);
        }
    }

    /// Adds the group's changes to its batch.
    pub(super) fn stage(&self, batch: &mut WriteBatch) {
        for place in self.before.keys() {
            let (key, count) = (place.key(), self.count(*place));
            match count.number {
                0 => batch.delete(Space::System, &key),
                number => {
                    let value = [number.to_be_bytes(), count.bytes.to_be_bytes()];
                    batch.put(Space::System, &key, [&value[0], &value[1]]);
                }
            }
        }
    }

    /// The group is durable: readers see it.
    pub(super) fn keep(&mut self) {
        if self.before.is_empty() {
            return;
        }
        let changed: BTreeSet<_> = self.before.keys().map(|it| (it.target, it.keyspace)).collect();
        self.before.clear();
        let mut published = self.published.lock();
        for (target, keyspace) in changed {
            let kept = KeptHints {
                ordinary: self.hint_sum(target, Kind::Ordinary, keyspace),
                any: self.hint_sum(target, Kind::Any, keyspace),
                dirty_marks: self.marks(target, keyspace),
            };
            let keyspaces = published.entry(target).or_default();
            if kept.is_empty() {
                keyspaces.remove(&keyspace);
            } else {
                keyspaces.insert(keyspace, kept);
            }
            if keyspaces.is_empty() {
                published.remove(&target);
            }
        }
    }

    /// The group was not written.
    pub(super) fn undo(&mut self) {
        for (place, count) in std::mem::take(&mut self.before) {
            self.apply(place, count);
        }
    }

    fn set_marks(&mut self, target: NodeId, keyspace: KeyspaceId, number: u64) {
        let place = Place { target, kind: Kind::Marks, keyspace, step: 0 };
        self.set(place, Count { number, bytes: 0 });
    }

    fn set(&mut self, place: Place, count: Count) {
        let before = self.count(place);
        self.before.entry(place).or_insert(before);
        self.apply(place, count);
    }

    fn apply(&mut self, place: Place, count: Count) {
        let before = if count.number == 0 {
            self.counts.remove(&place)
        } else {
            self.counts.insert(place, count)
        };
        let before = before.unwrap_or_default();
        let Place { target, kind, keyspace, .. } = place;
        shift(&mut self.sums, (target, kind, keyspace), before, count);
        shift(&mut self.totals, (target, kind), before, count);
    }

    fn count(&self, place: Place) -> Count {
        self.counts.get(&place).copied().unwrap_or_default()
    }

    fn sum(&self, target: NodeId, kind: Kind, keyspace: KeyspaceId) -> Count {
        self.sums.get(&(target, kind, keyspace)).copied().unwrap_or_default()
    }

    fn marks(&self, target: NodeId, keyspace: KeyspaceId) -> u64 {
        self.sum(target, Kind::Marks, keyspace).number
    }

    fn hint_sum(&self, target: NodeId, kind: Kind, keyspace: KeyspaceId) -> HintSum {
        let sum = self.sum(target, kind, keyspace);
        let oldest = self.places(target, kind, keyspace).next();
        let oldest_ms = oldest.map(|it| it.step.saturating_mul(AGE_STEP_MS));
        HintSum { hints: sum.number, bytes: sum.bytes, oldest_ms }
    }

    /// From the oldest to the newest.
    fn places(
        &self,
        target: NodeId,
        kind: Kind,
        keyspace: KeyspaceId,
    ) -> impl DoubleEndedIterator<Item = Place> {
        let [first, last] = [0, u64::MAX].map(|step| Place { target, kind, keyspace, step });
        self.counts.range(first..=last).map(|it| *it.0)
    }
}

/// Puts a count in the place of another one, within their sum.
fn shift<K: Ord + Copy>(sums: &mut BTreeMap<K, Count>, of: K, before: Count, count: Count) {
    let sum = sums.entry(of).or_default();
    sum.number = sum.number.saturating_sub(before.number) + count.number;
    sum.bytes = sum.bytes.saturating_sub(before.bytes).saturating_add(count.bytes);
    if sum.number == 0 {
        sums.remove(&of);
    }
}

impl Place {
    fn key(self) -> Bytes {
        let kind = match self.kind {
            Kind::Ordinary => HintClass::Ordinary.to_byte(),
            Kind::Any => HintClass::Any.to_byte(),
            Kind::Marks => MARKS_BYTE,
        };
        let (target, step) = (self.target.to_bytes(), self.step.to_be_bytes());
        let keyspace = self.keyspace.0.to_be_bytes();
        [LEDGER_PREFIX, &target, &[kind], &keyspace, &step].concat().into()
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let body: &[u8; 29] = key.strip_prefix(LEDGER_PREFIX)?.try_into().ok()?;
        let kind = match body[16] {
            0 => Kind::Ordinary,
            1 => Kind::Any,
            MARKS_BYTE => Kind::Marks,
            _ => return None,
        };
        let keyspace = KeyspaceId(u32::from_be_bytes(body[17..21].try_into().ok()?));
        let step = u64::from_be_bytes(body[21..].try_into().ok()?);
        Some(Self { target: NodeId::from_slice(&body[..16])?, kind, keyspace, step })
    }
}

const MARKS_BYTE: u8 = 2;

impl Count {
    fn parse(value: &[u8]) -> Option<Self> {
        let (number, bytes) = value.split_at_checked(8)?;
        let [number, bytes] = [number, bytes].map(|it| it.try_into().map(u64::from_be_bytes).ok());
        Some(Self { number: number?, bytes: bytes? })
    }
}

impl From<HintClass> for Kind {
    fn from(class: HintClass) -> Self {
        match class {
            HintClass::Ordinary => Self::Ordinary,
            HintClass::Any => Self::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::{Durability, memory::MemoryStorage};

    const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
    const KEYSPACES: [KeyspaceId; 2] = [KeyspaceId(5), KeyspaceId(6)];

    #[test]
    fn rows_are_frozen_and_strangers_refused() {
        let place =
            Place { target: NodeId(3), kind: Kind::Any, keyspace: KeyspaceId(9), step: 258 };
        let rest = [3, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 2];
        let expected = [LEDGER_PREFIX, &[0; 15], &rest].concat();
        assert_eq!(place.key(), expected);
        assert_eq!(Place::parse(&expected), Some(place));
        assert_eq!(Place::parse(&expected[..expected.len() - 1]), None);
        let storage = MemoryStorage::new();
        let mut batch = WriteBatch::new();
        batch.put(Space::System, &expected, [&[0; 15][..]]);
        storage.write(&batch, Durability::Synced).unwrap();
        assert!(HintLedger::load(&storage).is_err());
    }

    /// Of two hints of a class the newer one was damaged, and is gone.
    fn without_a_damaged_one(class: HintClass) -> HintLedger {
        let mut ledger = HintLedger::default();
        ledger.add(NODES[0], KEYSPACES[0], class, 10_000, 7);
        ledger.add(NODES[0], KEYSPACES[0], class, 20_000, 9);
        ledger.remove(NODES[0], KEYSPACES[0], class, None, 9);
        ledger
    }

    #[test]
    fn a_damaged_hint_counts_as_one_of_the_oldest() {
        let class = HintClass::Ordinary;
        let mut ledger = without_a_damaged_one(class);
        ledger.remove(NODES[0], KEYSPACES[0], class, Some(10_000), 7);
        ledger.keep();
        assert_eq!(ledger.published().all(), BTreeMap::new());
    }

    #[test]
    fn a_damaged_hint_of_any_makes_no_other_one_younger() {
        let mut ledger = without_a_damaged_one(HintClass::Any);
        ledger.keep();
        let left = ledger.published().all()[&NODES[0]].any;
        assert!(left.oldest_ms.is_some_and(|it| it <= 10_000), "{left:?}");
    }

    /// What a ledger has to count.
    #[derive(Clone, Debug, Default)]
    struct There {
        hints: Vec<(NodeId, KeyspaceId, HintClass, u64, u64)>,
        marks: Vec<(NodeId, KeyspaceId)>,
    }

    impl There {
        fn kept(&self, counts: impl Fn(NodeId, KeyspaceId) -> bool) -> KeptHints {
            let of = |class| {
                let it = self.hints.iter().filter(|it| it.2 == class && counts(it.0, it.1));
                let oldest_ms = it.clone().map(|it| it.3 / AGE_STEP_MS * AGE_STEP_MS).min();
                let bytes = it.clone().map(|it| it.4).sum();
                HintSum { hints: it.count() as u64, bytes, oldest_ms }
            };
            let marks = self.marks.iter().filter(|it| counts(it.0, it.1)).count();
            let (ordinary, any) = (of(HintClass::Ordinary), of(HintClass::Any));
            KeptHints { ordinary, any, dirty_marks: marks as u64 }
        }
    }

    proptest! {
        /// Against a list of what is there, over groups that are not written, and restarts.
        #[test]
        fn counts_what_is_there(
            steps in proptest::collection::vec(
                (0..4_usize, 0..5_u8, 0..40_000_u64, 1..99_u64, 0..6_u8), 1..60)
        ) {
            let storage = MemoryStorage::new();
            let mut ledger = HintLedger::default();
            let (mut there, mut durable) = (There::default(), There::default());
            for (of, what, stamp_ms, bytes, end) in steps {
                let (target, keyspace) = (NODES[of % 2], KEYSPACES[of / 2]);
                let mark = DirtyMark { target, keyspace, token_prefix: 0 };
                match what {
                    0 | 1 => {
                        let class = [HintClass::Ordinary, HintClass::Any][usize::from(what)];
                        ledger.add(target, keyspace, class, stamp_ms, bytes);
                        there.hints.push((target, keyspace, class, stamp_ms, bytes));
                    }
                    2 if !there.hints.is_empty() => {
                        let at = of % there.hints.len();
                        let (target, keyspace, class, stamp_ms, bytes) = there.hints.remove(at);
                        ledger.remove(target, keyspace, class, Some(stamp_ms), bytes);
                    }
                    3 if bytes < 10 => {
                        ledger.forget_marks(target);
                        there.marks.retain(|it| it.0 != target);
                    }
                    3 if !there.marks.is_empty() => {
                        let (target, keyspace) = there.marks.remove(of % there.marks.len());
                        ledger.remove_mark(DirtyMark { target, keyspace, token_prefix: 0 });
                    }
                    _ => {
                        ledger.add_mark(mark);
                        there.marks.push((target, keyspace));
                    }
                }
                match end {
                    0 => {
                        ledger.undo();
                        there.clone_from(&durable);
                    }
                    1 | 2 => {
                        let mut batch = WriteBatch::new();
                        ledger.stage(&mut batch);
                        storage.write(&batch, Durability::Synced).unwrap();
                        ledger.keep();
                        durable.clone_from(&there);
                    }
                    _ => continue,
                }
                let reopened = HintLedger::load(&storage).unwrap();
                prop_assert_eq!(&reopened.counts, &ledger.counts);
                prop_assert_eq!(&reopened.sums, &ledger.sums);
                prop_assert_eq!(&reopened.totals, &ledger.totals);
                prop_assert_eq!(reopened.published().all(), ledger.published().all());
                let (found, by_keyspace) = (ledger.published(), ledger.published().by_keyspace());
                for target in NODES {
                    let kept = there.kept(|it, _| it == target);
                    prop_assert_eq!(found.of(target), kept);
                    prop_assert_eq!(ledger.ordinary_bytes(target), kept.ordinary.bytes);
                }
                for keyspace in KEYSPACES {
                    let kept = by_keyspace.get(&keyspace).copied().unwrap_or_default();
                    prop_assert_eq!(kept, there.kept(|_, it| it == keyspace));
                }
                prop_assert_eq!(ledger.any_bytes(), there.kept(|_, _| true).any.bytes);
            }
        }
    }
}
