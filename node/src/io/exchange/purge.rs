//! Purging by proof: fence, exchange, signatures, certificate, and then tombstones and expired records go.
//! Rules: docs/protocol.md, F1 to F6.
//!
//! The first replica of a partition begins. All of them take part or nothing happens, and nothing depends
//! on when: there is no grace period.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use model::{Hlc, Keyspace, KeyspaceId, Mutant, NodeId, PartitionIndex, Refusal};
use proto::internal::{
    ExchangeAnswer, PartitionFloor, PurgeCertify, PurgeOpen, PurgeSign, exchange_request::Step,
};
use rand::RngExt;

use super::{
    pace::Pace,
    round::{Direction, Round},
};
use crate::{
    commit::{CommitItem, FloorChange, due_keys},
    exchange::{OpenRound, PurgeBlock, RoundEnd, refused},
    io::io_loop::IoLoop,
    shared::Shared,
    view::View,
};

/// A round of some partitions of one keyspace, with their replicas.
struct PurgeRound<'a> {
    io: &'a IoLoop,
    /// The layout by which the replicas were found.
    layout_hash: u64,
    keyspace: KeyspaceId,
    up_to: Hlc,
    round: u64,
    /// The other replicas of each partition that is still in.
    partitions: BTreeMap<PartitionIndex, Vec<NodeId>>,
    /// Nodes that may keep hints of ANY for the keyspace (F10).
    keepers: Vec<NodeId>,
    /// What a replica's part ended by, the last if there were several: its partitions are left out.
    block: Option<PurgeBlock>,
}

impl IoLoop {
    /// Begins rounds for the partitions whose first replica this node is, for as long as it lives.
    pub(in crate::io) async fn run_purges(self: Arc<Self>) {
        loop {
            let interval_ms = self.shared.config.purge_interval_ms;
            let jitter_ms = self.lock().random.random_range(0..=interval_ms / 2);
            tokio::time::sleep(Duration::from_millis(interval_ms - interval_ms / 4 + jitter_ms))
                .await;
            if self.shared.is_filling() {
                // Its replicas have nothing to vouch for (F7).
                continue;
            }
            let view = self.shared.view.load_full();
            let known = view.metadata().map(|it| it.keyspaces()).unwrap_or_default();
            for keyspace in known.iter().map(|it| it.id) {
                // A round may take long: each goes by the layout of its own beginning.
                let view = self.shared.view.load_full();
                let Some(keyspace) = view.keyspace_of_id(keyspace) else { continue };
                let block = self.purge(&view, &keyspace.keyspace).await;
                self.shared.exchange.note_purge(keyspace.keyspace.id, block, self.now_us());
            }
        }
    }

    /// One round of a keyspace. What stood in its way, if anything.
    async fn purge(&self, view: &View, keyspace: &Keyspace) -> PurgeBlock {
        let (shared, allows_any, keyspace) = (&self.shared, keyspace.allow_any, keyspace.id);
        let now_ms = match shared.trusted_wall() {
            // Raises the clock that the questions carry: the others judge by it.
            Ok(wall) => shared.clock.read(wall).ms(),
            Err(_) if Mutant::FenceAheadTaken.is_on() => shared.wall().0,
            Err(_) => return PurgeBlock::Stuck,
        };
        let up_to = Hlc::from_ms(now_ms.saturating_sub(shared.config.fence_lag_ms));
        let Some(mut partitions) = self.led_partitions(view, keyspace, up_to).await else {
            return PurgeBlock::Stuck;
        };
        if Mutant::PurgedWithoutAll.is_on() {
            let reachable = |it: &NodeId| self.can_deliver(*it);
            partitions.values_mut().for_each(|it| it.retain(reachable));
        }
        if partitions.is_empty() {
            return PurgeBlock::Nothing;
        }
        // F10: a hint of ANY may be the only copy of a write, and any node may keep it.
        let layout = view.metadata().map(|it| it.layout().nodes()).unwrap_or_default();
        let asks = allows_any && !Mutant::AnyHintsUnasked.is_on();
        let keepers: Vec<NodeId> = layout.iter().map(|it| it.id).filter(|_| asks).collect();
        let others = keepers.iter().filter(|it| **it != shared.identity.node);
        let away = others.clone().find(|it| !self.can_deliver(**it));
        if let Some(away) = away.filter(|_| !Mutant::PurgedWithoutAll.is_on()) {
            return PurgeBlock::Away(*away);
        }
        let members = partitions.values().flatten();
        if let Some(away) = members.clone().find(|it| !self.can_deliver(**it)) {
            // The others need not wait for it.
            let mut reachable = partitions.clone();
            reachable.retain(|_, members| members.iter().all(|it| self.can_deliver(*it)));
            let away = *away;
            if !reachable.is_empty() {
                self.purge_partitions(view, keyspace, up_to, (reachable, keepers)).await;
            }
            return PurgeBlock::Away(away);
        }
        self.purge_partitions(view, keyspace, up_to, (partitions, keepers)).await
    }

    async fn purge_partitions(
        &self,
        view: &View,
        keyspace: KeyspaceId,
        up_to: Hlc,
        (partitions, keepers): (BTreeMap<PartitionIndex, Vec<NodeId>>, Vec<NodeId>),
    ) -> PurgeBlock {
        let round = self.lock().random.random();
        let mut round = PurgeRound {
            io: self,
            layout_hash: view.layout_hash(),
            keyspace,
            up_to,
            round,
            partitions,
            keepers,
            block: None,
        };
        let begun = round.partitions.len();
        let block = match round.run().await {
            Ok(()) if round.partitions.len() == begun => PurgeBlock::Nothing,
            Ok(()) => round.block.unwrap_or(PurgeBlock::Unsigned),
            Err(block) => block,
        };
        tracing::debug!(?keyspace, %up_to, begun, signed = round.partitions.len(), ?block, "purge");
        block
    }

    /// The partitions of which this node is the first replica and where something may go, with their
    /// other replicas; `None` if the disk cannot be read.
    async fn led_partitions(
        &self,
        view: &View,
        keyspace: KeyspaceId,
        up_to: Hlc,
    ) -> Option<BTreeMap<PartitionIndex, Vec<NodeId>>> {
        let (metadata, own) = (Arc::clone(view.metadata()?), view.own()?);
        let known = Arc::clone(view.keyspace_of_id(keyspace)?);
        let layout = Arc::clone(metadata.layout());
        let work = move |shared: &Shared| {
            let mut led = BTreeMap::new();
            for partition in layout.partition_indexes() {
                let replicas = known.replica_set(partition);
                if replicas.nodes().first() != Some(&own) {
                    continue;
                }
                let due = due_keys(&shared.world.storage, keyspace, partition, up_to, None, 1);
                if due.map_err(|error| shared.read_error(&error))?.keys.is_empty() {
                    continue;
                }
                let others = replicas.nodes().iter().filter(|it| **it != own);
                let others = others.map(|it| layout.node(*it).id).collect();
                led.insert(partition, others);
                if led.len() >= PARTITIONS_MAX {
                    break;
                }
            }
            Ok(led)
        };
        Arc::clone(&self.shared).blocking(work).await.ok()
    }

    /// Takes a step of a round, another node's or this one's.
    pub(super) async fn answer_purge(&self, from: NodeId, step: Step) -> ExchangeAnswer {
        match step {
            Step::PurgeOpen(open) => self.answer_open(from, open).await,
            Step::PurgeSign(sign) => self.answer_sign(from, sign).await,
            Step::PurgeCertify(certify) => self.answer_certify(&certify).await,
            _ => refused(Refusal::Failed),
        }
    }

    /// F1: raises fences.
    async fn answer_open(&self, from: NodeId, open: PurgeOpen) -> ExchangeAnswer {
        let shared = &self.shared;
        let (keyspace, up_to) = (KeyspaceId(open.keyspace), Hlc(open.up_to));
        let lag_ms = shared.config.fence_lag_ms;
        let view = shared.view.load_full();
        if open.layout_hash != view.layout_hash() {
            return refused(Refusal::StaleLayout);
        }
        let Some(partitions) = own_partitions(&view, keyspace, &open.partitions) else {
            return refused(Refusal::Failed);
        };
        // A fence near the clock would stop writes that are on their way (CE22).
        let is_ahead = up_to.ms().saturating_add(lag_ms) > shared.now_ms();
        if is_ahead && !Mutant::FenceAheadTaken.is_on() {
            return refused(Refusal::ClockAhead);
        }
        if open.allows_any && shared.oldest_any_hint_ms(keyspace).is_some_and(|it| it <= up_to.ms())
        {
            return refused(Refusal::NotReady);
        }
        self.step(keyspace, &partitions, FloorChange::Fence(up_to));
        if !self.settled().await {
            return refused(Refusal::Failed);
        }
        let layout_hash = open.layout_hash;
        let opened = OpenRound { from, round: open.round, up_to, layout_hash };
        shared.exchange.open(keyspace, &partitions, opened);
        let floors = shared.floors.all();
        let fenced = partitions.iter().filter(|it| floors.of(keyspace, **it).fence >= up_to);
        let partitions = fenced.map(|it| it.0.into()).collect();
        ExchangeAnswer { partitions, ..ExchangeAnswer::default() }
    }

    /// F4: signs, for a round that was opened in this life of the process and by this layout.
    async fn answer_sign(&self, from: NodeId, sign: PurgeSign) -> ExchangeAnswer {
        let shared = &self.shared;
        let (keyspace, up_to, round) = (KeyspaceId(sign.keyspace), Hlc(sign.up_to), sign.round);
        let view = shared.view.load_full();
        let Some(mut partitions) = own_partitions(&view, keyspace, &sign.partitions) else {
            return refused(Refusal::Failed);
        };
        let layout_hash = view.layout_hash();
        let opened = OpenRound { from, round, up_to, layout_hash };
        partitions.retain(|it| shared.exchange.is_open(keyspace, *it, opened));
        self.step(keyspace, &partitions, FloorChange::Sign { up_to, round });
        if !self.settled().await {
            return refused(Refusal::Failed);
        }
        let floors = shared.floors.all();
        let signed = partitions.iter().filter(|it| {
            let own = floors.of(keyspace, **it);
            (own.signed, own.signed_round) == (up_to, round)
        });
        let partitions = signed.map(|it| it.0.into()).collect();
        ExchangeAnswer { partitions, ..ExchangeAnswer::default() }
    }

    /// F5: takes floors that all have signed.
    async fn answer_certify(&self, certify: &PurgeCertify) -> ExchangeAnswer {
        for floor in &certify.floors {
            self.adopt_floor(KeyspaceId(certify.keyspace), floor);
        }
        match self.settled().await {
            true => ExchangeAnswer::default(),
            false => refused(Refusal::Failed),
        }
    }

    /// Takes a floor, if this replica has signed it.
    pub(super) fn adopt_floor(&self, keyspace: KeyspaceId, floor: &PartitionFloor) {
        let view = self.shared.view.load();
        let own = own_partitions(&view, keyspace, &[floor.partition]);
        let Some([partition]) = own.as_deref() else { return };
        let partition = *partition;
        let change = FloorChange::Adopt { up_to: Hlc(floor.floor), round: floor.round };
        self.queue(CommitItem::Floor { keyspace, partition, change });
    }

    fn step(&self, keyspace: KeyspaceId, partitions: &[PartitionIndex], change: FloorChange) {
        for partition in partitions {
            self.queue(CommitItem::Floor { keyspace, partition: *partition, change });
        }
    }
}

impl PurgeRound<'_> {
    /// Runs the round; partitions that do not come to its end are taken out.
    async fn run(&mut self) -> Result<(), PurgeBlock> {
        let own = self.io.shared.identity.node;
        // First: a hint that meets a fence could never be delivered, be the round given up or not. No new
        // one comes with a stamp so old.
        for keeper in std::mem::take(&mut self.keepers) {
            match self.ask_keeper(keeper).await {
                Err(_) if Mutant::PurgedWithoutAll.is_on() => {}
                asked => asked?,
            }
        }
        self.open(own).await?;
        for member in self.members() {
            let opened = self.open(member).await;
            self.leave_out(member, opened);
        }
        if !Mutant::SignedBlindly.is_on() {
            // F2: everything comes here first, and then goes to everyone.
            for direction in [Direction::Gather, Direction::Scatter] {
                for member in self.members() {
                    let brought = self.bring(member, direction).await;
                    self.leave_out(member, brought);
                }
            }
        }
        self.sign(own).await?;
        for member in self.members() {
            let signed = self.sign(member).await;
            self.leave_out(member, signed);
        }
        self.certify().await;
        Ok(())
    }

    /// A replica that does not take its part takes its partitions out, and no others.
    fn leave_out(&mut self, member: NodeId, part: Result<(), PurgeBlock>) {
        if let Err(block) = part {
            self.keep(member, &[]);
            self.block = Some(block);
        }
    }

    /// The other replicas of the partitions that are still in.
    fn members(&self) -> Vec<NodeId> {
        let mut members: Vec<NodeId> = self.partitions.values().flatten().copied().collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    fn partitions_of(&self, member: NodeId) -> Vec<PartitionIndex> {
        let own = self.io.shared.identity.node;
        let holds = |it: &(&PartitionIndex, &Vec<NodeId>)| member == own || it.1.contains(&member);
        self.partitions.iter().filter(holds).map(|it| *it.0).collect()
    }

    /// Takes out a member's partitions but for these.
    fn keep(&mut self, member: NodeId, kept: &[PartitionIndex]) {
        let own = self.io.shared.identity.node;
        self.partitions.retain(|partition, members| {
            member != own && !members.contains(&member) || kept.contains(partition)
        });
    }

    /// Asks a node whether it keeps a hint of ANY that the round's fences would stop (F10).
    async fn ask_keeper(&self, keeper: NodeId) -> Result<(), PurgeBlock> {
        let open = PurgeOpen {
            allows_any: true,
            layout_hash: self.layout_hash,
            keyspace: self.keyspace.0,
            up_to: self.up_to.0,
            round: self.round,
            partitions: Vec::new(),
        };
        let answer = self.ask(keeper, Step::PurgeOpen(open)).await?;
        match proto::refusal(answer.refusal) {
            Some(refusal) => Err(PurgeBlock::Ended(keeper, RoundEnd::Refused(refusal))),
            None => Ok(()),
        }
    }

    async fn open(&mut self, member: NodeId) -> Result<(), PurgeBlock> {
        let open = PurgeOpen {
            allows_any: false,
            layout_hash: self.layout_hash,
            keyspace: self.keyspace.0,
            up_to: self.up_to.0,
            round: self.round,
            partitions: self.partitions_of(member).iter().map(|it| it.0.into()).collect(),
        };
        self.take_part(member, Step::PurgeOpen(open)).await
    }

    async fn sign(&mut self, member: NodeId) -> Result<(), PurgeBlock> {
        let sign = PurgeSign {
            keyspace: self.keyspace.0,
            up_to: self.up_to.0,
            round: self.round,
            partitions: self.partitions_of(member).iter().map(|it| it.0.into()).collect(),
        };
        self.take_part(member, Step::PurgeSign(sign)).await
    }

    /// Has a replica take a step; partitions for which it does not are left out.
    async fn take_part(&mut self, member: NodeId, step: Step) -> Result<(), PurgeBlock> {
        let answer = self.ask(member, step).await?;
        if let Some(refusal) = proto::refusal(answer.refusal) {
            return Err(PurgeBlock::Ended(member, RoundEnd::Refused(refusal)));
        }
        let kept = partitions_of(&answer.partitions).unwrap_or_default();
        self.keep(member, &kept);
        Ok(())
    }

    async fn bring(&mut self, member: NodeId, direction: Direction) -> Result<(), PurgeBlock> {
        let partitions = self.partitions_of(member);
        if partitions.is_empty() {
            return Ok(());
        }
        let mut pace = Pace::default();
        let (io, keyspace) = (self.io, self.keyspace);
        let done = Round::bring(io, member, keyspace, &partitions, direction, &mut pace).await;
        let done = done.map_err(|end| PurgeBlock::Ended(member, end))?;
        self.keep(member, &done);
        Ok(())
    }

    /// What is certified is true whoever hears of it: those that do not hear now will be told with the
    /// next comparison.
    async fn certify(&self) {
        let floor = |it: &PartitionIndex| PartitionFloor {
            partition: it.0.into(),
            floor: self.up_to.0,
            round: self.round,
            ..PartitionFloor::default()
        };
        let own = self.io.shared.identity.node;
        for member in [vec![own], self.members()].concat() {
            let floors: Vec<_> = self.partitions_of(member).iter().map(floor).collect();
            if floors.is_empty() {
                continue;
            }
            let certify = PurgeCertify { keyspace: self.keyspace.0, floors };
            if let Err(block) = self.ask(member, Step::PurgeCertify(certify)).await {
                tracing::debug!(%member, ?block, "a floor is to be told later");
            }
        }
    }

    /// Asks a replica, which may be this node's own.
    async fn ask(&self, member: NodeId, step: Step) -> Result<ExchangeAnswer, PurgeBlock> {
        if member == self.io.shared.identity.node {
            return Ok(self.io.answer_purge(member, step).await);
        }
        let node = self.io.shared.view.load().node_index(member).ok_or(PurgeBlock::Away(member))?;
        let answered = self.io.exchange_step(node, step).await;
        answered.map(|it| it.answer).map_err(|end| PurgeBlock::Ended(member, end))
    }
}

/// Partitions of a known keyspace of which this node is a replica; `None` if one is not.
pub(super) fn own_partitions(
    view: &View,
    keyspace: KeyspaceId,
    numbers: &[u32],
) -> Option<Vec<PartitionIndex>> {
    let (known, own) = (view.keyspace_of_id(keyspace)?, view.own()?);
    let count = view.metadata()?.layout().partitions();
    let within = numbers.len() <= PARTITIONS_MAX && numbers.iter().all(|it| *it < count);
    let partitions = partitions_of(numbers).filter(|_| within)?;
    let is_own = |it: &PartitionIndex| known.replica_set(*it).replica(own).is_some();
    partitions.iter().all(is_own).then_some(partitions)
}

fn partitions_of(numbers: &[u32]) -> Option<Vec<PartitionIndex>> {
    numbers.iter().map(|it| u16::try_from(*it).ok().map(PartitionIndex)).collect()
}

/// Partitions of one round.
const PARTITIONS_MAX: usize = 4_096;
