//! Messages that come late: those of a coordinator that slept with them in hand, or copies of what had
//! come before. What is in flight in a network may be of any age, and come any number of times.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use model::{Hlc, Record, StorageKey};
use node::{
    io::Node,
    replica::decode_stored,
    storage::{RangeRequest, Space},
};
use proto::{
    internal::{Frame, Hello, Mutation, MutationKind},
    link::{LinkCodec, LinkError},
};
use rand::{RngExt, seq::IndexedRandom};
use tokio_util::codec::Framed;

use super::{World, host::PEER_PORT};

/// A frame of mutations on its way to a node.
pub(crate) struct LateFrame {
    node: usize,
    frame: Frame,
}

/// Frames that are due, and who waits for the ends of them.
pub(crate) type LateFrames = Rc<RefCell<VecDeque<LateFrame>>>;

/// A mutation that its sender has in hand.
#[derive(Clone)]
pub(crate) struct InHand {
    key: StorageKey,
    record: Record,
    kind: MutationKind,
    /// The floor of the replica that the record was read from.
    floor: Hlc,
    /// Of the layout by which it was planned; 0 for the one in force.
    layout_hash: u64,
    clock: Hlc,
}

impl InHand {
    /// What somebody has in hand who has read the record from a replica with this floor.
    pub(crate) fn of(key: StorageKey, record: Record, kind: MutationKind, floor: Hlc) -> Self {
        let clock = record.version().hlc;
        Self { key, record, kind, floor, layout_hash: 0, clock }
    }
}

impl World {
    /// Somebody has in hand what would bring some of a node's rows to other replicas: as a client's write,
    /// as a hint, or as a read's write-back.
    pub(crate) fn take_in_hand(&mut self, index: usize, rows: usize) -> Vec<InHand> {
        const KINDS: &[MutationKind] =
            &[MutationKind::Unspecified, MutationKind::WriteBack, MutationKind::Hint];
        let Some(node) = self.nodes[index].controls.node() else { return Vec::new() };
        let all = self.rows_in_hand(index, &node);
        let mut drawn: Vec<InHand> = all.sample(&mut self.random, rows).cloned().collect();
        for it in &mut drawn {
            it.kind = *KINDS.choose(&mut self.random).expect("it is not empty");
        }
        drawn
    }

    /// All rows of a node that count, as one who has read them would send them on.
    pub(crate) fn rows_in_hand(&self, index: usize, node: &Node) -> Vec<InHand> {
        let shared = &node.shared;
        let (layout_hash, clock) = (shared.view.load().layout_hash(), shared.clock.highest());
        let page = self.nodes[index].disk.peek(&RangeRequest::prefix(Space::Data, Vec::new()));
        let in_hand = |(row, value): (Bytes, Bytes)| {
            let key = StorageKey::parse(row)?;
            let record = decode_stored(&key, value).ok()?.record;
            let partition = shared.trees.partition_of(key.token())?;
            // What is not answered is not in anybody's hand.
            let floor = shared.floors.readable(key.keyspace(), partition).ok()?;
            let kind = MutationKind::WriteBack;
            Some(InHand { key, record, kind, floor, layout_hash, clock })
        };
        page.rows.into_iter().filter_map(in_hand).collect()
    }

    /// It comes now, to each of a key's replicas or not.
    pub(crate) fn send_late(&mut self, in_hand: &[InHand]) {
        for node in 0..self.nodes.len() {
            let mut sent = Vec::new();
            for it in in_hand {
                if self.random.random() {
                    sent.push(it.clone());
                }
            }
            self.send_late_to(node, &sent);
        }
    }

    /// It comes now, to one node, as far as that has a replica of it.
    pub(crate) fn send_late_to(&mut self, index: usize, in_hand: &[InHand]) {
        let Some(node) = self.nodes[index].controls.node() else { return };
        let view = node.shared.view.load_full();
        let is_replica = |it: &&InHand| {
            let keyspace = view.keyspace_of_id(it.key.keyspace());
            let set = keyspace.map(|known| known.replica_set(view.partition(it.key.token())));
            view.own().is_some_and(|own| set.is_some_and(|set| set.replica(own).is_some()))
        };
        let mut frame = Frame::default();
        for (it, operation) in in_hand.iter().filter(is_replica).zip(1..) {
            frame.clock = it.clock.0;
            frame.layout_hash = match it.layout_hash {
                0 => view.layout_hash(),
                known => known,
            };
            frame.mutations.push(Mutation {
                operation,
                key: it.key.as_bytes().clone(),
                record: it.record.as_bytes().clone(),
                kind: it.kind.into(),
                floor: it.floor.0,
                ..Mutation::default()
            });
        }
        if !frame.mutations.is_empty() {
            let (count, name) = (frame.mutations.len(), self.nodes[index].name.clone());
            self.say(format_args!("{count} late messages for {name}"));
            let shared = &node.shared;
            // By its own name it meets nobody new.
            let hello = shared.hello(0).hello.map(|it| Hello { seen: Vec::new(), ..it });
            let frame = Frame { hello, ..frame };
            self.late.borrow_mut().push_back(LateFrame { node: index, frame });
        }
    }
}

/// Brings frames that are due to their nodes, for as long as its host lives.
pub(crate) async fn carry(frames: LateFrames) {
    loop {
        let next = frames.borrow_mut().pop_front();
        match next {
            Some(it) => {
                // What does not arrive in time is lost, as anything may be.
                let _ = tokio::time::timeout(PATIENCE, deliver(it)).await;
            }
            None => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Sends a frame, and reads until all of it was answered.
async fn deliver(LateFrame { node, mut frame }: LateFrame) -> Result<(), LinkError> {
    let host = format!("n{}:{PEER_PORT}", node + 1);
    let stream = turmoil::net::TcpStream::connect(host).await?;
    let mut link = Framed::new(stream, LinkCodec::new(FRAME_BYTES_MAX));
    let hello = Frame { hello: frame.hello.take(), ..Frame::default() };
    let mut unanswered = frame.mutations.len();
    link.feed(&hello).await?;
    SinkExt::<&Frame>::send(&mut link, &frame).await?;
    while unanswered > 0 {
        let Some(heard) = link.next().await else { break };
        let it = heard?.unwrap_or_default();
        unanswered = unanswered.saturating_sub(it.applied.len() + it.mutation_answers.len());
    }
    Ok(())
}

const FRAME_BYTES_MAX: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
