//! What the administration interface tells of exchanges, and the rounds that it asks for.

use std::{collections::BTreeMap, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use model::NodeId;
use proto::{CallError, Reason, v1};
use tonic::metadata::MetadataMap;

use super::{FillStatus, admin::AdminApi, admin_hints::hint_sum, call::Call};
use crate::exchange::{ExchangeBoard, PurgeBlock, RoundEnd, RoundReport};

/// The rounds that a call waits for: those numbered so or higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The node's start by which rounds are counted.
    pub(super) incarnation: u64,
    pub(super) number: u64,
}

impl Asked {
    pub(super) fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16);
        bytes.put_u64(self.incarnation);
        bytes.put_u64(self.number);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (incarnation, number) = bytes.split_first_chunk()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        Some(Self { incarnation: u64::from_be_bytes(*incarnation), number })
    }
}

impl AdminApi {
    pub(super) async fn repair_now(
        &self,
        metadata: &MetadataMap,
        request: v1::RepairRequest,
    ) -> Result<v1::RepairResponse, CallError> {
        let call = Call::admit(&self.io, metadata, 0)?;
        let mut deadline_us = call.deadline_us;
        if let Some(wait_ms) = request.wait_ms {
            deadline_us = deadline_us.min(self.io.now_us() + u64::from(wait_ms) * 1_000);
        }
        let keyspace = match request.keyspace.as_str() {
            "" => None,
            name => Some(call.keyspace(name)?.keyspace.id),
        };
        let shared = &self.io.shared;
        let incarnation = shared.identity.incarnation;
        let mut asked = Asked { incarnation, number: 0 };
        if !request.round.is_empty() {
            asked = Asked::decode(&request.round).ok_or_else(|| {
                let message = "the round is none that this version has given";
                CallError::new(Reason::InvalidField, message).at_field("round")
            })?;
        }
        if request.round.is_empty() || asked.incarnation != incarnation {
            // A start of the node ends its rounds: they begin anew.
            asked = Asked { incarnation, number: shared.exchange.ask(keyspace) };
        }
        loop {
            let pairs = self.repaired(asked.number);
            let done = pairs.iter().all(|it| it.state() != v1::RepairState::Running);
            let left_us = deadline_us.saturating_sub(self.io.now_us());
            if done || left_us == 0 {
                return Ok(v1::RepairResponse { done, round: asked.encode(), pairs });
            }
            tokio::time::sleep(LOOK_INTERVAL.min(Duration::from_micros(left_us))).await;
        }
    }

    /// Where the rounds stand that were asked for by a number.
    fn repaired(&self, number: u64) -> Vec<v1::PairRepair> {
        let shared = &self.io.shared;
        let own = shared.identity.node;
        let partners = shared.exchange.partners(&shared.view.load());
        let begun = partners.into_iter().filter(|it| ExchangeBoard::begins(own, *it));
        let pair = |node| {
            let round = shared.exchange.round(node);
            let ended = round.asked_for.filter(|_| round.answered >= number);
            let (state, refusal, report) = match ended {
                None => (v1::RepairState::Running, String::new(), RoundReport::default()),
                Some((end, report)) => {
                    let (state, refusal) = repair_state(end);
                    (state, refusal, report)
                }
            };
            let (address, datacenter) = self.place(node);
            v1::PairRepair {
                node_id: Bytes::copy_from_slice(&node.to_bytes()),
                address,
                datacenter,
                state: state.into(),
                refusal,
                trees: report.trees,
                trees_differing: report.trees_differing,
                ranges: report.ranges,
                records_sent: report.records_sent,
                records_taken: report.records_taken,
                record_bytes: report.record_bytes,
                bytes_sent: report.bytes_sent,
                bytes_received: report.bytes_received,
                records_refused: report.refused + report.damaged_ranges,
            }
        };
        begun.map(pair).collect()
    }

    pub(super) fn convergence(&self) -> v1::GetConvergenceResponse {
        let shared = &self.io.shared;
        let (view, now_us) = (shared.view.load(), shared.elapsed_us());
        // Takes over new metadata first.
        shared.exchange.partners(&view);
        let mut keyspaces: BTreeMap<String, Vec<v1::PairConvergence>> = BTreeMap::new();
        for ((keyspace, node), figures) in shared.exchange.figures() {
            let Some(keyspace) = view.keyspace_of_id(keyspace) else { continue };
            let (address, datacenter) = self.place(node);
            let pairs = keyspaces.entry(keyspace.keyspace.name.clone()).or_default();
            pairs.push(v1::PairConvergence {
                node_id: Bytes::copy_from_slice(&node.to_bytes()),
                address,
                datacenter,
                partitions: figures.partitions,
                partitions_same: figures.same,
                oldest_age_ms: now_us.saturating_sub(figures.oldest_us) / 1_000,
                records_moved: figures.records_moved,
                bytes_moved: figures.bytes_moved,
            });
        }
        let kept = shared.hint_totals.load().by_keyspace();
        // A node keeps hints, and acknowledges writes, of keyspaces of which it holds no replica.
        for it in view.metadata().map(|it| it.keyspaces()).unwrap_or_default() {
            if kept.contains_key(&it.id) || shared.exchange.overwritten(it.id) > 0 {
                keyspaces.entry(it.name.clone()).or_default();
            }
        }
        let (purges, now_ms) = (shared.exchange.purges(), shared.believed_wall().0);
        let keyspaces = keyspaces.into_iter().map(|(name, pairs)| {
            let id = view.keyspace(&name).map(|it| it.keyspace.id);
            let kept = id.and_then(|it| kept.get(&it)).copied().unwrap_or_default();
            let noted = id.and_then(|it| purges.get(&it)).copied();
            let (block, waits_for) = purge_block(noted.map(|it| it.0));
            v1::KeyspaceConvergence {
                keyspace: name,
                pairs,
                purge_block: block.into(),
                purge_waits_for: waits_for
                    .map_or_else(Bytes::new, |it| Bytes::copy_from_slice(&it.to_bytes())),
                purge_waits_for_address: waits_for.map_or_else(String::new, |it| self.place(it).0),
                overwritten_concurrent: id.map_or(0, |it| shared.exchange.overwritten(it)),
                purge_blocked_ms: noted.map_or(0, |it| now_us.saturating_sub(it.1) / 1_000),
                hints: Some(hint_sum(&kept.both(), now_ms)),
                dirty_marks: kept.dirty_marks,
            }
        });
        let scrub = Some(self.scrub_status());
        v1::GetConvergenceResponse {
            keyspaces: keyspaces.collect(),
            scrub,
            fill: self.fill_status(),
        }
    }

    /// A node whose directory nobody has looked at yet may have to be filled.
    fn fill_status(&self) -> Option<v1::FillStatus> {
        let shared = &self.io.shared;
        let it = shared.fill.status();
        let it = it.or_else(|| shared.is_filling().then(FillStatus::default))?;
        let age_us = shared.elapsed_us().saturating_sub(it.began_us);
        Some(v1::FillStatus {
            partitions: it.partitions,
            partitions_filled: it.filled,
            age_ms: age_us / 1_000,
            missing: it.missing.into_iter().map(|node| self.place(node).0).collect(),
        })
    }

    /// Where clients connect to a node, and its datacenter.
    fn place(&self, node: NodeId) -> (String, String) {
        let shared = &self.io.shared;
        let view = shared.view.load();
        let known = shared.directory.borrow().get(&node).map(|it| it.description());
        let laid_out = view.node_index(node).zip(view.metadata());
        let laid_out = laid_out.map(|(it, metadata)| metadata.layout().node(it).clone());
        let known = known.or(laid_out);
        known.map_or_else(Default::default, |it| (it.client_address.to_string(), it.datacenter))
    }
}

fn purge_block(noted: Option<PurgeBlock>) -> (v1::PurgeBlock, Option<NodeId>) {
    let block = match noted {
        None => v1::PurgeBlock::Unspecified,
        Some(PurgeBlock::Nothing) => v1::PurgeBlock::Nothing,
        Some(PurgeBlock::Away(_)) => v1::PurgeBlock::Away,
        Some(PurgeBlock::Ended(..)) => v1::PurgeBlock::Ended,
        Some(PurgeBlock::Unsigned) => v1::PurgeBlock::Unsigned,
        Some(PurgeBlock::Stuck) => v1::PurgeBlock::Stuck,
    };
    (block, noted.and_then(PurgeBlock::waits_for))
}

fn repair_state(end: RoundEnd) -> (v1::RepairState, String) {
    let state = match end {
        RoundEnd::Same => v1::RepairState::Same,
        RoundEnd::Away => v1::RepairState::Away,
        RoundEnd::Silent => v1::RepairState::Silent,
        RoundEnd::Malformed => v1::RepairState::Malformed,
        RoundEnd::Stuck => v1::RepairState::Stuck,
        RoundEnd::Differs => v1::RepairState::Differs,
        RoundEnd::Refused(refusal) => {
            let name = proto::internal::Refusal::from(refusal).as_str_name();
            let name = name.trim_start_matches("REFUSAL_").to_owned();
            return (v1::RepairState::Refused, name);
        }
    };
    (state, String::new())
}

/// How often rounds under way are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_survive_the_wire_and_nonsense_is_none() {
        let asked = Asked { incarnation: 3, number: u64::MAX };
        assert_eq!(Asked::decode(&asked.encode()), Some(asked));
        assert_eq!(Asked::decode(&[0; 15]), None);
        assert_eq!(Asked::decode(&[0; 17]), None);
    }
}
