//! Clients' requests of one loop: how many by operation, level and outcome, and how long they took.
//!
//! All series exist from the start, in an array: to count one takes no lock and allocates nothing.

use std::{
    array, fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use model::ConsistencyLevel;
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use proto::CallOutcome;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// Puts a value.
    Put,
    /// Deletes a value.
    Delete,
    /// Gets a value.
    Get,
    /// Puts and deletes.
    BatchWrite,
    /// Gets.
    BatchGet,
    /// A page of a scan.
    Scan,
}

impl RequestKind {
    const ALL: [Self; 6] =
        [Self::Put, Self::Delete, Self::Get, Self::BatchWrite, Self::BatchGet, Self::Scan];

    /// True if it may change something.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::BatchWrite)
    }

    /// True if it is about one key: its duration tells how clients are served.
    pub(crate) fn is_of_one_key(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::Get)
    }

    fn index(self) -> usize {
        match self {
            Self::Put => 0,
            Self::Delete => 1,
            Self::Get => 2,
            Self::BatchWrite => 3,
            Self::BatchGet => 4,
            Self::Scan => 5,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::BatchWrite => "batch_write",
            Self::BatchGet => "batch_get",
            Self::Scan => "scan",
        }
    }
}

/// The named levels, any count of replicas, and none.
const LEVELS: usize = ConsistencyLevel::NAMED.len() + 2;
/// All counts of replicas are one level here: how many series there are must not be up to clients.
const COUNT: usize = LEVELS - 2;
/// Of requests that were refused before their level was known.
const UNRESOLVED: usize = LEVELS - 1;

fn level_index(level: Option<ConsistencyLevel>) -> usize {
    let Some(level) = level else { return UNRESOLVED };
    ConsistencyLevel::NAMED.iter().position(|it| *it == level).unwrap_or(COUNT)
}

fn level_name(index: usize) -> String {
    match ConsistencyLevel::NAMED.get(index) {
        Some(level) => level.to_string(),
        None if index == COUNT => "COUNT".to_owned(),
        None => "UNRESOLVED".to_owned(),
    }
}

/// `None` is success.
const OUTCOMES: [Option<CallOutcome>; 3] =
    [None, Some(CallOutcome::NotApplied), Some(CallOutcome::Unknown)];

fn outcome_index(outcome: Option<CallOutcome>) -> usize {
    match outcome {
        None => 0,
        Some(CallOutcome::NotApplied) => 1,
        Some(CallOutcome::Unknown) => 2,
    }
}

fn outcome_name(outcome: Option<CallOutcome>) -> &'static str {
    outcome.map_or("ok", CallOutcome::as_str)
}

/// Upper bounds of the histograms' buckets, inclusive, in microseconds: three to a power of ten, from
/// a read in memory to more than the longest usual deadline. What lies above has a bucket more.
const BOUNDS_US: [u64; 16] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// The requests of one kind at one level.
#[derive(Debug, Default)]
struct Cell {
    outcomes: [AtomicU64; OUTCOMES.len()],
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

/// The requests of one loop: some 11 KiB.
#[derive(Debug)]
pub struct RequestTable {
    cells: Box<[[Cell; LEVELS]; RequestKind::ALL.len()]>,
}

impl Default for RequestTable {
    fn default() -> Self {
        Self { cells: Box::new(array::from_fn(|_| array::from_fn(|_| Cell::default()))) }
    }
}

impl RequestTable {
    /// Counts a request that has ended. `level` is the one that it was served at, if it came so far;
    /// `outcome` is `None` if it succeeded.
    pub(crate) fn record(
        &self,
        kind: RequestKind,
        level: Option<ConsistencyLevel>,
        outcome: Option<CallOutcome>,
        took_us: u64,
    ) {
        let cell = &self.cells[kind.index()][level_index(level)];
        let bucket = BOUNDS_US.partition_point(|it| *it < took_us);
        cell.outcomes[outcome_index(outcome)].fetch_add(1, Ordering::Relaxed);
        cell.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        cell.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }
}

/// A cell of all loops together.
#[derive(Default)]
struct Sum {
    outcomes: [u64; OUTCOMES.len()],
    buckets: [u64; BUCKETS],
    sum_us: u64,
}

impl Sum {
    fn add(&mut self, cell: &Cell) {
        let add = |sum: &mut u64, it: &AtomicU64| *sum += it.load(Ordering::Relaxed);
        self.outcomes.iter_mut().zip(&cell.outcomes).for_each(|(sum, it)| add(sum, it));
        self.buckets.iter_mut().zip(&cell.buckets).for_each(|(sum, it)| add(sum, it));
        add(&mut self.sum_us, &cell.sum_us);
    }
}

/// Writes what loops have counted. A series begins with its first request: most never come.
pub(super) fn encode<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    loops: impl Iterator<Item = &'a RequestTable> + Clone,
) -> fmt::Result {
    let mut sums = Vec::new();
    for kind in RequestKind::ALL {
        for level in 0..LEVELS {
            let mut sum = Sum::default();
            loops.clone().for_each(|it| sum.add(&it.cells[kind.index()][level]));
            sums.push((kind, level_name(level), sum));
        }
    }
    let help = "Requests of clients that have ended.";
    let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (kind, level, sum) in &sums {
        for (outcome, count) in OUTCOMES.into_iter().zip(sum.outcomes).filter(|it| it.1 > 0) {
            let labels =
                [("operation", kind.name()), ("level", level), ("outcome", outcome_name(outcome))];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
    }
    let help = "How long requests of clients took, in seconds, whatever their outcome.";
    let name = "request_duration_seconds";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (kind, level, sum) in &sums {
        // Not the sum of the outcomes, which may have changed since: it must be that of the buckets.
        let count = sum.buckets.iter().sum();
        if count == 0 {
            continue;
        }
        let bounds = BOUNDS_US.map(seconds).into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(sum.buckets).collect();
        let labels = [("operation", kind.name()), ("level", level)];
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
            seconds(sum.sum_us),
            count,
            &buckets,
            None,
        )?;
    }
    Ok(())
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Tables(Vec<RequestTable>);

    impl Collector for Tables {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(&mut encoder, self.0.iter())
        }
    }

    fn shown(tables: Vec<RequestTable>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Tables(tables)));
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        shown
    }

    /// The series of one name, without it.
    fn series(shown: &str, name: &str) -> Vec<String> {
        shown.lines().filter_map(|it| it.strip_prefix(name)).map(str::to_owned).collect()
    }

    #[test]
    fn loops_are_shown_as_one() {
        let tables = vec![RequestTable::default(), RequestTable::default()];
        let quorum = Some(ConsistencyLevel::Quorum);
        tables[0].record(RequestKind::Put, quorum, None, 1);
        tables[1].record(RequestKind::Put, quorum, None, 1);
        tables[1].record(RequestKind::Put, quorum, Some(CallOutcome::Unknown), 1);
        tables[0].record(RequestKind::Get, None, Some(CallOutcome::NotApplied), 1);
        tables[0].record(RequestKind::Scan, Some(ConsistencyLevel::Count(2)), None, 1);
        tables[0].record(RequestKind::Scan, Some(ConsistencyLevel::Count(3)), None, 1);
        let expected = [
            r#"{operation="put",level="QUORUM",outcome="ok"} 2"#,
            r#"{operation="put",level="QUORUM",outcome="unknown"} 1"#,
            r#"{operation="get",level="UNRESOLVED",outcome="not_applied"} 1"#,
            r#"{operation="scan",level="COUNT",outcome="ok"} 2"#,
        ];
        let shown = shown(tables);
        assert_eq!(series(&shown, "requests_total"), expected);
        let counts = series(&shown, "request_duration_seconds_count");
        let expected = [
            r#"{operation="put",level="QUORUM"} 3"#,
            r#"{operation="get",level="UNRESOLVED"} 1"#,
            r#"{operation="scan",level="COUNT"} 2"#,
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let table = RequestTable::default();
        for took_us in [0, 100, 101, 10_000_000, 10_000_001, 99_000_000] {
            table.record(RequestKind::Get, Some(ConsistencyLevel::One), None, took_us);
        }
        let shown = shown(vec![table]);
        let buckets = series(&shown, "request_duration_seconds_bucket");
        assert_eq!(buckets.len(), BUCKETS);
        let count = |bound: &str| {
            let start = format!("{{le=\"{bound}\",operation=\"get\",level=\"ONE\"}} ");
            let found = buckets.iter().find_map(|it| it.strip_prefix(&start));
            found.unwrap_or_else(|| panic!("{bound}: {buckets:?}")).parse().unwrap()
        };
        let counts: Vec<u64> = ["0.0001", "0.0002", "5.0", "10.0", "+Inf"].map(count).into();
        assert_eq!(counts, [2, 3, 3, 4, 6]);
        let sum = series(&shown, "request_duration_seconds_sum");
        assert_eq!(sum, [r#"{operation="get",level="ONE"} 119.000202"#]);
    }

    #[test]
    fn every_kind_and_level_has_a_place_of_its_own() {
        let table = RequestTable::default();
        let levels = ConsistencyLevel::NAMED.into_iter().map(Some);
        let levels: Vec<_> = levels.chain([Some(ConsistencyLevel::Count(1)), None]).collect();
        for kind in RequestKind::ALL {
            levels.iter().for_each(|level| table.record(kind, *level, None, 1));
        }
        let shown = shown(vec![table]);
        let totals = series(&shown, "requests_total");
        assert_eq!(totals.len(), RequestKind::ALL.len() * LEVELS);
        assert!(totals.iter().all(|it| it.ends_with(" 1")), "{totals:?}");
    }
}
