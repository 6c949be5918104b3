//! Reads of this node's own storage, each record verified.

use bytes::Bytes;
use model::{Hlc, KeyspaceId, Mutant, Record, Refusal, StorageKey, Token};

use crate::{
    counters::Counters,
    replica::decode_stored,
    shared::Shared,
    storage::{RangeRequest, Space, StorageError, TryGet},
};

/// A read that may have to wait for the disk.
pub enum LocalRead {
    /// What is here.
    Here(Result<Option<Record>, Refusal>),
    /// Only the disk knows: ask again where blocking is allowed.
    WouldBlock,
}

/// What this node holds of a key, and its floor then.
pub(crate) type ReadAt = (Result<Option<Record>, Refusal>, Hlc);

/// One page of a range, verified.
pub struct LocalRange {
    /// Storage keys and records.
    pub rows: Vec<(Bytes, Record)>,
    /// True if the range was read to its end.
    pub complete: bool,
}

impl Shared {
    /// Reads a key if that needs no disk.
    pub fn read_inline(&self, key: &StorageKey) -> LocalRead {
        match self.world.storage.try_get(Space::Data, key.as_bytes()) {
            Ok(TryGet::Hit(bytes)) => LocalRead::Here(self.present(key, bytes)),
            Ok(TryGet::Absent) => LocalRead::Here(Ok(None)),
            Ok(TryGet::WouldBlock) => LocalRead::WouldBlock,
            Err(error) => LocalRead::Here(Err(self.read_error(&error))),
        }
    }

    /// Reads a key, from disk if need be.
    pub fn read_blocking(&self, key: &StorageKey) -> Result<Option<Record>, Refusal> {
        match self.world.storage.get(Space::Data, key.as_bytes()) {
            Ok(Some(bytes)) => self.present(key, bytes),
            Ok(None) => Ok(None),
            Err(error) => Err(self.read_error(&error)),
        }
    }

    /// Reads a range, from disk if need be; records that are gone may be among it. One damaged record refuses the page: it is never
    /// answered as if the key were absent.
    pub fn range_blocking(&self, request: &RangeRequest) -> Result<LocalRange, Refusal> {
        let page = self.world.storage.range(request).map_err(|error| self.read_error(&error))?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for (key, bytes) in page.rows {
            let storage_key = StorageKey::parse(key.clone()).ok_or_else(|| {
                Counters::count(&self.counters.checksum_failures);
                Refusal::Corrupt
            })?;
            rows.push((key, self.verified(&storage_key, bytes)?));
        }
        Ok(LocalRange { rows, complete: !page.more })
    }

    fn present(&self, key: &StorageKey, bytes: Bytes) -> Result<Option<Record>, Refusal> {
        let record = self.verified(key, bytes);
        if record.is_err() && Mutant::CorruptIsAbsent.is_on() {
            return Ok(None);
        }
        record.map(|it| Some(it).filter(|it| !self.is_purged(key, it)))
    }

    /// Reads this replica's record of a key if that needs no disk, and the floor at which that was.
    pub(crate) fn replica_inline(&self, key: &StorageKey) -> (LocalRead, Hlc) {
        let refused = |refusal| (LocalRead::Here(Err(refusal)), Hlc::ZERO);
        self.at_floor(key, || self.read_inline(key)).unwrap_or_else(refused)
    }

    /// Reads this replica's record of a key, from disk if need be, and the floor at which that was.
    pub(crate) fn replica_blocking(&self, key: &StorageKey) -> ReadAt {
        let refused = |refusal| (Err(refusal), Hlc::ZERO);
        self.at_floor(key, || self.read_blocking(key)).unwrap_or_else(refused)
    }

    /// Reads by `read`, and the floor at which that was: one that rises meanwhile would vouch for what is
    /// overwritten by now. An error if what this replica holds does not count (F7, F13).
    fn at_floor<T>(&self, key: &StorageKey, read: impl Fn() -> T) -> Result<(T, Hlc), Refusal> {
        loop {
            let floor = self.readable_at(key.keyspace(), key.token())?;
            let done = read();
            if self.readable_at(key.keyspace(), key.token())? == floor {
                return Ok((done, floor));
            }
        }
    }

    /// The floor of a token's partition, if what this replica holds of it counts.
    pub(crate) fn readable_at(&self, keyspace: KeyspaceId, token: Token) -> Result<Hlc, Refusal> {
        let partition = self.trees.partition_of(token).ok_or(Refusal::NotReady)?;
        self.floors.readable(keyspace, partition)
    }

    /// The floor of a key's partition.
    fn floor_of(&self, key: &StorageKey) -> Hlc {
        let partition = self.trees.partition_of(key.token());
        partition.map_or(Hlc::ZERO, |it| self.floors.of(key.keyspace(), it).floor)
    }

    /// True for a record that is gone (F6), whether or not it has been removed yet.
    fn is_purged(&self, key: &StorageKey, record: &Record) -> bool {
        record.due().is_some_and(|due| due <= self.floor_of(key))
    }

    fn verified(&self, key: &StorageKey, bytes: Bytes) -> Result<Record, Refusal> {
        decode_stored(key, bytes).map(|it| it.record).map_err(|error| {
            Counters::count(&self.counters.checksum_failures);
            self.damage.note(key);
            tracing::error!(token = %key.token(), %error, "a stored record is damaged");
            Refusal::Corrupt
        })
    }

    /// What an error of the storage means for whoever asked.
    pub(crate) fn read_error(&self, error: &StorageError) -> Refusal {
        match error {
            StorageError::Corruption { .. } => {
                Counters::count(&self.counters.checksum_failures);
                tracing::error!(%error, "storage cannot read");
                Refusal::Corrupt
            }
            StorageError::Full { .. } | StorageError::Failed { .. } => {
                self.fail(error);
                Refusal::Failed
            }
        }
    }
}
