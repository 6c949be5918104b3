//! Why a node does not start.

use std::{io, net::SocketAddr};

use model::NodeId;

use crate::{
    config::ConfigError,
    storage::{OpenError, StorageError},
};

/// Why a node does not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting makes no sense.
    #[error("the configuration is refused: {0}")]
    Config(#[from] ConfigError),
    /// The data directory cannot be opened.
    #[error("cannot open the data directory: {0}")]
    Open(#[from] OpenError),
    /// What the node knows about itself cannot be read or written.
    #[error("cannot read what the node knows about itself: {0}")]
    Storage(#[from] StorageError),
    /// What the node knows about itself makes no sense.
    #[error("what the node knows about itself is damaged: {what}")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// The node's place in the layout is in another datacenter than it was told.
    #[error(
        "this data directory belongs to a node of datacenter {layout:?}, and cannot be moved to \
         {configured:?}: the layout counts on it"
    )]
    DatacenterChanged {
        /// The datacenter in the layout.
        layout: String,
        /// The datacenter in the configuration.
        configured: String,
    },
    /// The data directory is another node's than the one to replace.
    #[error("this data directory belongs to node {own}: it cannot take the place of node {asked}")]
    NotReplacing {
        /// Whose it is.
        own: NodeId,
        /// The node to replace.
        asked: NodeId,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread, no randomness or no directory.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
}
