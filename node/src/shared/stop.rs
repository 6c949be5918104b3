//! Why a node ends by itself.

use std::net::SocketAddr;

use model::{Metadata, NodeId, StorageId};
use proto::CallError;

use super::Shared;
use crate::storage::StorageError;

/// Why a node ends by itself.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StopReason {
    /// Its storage failed: what is on disk is served again only after a restart has read it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Another directory has taken this node's place: what this one holds counts no more.
    #[error(
        "this node was replaced: others know its later database directory {storage}. What this one \
         holds counts no more, and it must not run again"
    )]
    Superseded {
        /// The later directory.
        storage: StorageId,
    },
    /// The node that it was told to replace is no node of the layout.
    #[error("node {node}, which this one was to replace, is no node of the layout")]
    NothingToReplace {
        /// The node.
        node: NodeId,
    },
    /// The node's place in the layout is in another datacenter than it was told.
    #[error(
        "node {node}, which this one was to replace, is of datacenter {layout:?}, not of {configured:?}"
    )]
    DatacenterChanged {
        /// The node.
        node: NodeId,
        /// The datacenter in the layout.
        layout: String,
        /// The datacenter in the configuration.
        configured: String,
    },
    /// Another process of the same node runs, and started earlier.
    #[error(
        "another process of this node is up, at {address}: two would take each other's writes for their \
         own. If its data directory was copied, start a new node with an empty one instead"
    )]
    Double {
        /// Where it listens for nodes.
        address: SocketAddr,
    },
    /// The others do not let it in.
    #[error("{0}")]
    NotLetIn(CallError),
    /// A part of it ended that must not: a bug. The log has the panic.
    #[error("{what} has ended unexpectedly: this is a bug, and its panic is in the log")]
    Lost {
        /// The part.
        what: &'static str,
    },
}

impl Shared {
    /// A node that takes another one's place must fit there.
    pub(super) fn check_place(&self, metadata: &Metadata) {
        let node = self.identity.node;
        let Some(_) = self.config.replace else { return };
        let Some(own) = metadata.layout().nodes().iter().find(|it| it.id == node) else {
            return self.stop_for(StopReason::NothingToReplace { node });
        };
        if own.datacenter != self.config.datacenter {
            let (layout, configured) = (own.datacenter.clone(), self.config.datacenter.clone());
            self.stop_for(StopReason::DatacenterChanged { node, layout, configured });
        }
    }

    /// Notes why the node takes no more writes. The first failure stays.
    pub fn fail(&self, error: &StorageError) {
        if matches!(error, StorageError::Full { .. }) {
            tracing::error!(%error, "the disk is full: writes are refused, reads go on");
            return;
        }
        self.stop_for(StopReason::Storage(error.clone()));
    }

    /// Stops the node: without one of its tasks or threads it would look alive and answer nothing.
    pub fn lost(&self, what: &'static str) {
        self.stop_for(StopReason::Lost { what });
    }

    pub(crate) fn stop_for(&self, reason: StopReason) {
        if self.failure.set(reason.clone()).is_ok() {
            tracing::error!(%reason, "this node stops");
            self.failed.notify_waiters();
        }
    }

    /// Why the node takes no more writes, if it does not.
    pub fn failure(&self) -> Option<&StopReason> {
        self.failure.get()
    }
}
