//! Deadlines of operations, coarse and cheap: one timer per loop, however many operations.

use std::collections::BTreeMap;

/// What is due, by tick. Entries are never cancelled: an operation that has ended is not found any
/// more when its entry comes due.
#[derive(Debug)]
pub struct DeadlineWheel<T> {
    due: BTreeMap<u64, Vec<T>>,
}

impl<T> Default for DeadlineWheel<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new() }
    }
}

/// The grain of deadlines, in microseconds. A deadline fires up to one grain late.
pub(crate) const TICK_US: u64 = 4_000;

impl<T> DeadlineWheel<T> {
    /// Notes that `entry` is due at `at_us`. True if nothing earlier was due, so that the timer has
    /// to be set again.
    pub fn insert(&mut self, at_us: u64, entry: T) -> bool {
        let tick = at_us.div_ceil(TICK_US);
        let earliest = self.due.first_key_value().is_none_or(|(first, _)| tick < *first);
        self.due.entry(tick).or_default().push(entry);
        earliest
    }

    /// When the first entry is due.
    pub fn next_us(&self) -> Option<u64> {
        self.due.first_key_value().map(|(tick, _)| tick * TICK_US)
    }

    /// Takes everything that is due at `now_us`, in the order of ticks and of insertion.
    pub fn take_due(&mut self, now_us: u64) -> Vec<T> {
        let mut taken = Vec::new();
        while let Some(entry) = self.due.first_entry() {
            if entry.key() * TICK_US > now_us {
                break;
            }
            taken.append(&mut entry.remove());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_never_early() {
        let mut wheel = DeadlineWheel::default();
        assert!(wheel.insert(10_000, 'b'));
        assert!(!wheel.insert(50_000, 'c'));
        assert!(wheel.insert(3_000, 'a'));
        assert_eq!(wheel.next_us(), Some(4_000));
        assert_eq!(wheel.take_due(3_999), []);
        assert_eq!(wheel.take_due(12_000), ['a', 'b']);
        assert_eq!(wheel.take_due(60_000), ['c']);
        assert_eq!(wheel.next_us(), None);
    }
}
