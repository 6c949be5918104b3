//! Hints on disk: writes kept for replicas that are away.
//!
//! An accelerator, never a promise (rule H1), but for those of ANY, which may be the only copy of an
//! acknowledged write. A hint's key is `target (16) | storage key`, its value `class (1) | record`.
//! How many there are of each target, how large and how old, is the ledger's business.

use bytes::{BufMut, Bytes, BytesMut};
use model::{NodeId, Record, StorageKey};

use crate::storage::{RangePage, RangeRequest, Space, Storage, StorageError};

const TARGET_BYTES: usize = 16;

/// What may become of a hint that cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HintClass {
    /// Others hold the write, or nobody was told that it happened: a dirty mark may take its place.
    Ordinary,
    /// A write at ANY was acknowledged for it, alone: it stays until a replica has it (CE24).
    Any,
}

impl HintClass {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Ordinary => 0,
            Self::Any => 1,
        }
    }

    /// A byte that nobody has written is taken for the class that is not given up.
    fn of_byte(byte: u8) -> Self {
        if byte == 0 { Self::Ordinary } else { Self::Any }
    }
}

/// A write kept for a replica that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The key.
    pub key: StorageKey,
    /// The record, checked.
    pub record: Record,
    /// What may become of it.
    pub class: HintClass,
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
        let Some(key) = StorageKey::parse(row.slice(TARGET_BYTES..)) else {
            // It is nobody's, and those behind it are.
            tracing::error!(error = %malformed(&row), "a hint has a damaged key");
            continue;
        };
        page.next = more.then(|| key.clone());
        match decode_hint(&key, value) {
            (class, Some(record)) => page.hints.push(Hint { key, record, class }),
            (_, None) => page.damaged.push(key),
        }
    }
    Ok(page)
}

const PAGE_BYTES_MAX: usize = 1 << 20;

/// A hint's class and, if it is sound, its record.
pub(super) fn decode_hint(key: &StorageKey, mut value: Bytes) -> (HintClass, Option<Record>) {
    if value.is_empty() {
        return (HintClass::Ordinary, None);
    }
    let class = HintClass::of_byte(value.split_to(1)[0]);
    (class, Record::check(key, value).ok())
}

/// The key of a hint.
pub(super) fn hint_key(target: NodeId, key: &StorageKey) -> Bytes {
    let mut bytes = BytesMut::with_capacity(TARGET_BYTES + key.as_bytes().len());
    bytes.put_slice(&target.to_bytes());
    bytes.put_slice(key.as_bytes());
    bytes.freeze()
}

/// Bytes that the hint of a row counts for, with a record of so many bytes.
pub(super) fn hint_bytes(row_bytes: usize, record_bytes: usize) -> u64 {
    // Some bytes more than the strings: many small hints must not look free.
    u64::try_from(row_bytes + 1 + record_bytes + 64).unwrap_or(u64::MAX)
}

/// Bytes that a hint of a key counts for, with a record of so many bytes.
pub fn hint_bytes_of(key: &StorageKey, record_bytes: usize) -> u64 {
    hint_bytes(TARGET_BYTES + key.as_bytes().len(), record_bytes)
}

pub(super) fn malformed(key: &[u8]) -> StorageError {
    StorageError::Corruption { message: format!("no hint bookkeeping has the key {key:02x?}") }
}
