//! Nodes inside this process: what `start` and `demo` run.

use std::error::Error;

use node::{
    config::NodeConfig,
    io::{RunningNode, StartError},
    storage::rocks::{RocksLimits, RocksShared},
};

use crate::failure::{Failure, with_causes};

/// What all nodes of this process share.
pub(crate) struct SharedResources(RocksShared);

impl SharedResources {
    /// Sets them up for one node; once per process.
    pub(crate) fn for_one_node() -> Result<Self, Failure> {
        Self::new(RocksLimits::default())
    }

    /// Sets them up for the many small nodes of a demo: a quarter of the memory of one serious node.
    pub(crate) fn for_demo() -> Result<Self, Failure> {
        let all = RocksLimits::default();
        Self::new(RocksLimits {
            cache_bytes: all.cache_bytes / 4,
            write_buffer_bytes: all.write_buffer_bytes / 4,
            memtable_bytes: all.memtable_bytes / 16,
            row_cache_bytes: all.row_cache_bytes / 128,
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
