//! One step of an exchange: a question to another node, and its answer.

use std::time::Duration;

use model::{NodeId, NodeIndex, Refusal};
use prost::Message;
use proto::internal::{
    DirtyPart, ExchangeAnswer, ExchangeDirty, ExchangeRequest, exchange_request::Step,
};
use rand::RngExt;
use tokio::sync::oneshot;

use crate::{
    commit::DirtyMark,
    exchange::RoundEnd,
    io::io_loop::{Alarm, IoLoop},
    operation::Operation,
};

/// The answer to a step, and what both took on the wire.
pub(super) struct Answered {
    pub(super) answer: ExchangeAnswer,
    pub(super) bytes_sent: usize,
    pub(super) bytes_received: usize,
}

impl IoLoop {
    /// Asks another node.
    pub(super) async fn exchange_step(
        &self,
        node: NodeIndex,
        step: Step,
    ) -> Result<Answered, RoundEnd> {
        let until_us = self.now_us() + STEP_TIMEOUT_US;
        loop {
            match self.exchange_step_once(node, step.clone()).await {
                // It answers others: theirs end soon.
                Err(RoundEnd::Refused(Refusal::Overloaded)) if self.now_us() < until_us => {
                    let wait_ms = self.lock().random.random_range(OVERLOADED_MS);
                    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                }
                answered => return answered,
            }
        }
    }

    async fn exchange_step_once(&self, node: NodeIndex, step: Step) -> Result<Answered, RoundEnd> {
        let (answer, result) = oneshot::channel();
        let mut request = ExchangeRequest {
            operation: 0,
            hash_format: antientropy::merkle::HASH_FORMAT.into(),
            step: Some(step),
        };
        let bytes_sent = {
            let mut state = self.lock();
            state.peers.follow(&self.shared.view.load());
            let token = state.operations.insert(Operation::Exchange { node, answer });
            let deadline_us = self.now_us() + STEP_TIMEOUT_US;
            self.set_alarm(&mut state, deadline_us, token, Alarm::Deadline);
            request.operation = token.with_sequence(0).0;
            let bytes = request.encoded_len();
            let sent = state.peers.get(node).is_some_and(|it| {
                it.outbox.push(bytes, |frame| frame.exchange_requests.push(request)).is_ok()
            });
            if !sent {
                state.operations.remove(token);
                return Err(RoundEnd::Away);
            }
            bytes
        };
        let answer = result.await.map_err(|_dropped| RoundEnd::Silent)?;
        let bytes_received = answer.encoded_len();
        match proto::refusal(answer.refusal) {
            Some(refusal) => Err(RoundEnd::Refused(refusal)),
            None => Ok(Answered { answer, bytes_sent, bytes_received }),
        }
    }

    /// Asks a target for which of the marks it has been compared since; `None` if it does not say.
    pub(super) async fn dirty_step(
        &self,
        target: NodeId,
        marks: &[(DirtyMark, u64)],
    ) -> Option<Vec<bool>> {
        let node = self.shared.view.load().node_index(target)?;
        let part = |(mark, generation): &(DirtyMark, u64)| DirtyPart {
            keyspace: mark.keyspace.0,
            token_prefix: mark.token_prefix.into(),
            generation: *generation,
        };
        let dirty = ExchangeDirty { parts: marks.iter().map(part).collect() };
        // What this node's own disk refused it has marked for itself.
        let answer = match target == self.shared.identity.node {
            true => self.shared.answer_dirty(target, &dirty),
            false => self.exchange_step(node, Step::Dirty(dirty)).await.ok()?.answer,
        };
        Some(answer.compared).filter(|it| it.len() == marks.len())
    }
}

/// How long a node that answers others is left alone.
const OVERLOADED_MS: std::ops::Range<u64> = 20..80;
/// Longer than a step of full slices takes between continents on a busy disk.
const STEP_TIMEOUT_US: u64 = 10_000_000;
