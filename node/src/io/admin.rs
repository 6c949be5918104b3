//! The administration interface: status, topology, layouts, keyspaces, and where a key lives.

use std::sync::Arc;

use bytes::Bytes;
use model::{
    Change, ChangeError, ClusterId, ConsistencyLevel, Key, Keyspace, KeyspaceChange, KeyspaceId,
    Metadata, NodeIndex, Plan, Record, StorageKey, plan,
};
use proto::{
    CallError, Reason,
    internal::{Query, QueryAnswer},
    v1::{self, admin_service_server::AdminService},
};
use rand::RngExt;
use tokio::{sync::oneshot, time::Instant};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    admin_snapshot::{Snapshots, Steps},
    admin_view::{
        assignments, clock_state, cluster_id, created, keyspaces, node_info, replica_state,
    },
    call::{Call, level_of},
    change::{change_deadline, successor},
    io_loop::{Alarm, IoLoop},
};
use crate::operation::Operation;

/// The administration interface on one loop.
pub(super) struct AdminApi {
    /// The loop.
    pub io: Arc<IoLoop>,
}

impl AdminApi {
    fn plan(&self, partitions: u32) -> Result<Plan, CallError> {
        let view = self.io.shared.view.load();
        let before = view.metadata().map(|it| Arc::clone(it.layout()));
        let partitions = match (&before, partitions) {
            (Some(before), 0) => before.partitions(),
            (None, 0) => PARTITIONS_DEFAULT,
            (_, wanted) => wanted,
        };
        plan(&self.members(), before.as_deref(), partitions)
            .map_err(|error| CallError::new(Reason::LayoutInvalid, error.to_string()))
    }

    fn commit_plan(&self, request: &v1::CommitLayoutRequest) -> Result<Plan, CallError> {
        if let Some(metadata) = self.io.shared.view.load().metadata() {
            let message = format!(
                "layout {} is in force, and this version of Quorate makes only the first: nodes \
                 cannot be added or removed yet",
                metadata.layout().version()
            );
            return Err(CallError::new(Reason::LayoutInvalid, message));
        }
        let plan = self.plan(request.partitions)?;
        if plan.hash != request.plan_hash {
            let message = "the members have changed since the plan was made: plan again";
            return Err(CallError::new(Reason::PlanChanged, message)
                .with("planned", format!("{:016x}", request.plan_hash))
                .with("now", format!("{:016x}", plan.hash)));
        }
        Ok(plan)
    }

    async fn commit(&self, deadline: Instant, plan: Plan) -> Result<Arc<Metadata>, CallError> {
        let (cluster, key) = {
            let random = &mut self.io.lock().random;
            (ClusterId(random.random()), random.random::<u128>().to_be_bytes())
        };
        let make = |before: Option<&Metadata>| match before {
            None => Metadata::genesis(cluster, key, plan.layout.clone()),
            Some(before) => Err(ChangeError::LayoutVersion {
                required: before.layout().version() + 1,
                actual: plan.layout.version(),
            }),
        };
        self.io.propose(deadline, make).await.map_err(CallError::from)
    }

    async fn change(&self, deadline: Instant, change: Change) -> Result<Arc<Metadata>, CallError> {
        if self.io.shared.view.load().metadata().is_none() {
            let message = "the cluster has no layout yet: plan and commit one";
            return Err(CallError::new(Reason::NoLayout, message));
        }
        let limits = &self.io.shared.config.limits;
        let make = |before: Option<&Metadata>| successor(before, change.clone(), limits);
        self.io.propose(deadline, make).await.map_err(CallError::from)
    }

    /// Fills in what a new keyspace leaves open.
    fn new_keyspace(&self, wire: v1::Keyspace) -> Result<Keyspace, CallError> {
        let view = self.io.shared.view.load();
        let layout = view.metadata().map(|it| Arc::clone(it.layout()));
        let layout = layout
            .ok_or_else(|| CallError::new(Reason::NoLayout, "the cluster has no layout yet"))?;
        let mut replicas = Vec::new();
        for it in &wire.replicas {
            let count = u8::try_from(it.replicas).unwrap_or(u8::MAX);
            replicas.push((it.datacenter.clone(), count));
        }
        if replicas.is_empty() {
            for (at, name) in layout.datacenters().iter().enumerate() {
                let dc = model::DcIndex(u8::try_from(at).expect("few datacenters"));
                let nodes = u8::try_from(layout.nodes_in(dc)).unwrap_or(u8::MAX);
                replicas.push((name.clone(), nodes.min(REPLICAS_DEFAULT)));
            }
        }
        replicas.sort();
        let default = match replicas.len() {
            1 => ConsistencyLevel::Quorum,
            _ => ConsistencyLevel::LocalQuorum,
        };
        Ok(Keyspace {
            id: KeyspaceId(0),
            name: wire.name,
            replicas,
            read_level: level_of(wire.read_consistency.as_ref(), default)?,
            write_level: level_of(wire.write_consistency.as_ref(), default)?,
            default_ttl_seconds: Some(wire.default_ttl_seconds).filter(|it| *it > 0),
            require_overlap: wire.require_overlap,
            allow_any: wire.allow_any,
            conflict: model::ConflictType::default(),
        })
    }

    async fn alter(
        &self,
        deadline: Instant,
        request: v1::AlterKeyspaceRequest,
    ) -> Result<v1::Keyspace, CallError> {
        let level = |wire: Option<v1::Consistency>| {
            let level = wire.as_ref().map(v1::Consistency::level).transpose();
            level.map(Option::flatten).map_err(|error| {
                CallError::new(Reason::InvalidConsistency, error.to_string())
                    .at_field("consistency")
            })
        };
        let change = KeyspaceChange {
            replicas: None,
            read_level: level(request.read_consistency)?,
            write_level: level(request.write_consistency)?,
            default_ttl_seconds: request
                .default_ttl_seconds
                .map(|it| Some(it).filter(|it| *it > 0)),
            require_overlap: request.require_overlap,
            allow_any: request.allow_any,
        };
        let (name, accept_weak) = (request.name, request.accept_weak_defaults);
        let change = Change::AlterKeyspace { name: name.clone(), change, accept_weak };
        created(&*self.change(deadline, change).await?, &name)
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots(Arc::clone(&self.io.shared))
    }

    async fn explain_call(
        &self,
        metadata: &MetadataMap,
        request: v1::ExplainRequest,
    ) -> Result<v1::ExplainResponse, CallError> {
        let mut call = Call::admit(&self.io, metadata, 0)?;
        let explain_us = self.io.now_us() + EXPLAIN_TIMEOUT_US;
        call.deadline_us = call.deadline_us.min(explain_us);
        let keyspace = call.keyspace(&request.keyspace)?;
        let key: Key = call.key(request.key)?;
        let token = key.token();
        let partition = call.view.partition(token);
        let set = Arc::clone(keyspace.replica_set(partition));
        let storage_key = StorageKey::encode(keyspace.keyspace.id, token, &key);
        let answers: Vec<_> = set
            .nodes()
            .iter()
            .map(|node| (*node, self.probe(&call, *node, &storage_key)))
            .collect();
        let now_ms = call.shared.wall().0;
        let mut replicas = Vec::new();
        for (node, answer) in answers {
            replicas.push(replica_state(&call.view, node, &storage_key, answer.await, now_ms));
        }
        let newest = replicas.iter().filter_map(|it| it.version);
        let newest = newest.max_by_key(|it| (it.clock, it.request_id));
        let same = |it: &v1::ReplicaState| {
            it.answered
                && it.refusal.is_empty()
                && it.version == newest
                && it.digest == replicas[0].digest
        };
        let agreed = replicas.iter().all(same);
        Ok(v1::ExplainResponse {
            token: token.0,
            partition: u32::from(partition.0),
            replicas,
            newest,
            agreed,
        })
    }

    /// Asks one replica for a key, without repair; `None` if it does not answer in time.
    fn probe(
        &self,
        call: &Call<'_>,
        node: NodeIndex,
        key: &StorageKey,
    ) -> std::pin::Pin<Box<dyn Future<Output = Option<QueryAnswer>> + Send>> {
        let shared = Arc::clone(call.shared);
        let mut state = self.io.lock();
        state.peers.follow(&call.view);
        if state.peers.own() == Some(node) {
            let key = key.clone();
            return Box::pin(async move {
                let read = shared.blocking(move |it| it.read_blocking(&key)).await;
                let mut answer = QueryAnswer::default();
                match read {
                    Ok(record) => {
                        answer.record = record.map(Record::into_bytes).unwrap_or_default()
                    }
                    Err(refusal) => answer.refusal = proto::internal::Refusal::from(refusal).into(),
                }
                Some(answer)
            });
        }
        let (answer, result) = oneshot::channel();
        let token = state.operations.insert(Operation::Probe { node, answer });
        self.io.set_alarm(&mut state, call.deadline_us, token, Alarm::Deadline);
        let query = Query {
            operation: token.with_sequence(0).0,
            key: key.as_bytes().clone(),
            ..Query::default()
        };
        let sent = state.peers.get(node).is_some_and(|it| {
            it.outbox.push(query.key.len() + 48, |frame| frame.queries.push(query)).is_ok()
        });
        if !sent {
            state.operations.remove(token);
        }
        drop(state);
        Box::pin(async move { result.await.ok() })
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        let shared = &self.io.shared;
        let view = shared.view.load();
        let nodes = self.node_infos(&view);
        let own = shared.identity.node.to_bytes();
        let answered_by = nodes.iter().position(|it| it.node_id == own[..]).unwrap_or_default();
        let layout = view.metadata().map(|it| it.layout());
        Ok(Response::new(v1::GetClusterStatusResponse {
            cluster_id: cluster_id(shared),
            nodes,
            answered_by: u32::try_from(answered_by).unwrap_or(u32::MAX),
            layout_version: layout.map_or(0, |it| it.version()),
            layout_hash: view.layout_hash(),
            partitions: layout.map_or(0, |it| it.partitions()),
            metadata_sequence: view.sequence(),
            keyspaces: keyspaces(&view),
            counters: self.counters(),
            clock: shared.clock.highest().0,
            clock_state: clock_state(shared.clock_gate.state()).into(),
        }))
    }

    async fn get_topology(
        &self,
        request: Request<v1::GetTopologyRequest>,
    ) -> Result<Response<v1::GetTopologyResponse>, Status> {
        let shared = &self.io.shared;
        let view = shared.view.load();
        let layout = view.metadata().map(|it| Arc::clone(it.layout()));
        let known = request.into_inner().known_layout_hash;
        let assignments = match &layout {
            Some(layout) if known != layout.hash() => assignments(layout),
            _ => Vec::new(),
        };
        let mut nodes = self.node_infos(&view);
        nodes.retain(|it| it.in_layout);
        Ok(Response::new(v1::GetTopologyResponse {
            cluster_id: cluster_id(shared),
            layout_version: layout.as_ref().map_or(0, |it| it.version()),
            layout_hash: view.layout_hash(),
            partitions: layout.as_ref().map_or(0, |it| it.partitions()),
            nodes,
            assignments,
            keyspaces: keyspaces(&view),
            local_datacenter: shared.config.datacenter.clone(),
            metadata_sequence: view.sequence(),
            answered_by: view.own().map(|it| it.0.into()),
        }))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let deadline = change_deadline(request.metadata().as_ref());
        let request = request.into_inner();
        let missing = || CallError::new(Reason::KeyspaceInvalid, "no keyspace is described");
        let keyspace = self.new_keyspace(request.keyspace.ok_or_else(missing)?)?;
        let (name, accept_weak) = (keyspace.name.clone(), request.accept_weak_defaults);
        let change = Change::CreateKeyspace { keyspace, accept_weak };
        let metadata = self.change(deadline, change).await?;
        let keyspace = Some(created(&metadata, &name)?);
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace }))
    }

    async fn alter_keyspace(
        &self,
        request: Request<v1::AlterKeyspaceRequest>,
    ) -> Result<Response<v1::AlterKeyspaceResponse>, Status> {
        let deadline = change_deadline(request.metadata().as_ref());
        let keyspace = Some(self.alter(deadline, request.into_inner()).await?);
        Ok(Response::new(v1::AlterKeyspaceResponse { keyspace }))
    }

    async fn drop_keyspace(
        &self,
        request: Request<v1::DropKeyspaceRequest>,
    ) -> Result<Response<v1::DropKeyspaceResponse>, Status> {
        let deadline = change_deadline(request.metadata().as_ref());
        self.change(deadline, Change::DropKeyspace { name: request.into_inner().name }).await?;
        Ok(Response::new(v1::DropKeyspaceResponse {}))
    }

    async fn list_keyspaces(
        &self,
        _: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        let keyspaces = keyspaces(&self.io.shared.view.load());
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces }))
    }

    async fn plan_layout(
        &self,
        request: Request<v1::PlanLayoutRequest>,
    ) -> Result<Response<v1::PlanLayoutResponse>, Status> {
        let plan = self.plan(request.into_inner().partitions)?;
        let nodes = plan.layout.nodes().iter().map(|node| {
            let moves = plan.moves.iter().find(|it| it.node == node.id);
            let moves = moves.map(|it| it.with_replicas(REPLICAS_DEFAULT)).unwrap_or_default();
            v1::PlannedNode {
                node: Some(node_info(node)),
                partitions: moves.partitions,
                gains: moves.gains,
                losses: moves.losses,
            }
        });
        Ok(Response::new(v1::PlanLayoutResponse {
            plan_hash: plan.hash,
            layout_version: plan.layout.version(),
            nodes: nodes.collect(),
            violations: plan.violations.clone(),
            partitions: plan.layout.partitions(),
        }))
    }

    async fn commit_layout(
        &self,
        request: Request<v1::CommitLayoutRequest>,
    ) -> Result<Response<v1::CommitLayoutResponse>, Status> {
        let deadline = change_deadline(request.metadata().as_ref());
        let plan = self.commit_plan(&request.into_inner())?;
        let metadata = self.commit(deadline, plan).await?;
        Ok(Response::new(v1::CommitLayoutResponse {
            layout_version: metadata.layout().version(),
            layout_hash: metadata.layout().hash(),
            cluster_id: Bytes::copy_from_slice(&metadata.cluster().to_bytes()),
        }))
    }

    async fn get_hints(
        &self,
        _: Request<v1::GetHintsRequest>,
    ) -> Result<Response<v1::GetHintsResponse>, Status> {
        Ok(Response::new(self.hints()))
    }

    async fn wait_hints(
        &self,
        request: Request<v1::WaitHintsRequest>,
    ) -> Result<Response<v1::WaitHintsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(self.wait_for_hints(&metadata, request).await?))
    }

    async fn repair(
        &self,
        request: Request<v1::RepairRequest>,
    ) -> Result<Response<v1::RepairResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(self.repair_now(&metadata, request).await?))
    }

    async fn scrub(
        &self,
        request: Request<v1::ScrubRequest>,
    ) -> Result<Response<v1::ScrubResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(self.scrub_now(&metadata, request).await?))
    }

    async fn get_convergence(
        &self,
        _: Request<v1::GetConvergenceRequest>,
    ) -> Result<Response<v1::GetConvergenceResponse>, Status> {
        Ok(Response::new(self.convergence()))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(self.explain_call(&metadata, request).await?))
    }

    type CreateSnapshotStream = Steps<v1::CreateSnapshotResponse>;

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<Self::CreateSnapshotStream>, Status> {
        Ok(Response::new(self.snapshots().create(&request.get_ref().name)?))
    }

    async fn list_snapshots(
        &self,
        _: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        Ok(Response::new(self.snapshots().list().await?))
    }

    type VerifySnapshotStream = Steps<v1::VerifySnapshotResponse>;

    async fn verify_snapshot(
        &self,
        request: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        Ok(Response::new(self.snapshots().verify(&request.get_ref().name)?))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        Ok(Response::new(self.snapshots().delete(&request.get_ref().name).await?))
    }
}

const PARTITIONS_DEFAULT: u32 = 256;
const REPLICAS_DEFAULT: u8 = 3;
const EXPLAIN_TIMEOUT_US: u64 = 1_000_000;
