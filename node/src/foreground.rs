//! How slow clients are served just now: what work in the background goes by.

use std::sync::atomic::{AtomicU64, Ordering};

/// The duration that one in a hundred calls exceeds, followed as calls end: an estimate above the
/// quantile sinks by little with each call, one below it rises by much. One number for all loops, which
/// may lose an update to each other: it is an estimate. Source: Ma, Muthukrishnan and Sandler, Frugal
/// Streaming for Estimating Quantiles (2013), with steps in proportion to the estimate.
#[derive(Debug, Default)]
pub(crate) struct Foreground {
    p99_ns: AtomicU64,
    measured_us: AtomicU64,
}

impl Foreground {
    /// A client's call has taken so long.
    pub(crate) fn measured(&self, took_us: u64, now_us: u64) {
        let before = self.p99_ns.load(Ordering::Relaxed);
        let took_ns = took_us.saturating_mul(1_000);
        let after = if took_ns > before {
            before + (before / RISE_PART).max(MIN_STEP_NS)
        } else {
            before - before / SINK_PART
        };
        self.p99_ns.store(after, Ordering::Relaxed);
        self.measured_us.store(now_us, Ordering::Relaxed);
    }

    /// What one in a hundred calls exceeds, in microseconds; 0 if none ended within the last second.
    pub(crate) fn p99_us(&self, now_us: u64) -> u64 {
        let is_fresh = now_us < self.measured_us.load(Ordering::Relaxed) + FRESH_US;
        if is_fresh { self.p99_ns.load(Ordering::Relaxed) / 1_000 } else { 0 }
    }

    /// That, in thousandths of what the operator wants at most.
    pub(crate) fn pressure(&self, now_us: u64, target_us: u64) -> u32 {
        let pressure = self.p99_us(now_us).saturating_mul(1_000) / target_us.max(1);
        u32::try_from(pressure).unwrap_or(u32::MAX)
    }
}

/// 99 calls that let the estimate sink outweigh one that lets it rise.
const RISE_PART: u64 = 16;
const SINK_PART: u64 = 99 * RISE_PART;
const MIN_STEP_NS: u64 = 20_000;
const FRESH_US: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn follows_the_quantile() {
        let (foreground, mut random) = (Foreground::default(), StdRng::seed_from_u64(7));
        let mut feed = |calls: u64, scale_us: u64| {
            for _ in 0..calls {
                // One in a hundred takes ten times as long or more.
                let slow = random.random_range(0..100) == 0;
                let took_us = random.random_range(scale_us / 2..scale_us);
                foreground.measured(if slow { 10 * took_us } else { took_us }, 5);
            }
            foreground.p99_us(5)
        };
        for scale_us in [1_000, 50_000, 2_000] {
            let p99_us = feed(40_000, scale_us);
            assert!((scale_us * 8 / 10..scale_us * 10).contains(&p99_us), "{scale_us}: {p99_us}");
        }
    }

    #[test]
    fn without_calls_there_is_no_pressure() {
        let foreground = Foreground::default();
        assert_eq!(foreground.pressure(0, 1_000), 0);
        (0..1_000).for_each(|_| foreground.measured(50_000, 10));
        assert!(foreground.pressure(10, 20_000) > 1_000);
        assert_eq!(foreground.pressure(10 + FRESH_US, 20_000), 0);
    }
}
