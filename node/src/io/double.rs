//! One process for each node (F14): while one can be reached, another one with its identity, as a copied
//! data directory has it, is not let in; and of two that meet one ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use model::{Mutant, NodeId};
use proto::{CallError, Reason, internal::Hello};
use tokio::time::Instant;

use super::{
    io_loop::IoLoop,
    links::{Backoff, JOIN_IO_LOOP, Links, NoLink},
};
use crate::{
    counters::Counters,
    membership::Member,
    shared::{Shared, StopReason},
};

/// How far a process of a node has come, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    /// It takes and answers requests: nobody has anything against it.
    is_open: bool,
    /// It did at some time.
    has_opened: bool,
    /// Of two that stand alike the higher one is the later start.
    start: (u64, u64),
    /// Where nodes connect to it.
    address: SocketAddr,
}

impl Standing {
    /// True if this process ends where it meets the other one. Of two that are both open neither does: each has
    /// members who know no other.
    fn gives_way_to(self, other: Self) -> bool {
        !self.is_open && (other.is_open || self.start > other.start)
    }

    fn of(member: &Member, hello: &Hello) -> Self {
        Self {
            is_open: hello.is_open,
            has_opened: hello.has_opened,
            start: (member.incarnation, hello.process),
            address: member.peer_address,
        }
    }
}

impl Shared {
    /// Refuses a process of a node while another one of the same node can be reached.
    pub(super) fn judge_process(
        self: &Arc<Self>,
        member: &Member,
        hello: &Hello,
    ) -> Result<(), CallError> {
        let node = member.node();
        if Mutant::DoubleLetIn.is_on() {
            return Ok(());
        }
        if node == self.identity.node {
            return self.judge_double(member, hello);
        }
        let Some(status) = self.status_if_known(node) else { return Ok(()) };
        match status.linked().filter(|it| it.process != hello.process) {
            Some(linked) if status.is_reachable(self.elapsed_us()) => {
                Counters::count(&self.counters.processes_refused);
                Err(is_up(member).with(PEER_ADDRESS, linked.peer_address))
            }
            _ => Ok(()),
        }
    }

    /// A process says that it is this node. One that gives way ends when it is told that this one knows, and no
    /// sooner: what it has acknowledged is known to be missing here then.
    fn judge_double(self: &Arc<Self>, member: &Member, hello: &Hello) -> Result<(), CallError> {
        if hello.process == self.process {
            // This one itself, by an address to join.
            return Ok(());
        }
        let (own, other) = (self.standing(), Standing::of(member, hello));
        let gives_way = other.gives_way_to(own);
        if gives_way {
            self.outlast(other);
        }
        let error = is_up(member).with(PEER_ADDRESS, own.address);
        Err(error.with(DOUBLE, if gives_way { GIVES_WAY } else { STAYS }))
    }

    fn standing(&self) -> Standing {
        Standing {
            is_open: !self.floors.is_shut(),
            has_opened: self.has_opened(),
            start: (self.identity.incarnation, self.process),
            address: self.identity.peer_address,
        }
    }

    /// Another process of this node ends. What it has acknowledged is not here: this directory counts for nothing
    /// until others have filled it.
    fn outlast(self: &Arc<Self>, other: Standing) {
        tracing::warn!(address = %other.address, "another process of this node gives way to this one");
        if other.has_opened && !Mutant::DoubleUnfilled.is_on() {
            self.doubt_directory(other.start.1);
        }
    }
}

fn is_up(member: &Member) -> CallError {
    let node = member.node();
    let message = format!("node {node} is up: no other process can be that node");
    CallError::new(Reason::NodeIsUp, message).with("node", node)
}

impl NoLink {
    /// True if a member has a link to another process of this node. That process may be there itself: it is no
    /// member that says so.
    pub(super) fn is_doubt(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        error.reason == Reason::NodeIsUp && !error.metadata.contains_key(DOUBLE)
    }
}

/// Since when nobody lets this node in, and when that was last so.
#[derive(Default)]
pub(super) struct Refusals {
    refused: Mutex<Option<(Instant, Instant)>>,
    /// It was said once that another process of this node goes on, as this one does.
    double_told: AtomicBool,
}

impl Refusals {
    /// Somebody has let this node in.
    pub(super) fn over(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Nobody does; for how long it has gone on like this. Nobody's word is no refusal, and ends it.
    fn once_more(&self) -> Duration {
        let now = Instant::now();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let since = refused.filter(|it| now - it.1 < SILENCE).map_or(now, |it| it.0);
        *refused = Some((since, now));
        now - since
    }
}

impl Links {
    /// A link could not be opened. What does not change by waiting ends this node: that it is up already, and,
    /// while it is new, that whom it asks is of another cluster.
    pub(super) fn not_let_in(&self, io: &IoLoop, error: NoLink) {
        let NoLink::Refused(error) = error else { return };
        let shared = &io.shared;
        let said = |name| error.metadata.get(name).map(String::as_str);
        let address = said(PEER_ADDRESS).and_then(|it| it.parse().ok());
        match (error.reason, said(DOUBLE), address) {
            (Reason::NodeIsUp, Some(GIVES_WAY), Some(address)) => {
                shared.stop_for(StopReason::Double { address });
            }
            (Reason::NodeIsUp, Some(_), Some(address)) => self.refused_by_double(shared, address),
            (Reason::NodeIsUp, None, address) => {
                address.into_iter().for_each(|it| self.gossip.rival(it));
                self.refused_by_all(io, error);
            }
            (Reason::ClusterMismatch, ..) if shared.view.load().metadata().is_none() => {
                self.refused_by_all(io, error);
            }
            _ => {}
        }
    }

    /// Another process of this node refuses this one, and does not end.
    fn refused_by_double(&self, shared: &Shared, address: SocketAddr) {
        if !shared.standing().is_open {
            return;
        }
        Counters::count(&shared.counters.doubles_met);
        if !self.refusals.double_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%address, "another process of this node has members of its own: both go on");
        }
    }

    /// Asks where a process that says it is this node is, if it is one.
    pub(super) fn met_double(&self, shared: &Shared, hello: &Hello) {
        let is_own = NodeId::from_slice(&hello.node_id) == Some(shared.identity.node);
        if is_own && hello.process != shared.process {
            hello.peer_address.parse().into_iter().for_each(|it| self.gossip.rival(it));
        }
    }

    /// Ends this node once that has gone on for long, and nobody has let it in meanwhile.
    fn refused_by_all(&self, io: &IoLoop, error: CallError) {
        if io.index != 0 {
            return;
        }
        if io.lock().peers.iter().next().is_some() {
            return self.refusals.over();
        }
        if self.refusals.once_more() > PATIENCE {
            io.shared.stop_for(StopReason::NotLetIn(error));
        }
    }

    /// Asks wherever this node is as well, by what the others have heard, whether a process of it is there. Of
    /// the two one ends.
    pub(super) async fn run_rivals(self, io: Arc<IoLoop>) -> Option<NodeId> {
        let mut rivals = self.gossip.rivals();
        while rivals.changed().await.is_ok() {
            let Some(address) = *rivals.borrow_and_update() else { continue };
            let mut backoff = Backoff::default();
            for _ in 0..RIVAL_TRIES {
                let opened = self.open(&io, &address.to_string(), JOIN_IO_LOOP).await;
                let is_another_node = opened.is_ok();
                if let Err(error) = opened {
                    self.not_let_in(&io, error);
                }
                backoff.wait(&io).await;
                if is_another_node {
                    break;
                }
            }
        }
        None
    }
}

/// The address of the process that is up, in errors.
const PEER_ADDRESS: &str = "peer_address";
/// Whether the other process of its node that refuses a process knows that it ends, in errors.
const DOUBLE: &str = "double";
const GIVES_WAY: &str = "gives_way";
const STAYS: &str = "stays";
/// How long a node waits to be let in. A link whose peer says nothing is given up after some four seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Refusals further apart than this are not of one time.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a process of which others have heard is looked for, until it is heard of again.
const RIVAL_TRIES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(is_open: bool, start: u64) -> Standing {
        let address = SocketAddr::from(([127, 0, 0, 1], 7401));
        Standing { is_open, has_opened: true, start: (start, 7), address }
    }

    #[test]
    fn of_two_processes_one_gives_way_at_most() {
        for (one_open, other_open) in [(true, true), (true, false), (false, true), (false, false)] {
            let (earlier, later) = (standing(one_open, 1), standing(other_open, 2));
            let gives_way = (earlier.gives_way_to(later), later.gives_way_to(earlier));
            let expected = match (one_open, other_open) {
                (true, true) => (false, false),
                (false, true) => (true, false),
                (true, false) | (false, false) => (false, true),
            };
            assert_eq!(gives_way, expected, "{one_open} {other_open}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_counted_from_the_first_of_one_time() {
        let refusals = Refusals::default();
        assert_eq!(refusals.once_more(), Duration::ZERO);
        tokio::time::advance(SILENCE / 2).await;
        assert_eq!(refusals.once_more(), SILENCE / 2);
        tokio::time::advance(SILENCE).await;
        assert_eq!(refusals.once_more(), Duration::ZERO, "nobody said anything meanwhile");
        tokio::time::advance(SILENCE / 2).await;
        refusals.over();
        assert_eq!(refusals.once_more(), Duration::ZERO);
    }
}
