//! The node's clock, shared by its loops without a lock. The rules are those of `HybridClock`.

use std::sync::atomic::{AtomicU64, Ordering};

use model::{ClockError, Hlc, HybridClock, Mutant, Timestamp};

/// One node's hybrid logical clock.
#[derive(Debug)]
pub struct NodeClock {
    last: AtomicU64,
    ceiling: AtomicU64,
    offset_max_ms: u64,
}

impl NodeClock {
    /// A clock that resumes at the durable ceiling of the last run (zero for a new node).
    pub fn new(ceiling: Hlc, offset_max_ms: u64) -> Self {
        let last = if Mutant::ClockForgetsCeiling.is_on() { Hlc::ZERO } else { ceiling };
        Self { last: AtomicU64::new(last.0), ceiling: AtomicU64::new(ceiling.0), offset_max_ms }
    }

    /// The highest reading seen or given.
    pub fn highest(&self) -> Hlc {
        Hlc(self.last.load(Ordering::Acquire))
    }

    /// The durable ceiling in force.
    pub fn ceiling(&self) -> Hlc {
        Hlc(self.ceiling.load(Ordering::Acquire))
    }

    /// The present reading. Later readings and stamps are not below it.
    pub fn read(&self, wall: Timestamp) -> Hlc {
        let now = Hlc::from_ms(wall.0);
        Hlc(self.last.fetch_max(now.0, Ordering::AcqRel)).max(now)
    }

    /// A stamp above everything seen, given or read before. See [`HybridClock::stamp`].
    pub fn stamp(&self, wall: Timestamp) -> Result<Hlc, ClockError> {
        loop {
            let before = self.highest();
            let stamp = self.snapshot(before).stamp(wall)?;
            let swapped = self.last.compare_exchange_weak(
                before.0,
                stamp.0,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if swapped.is_ok() {
                return Ok(stamp);
            }
        }
    }

    /// Merges a remote reading, or refuses it as too far ahead. See [`HybridClock::observe`]. Asks for
    /// the time only if the reading is news, which few are.
    pub fn observe(&self, wall: impl FnOnce() -> Timestamp, remote: Hlc) -> Result<(), ClockError> {
        let before = self.highest();
        if remote > before && !Mutant::PeerClockIgnored.is_on() {
            if !Mutant::AheadClockMerged.is_on() {
                self.snapshot(before).check(wall(), remote)?;
            }
            self.last.fetch_max(remote.0, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Merges what a client has seen, or refuses it. See [`HybridClock::check_client`].
    pub fn observe_client(&self, wall: Timestamp, remote: Hlc) -> Result<(), ClockError> {
        let before = self.highest();
        if remote > before {
            if !Mutant::AheadClockMerged.is_on() {
                self.snapshot(before).check_client(wall, remote)?;
            }
            if !Mutant::ClientClockIgnored.is_on() {
                self.last.fetch_max(remote.0, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Goes on from a reading that most nodes have reached, however far ahead it lies. True if it was
    /// ahead of this clock.
    pub fn adopt(&self, reached: Hlc) -> bool {
        !Mutant::PeerClockIgnored.is_on()
            && !Mutant::MajorityClockIgnored.is_on()
            && reached > self.highest()
            && self.last.fetch_max(reached.0, Ordering::AcqRel) < reached.0
    }

    /// Notes that a ceiling is durable.
    pub fn raise_ceiling(&self, ceiling: Hlc) {
        self.ceiling.fetch_max(ceiling.0, Ordering::AcqRel);
    }

    /// The ceiling to make durable now, if it is time to.
    pub fn wanted_ceiling(&self, wall: Timestamp) -> Option<Hlc> {
        let it = self.snapshot(self.highest());
        it.wants_ceiling(wall).then(|| it.next_ceiling(wall))
    }

    fn snapshot(&self, last: Hlc) -> HybridClock {
        HybridClock::resume(last, self.ceiling(), self.offset_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_wait_for_the_ceiling_and_pass_what_was_seen() {
        let clock = NodeClock::new(Hlc::ZERO, 500);
        let wall = Timestamp(10_000);
        assert!(clock.stamp(wall).is_err());
        clock.raise_ceiling(clock.wanted_ceiling(wall).unwrap());
        assert_eq!(clock.wanted_ceiling(wall), None, "it was just raised");
        let first = clock.stamp(wall).unwrap();
        clock.observe(|| wall, Hlc::from_ms(10_300)).unwrap();
        assert!(clock.stamp(wall).unwrap() > Hlc::from_ms(10_300));
        assert!(clock.observe(|| wall, Hlc::from_ms(12_000)).is_err());
        let asked = || panic!("nobody needs the time to judge what was seen before");
        clock.observe(asked, Hlc::from_ms(10_300)).unwrap();
        assert!(first < clock.read(Timestamp(1)));
        assert!(clock.wanted_ceiling(wall).is_some(), "the stamps have come close to it");
    }
}
