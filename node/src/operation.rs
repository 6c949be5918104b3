//! The operations that one loop has in flight, and the tokens by which answers find them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use coordinator::{Read, Write};
use model::{Hlc, NodeIndex, OperationId, Refusal, ReplicaIndex, ReplicaSet, StorageKey, Version};
use proto::internal::{ExchangeAnswer, QueryAnswer, RangeAnswer, RangeQuery};
use slab::Slab;
use tokio::sync::oneshot;

use crate::{
    call_bytes::Held,
    reply::{ReadReplyTo, WriteReplyTo},
};

/// Names one request of one operation, on the wire and in the commit queue:
/// `generation (32) | index (24) | loop (4) | sequence (4)`.
///
/// The generation differs for every operation of a loop, so that a late answer never meets the
/// operation that took its place. The sequence tells the rounds of one operation apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u64);

/// Answers to this one are not awaited, and need not be sent.
pub(crate) const NO_ANSWER: OperationId = OperationId(0);

const INDEX_MAX: usize = (1 << 24) - 1;
const SEQUENCE_MASK: u64 = 0xf;

impl Token {
    fn new(generation: u32, index: usize, io_loop: u8) -> Self {
        let index = u64::try_from(index).expect("an index of 24 bits");
        Self(u64::from(generation) << 32 | index << 8 | u64::from(io_loop & 0xf) << 4)
    }

    /// The same operation's request with another sequence number.
    pub fn with_sequence(self, sequence: u8) -> OperationId {
        OperationId(self.0 & !SEQUENCE_MASK | u64::from(sequence) & SEQUENCE_MASK)
    }

    /// The operation of an answer, and which of its requests it answers.
    pub fn of(operation: OperationId) -> (Self, usize) {
        let sequence = usize::try_from(operation.0 & SEQUENCE_MASK).expect("four bits");
        (Self(operation.0 & !SEQUENCE_MASK), sequence)
    }

    /// The loop whose operation it is.
    pub fn io_loop(self) -> usize {
        usize::try_from(self.0 >> 4 & 0xf).expect("four bits")
    }

    fn index(self) -> usize {
        usize::try_from(self.0 >> 8 & 0xff_ffff).expect("24 bits")
    }

    fn generation(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("32 bits remain")
    }
}

/// A list that allocates nothing for its first entry: most have no second.
#[derive(Debug)]
pub struct ShortList<T> {
    first: Option<T>,
    rest: Vec<T>,
}

impl<T> Default for ShortList<T> {
    fn default() -> Self {
        Self { first: None, rest: Vec::new() }
    }
}

impl<T: Copy + PartialEq> ShortList<T> {
    /// A list of one.
    pub fn of(first: T) -> Self {
        Self { first: Some(first), rest: Vec::new() }
    }

    /// The entry at an index.
    pub fn get(&self, index: usize) -> Option<T> {
        match index.checked_sub(1) {
            None => self.first,
            Some(index) => self.rest.get(index).copied(),
        }
    }

    /// The index of an entry.
    pub fn position(&self, entry: &T) -> Option<usize> {
        self.first.iter().chain(&self.rest).position(|it| it == entry)
    }

    /// Adds an entry; its index.
    pub fn push(&mut self, entry: T) -> usize {
        if self.first.is_none() {
            self.first = Some(entry);
            return 0;
        }
        self.rest.push(entry);
        self.rest.len()
    }
}

/// A put or delete in flight.
pub struct WriteOperation {
    /// Its machine.
    pub machine: Write,
    /// Who holds the key.
    pub replicas: Arc<ReplicaSet>,
    /// The key.
    pub key: StorageKey,
    /// The clocks of the stamps sent, by sequence number.
    pub stamps: ShortList<Hlc>,
    /// By when its client must be told, in microseconds since the node started.
    pub deadline_us: u64,
    /// The bytes of what it writes, until it is answered: what a slow replica has yet to get counts in the
    /// queues before it, which are bounded, and must not keep others from being served.
    pub held: Option<Held>,
    /// Whom to tell.
    pub reply: Option<WriteReplyTo>,
    /// W3C trace context, if the client sent one.
    pub traceparent: Option<Arc<str>>,
}

/// A get in flight.
pub struct ReadOperation {
    /// Its machine.
    pub machine: Read,
    /// Who holds the key.
    pub replicas: Arc<ReplicaSet>,
    /// The key.
    pub key: StorageKey,
    /// What each sequence number stands for.
    pub rounds: ShortList<ReadRound>,
    /// When the read began, in microseconds since the node started.
    pub started_us: u64,
    /// By when its client must be told, in microseconds since the node started.
    pub deadline_us: u64,
    /// The bytes of what replicas answer, as many as usual or as have come; goes along with the reply.
    pub held: Option<Held>,
    /// Bytes of records that replicas have answered.
    pub answered_bytes: usize,
    /// Whom to tell.
    pub reply: Option<ReadReplyTo>,
    /// W3C trace context, if the client sent one.
    pub traceparent: Option<Arc<str>>,
}

/// What one round of requests of a read was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRound {
    /// Queries that carried this clock.
    Query(Hlc),
    /// Write-backs of this version.
    WriteBack(Version),
}

/// A hint on its way to the replica that missed it.
pub struct HintReplay {
    /// Whom it is for.
    pub target: NodeIndex,
    /// The key.
    pub key: StorageKey,
    /// The version that was kept.
    pub version: Version,
    /// Told what the target said.
    pub done: oneshot::Sender<HintAnswer>,
}

/// What a target said to a hint.
#[derive(Clone, Copy, Debug)]
pub struct HintAnswer {
    /// When its answer came, in microseconds since the node started.
    pub answered_us: u64,
    /// `Ok` if it durably holds the hint's version or a newer one.
    pub judged: Result<(), Refusal>,
}

/// One replica's part of a scan in flight.
pub struct RangeOperation {
    /// Who was asked.
    pub node: NodeIndex,
    /// For what.
    pub query: RangeQuery,
    /// Gets the answer and the answering node's clock; dropped if the replica becomes unreachable.
    pub answer: oneshot::Sender<(RangeAnswer, Hlc)>,
}

/// Something in flight.
pub enum Operation {
    /// A put or delete.
    Write(Box<WriteOperation>),
    /// A get.
    Read(Box<ReadOperation>),
    /// One replica asked for one key, without repair.
    Probe {
        /// Who was asked.
        node: NodeIndex,
        /// Gets the answer; dropped if the replica becomes unreachable.
        answer: oneshot::Sender<QueryAnswer>,
    },
    /// One replica asked for one range.
    Range(Box<RangeOperation>),
    /// A hint replayed.
    Hint(HintReplay),
    /// A step of an exchange.
    Exchange {
        /// Who was asked.
        node: NodeIndex,
        /// Gets the answer; dropped if the replica becomes unreachable.
        answer: oneshot::Sender<ExchangeAnswer>,
    },
}

impl Operation {
    /// True if it counts what replicas say as their votes (F12).
    pub fn counts_votes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Read(_) | Self::Range(_))
    }

    /// True if its client, or its scan, waits for what they come to.
    pub fn awaits_votes(&self) -> bool {
        match self {
            Self::Write(it) => it.reply.is_some(),
            Self::Read(it) => it.reply.is_some(),
            Self::Range(_) => true,
            Self::Probe { .. } | Self::Hint(_) | Self::Exchange { .. } => false,
        }
    }

    /// The replica that a node is for this operation's key.
    pub fn replica(&self, node: NodeIndex) -> Option<ReplicaIndex> {
        match self {
            Self::Write(it) => it.replicas.replica(node),
            Self::Read(it) => it.replicas.replica(node),
            Self::Probe { .. } | Self::Range(_) | Self::Hint(_) | Self::Exchange { .. } => None,
        }
    }
}

/// What one loop has in flight.
pub struct OperationTable {
    operations: Slab<(u32, Operation)>,
    generation: u32,
    io_loop: u8,
    /// Their number, for whoever may not look into the table.
    in_flight: Arc<AtomicUsize>,
}

impl OperationTable {
    /// An empty table. `generation` is where numbering begins: random, so that answers meant for an
    /// earlier process find nothing. `in_flight` is kept at its length.
    pub fn new(io_loop: u8, generation: u32, in_flight: Arc<AtomicUsize>) -> Self {
        Self { operations: Slab::new(), generation, io_loop, in_flight }
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// How many of them are reads and writes; the others are requests of scans and of admin calls,
    /// hints, and steps of exchanges, each bounded where it begins.
    pub fn reads_and_writes(&self) -> usize {
        let is_one = |it: &Operation| matches!(it, Operation::Read(_) | Operation::Write(_));
        self.operations.iter().filter(|(_, it)| is_one(&it.1)).count()
    }

    /// True if one of them is a client's, answered or not: all but hints and exchanges, which go on for as long as
    /// there is something to bring.
    pub fn has_calls(&self) -> bool {
        let is_background =
            |it: &Operation| matches!(it, Operation::Hint(_) | Operation::Exchange { .. });
        self.operations.iter().any(|(_, it)| !is_background(&it.1))
    }

    /// Adds one.
    ///
    /// Panics beyond sixteen million: admission has refused it long before.
    pub fn insert(&mut self, operation: Operation) -> Token {
        // Generation 0 with index 0 would be the token that asks for no answer.
        self.generation = self.generation.wrapping_add(1).max(1);
        let index = self.operations.insert((self.generation, operation));
        assert!(index <= INDEX_MAX, "{index} operations in flight");
        self.in_flight.store(self.len(), Ordering::Relaxed);
        Token::new(self.generation, index, self.io_loop)
    }

    /// Finds one; `None` if it has ended.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Operation> {
        let (generation, operation) = self.operations.get_mut(token.index())?;
        (*generation == token.generation()).then_some(operation)
    }

    /// Removes one, if it has not ended.
    pub fn remove(&mut self, token: Token) -> Option<Operation> {
        self.get_mut(token)?;
        let (_, removed) = self.operations.remove(token.index());
        self.in_flight.store(self.len(), Ordering::Relaxed);
        Some(removed)
    }

    /// How many clients should have been told by now, and were not.
    pub fn overdue(&self, now_us: u64) -> usize {
        let overdue = |operation: &Operation| match operation {
            Operation::Write(it) => it.reply.is_some() && it.deadline_us < now_us,
            Operation::Read(it) => it.reply.is_some() && it.deadline_us < now_us,
            Operation::Probe { .. }
            | Operation::Range(_)
            | Operation::Hint(_)
            | Operation::Exchange { .. } => false,
        };
        self.operations.iter().filter(|(_, it)| overdue(&it.1)).count()
    }

    /// The tokens of all operations, in table order.
    pub fn tokens(&self) -> Vec<Token> {
        let tokens = self.operations.iter();
        tokens.map(|(index, it)| Token::new(it.0, index, self.io_loop)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Operation {
        Operation::Probe { node: NodeIndex(0), answer: oneshot::channel().0 }
    }

    #[test]
    fn a_short_list_grows() {
        let mut list = ShortList::default();
        assert_eq!((list.get(0), list.position(&7)), (None, None));
        for (index, entry) in [7, 8, 9].into_iter().enumerate() {
            assert_eq!(list.push(entry), index);
            assert_eq!((list.get(index), list.get(index + 1)), (Some(entry), None));
            assert_eq!(list.position(&entry), Some(index));
        }
        assert_eq!(ShortList::of(7).get(0), Some(7));
    }

    #[test]
    fn a_late_answer_finds_nothing() {
        let in_flight = Arc::default();
        let mut table = OperationTable::new(3, u32::MAX - 1, Arc::clone(&in_flight));
        let first = table.insert(probe());
        assert_eq!(Token::of(first.with_sequence(5)), (first, 5));
        assert_eq!(first.io_loop(), 3);
        assert!(table.get_mut(first).is_some());
        assert!(table.remove(first).is_some());
        assert_eq!(in_flight.load(Ordering::Relaxed), 0);
        let second = table.insert(probe());
        assert_eq!(second.index(), first.index());
        assert!(table.get_mut(first).is_none() && table.remove(first).is_none());
        assert!(table.get_mut(second).is_some());
        assert_ne!(table.insert(probe()).with_sequence(0), NO_ANSWER);
        assert_eq!(table.tokens().len(), table.len());
        assert_eq!(in_flight.load(Ordering::Relaxed), 2);
    }
}
