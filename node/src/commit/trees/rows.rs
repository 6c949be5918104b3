//! The rows of [`Space::Trees`]: leaves, and the journal of their changes.
//!
//! A leaf: `keyspace (4) | first token (8)` -> `hash format (1) | bits (1) | records (4) | hash (16) |
//! CRC32C (4) of key and value`. The left one of two new leaves takes the row of the one that was cut.
//!
//! A row of the journal: `ff (5) | number (8)` -> `hash format (1) | number of the first row needed (8) |
//! changes | CRC32C (4) of key and value`, each change `keyspace (4) | first token (8) | bits (1) |
//! records (4) | hash (16)`. Bits of `ff` mean that the keyspace has been dropped.

use antientropy::merkle::{HASH_FORMAT, Leaf, TreeHash};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::{KeyspaceId, StorageKey, Token};

use super::LeafId;
use crate::storage::{Space, WriteBatch};

/// A row as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// A leaf; `None` if it is damaged or of another format.
    Leaf(LeafId, Option<Leaf>),
    /// A row of the journal by its number; `None` as above.
    Journal(u64, Option<JournalRow>),
}

/// A row of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JournalRow {
    /// The number of the first row that is needed beside the leaves.
    pub(super) first: u64,
    /// In their order.
    pub(super) changes: Vec<Change>,
}

/// What a row of the journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A leaf is now this one.
    Leaf(KeyspaceId, Leaf),
    /// A keyspace has no leaves any more.
    Dropped(KeyspaceId),
}

/// Puts a leaf.
pub(super) fn put_leaf(batch: &mut WriteBatch, keyspace: KeyspaceId, leaf: &Leaf) {
    let key = leaf_key(keyspace, leaf.first);
    let mut value = BytesMut::with_capacity(LEAF_VALUE_BYTES);
    value.put_u8(HASH_FORMAT);
    put_body(&mut value, leaf);
    value.put_u32(crc32c::crc32c_append(crc32c::crc32c(&key), &value));
    batch.put(Space::Trees, &key, [&value]);
}

/// Removes the leaves that begin within a range of tokens.
pub(super) fn delete_leaves(
    batch: &mut WriteBatch,
    keyspace: KeyspaceId,
    first: Token,
    last: Token,
) {
    let (start, end) = StorageKey::token_range(keyspace, first, last);
    let end = end.unwrap_or_else(|| Bytes::from_static(&JOURNAL_PREFIX));
    batch.delete_range(Space::Trees, &start, &end);
}

/// Puts a row of the journal.
pub(super) fn put_journal(batch: &mut WriteBatch, number: u64, first: u64, changes: &[Change]) {
    let key = journal_key(number);
    let mut value = BytesMut::with_capacity(1 + 8 + changes.len() * CHANGE_BYTES + 4);
    value.put_u8(HASH_FORMAT);
    value.put_u64(first);
    for change in changes {
        match change {
            Change::Leaf(keyspace, leaf) => {
                value.put_u32(keyspace.0);
                value.put_u64(leaf.first.0);
                put_body(&mut value, leaf);
            }
            Change::Dropped(keyspace) => {
                value.put_u32(keyspace.0);
                value.put_u64(0);
                value.put_u8(DROPPED);
                value.put_bytes(0, BODY_BYTES - 1);
            }
        }
    }
    value.put_u32(crc32c::crc32c_append(crc32c::crc32c(&key), &value));
    batch.put(Space::Trees, &key, [&value]);
}

/// Removes the rows of the journal from one number up to another one, exclusive.
pub(super) fn delete_journal(batch: &mut WriteBatch, first: u64, end: u64) {
    batch.delete_range(Space::Trees, &journal_key(first), &journal_key(end));
}

/// Reads a row; `None` if its key is none of these.
pub(super) fn parse(key: &[u8], value: &[u8]) -> Option<Row> {
    if let Some(number) = key.strip_prefix(&JOURNAL_PREFIX).filter(|it| it.len() == 8) {
        let number = u64::from_be_bytes(number.try_into().ok()?);
        return Some(Row::Journal(number, parse_journal(key, value)));
    }
    let (keyspace, first) = key.split_at_checked(4)?;
    let keyspace = KeyspaceId(u32::from_be_bytes(keyspace.try_into().ok()?));
    let first = Token(u64::from_be_bytes(first.try_into().ok()?));
    let leaf = body_of(key, value).and_then(|it| parse_body(first, it));
    Some(Row::Leaf((keyspace, first), leaf))
}

fn parse_journal(key: &[u8], value: &[u8]) -> Option<JournalRow> {
    let mut body = body_of(key, value)?;
    let first = body.try_get_u64().ok()?;
    let (changes, rest) = body.as_chunks::<CHANGE_BYTES>();
    let parsed = changes.iter().map(|change| {
        let mut change = &change[..];
        let (keyspace, first) = (KeyspaceId(change.get_u32()), Token(change.get_u64()));
        match change[0] {
            DROPPED => Some(Change::Dropped(keyspace)),
            _ => parse_body(first, change).map(|it| Change::Leaf(keyspace, it)),
        }
    });
    let changes = parsed.collect::<Option<Vec<_>>>().filter(|_| rest.is_empty())?;
    Some(JournalRow { first, changes })
}

/// A value without format and checksum, if these are right.
fn body_of<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (body, crc) = value.split_at_checked(value.len().checked_sub(4)?)?;
    let crc = u32::from_be_bytes(crc.try_into().ok()?);
    let sound = crc == crc32c::crc32c_append(crc32c::crc32c(key), body);
    body.strip_prefix(&[HASH_FORMAT]).filter(|_| sound)
}

fn put_body(value: &mut BytesMut, leaf: &Leaf) {
    value.put_u8(leaf.bits);
    value.put_u32(leaf.records);
    value.put_slice(&leaf.hash.to_bytes());
}

fn parse_body(first: Token, body: &[u8]) -> Option<Leaf> {
    let [bits @ 0..=64, rest @ ..] = body else { return None };
    let (records, hash) = rest.split_at_checked(4)?;
    let records = u32::from_be_bytes(records.try_into().ok()?);
    Some(Leaf { first, bits: *bits, records, hash: TreeHash::from_bytes(hash.try_into().ok()?) })
}

fn leaf_key(keyspace: KeyspaceId, first: Token) -> [u8; LEAF_KEY_BYTES] {
    let mut key = [0; LEAF_KEY_BYTES];
    key[..4].copy_from_slice(&keyspace.0.to_be_bytes());
    key[4..].copy_from_slice(&first.0.to_be_bytes());
    key
}

fn journal_key(number: u64) -> [u8; JOURNAL_PREFIX.len() + 8] {
    let mut key = [0xff; JOURNAL_PREFIX.len() + 8];
    key[JOURNAL_PREFIX.len()..].copy_from_slice(&number.to_be_bytes());
    key
}

const LEAF_KEY_BYTES: usize = 4 + 8;
const BODY_BYTES: usize = 1 + 4 + 16;
const LEAF_VALUE_BYTES: usize = 1 + BODY_BYTES + 4;
const CHANGE_BYTES: usize = 4 + 8 + BODY_BYTES;
/// Behind all leaves: no keyspace has the last id.
const JOURNAL_PREFIX: [u8; 5] = [0xff; 5];
const DROPPED: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{Durability, RangeRequest, Storage};

    fn leaf() -> Leaf {
        Leaf { first: Token(5 << 60), bits: 4, records: 7, hash: TreeHash::from_bytes([9; 16]) }
    }

    fn rows(batch: &WriteBatch) -> Vec<(Bytes, Bytes)> {
        let storage = MemoryStorage::new();
        storage.write(batch, Durability::Synced).unwrap();
        storage.range(&RangeRequest::prefix(Space::Trees, "")).unwrap().rows
    }

    #[test]
    fn rows_are_read_as_they_were_written_and_damage_is_seen() {
        let keyspace = KeyspaceId(3);
        let changes = [Change::Dropped(KeyspaceId(2)), Change::Leaf(keyspace, leaf())];
        let mut batch = WriteBatch::new();
        put_leaf(&mut batch, keyspace, &leaf());
        put_journal(&mut batch, 11, 4, &changes);
        let rows = rows(&batch);
        let [under_key, journal] = &rows[..] else { panic!("{rows:?}") };
        let id = (keyspace, leaf().first);
        assert_eq!(parse(&under_key.0, &under_key.1), Some(Row::Leaf(id, Some(leaf()))));
        let row = JournalRow { first: 4, changes: changes.to_vec() };
        assert_eq!(parse(&journal.0, &journal.1), Some(Row::Journal(11, Some(row))));
        for (key, value) in &rows {
            for bit in 0..value.len() * 8 {
                let mut damaged = value.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let row = parse(key, &damaged);
                let damaged = [Row::Leaf(id, None), Row::Journal(11, None)];
                assert!(row.is_some_and(|it| damaged.contains(&it)), "bit {bit}");
            }
            assert_eq!(parse(&[&key[..], &[1]].concat(), value), None);
        }
        assert_eq!(parse(&under_key.0, b""), Some(Row::Leaf(id, None)));
    }

    #[test]
    fn only_what_is_meant_is_removed() {
        let mut batch = WriteBatch::new();
        for keyspace in [1, 2, u32::MAX - 1] {
            put_leaf(&mut batch, KeyspaceId(keyspace), &leaf());
        }
        (0..6).for_each(|it| put_journal(&mut batch, it, 0, &[]));
        delete_leaves(&mut batch, KeyspaceId(2), Token(0), Token(u64::MAX));
        delete_leaves(&mut batch, KeyspaceId(u32::MAX - 1), Token(0), Token(u64::MAX));
        delete_journal(&mut batch, 1, 4);
        let left: Vec<_> = rows(&batch).iter().filter_map(|it| parse(&it.0, &it.1)).collect();
        let row = Some(JournalRow { first: 0, changes: Vec::new() });
        let journal = [0, 4, 5].map(|it| Row::Journal(it, row.clone()));
        let under_key = Row::Leaf((KeyspaceId(1), leaf().first), Some(leaf()));
        assert_eq!(left, [&[under_key][..], &journal].concat());
    }
}
