//! One page of a scan: the replicas' pages of a key range merged. Rules: docs/protocol.md, S1 to S4.
//!
//! Decides up to where the pages together say anything, which record of a key is the newest, and
//! whether that is already certain. Never asks a replica: a row that is not settled needs a `Read`.

use std::cmp::Ordering;

use bytes::Bytes;
use model::{
    Hlc, Mutant, ReadTally, Record, ReplicaIndex, ReplicaMask, Requirement, ScopeRequirement,
    Version,
};

/// In which order a scan walks its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    /// From the smallest key up.
    #[default]
    Forward,
    /// From the greatest key down.
    Reverse,
}

impl Direction {
    /// How two keys follow each other in this direction.
    pub fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            Self::Forward => a.cmp(b),
            Self::Reverse => b.cmp(a),
        }
    }
}

/// How far a page speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Covered {
    /// To the end of the range.
    End,
    /// Up to this storage key, inclusive; the next page starts right behind it.
    To(Bytes),
}

impl Covered {
    /// True if the page says whether a key has a record.
    pub fn includes(&self, direction: Direction, key: &[u8]) -> bool {
        match self {
            Self::End => true,
            Self::To(last) => direction.compare(key, last) != Ordering::Greater,
        }
    }
}

/// What one replica holds of a range, from its start to `covered_to`: every record, tombstones and
/// expired ones too.
#[derive(Clone, Debug)]
pub struct ReplicaPage {
    /// Who answers.
    pub from: ReplicaIndex,
    /// Storage keys and their records.
    pub rows: Vec<(Bytes, Record)>,
    /// How far the page speaks.
    pub covered_to: Covered,
    /// The replica's clock.
    pub clock: Hlc,
    /// The replica's floor (F8).
    pub floor: Hlc,
}

/// How much a merged page may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Keys, deleted and expired ones too. At least 1.
    pub rows_max: usize,
    /// Bytes of storage keys and records; a page holds one row even beyond them.
    pub bytes_max: usize,
}

/// A key of the merged page, and the newest of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedRow {
    /// The storage key.
    pub key: Bytes,
    /// The newest record, be it a tombstone or expired.
    pub newest: Record,
    /// True if the row can be answered as it is; otherwise a `Read` of its key has to confirm it.
    pub settled: bool,
    /// The replicas that hold an older record or none.
    pub stale: ReplicaMask,
}

/// What the replicas together say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedPage {
    /// The rows in the order of the scan. Absent keys of the part covered are absent from here.
    pub rows: Vec<MergedRow>,
    /// How far the page speaks: as far as all of its parts (S2), and no further than its limits. What
    /// replicas sent beyond is left out, and comes again with the next page.
    pub covered_to: Covered,
}

/// Merges pages of one range, one from each of the replicas that were asked.
///
/// A row is settled if its level is below quorum, or if a quorum of every scope holds exactly its
/// newest version and none of the replicas has seen a clock at which it expires later than at
/// `read_at`, the clock that the requests carried (G1, G3).
///
/// Pages that hold different rows of the same part make up a longer one, which is cut at `limits`.
///
/// Panics unless the pages' replicas satisfy the requirement, each with one page.
pub fn merge_pages(
    requirement: &Requirement,
    direction: Direction,
    read_at: Hlc,
    limits: PageLimits,
    pages: Vec<ReplicaPage>,
) -> MergedPage {
    let mut answered = ReplicaMask::EMPTY;
    for page in &pages {
        assert!(answered.insert(page.from), "two pages of {:?}", page.from);
    }
    let satisfied = |it: &ScopeRequirement| it.count(answered) >= it.required;
    assert!(requirement.scopes().iter().all(satisfied), "{answered:?} for {requirement:?}");

    let clock = pages.iter().map(|it| it.clock).max().unwrap_or_default();
    let floor = pages.iter().map(|it| it.floor).max().unwrap_or_default();
    let weighed_to = (pages.iter().any(|it| it.floor != floor)).then_some(floor);
    let mut covered_to = common_bound(direction, &pages);
    let mut rows: Vec<(Bytes, ReplicaIndex, Record)> = Vec::new();
    for page in pages {
        let covered = page.rows.into_iter().filter(|it| covered_to.includes(direction, &it.0));
        rows.extend(covered.map(|(key, record)| (key, page.from, record)));
    }
    rows.sort_by(|a, b| direction.compare(&a.0, &b.0).then(a.1.cmp(&b.1)));

    let judge = Judge { requirement, answered, read_at, clock, weighed_to };
    let mut merged: Vec<MergedRow> = Vec::new();
    let mut bytes = 0;
    for records in rows.chunk_by(|a, b| a.0 == b.0) {
        let row = judge.row(records);
        bytes += row.key.len() + row.newest.as_bytes().len();
        if let Some(last) = merged.last()
            && (merged.len() >= limits.rows_max || bytes > limits.bytes_max)
            && !Mutant::ScanBeyondCovered.is_on()
        {
            covered_to = Covered::To(last.key.clone());
            break;
        }
        merged.push(row);
    }
    MergedPage { rows: merged, covered_to }
}

/// The nearest of the pages' ends.
fn common_bound(direction: Direction, pages: &[ReplicaPage]) -> Covered {
    let ends = pages.iter().filter_map(|it| match &it.covered_to {
        Covered::End => None,
        Covered::To(key) => Some(key),
    });
    let nearest_first = |a: &&Bytes, b: &&Bytes| match Mutant::ScanBeyondCovered.is_on() {
        true => direction.compare(b, a),
        false => direction.compare(a, b),
    };
    ends.min_by(nearest_first).map_or(Covered::End, |it| Covered::To(it.clone()))
}

struct Judge<'a> {
    requirement: &'a Requirement,
    answered: ReplicaMask,
    read_at: Hlc,
    clock: Hlc,
    /// With pages of different floors: up to here versions have to be weighed, by a read (F8).
    weighed_to: Option<Hlc>,
}

impl Judge<'_> {
    /// Merges the records that replicas hold of one key.
    fn row(&self, records: &[(Bytes, ReplicaIndex, Record)]) -> MergedRow {
        let (key, first, newest) = &records[0];
        let mut newest = newest;
        let mut tally = ReadTally::default();
        tally.record(*first, newest.version());
        for (_, from, record) in &records[1..] {
            if tally.record(*from, record.version()) {
                newest = record;
            }
        }
        let silent = self.answered.without(tally.answered());
        for it in silent.iter() {
            tally.record(it, Version::ABSENT);
        }

        let expires = !newest.expired_at(self.read_at) && newest.expired_at(self.clock);
        let confirmed = tally.is_confirmed(self.requirement) && !expires;
        let weighs = |it: &Record| self.weighed_to.is_some_and(|floor| it.version().hlc <= floor);
        let apart = records.iter().any(|it| weighs(&it.2));
        let unordered = !self.requirement.is_ordered() || Mutant::ScanUnconfirmed.is_on();
        let settled = (confirmed || unordered) && !apart;
        MergedRow { key: key.clone(), newest: newest.clone(), settled, stale: tally.stale() }
    }
}

#[cfg(test)]
mod tests;
