//! What this node holds for keys whose records are damaged at another replica (F9).

use bytes::Bytes;
use model::{Record, Refusal, StorageKey};
use proto::internal::{ExchangeAnswer, ExchangeHeld, HeldRecord};

use crate::shared::Shared;

/// Keys of one step.
pub(crate) const HELD_KEYS_MAX: usize = 64;
/// Bytes of one answer, after which the rest waits for another one.
const ANSWER_BYTES: usize = 256 << 10;

impl Shared {
    /// Answers from disk.
    pub(super) fn answer_held(&self, asked: &ExchangeHeld) -> Result<ExchangeAnswer, Refusal> {
        if asked.keys.len() > HELD_KEYS_MAX {
            return Err(Refusal::Overloaded);
        }
        let (mut answer, mut bytes) = (ExchangeAnswer::default(), 0);
        for key in &asked.keys {
            if bytes >= ANSWER_BYTES {
                break;
            }
            let key = StorageKey::parse(key.clone()).ok_or(Refusal::Failed)?;
            let held = self.held(&key);
            bytes += held.record.len();
            answer.held.push(held);
        }
        Ok(answer)
    }

    fn held(&self, key: &StorageKey) -> HeldRecord {
        let unknown = HeldRecord { unknown: true, ..HeldRecord::default() };
        let view = self.view.load();
        let replicas = view.keyspace_of_id(key.keyspace());
        let replicas = replicas.map(|it| it.replica_set(view.partition(key.token())));
        let is_replica =
            replicas.zip(view.own()).is_some_and(|(it, own)| it.replica(own).is_some());
        if !is_replica {
            return unknown;
        }
        match self.replica_blocking(key) {
            (Ok(record), floor) => HeldRecord {
                unknown: false,
                record: record.map_or_else(Bytes::new, Record::into_bytes),
                floor: floor.0,
            },
            (Err(_), _) => unknown,
        }
    }
}
