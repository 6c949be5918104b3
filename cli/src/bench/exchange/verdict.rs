//! The bars of exchanges, and how figures are held against them. Pure.

use super::Figures;
use crate::bench::bar::{BarDocument, number};

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
        bars.extend(it.bars(&format!("{percent:.0} % catch up")));
    }
    let trees = figures.tree_memory_bytes_per_million_keys / 1_024.0;
    bars.push(BarDocument::without_bar("trees, for a million keys", "KiB", trees));
    bars
}

#[cfg(test)]
mod tests {
    use super::{super::measure::Moved, *};
    use crate::bench::returned::tests::returned;

    fn moved(keys: u64, bytes: u64) -> Moved {
        Moved { keys, bytes, records_moved: keys, record_bytes: 150 * keys, took_ms: 1.0 }
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
        assert!(!judge(&it)[2].is_held());
    }
}
