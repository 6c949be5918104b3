//! When records may go: an index of tombstones and expiring records by the floor that purges them. It
//! changes in the batch that changes the record, so a sweep reads what it removes and nothing else.
//!
//! A row is `keyspace (4) | partition (2) | due (8) | the storage key from its token on`, without a value.

use bytes::{BufMut, Bytes, BytesMut};
use model::{Hlc, KeyspaceId, PartitionIndex, Record, StorageKey};

use crate::storage::{RangeRequest, Space, Storage, StorageError, WriteBatch};

const KEYSPACE_BYTES: usize = 4;
const HEAD_BYTES: usize = KEYSPACE_BYTES + 2 + 8;

/// Moves a key's row, if it has or gets one.
pub(super) fn stage(
    batch: &mut WriteBatch,
    key: &StorageKey,
    partition: PartitionIndex,
    old: Option<&Record>,
    new: Option<&Record>,
) {
    let (old, new) = (old.and_then(Record::due), new.and_then(Record::due));
    if old == new {
        return;
    }
    if let Some(due) = old {
        batch.delete(Space::Dues, &row(key, partition, due));
    }
    if let Some(due) = new {
        batch.put(Space::Dues, &row(key, partition, due), []);
    }
}

/// The row of a record; `None` if it stays for ever.
pub(super) fn row_of(
    key: &StorageKey,
    partition: PartitionIndex,
    record: &Record,
) -> Option<Bytes> {
    record.due().map(|due| row(key, partition, due))
}

/// Removes the rows of a keyspace.
pub(super) fn drop_keyspace(batch: &mut WriteBatch, keyspace: KeyspaceId) {
    let start = keyspace.0.to_be_bytes();
    let end = StorageKey::prefix_end(&start).unwrap_or_else(|| Bytes::from_static(&[0xff; 32]));
    batch.delete_range(Space::Dues, &start, &end);
}

/// Some keys of a partition whose records may go at a floor, those behind a row of the index.
pub struct DuePage {
    /// The keys.
    pub keys: Vec<StorageKey>,
    /// The row of each.
    pub rows: Vec<Bytes>,
    /// The last row that was read, if there are more.
    pub next: Option<Bytes>,
}

/// Reads keys whose records may go.
pub fn due_keys(
    storage: &impl Storage,
    keyspace: KeyspaceId,
    partition: PartitionIndex,
    floor: Hlc,
    after: Option<&Bytes>,
    rows_max: usize,
) -> Result<DuePage, StorageError> {
    let start = match after {
        Some(row) => [row, &[0][..]].concat().into(),
        None => head(keyspace, partition, Hlc::ZERO),
    };
    let end = Some(head(keyspace, partition, floor.next()));
    let request =
        RangeRequest { space: Space::Dues, start, end, reverse: false, rows_max, bytes_max: PAGE };
    let page = storage.range(&request)?;
    let next = page.rows.last().filter(|_| page.more).map(|it| it.0.clone());
    let key = |row: &Bytes| {
        let rest = row.get(HEAD_BYTES..)?;
        StorageKey::parse([&row[..KEYSPACE_BYTES], rest].concat().into())
    };
    let due = page.rows.into_iter().filter_map(|it| Some((key(&it.0)?, it.0)));
    let (keys, rows) = due.unzip();
    Ok(DuePage { keys, rows, next })
}

/// Bytes of index rows read at a time.
const PAGE: usize = 1 << 20;

fn head(keyspace: KeyspaceId, partition: PartitionIndex, due: Hlc) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES);
    bytes.put_u32(keyspace.0);
    bytes.put_u16(partition.0);
    bytes.put_u64(due.0);
    bytes.freeze()
}

fn row(key: &StorageKey, partition: PartitionIndex, due: Hlc) -> Bytes {
    [&head(key.keyspace(), partition, due), &key.as_bytes()[KEYSPACE_BYTES..]].concat().into()
}
