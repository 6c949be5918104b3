//! Nodes inside this process: what `start` and `demo` run.

use std::{error::Error, num::NonZero, thread::available_parallelism};

use node::{
    config::NodeConfig,
    io::{RunningNode, StartError},
    storage::rocks::{RocksLimits, RocksShared},
};

use crate::failure::{Failure, with_causes};

/// What all nodes of this process share.
pub(crate) struct SharedResources(RocksShared);

/// Compactions of one database in more threads than these wait for each other.
const COMPACTION_THREADS_MAX: u16 = 8;

impl SharedResources {
    /// Sets them up for one node, which may take so many bytes for them, and so many files; once per process.
    pub(crate) fn for_one_node(memory_bytes: usize, files: usize) -> Result<Self, Failure> {
        let processors = available_parallelism().map_or(1, NonZero::get);
        let half = u16::try_from(processors / 2).unwrap_or(u16::MAX);
        let least = RocksLimits::for_memory(memory_bytes);
        let compaction_threads = half.clamp(least.compaction_threads, COMPACTION_THREADS_MAX);
        let open_files_max = u16::try_from(files).unwrap_or(u16::MAX);
        let limits = RocksLimits { compaction_threads, open_files_max, ..least };
        tracing::info!(
            rows_bytes = limits.row_cache_bytes,
            blocks_bytes = limits.cache_bytes,
            memtables_bytes = limits.write_buffer_bytes,
            compaction_threads,
            open_files_max,
            "memory is taken up to these sizes as it is needed"
        );
        Self::new(limits)
    }

    /// Sets them up for the many small nodes of a demo: a quarter of the memory of one serious node.
    pub(crate) fn for_demo() -> Result<Self, Failure> {
        let all = RocksLimits::default();
        Self::new(RocksLimits {
            cache_bytes: all.cache_bytes / 4,
            write_buffer_bytes: all.write_buffer_bytes / 4,
            memtable_bytes: all.memtable_bytes / 16,
            row_cache_bytes: all.row_cache_bytes / 128,
            ..all
        })
    }

    fn new(limits: RocksLimits) -> Result<Self, Failure> {
        let shared = RocksShared::new(limits);
        shared.map(Self).map_err(|error| start_failure(&error))
    }

    /// Starts a node; it listens when this returns.
    pub(crate) fn start(&self, config: NodeConfig) -> Result<RunningNode, Failure> {
        let data = config.data.display().to_string();
        node::io::start(config, &self.0).map_err(|error| {
            let failure = start_failure(&error).fact("data", data);
            match error {
                StartError::Listen { .. } => failure.advise("another --listen and --peer-listen"),
                StartError::Open(_) => failure.advise("look whether another node runs in it"),
                _ => failure,
            }
        })
    }
}

fn start_failure(error: &dyn Error) -> Failure {
    Failure::new("START_FAILED", with_causes(error))
}
