//! Votes are counted anew when a node's database directory has been replaced. Rule: docs/protocol.md, F12.
//!
//! Who has heard of it and who has not is told by the hashes that frames carry. Between the two no vote
//! passes, and what it was for is asked again once they know of the same directories.

use coordinator::{ReadEvent, WriteEvent};
use model::{Mutant, NodeIndex, OperationId, ReplicaMask, WriteAnswer};
use proto::internal::Frame;

use super::io_loop::{IoLoop, LoopState};
use crate::{
    counters::Counters,
    operation::{Operation, Token},
};

impl IoLoop {
    /// Begins anew what is in flight if a node's directory turns out to have been replaced: a vote of the
    /// one before may have been counted already.
    pub(super) fn follow_storages(&self) {
        let hash = self.shared.witness.storage_ids_hash();
        let mut state = self.lock();
        if state.storage_ids_hash == hash {
            return;
        }
        state.storage_ids_hash = hash;
        state.apart.clear();
        if Mutant::OldVotesCount.is_on() {
            return;
        }
        for token in state.operations.tokens() {
            if state.operations.get_mut(token).is_some_and(|it| it.awaits_votes()) {
                Counters::count(&self.shared.counters.operations_recounted);
            }
            match state.operations.get_mut(token) {
                Some(Operation::Write(_)) => {
                    self.write_event(&mut state, token, WriteEvent::DirectoryReplaced);
                }
                Some(Operation::Read(_)) => {
                    self.read_event(&mut state, token, ReadEvent::DirectoryReplaced);
                }
                Some(Operation::Range(_)) => send_range_query(&mut state, token),
                _ => {}
            }
        }
        self.push_local(&mut state);
    }

    /// Takes the votes out of a frame, and leaves refusals, which are none, and what else it answers.
    pub(super) fn drop_votes(&self, state: &mut LoopState, frame: &mut Frame) {
        let mut is_kept = |operation: u64, refuses: bool| {
            let (token, _) = Token::of(OperationId(operation));
            let counted = state.operations.get_mut(token).is_some_and(|it| it.counts_votes());
            if counted && !refuses {
                Counters::count(&self.shared.counters.votes_not_taken);
            }
            refuses || !counted
        };
        let refuses = |answer: i32| proto::refusal(answer).is_some();
        frame.applied.retain(|it| is_kept(*it, false));
        frame
            .mutation_answers
            .retain(|it| is_kept(it.operation, matches!(it.answer(), WriteAnswer::Refused(_))));
        frame.query_answers.retain(|it| is_kept(it.operation, refuses(it.refusal)));
        frame.range_answers.retain(|it| is_kept(it.operation, refuses(it.refusal)));
    }

    /// Asks a node for the votes of it that were not taken.
    pub(super) fn ask_again(&self, state: &mut LoopState, node: NodeIndex) {
        for token in state.operations.tokens() {
            let Some(operation) = state.operations.get_mut(token) else { continue };
            let replicas = operation.replica(node).map(ReplicaMask::only);
            match (operation, replicas) {
                (Operation::Write(_), Some(replicas)) => {
                    self.write_event(state, token, WriteEvent::AskAgain { replicas });
                }
                (Operation::Read(_), Some(replicas)) => {
                    self.read_event(state, token, ReadEvent::AskAgain { replicas });
                }
                (Operation::Range(range), _) if range.node == node => {
                    send_range_query(state, token);
                }
                _ => {}
            }
        }
    }
}

impl LoopState {
    /// Whether a node's votes are by the directories that this loop knows, and notes it.
    pub(super) fn compare_storages(&mut self, node: NodeIndex, hash: u64) -> Storages {
        if hash != self.storage_ids_hash && !Mutant::OldVotesCount.is_on() {
            self.apart.insert(node);
            return Storages::Apart;
        }
        if self.apart.remove(&node) { Storages::SameAgain } else { Storages::Same }
    }
}

/// What a node's frame says of the directories that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storages {
    /// They are those that are known here.
    Same,
    /// They are, and were others in its last frame.
    SameAgain,
    /// They are others: its votes are not taken.
    Apart,
}

/// Asks a replica for its part of a scan. One that cannot be asked is given up.
pub(super) fn send_range_query(state: &mut LoopState, token: Token) {
    let Some(Operation::Range(range)) = state.operations.get_mut(token) else { return };
    let mut query = range.query.clone();
    query.operation = token.with_sequence(0).0;
    let bytes = query.start.len() + query.end.len() + RANGE_QUERY_BYTES;
    let sent = state
        .peers
        .get(range.node)
        .is_some_and(|it| it.outbox.push(bytes, |frame| frame.range_queries.push(query)).is_ok());
    if !sent {
        // Dropping the sender tells the scan.
        state.operations.remove(token);
    }
}

/// What a range query takes in a queue beyond its bounds.
const RANGE_QUERY_BYTES: usize = 48;
