//! Latencies of one kind of operation. Source of the histogram: HdrHistogram (Tene).

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Below a microsecond nothing is told apart; beyond an hour everything counts as an hour.
const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// Records latencies.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// No latencies yet.
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS);
        Self(histogram.expect("the bounds are valid"))
    }

    /// Adds one.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of all does not pass, in microseconds.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        microseconds(self.0.value_at_quantile(quantile))
    }

    /// The figures that reports show.
    pub(crate) fn summary(&self) -> LatencySummary {
        LatencySummary {
            mean_us: self.0.mean() / 1e3,
            p50_us: self.quantile_us(0.5),
            p95_us: self.quantile_us(0.95),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            max_us: microseconds(self.0.max()),
        }
    }
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LatencySummary {
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// A latency for people.
pub(crate) fn spell_us(us: f64) -> String {
    match us {
        ..1_000.0 => format!("{us:.0} us"),
        1_000.0..100_000.0 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.0} ms", us / 1e3),
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits of a latency are meant")]
fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let mut latencies = Latencies::new();
        (1..=1_000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let summary = latencies.summary();
        let near = |actual: f64, expected: f64| assert!((actual / expected - 1.0).abs() < 0.002);
        near(summary.p50_us, 500.0);
        near(summary.p95_us, 950.0);
        near(summary.p99_us, 990.0);
        near(summary.max_us, 1_000.0);
        assert_eq!(latencies.count(), 1_000);
    }

    #[test]
    fn what_is_out_of_bounds_is_still_counted() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        assert_eq!(latencies.count(), 2);
    }

    #[test]
    fn spelling() {
        assert_eq!(
            [12.3, 999.4, 1_234.0, 123_456.0].map(spell_us),
            ["12 us", "999 us", "1.23 ms", "123 ms"]
        );
    }
}
