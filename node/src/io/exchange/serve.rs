//! The answering side: steps of other nodes' rounds.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use antientropy::exchange::Width;
use model::{
    Hlc, KeyspaceId, NodeId, OperationId, PartitionIndex, Record, Refusal, StorageKey, Token,
};
use prost::Message;
use proto::internal::{
    ExchangeAnswer, ExchangeDirty, ExchangeMoves, ExchangeRequest, ExchangeSettled, PartitionFloor,
    exchange_request::Step,
};

use crate::{
    commit::{CommitItem, Origin},
    counters::Counters,
    exchange::{DirtyPart, decode_block, is_known_format, refused},
    io::{io_loop::IoLoop, links::frame_bytes_max, serve::Caller},
    operation::NO_ANSWER,
    outbox::Outbox,
    shared::{Destination, Shared},
};

impl IoLoop {
    /// Answers a step of an exchange.
    pub(in crate::io) fn serve_exchange(
        &self,
        caller: &Caller,
        request: ExchangeRequest,
        refusal: Option<Refusal>,
    ) {
        let (operation, shared) = (request.operation, &self.shared);
        let view = shared.view.load();
        let from = caller.index.zip(view.metadata()).map(|it| it.1.layout().node(it.0).id);
        let refusal = refusal
            .or((!is_known_format(request.hash_format)).then_some(Refusal::Failed))
            .or_else(|| shared.not_ready(request.step.as_ref()));
        let begun = match (from, request.step, refusal) {
            (Some(from), Some(step), None) => {
                let turn = Arc::clone(&shared.exchange.answering).try_acquire_owned();
                turn.map(|turn| (from, step, turn)).map_err(|_none_left| Refusal::Overloaded)
            }
            (_, _, Some(refusal)) => Err(refusal),
            (None, _, _) => Err(Refusal::StaleLayout),
            (_, None, _) => {
                Counters::count(&shared.counters.peer_messages_malformed);
                Err(Refusal::Failed)
            }
        };
        let (outbox, this) = (Arc::clone(&caller.outbox), self.this.clone());
        let (from, step, turn) = match begun {
            Ok(begun) => begun,
            Err(refusal) => return send(&outbox, shared, operation, refused(refusal)),
        };
        let shared = Arc::clone(shared);
        shared.exchange.renew_claim(from, shared.elapsed_us());
        tokio::spawn(async move {
            let _turn = turn;
            let answer = match (step, this.upgrade()) {
                (_, None) => refused(Refusal::Failed),
                (Step::Moves(moves), Some(io)) => io.answer_moves(from, moves).await,
                (Step::Settled(settled), _) => shared.note_settled(from, &settled),
                (Step::Dirty(dirty), _) => shared.answer_dirty(from, &dirty),
                (
                    step @ (Step::PurgeOpen(_) | Step::PurgeSign(_) | Step::PurgeCertify(_)),
                    Some(io),
                ) => io.answer_purge(from, step).await,
                (Step::FillOpen(open), Some(io)) => io.answer_fill(from, open).await,
                (step, _) => {
                    let work = move |it: &Shared| Ok(it.answer_exchange(from, &step));
                    Arc::clone(&shared).blocking(work).await.unwrap_or_else(refused)
                }
            };
            send(&outbox, &shared, operation, answer);
        });
    }

    /// Takes the records of a peer, and gives those that it asks for.
    async fn answer_moves(&self, from: NodeId, moves: ExchangeMoves) -> ExchangeAnswer {
        let shared = &self.shared;
        let rows = match decode_block(moves.records.unwrap_or_default(), frame_bytes_max(shared)) {
            Ok(rows) => rows,
            Err(error) => {
                Counters::count(&shared.counters.peer_messages_malformed);
                tracing::warn!(%from, %error, "records of an exchange are refused");
                return refused(Refusal::Corrupt);
            }
        };
        let Some(refused_rows) = self.take_records(rows, &moves.floors).await else {
            return refused(Refusal::Failed);
        };
        let view = shared.view.load_full();
        let far = view.metadata().zip(view.node_index(from)).is_some_and(|(metadata, node)| {
            metadata.layout().node(node).datacenter != shared.config.datacenter
        });
        let (keyspace, salt, wanted) = (KeyspaceId(moves.keyspace), moves.salt, moves.wanted);
        let width = if moves.exact { Width::Exact } else { Width::Short };
        let work = move |it: &Shared| it.answer_wanted(keyspace, salt, &wanted, (width, far));
        match Arc::clone(shared).blocking(work).await {
            Ok((records, floors)) => ExchangeAnswer {
                records: Some(records),
                floors,
                refused: refused_rows,
                ..ExchangeAnswer::default()
            },
            Err(refusal) => refused(refusal),
        }
    }

    /// Hands records to the commit path and waits until they are durable. `floors` are those of the node
    /// that holds them. How many were refused, or `None` if the disk refused any or the node ends.
    pub(super) async fn take_records(
        &self,
        rows: Vec<(StorageKey, Record)>,
        floors: &[PartitionFloor],
    ) -> Option<u32> {
        if rows.is_empty() {
            return Some(0);
        }
        let floors: BTreeMap<u32, Hlc> =
            floors.iter().map(|it| (it.partition, Hlc(it.floor))).collect();
        let (not_written_before, refused_before) = (self.groups_not_written(), self.refused());
        let (shared, mut refused) = (&self.shared, 0);
        let view = shared.view.load_full();
        let mut items = Vec::with_capacity(rows.len());
        for (key, record) in rows {
            let partition = shared.trees.partition_of(key.token())?;
            let floor = floors.get(&u32::from(partition.0)).copied().unwrap_or_default();
            let own = shared.floors.of(key.keyspace(), partition);
            if record.purgeable_at(own.floor) {
                // It is gone here, and will be there.
                continue;
            }
            let behind = own.is_behind(&record, floor);
            let dropped = view.metadata().is_some_and(|it| it.was_dropped(key.keyspace()));
            // A record from the future moves to nobody (C4).
            if dropped || behind || self.is_future(record.version().hlc) {
                refused += 1;
                continue;
            }
            items.push(CommitItem::Mutation {
                destination: Destination::Nowhere,
                operation: NO_ANSWER,
                slot: 0,
                key,
                record,
                origin: Origin::Held(floor),
                want_newest: false,
            });
        }
        refused += self.queue_all(items).await?;
        let written = self.settled().await && self.groups_not_written() == not_written_before;
        // The commit path has looked once more. What it refused to others meanwhile counts too: then these
        // records are only taken for less certain than they are.
        refused += u32::try_from(self.refused() - refused_before).unwrap_or(u32::MAX);
        written.then_some(refused)
    }

    /// Queues records, those that find no room once what was before them is written, for a while. How many
    /// were not taken; `None` if the node ends.
    async fn queue_all(&self, mut items: Vec<CommitItem<Destination>>) -> Option<u32> {
        let (mut dropped, until_us) = (0, self.now_us() + ROOM_TIMEOUT_US);
        loop {
            let pushed = self.shared.commits.push_background(|queue| queue.extend(items));
            let Err(rejected) = pushed else { break };
            items = rejected.items;
            if rejected.refusal != Refusal::Overloaded || self.now_us() >= until_us {
                dropped += items.len();
                break;
            }
            if !self.settled().await {
                return None;
            }
            let (view, offered) = (self.shared.view.load(), items.len());
            // Behind the end of their keyspace they would stay until the next start.
            items.retain(|it| match (it, view.metadata()) {
                (CommitItem::Mutation { key, .. }, Some(known)) => {
                    !known.was_dropped(key.keyspace())
                }
                _ => true,
            });
            dropped += offered - items.len();
        }
        Some(u32::try_from(dropped).unwrap_or(u32::MAX))
    }

    /// Mutations that the commit path has refused so far for their own sake.
    fn refused(&self) -> u64 {
        let counters = self.shared.commit_counters.load();
        let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
        read(&counters.below_fence) + read(&counters.corrupt)
    }

    /// Groups that the disk has refused so far.
    pub(super) fn groups_not_written(&self) -> u64 {
        let counters = self.shared.commit_counters.load();
        let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
        read(&counters.groups_full) + read(&counters.groups_failed)
    }
}

impl Shared {
    /// Refuses steps while what this node holds does not count. One that has just started has not lost its
    /// directory for that: who fills its replicas asks again.
    fn not_ready(&self, step: Option<&Step>) -> Option<Refusal> {
        match step {
            Some(Step::FillOpen(_)) if self.floors.is_shut() => Some(Refusal::Overloaded),
            _ => self.is_filling().then_some(Refusal::NotReady),
        }
    }

    /// The time by the highest stamp, which stands still when nobody writes, or by the wall clock: some
    /// clocks are ahead of this one.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.highest().ms().max(self.believed_wall().0)
    }

    /// What was stamped later is on its way (M4).
    pub(super) fn settled_before(&self) -> Hlc {
        Hlc::from_ms(self.now_ms().saturating_sub(self.config.exchange_settle_ms))
    }

    /// What was stamped before is likely the same in these partitions of this node and another one: they
    /// were, later than that. Zero if it is not known of all of them.
    pub(crate) fn same_before(
        &self,
        pair: (KeyspaceId, NodeId),
        partitions: &[PartitionIndex],
    ) -> Hlc {
        let Some(at_us) = self.exchange.all_verified(pair, partitions) else { return Hlc::ZERO };
        let age_ms = self.elapsed_us().saturating_sub(at_us) / 1_000;
        // What was on its way then may have come to one of the two alone.
        let margin_ms = self.config.exchange_settle_ms;
        Hlc::from_ms(self.now_ms().saturating_sub(age_ms + margin_ms))
    }

    /// When the oldest hint of a write at ANY in a keyspace was stamped, or a little earlier.
    pub(super) fn oldest_any_hint_ms(&self, keyspace: KeyspaceId) -> Option<u64> {
        self.hint_totals.load().by_keyspace().get(&keyspace)?.any.oldest_ms
    }

    /// How slow clients are served, in thousandths of what is allowed
    /// (see [`crate::foreground::Foreground::pressure`]).
    pub(crate) fn pressure(&self) -> u32 {
        let target_us = self.config.foreground_p99_target_ms.saturating_mul(1_000);
        self.foreground.pressure(self.elapsed_us(), target_us)
    }

    fn note_settled(&self, from: NodeId, settled: &ExchangeSettled) -> ExchangeAnswer {
        let at_us = self.elapsed_us().saturating_sub(u64::from(settled.age_ms) * 1_000);
        let partition = |it: &u32| u16::try_from(*it).ok().map(PartitionIndex);
        let partitions: Vec<_> = settled.partitions.iter().filter_map(partition).collect();
        self.exchange.verified((KeyspaceId(settled.keyspace), from), &partitions, at_us);
        ExchangeAnswer::default()
    }

    pub(super) fn answer_dirty(&self, from: NodeId, dirty: &ExchangeDirty) -> ExchangeAnswer {
        let (view, now_us) = (self.view.load_full(), self.elapsed_us());
        let Some(metadata) = view.metadata() else { return refused(Refusal::StaleLayout) };
        let compared = dirty.parts.iter().map(|part| {
            let keyspace = KeyspaceId(part.keyspace);
            if metadata.was_dropped(keyspace) {
                return true;
            }
            // Not known here yet: it will be.
            let Some(known) = view.keyspace_of_id(keyspace) else { return false };
            let first = Token(u64::from(part.token_prefix & 0xffff) << 48);
            let partition = view.partition(first);
            let replicas = known.replica_set(partition);
            let Some(own) = view.own().filter(|it| replicas.replica(*it).is_some()) else {
                return true;
            };
            let others = replicas.nodes().iter().filter(|it| **it != own);
            let others: Vec<_> = others.map(|it| metadata.layout().node(*it).id).collect();
            let token_prefix = u16::try_from(part.token_prefix & 0xffff).expect("16 bits");
            let generation = part.generation;
            let part = DirtyPart { from, keyspace, partition, token_prefix, generation };
            self.exchange.is_compared(part, &others, now_us)
        });
        ExchangeAnswer { compared: compared.collect(), ..ExchangeAnswer::default() }
    }
}

fn send(outbox: &Outbox, shared: &Shared, operation: u64, mut answer: ExchangeAnswer) {
    (answer.operation, answer.pressure) = (OperationId(operation).0, shared.pressure());
    let bytes = answer.encoded_len();
    if outbox.push(bytes, |frame| frame.exchange_answers.push(answer)).is_err() {
        Counters::count(&shared.counters.peer_answers_dropped);
    }
}

/// How long a block waits for room: well below the time after which nobody waits for its answer.
const ROOM_TIMEOUT_US: u64 = 3_000_000;
