//! The hybrid logical clock of one node. Rules: docs/protocol.md, clocks (C3, C5).

use crate::{Hlc, Timestamp};

/// Why a clock reading was refused. The clock is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// A remote reading lies further ahead than `clock_offset_max`: merging it would carry one
    /// broken clock through the cluster.
    #[error("clock reading {remote} is more than {offset_max_ms} ms ahead of this node's {local}")]
    Ahead {
        /// The reading that was refused.
        remote: Hlc,
        /// This node's clock at that moment.
        local: Hlc,
        /// The bound, in milliseconds.
        offset_max_ms: u64,
    },
    /// The next stamp would pass the durable ceiling: a restart could stamp below it. Raise the
    /// ceiling durably to at least `wanted`, then stamp again.
    #[error("the stamp {wanted} lies above the durable ceiling {ceiling}")]
    CeilingReached {
        /// The stamp that would have been given.
        wanted: Hlc,
        /// The ceiling in force.
        ceiling: Hlc,
    },
}

/// Stamps writes. Readings only rise, over restarts too: no stamp passes a ceiling that the caller
/// has made durable before, and a restarted clock begins at that ceiling.
#[derive(Clone, Debug)]
pub struct HybridClock {
    last: Hlc,
    ceiling: Hlc,
    offset_max_ms: u64,
}

impl HybridClock {
    /// A clock that resumes at a durable `ceiling` (zero for a new node).
    pub fn new(ceiling: Hlc, offset_max_ms: u64) -> Self {
        Self { last: ceiling, ceiling, offset_max_ms }
    }

    /// A clock in a known state, for callers that keep the state elsewhere.
    pub fn resume(last: Hlc, ceiling: Hlc, offset_max_ms: u64) -> Self {
        Self { last, ceiling, offset_max_ms }
    }

    /// The highest reading seen or given. What messages carry.
    pub fn highest(&self) -> Hlc {
        self.last
    }

    /// The durable ceiling in force.
    pub fn ceiling(&self) -> Hlc {
        self.ceiling
    }

    /// The bound on how far ahead a remote reading may lie, in milliseconds.
    pub fn offset_max_ms(&self) -> u64 {
        self.offset_max_ms
    }

    /// The present reading, for judging expiry: the later of wall clock and what was seen. Gives no
    /// stamp, and needs no ceiling.
    pub fn read(&self, wall: Timestamp) -> Hlc {
        self.last.max(Hlc::from_ms(wall.0))
    }

    /// A stamp above everything seen, given or read before.
    pub fn stamp(&mut self, wall: Timestamp) -> Result<Hlc, ClockError> {
        let wanted = self.last.next().max(Hlc::from_ms(wall.0));
        if wanted > self.ceiling {
            return Err(ClockError::CeilingReached { wanted, ceiling: self.ceiling });
        }
        self.last = wanted;
        Ok(wanted)
    }

    /// Checks a remote reading against the bound (C3), without merging it.
    pub fn check(&self, wall: Timestamp, remote: Hlc) -> Result<(), ClockError> {
        let local = self.read(wall);
        if remote.ms() > local.ms().saturating_add(self.offset_max_ms) {
            let offset_max_ms = self.offset_max_ms;
            return Err(ClockError::Ahead { remote, local, offset_max_ms });
        }
        Ok(())
    }

    /// Checks what a client says it has seen: at most half of `offset_max` ahead of the wall clock, or
    /// behind what was seen here. A peer's clock is bounded by its own wall clock; a client's by nothing,
    /// and one that adds a little to every answer would drive this clock away from all others: half, so
    /// that peers whose wall clocks are behind this one's still believe it.
    pub fn check_client(&self, wall: Timestamp, remote: Hlc) -> Result<(), ClockError> {
        if remote <= self.last {
            return Ok(());
        }
        let local = Hlc::from_ms(wall.0);
        let offset_max_ms = self.offset_max_ms / 2;
        if remote.ms() > local.ms().saturating_add(offset_max_ms) {
            return Err(ClockError::Ahead { remote, local, offset_max_ms });
        }
        Ok(())
    }

    /// Merges a remote reading, so that the next stamp is above it. Refuses what lies too far ahead.
    pub fn observe(&mut self, wall: Timestamp, remote: Hlc) -> Result<(), ClockError> {
        if remote > self.last {
            self.check(wall, remote)?;
            self.last = remote;
        }
        Ok(())
    }

    /// Notes that `ceiling` is durable. A lower one than the one in force changes nothing.
    pub fn raise_ceiling(&mut self, ceiling: Hlc) {
        self.ceiling = self.ceiling.max(ceiling);
    }

    /// True when stamps come close to the ceiling and it is time to raise it, to `next_ceiling`.
    pub fn wants_ceiling(&self, wall: Timestamp) -> bool {
        self.read(wall).ms() + CEILING_SLACK_MS / 2 >= self.ceiling.ms()
    }

    /// The ceiling to make durable next: a little above the present reading.
    pub fn next_ceiling(&self, wall: Timestamp) -> Hlc {
        Hlc::from_ms(self.read(wall).ms() + CEILING_SLACK_MS)
    }
}

/// How far above the clock the durable ceiling is set. Below the default `clock_offset_max`: a node
/// that is killed and started at once resumes at its ceiling, and the others still believe it.
const CEILING_SLACK_MS: u64 = 400;

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> HybridClock {
        HybridClock::new(Hlc::from_ms(5_000), 500)
    }

    #[test]
    fn stamps_rise_and_stay_below_the_ceiling() {
        let mut clock = clock();
        assert!(matches!(clock.stamp(Timestamp(4_000)), Err(ClockError::CeilingReached { .. })));
        clock.raise_ceiling(clock.next_ceiling(Timestamp(4_000)));
        let first = clock.stamp(Timestamp(4_000)).unwrap();
        assert_eq!(first, Hlc::from_ms(5_000).next(), "a restart resumes above its ceiling");
        let second = clock.stamp(Timestamp(1)).unwrap();
        assert!(second > first, "a wall clock that steps back does not matter");
        assert!(matches!(clock.stamp(Timestamp(9_000)), Err(ClockError::CeilingReached { .. })));
    }

    #[test]
    fn remote_readings_far_ahead_are_refused() {
        let mut clock = clock();
        let wall = Timestamp(6_000);
        assert!(clock.observe(wall, Hlc::from_ms(6_501)).is_err());
        assert_eq!(clock.highest(), Hlc::from_ms(5_000));
        clock.observe(wall, Hlc::from_ms(6_500)).unwrap();
        assert_eq!(clock.highest(), Hlc::from_ms(6_500));
        clock.observe(wall, Hlc::from_ms(2)).unwrap();
        assert_eq!(clock.highest(), Hlc::from_ms(6_500));
    }

    #[test]
    fn a_client_cannot_drive_the_clock() {
        let mut clock = clock();
        let wall = Timestamp(6_000);
        for _ in 0..10 {
            let ahead = Hlc::from_ms(clock.read(wall).ms() + 250);
            if clock.check_client(wall, ahead).is_ok() {
                clock.observe(wall, ahead).unwrap();
            }
        }
        assert_eq!(clock.highest(), Hlc::from_ms(6_250), "once, and no further");
        assert!(clock.check_client(Timestamp(1), clock.highest()).is_ok(), "seen here before");
        assert!(clock.check_client(Timestamp(1), clock.highest().next()).is_err());
    }
}
