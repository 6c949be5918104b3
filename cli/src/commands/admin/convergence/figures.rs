//! Figures of comparisons: of one pair of nodes, or of many together.

use std::{iter::Sum, time::Duration};

use proto::v1;
use serde::Serialize;

use crate::values::{spell_bytes, spell_count, spell_duration};

/// How far replicas are known to be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::commands::admin) struct Figures {
    /// Partitions, each once for every pair of nodes that both hold it.
    pub(super) partitions: u64,
    /// Those that were the same when they were last compared, but for records on their way.
    pub(super) partitions_same: u64,
    /// The part that these are of all, from 0 to 1; absent if there are none.
    pub(super) share: Option<f64>,
    /// Since the partition that has waited longest was found the same; absent if there are none.
    pub(super) oldest_age_ms: Option<u64>,
    pub(super) records_moved: u64,
    pub(super) bytes_moved: u64,
}

impl Figures {
    /// What one node knows of itself and another one.
    pub(in crate::commands::admin) fn of(pair: &v1::PairConvergence) -> Self {
        Self {
            partitions: pair.partitions,
            partitions_same: pair.partitions_same,
            share: share(pair.partitions_same, pair.partitions),
            oldest_age_ms: Some(pair.oldest_age_ms),
            records_moved: pair.records_moved,
            bytes_moved: pair.bytes_moved,
        }
    }

    /// What two nodes know of each other: the worse counts, and what each of them has moved.
    pub(super) fn merge(&self, other: &Self) -> Self {
        let partitions = self.partitions.max(other.partitions);
        let partitions_same = self.partitions_same.min(other.partitions_same);
        Self {
            partitions,
            partitions_same,
            share: share(partitions_same, partitions),
            oldest_age_ms: self.oldest_age_ms.max(other.oldest_age_ms),
            records_moved: self.records_moved + other.records_moved,
            bytes_moved: self.bytes_moved + other.bytes_moved,
        }
    }

    /// True if there is nothing to compare.
    pub(in crate::commands::admin) fn is_empty(&self) -> bool {
        self.partitions == 0
    }

    /// True if all of it was the same.
    pub(in crate::commands::admin) fn is_same(&self) -> bool {
        self.partitions_same >= self.partitions
    }

    /// How many partitions are not known to be the same.
    pub(super) fn differing(&self) -> u64 {
        self.partitions.saturating_sub(self.partitions_same)
    }

    /// All in a sentence about the answering node; none if there is nothing to compare.
    pub(in crate::commands::admin) fn sentence(&self) -> Option<String> {
        (!self.is_empty()).then(|| {
            format!(
                "Convergence: {} of what this node shares with others that are up is the same (oldest {}); \
                 its exchanges have moved {} records ({})",
                self.spell_share(),
                spell_age(self.oldest_age_ms),
                spell_count(self.records_moved),
                spell_bytes(self.bytes_moved),
            )
        })
    }

    /// The share in percent; all of it only if nothing is missing.
    pub(in crate::commands::admin) fn spell_share(&self) -> String {
        let thousandths = self.partitions_same.saturating_mul(1_000).checked_div(self.partitions);
        thousandths.map_or("-".to_owned(), |it| format!("{}.{}%", it / 10, it % 10))
    }

    /// The share in numbers.
    pub(super) fn spell_parts(&self) -> String {
        format!("{} of {}", spell_count(self.partitions_same), spell_count(self.partitions))
    }
}

impl<'a> Sum<&'a Self> for Figures {
    fn sum<I: Iterator<Item = &'a Self>>(all: I) -> Self {
        let mut sum = Self::default();
        for it in all {
            sum.partitions += it.partitions;
            sum.partitions_same += it.partitions_same;
            sum.oldest_age_ms = sum.oldest_age_ms.max(it.oldest_age_ms);
            sum.records_moved += it.records_moved;
            sum.bytes_moved += it.bytes_moved;
        }
        sum.share = share(sum.partitions_same, sum.partitions);
        sum
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people and dashboards")]
fn share(same: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| same as f64 / all as f64)
}

/// A time that has passed; `-` for none.
pub(super) fn spell_age(age_ms: Option<u64>) -> String {
    age_ms.map_or("-".to_owned(), |it| spell_duration(Duration::from_millis(it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_sentence() {
        let it = Figures {
            partitions: 768,
            partitions_same: 767,
            oldest_age_ms: Some(1_500),
            records_moved: 1_234,
            bytes_moved: 20_480,
            ..Figures::default()
        };
        assert_eq!(
            it.sentence().unwrap(),
            "Convergence: 99.8% of what this node shares with others that are up is the same (oldest 1.5 s); \
             its exchanges have moved 1,234 records (20 KiB)"
        );
        assert_eq!(Figures::default().sentence(), None);
    }

    #[test]
    fn all_of_it_only_if_nothing_is_missing() {
        let spelled = |same, all| {
            Figures { partitions: all, partitions_same: same, ..Figures::default() }.spell_share()
        };
        assert_eq!(spelled(1_536, 1_536), "100.0%");
        assert_eq!(spelled(999_999, 1_000_000), "99.9%");
        assert_eq!(spelled(0, 7), "0.0%");
        assert_eq!(spelled(0, 0), "-");
    }
}
