//! The bars of exchanges, and how figures are held against them. Pure.

use serde::Serialize;

use super::{Figures, measure::Returned};
use crate::bench::load::Kind;

/// The columns of the table of bars.
pub(super) const BAR_TABLE: [&str; 4] = ["figure", ">measured", ">bar", "verdict"];

/// One figure, and what it may be at most.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BarDocument {
    name: String,
    unit: &'static str,
    measured: f64,
    at_most: Option<f64>,
}

impl BarDocument {
    fn new(name: impl Into<String>, unit: &'static str, measured: f64, at_most: f64) -> Self {
        Self { name: name.into(), unit, measured, at_most: Some(at_most) }
    }

    /// Whether the bar is reached; `None` if there is none.
    pub(super) fn held(&self) -> Option<bool> {
        self.at_most.map(|it| self.measured <= it)
    }

    /// True unless a bar is missed.
    pub(super) fn is_held(&self) -> bool {
        self.held() != Some(false)
    }

    /// The cells of its row, but for the verdict.
    pub(super) fn cells(&self) -> [String; 3] {
        let spell = |it: f64| match self.unit {
            "" => format!("{it:.2}"),
            unit if it < 10.0 => format!("{it:.2} {unit}"),
            unit => format!("{it:.0} {unit}"),
        };
        let bar = self.at_most.map(|it| format!("<= {}", spell(it)));
        [self.name.clone(), spell(self.measured), bar.unwrap_or_default()]
    }
}

/// Holds every figure against its bar.
pub(super) fn judge(figures: &Figures) -> Vec<BarDocument> {
    let Figures { partitions, in_sync_bytes, one_key, one_percent, .. } = figures;
    let differing_bytes = number(one_percent.keys) * one_percent.bytes_per_record();
    let mut bars = vec![
        BarDocument::new(
            "in sync, a round of two nodes, for each partition",
            "bytes",
            number(*in_sync_bytes) / number(*partitions),
            200.0,
        ),
        BarDocument::new("one key differs", "KiB", number(one_key.bytes) / 1_024.0, 64.0),
        BarDocument::new(
            "1 % differ: bytes moved over those of the records",
            "",
            number(one_percent.bytes) / differing_bytes,
            2.0,
        ),
    ];
    for it in &figures.returned {
        let percent = 100.0 * number(it.keys) / number(figures.keys);
        for (kind, calls) in [(Kind::Put, "puts"), (Kind::Get, "gets")] {
            let name = format!("p99 of {calls} while {percent:.0} % catch up, over before");
            bars.push(BarDocument::new(name, "", p99_ratio(it, kind), 2.0));
        }
    }
    bars.push(BarDocument {
        name: "trees, for a million keys".to_owned(),
        unit: "KiB",
        measured: figures.tree_memory_bytes_per_million_keys / 1_024.0,
        at_most: None,
    });
    bars
}

/// NaN, which reaches no bar, if there were no such calls.
fn p99_ratio(it: &Returned, kind: Kind) -> f64 {
    let (before, meanwhile) = (it.before.p99_us.get(&kind), it.meanwhile.p99_us.get(&kind));
    before.zip(meanwhile).map_or(f64::NAN, |(before, meanwhile)| meanwhile / before)
}

#[expect(clippy::cast_precision_loss, reason = "bytes and keys are far fewer than 2^53")]
pub(super) fn number(it: u64) -> f64 {
    it as f64
}

#[cfg(test)]
mod tests {
    use super::{
        super::measure::{Latency, Moved},
        *,
    };

    fn moved(keys: u64, bytes: u64) -> Moved {
        Moved { keys, bytes, records_moved: keys, record_bytes: 150 * keys, took_ms: 1.0 }
    }

    fn returned(before_us: f64, meanwhile_us: f64) -> Returned {
        let latency = |us: f64| Latency {
            p99_us: [(Kind::Put, us), (Kind::Get, us / 2.0)].into(),
            calls_per_second: 1.0,
        };
        let (before, meanwhile) = (latency(before_us), latency(meanwhile_us));
        Returned { keys: 10, took_ms: 1.0, before, meanwhile, errors: 0 }
    }

    fn figures() -> Figures {
        Figures {
            keys: 1_000,
            partitions: 256,
            in_sync_bytes: 42,
            one_key: moved(1, 65_537),
            one_percent: moved(10, 3_000),
            tree_memory_bytes_per_million_keys: 524_288.0,
            returned: vec![returned(100.0, 200.0), returned(100.0, 201.0)],
        }
    }

    #[test]
    fn figures_are_held_against_their_bars() {
        let bars = judge(&figures());
        let held: Vec<_> = bars.iter().map(BarDocument::held).collect();
        let [yes, no] = [Some(true), Some(false)];
        assert_eq!(held, [yes, no, yes, yes, yes, no, no, None]);
        assert_eq!(
            bars[2].cells(),
            ["1 % differ: bytes moved over those of the records", "2.00", "<= 2.00"]
        );
        assert_eq!(bars[7].cells(), ["trees, for a million keys", "512 KiB", ""]);
    }

    #[test]
    fn what_was_not_measured_reaches_no_bar() {
        let mut it = figures();
        (it.one_percent.records_moved, it.one_percent.record_bytes) = (0, 0);
        it.returned[0].meanwhile.p99_us.clear();
        let bars = judge(&it);
        assert_eq!((bars[2].is_held(), bars[3].is_held()), (false, false));
    }
}
