//! How long reads usually take, and so when one is slow.
//!
//! A smoothed mean and deviation, as TCP keeps for its round trips. Source: RFC 6298, 2.

/// The usual duration of something, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsualLatency {
    mean_us: u64,
    deviation_us: u64,
}

/// Below this, one tick of the deadlines more or less decides: nothing is called slow.
const SLOW_US_MIN: u64 = 10_000;
/// Above this, waiting is no longer worth it, whatever is usual.
const SLOW_US_MAX: u64 = 500_000;

impl UsualLatency {
    /// Takes one duration into account.
    pub fn measured(&mut self, took_us: u64) {
        if self.mean_us == 0 {
            *self = Self { mean_us: took_us, deviation_us: took_us / 2 };
            return;
        }
        let off_us = took_us.abs_diff(self.mean_us);
        self.deviation_us = self.deviation_us - self.deviation_us / 4 + off_us / 4;
        self.mean_us = self.mean_us - self.mean_us / 8 + took_us / 8;
    }

    /// When something is slower than nearly all of its kind.
    pub fn slow_us(&self) -> u64 {
        (self.mean_us + 4 * self.deviation_us).clamp(SLOW_US_MIN, SLOW_US_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_follows_what_is_usual() {
        let mut latency = UsualLatency::default();
        assert_eq!(latency.slow_us(), SLOW_US_MIN);
        for _ in 0..100 {
            latency.measured(100_000);
        }
        let steady_us = latency.slow_us();
        assert!((100_000..110_000).contains(&steady_us), "{steady_us}");
        latency.measured(400_000);
        assert!(latency.slow_us() > 2 * steady_us, "one outlier widens the margin");
        for _ in 0..100 {
            latency.measured(500);
        }
        assert_eq!(latency.slow_us(), SLOW_US_MIN);
    }
}
