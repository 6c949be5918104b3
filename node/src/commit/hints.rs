//! Hints on disk: writes kept for replicas that are away, and what replaces them past the bound.
//!
//! An accelerator, never a promise (rule H1): the exchange alone makes replicas agree. A hint's key
//! is `target (16) | storage key`, its value the record. How many bytes a target's hints hold is
//! written in the batch that changes them, so that opening needs no scan.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use model::{KeyspaceId, NodeId, Record, StorageKey, Token};

use crate::storage::{RangePage, RangeRequest, Space, Storage, StorageError, WriteBatch};

const TARGET_BYTES: usize = 16;
const BYTES_PREFIX: &[u8] = b"\0hint-bytes/";
const DIRTY_PREFIX: &[u8] = b"\0dirty/";

/// A write kept for a replica that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The key.
    pub key: StorageKey,
    /// The record, checked.
    pub record: Record,
}

/// Some of a target's hints, in key order.
#[derive(Clone, Debug, Default)]
pub struct HintPage {
    /// The hints.
    pub hints: Vec<Hint>,
    /// Keys whose hint is damaged. Dropping it, with any version, leaves a dirty mark instead.
    pub damaged: Vec<StorageKey>,
    /// The key to go on after; `None` at the end.
    pub next: Option<StorageKey>,
}

/// Reads up to `rows_max` hints of a target, behind the key `after`, and about a megabyte at most.
pub fn hints_for(
    storage: &impl Storage,
    target: NodeId,
    after: Option<&StorageKey>,
    rows_max: usize,
) -> Result<HintPage, StorageError> {
    let mut request = RangeRequest::prefix(Space::Hints, target.to_bytes().to_vec());
    (request.rows_max, request.bytes_max) = (rows_max, PAGE_BYTES_MAX);
    if let Some(after) = after {
        let start = [&target.to_bytes()[..], after.as_bytes(), &[0]].concat();
        request.start = start.into();
    }
    let RangePage { rows, more } = storage.range(&request)?;
    let mut page = HintPage::default();
    for (row, value) in rows {
        let key = StorageKey::parse(row.slice(TARGET_BYTES..)).ok_or_else(|| malformed(&row))?;
        page.next = more.then(|| key.clone());
        match Record::check(&key, value) {
            Ok(record) => page.hints.push(Hint { key, record }),
            Err(_) => page.damaged.push(key),
        }
    }
    Ok(page)
}

const PAGE_BYTES_MAX: usize = 1 << 20;

/// A durable note that a target may lack writes in one part of the ring: compare this first. The
/// part is 1/65,536 of the ring, so it lies within one partition of any cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirtyMark {
    /// Who may lack writes.
    pub target: NodeId,
    /// In which keyspace.
    pub keyspace: KeyspaceId,
    /// The highest 16 bits of the tokens.
    pub token_prefix: u16,
}

impl DirtyMark {
    /// The mark that covers a key.
    pub fn of(target: NodeId, key: &StorageKey) -> Self {
        let [high, low, ..] = key.token().0.to_be_bytes();
        Self { target, keyspace: key.keyspace(), token_prefix: u16::from_be_bytes([high, low]) }
    }

    /// The first token covered.
    pub fn first_token(self) -> Token {
        Token(u64::from(self.token_prefix) << 48)
    }

    pub(super) fn system_key(self) -> Bytes {
        let mut key = BytesMut::from(&target_key(DIRTY_PREFIX, self.target)[..]);
        key.put_u32(self.keyspace.0);
        key.put_u16(self.token_prefix);
        key.freeze()
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let body = key.strip_prefix(DIRTY_PREFIX)?;
        let (target, rest) = body.split_at_checked(TARGET_BYTES)?;
        let (keyspace, token_prefix) = rest.split_at_checked(4)?;
        Some(Self {
            target: NodeId::from_slice(target)?,
            keyspace: KeyspaceId(u32::from_be_bytes(keyspace.try_into().ok()?)),
            token_prefix: u16::from_be_bytes(token_prefix.try_into().ok()?),
        })
    }
}

/// The dirty marks of a target, in ring order per keyspace.
pub fn dirty_marks(storage: &impl Storage, target: NodeId) -> Result<Vec<DirtyMark>, StorageError> {
    let request = RangeRequest::prefix(Space::System, target_key(DIRTY_PREFIX, target));
    let rows = storage.range(&request)?.rows;
    rows.iter().map(|(key, _)| DirtyMark::parse(key).ok_or_else(|| malformed(key))).collect()
}

/// The key of a hint.
pub(super) fn hint_key(target: NodeId, key: &StorageKey) -> Bytes {
    let mut bytes = BytesMut::with_capacity(TARGET_BYTES + key.as_bytes().len());
    bytes.put_slice(&target.to_bytes());
    bytes.put_slice(key.as_bytes());
    bytes.freeze()
}

/// Bytes that a hint counts for, of its key and its record.
pub(super) fn hint_bytes(key: &[u8], record: &[u8]) -> u64 {
    // Some bytes more than the strings: many small hints must not look free.
    u64::try_from(key.len() + record.len() + 64).unwrap_or(u64::MAX)
}

/// How many bytes of hints each target has, in memory and, with each group, on disk.
#[derive(Debug, Default)]
pub(super) struct HintLedger {
    bytes: BTreeMap<NodeId, u64>,
    /// What this group's targets had before it.
    before: BTreeMap<NodeId, u64>,
}

impl HintLedger {
    pub(super) fn load(storage: &impl Storage) -> Result<Self, StorageError> {
        let rows = storage.range(&RangeRequest::prefix(Space::System, BYTES_PREFIX))?.rows;
        let mut ledger = Self::default();
        for (key, value) in rows {
            let target = NodeId::from_slice(&key[BYTES_PREFIX.len()..]);
            let bytes = value[..].try_into().map(u64::from_be_bytes);
            let (Some(target), Ok(bytes)) = (target, bytes) else { return Err(malformed(&key)) };
            ledger.bytes.insert(target, bytes);
        }
        Ok(ledger)
    }

    /// The bytes of a target's hints.
    pub(super) fn bytes(&self, target: NodeId) -> u64 {
        self.bytes.get(&target).copied().unwrap_or(0)
    }

    pub(super) fn change(&mut self, target: NodeId, removed: u64, added: u64) {
        let bytes = self.bytes(target);
        self.before.entry(target).or_insert(bytes);
        self.bytes.insert(target, bytes.saturating_sub(removed) + added);
    }

    /// Adds the group's changes to its batch.
    pub(super) fn stage(&self, batch: &mut WriteBatch) {
        for target in self.before.keys() {
            let key = target_key(BYTES_PREFIX, *target);
            match self.bytes(*target) {
                0 => batch.delete(Space::System, &key),
                bytes => batch.put(Space::System, &key, [&bytes.to_be_bytes()]),
            }
        }
    }

    /// The group is durable.
    pub(super) fn keep(&mut self) {
        self.before.clear();
    }

    /// The group was not written.
    pub(super) fn undo(&mut self) {
        self.bytes.append(&mut self.before);
    }
}

fn target_key(prefix: &[u8], target: NodeId) -> Bytes {
    [prefix, &target.to_bytes()].concat().into()
}

fn malformed(key: &[u8]) -> StorageError {
    StorageError::Corruption { message: format!("no hint bookkeeping has the key {key:02x?}") }
}

#[cfg(test)]
mod tests {
    use model::Key;

    use super::*;

    #[test]
    fn dirty_marks_round_trip_and_are_frozen() {
        let key = Key::new(&b"a"[..]);
        let key = StorageKey::encode(KeyspaceId(7), key.token(), &key);
        let mark = DirtyMark::of(NodeId(3), &key);
        assert_eq!(mark.first_token().0 >> 48, key.token().0 >> 48);
        let expected =
            [b"\0dirty/", &[0; 15][..], &[3, 0, 0, 0, 7], &key.as_bytes()[4..6]].concat();
        assert_eq!(mark.system_key(), expected);
        assert_eq!(DirtyMark::parse(&expected), Some(mark));
        assert_eq!(DirtyMark::parse(&expected[..expected.len() - 1]), None);
    }

    #[test]
    fn the_ledger_forgets_a_group_that_was_not_written() {
        let mut ledger = HintLedger::default();
        ledger.change(NodeId(1), 0, 100);
        ledger.keep();
        ledger.change(NodeId(1), 0, 10);
        ledger.change(NodeId(1), 100, 0);
        ledger.change(NodeId(2), 0, 7);
        let mut batch = WriteBatch::new();
        ledger.stage(&mut batch);
        assert_eq!((batch.len(), ledger.bytes(NodeId(1)), ledger.bytes(NodeId(2))), (2, 10, 7));
        ledger.undo();
        assert_eq!((ledger.bytes(NodeId(1)), ledger.bytes(NodeId(2))), (100, 0));
    }
}
