//! What a group is judged against.

use std::error::Error;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use model::{Mutant, Refusal, StorageKey};

use super::Committer;
use crate::replica::{Stored, decode_stored};
use crate::storage::{Space, Storage, StorageError};

impl<S: Storage> Committer<S> {
    /// What is stored for a key, the group's earlier items included.
    pub(super) fn stored(&self, hash: u64, key: &StorageKey) -> Result<Option<Stored>, Refusal> {
        if let Some(stored) = self.group.records.get(hash, key.as_bytes())
            && !Mutant::GroupJudgedBlindly.is_on()
        {
            return Ok(stored.clone());
        }
        let bytes = self.read(Space::Data, key.as_bytes())?;
        let stored = bytes.map(|it| decode_stored(key, it)).transpose();
        stored.map_err(|error| {
            self.settings.damage.note(key);
            self.note_corrupt(key.as_bytes(), &error)
        })
    }

    pub(super) fn read(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Refusal> {
        if self.failure.is_some() {
            return Err(Refusal::Failed);
        }
        self.storage.get(space, key).map_err(|error| match error {
            StorageError::Corruption { .. } => self.note_corrupt(key, &error),
            StorageError::Full { .. } | StorageError::Failed { .. } => {
                tracing::error!(%error, "the stored version could not be read");
                Refusal::Failed
            }
        })
    }

    pub(super) fn note_corrupt(&self, key: &[u8], error: &(dyn Error + 'static)) -> Refusal {
        self.counters.corrupt.fetch_add(1, Ordering::Relaxed);
        let key = key.escape_ascii();
        tracing::error!(%key, error, "stored bytes are damaged; the key is left as it is");
        Refusal::Corrupt
    }
}
