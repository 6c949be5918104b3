//! One process for each node (F14): while one can be reached, another one with its identity, as a copied
//! data directory has it, is not let in; and of two that meet the later one ends.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{Mutant, NodeId};
use proto::{CallError, Reason};
use tokio::time::Instant;

use super::{
    io_loop::IoLoop,
    links::{Backoff, JOIN_IO_LOOP, Links, NoLink},
};
use crate::{
    membership::Member,
    shared::{Shared, StopReason},
};

impl Shared {
    /// Refuses a process of a node while another one of the same node can be reached, at another address.
    pub(super) fn judge_process(&self, member: &Member) -> Result<(), CallError> {
        let (node, address) = (member.node(), member.peer_address);
        if Mutant::DoubleLetIn.is_on() {
            return Ok(());
        }
        if node == self.identity.node {
            return self.judge_double(member);
        }
        let Some(status) = self.status_if_known(node) else { return Ok(()) };
        let linked = status.linked().map(|it| it.peer_address).filter(|it| *it != address);
        match linked {
            Some(linked) if status.is_reachable(self.elapsed_us()) => {
                Err(self.is_up(member, linked))
            }
            _ => Ok(()),
        }
    }

    /// Another process says that it is this node.
    fn judge_double(&self, member: &Member) -> Result<(), CallError> {
        let own = (self.identity.incarnation, self.identity.peer_address);
        let theirs = (member.incarnation, member.peer_address);
        if theirs.1 == own.1 {
            // This process itself, by an address to join.
            return Ok(());
        }
        if theirs < own {
            self.stop_for(StopReason::Double { address: theirs.1 });
            let message = "this process is the later one of two of this node, and ends";
            return Err(CallError::new(Reason::Draining, message));
        }
        Err(self.is_up(member, own.1))
    }

    fn is_up(&self, member: &Member, address: SocketAddr) -> CallError {
        let node = member.node();
        let message = format!("node {node} is up at {address}: no other process can be that node");
        CallError::new(Reason::NodeIsUp, message)
            .with("node", node)
            .with(PEER_ADDRESS, address)
            .with(ANSWERED_BY, self.identity.node)
    }
}

/// Since when all whom this node asks have refused it because it were up already.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Option<Instant>>);

impl Refusals {
    /// Somebody has let this node in.
    pub(super) fn over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Nobody has; for how long it has gone on like this. `None` the first time.
    fn once_more(&self) -> Option<Duration> {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *since {
            Some(since) => Some(since.elapsed()),
            None => {
                *since = Some(Instant::now());
                None
            }
        }
    }
}

impl Links {
    /// A link could not be opened. What does not change by waiting ends this node: that it is up already, and,
    /// while it is new, that whom it asks is of another cluster.
    pub(super) fn not_let_in(&self, io: &IoLoop, error: NoLink) {
        let NoLink::Refused(error) = error else { return };
        let shared = &io.shared;
        match error.reason {
            Reason::NodeIsUp => {
                let said = |name| error.metadata.get(name);
                let by_double =
                    said(ANSWERED_BY).is_some_and(|it| *it == shared.identity.node.to_string());
                if let Some(address) = said(PEER_ADDRESS).and_then(|it| it.parse().ok())
                    && by_double
                {
                    return shared.stop_for(StopReason::Double { address });
                }
                self.refused_for_another(io, error);
            }
            Reason::ClusterMismatch => {
                let is_new = shared.view.load().metadata().is_none();
                if is_new && shared.directory.borrow().is_empty() {
                    shared.stop_for(StopReason::NotLetIn(error));
                }
            }
            _ => {}
        }
    }

    /// The others have links to another process of this node.
    fn refused_for_another(&self, io: &IoLoop, error: CallError) {
        if io.index != 0 {
            return;
        }
        if io.lock().peers.iter().next().is_some() {
            return self.refusals.over();
        }
        match self.refusals.once_more() {
            None => tracing::warn!(reason = error.message, "this node is not let in"),
            Some(since) if since > PATIENCE => io.shared.stop_for(StopReason::NotLetIn(error)),
            Some(_) => {}
        }
    }

    /// Asks wherever this node is as well, by what the others have heard, whether a process of it is there. Of
    /// the two the one that started later ends.
    pub(super) async fn run_rivals(self, io: Arc<IoLoop>) -> Option<NodeId> {
        let mut rivals = self.gossip.rivals();
        while rivals.changed().await.is_ok() {
            let Some(address) = *rivals.borrow_and_update() else { continue };
            let mut backoff = Backoff::default();
            for _ in 0..RIVAL_TRIES {
                match self.open(&io, &address.to_string(), JOIN_IO_LOOP).await {
                    Ok(_) => break,
                    Err(error) => self.not_let_in(&io, error),
                }
                backoff.wait(&io).await;
            }
        }
        None
    }
}

/// The address of the process that is up, in errors.
const PEER_ADDRESS: &str = "peer_address";
/// The node that refuses, in errors.
const ANSWERED_BY: &str = "answered_by";
/// How long a node waits to be let in. A link whose peer says nothing is given up after some four seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a process of which others have heard is looked for.
const RIVAL_TRIES: u32 = 10;
