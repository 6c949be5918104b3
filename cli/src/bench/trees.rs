//! `quorate bench trees`: what it costs a node to keep its Merkle trees exact with every write.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Args;
use model::{Hlc, KeyspaceId, OperationId, Record, RequestId, StorageKey, Version};
use node::{
    commit::{CommitItem, CommitSettings, Committer, Origin, TreeSettings, TreeStatistics, Trees},
    storage::{
        cached::CachedStorage,
        rocks::{RocksLimits, RocksShared, RocksStorage},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tempfile::TempDir;

use super::{keys::KeySpace, process::processor_time, report::spell_rate};
use crate::{
    failure::{Exit, Failure},
    output::Output,
    progress,
    table::Table,
};

/// Measure what keeping Merkle trees costs the commit path of a node
///
/// Two databases in temporary folders, one with trees and one without, are filled with the same
/// records and then overwritten at random in groups as a commit thread writes them, fsync included.
/// They take turns; shown is the processor time of the whole process per record, flushes and
/// compactions included.
#[derive(Clone, Debug, Args)]
pub(crate) struct TreesArgs {
    /// How many different keys
    #[arg(long, value_name = "N", default_value = "200000")]
    keys: NonZeroU64,

    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100")]
    value_size: NonZeroUsize,

    /// Records of one group: about a third of the clients of a cluster of three
    #[arg(long, value_name = "N", default_value = "20")]
    group: NonZeroUsize,

    /// Records that each database takes in one round
    #[arg(long, value_name = "N", default_value = "100000")]
    records: NonZeroUsize,

    /// Rounds; medians are over them
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroU32,
}

#[derive(Serialize)]
struct TreesDocument {
    keys: u64,
    group: usize,
    with_trees: Vec<Spent>,
    without_trees: Vec<Spent>,
    /// Medians: processor time per record with trees, over that without.
    processor_ratio: f64,
    tree_leaves: u64,
    tree_memory_bytes_per_million_records: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Spent {
    processor_us_per_record: f64,
    records_per_second: f64,
}

/// One database and its commit path.
struct Bed {
    committer: Committer<CachedStorage<RocksStorage>>,
    trees: Option<Arc<Trees>>,
    random: StdRng,
    clock: u64,
    _folder: TempDir,
}

/// Measures and shows.
pub(super) fn run(args: &TreesArgs, output: Output) -> Result<Exit, Failure> {
    let space = KeySpace::uniform(args.keys.get(), args.value_size.get());
    let pool = space.pool();
    let mut beds = [Bed::new(true)?, Bed::new(false)?];
    let bar = progress::spinner(output, "filling two databases");
    for bed in &mut beds {
        bed.fill(&space, &pool)?;
    }
    let mut spent = [Vec::new(), Vec::new()];
    for round in 0..args.rounds.get() {
        bar.set_message(format!("round {} of {}", round + 1, args.rounds));
        for (bed, spent) in beds.iter_mut().zip(&mut spent) {
            spent.push(bed.overwrite(&space, &pool, args.records.get(), args.group.get())?);
        }
    }
    bar.finish_and_clear();
    let trees = beds[0].trees.as_ref().map(|it| it.statistics()).unwrap_or_default();
    show(&TreesDocument::new(args, spent, trees), output)?;
    Ok(Exit::Ok)
}

impl Bed {
    fn new(has_trees: bool) -> Result<Self, Failure> {
        let folder = TempDir::with_prefix("quorate-trees-")
            .map_err(|error| Failure::file("cannot make a temporary folder", &error))?;
        let limits = RocksLimits::default();
        let shared = RocksShared::new(limits).map_err(|it| storage_failure(&it))?;
        let engine =
            RocksStorage::open(folder.path(), &shared).map_err(|it| storage_failure(&it))?;
        let storage = CachedStorage::new(engine, shared.row_cache_bytes());
        let trees = has_trees.then(|| {
            let trees = Trees::default();
            trees.configure(TreeSettings { cluster_key: [7; 16], partitions: 256 });
            Arc::new(trees)
        });
        let settings = CommitSettings { trees: trees.clone(), ..CommitSettings::default() };
        let committer = Committer::open(Arc::new(storage), settings);
        let committer = committer.map_err(|it| storage_failure(&it))?;
        Ok(Self { committer, trees, random: StdRng::seed_from_u64(1), clock: 1, _folder: folder })
    }

    fn fill(&mut self, space: &KeySpace, pool: &Bytes) -> Result<(), Failure> {
        const GROUP: usize = 1_000;
        let indexes: Vec<u64> = (0..space.keys).collect();
        indexes.chunks(GROUP).try_for_each(|it| self.write(space, pool, it))
    }

    fn overwrite(
        &mut self,
        space: &KeySpace,
        pool: &Bytes,
        records: usize,
        group: usize,
    ) -> Result<Spent, Failure> {
        let (begun, before) = (Instant::now(), processor_time(std::process::id())?);
        let groups = records.div_ceil(group);
        for _ in 0..groups {
            let indexes: Vec<u64> =
                (0..group).map(|_| self.random.random_range(0..space.keys)).collect();
            self.write(space, pool, &indexes)?;
        }
        let processor = processor_time(std::process::id())?.saturating_sub(before);
        let written = f64::from(u32::try_from(groups * group).unwrap_or(u32::MAX));
        Ok(Spent {
            processor_us_per_record: micros(processor) / written,
            records_per_second: written / begun.elapsed().as_secs_f64(),
        })
    }

    fn write(&mut self, space: &KeySpace, pool: &Bytes, indexes: &[u64]) -> Result<(), Failure> {
        self.clock += 1;
        let version = Version { hlc: Hlc(self.clock), request: RequestId(self.clock) };
        let mut items: Vec<CommitItem<()>> = indexes
            .iter()
            .map(|index| {
                let key = space.key(*index);
                let key = StorageKey::encode(KeyspaceId(1), key.token(), &key);
                let from = self.random.random_range(0..=pool.len() - space.value_bytes);
                let value = &pool[from..from + space.value_bytes];
                let record = Record::encode(&key, version, 0, Some(value));
                let operation = OperationId(*index);
                let (destination, slot, want_newest) = ((), 0, false);
                CommitItem::Mutation {
                    destination,
                    operation,
                    slot,
                    key,
                    record,
                    origin: Origin::Fresh,
                    want_newest,
                }
            })
            .collect();
        let (count, mut answers) = (items.len(), Vec::with_capacity(items.len()));
        let committed = self.committer.commit(&mut items, &mut answers);
        committed.and_then(|()| self.committer.tend(count)).map_err(|it| storage_failure(&it))
    }
}

impl TreesDocument {
    fn new(args: &TreesArgs, spent: [Vec<Spent>; 2], trees: TreeStatistics) -> Self {
        let [with_trees, without_trees] = spent;
        let processor = |it: &[Spent]| median(it.iter().map(|it| it.processor_us_per_record));
        let millions = args.keys.get() as f64 / 1e6;
        Self {
            keys: args.keys.get(),
            group: args.group.get(),
            processor_ratio: processor(&with_trees) / processor(&without_trees),
            with_trees,
            without_trees,
            tree_leaves: trees.leaves,
            tree_memory_bytes_per_million_records: trees.memory_bytes as f64 / millions,
        }
    }
}

fn show(document: &TreesDocument, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(document);
    }
    let mut table = Table::new(&["commit path", ">CPU per record", ">records/s"]);
    let rows = [("with trees", &document.with_trees), ("without", &document.without_trees)];
    for (name, spent) in rows {
        table.row([
            name.to_owned().into(),
            format!("{:.2} us", median(spent.iter().map(|it| it.processor_us_per_record))).into(),
            spell_rate(median(spent.iter().map(|it| it.records_per_second))).into(),
        ]);
    }
    output.report(&table)?;
    output.line(&format!(
        "trees cost {:+.1} % of the commit path's processor time; {} leaves, {:.2} MB per million records",
        100.0 * (document.processor_ratio - 1.0),
        document.tree_leaves,
        document.tree_memory_bytes_per_million_records / 1e6,
    ))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn micros(it: Duration) -> f64 {
    it.as_secs_f64() * 1e6
}

fn storage_failure(error: &impl std::error::Error) -> Failure {
    Failure::new("STORAGE_FAILED", format!("the database of the measurement failed: {error}"))
}
