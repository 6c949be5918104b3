//! What the calls of one loop's clients hold in memory, by bytes: values as they arrive and until the call is
//! answered, records read for them, and answers until their clients have taken them. Operations are bounded
//! by their number as well, which says nothing of values of a megabyte each.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use model::Mutant;

/// The bytes that calls hold, and their bound. Only tasks of one loop write to it.
#[derive(Debug)]
pub struct CallBytes {
    held: AtomicUsize,
    limit: usize,
}

impl CallBytes {
    /// Nothing held, `limit` allowed.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), limit })
    }

    /// Holds so many bytes for a call that has come, or says that there is no room. What is larger than the
    /// bound is let in alone.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let mut held = Held { of: Arc::clone(self), bytes: 0 };
        held.add_below(self.limit, bytes).then_some(held)
    }

    /// Holds so many bytes that are in memory already, past every bound: what comes next has to find room.
    pub fn hold_anyway(self: &Arc<Self>, bytes: usize) -> Held {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Held { of: Arc::clone(self), bytes }
    }

    /// True if half of what may be held is: nothing should be read before it is wanted.
    pub fn is_short(&self) -> bool {
        self.held() > self.limit / 2
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// What is held in advance for what has yet to be read: never so much that steady smaller calls keep it
    /// from being let in.
    pub fn in_advance(&self, bytes: usize) -> usize {
        bytes.min(self.limit / 4)
    }

    /// What may be held when a call comes. What is read for calls that were let in may be as much again.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// Bytes that a call holds, until this is dropped.
#[derive(Debug)]
pub struct Held {
    of: Arc<CallBytes>,
    bytes: usize,
}

impl Held {
    /// Makes them so many at least, for what was read for a call that was let in. False, and nothing has
    /// changed, if there is no room.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        self.add_below(self.of.limit.saturating_mul(2), more)
    }

    /// Makes them so many more, for a request that is still arriving. False, and nothing has changed, if
    /// there is no room.
    #[must_use]
    pub fn add(&mut self, bytes: usize) -> bool {
        self.add_below(self.of.limit, bytes)
    }

    /// Gives a part of them away, or all if they are fewer.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { of: Arc::clone(&self.of), bytes }
    }

    /// Takes over what another one holds.
    pub fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    fn add_below(&mut self, limit: usize, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let before = self.of.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == self.bytes || before.saturating_add(bytes) <= limit;
        if !fits && !Mutant::BoundsIgnored.is_on() {
            self.of.held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How many bytes the values of a keyspace usually have, going by those read and written lately.
#[derive(Debug, Default)]
pub struct UsualBytes(AtomicUsize);

impl UsualBytes {
    /// Takes a value into account.
    pub fn measured(&self, bytes: usize) {
        let (before, bytes) = (self.0.load(Ordering::Relaxed), bytes.max(1));
        let now = match before {
            0 => bytes,
            _ if bytes > before => before + (bytes - before).div_ceil(8),
            _ => before - (before - bytes) / 8,
        };
        // All loops read it with every call: it is written when it changes.
        if now != before {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// The usual bytes of a value; `None` if none has been seen.
    pub fn get(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|it| *it > 0)
    }

    /// What to make room for before a value is read.
    pub fn expected(&self) -> usize {
        self.get().unwrap_or(UNKNOWN_BYTES)
    }

    /// One that goes on where this one is.
    pub fn continued(&self) -> Self {
        Self(AtomicUsize::new(self.0.load(Ordering::Relaxed)))
    }
}

/// What a value is expected to have while none has been seen.
const UNKNOWN_BYTES: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_allowed() {
        let bytes = CallBytes::new(100);
        let first = bytes.hold(60).expect("room");
        assert!(bytes.hold(41).is_none());
        assert_eq!(bytes.held(), 60, "what was refused holds nothing");
        let second = bytes.hold(40).expect("room for the rest");
        assert!(bytes.hold(1).is_none() && bytes.hold(0).is_some());
        drop((first, second));
        assert_eq!(bytes.held(), 0);
    }

    #[test]
    fn what_is_in_memory_already_counts_and_keeps_others_out() {
        let bytes = CallBytes::new(100);
        let first = bytes.hold_anyway(50);
        assert!(!bytes.is_short());
        let second = bytes.hold_anyway(80);
        assert!(bytes.is_short() && bytes.held() == 130 && bytes.hold(1).is_none());
        drop((first, second));
        assert!(!bytes.is_short() && bytes.held() == 0);
    }

    #[test]
    fn what_is_usual_follows_what_comes() {
        let usual = UsualBytes::default();
        assert_eq!((usual.get(), usual.expected()), (None, UNKNOWN_BYTES));
        usual.measured(100);
        assert_eq!(usual.get(), Some(100));
        for _ in 0..8 {
            usual.measured(1_000_000);
        }
        let risen = usual.get().unwrap();
        assert!((600_000..700_000).contains(&risen), "{risen}");
        for _ in 0..8 {
            usual.measured(0);
        }
        let fallen = usual.continued().get().unwrap();
        assert!((150_000..300_000).contains(&fallen), "{fallen}");
    }

    #[test]
    fn one_that_is_larger_is_let_in_alone() {
        let bytes = CallBytes::new(100);
        let mut large = bytes.hold(1_000).expect("nothing else is held");
        assert!(large.add(500), "it is alone");
        assert!(bytes.hold(1).is_none());
        drop(large);
        assert!(bytes.hold(1).is_some());
    }

    #[test]
    fn what_is_read_may_be_as_much_again() {
        let bytes = CallBytes::new(100);
        let (mut one, mut other) = (bytes.hold(50).unwrap(), bytes.hold(50).unwrap());
        assert!(one.grow_to(50) && one.grow_to(150) && one.grow_to(20));
        assert_eq!(bytes.held(), 200);
        assert!(!other.grow_to(51));
        assert!(!other.add(1));
        assert_eq!(bytes.held(), 200, "nothing has changed");
        drop(one);
        assert!(other.grow_to(51));
    }

    #[test]
    fn parts_are_given_back_each_on_its_own() {
        let bytes = CallBytes::new(100);
        let mut all = bytes.hold(100).unwrap();
        let (part, rest) = (all.split(30), all.split(1_000));
        assert_eq!(bytes.held(), 100);
        drop(rest);
        assert_eq!(bytes.held(), 30);
        all.join(part);
        assert_eq!(bytes.held(), 30);
        drop(all);
        assert_eq!(bytes.held(), 0);
    }
}
