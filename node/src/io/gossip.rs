//! Carries the membership protocol over the links of the first loop.

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering};

use bytes::Bytes;
use foca::Timer;
use model::{Mutant, NodeDescription, NodeId};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use super::io_loop::IoLoop;
use crate::{
    membership::{Member, Membership, MembershipEffect},
    shared::Shared,
};

/// What happens to the membership of a node.
pub enum GossipEvent {
    /// A peer's packet.
    Packet(Bytes),
    /// A node was met: it said hello.
    Met(Member),
    /// Another has heard of this incarnation of this node.
    Outlived(u64),
    /// A timer came due.
    Timer(Timer<Member>),
    /// This node stops.
    Leave,
}

/// Every node that was ever met, as it last presented itself. Versions only rise.
pub type Directory = BTreeMap<NodeId, Member>;

/// A node's part in the membership protocol, seen by its other parts.
pub struct Gossip {
    events: mpsc::Sender<GossipEvent>,
    directory: watch::Sender<Directory>,
}

/// The timer after which a node called down is forgotten, a day later. Only the newest counts: one
/// that is called down again and again would leave a task behind each time.
type Removals = BTreeMap<NodeId, AbortHandle>;

/// Packets that may wait. More are dropped: the protocol copes with lost packets.
const EVENTS_MAX: usize = 1_024;

impl Gossip {
    /// The two ends: for the other parts, and for `run`.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<GossipEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (directory, _) = watch::channel(Directory::new());
        (Arc::new(Self { events, directory }), receiver)
    }

    /// A peer's packet.
    pub fn packet(&self, packet: Bytes) {
        // A full queue drops packets, as a network would.
        let _ = self.events.try_send(GossipEvent::Packet(packet));
    }

    /// A node said hello.
    pub fn met(&self, member: Member) {
        self.learn(&member);
        // Dropped with a full queue; the next hello or packet of the node makes up for it.
        let _ = self.events.try_send(GossipEvent::Met(member));
    }

    /// A peer has heard of this incarnation of the one it writes to, which is or was this node; 0 if of
    /// no later one than it writes to.
    pub fn outlived(&self, incarnation: u64) {
        if incarnation > 0 {
            // Dropped with a full queue; the peer's next packet says it again.
            let _ = self.events.try_send(GossipEvent::Outlived(incarnation));
        }
    }

    /// The latest incarnation of a node that is known here, if it is later than this member's.
    pub fn later_than(&self, member: &Member) -> Option<u64> {
        let known = self.directory.borrow().get(&member.node()).map(|it| it.incarnation);
        known.filter(|it| *it > member.incarnation)
    }

    /// This node stops.
    pub async fn leave(&self) {
        // The task has ended already if this fails.
        let _ = self.events.send(GossipEvent::Leave).await;
    }

    /// The nodes known, and every change of them.
    pub fn directory(&self) -> watch::Receiver<Directory> {
        self.directory.subscribe()
    }

    /// Notes a node's newest presentation of itself.
    pub fn learn(&self, member: &Member) {
        self.directory.send_if_modified(|directory| {
            let known = directory.get(&member.node());
            let newer = known.is_none_or(|it| it.incarnation < member.incarnation);
            if newer {
                directory.insert(member.node(), member.clone());
            }
            newer
        });
    }

    /// Runs the protocol for as long as the node lives.
    pub async fn run(self: Arc<Self>, io: Arc<IoLoop>, mut events: mpsc::Receiver<GossipEvent>) {
        let shared = Arc::clone(&io.shared);
        let random = StdRng::seed_from_u64(shared.world.seed ^ 0x5157_494d);
        let mut membership = Membership::new(own_member(&shared), random);
        let mut removals = BTreeMap::new();
        while let Some(event) = events.recv().await {
            let effects = match event {
                GossipEvent::Packet(packet) => membership.receive(&packet),
                GossipEvent::Met(member) => membership.announce(member),
                GossipEvent::Outlived(incarnation) => membership.outlived(incarnation),
                GossipEvent::Timer(timer) => membership.timer(timer),
                GossipEvent::Leave => membership.leave(),
            };
            for effect in effects {
                self.execute(&io, &shared, effect, &mut removals);
            }
        }
    }

    fn execute(
        &self,
        io: &IoLoop,
        shared: &Shared,
        effect: MembershipEffect,
        removals: &mut Removals,
    ) {
        match effect {
            MembershipEffect::Send { to, packet, later } => {
                self.learn(&to);
                if let Some(peer) = io.lock().peers.by_node(to.node()) {
                    let bytes = packet.len() + 8;
                    // Not queued is a lost packet.
                    let _ = peer.outbox.push(bytes, |frame| {
                        frame.gossip.push(packet);
                        frame.incarnation_heard = frame.incarnation_heard.max(later.unwrap_or(0));
                    });
                }
            }
            MembershipEffect::Schedule { after, timer } => {
                let removed = match &timer {
                    Timer::RemoveDown(member) => Some(member.node()),
                    _ => None,
                };
                let events = self.events.clone();
                let task = tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    // The node has stopped if this fails.
                    let _ = events.send(GossipEvent::Timer(timer)).await;
                });
                if let Some(node) = removed
                    && let Some(earlier) = removals.insert(node, task.abort_handle())
                {
                    earlier.abort();
                }
            }
            MembershipEffect::Up(member) => {
                self.learn(&member);
                tracing::info!(node = %member.node(), datacenter = member.datacenter, "node is up");
                if !Mutant::DownForEver.is_on() {
                    shared.status(member.node()).member.store(true, Ordering::Relaxed);
                }
            }
            MembershipEffect::Down(member) => {
                tracing::info!(node = %member.node(), datacenter = member.datacenter, "node is down");
                shared.status(member.node()).member.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// This node as it presents itself.
pub(super) fn own_member(shared: &Shared) -> Member {
    let description = NodeDescription {
        id: shared.identity.node,
        datacenter: shared.config.datacenter.clone(),
        rack: shared.config.rack.clone(),
        client_address: shared.identity.client_address,
        peer_address: shared.identity.peer_address,
        capacity: shared.config.capacity,
    };
    Member::new(&description, shared.identity.incarnation)
}
