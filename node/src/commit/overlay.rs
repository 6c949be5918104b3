//! What the items of one group have made of the keys they touched: the second write of a key must
//! see the first, which no reader sees yet.
//!
//! A small open-addressed table that keeps its memory from group to group. Keys arrive hashed; the
//! order of nothing depends on it.

use bytes::Bytes;

/// The latest state of each key touched so far by the group.
pub(super) struct Overlay<V> {
    /// Positions in `entries`, plus one; zero is free. A power of two, at most half full.
    slots: Vec<u32>,
    entries: Vec<Entry<V>>,
}

struct Entry<V> {
    hash: u64,
    key: Bytes,
    value: V,
}

/// What an emptied overlay keeps at most.
const KEPT_ENTRIES_MAX: usize = 4_096;

impl<V> Overlay<V> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), entries: Vec::new() }
    }

    /// The state of a key, if the group has touched it.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<&V> {
        let at = self.find(hash, key).ok()?;
        Some(&self.entries[at].value)
    }

    /// Notes the new state of a key.
    pub(super) fn set(&mut self, hash: u64, key: &Bytes, value: V) {
        if self.slots.len() < 2 * (self.entries.len() + 1) {
            self.grow();
        }
        match self.find(hash, key) {
            Ok(at) => self.entries[at].value = value,
            Err(slot) => {
                self.entries.push(Entry { hash, key: key.clone(), value });
                self.slots[slot] = position(self.entries.len());
            }
        }
    }

    /// Forgets the group.
    pub(super) fn clear(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        self.entries.clear();
        self.entries.shrink_to(KEPT_ENTRIES_MAX);
        self.slots.truncate(4 * KEPT_ENTRIES_MAX);
        self.slots.shrink_to(4 * KEPT_ENTRIES_MAX);
        self.slots.fill(0);
    }

    /// The key's entry, or else the slot where it belongs.
    fn find(&self, hash: u64, key: &[u8]) -> Result<usize, usize> {
        if self.slots.is_empty() {
            return Err(0);
        }
        let mask = self.slots.len() - 1;
        let mut slot = usize::try_from(hash & mask as u64).expect("masked by a usize");
        loop {
            let Some(at) = self.slots[slot].checked_sub(1) else { return Err(slot) };
            let at = at as usize;
            let entry = &self.entries[at];
            if entry.hash == hash && entry.key == key {
                return Ok(at);
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let wanted = (4 * (self.entries.len() + 1)).next_power_of_two().max(64);
        self.slots.clear();
        self.slots.resize(wanted, 0);
        let mask = wanted - 1;
        for (at, entry) in self.entries.iter().enumerate() {
            let mut slot = usize::try_from(entry.hash & mask as u64).expect("masked by a usize");
            while self.slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = position(at + 1);
        }
    }
}

fn position(count: usize) -> u32 {
    u32::try_from(count).expect("the queue bounds a group far below 2^32 items")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn agrees_with_a_map_even_when_hashes_collide() {
        let mut overlay = Overlay::new();
        for round in 0..3 {
            let mut model = BTreeMap::new();
            for i in 0..5_000_u32 {
                let key = Bytes::from((i % 1_700).to_string());
                let hash = u64::from(i % 1_700) / 7;
                assert_eq!(overlay.get(hash, &key), model.get(&key), "round {round}, item {i}");
                overlay.set(hash, &key, i);
                model.insert(key, i);
            }
            overlay.clear();
        }
        assert_eq!(overlay.get(0, b"0"), None);
    }
}
