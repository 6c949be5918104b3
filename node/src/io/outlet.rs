//! Where requests leave a loop: to this node's commit path, or to a peer's queue.

use bytes::Bytes;
use model::{
    Hlc, Mutant, NodeIndex, OperationId, Record, ReplicaIndex, ReplicaMask, StorageKey, Version,
};
use proto::internal::{Mutation, MutationKind, Query};

use crate::{
    commit::{CommitItem, DirtyMark, HintClass, Origin},
    liveness::Peers,
    operation::{NO_ANSWER, ReadOperation, Token, WriteOperation},
    shared::{Destination, Shared},
};

/// The way out, while an operation's effects are executed.
pub(super) struct Outlet<'a> {
    pub(super) shared: &'a Shared,
    pub(super) io_loop: usize,
    pub(super) peers: &'a Peers,
    pub(super) local: &'a mut Vec<CommitItem<Destination>>,
}

impl Outlet<'_> {
    /// Sends a stamped mutation; the replicas that it cannot be sent to come back.
    pub(super) fn send_mutation(
        &mut self,
        write: &WriteOperation,
        token: Token,
        to: ReplicaIndex,
        pass_on: ReplicaMask,
        record: Record,
    ) -> ReplicaMask {
        let round = write.stamps.position(&record.version().hlc);
        let round = u8::try_from(round.unwrap_or_default()).expect("two stamps at most");
        let operation = token.with_sequence(round);
        let node = write.replicas.node(to);
        if self.peers.own() == Some(node) {
            self.commit(operation, &write.key, record, None);
            return ReplicaMask::EMPTY;
        }
        let pass_on_to = pass_on.iter().map(|it| u32::from(write.replicas.node(it).0)).collect();
        let mutation = Mutation {
            operation: operation.0,
            key: write.key.as_bytes().clone(),
            record: record.into_bytes(),
            pass_on: pass_on_to,
            traceparent: write.traceparent.as_deref().unwrap_or_default().to_owned(),
            ..Mutation::default()
        };
        if self.mutate(node, mutation) {
            ReplicaMask::EMPTY
        } else {
            ReplicaMask::only(to).or(pass_on)
        }
    }

    /// Writes a record back to a replica, with the floor of one that holds it. False if it cannot be reached.
    pub(super) fn write_back(
        &mut self,
        read: &ReadOperation,
        to: ReplicaIndex,
        operation: OperationId,
        (record, floor): (&Record, Hlc),
    ) -> bool {
        let node = read.replicas.node(to);
        if self.peers.own() == Some(node) {
            self.commit(operation, &read.key, record.clone(), Some(floor));
            return true;
        }
        let mutation = Mutation {
            operation: operation.0,
            key: read.key.as_bytes().clone(),
            record: record.as_bytes().clone(),
            kind: MutationKind::WriteBack.into(),
            floor: floor.0,
            ..Mutation::default()
        };
        self.mutate(node, mutation)
    }

    fn mutate(&self, node: NodeIndex, mutation: Mutation) -> bool {
        let bytes = mutation.key.len() + mutation.record.len() + MUTATION_BYTES;
        let peer = self.peers.get(node);
        peer.is_some_and(|it| it.outbox.push(bytes, |frame| frame.mutations.push(mutation)).is_ok())
    }

    /// Hands a record to this node's own replica; with the floor of its holder if it is written back.
    fn commit(
        &mut self,
        operation: OperationId,
        key: &StorageKey,
        record: Record,
        written_back: Option<Hlc>,
    ) {
        let destination = if operation == NO_ANSWER {
            Destination::Nowhere
        } else {
            Destination::Loop(self.io_loop)
        };
        let key = key.clone();
        let slot = 0;
        self.local.push(CommitItem::Mutation {
            destination,
            operation,
            slot,
            key,
            record,
            origin: written_back.map_or(Origin::Fresh, Origin::Held),
            want_newest: written_back.is_some(),
        });
    }

    pub(super) fn query(
        &self,
        node: NodeIndex,
        operation: OperationId,
        key: &StorageKey,
        version_only: bool,
        trace: Option<&str>,
    ) -> bool {
        let traceparent = trace.unwrap_or_default().to_owned();
        let key: Bytes = key.as_bytes().clone();
        let bytes = key.len() + QUERY_BYTES;
        let query = Query { operation: operation.0, key, version_only, traceparent };
        let peer = self.peers.get(node);
        peer.is_some_and(|it| it.outbox.push(bytes, |frame| frame.queries.push(query)).is_ok())
    }

    pub(super) fn hint(
        &mut self,
        write: &WriteOperation,
        token: Token,
        to: ReplicaIndex,
        record: Record,
        replaces: Option<Version>,
    ) {
        let view = self.shared.view.load();
        let Some(metadata) = view.metadata() else { return };
        let node = metadata.layout().node(write.replicas.node(to));
        let (target, key) = (node.id, write.key.clone());
        let class = match write.machine.is_any() && !Mutant::AnyHintsGivenUp.is_on() {
            true => HintClass::Any,
            false => HintClass::Ordinary,
        };
        let no_hints_for = &self.shared.config.no_hints_for;
        // Those of ANY are no accelerator.
        if class == HintClass::Ordinary && no_hints_for.contains(&node.datacenter) {
            self.local.push(CommitItem::MarkDirty { mark: DirtyMark::of(target, &key) });
            return;
        }
        self.local.push(CommitItem::Hint {
            destination: Destination::Loop(self.io_loop),
            operation: token.with_sequence(0),
            slot: u32::from(to.0),
            target,
            key,
            record,
            class,
            replaces,
        });
    }
}

/// What a mutation takes in a queue beyond its key and record.
const MUTATION_BYTES: usize = 64;
/// What a query takes in a queue beyond its key.
const QUERY_BYTES: usize = 48;
