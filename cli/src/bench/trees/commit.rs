//! What trees cost the commit path alone: two databases, one with trees and one without.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use model::{Hlc, KeyspaceId, OperationId, Record, RequestId, StorageKey, Version};
use node::{
    commit::{CommitItem, CommitSettings, Committer, Origin, TreeSettings, TreeStatistics, Trees},
    storage::{
        cached::CachedStorage,
        rocks::{RocksLimits, RocksShared, RocksStorage},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::{REST, Spent, TreesArgs, turns};
use crate::{
    bench::{keys::KeySpace, process::processor_time},
    failure::Failure,
    output::Output,
    progress,
};

/// Has both databases take turns. What each round with trees and without them spent, and how large the
/// trees are.
pub(super) fn measure(
    args: &TreesArgs,
    output: Output,
) -> Result<([Vec<Spent>; 2], TreeStatistics), Failure> {
    let space = args.space();
    let pool = space.pool();
    let mut beds = [Bed::new(true)?, Bed::new(false)?];
    let bar = progress::spinner(output, "filling two databases");
    for bed in &mut beds {
        bed.fill(&space, &pool)?;
    }
    let mut spent = [Vec::new(), Vec::new()];
    for round in 0..args.rounds.get() {
        bar.set_message(format!("commit path: round {} of {}", round + 1, args.rounds));
        for at in turns(round) {
            let bed = &mut beds[at];
            spent[at].push(bed.overwrite(&space, &pool, args.records.get(), args.group.get())?);
        }
    }
    bar.finish_and_clear();
    let trees = beds[0].trees.as_ref().map(|it| it.statistics()).unwrap_or_default();
    Ok((spent, trees))
}

/// One database and its commit path.
struct Bed {
    committer: Committer<CachedStorage<RocksStorage>>,
    trees: Option<Arc<Trees>>,
    random: StdRng,
    clock: u64,
    _folder: TempDir,
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
        let took = begun.elapsed();
        std::thread::sleep(REST);
        let processor = processor_time(std::process::id())?.saturating_sub(before);
        let written = f64::from(u32::try_from(groups * group).unwrap_or(u32::MAX));
        Ok(Spent {
            processor_us: micros(processor) / written,
            per_second: written / took.as_secs_f64(),
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

fn micros(it: Duration) -> f64 {
    it.as_secs_f64() * 1e6
}

fn storage_failure(error: &impl std::error::Error) -> Failure {
    Failure::new("STORAGE_FAILED", format!("the database of the measurement failed: {error}"))
}
