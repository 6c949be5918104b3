//! Carries the membership protocol over the links of the first loop.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use foca::Timer;
use model::{Mutant, NodeDescription, NodeId};
use proto::internal::Frame;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use super::io_loop::IoLoop;
use crate::{
    membership::{Later, Member, Membership, MembershipEffect},
    shared::Shared,
};

/// What happens to the membership of a node.
pub enum GossipEvent {
    /// A peer's packet.
    Packet(Bytes),
    /// A node was met: it said hello.
    Met(Member),
    /// Another has heard of this incarnation of this node.
    Outlived(Later),
    /// A timer came due.
    Timer(Timer<Member>),
    /// This node stops.
    Leave,
}

/// The nodes that were met, as they last presented themselves. Those of no layout are forgotten when the membership
/// protocol forgets them, a day after they were called down. Versions only rise.
pub type Directory = BTreeMap<NodeId, Member>;

/// A node's part in the membership protocol, seen by its other parts.
pub struct Gossip {
    events: mpsc::Sender<GossipEvent>,
    directory: watch::Sender<Directory>,
    rivals: watch::Sender<Option<SocketAddr>>,
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
        let (rivals, _) = watch::channel(None);
        (Arc::new(Self { events, directory, rivals }), receiver)
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

    /// Takes what a peer's frame says of a later incarnation than the one it writes to, which is or was this
    /// node.
    pub fn outlived(&self, frame: &Frame) {
        if frame.incarnation_heard > 0
            && let Ok(peer_address) = frame.heard_at.parse()
        {
            let later = Later { incarnation: frame.incarnation_heard, peer_address };
            // Dropped with a full queue; the peer's next packet says it again.
            let _ = self.events.try_send(GossipEvent::Outlived(later));
        }
    }

    /// Says in a frame to a node that a later incarnation of it is known here, if that is so.
    pub fn say_later(&self, frame: &mut Frame, member: &Member) {
        let directory = self.directory.borrow();
        say(frame, directory.get(&member.node()).and_then(|it| Later::of(it, member)));
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

    /// A member has a link to a process of this node at this address.
    pub fn rival(&self, address: SocketAddr) {
        self.rivals.send_replace(Some(address));
    }

    /// Where this node is as well, or was, as others have heard last.
    pub fn rivals(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.rivals.subscribe()
    }

    /// Notes a node's newest presentation of itself. One for whom there is no room is not noted.
    pub fn learn(&self, member: &Member) {
        self.directory.send_if_modified(|directory| {
            let newer = match directory.get(&member.node()) {
                Some(known) => known.incarnation < member.incarnation,
                None => directory.len() < DIRECTORY_MAX,
            };
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
                GossipEvent::Outlived(later) => membership.outlived(later),
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
                        say(frame, later);
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
            MembershipEffect::Forgotten(node) => {
                removals.remove(&node);
                if shared.view.load().node_index(node).is_none() {
                    self.directory.send_if_modified(|it| it.remove(&node).is_some());
                }
            }
            MembershipEffect::Rival(address) => self.rival(address),
        }
    }
}

impl Shared {
    /// False for a node of no layout that the directory has no room for.
    pub(super) fn knows_or_has_room_for(&self, node: NodeId) -> bool {
        let directory = self.directory.borrow();
        directory.len() < DIRECTORY_MAX
            || directory.contains_key(&node)
            || self.view.load().node_index(node).is_some()
    }
}

/// The most nodes in a directory: as many as a layout has, twice over.
pub(super) const DIRECTORY_MAX: usize = 2 * model::Layout::NODES_MAX;

fn say(frame: &mut Frame, later: Option<Later>) {
    if let Some(later) = later.filter(|it| it.incarnation > frame.incarnation_heard) {
        frame.incarnation_heard = later.incarnation;
        frame.heard_at = later.peer_address.to_string();
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
