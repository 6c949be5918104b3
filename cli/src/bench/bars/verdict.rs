//! The bars, and how rounds are held against them. Pure.

use serde::Serialize;

use super::{Memory, Restart, Round};

/// The columns of the table of bars.
pub(super) const BAR_TABLE: [&str; 7] =
    ["bar", ">measured", ">first bar", ">second bar", ">aim", ">bare prototype", "verdict"];

/// What was measured.
pub(super) struct Figures<'a> {
    pub(super) rounds: &'a [Round],
    pub(super) memory: &'a Memory,
    pub(super) restarts: &'a [Restart],
}

/// One bar and what was measured against it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BarDocument {
    name: &'static str,
    unit: &'static str,
    measured: f64,
    /// True if more is better.
    at_least: bool,
    first: f64,
    second: Option<f64>,
    aim: Option<f64>,
    prototype: Option<f64>,
    /// True if the first bar is reached.
    pub(super) held: bool,
}

/// The bar of one figure.
struct Bar {
    name: &'static str,
    unit: &'static str,
    at_least: bool,
    first: f64,
    second: Option<f64>,
    aim: Option<f64>,
    prototype: Option<f64>,
}

impl Bar {
    const fn ratio(
        name: &'static str,
        at_least: bool,
        prototype: f64,
        first: f64,
        second: f64,
        aim: f64,
    ) -> Self {
        let (second, aim, prototype) = (Some(second), Some(aim), Some(prototype));
        Self { name, unit: "", at_least, first, second, aim, prototype }
    }

    const fn at_most(name: &'static str, unit: &'static str, first: f64) -> Self {
        Self { name, unit, at_least: false, first, second: None, aim: None, prototype: None }
    }

    fn judge(&self, measured: f64) -> BarDocument {
        let Self { name, unit, at_least, first, second, aim, prototype } = *self;
        let held = if at_least { measured >= first } else { measured <= first };
        BarDocument { name, unit, measured, at_least, first, second, aim, prototype, held }
    }
}

const PUT_PROCESSOR: Bar =
    Bar::ratio("put: CPU per call over the floor's", false, 2.06, 3.0, 2.3, 2.0);
const GET_PROCESSOR: Bar =
    Bar::ratio("get: CPU per call over the floor's", false, 1.35, 2.0, 1.5, 1.35);
const PUT_RATE: Bar = Bar::ratio("put/s over the floor's", true, 0.41, 0.28, 0.38, 0.45);
const GET_RATE: Bar = Bar::ratio("get/s over the floor's", true, 0.72, 0.48, 0.65, 0.75);
const BATCH_RATE: Bar = Bar::ratio("keys/s in batches over single put/s", true, 4.2, 3.0, 4.0, 5.0);
const MEMORY_EMPTY: Bar = Bar::at_most("memory at rest, empty", "MiB", 32.0);
const MEMORY_RESTARTED: Bar = Bar::at_most("memory at rest, restarted with the data", "MiB", 32.0);
const RESTART_LISTENING: Bar = Bar::at_most("restart after SIGKILL until it listens", "ms", 300.0);
const RESTART_SERVING: Bar = Bar::at_most("restart after SIGKILL until it serves", "ms", 1_000.0);

/// Holds every figure against its bar: medians over rounds, or over restarts.
pub(super) fn judge(figures: &Figures<'_>) -> Vec<BarDocument> {
    let over_rounds = |ratio: fn(&Round) -> f64| median(figures.rounds.iter().map(ratio));
    let over_restarts = |pick: fn(&Restart) -> f64| median(figures.restarts.iter().map(pick));
    vec![
        PUT_PROCESSOR.judge(over_rounds(|it| {
            it.put.processor_us_per_call.total / it.floor_put.processor_us_per_call.total
        })),
        GET_PROCESSOR.judge(over_rounds(|it| {
            it.get.processor_us_per_call.total / it.floor_get.processor_us_per_call.total
        })),
        PUT_RATE.judge(over_rounds(|it| it.put.calls_per_second / it.floor_put.calls_per_second)),
        GET_RATE.judge(over_rounds(|it| it.get.calls_per_second / it.floor_get.calls_per_second)),
        BATCH_RATE.judge(over_rounds(|it| it.batch.keys_per_second / it.put.calls_per_second)),
        MEMORY_EMPTY.judge(mebibytes(figures.memory.empty_bytes)),
        MEMORY_RESTARTED.judge(mebibytes(figures.memory.restarted_bytes)),
        RESTART_LISTENING.judge(over_restarts(|it| it.listening_ms)),
        RESTART_SERVING.judge(over_restarts(|it| it.serving_ms)),
    ]
}

impl BarDocument {
    /// The cells of its row, but for the verdict.
    pub(super) fn cells(&self) -> [String; 6] {
        let number = |it: f64| match self.unit {
            "" => format!("{it:.2}"),
            unit => format!("{it:.0} {unit}"),
        };
        let bar = |it: f64| format!("{} {}", if self.at_least { ">=" } else { "<=" }, number(it));
        let or_none = |it: Option<String>| it.unwrap_or_default();
        [
            self.name.to_owned(),
            number(self.measured),
            bar(self.first),
            or_none(self.second.map(bar)),
            or_none(self.aim.map(number)),
            or_none(self.prototype.map(number)),
        ]
    }
}

/// The middle of the numbers; of two middles the mean. NaN if there are none, which reaches no bar.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[expect(clippy::cast_precision_loss, reason = "memory has far less than 2^53 bytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let check = |numbers: &[f64], expected: f64| {
            assert!((median(numbers.iter().copied()) - expected).abs() < 1e-9, "{numbers:?}");
        };
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5);
        check(&[7.0], 7.0);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_bar_is_reached_from_its_own_side() {
        let held = |bar: &Bar, measured| bar.judge(measured).held;
        assert!(held(&PUT_RATE, 0.28) && !held(&PUT_RATE, 0.27));
        assert!(held(&PUT_PROCESSOR, 3.0) && !held(&PUT_PROCESSOR, 3.01));
        assert!(!held(&PUT_RATE, f64::NAN) && !held(&PUT_PROCESSOR, f64::NAN));
    }

    #[test]
    fn rows() {
        assert_eq!(
            PUT_RATE.judge(0.333).cells(),
            ["put/s over the floor's", "0.33", ">= 0.28", ">= 0.38", "0.45", "0.41"]
        );
        assert_eq!(
            MEMORY_EMPTY.judge(14.2).cells(),
            ["memory at rest, empty", "14 MiB", "<= 32 MiB", "", "", ""]
        );
    }
}
