//! What a node asks of the world: time, network, randomness, storage and a place to block.
//!
//! All of it is passed in, so that a simulator can run this code unchanged. Below these seams no
//! code reads a clock, opens a socket or draws from the operating system's randomness.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use model::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{snapshot::SnapshotFolder, storage::Storage};

/// A future in a box, as these traits need it to be used as objects.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The wall clock of one node. Elapsed time is tokio's: paused and steered in a simulation.
pub trait WallClock: Send + Sync {
    /// Milliseconds since the Unix epoch. May jump, both ways.
    fn now(&self) -> Timestamp;
}

/// A connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream in a box: what listeners and connectors give.
pub type BoxedStream = Box<dyn Stream>;

/// Accepts connections.
pub trait Listener: Send {
    /// The bound address.
    fn local_address(&self) -> io::Result<SocketAddr>;

    /// The next connection, and where it comes from.
    fn accept(&mut self) -> Boxed<'_, io::Result<(BoxedStream, SocketAddr)>>;
}

/// Opens and accepts connections.
pub trait Network: Send + Sync {
    /// Binds an address.
    fn listen(&self, address: SocketAddr) -> Boxed<'_, io::Result<Box<dyn Listener>>>;

    /// Connects to `host:port`.
    fn connect(&self, address: String) -> Boxed<'_, io::Result<BoxedStream>>;
}

/// The time that a simulated disk takes.
pub trait DiskPace: Send + Sync {
    /// Waits as a read waits: once before its data is looked at, and once more behind that.
    fn read(&self) -> Boxed<'static, ()>;
}

/// Where work that blocks is done.
#[derive(Clone)]
pub enum Blocking {
    /// On threads: one for commits, a pool for reads that miss the block cache.
    Threads,
    /// By tasks of the loop that take simulated time: deterministic, for simulations.
    Simulated(Arc<dyn DiskPace>),
}

/// The world of one node.
#[derive(Clone)]
pub struct World {
    /// Its wall clock.
    pub clock: Arc<dyn WallClock>,
    /// Its network.
    pub network: Arc<dyn Network>,
    /// Its storage, opened.
    pub storage: Arc<dyn Storage>,
    /// Its snapshots; `None` if its storage has no files.
    pub snapshots: Option<Arc<SnapshotFolder>>,
    /// The seed of all randomness in the node.
    pub seed: u64,
    /// Where work that blocks is done.
    pub blocking: Blocking,
}
