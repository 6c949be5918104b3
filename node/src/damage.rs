//! Keys whose records are damaged on this node's disk, as they are met: by reads, exchanges, the commit
//! path and the scrub. In memory alone: what is forgotten is met again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::StorageKey;
use tokio::sync::Notify;

/// What is known of one damaged record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// A hash of the damaged bytes, once they were looked at.
    pub(crate) hash: Option<u64>,
    /// When the other replicas are to be asked, in microseconds since the node started.
    pub(crate) due_us: u64,
}

/// The damaged records of a node.
#[derive(Default)]
pub struct DamageBoard {
    keys: Mutex<BTreeMap<StorageKey, Damage>>,
    /// Rows under keys that are none, as the last pass of the scrub has counted them.
    unreadable: AtomicU64,
    /// Wakes who heals.
    pub(crate) noted: Notify,
}

/// Keys remembered at once, some tens of megabytes at most: a disk with more is to be replaced.
const KEYS_MAX: usize = 16_384;

impl DamageBoard {
    /// A key's record is damaged.
    pub(crate) fn note(&self, key: &StorageKey) {
        let mut keys = self.lock();
        if keys.len() < KEYS_MAX && !keys.contains_key(key) {
            keys.insert(key.clone(), Damage::default());
            self.noted.notify_one();
        }
    }

    /// Some keys that are due, in their order from behind `after` on.
    pub(crate) fn due(&self, now_us: u64, count: usize) -> Vec<(StorageKey, Damage)> {
        let keys = self.lock();
        let due = keys.iter().filter(|it| it.1.due_us <= now_us);
        due.take(count).map(|(key, damage)| (key.clone(), *damage)).collect()
    }

    /// Notes what was found out of a key, if it is still damaged.
    pub(crate) fn set(&self, key: &StorageKey, damage: Damage) {
        if let Some(known) = self.lock().get_mut(key) {
            *known = damage;
        }
    }

    /// A key's record is sound again, or not this node's any more.
    pub(crate) fn forget(&self, key: &StorageKey) {
        self.lock().remove(key);
    }

    /// How many records are known to be damaged.
    pub fn count(&self) -> u64 {
        u64::try_from(self.lock().len()).unwrap_or(u64::MAX)
    }

    /// Rows of which not even the key can be read, by the last pass of the scrub.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// A pass of the scrub has counted them.
    pub(crate) fn set_unreadable(&self, rows: u64) {
        self.unreadable.store(rows, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StorageKey, Damage>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use model::{Key, KeyspaceId};

    use super::*;

    fn key(number: usize) -> StorageKey {
        let key = Key::new(number.to_string());
        StorageKey::encode(KeyspaceId(1), key.token(), &key)
    }

    #[test]
    fn bounded_and_noted_once() {
        let board = DamageBoard::default();
        (0..=KEYS_MAX).for_each(|it| board.note(&key(it)));
        assert_eq!(board.count(), KEYS_MAX as u64);
        let waits = Damage { hash: Some(7), due_us: 50 };
        board.set(&key(3), waits);
        board.note(&key(3));
        assert!(
            board.due(50, KEYS_MAX).contains(&(key(3), waits)),
            "a second note changes nothing"
        );
        assert!(!board.due(49, KEYS_MAX).contains(&(key(3), waits)));
        board.forget(&key(3));
        board.set(&key(3), waits);
        assert_eq!(board.count(), KEYS_MAX as u64 - 1);
    }
}
