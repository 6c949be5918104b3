//! What the administration interface tells of hints, and the barrier behind them.

use std::{collections::BTreeSet, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use model::{Mutant, NodeId};
use proto::{CallError, Reason, v1};
use tonic::metadata::MetadataMap;

use super::{
    admin::AdminApi,
    call::Call,
    handoff::{PassEnd, TargetState},
};
use crate::commit::{HintSum, KeptHints};

/// The hints that a call waits for: those that were there before the pass after `begun`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Barrier {
    /// The node's start by which passes are counted.
    incarnation: u64,
    /// The passes that had begun.
    begun: u64,
    /// Those to which hints are owed.
    targets: BTreeSet<NodeId>,
}

impl Barrier {
    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16 + 16 * self.targets.len());
        bytes.put_u64(self.incarnation);
        bytes.put_u64(self.begun);
        self.targets.iter().for_each(|it| bytes.put_slice(&it.to_bytes()));
        bytes.freeze()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (incarnation, rest) = bytes.split_first_chunk()?;
        let (begun, rest) = rest.split_first_chunk()?;
        if rest.len() > 16 * TARGETS_MAX || !rest.len().is_multiple_of(16) {
            return None;
        }
        let targets = rest.chunks_exact(16).map(NodeId::from_slice).collect::<Option<_>>()?;
        let (incarnation, begun) = (u64::from_be_bytes(*incarnation), u64::from_be_bytes(*begun));
        Some(Self { incarnation, begun, targets })
    }

    /// True if everything that was owed to a target is delivered or marked.
    fn is_passed(&self, hints: &KeptHints, state: &TargetState) -> bool {
        let begun = if Mutant::BarrierPassedEarly.is_on() { 0 } else { self.begun };
        hints.hints() == 0 || state.clean > begun
    }
}

impl AdminApi {
    pub(super) fn hints(&self) -> v1::GetHintsResponse {
        let config = &self.io.shared.config;
        let all = self.io.shared.hint_totals.load().all();
        v1::GetHintsResponse {
            targets: all.iter().map(|(target, hints)| self.target_hints(*target, hints)).collect(),
            target_bytes_limit: config.hint_bytes_per_target_max,
            any_bytes_limit: config.any_hint_bytes_max,
            age_limit_ms: config.hint_age_ms_max,
            no_hints_for: config.no_hints_for.clone(),
        }
    }

    pub(super) async fn wait_for_hints(
        &self,
        metadata: &MetadataMap,
        request: v1::WaitHintsRequest,
    ) -> Result<v1::WaitHintsResponse, CallError> {
        let mut deadline_us = Call::admit(&self.io, metadata, 0)?.deadline_us;
        if let Some(wait_ms) = request.wait_ms {
            deadline_us = deadline_us.min(self.io.now_us() + u64::from(wait_ms) * 1_000);
        }
        let mut barrier = self.barrier(&request.barrier).await?;
        loop {
            self.pass_barrier(&mut barrier);
            let left_us = deadline_us.saturating_sub(self.io.now_us());
            if barrier.targets.is_empty() || left_us == 0 {
                break;
            }
            tokio::time::sleep(LOOK_INTERVAL.min(Duration::from_micros(left_us))).await;
        }
        let totals = self.io.shared.hint_totals.load();
        let owed = barrier.targets.iter().map(|it| self.target_hints(*it, &totals.of(*it)));
        Ok(v1::WaitHintsResponse {
            delivered: barrier.targets.is_empty(),
            owed: owed.collect(),
            barrier: barrier.encode(),
        })
    }

    /// The barrier that a call named, or a new one behind everything that is kept now.
    async fn barrier(&self, named: &[u8]) -> Result<Barrier, CallError> {
        let shared = &self.io.shared;
        let incarnation = shared.identity.incarnation;
        if !named.is_empty() {
            let mut barrier = Barrier::decode(named).ok_or_else(|| {
                let message = "the barrier is none that this version has given";
                CallError::new(Reason::InvalidField, message).at_field("barrier")
            })?;
            if barrier.incarnation != incarnation {
                // Hints outlive a start of the node, the numbers of its passes do not: each of this
                // start has begun behind the barrier.
                (barrier.incarnation, barrier.begun) = (incarnation, 0);
            }
            return Ok(barrier);
        }
        // A write is acknowledged before its hints are durable here.
        if !self.io.settled().await {
            return Err(CallError::new(Reason::Draining, "this node is stopping"));
        }
        let begun = shared.handoff.begun();
        let kept = shared.hint_totals.load().all();
        let owed = kept.iter().filter(|it| it.1.hints() > 0).map(|it| *it.0);
        let barrier = Barrier { incarnation, begun, targets: owed.collect() };
        shared.handoff.wanted.notify_one();
        Ok(barrier)
    }

    /// Takes off the barrier what is delivered meanwhile.
    fn pass_barrier(&self, barrier: &mut Barrier) {
        let shared = &self.io.shared;
        let totals = shared.hint_totals.load();
        let targets = std::mem::take(&mut barrier.targets);
        let owed = |it: &NodeId| !barrier.is_passed(&totals.of(*it), &shared.handoff.target(*it));
        barrier.targets = targets.into_iter().filter(owed).collect();
    }

    fn target_hints(&self, target: NodeId, hints: &KeptHints) -> v1::TargetHints {
        let shared = &self.io.shared;
        let view = shared.view.load();
        let known = shared.directory.borrow().get(&target).map(|it| it.description());
        let laid_out = view.node_index(target).and_then(|it| Some((it, view.metadata()?)));
        let in_layout = laid_out.map(|(it, metadata)| metadata.layout().node(it).clone());
        let (is_member, known) = (in_layout.is_some(), known.or(in_layout));
        let can_deliver = self.io.can_deliver(target);
        let (state, refusal) =
            handoff_state(hints, &shared.handoff.target(target), can_deliver || !is_member);
        let now_ms = shared.believed_wall().0;
        v1::TargetHints {
            target_id: Bytes::copy_from_slice(&target.to_bytes()),
            target_address: known
                .as_ref()
                .map_or(String::new(), |it| it.client_address.to_string()),
            datacenter: known.map_or(String::new(), |it| it.datacenter),
            in_layout: is_member,
            ordinary: Some(hint_sum(&hints.ordinary, now_ms)),
            any: Some(hint_sum(&hints.any, now_ms)),
            dirty_marks: hints.dirty_marks,
            state: state.into(),
            refusal,
        }
    }
}

pub(super) fn hint_sum(sum: &HintSum, now_ms: u64) -> v1::HintSum {
    let oldest_age_ms = sum.oldest_ms.map(|it| now_ms.saturating_sub(it));
    v1::HintSum { hints: sum.hints, bytes: sum.bytes, oldest_age_ms }
}

fn handoff_state(
    hints: &KeptHints,
    state: &TargetState,
    can_deliver: bool,
) -> (v1::HandoffState, String) {
    let named = |refusal: model::Refusal| {
        let name = proto::internal::Refusal::from(refusal).as_str_name();
        name.trim_start_matches("REFUSAL_").to_owned()
    };
    let said = match (state.last, state.delivering) {
        _ if hints.hints() == 0 => v1::HandoffState::Idle,
        _ if !can_deliver => v1::HandoffState::Away,
        (_, true) | (None | Some(PassEnd::Clean), _) => v1::HandoffState::Delivering,
        (Some(PassEnd::Refused(it)), _) => return (v1::HandoffState::Refused, named(it)),
        (Some(PassEnd::Kept(it)), _) => return (v1::HandoffState::Kept, named(it)),
        (Some(PassEnd::Silent), _) => v1::HandoffState::Silent,
        (Some(PassEnd::Stuck), _) => v1::HandoffState::Stuck,
    };
    (said, String::new())
}

/// How often a barrier is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Far more targets than a layout has nodes.
const TARGETS_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use model::Refusal;

    use super::*;

    fn barrier(targets: &[u128]) -> Barrier {
        let targets = targets.iter().map(|it| NodeId(*it)).collect();
        Barrier { incarnation: 3, begun: 7, targets }
    }

    fn kept(hints: u64) -> KeptHints {
        let ordinary = HintSum { hints, bytes: 100 * hints, oldest_ms: None };
        KeptHints { ordinary, ..KeptHints::default() }
    }

    #[test]
    fn barriers_survive_the_wire_and_nonsense_is_none() {
        for it in [barrier(&[]), barrier(&[1, u128::MAX])] {
            assert_eq!(Barrier::decode(&it.encode()), Some(it));
        }
        assert_eq!(Barrier::decode(&[0; 15]), None);
        assert_eq!(Barrier::decode(&[0; 40]), None);
        assert_eq!(Barrier::decode(&vec![0; 16 * (TARGETS_MAX + 2)]), None);
    }

    #[test]
    fn a_barrier_asks_for_a_clean_pass_that_began_behind_it() {
        let clean = |clean| TargetState { clean, ..TargetState::default() };
        let it = barrier(&[1]);
        assert!(it.is_passed(&kept(0), &clean(0)), "nothing is left at all");
        assert!(!it.is_passed(&kept(1), &clean(7)), "a hint may have come behind its page");
        assert!(it.is_passed(&kept(1), &clean(8)), "what is there now is younger");
    }

    #[test]
    fn why_hints_are_not_delivered() {
        let said = |hints, last, delivering, can_deliver| {
            let state = TargetState { delivering, last, ..TargetState::default() };
            let (state, refusal) = handoff_state(&kept(hints), &state, can_deliver);
            format!("{} {refusal}", state.as_str_name().trim_start_matches("HANDOFF_STATE_"))
        };
        let full = Some(PassEnd::Refused(Refusal::DiskFull));
        assert_eq!(said(0, full, false, false), "IDLE ");
        assert_eq!(said(1, full, false, false), "AWAY ");
        assert_eq!(said(1, full, false, true), "REFUSED DISK_FULL");
        assert_eq!(said(1, full, true, true), "DELIVERING ");
        assert_eq!(
            said(1, Some(PassEnd::Kept(Refusal::BelowFence)), false, true),
            "KEPT BELOW_FENCE"
        );
        assert_eq!(said(1, Some(PassEnd::Clean), false, true), "DELIVERING ");
    }
}
