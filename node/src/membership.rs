//! Who is in the cluster and who is up: SWIM, by foca. Source: Das, Gupta, Motivala (2002).
//!
//! Pure: packets, timers and randomness come in; packets to send, timers to set and changes of
//! members come out. What is up is a hint for coordinators, never a promise.

#[cfg(test)]
use std::collections::BTreeMap;
use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Config, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams,
    PostcardCodec, Timer,
};
use model::{NodeDescription, NodeId};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// A node as it presents itself to the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    node: u128,
    /// Rises with every start, and when a node finds itself called down.
    pub incarnation: u64,
    /// The datacenter.
    pub datacenter: String,
    /// The rack.
    pub rack: String,
    /// Where clients connect.
    pub client_address: SocketAddr,
    /// Where nodes connect.
    pub peer_address: SocketAddr,
    /// The weight in layouts.
    pub capacity: u32,
}

impl Member {
    /// Describes a node.
    pub fn new(description: &NodeDescription, incarnation: u64) -> Self {
        Self {
            node: description.id.0,
            incarnation,
            datacenter: description.datacenter.clone(),
            rack: description.rack.clone(),
            client_address: description.client_address,
            peer_address: description.peer_address,
            capacity: description.capacity,
        }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    /// As layouts describe it.
    pub fn description(&self) -> NodeDescription {
        NodeDescription {
            id: self.node(),
            datacenter: self.datacenter.clone(),
            rack: self.rack.clone(),
            client_address: self.client_address,
            peer_address: self.peer_address,
            capacity: self.capacity,
        }
    }
}

impl foca::Identity for Member {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let incarnation = self.incarnation.checked_add(1)?;
        Some(Self { incarnation, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.node()
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.incarnation > other.incarnation
    }
}

/// Something the world has to do for the protocol, or to know.
#[derive(Debug)]
pub(crate) enum MembershipEffect {
    /// Send a packet.
    Send {
        /// To this member.
        to: Member,
        /// The packet.
        packet: Bytes,
        /// The incarnation that was heard of, if it is later than this one.
        later: Option<Later>,
    },
    /// Call `timer` with this, later. Every timer must come, but for a `RemoveDown` that one of the same
    /// node follows.
    Schedule {
        /// How much later.
        after: Duration,
        /// What to call with.
        timer: Timer<Member>,
    },
    /// A member is up.
    Up(Member),
    /// A member is down.
    Down(Member),
    /// A member that was down for a day is forgotten.
    Forgotten(NodeId),
    /// This node is, or was, at another address as well.
    Rival(SocketAddr),
}

/// A later incarnation of a node than the one that is spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// The incarnation.
    pub incarnation: u64,
    /// Where nodes connect to it.
    pub peer_address: SocketAddr,
}

impl Later {
    /// Of a member, if it is later than the other.
    pub(crate) fn of(known: &Member, than: &Member) -> Option<Self> {
        let Member { incarnation, peer_address, .. } = *known;
        (incarnation > than.incarnation).then_some(Self { incarnation, peer_address })
    }
}

/// One node's part in the protocol.
pub(crate) struct Membership {
    foca: Foca<Member, PostcardCodec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    #[cfg(test)]
    up: BTreeMap<NodeId, Member>,
}

impl Membership {
    /// A node that knows nobody yet.
    pub(crate) fn new(own: Member, random: StdRng) -> Self {
        let foca = Foca::new(own, config(), random, PostcardCodec);
        Self {
            foca,
            runtime: AccumulatingRuntime::new(),
            #[cfg(test)]
            up: BTreeMap::new(),
        }
    }

    /// The other members that are up.
    #[cfg(test)]
    pub(crate) fn up(&self) -> &BTreeMap<NodeId, Member> {
        &self.up
    }

    /// Tells a member, met by other means, that this node is there.
    pub(crate) fn announce(&mut self, to: Member) -> Vec<MembershipEffect> {
        let result = self.foca.announce(to, &mut self.runtime);
        self.effects(result)
    }

    /// Takes a packet. One that makes no sense changes nothing.
    pub(crate) fn receive(&mut self, packet: &[u8]) -> Vec<MembershipEffect> {
        let result = self.foca.handle_data(packet, &mut self.runtime);
        self.effects(result)
    }

    /// Another has heard of this incarnation of this node. A node whose disk and clock both went back
    /// begins below what it has been before: it goes past that in one step, as it would find no end of
    /// members that call it down otherwise.
    pub(crate) fn outlived(&mut self, later: Later) -> Vec<MembershipEffect> {
        let (own, incarnation) = (self.foca.identity(), later.incarnation);
        if incarnation <= own.incarnation {
            return Vec::new();
        }
        if incarnation >= INCARNATION_MAX {
            tracing::warn!(incarnation, "a later incarnation that cannot be is not believed");
            return Vec::new();
        }
        let elsewhere = (later.peer_address != own.peer_address).then_some(later.peer_address);
        let next = Member { incarnation: incarnation + 1, ..own.clone() };
        tracing::info!(
            from = own.incarnation,
            to = next.incarnation,
            "a later incarnation is known"
        );
        let result = self.foca.change_identity(next, &mut self.runtime);
        let mut effects = self.effects(result);
        effects.extend(elsewhere.map(MembershipEffect::Rival));
        effects
    }

    /// The incarnation of a node that the protocol goes by, if it is later than this member's.
    fn later_than(&self, member: &Member) -> Option<Later> {
        let mut known = self.foca.iter_membership_state().map(foca::Member::id);
        let same = known.find(|it| it.node == member.node)?;
        Later::of(same, member)
    }

    /// Takes a timer that was scheduled.
    pub(crate) fn timer(&mut self, timer: Timer<Member>) -> Vec<MembershipEffect> {
        let removed = match &timer {
            Timer::RemoveDown(member) => Some(member.node()),
            _ => None,
        };
        let result = self.foca.handle_timer(timer, &mut self.runtime);
        let mut effects = self.effects(result);
        let mut known = self.foca.iter_membership_state();
        let gone = removed.filter(|node| known.all(|it| it.id().node() != *node));
        effects.extend(gone.map(MembershipEffect::Forgotten));
        effects
    }

    /// Tells the others that this node leaves, so that they need not suspect it first.
    pub(crate) fn leave(&mut self) -> Vec<MembershipEffect> {
        let result = self.foca.leave_cluster(&mut self.runtime);
        self.effects(result)
    }

    fn effects(&mut self, result: Result<(), foca::Error>) -> Vec<MembershipEffect> {
        if let Err(error) = result {
            // Expected now and then: packets of a member's earlier life, damaged packets.
            tracing::debug!(%error, "membership");
        }
        let mut effects = Vec::new();
        while let Some((to, packet)) = self.runtime.to_send() {
            let later = self.later_than(&to);
            effects.push(MembershipEffect::Send { to, packet, later });
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            effects.push(MembershipEffect::Schedule { after, timer });
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => {
                    #[cfg(test)]
                    self.up.insert(member.node(), member.clone());
                    effects.push(MembershipEffect::Up(member));
                }
                OwnedNotification::MemberDown(member) => {
                    #[cfg(test)]
                    self.up.remove(&member.node());
                    effects.push(MembershipEffect::Down(member));
                }
                OwnedNotification::Rename(_, member) => {
                    #[cfg(test)]
                    self.up.insert(member.node(), member.clone());
                    effects.push(MembershipEffect::Up(member));
                }
                _ => {}
            }
        }
        effects
    }
}

/// Tuned for links within a few hundred milliseconds: a silent node is suspected after about a
/// second and called down some seconds later; a broken connection is noticed at once, elsewhere.
fn config() -> Config {
    let size = NonZeroU32::new(32).expect("not zero");
    let one = NonZeroUsize::new(1).expect("not zero");
    Config {
        periodic_announce: Some(PeriodicParams {
            frequency: Duration::from_secs(5),
            num_members: one,
        }),
        periodic_announce_to_down_members: Some(PeriodicParams {
            frequency: Duration::from_secs(5),
            num_members: NonZeroUsize::new(2).expect("not zero"),
        }),
        // Carried on streams: packets need not fit a datagram.
        max_packet_size: NonZeroUsize::new(PACKET_BYTES_MAX).expect("not zero"),
        ..Config::new_lan(size)
    }
}

const PACKET_BYTES_MAX: usize = 16 << 10;
/// Far above every start, which counts seconds times a million renewals; what says more is not so.
const INCARNATION_MAX: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn member(number: u16) -> Member {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let description = NodeDescription {
            id: NodeId(number.into()),
            datacenter: "dc1".to_owned(),
            rack: "r".to_owned(),
            client_address: address(number),
            peer_address: address(number + 1),
            capacity: 1,
        };
        Member::new(&description, 1 << 20)
    }

    fn joining(number: u16, incarnation: u64) -> Membership {
        let own = Member { incarnation, ..member(number) };
        Membership::new(own, StdRng::seed_from_u64(number.into()))
    }

    /// A network that loses nothing, and a clock that jumps to the next timer.
    struct World {
        nodes: BTreeMap<NodeId, Membership>,
        timers: Vec<(Duration, NodeId, Timer<Member>)>,
        now: Duration,
        sent: usize,
        /// Who has heard of another process of itself.
        rivals: Vec<SocketAddr>,
    }

    impl World {
        fn new(nodes: u16) -> Self {
            let node = |it| (NodeId(u128::from(it)), joining(it, member(it).incarnation));
            let nodes = (1..=nodes).map(node).collect();
            Self { nodes, timers: Vec::new(), now: Duration::ZERO, sent: 0, rivals: Vec::new() }
        }

        fn announce(&mut self, number: u16) {
            let node = NodeId(number.into());
            let effects = self.nodes.get_mut(&node).unwrap().announce(member(1));
            self.execute(node, effects);
        }

        fn execute(&mut self, node: NodeId, effects: Vec<MembershipEffect>) {
            let mut pending: Vec<_> = effects.into_iter().map(|it| (node, it)).collect();
            while let Some((from, effect)) = pending.pop() {
                match effect {
                    MembershipEffect::Send { to, packet, later } => {
                        self.sent += 1;
                        if let Some(node) = self.nodes.get_mut(&to.node()) {
                            let mut effects = node.receive(&packet);
                            effects.extend(later.into_iter().flat_map(|it| node.outlived(it)));
                            pending.extend(effects.into_iter().map(|it| (to.node(), it)));
                        }
                    }
                    MembershipEffect::Schedule { after, timer } => {
                        self.timers.push((self.now + after, from, timer));
                    }
                    MembershipEffect::Up(_)
                    | MembershipEffect::Down(_)
                    | MembershipEffect::Forgotten(_) => {}
                    MembershipEffect::Rival(address) => self.rivals.push(address),
                }
            }
        }

        fn run_for(&mut self, time: Duration) {
            let until = self.now + time;
            loop {
                self.timers.sort_by_key(|it| std::cmp::Reverse(it.0));
                let Some((at, node, timer)) = self.timers.pop_if(|it| it.0 <= until) else {
                    self.now = until;
                    return;
                };
                self.now = at;
                if let Some(it) = self.nodes.get_mut(&node) {
                    let effects = it.timer(timer);
                    self.execute(node, effects);
                }
            }
        }

        fn seen(&self) -> Vec<usize> {
            self.nodes.values().map(|it| it.up().len()).collect()
        }
    }

    #[test]
    fn members_find_each_other_and_miss_the_one_that_goes() {
        let mut world = World::new(4);
        (2..=4).for_each(|it| world.announce(it));
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.seen(), [3, 3, 3, 3], "everybody sees everybody");

        world.nodes.remove(&NodeId(4));
        world.run_for(Duration::from_secs(60));
        assert_eq!(world.seen(), [2, 2, 2], "the one that went is missed");
    }

    #[test]
    fn a_node_that_begins_below_what_it_was_is_back_at_once() {
        let mut world = World::new(4);
        (2..=4).for_each(|it| world.announce(it));
        world.run_for(Duration::from_secs(10));

        world.timers.retain(|it| it.1 != NodeId(4));
        world.nodes.insert(NodeId(4), joining(4, member(4).incarnation >> 1));
        let before = world.sent;
        world.announce(4);
        assert!(world.sent - before < 100, "{} packets to get in", world.sent - before);
        let seen_by_first = &world.nodes[&NodeId(1)].up()[&NodeId(4)];
        assert!(seen_by_first.incarnation > member(4).incarnation, "the one it met knows at once");
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.seen(), [3, 3, 3, 3], "everybody sees everybody");
        let incarnation =
            |node: u16| world.nodes[&NodeId(1)].up()[&NodeId(node.into())].incarnation;
        assert!(incarnation(4) > member(4).incarnation, "it is past what it was");
    }

    #[test]
    fn of_a_later_process_elsewhere_a_node_hears() {
        let mut world = World::new(3);
        (2..=3).for_each(|it| world.announce(it));
        world.run_for(Duration::from_secs(10));
        assert!(world.rivals.is_empty());
        let elsewhere = SocketAddr::from(([127, 0, 0, 9], 3));
        let own = Member { incarnation: 2 << 20, peer_address: elsewhere, ..member(3) };
        let mut double = Membership::new(own, StdRng::seed_from_u64(9));
        for effect in double.announce(member(1)) {
            if let MembershipEffect::Send { packet, .. } = effect {
                let effects = world.nodes.get_mut(&NodeId(1)).unwrap().receive(&packet);
                world.execute(NodeId(1), effects);
            }
        }
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.rivals.first(), Some(&elsewhere), "the first process hears of it");
    }

    #[test]
    fn a_member_is_forgotten_unless_it_is_back() {
        for back in [false, true] {
            let mut world = World::new(3);
            (2..=3).for_each(|it| world.announce(it));
            world.run_for(Duration::from_secs(10));
            world.nodes.remove(&NodeId(3));
            world.run_for(Duration::from_secs(60));
            if back {
                world.nodes.insert(NodeId(3), joining(3, 2 << 20));
                world.announce(3);
                world.run_for(Duration::from_secs(10));
            }
            let of_first = |it: &(_, NodeId, Timer<Member>)| {
                it.1 == NodeId(1) && matches!(it.2, Timer::RemoveDown(_))
            };
            let at = world.timers.iter().position(of_first).expect("it was called down");
            let effects =
                world.nodes.get_mut(&NodeId(1)).unwrap().timer(world.timers.swap_remove(at).2);
            let forgets = |it: &MembershipEffect| matches!(it, MembershipEffect::Forgotten(node) if *node == NodeId(3));
            assert_eq!(effects.iter().any(forgets), !back);
        }
    }

    #[test]
    fn a_later_incarnation_that_cannot_be_is_not_believed() {
        let mut it = joining(1, 7);
        let peer_address = it.foca.identity().peer_address;
        let later = |incarnation| Later { incarnation, peer_address };
        assert!(it.outlived(later(u64::MAX)).is_empty());
        assert!(it.outlived(later(INCARNATION_MAX)).is_empty());
        assert!(it.outlived(later(7)).is_empty());
        assert_eq!(it.foca.identity().incarnation, 7);
        it.outlived(later(8));
        assert_eq!(it.foca.identity().incarnation, 9);
    }

    #[test]
    fn garbage_changes_nothing() {
        let mut it = joining(1, 7);
        for packet in [&b""[..], b"x", &[0xff; 64]] {
            assert!(it.receive(packet).is_empty());
        }
    }
}
