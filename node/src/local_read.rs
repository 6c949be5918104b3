//! Reads of this node's own storage, each record verified.

use bytes::Bytes;
use model::{Mutant, Record, Refusal, StorageKey};

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

    /// Reads a range, from disk if need be. One damaged record refuses the page: it is never
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
        record.map(Some)
    }

    fn verified(&self, key: &StorageKey, bytes: Bytes) -> Result<Record, Refusal> {
        decode_stored(key, bytes).map(|it| it.record).map_err(|error| {
            Counters::count(&self.counters.checksum_failures);
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
