//! Where the comparisons of this node with every other one stand: for those who make them, and for
//! those who ask. In memory alone: a start compares everything anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Hlc, KeyspaceId, NodeId, PartitionIndex, Refusal};
use tokio::sync::{Notify, Semaphore};

use super::claims::{Begun, Claims};
use super::purge_block::PurgeBlock;
use crate::view::View;

/// Two nodes' comparison of one keyspace.
pub(crate) type PairKey = (KeyspaceId, NodeId);

/// The partitions of which this node and another one both hold replicas, by keyspace.
pub(crate) type SharedTrees = Vec<(KeyspaceId, Arc<[PartitionIndex]>)>;

/// What is known of one pair.
struct Pair {
    partitions: Arc<[PartitionIndex]>,
    /// For each partition when it was last found equal, but for records on their way; 0 for never.
    /// In microseconds since the node started, as all times here.
    verified_us: Vec<u64>,
    /// For each partition when older records were last found to differ.
    differed_us: Vec<u64>,
    records_moved: u64,
    bytes_moved: u64,
}

/// A part of the ring in which this node may lack writes, as another node has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirtyPart {
    /// Who has said so.
    pub(crate) from: NodeId,
    /// The keyspace.
    pub(crate) keyspace: KeyspaceId,
    /// The partition.
    pub(crate) partition: PartitionIndex,
    /// The highest bits of its tokens, by which the other node tells its parts apart.
    pub(crate) token_prefix: u16,
    /// Rises when more is lacking.
    pub(crate) generation: u64,
}

/// How a round with one node has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundEnd {
    /// Both hold the same, but for records on their way.
    Same,
    /// It cannot be reached.
    Away,
    /// It did not answer in time, or was lost.
    Silent,
    /// It takes no part just now.
    Refused(Refusal),
    /// What it said makes no sense.
    Malformed,
    /// This node cannot read or write what it has to.
    Stuck,
    /// Records differ still: some were refused or are damaged, or there was more than one round moves.
    Differs,
}

/// What a round has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoundReport {
    /// Trees compared.
    pub(crate) trees: u64,
    /// Trees whose roots differed at first.
    pub(crate) trees_differing: u64,
    /// Ranges whose records were compared.
    pub(crate) ranges: u64,
    /// Records sent to the other node, and their bytes.
    pub(crate) records_sent: u64,
    /// Records taken from it.
    pub(crate) records_taken: u64,
    /// Bytes of the records that were moved, both ways.
    pub(crate) record_bytes: u64,
    /// Bytes of all messages sent.
    pub(crate) bytes_sent: u64,
    /// Bytes of all messages received.
    pub(crate) bytes_received: u64,
    /// Records that differed and were not moved: refused or damaged.
    pub(crate) refused: u64,
    /// Ranges of which nobody knows what they hold, here or there: something there is damaged.
    pub(crate) damaged_ranges: u64,
}

impl RoundReport {
    /// True if a record was moved.
    pub(crate) fn has_moved(&self) -> bool {
        self.records_sent + self.records_taken > 0
    }

    /// True if more records have been moved, and taken, than an earlier report says.
    pub(crate) fn has_moved_since(&self, earlier: &Self) -> bool {
        let moved = |it: &Self| it.records_sent + it.records_taken;
        moved(self) - moved(earlier) > self.refused - earlier.refused
    }
}

/// Where the rounds with one node stand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundState {
    /// The number of rounds that had been asked for when the last one began that has ended.
    pub(crate) answered: u64,
    /// How the last one has ended that was asked for: those that come by themselves find nothing more to
    /// do, and who asked may look later.
    pub(crate) asked_for: Option<(RoundEnd, RoundReport)>,
}

/// What a round is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// How many rounds have been asked for.
    pub(crate) number: u64,
    /// True if one of them is still to be made.
    pub(crate) is_new: bool,
    /// The keyspaces to compare; `None` for all.
    pub(crate) keyspaces: Option<BTreeSet<KeyspaceId>>,
}

/// A round of purging that was opened here, in this life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenRound {
    /// Who began it.
    pub(crate) from: NodeId,
    /// Its name.
    pub(crate) round: u64,
    /// Up to which clock.
    pub(crate) up_to: Hlc,
    /// The layout by which it was opened.
    pub(crate) layout_hash: u64,
}

/// Figures of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PairFigures {
    /// Partitions that both hold.
    pub(crate) partitions: u64,
    /// Those that were the same when they were last compared.
    pub(crate) same: u64,
    /// When the one that was not found the same for longest was; the node's start if never.
    pub(crate) oldest_us: u64,
    /// Records that rounds begun here have moved, both ways.
    pub(crate) records_moved: u64,
    /// Their bytes.
    pub(crate) bytes_moved: u64,
}

/// Where all comparisons of a node stand.
pub(crate) struct ExchangeBoard {
    board: Mutex<Board>,
    /// Wakes who begins rounds.
    pub(crate) wanted: Notify,
    /// Steps that are answered at a time.
    pub(crate) answering: Arc<Semaphore>,
    /// Rounds that compare and move records at a time.
    pub(crate) moving: Semaphore,
}

#[derive(Default)]
struct Board {
    sequence: u64,
    pairs: BTreeMap<PairKey, Pair>,
    rounds: BTreeMap<NodeId, RoundState>,
    asked: u64,
    /// The latest rounds that were asked for: `None` for all keyspaces.
    asked_for: BTreeMap<u64, Option<KeyspaceId>>,
    /// What other nodes have said may be lacking here: generation, and when it was said first.
    dirty: BTreeMap<(KeyspaceId, NodeId, u16), (u64, u64)>,
    /// The latest round of purging that was opened for a partition.
    open: BTreeMap<(KeyspaceId, PartitionIndex), OpenRound>,
    /// What stands in the way of purging, and since when.
    purges: BTreeMap<KeyspaceId, (PurgeBlock, u64)>,
    /// Acknowledged writes of which a replica already held a newer version.
    overwritten: BTreeMap<KeyspaceId, u64>,
    /// What is being brought together, and with whom.
    claims: Claims,
}

impl Default for ExchangeBoard {
    fn default() -> Self {
        Self {
            board: Mutex::default(),
            wanted: Notify::new(),
            answering: Arc::new(Semaphore::new(ANSWERING_MAX)),
            moving: Semaphore::new(MOVING_MAX),
        }
    }
}

/// Rounds that were asked for and are remembered.
const ASKED_MAX: u64 = 1_024;
/// Parts of the ring remembered at once: a whole ring of one keyspace, some megabytes.
const DIRTY_MAX: usize = 1 << 16;
/// Each reads a slice of records at most.
const ANSWERING_MAX: usize = 4;
const MOVING_MAX: usize = 2;

impl ExchangeBoard {
    /// True if this node begins the rounds with another one, and not the other way round: half of all
    /// pairs for each, on average.
    pub(crate) fn begins(own: NodeId, other: NodeId) -> bool {
        let even = (own.0 ^ other.0).count_ones().is_multiple_of(2);
        own != other && (own < other) == even
    }

    /// The trees that this node and another one both hold.
    pub(crate) fn shared_trees(&self, view: &View, with: NodeId) -> SharedTrees {
        let mut board = self.lock();
        board.follow(view);
        let pairs = board.pairs.iter().filter(|(key, _)| key.1 == with);
        pairs.map(|(key, pair)| (key.0, Arc::clone(&pair.partitions))).collect()
    }

    /// Every node with which a tree is shared.
    pub(crate) fn partners(&self, view: &View) -> Vec<NodeId> {
        let mut board = self.lock();
        board.follow(view);
        let mut nodes: Vec<NodeId> = board.pairs.keys().map(|it| it.1).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Some partitions were found the same.
    pub(crate) fn verified(&self, pair: PairKey, partitions: &[PartitionIndex], at_us: u64) {
        if let Some(pair) = self.lock().pairs.get_mut(&pair) {
            for it in partitions {
                pair.note(*it, |pair, at| {
                    pair.verified_us[at] = pair.verified_us[at].max(at_us.max(1));
                });
            }
        }
    }

    /// Some partitions were found to differ in more than what is on its way.
    pub(crate) fn differed(&self, pair: PairKey, partitions: &[PartitionIndex], at_us: u64) {
        if let Some(pair) = self.lock().pairs.get_mut(&pair) {
            for it in partitions {
                pair.note(*it, |pair, at| pair.differed_us[at] = at_us);
            }
        }
    }

    /// Claims partitions for a round with a node, instead of those that it had: which of them no round
    /// with another node has.
    pub(crate) fn claim(
        &self,
        with: (NodeId, Begun),
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
        now_us: u64,
    ) -> Vec<PartitionIndex> {
        self.lock().claims.claim(with, keyspace, partitions, now_us)
    }

    /// A node has gone on with its round.
    pub(crate) fn renew_claim(&self, with: NodeId, now_us: u64) {
        self.lock().claims.renew(with, now_us);
    }

    /// What was claimed for a round is free again.
    pub(crate) fn end_claim(&self, with: NodeId, begun: Begun) {
        self.lock().claims.end(with, begun);
    }

    /// When all of these partitions had been found the same; `None` if one never was.
    pub(crate) fn all_verified(&self, pair: PairKey, partitions: &[PartitionIndex]) -> Option<u64> {
        let board = self.lock();
        let pair = board.pairs.get(&pair)?;
        partitions.iter().map(|it| pair.verified_at(*it)).min().filter(|it| *it > 0)
    }

    /// Records of a keyspace have been moved, either way.
    pub(crate) fn moved(&self, pair: PairKey, records: u64, bytes: u64) {
        if let Some(pair) = self.lock().pairs.get_mut(&pair) {
            pair.records_moved += records;
            pair.bytes_moved += bytes;
        }
    }

    /// Asks for a round with every node, of one keyspace or of all; its number.
    pub(crate) fn ask(&self, keyspace: Option<KeyspaceId>) -> u64 {
        let number = {
            let mut board = self.lock();
            board.asked += 1;
            // Nobody waits for a round that is so many behind.
            let behind = board.asked.saturating_sub(ASKED_MAX);
            board.asked_for.retain(|number, _| *number > behind);
            let number = board.asked;
            board.asked_for.insert(number, keyspace);
            number
        };
        self.wanted.notify_waiters();
        number
    }

    /// What has been asked for since the last round with a node.
    pub(crate) fn asked(&self, with: NodeId) -> Asked {
        let board = self.lock();
        let answered = board.rounds.get(&with).map_or(0, |it| it.answered);
        let since = board.asked_for.range(answered + 1..).map(|it| *it.1);
        let keyspaces = since.collect::<Option<BTreeSet<_>>>().filter(|it| !it.is_empty());
        Asked { number: board.asked, is_new: board.asked > answered, keyspaces }
    }

    /// A round has ended that began when so many had been asked for.
    pub(crate) fn ended(&self, with: NodeId, asked: u64, end: RoundEnd, report: RoundReport) {
        let mut board = self.lock();
        let state = board.rounds.entry(with).or_default();
        if asked > state.answered {
            *state = RoundState { answered: asked, asked_for: Some((end, report)) };
        }
    }

    /// Where the rounds with a node stand.
    pub(crate) fn round(&self, with: NodeId) -> RoundState {
        self.lock().rounds.get(&with).copied().unwrap_or_default()
    }

    /// The figures of all pairs.
    pub(crate) fn figures(&self) -> Vec<(PairKey, PairFigures)> {
        self.lock().pairs.iter().map(|(key, pair)| (*key, pair.figures())).collect()
    }

    /// Whether a part of the ring, in which this node may lack writes, has been compared with each of
    /// these other replicas since it was first asked for.
    pub(crate) fn is_compared(&self, part: DirtyPart, others: &[NodeId], now_us: u64) -> bool {
        let mut board = self.lock();
        let known = (part.keyspace, part.from, part.token_prefix);
        if board.dirty.len() >= DIRTY_MAX && !board.dirty.contains_key(&known) {
            // It will be asked for again, when others have been compared.
            return false;
        }
        let (generation, since_us) = board.dirty.entry(known).or_insert((part.generation, now_us));
        // A mark that was gone meanwhile begins anew.
        if part.generation != *generation {
            (*generation, *since_us) = (part.generation, now_us);
        }
        let since_us = *since_us;
        let is_compared = |other: &NodeId| {
            let pair = board.pairs.get(&(part.keyspace, *other));
            pair.is_some_and(|it| it.verified_at(part.partition) > since_us)
        };
        let compared = others.iter().all(is_compared);
        if compared {
            board.dirty.remove(&known);
        }
        compared
    }

    /// A round of purging has been opened.
    pub(crate) fn open(
        &self,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
        round: OpenRound,
    ) {
        let mut board = self.lock();
        for it in partitions {
            board.open.insert((keyspace, *it), round);
        }
    }

    /// True if that round is the last that was opened for a partition.
    pub(crate) fn is_open(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionIndex,
        round: OpenRound,
    ) -> bool {
        self.lock().open.get(&(keyspace, partition)) == Some(&round)
    }

    /// No round that was opened so far is to be signed (F4).
    pub(crate) fn forget_rounds(&self) {
        self.lock().open.clear();
    }

    /// Notes what stands in the way of purging a keyspace.
    pub(crate) fn note_purge(&self, keyspace: KeyspaceId, block: PurgeBlock, now_us: u64) {
        let mut board = self.lock();
        let noted = board.purges.entry(keyspace).or_insert((block, now_us));
        // Since when, whatever the reason is by now.
        if noted.0 == PurgeBlock::Nothing || block == PurgeBlock::Nothing {
            noted.1 = now_us;
        }
        noted.0 = block;
    }

    /// A write was acknowledged of which a replica already held a newer version.
    pub(crate) fn count_overwritten(&self, keyspace: KeyspaceId) {
        *self.lock().overwritten.entry(keyspace).or_default() += 1;
    }

    /// How many acknowledged writes of a keyspace met a newer version.
    pub(crate) fn overwritten(&self, keyspace: KeyspaceId) -> u64 {
        self.lock().overwritten.get(&keyspace).copied().unwrap_or_default()
    }

    /// What stands in the way of purging each keyspace, and since when.
    pub(crate) fn purges(&self) -> BTreeMap<KeyspaceId, (PurgeBlock, u64)> {
        self.lock().purges.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    /// Takes over new metadata. What is known of trees that are shared still stays known.
    fn follow(&mut self, view: &View) {
        let Some(metadata) = view.metadata().filter(|_| view.sequence() != self.sequence) else {
            return;
        };
        self.sequence = view.sequence();
        let mut before = std::mem::take(&mut self.pairs);
        let Some(own) = view.own() else { return };
        for keyspace in metadata.keyspaces() {
            let Some(known) = view.keyspace_of_id(keyspace.id) else { continue };
            let mut shared: BTreeMap<NodeId, Vec<PartitionIndex>> = BTreeMap::new();
            for partition in metadata.layout().partition_indexes() {
                let replicas = known.replica_set(partition);
                if replicas.replica(own).is_none() {
                    continue;
                }
                for other in replicas.nodes().iter().filter(|it| **it != own) {
                    shared.entry(metadata.layout().node(*other).id).or_default().push(partition);
                }
            }
            for (other, partitions) in shared {
                let key = (keyspace.id, other);
                let known = before.remove(&key).filter(|it| it.partitions[..] == partitions);
                self.pairs.insert(key, known.unwrap_or_else(|| Pair::new(partitions)));
            }
        }
        let pairs = &self.pairs;
        self.rounds.retain(|node, _| pairs.keys().any(|it| it.1 == *node));
        self.overwritten.retain(|keyspace, _| metadata.keyspace_of_id(*keyspace).is_some());
        self.purges.retain(|keyspace, _| metadata.keyspace_of_id(*keyspace).is_some());
        self.open.retain(|part, _| metadata.keyspace_of_id(part.0).is_some());
        self.dirty.retain(|part, _| pairs.keys().any(|it| it.0 == part.0));
    }
}

impl Pair {
    fn new(partitions: Vec<PartitionIndex>) -> Self {
        let never = vec![0; partitions.len()];
        Self {
            partitions: partitions.into(),
            verified_us: never.clone(),
            differed_us: never,
            records_moved: 0,
            bytes_moved: 0,
        }
    }

    fn note(&mut self, partition: PartitionIndex, note: impl FnOnce(&mut Self, usize)) {
        if let Ok(at) = self.partitions.binary_search(&partition) {
            note(self, at);
        }
    }

    fn verified_at(&self, partition: PartitionIndex) -> u64 {
        self.partitions.binary_search(&partition).map_or(0, |at| self.verified_us[at])
    }

    fn figures(&self) -> PairFigures {
        let both = || self.verified_us.iter().zip(&self.differed_us);
        let same = both().filter(|(verified, differed)| **verified > **differed).count();
        PairFigures {
            partitions: u64::try_from(self.partitions.len()).unwrap_or(u64::MAX),
            same: u64::try_from(same).unwrap_or(u64::MAX),
            oldest_us: self.verified_us.iter().copied().min().unwrap_or(0),
            records_moved: self.records_moved,
            bytes_moved: self.bytes_moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(1);
    const OTHER: NodeId = NodeId(9);

    fn board() -> ExchangeBoard {
        let board = ExchangeBoard::default();
        let partitions = [2, 5, 7].map(PartitionIndex).to_vec();
        board.lock().pairs.insert((KEYSPACE, OTHER), Pair::new(partitions));
        board
    }

    fn part(generation: u64) -> DirtyPart {
        DirtyPart {
            from: NodeId(3),
            keyspace: KEYSPACE,
            partition: PartitionIndex(5),
            token_prefix: 77,
            generation,
        }
    }

    #[test]
    fn of_two_nodes_one_begins() {
        let nodes = (1..40).map(|it| NodeId(it * 0x9e37_79b9)).collect::<Vec<_>>();
        let mut begun = 0;
        for a in &nodes {
            for b in nodes.iter().filter(|it| *it != a) {
                assert_ne!(ExchangeBoard::begins(*a, *b), ExchangeBoard::begins(*b, *a));
                begun += usize::from(ExchangeBoard::begins(*a, *b));
            }
            assert!(!ExchangeBoard::begins(*a, *a));
        }
        assert_eq!(begun, nodes.len() * (nodes.len() - 1) / 2);
    }

    #[test]
    fn what_was_asked_for_is_told_until_more_is() {
        let board = board();
        let moved = |records_sent| RoundReport { records_sent, ..RoundReport::default() };
        let state = |it: &ExchangeBoard| {
            let RoundState { answered, asked_for } = it.round(OTHER);
            (answered, asked_for.map(|it| it.1.records_sent))
        };
        board.ended(OTHER, board.asked(OTHER).number, RoundEnd::Same, moved(1));
        assert_eq!(state(&board), (0, None), "it came by itself");
        for (records, others) in [(7, 8), (9, 0)] {
            let number = board.ask(None);
            assert!(board.asked(OTHER).is_new);
            for records in [records, others] {
                board.ended(OTHER, board.asked(OTHER).number, RoundEnd::Same, moved(records));
            }
            assert_eq!(state(&board), (number, Some(records)));
        }
    }

    #[test]
    fn a_difference_outweighs_an_earlier_comparison() {
        let (board, pair) = (board(), (KEYSPACE, OTHER));
        let same = |it: &ExchangeBoard| it.figures()[0].1.same;
        assert_eq!(same(&board), 0, "nothing is known yet");
        board.verified(pair, &[2, 5, 7].map(PartitionIndex), 10);
        assert_eq!(same(&board), 3);
        board.differed(pair, &[PartitionIndex(5)], 12);
        let expected =
            PairFigures { partitions: 3, same: 2, oldest_us: 10, ..PairFigures::default() };
        assert_eq!(board.figures()[0].1, expected);
        board.verified(pair, &[PartitionIndex(5), PartitionIndex(6)], 14);
        assert_eq!(same(&board), 3);
        board.verified(pair, &[PartitionIndex(5)], 3);
        assert_eq!(same(&board), 3, "an older word changes nothing");
    }

    #[test]
    fn a_dirty_part_is_compared_after_it_was_asked_for() {
        let (board, pair) = (board(), (KEYSPACE, OTHER));
        board.verified(pair, &[PartitionIndex(5)], 10);
        assert!(!board.is_compared(part(1), &[OTHER], 10), "what was compared before counts not");
        assert!(!board.is_compared(part(1), &[OTHER], 20));
        board.verified(pair, &[PartitionIndex(5)], 15);
        assert!(!board.is_compared(part(1), &[OTHER, NodeId(8)], 20), "nor one of two");
        assert!(!board.is_compared(part(2), &[OTHER], 20), "more is lacking since");
        board.verified(pair, &[PartitionIndex(5)], 25);
        assert!(board.is_compared(part(2), &[OTHER], 30));
        assert!(board.is_compared(part(2), &[], 30), "nobody else holds it");
    }
}
