//! A node that runs on threads of its own, and how a node stops.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use model::NodeId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    io_loop::LoopState,
    start::{Node, spawn},
};
use crate::{
    commit::Committer,
    shared::{Shared, StopReason},
    storage::Storage,
};

/// A node that runs on threads of its own.
pub struct RunningNode {
    pub(super) node: Node,
    pub(super) stop: CancellationToken,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) commits: Option<JoinHandle<Committer<Arc<dyn Storage>>>>,
}

impl RunningNode {
    /// The node's id.
    pub fn node_id(&self) -> NodeId {
        self.shared().identity.node
    }

    /// Where clients connect.
    pub fn client_address(&self) -> SocketAddr {
        self.shared().identity.client_address
    }

    /// Where nodes connect.
    pub fn peer_address(&self) -> SocketAddr {
        self.shared().identity.peer_address
    }

    /// Where Prometheus asks for metrics, if they are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.shared().config.metrics_listen
    }

    /// Waits until the node ends by itself, and tells why.
    pub async fn stopped(&mut self) -> Result<(), StopReason> {
        loop {
            let failed = self.shared().failed.notified();
            if let Some(reason) = self.shared().failure() {
                return Err(reason.clone());
            }
            failed.await;
        }
    }

    /// Stops gracefully, as [`Node::leave`] does, and leaves everything on disk so that the next start is
    /// fast.
    pub async fn stop(mut self) {
        self.node.leave().await;
        self.end(true).await;
    }

    /// Ends the node at once, as a crash of its process would: connections break, nothing is said.
    pub async fn abort(mut self) {
        self.end(false).await;
    }

    async fn end(&mut self, flush: bool) {
        self.stop.cancel();
        self.shared().commits.close();
        let threads = std::mem::take(&mut self.threads);
        let commits = self.commits.take();
        let shared = Arc::clone(self.shared());
        let join = move || {
            // A panic there has been reported by the panic hook.
            for thread in threads {
                let _ = thread.join();
            }
            let _ = commits.map(JoinHandle::join);
            if flush && let Err(error) = shared.world.storage.flush() {
                tracing::error!(%error, "the last flush failed; the log still has everything");
            }
        };
        let (done, joined) = tokio::sync::oneshot::channel();
        let spawned = spawn("stop", move || {
            join();
            let _ = done.send(());
        });
        if spawned.is_ok() {
            // The thread always sends before it ends.
            let _ = joined.await;
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.node.shared
    }
}

impl Node {
    /// The first half of a graceful stop: takes no new calls, lets those in flight end, sends clients
    /// elsewhere and tells the others. Then its loops can be ended, and its commits closed. Takes the grace
    /// of its configuration and little more than a second at most.
    pub async fn leave(&self) {
        let shared = &self.shared;
        shared.draining.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_millis(shared.config.shutdown_grace_ms);
        wait_until(deadline, || !self.in_flight()).await;
        // Only now: who asks meanwhile, for a call or for the node's health, is answered.
        shared.goaway.cancel();
        self.loops.iter().for_each(|it| it.greet_all());
        let patience = Instant::now() + GOAWAY_TIME;
        wait_until(deadline.max(patience), || {
            let all_gone = shared.connections.load(Ordering::Relaxed) == 0;
            // A call that was taken just before has the time of all others; who is silent has not.
            all_gone || Instant::now() >= patience && !self.in_flight()
        })
        .await;
        self.gossip.leave().await;
        tokio::time::sleep(LEAVE_TIME).await;
    }

    fn in_flight(&self) -> bool {
        let waits = |it: &LoopState| it.operations.has_calls() || it.unanswered > 0;
        self.loops.iter().any(|it| waits(&it.lock()))
    }
}

/// Waits until something is so, but not for ever.
async fn wait_until(deadline: Instant, is_so: impl Fn() -> bool) {
    while !is_so() && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// How often a stop looks whether everything has ended.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How long clients are waited for to read their last answers and close: some round trips.
const GOAWAY_TIME: Duration = Duration::from_secs(1);
/// What the last packets need to leave, and the last answers to other nodes.
const LEAVE_TIME: Duration = Duration::from_millis(100);
