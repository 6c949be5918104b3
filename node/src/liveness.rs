//! The links of one loop to the other nodes: who can be reached, how fast, and what is queued.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use model::{Mutant, NodeId, NodeIndex, ReplicaIndex, ReplicaMask, ReplicaSet};

use crate::{outbox::Outbox, view::View};

/// One loop's link to one node.
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// What is queued for it.
    pub outbox: Arc<Outbox>,
    /// The membership protocol's word on the node, shared by the links of all loops.
    pub status: Arc<PeerStatus>,
}

/// What all loops know of one node.
#[derive(Debug)]
pub struct PeerStatus {
    /// False while the membership protocol calls the node down.
    pub member: AtomicBool,
    /// What it said last of whether it is about to stop.
    pub leaving: AtomicBool,
    /// A moving average of the round trip, in microseconds.
    pub latency_us: AtomicU64,
    /// The metadata that it has said to be at.
    pub metadata_sequence: AtomicU64,
    /// The hash of the directories that it was told of last.
    pub storages_told: AtomicU64,
    /// When it was last heard, in microseconds of elapsed time.
    pub last_heard_us: AtomicU64,
    /// The loops that have a link to it.
    links: AtomicUsize,
    /// What it said of itself when the last link to it was opened.
    linked: Mutex<Option<Linked>>,
}

/// What a node says of itself when a link to it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Which of the node's processes it is: each draws a number of its own.
    pub process: u64,
    /// Where nodes connect to it.
    pub peer_address: SocketAddr,
    /// The version of its software.
    pub software_version: String,
}

impl Default for PeerStatus {
    fn default() -> Self {
        Self {
            member: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            latency_us: AtomicU64::new(LATENCY_US_START),
            metadata_sequence: AtomicU64::new(0),
            storages_told: AtomicU64::new(0),
            last_heard_us: AtomicU64::new(0),
            links: AtomicUsize::new(0),
            linked: Mutex::default(),
        }
    }
}

/// What a link is taken for before it was measured: worse than a local one, better than a far one.
const LATENCY_US_START: u64 = 2_000;

/// How recent a sign of life outweighs the membership protocol's word. Two pings.
const HEARD_LATELY_US: u64 = 2_000_000;

impl PeerStatus {
    /// True unless the membership protocol calls the node down and it was not heard from lately, or it
    /// is about to stop by its own word.
    pub fn is_up(&self, now_us: u64) -> bool {
        let heard_lately = || now_us < self.last_heard_us.load(Ordering::Relaxed) + HEARD_LATELY_US;
        let believed =
            self.member.load(Ordering::Relaxed) || !Mutant::DownForEver.is_on() && heard_lately();
        believed && !self.leaving.load(Ordering::Relaxed)
    }

    /// True if requests to the node have a chance, from one loop at least.
    pub fn is_reachable(&self, now_us: u64) -> bool {
        self.links.load(Ordering::Relaxed) > 0 && self.is_up(now_us)
    }

    /// What the node said of itself when the last link to it was opened; `None` if none ever was.
    pub fn linked(&self) -> Option<Linked> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A link is up to a process that says this of itself.
    pub fn link(&self, linked: Linked) {
        *self.linked.lock().unwrap_or_else(PoisonError::into_inner) = Some(linked);
    }

    /// Takes one round trip into the average: an eighth of the difference each time.
    pub fn measured(&self, round_trip_us: u64) {
        let before = self.latency_us.load(Ordering::Relaxed);
        let after = before - before / 8 + round_trip_us / 8;
        self.latency_us.store(after, Ordering::Relaxed);
    }
}

/// The links of one loop. A node without an entry cannot be reached.
#[derive(Default)]
pub struct Peers {
    by_node: BTreeMap<NodeId, Arc<Peer>>,
    by_index: Vec<Option<Arc<Peer>>>,
    own: Option<NodeIndex>,
    layout_hash: u64,
}

impl Peers {
    /// Adds a link that is up, replacing any earlier one to the node.
    pub fn connected(&mut self, peer: Arc<Peer>, view: &View) {
        peer.status.links.fetch_add(1, Ordering::Relaxed);
        if let Some(replaced) = self.by_node.insert(peer.node, peer) {
            replaced.status.links.fetch_sub(1, Ordering::Relaxed);
        }
        self.reindex(view);
    }

    /// Removes a link, unless another one has replaced it.
    pub fn disconnected(&mut self, peer: &Arc<Peer>, view: &View) -> bool {
        let current = self.by_node.get(&peer.node).is_some_and(|it| Arc::ptr_eq(it, peer));
        if current {
            self.by_node.remove(&peer.node);
            peer.status.links.fetch_sub(1, Ordering::Relaxed);
            self.reindex(view);
        }
        current
    }

    /// Takes over a new layout's indexes, if there is one.
    pub fn follow(&mut self, view: &View) {
        if self.layout_hash != view.layout_hash() {
            self.reindex(view);
        }
    }

    fn reindex(&mut self, view: &View) {
        self.own = view.own();
        self.layout_hash = view.layout_hash();
        let nodes = view.metadata().map(|it| it.layout().nodes()).unwrap_or_default();
        self.by_index = nodes.iter().map(|it| self.by_node.get(&it.id).cloned()).collect();
    }

    /// This node's own place in the layout.
    pub fn own(&self) -> Option<NodeIndex> {
        self.own
    }

    /// The link to a node of the layout, if it is up.
    pub fn get(&self, node: NodeIndex) -> Option<&Arc<Peer>> {
        self.by_index.get(node.index())?.as_ref()
    }

    /// The link to any node, if it is up.
    pub fn by_node(&self, node: NodeId) -> Option<&Arc<Peer>> {
        self.by_node.get(&node)
    }

    /// Every link that is up.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_node.values()
    }

    /// True if requests to the node have a chance: its link is up, and either the membership
    /// protocol calls the node up or it was heard from just now. A busy machine delays probes more
    /// than it delays answers.
    pub fn is_alive(&self, node: NodeIndex, now_us: u64) -> bool {
        self.own == Some(node) || self.get(node).is_some_and(|it| it.status.is_up(now_us))
    }

    /// The replicas of a key to which requests have a chance.
    pub fn alive(&self, replicas: &ReplicaSet, now_us: u64) -> ReplicaMask {
        replicas.select(|node| self.is_alive(node, now_us))
    }

    /// All replicas of a key, fastest first: this node, then its datacenter, then by latency.
    pub fn preferred(&self, replicas: &ReplicaSet, view: &View, order: &mut Vec<ReplicaIndex>) {
        let local = replicas.in_datacenter(view.local_dc());
        order.clear();
        order.extend(replicas.all().iter());
        order.sort_by_key(|it| {
            let node = replicas.node(*it);
            let latency_us = match self.get(node) {
                _ if self.own == Some(node) => 0,
                Some(peer) => 1 + peer.status.latency_us.load(Ordering::Relaxed),
                None => u64::MAX,
            };
            // In a datacenter latencies are alike: rounding keeps noise from herding all reads to
            // one replica, and the order of the preference list then spreads them by key.
            (!local.contains(*it), latency_us.checked_ilog2())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reachable_while_one_loop_has_a_link() {
        let (node, view) = (NodeId(7), View::default());
        let status = Arc::new(PeerStatus::default());
        let link =
            || Arc::new(Peer { node, outbox: Outbox::new(1_000), status: Arc::clone(&status) });
        let (mut first, mut second) = (Peers::default(), Peers::default());
        assert!(!status.is_reachable(0), "known, and never linked");
        let (old, new, other) = (link(), link(), link());
        first.connected(Arc::clone(&old), &view);
        first.connected(Arc::clone(&new), &view);
        second.connected(Arc::clone(&other), &view);
        assert!(!first.disconnected(&old, &view), "it was replaced");
        assert!(first.disconnected(&new, &view) && status.is_reachable(0));
        status.member.store(false, Ordering::Relaxed);
        assert!(!status.is_reachable(2 * HEARD_LATELY_US), "linked, and called down");
        status.member.store(true, Ordering::Relaxed);
        status.leaving.store(true, Ordering::Relaxed);
        assert!(!status.is_reachable(0), "linked, and about to stop");
        status.leaving.store(false, Ordering::Relaxed);
        assert!(second.disconnected(&other, &view) && !status.is_reachable(0));
    }
}
