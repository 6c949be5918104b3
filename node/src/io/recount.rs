//! Votes are counted anew when a node's database directory has been replaced. Rule: docs/protocol.md, F12.
//!
//! Who has heard of it and who has not is told by the hashes that frames carry. Between the two no vote
//! passes, and what it was for is asked again once they know of the same directories.

use coordinator::{ReadEvent, WriteEvent};
use model::{Mutant, NodeIndex, OperationId, ReplicaMask};
use proto::internal::Frame;

use super::io_loop::{IoLoop, LoopState};
use crate::operation::{Operation, OperationTable, Token};

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

    /// True if a node's votes are by other directories than this loop's. Once they are by the same again, it
    /// is asked for those that were not taken meanwhile.
    pub(super) fn is_apart(&self, state: &mut LoopState, node: NodeIndex, hash: u64) -> bool {
        if hash != state.storage_ids_hash && !Mutant::OldVotesCount.is_on() {
            state.apart.insert(node);
            return true;
        }
        if state.apart.remove(&node) {
            self.ask_again(state, node);
        }
        false
    }

    fn ask_again(&self, state: &mut LoopState, node: NodeIndex) {
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

/// Takes the votes out of a frame, and leaves what else it answers.
pub(super) fn drop_votes(state: &mut LoopState, frame: &mut Frame) {
    let counts_votes = |operations: &mut OperationTable, operation: u64| {
        let (token, _) = Token::of(OperationId(operation));
        operations.get_mut(token).is_some_and(|it| it.counts_votes())
    };
    let operations = &mut state.operations;
    frame.applied.retain(|it| !counts_votes(operations, *it));
    frame.mutation_answers.retain(|it| !counts_votes(operations, it.operation));
    frame.query_answers.retain(|it| !counts_votes(operations, it.operation));
    frame.range_answers.retain(|it| !counts_votes(operations, it.operation));
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
