//! Puts right what a disk has done wrong, between two groups: nothing is staged then, and what trees say
//! is what storage holds.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use model::{KeyspaceId, PartitionIndex, Record, StorageKey, Token};
use xxhash_rust::xxh3::xxh3_64;

use super::Committer;
use crate::commit::{FloorChange, Healing, Mend, Mended, Origin, dues};
use crate::replica::{Stored, decode_stored};
use crate::storage::{Durability, RangeRequest, Space, Storage, StorageError, WriteBatch};

impl<S: Storage> Committer<S> {
    /// Does what has been asked for. On [`StorageError::Failed`] the node must stop.
    pub(super) fn mend_all(&mut self) -> Result<(), StorageError> {
        for mend in std::mem::take(&mut self.mends) {
            let (mended, done) = match mend {
                Mend::Leaf { keyspace, token, done } => (self.recount(keyspace, token), Some(done)),
                Mend::Record { key, by, done } => (self.heal(&key, by), Some(done)),
                Mend::Due { row, key } => (self.drop_due(&row, &key), None),
            };
            let mended = match mended {
                Err(StorageError::Corruption { .. }) => Ok(Mended::Unreadable),
                it => it,
            };
            let failed = mended.clone().err();
            done.into_iter().for_each(|it| it(mended.clone()));
            if let Some(error @ StorageError::Failed { .. }) = failed {
                self.failure = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// True if a round of purging must not be signed: a record was replaced since it was opened, maybe by
    /// an older one (F4).
    pub(super) fn is_barred(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
        change: FloorChange,
    ) -> bool {
        let healed = self.healed_below.get(&(keyspace, partition));
        matches!(change, FloorChange::Sign { up_to, .. } if healed.is_some_and(|it| up_to <= *it))
    }

    /// M6: makes a leaf again from its data, if it is not what they say.
    fn recount(&mut self, keyspace: KeyspaceId, token: Token) -> Result<Mended, StorageError> {
        let Some(trees) = &mut self.trees else { return Ok(Mended::Nothing) };
        let Some(recount) = trees.recount(&*self.storage, keyspace, token)? else {
            return Ok(Mended::Nothing);
        };
        if recount.before == recount.after {
            return Ok(Mended::Nothing);
        }
        let mut batch = WriteBatch::new();
        trees.write_recount(&recount, &mut batch);
        // As with leaves that are cut: not lost without what is written after it.
        self.storage.write(&batch, Durability::Buffered)?;
        trees.keep_recount(&recount);
        // Rows may be in memory that the disk has lost.
        self.storage.forget_rows();
        self.counters.leaves_recounted.fetch_add(1, Ordering::Relaxed);
        let (before, after) = (recount.before, recount.after);
        tracing::error!(?before, ?after, "a leaf of a Merkle tree was not what the data say");
        Ok(Mended::Done)
    }

    /// F9: replaces a damaged record.
    fn heal(&mut self, key: &StorageKey, by: Option<Box<Healing>>) -> Result<Mended, StorageError> {
        let Some(bytes) = self.on_disk(key)? else { return Ok(Mended::Nothing) };
        let in_memory = self.storage.get(Space::Data, key.as_bytes())?;
        let in_memory = in_memory.and_then(|it| decode_stored(key, it).ok());
        match (decode_stored(key, bytes.clone()), in_memory) {
            (Ok(on_disk), Some(in_memory)) if on_disk == in_memory => Ok(Mended::Nothing),
            // What memory holds was written last, and is what the tree counts; what it holds damaged was
            // damaged there.
            (Ok(stored), None) | (_, Some(stored)) => self.replace(key, Some(stored)),
            (Err(_), None) => {
                let damaged = xxh3_64(&bytes);
                match by.filter(|it| it.damaged == damaged && self.still_stands(key, it)) {
                    None => Ok(Mended::Damaged(damaged)),
                    Some(it) => self.inherit(key, it.heir.record, it.heir.floor, damaged),
                }
            }
        }
    }

    /// What the disk itself holds, past what is kept in memory before it.
    fn on_disk(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        let end = [key.as_bytes(), &[0][..]].concat().into();
        let request = RangeRequest {
            space: Space::Data,
            start: key.as_bytes().clone(),
            end: Some(end),
            reverse: false,
            rows_max: 1,
            bytes_max: 1,
        };
        Ok(self.storage.range(&request)?.rows.pop().map(|it| it.1))
    }

    /// False if the partition has been signed, or purged, since the others were asked.
    fn still_stands(&self, key: &StorageKey, healing: &Healing) -> bool {
        let now = self.floors.of(key.keyspace(), self.partition(key));
        let asked = healing.asked_at;
        (now.signed, now.signed_round, now.floor) == (asked.signed, asked.signed_round, asked.floor)
    }

    fn inherit(
        &mut self,
        key: &StorageKey,
        record: Option<Record>,
        floor: model::Hlc,
        damaged: u64,
    ) -> Result<Mended, StorageError> {
        let partition = self.partition(key);
        let own = self.floors.of(key.keyspace(), partition);
        let record = record.filter(|it| !it.purgeable_at(own.floor));
        let refused = record
            .as_ref()
            .and_then(|it| self.floors.refuse(key, partition, it, Origin::Held(floor)));
        if refused.is_some() {
            return Ok(Mended::Damaged(damaged));
        }
        // What was here before is not known any more, which proves nothing (P2).
        let stored = record.map(|it| Stored { previous: it.version().hlc, record: it });
        let mended = self.replace(key, stored)?;
        self.healed_below.insert((key.keyspace(), partition), own.fence);
        Ok(mended)
    }

    /// Puts a record in the place of one that may be damaged, and counts its leaf again in the same batch:
    /// nobody knows what it has counted for the one that goes.
    fn replace(
        &mut self,
        key: &StorageKey,
        stored: Option<Stored>,
    ) -> Result<Mended, StorageError> {
        let (keyspace, partition) = (key.keyspace(), self.partition(key));
        let was_sound = self.on_disk(key)?.and_then(|it| decode_stored(key, it).ok());
        let mut batch = WriteBatch::new();
        let recount = match &mut self.trees {
            None => None,
            Some(trees) => {
                let recount = trees.recount(&*self.storage, keyspace, key.token())?;
                recount.map(|mut it| {
                    if let Some(old) = &was_sound {
                        it.remove(trees.hash(key, &old.record));
                    }
                    if let Some(new) = &stored {
                        it.add(trees.hash(key, &new.record));
                    }
                    trees.write_recount(&it, &mut batch);
                    it
                })
            }
        };
        match &stored {
            None => batch.delete(Space::Data, key.as_bytes()),
            Some(it) => {
                dues::stage(&mut batch, key, partition, None, Some(&it.record));
                let value = [&it.record.as_bytes()[..], &it.trailer()];
                batch.put(Space::Data, key.as_bytes(), value);
            }
        }
        self.storage.write(&batch, self.settings.durability)?;
        if let (Some(trees), Some(recount)) = (&mut self.trees, &recount) {
            trees.keep_recount(recount);
            self.storage.forget_rows();
        }
        self.counters.records_healed.fetch_add(1, Ordering::Relaxed);
        let version = stored.map(|it| it.record.version());
        tracing::warn!(token = %key.token(), ?version, "a damaged record has been replaced");
        Ok(Mended::Done)
    }

    /// Removes a row of the index of what may be purged that stands for no record.
    fn drop_due(&mut self, row: &Bytes, key: &StorageKey) -> Result<Mended, StorageError> {
        let bytes = self.storage.get(Space::Data, key.as_bytes())?;
        let record = match bytes.map(|it| decode_stored(key, it)) {
            Some(Err(_)) => return Ok(Mended::Nothing),
            Some(Ok(stored)) => Some(stored.record),
            None => None,
        };
        let stands = record.and_then(|it| dues::row_of(key, self.partition(key), &it));
        if stands.as_ref() == Some(row) {
            return Ok(Mended::Nothing);
        }
        let mut batch = WriteBatch::new();
        batch.delete(Space::Dues, row);
        self.storage.write(&batch, Durability::Buffered)?;
        Ok(Mended::Done)
    }
}

#[cfg(test)]
mod tests;
