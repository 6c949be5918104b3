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
    /// Sets them up; once per process.
    pub(crate) fn new() -> Result<Self, Failure> {
        let shared = RocksShared::new(RocksLimits::default());
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
