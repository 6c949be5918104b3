//! The agreement, under random loss, duplication, reordering, restarts and proposers that give up.

use model::{
    Change, ClusterId, ConflictType, ConsistencyLevel, Keyspace, KeyspaceId, Limits, StorageId,
    plan,
};
use proptest::prelude::*;

use super::*;

fn description(id: u128, datacenter: &str, rack: &str) -> NodeDescription {
    let address = "127.0.0.1:1".parse().unwrap();
    NodeDescription {
        id: NodeId(id),
        datacenter: datacenter.into(),
        rack: rack.into(),
        client_address: address,
        peer_address: address,
        capacity: 1,
    }
}

/// A cluster of these nodes, all in one datacenter. The key tells values apart.
fn genesis_of(ids: impl IntoIterator<Item = u128>, key: u8) -> Metadata {
    let nodes: Vec<_> = ids.into_iter().map(|it| description(it, "dc", "rack")).collect();
    let layout = plan(&nodes, None, 1).unwrap().layout;
    Metadata::genesis(ClusterId(7), [key; 16], layout).unwrap()
}

fn with_keyspace(parent: &Metadata, name: &str) -> Metadata {
    let keyspace = Keyspace {
        id: KeyspaceId(0),
        name: name.into(),
        replicas: vec![("dc".into(), 1)],
        read_level: ConsistencyLevel::One,
        write_level: ConsistencyLevel::One,
        default_ttl_seconds: None,
        require_overlap: false,
        allow_any: false,
        conflict: ConflictType::LastWriterWins,
    };
    let change = Change::CreateKeyspace { keyspace, accept_weak: false };
    parent.successor(change, &Limits::default()).unwrap()
}

/// Nodes, proposers and the messages between them.
struct World {
    parent: Option<Metadata>,
    nodes: Vec<Node>,
    proposers: Vec<Live>,
    messages: Vec<Message>,
    decided: Vec<Metadata>,
    runs: u64,
}

struct Node {
    id: NodeId,
    current: Option<Metadata>,
    disk: Option<Vec<u8>>,
}

struct Live {
    proposer: Proposer,
    alive: bool,
}

#[derive(Clone)]
enum Message {
    Request { to: NodeId, proposer: usize, bytes: Vec<u8> },
    Reply { from: NodeId, proposer: usize, bytes: Vec<u8> },
}

const STORAGE: StorageId = StorageId(5);

impl World {
    fn new(ids: impl Iterator<Item = u128>, parent: Option<Metadata>) -> Self {
        let node = |id| Node { id: NodeId(id), current: parent.clone(), disk: None };
        let nodes = ids.map(node).collect();
        let (proposers, messages, decided) = (Vec::new(), Vec::new(), Vec::new());
        Self { parent, nodes, proposers, messages, decided, runs: 0 }
    }

    fn propose(&mut self, node: usize, value: Metadata) -> usize {
        self.runs += 1;
        let id = self.nodes[node % self.nodes.len()].id;
        let proposer = Proposer::new(self.parent.clone(), value, id, self.runs).unwrap();
        self.proposers.push(Live { proposer, alive: true });
        let at = self.proposers.len() - 1;
        self.retry(at);
        at
    }

    fn retry(&mut self, at: usize) {
        let steps = self.proposers[at].proposer.retry();
        self.take(at, steps);
    }

    fn take(&mut self, proposer: usize, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send { to, request } => {
                    let bytes = request.encode();
                    let message = |to| Message::Request { to, proposer, bytes: bytes.clone() };
                    self.messages.extend(to.into_iter().map(message));
                }
                Step::Teach(node) => self.learn(node, self.parent.clone()),
                Step::Pause => {} // a later event retries
                Step::Done(Outcome::Decided { metadata, .. }) => {
                    self.proposers[proposer].alive = false;
                    self.decided.push(metadata);
                    self.assert_one_decision();
                }
                Step::Done(Outcome::Conflict { other, .. }) => {
                    self.proposers[proposer].alive = false;
                    assert_eq!(self.parent, None, "only a first decision has other nodes");
                    self.propose(proposer, other);
                }
                Step::Done(other) => panic!("{other:?}"),
            }
        }
    }

    /// Two decisions of one instance are the same; two first ones, if they share a node.
    fn assert_one_decision(&self) {
        for a in &self.decided {
            for b in &self.decided {
                let shared =
                    a.layout().nodes().iter().any(|it| b.layout().node_index(it.id).is_some());
                assert!(!shared || a.hash() == b.hash(), "two decisions: {a:?} and {b:?}");
            }
        }
    }

    fn learn(&mut self, node: NodeId, metadata: Option<Metadata>) {
        let node = self.nodes.iter_mut().find(|it| it.id == node).unwrap();
        let sequence = |it: &Option<Metadata>| it.as_ref().map(Metadata::sequence);
        if sequence(&metadata) > sequence(&node.current) {
            node.current = metadata;
        }
    }

    /// Lets an acceptor judge a request. Its memory is its disk alone: it restarts every time.
    fn judge(&mut self, to: NodeId, bytes: &[u8]) -> Reply {
        let node = self.nodes.iter_mut().find(|it| it.id == to).unwrap();
        let acceptor = match &node.disk {
            None => Acceptor::new(STORAGE),
            Some(bytes) => Acceptor::decode(bytes, STORAGE).unwrap(),
        };
        let request = Request::decode(bytes).unwrap();
        let (next, reply) = acceptor.handle(to, node.current.as_ref(), &request);
        if let Some(next) = next {
            node.disk = Some(next.encode());
        }
        reply
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Request { to, proposer, bytes } => {
                let bytes = self.judge(to, &bytes).encode();
                self.messages.push(Message::Reply { from: to, proposer, bytes });
            }
            Message::Reply { from, proposer, bytes } => {
                if self.proposers[proposer].alive {
                    let reply = Reply::decode(&bytes).unwrap();
                    let steps = self.proposers[proposer].proposer.handle(from, reply);
                    self.take(proposer, steps);
                }
            }
        }
    }

    /// One random event; `value` makes the value of a new proposer.
    fn step(&mut self, (event, pick): (u8, usize), value: impl FnOnce(usize) -> Metadata) {
        let message = (!self.messages.is_empty()).then(|| pick % self.messages.len());
        match (event, message) {
            (0..=11, Some(at)) => {
                let message = self.messages.swap_remove(at);
                self.deliver(message);
            }
            (12, Some(at)) => self.deliver(self.messages[at].clone()),
            (13, Some(at)) => drop(self.messages.swap_remove(at)),
            (14, Some(at)) => {
                // The acceptor dies between its disk and its reply.
                if let Message::Request { to, bytes, .. } = self.messages.swap_remove(at) {
                    self.judge(to, &bytes);
                }
            }
            (15, _) if !self.proposers.is_empty() => {
                let at = pick % self.proposers.len();
                if self.proposers[at].alive {
                    self.retry(at);
                }
            }
            (16, _) if !self.proposers.is_empty() => {
                let at = pick % self.proposers.len();
                self.proposers[at].alive = false;
            }
            (17, _) if !self.decided.is_empty() => {
                let node = self.nodes[pick % self.nodes.len()].id;
                let of_node = |it: &&Metadata| it.layout().node_index(node).is_some();
                let metadata = self.decided.iter().find(of_node).cloned();
                self.learn(node, metadata);
            }
            _ => drop(self.propose(pick, value(pick))),
        }
    }

    /// Lets one proposer run alone, with these nodes down.
    fn run_alone(&mut self, proposer: usize, down: &[NodeId]) {
        for _ in 0..20 {
            while let Some(message) = self.messages.pop() {
                let of = match &message {
                    Message::Request { proposer, to, .. } if !down.contains(to) => *proposer,
                    Message::Reply { proposer, .. } => *proposer,
                    Message::Request { .. } => usize::MAX,
                };
                if of >= proposer && of != usize::MAX {
                    self.deliver(message);
                }
            }
            // What waits is tried again, and so is what waits for an acceptor that is down.
            match self.proposers.iter().position(|it| it.alive) {
                Some(at) => self.retry(at),
                None => return,
            }
        }
    }
}

fn events() -> impl Strategy<Value = Vec<(u8, usize)>> {
    proptest::collection::vec((0..20u8, any::<usize>()), 1..400)
}

proptest! {
    #[test]
    fn a_majority_never_decides_twice(count in 1..8u128, events in events(), down: usize) {
        let parent = genesis_of(1..=count, 0);
        let mut world = World::new(1..=count, Some(parent.clone()));
        for event in events {
            world.step(event, |pick| with_keyspace(&parent, &format!("k{}", pick % 5)));
        }

        // Then a lone proposer decides, whichever minority is down.
        world.proposers.iter_mut().for_each(|it| it.alive = false);
        world.messages.clear();
        let acceptors = acceptors(&parent);
        let minority = (acceptors.len() - 1) / 2;
        let down: Vec<_> = (0..minority).map(|it| acceptors[(down % 8 + it) % acceptors.len()]).collect();
        let before = world.decided.len();
        let alone = world.propose(0, with_keyspace(&parent, "last"));
        world.run_alone(alone, &down);
        prop_assert_eq!(world.decided.len(), before + 1, "{:?}", world.proposers[alone].proposer.progress());
    }

    #[test]
    fn first_decisions_never_share_a_node(events in events()) {
        let mut world = World::new(1..=5, None);
        for event in events {
            world.step(event, |pick| {
                let members = (1..=5u128).filter(|it| (pick % 31 + 1) & (1 << (it - 1)) != 0);
                genesis_of(members, u8::try_from(pick % 3).unwrap())
            });
        }
        world.proposers.iter_mut().for_each(|it| it.alive = false);
        world.messages.clear();
        let before = world.decided.len();
        let alone = world.propose(0, genesis_of(1..=5, 9));
        world.run_alone(alone, &[]);
        prop_assert!(world.decided.len() > before, "its own, or what stood in its way");
    }

    #[test]
    fn garbage_is_refused_and_never_panics(bytes: Vec<u8>, cut: usize, flip: usize) {
        let _ = (Request::decode(&bytes), Reply::decode(&bytes), Acceptor::decode(&bytes, STORAGE));
        for whole in golden_messages().into_iter().map(|it| it.1) {
            let cut = &whole[..cut % whole.len()];
            prop_assert!(Request::decode(cut).is_err() && Reply::decode(cut).is_err());
            let _ = Acceptor::decode(cut, STORAGE);
            let mut flipped = whole.clone();
            flipped[flip % whole.len()] ^= 1 << (flip % 8);
            let _ = (Request::decode(&flipped), Reply::decode(&flipped));
        }
    }
}

const BALLOT: Ballot = Ballot { round: 2, node: NodeId(3), run: 4 };

fn golden_messages() -> Vec<(String, Vec<u8>)> {
    let (instance, ballot) = (MetadataHash(1), BALLOT);
    let value = Bytes::from_static(b"v");
    let accepted = Accepted { ballot, value: value.clone() };
    let request = |ask| {
        let it = Request { instance, sequence: 5, ballot, ask };
        assert_eq!(Request::decode(&it.encode()), Ok(it.clone()));
        (format!("{:?}", it.ask), it.encode())
    };
    let reply = |answer| {
        let it = Reply { instance, ballot, answer };
        assert_eq!(Reply::decode(&it.encode()), Ok(it.clone()));
        (format!("{:?}", it.answer), it.encode())
    };
    vec![
        request(Ask::Prepare),
        request(Ask::Accept(value.clone())),
        reply(Answer::Promised(None)),
        reply(Answer::Promised(Some(accepted))),
        reply(Answer::Accepted),
        reply(Answer::Outbid(Ballot { round: 6, ..ballot })),
        reply(Answer::Decided(value)),
        reply(Answer::Behind { sequence: 7 }),
        reply(Answer::Refused(Refusal::OtherParent { hash: MetadataHash(8) })),
        reply(Answer::Refused(Refusal::NotAnAcceptor)),
        reply(Answer::Refused(Refusal::InvalidValue)),
        reply(Answer::Refused(Refusal::Abstains)),
    ]
}

/// Frozen: nodes of different builds talk to each other. `I` stands for the instance and `B` for the
/// ballot, each as its own bytes.
#[test]
fn golden() {
    let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
    let mut ballot = 2u64.to_be_bytes().to_vec();
    ballot.extend([3u128.to_be_bytes().as_slice(), &4u64.to_be_bytes()].concat());
    let short = |bytes: &[u8]| {
        let text = hex(bytes).replacen(&hex(&1u128.to_be_bytes()), "I", 1);
        text.replace(&hex(&ballot), "B")
    };
    let messages: Vec<_> = golden_messages().iter().map(|it| short(&it.1)).collect();
    let expected = [
        "01I0000000000000005B01",
        "01I0000000000000005B020000000176",
        "01IB0100",
        "01IB0101B0000000176",
        "01IB02",
        "01IB0300000000000000060000000000000000000000000000000300000000000000 04",
        "01IB040000000176",
        "01IB050000000000000007",
        "01IB060100000000000000000000000000000008",
        "01IB0602",
        "01IB0603",
        "01IB0604",
    ];
    assert_eq!(messages, expected.map(|it| it.replace(' ', "")));

    let accepted = Some(Accepted { ballot: BALLOT, value: Bytes::from_static(b"v") });
    let state = Acceptor { storage: STORAGE, abstains: false, promised: BALLOT, accepted };
    let storage = hex(&STORAGE.to_bytes());
    assert_eq!(short(&state.encode()), format!("01{storage}00B01B0000000176"));
    assert_eq!(Acceptor::decode(&state.encode(), STORAGE), Ok(state.clone()));
    for length in 0..state.encode().len() {
        assert!(Acceptor::decode(&state.encode()[..length], STORAGE).is_err());
    }
    let copied = Acceptor::decode(&state.encode(), StorageId(6)).unwrap();
    assert_eq!(copied, Acceptor::abstaining(StorageId(6)), "a copy may be an old one");
    assert_eq!(Acceptor::decode(&copied.encode(), StorageId(6)), Ok(copied));
}

#[test]
fn acceptors_are_spread() {
    let check = |text: &str, expected: &[u128]| {
        let nodes: Vec<_> = (1..)
            .zip(text.split(' '))
            .map(|(id, it)| description(id, &it[..1], &it[1..]))
            .collect();
        let layout = plan(&nodes, None, 1).unwrap().layout;
        let parent = Metadata::genesis(ClusterId(7), [0; 16], layout).unwrap();
        let ids: Vec<_> = acceptors(&parent).iter().map(|it| it.0).collect();
        assert_eq!(ids, expected, "{text}");
    };
    check("a1", &[1]);
    check("a1 a1 b1 c1", &[1, 2, 3, 4]);
    check("a1 a1 a1 a2 b1 b1 b1 b2 c1 c1 c2 c2 c3", &[1, 2, 4, 5, 6, 8, 9, 11, 13]);
    check("a1 a1 a2 a3 a4 a5 a6 a7 a8 a9 b1", &[1, 3, 4, 5, 6, 7, 8, 9, 11]);
}

/// The answer of node 1, with this metadata, to a question about the successor of `parent`.
fn answer(current: Option<&Metadata>, parent: Option<&Metadata>, ask: Ask) -> Answer {
    let instance = parent.map_or(MetadataHash::NONE, Metadata::hash);
    let sequence = parent.map_or(1, |it| it.sequence() + 1);
    let request = Request { instance, sequence, ballot: BALLOT, ask };
    let (next, reply) = Acceptor::new(STORAGE).handle(NodeId(1), current, &request);
    let changes = matches!(reply.answer, Answer::Promised(_) | Answer::Accepted);
    assert_eq!(next.is_some(), changes, "{:?}", reply.answer);
    reply.answer
}

#[test]
fn acceptors_judge_what_they_can() {
    let first = genesis_of(1..=3, 0);
    let second = with_keyspace(&first, "a");
    let (fork, third) = (with_keyspace(&first, "b"), with_keyspace(&second, "c"));
    let accept = |it: &Metadata| Ask::Accept(it.encode().into());
    let refused = Answer::Refused;

    assert_eq!(answer(Some(&first), Some(&first), Ask::Prepare), Answer::Promised(None));
    assert_eq!(answer(Some(&first), Some(&first), accept(&second)), Answer::Accepted);
    assert_eq!(answer(None, None, accept(&first)), Answer::Accepted);

    let decided = Answer::Decided(third.encode().into());
    assert_eq!(answer(Some(&third), Some(&first), Ask::Prepare), decided);
    assert_eq!(answer(Some(&third), None, accept(&first)), decided);
    assert_eq!(answer(Some(&first), Some(&second), accept(&third)), Answer::Behind { sequence: 1 });
    assert_eq!(answer(None, Some(&first), Ask::Prepare), Answer::Behind { sequence: 0 });

    let other_parent = Refusal::OtherParent { hash: fork.hash() };
    assert_eq!(answer(Some(&fork), Some(&second), accept(&third)), refused(other_parent));
    let others = genesis_of(2..=3, 0);
    assert_eq!(answer(None, None, accept(&others)), refused(Refusal::NotAnAcceptor));
    assert_eq!(answer(Some(&others), Some(&others), Ask::Prepare), refused(Refusal::NotAnAcceptor));

    let invalid = refused(Refusal::InvalidValue);
    assert_eq!(answer(Some(&first), Some(&first), Ask::Accept(Bytes::new())), invalid);
    assert_eq!(answer(Some(&first), Some(&first), accept(&third)), invalid, "wrong parent");
    assert_eq!(answer(None, None, accept(&second)), invalid, "not a first one");
}

#[test]
fn one_that_forgot_abstains() {
    let first = genesis_of([1], 0);
    let (instance, ballot) = (first.hash(), BALLOT);
    let request = Request { instance, sequence: 2, ballot, ask: Ask::Prepare };
    let acceptor = Acceptor::abstaining(STORAGE);
    let (next, reply) = acceptor.handle(NodeId(1), Some(&first), &request);
    assert_eq!((next, reply.answer), (None, Answer::Refused(Refusal::Abstains)));
}

/// Proposes on node 1 in a world where all messages arrive, and tells how it ends.
fn outcome(world: &mut World, own: Metadata) -> Outcome {
    let parent = world.parent.clone();
    let mut proposer = Proposer::new(parent, own, NodeId(1), 1_000).unwrap();
    let mut steps = proposer.retry();
    for _ in 0..100 {
        let mut replies = Vec::new();
        for step in steps.drain(..) {
            match step {
                Step::Done(outcome) => return outcome,
                Step::Send { to, request } => replies
                    .extend(to.into_iter().map(|to| (to, world.judge(to, &request.encode())))),
                Step::Teach(node) => world.learn(node, world.parent.clone()),
                Step::Pause => {}
            }
        }
        steps = replies.into_iter().flat_map(|it| proposer.handle(it.0, it.1)).collect();
        if steps.is_empty() || steps.last() == Some(&Step::Pause) {
            steps.extend(proposer.retry());
        }
    }
    panic!("no end: {:?}", proposer.progress());
}

#[test]
fn outcomes() {
    let parent = genesis_of(1..=3, 0);
    let (ours, other) = (with_keyspace(&parent, "ours"), with_keyspace(&parent, "other"));
    let world = || World::new(1..=3, Some(parent.clone()));
    let decided = |metadata: &Metadata, ours| Outcome::Decided { metadata: metadata.clone(), ours };

    assert_eq!(outcome(&mut world(), ours.clone()), decided(&ours, true));

    // Another value was decided before, and nobody has been told yet.
    let mut second = world();
    assert_eq!(outcome(&mut second, other.clone()), decided(&other, true));
    assert_eq!(outcome(&mut second, ours.clone()), decided(&other, false));

    // One node has been told, and then of more.
    second.learn(NodeId(2), Some(other.clone()));
    assert_eq!(outcome(&mut second, ours.clone()), decided(&other, false));
    let newest = with_keyspace(&other, "more");
    second.learn(NodeId(2), Some(newest.clone()));
    assert_eq!(outcome(&mut second, ours.clone()), Outcome::Overtaken { newest });

    // Two nodes missed the parent: they are taught.
    let mut behind = world();
    behind.nodes[1].current = None;
    behind.nodes[2].current = None;
    assert_eq!(outcome(&mut behind, ours.clone()), decided(&ours, true));

    // A fork: two of three have another parent.
    let fork = genesis_of(1..=3, 1);
    let mut forked = world();
    forked.nodes[1].current = Some(fork.clone());
    forked.nodes[2].current = Some(fork.clone());
    let reason = Refusal::OtherParent { hash: fork.hash() };
    let Outcome::Refused { reason: found, .. } = outcome(&mut forked, ours) else { panic!() };
    assert_eq!(found, reason);
}

#[test]
fn first_outcomes() {
    let (all, fewer) = (genesis_of(1..=3, 1), genesis_of(1..=2, 2));
    let decided = |metadata: &Metadata, ours| Outcome::Decided { metadata: metadata.clone(), ours };
    let mut world = World::new(1..=3, None);
    assert_eq!(outcome(&mut world, fewer.clone()), decided(&fewer, true));
    let Outcome::Conflict { other, .. } = outcome(&mut world, all.clone()) else { panic!() };
    assert_eq!(other, fewer, "its nodes belong to another cluster already");
    assert_eq!(outcome(&mut world, genesis_of(1..=2, 3)), decided(&fewer, false));

    // Half-accepted by a proposer that died: whoever comes next with the same nodes finishes it.
    let mut world = World::new(1..=3, None);
    let half = genesis_of(1..=3, 4);
    let ask = Ask::Accept(half.encode().into());
    let request = Request { instance: MetadataHash::NONE, sequence: 1, ballot: BALLOT, ask };
    world.judge(NodeId(2), &request.encode());
    assert_eq!(outcome(&mut world, all), decided(&half, false));
}

#[test]
fn a_silent_node_blocks_a_first_decision_and_is_named() {
    let mut proposer = Proposer::new(None, genesis_of(1..=2, 0), NodeId(1), 1).unwrap();
    let [Step::Send { request, .. }] = &proposer.retry()[..] else { panic!() };
    let (_, reply) = Acceptor::new(STORAGE).handle(NodeId(1), None, request);
    assert_eq!(proposer.handle(NodeId(1), reply.clone()), []);
    assert_eq!(proposer.handle(NodeId(1), reply.clone()), [], "a repeated answer counts once");
    assert_eq!(proposer.handle(NodeId(3), reply), [], "a stranger's answer does not count");
    let silent = vec![NodeId(2)];
    assert_eq!(proposer.progress(), Progress { required: 2, agreed: 1, silent });
}

#[test]
fn only_a_successor_can_be_proposed() {
    let (first, other) = (genesis_of(1..=2, 0), genesis_of(1..=2, 1));
    let failed = Proposer::new(Some(other), with_keyspace(&first, "a"), NodeId(1), 1);
    assert!(matches!(failed, Err(model::FollowError::Parent { .. })));
}

#[test]
fn attempts_go_above_what_outbid_them_and_forget_earlier_answers() {
    let parent = genesis_of(1..=3, 0);
    let own = with_keyspace(&parent, "a");
    let mut proposer = Proposer::new(Some(parent.clone()), own, NodeId(1), 1).unwrap();
    let start = |proposer: &mut Proposer| match &proposer.retry()[..] {
        [Step::Send { request, .. }] => request.ballot,
        other => panic!("{other:?}"),
    };
    let reply = |ballot, answer| Reply { instance: parent.hash(), ballot, answer };
    let first = start(&mut proposer);
    proposer.handle(NodeId(1), reply(first, Answer::Promised(None)));
    let sent = proposer.handle(NodeId(2), reply(first, Answer::Promised(None)));
    assert!(matches!(&sent[..], [Step::Send { request, .. }] if request.ballot == first));

    let high = Ballot { round: 77, node: NodeId(9), run: 0 };
    assert_eq!(proposer.handle(NodeId(1), reply(first, Answer::Outbid(high))), []);
    let outbid = proposer.handle(NodeId(2), reply(first, Answer::Outbid(high)));
    assert_eq!(outbid, [Step::Pause], "two of three are gone");
    assert_eq!(proposer.handle(NodeId(3), reply(first, Answer::Accepted)), []);

    let second = start(&mut proposer);
    assert!(second > high, "{second} after {high}");
    for node in [1, 2, 3].map(NodeId) {
        for late in [Answer::Promised(None), Answer::Accepted, Answer::Outbid(high)] {
            assert_eq!(proposer.handle(node, reply(first, late)), []);
        }
        assert_eq!(proposer.handle(node, reply(second, Answer::Accepted)), [], "not asked yet");
    }
    assert_eq!(proposer.progress().agreed, 0);
}
