//! How slow clients are served just now: what work in the background goes by.

use std::sync::atomic::{AtomicU64, Ordering};

/// The duration that one in a hundred calls exceeds, followed as calls end: an estimate above the
/// quantile sinks by little with each call, one below it rises by much. One number for all loops, which
/// may lose an update to each other: it is an estimate. Source: Ma, Muthukrishnan and Sandler, Frugal
/// Streaming for Estimating Quantiles (2013), with steps in proportion to the estimate.
///
/// What is usual is the lowest estimate of late: it sinks with the estimate, and rises to double in five
/// minutes, so that a load that has grown is found usual in time, and one that work in the background
/// slows down is not.
#[derive(Debug, Default)]
pub(crate) struct Foreground {
    p99_ns: AtomicU64,
    usual_ns: AtomicU64,
    /// When what is usual was last looked at.
    risen_us: AtomicU64,
    measured_us: AtomicU64,
    calls: AtomicU64,
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
        if self.calls.fetch_add(1, Ordering::Relaxed) >= LEARNING_CALLS {
            self.learn_usual(after, now_us);
        }
    }

    fn learn_usual(&self, p99_ns: u64, now_us: u64) {
        let usual = self.usual_ns.load(Ordering::Relaxed);
        if usual == 0 || p99_ns < usual {
            self.usual_ns.store(p99_ns, Ordering::Relaxed);
            return;
        }
        let since_us = now_us.saturating_sub(self.risen_us.load(Ordering::Relaxed));
        // Long enough apart that little is lost to rounding, however fast calls come.
        if since_us >= RISES_US {
            let rise = usual.saturating_mul(since_us.min(FRESH_US)) / DOUBLES_US;
            self.usual_ns.store((usual + rise).min(p99_ns), Ordering::Relaxed);
            self.risen_us.store(now_us, Ordering::Relaxed);
        }
    }

    /// What one in a hundred calls exceeds, in microseconds; 0 if none ended within the last second.
    pub(crate) fn p99_us(&self, now_us: u64) -> u64 {
        let is_fresh = now_us < self.measured_us.load(Ordering::Relaxed) + FRESH_US;
        if is_fresh { self.p99_ns.load(Ordering::Relaxed) / 1_000 } else { 0 }
    }

    /// That, in thousandths of what it may come to: what the operator wants at most, and not much more than
    /// is usual.
    pub(crate) fn pressure(&self, now_us: u64, target_us: u64) -> u32 {
        let usual_us = self.usual_ns.load(Ordering::Relaxed) / 1_000;
        let limit_us = match usual_us {
            0 => target_us,
            _ => target_us.min((usual_us + usual_us / 2).max(LIMIT_US_MIN)),
        };
        let pressure = self.p99_us(now_us).saturating_mul(1_000) / limit_us.max(1);
        u32::try_from(pressure).unwrap_or(u32::MAX)
    }
}

/// 99 calls that let the estimate sink outweigh one that lets it rise.
const RISE_PART: u64 = 16;
const SINK_PART: u64 = 99 * RISE_PART;
const MIN_STEP_NS: u64 = 20_000;
const FRESH_US: u64 = 1_000_000;
/// So many calls it takes until the estimate is one.
const LEARNING_CALLS: u64 = 4_000;
/// In which time what is usual doubles at most.
const DOUBLES_US: u64 = 300_000_000;
/// How often it rises.
const RISES_US: u64 = 10_000;
/// Calls faster than that are not slowed down by anything that matters.
const LIMIT_US_MIN: u64 = 2_000;

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
    fn what_is_usual_sinks_at_once_and_rises_slowly() {
        let (foreground, mut now_us) = (Foreground::default(), 0);
        let mut feed = |calls: u64, took_us: u64| {
            for _ in 0..calls {
                now_us += 100;
                foreground.measured(took_us, now_us);
            }
            foreground.pressure(now_us, 100_000)
        };
        assert!(feed(LEARNING_CALLS, 10_000) < 120, "by the operator's word alone");
        let usual = feed(2_000, 10_000);
        assert!((600..750).contains(&usual), "a call takes what it usually does: {usual}");
        assert!(feed(2_000, 20_000) > 1_200, "twice as long");
        let later = feed(4_000_000, 20_000);
        assert!((600..750).contains(&later), "it has become usual: {later}");
        let fast = feed(20_000, 100);
        assert!(fast < 200, "nobody would notice: {fast}");
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
