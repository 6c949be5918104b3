//! Administration: looks at the cluster and changes its shape. Requests and answers are the messages
//! of the wire.

mod snapshot;

use std::sync::Arc;

use proto::{
    CallError, Reason,
    v1::{self, admin_service_client::AdminServiceClient},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use crate::{
    call::{Call, CallOptions, Route},
    channel::Channel,
    client::Client,
    connect::Dialer,
    error::Error,
    keyspace::IntoKey,
    node::{InFlight, Node},
    refresh::{self, Learnt},
};

/// Administration calls. They go to the node that the client was connected to, and to others only when
/// that one cannot be reached.
///
/// ```no_run
/// # async fn example(client: client::Client) -> Result<(), client::Error> {
/// use client::wire;
///
/// let admin = client.admin();
/// let plan = admin.plan_layout(0).await?;
/// admin.commit_layout(plan.plan_hash, plan.partitions).await?;
/// let keyspace = wire::Keyspace { name: "users".into(), ..wire::Keyspace::default() };
/// let request = wire::CreateKeyspaceRequest { keyspace: Some(keyspace), ..Default::default() };
/// let created = admin.create_keyspace(request).await?;
/// println!("{:?}", created.replicas);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Admin {
    client: Client,
    node: Option<Arc<Node>>,
    options: CallOptions,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, node: None, options: CallOptions::default() }
    }

    /// Sends the calls to this node alone, `host:port`.
    ///
    /// # Errors
    /// `INVALID_FIELD` if that is no address.
    pub fn at_node(mut self, address: &str) -> Result<Self, Error> {
        let cluster = self.client.cluster();
        let known = cluster.view().all_nodes().into_iter().find(|it| &**it.address() == address);
        let node = match known {
            Some(node) => node,
            None => {
                let dialer = Arc::new(Dialer::new(cluster.config()));
                let node = Node::new(address, &dialer).map_err(|error| {
                    let cause = CallError::new(Reason::InvalidField, error.to_string());
                    Error::refused("admin", cause.at_field("address"))
                })?;
                Arc::new(node)
            }
        };
        self.node = Some(node);
        Ok(self)
    }

    /// The longest that a call may take. Default: `ClientConfig::request_timeout`.
    pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Who is in the cluster, who is up, and how the answering node is.
    pub async fn status(&self) -> Result<v1::GetClusterStatusResponse, Error> {
        self.call(v1::GetClusterStatusRequest {}).await
    }

    /// Who holds which partition.
    pub async fn topology(&self) -> Result<v1::GetTopologyResponse, Error> {
        self.call(v1::GetTopologyRequest { known_layout_hash: 0 }).await
    }

    /// Creates a keyspace, and returns it as created.
    pub async fn create_keyspace(
        &self,
        request: v1::CreateKeyspaceRequest,
    ) -> Result<v1::Keyspace, Error> {
        Ok(self.change(request).await?.keyspace.unwrap_or_default())
    }

    /// Changes a keyspace's defaults, and returns it as altered.
    pub async fn alter_keyspace(
        &self,
        request: v1::AlterKeyspaceRequest,
    ) -> Result<v1::Keyspace, Error> {
        Ok(self.change(request).await?.keyspace.unwrap_or_default())
    }

    /// Drops a keyspace and its data.
    pub async fn drop_keyspace(&self, name: impl Into<String>) -> Result<(), Error> {
        self.change(v1::DropKeyspaceRequest { name: name.into() }).await?;
        Ok(())
    }

    /// The keyspaces, by name.
    pub async fn list_keyspaces(&self) -> Result<Vec<v1::Keyspace>, Error> {
        Ok(self.call(v1::ListKeyspacesRequest {}).await?.keyspaces)
    }

    /// Computes the layout for the members that are up, and changes nothing. `partitions` is a power
    /// of two, 0 for the default.
    pub async fn plan_layout(&self, partitions: u32) -> Result<v1::PlanLayoutResponse, Error> {
        self.call(v1::PlanLayoutRequest { partitions }).await
    }

    /// Commits the layout that was planned; refused if anything has changed since.
    pub async fn commit_layout(
        &self,
        plan_hash: u64,
        partitions: u32,
    ) -> Result<v1::CommitLayoutResponse, Error> {
        self.change(v1::CommitLayoutRequest { plan_hash, partitions }).await
    }

    /// Where a key lives and what every replica holds of it. Repairs nothing.
    pub async fn explain(
        &self,
        keyspace: impl Into<String>,
        key: impl IntoKey,
    ) -> Result<v1::ExplainResponse, Error> {
        let key = Some(key.into_key().into());
        self.call(v1::ExplainRequest { keyspace: keyspace.into(), key }).await
    }

    /// The hints that the answering node keeps.
    pub async fn hints(&self) -> Result<v1::GetHintsResponse, Error> {
        self.call(v1::GetHintsRequest {}).await
    }

    /// Waits until the answering node has delivered the hints that it keeps now, or those that an earlier
    /// answer's `barrier` names. Choose the node with [`Admin::at_node`]: barriers are of one node.
    pub async fn wait_hints(
        &self,
        request: v1::WaitHintsRequest,
    ) -> Result<v1::WaitHintsResponse, Error> {
        self.call(request).await
    }

    /// Has the answering node compare its replicas at once, or waits for the comparisons that an earlier
    /// answer's `round` names. Choose the node with [`Admin::at_node`]: of two nodes one compares both.
    pub async fn repair(&self, request: v1::RepairRequest) -> Result<v1::RepairResponse, Error> {
        self.call(request).await
    }

    /// Has the answering node compare its trees with its data at once, or waits for the pass that an
    /// earlier answer's `pass` names.
    pub async fn scrub(&self, request: v1::ScrubRequest) -> Result<v1::ScrubResponse, Error> {
        self.call(request).await
    }

    /// How far the answering node's replicas are known to be the same as those of the other nodes.
    pub async fn convergence(&self) -> Result<v1::GetConvergenceResponse, Error> {
        self.call(v1::GetConvergenceRequest {}).await
    }

    async fn call<C: Call>(&self, call: C) -> Result<C::Response, Error> {
        Ok(self.call_and_tell(call).await?.0)
    }

    /// Makes a call that changes the metadata, and learns them from the node that answered.
    async fn change<C: Call>(&self, call: C) -> Result<C::Response, Error> {
        let cluster = self.client.cluster();
        let deadline = Instant::now() + self.options.timeout(cluster.config());
        let (response, node) = self.call_and_tell(call).await?;
        let learning = refresh::refresh_from(cluster, node.node());
        if !matches!(timeout_at(deadline, learning).await, Ok(Ok(Learnt::Topology))) {
            // The change is made; the background task learns of it later.
            cluster.wake_background();
        }
        Ok(response)
    }

    async fn call_and_tell<C: Call>(&self, call: C) -> Result<(C::Response, InFlight), Error> {
        let route = self.node.as_ref().map_or(Route::Home, Route::Node);
        self.client.cluster().call(&call, route, &self.options).await
    }
}

/// Says how a message of the admin interface is sent: `request => method -> response, name, whether it
/// writes, and the clock of the response`.
macro_rules! admin_calls {
    ($($request:ident => $method:ident -> $response:ident, $name:literal, $writes:literal, $clock:expr;)*) => {
        $(impl Call for v1::$request {
            const NAME: &'static str = $name;
            const WRITES: bool = $writes;
            type Request = Self;
            type Response = v1::$response;

            fn request(&self, _clock: u64) -> Self {
                self.clone()
            }

            async fn send(
                channel: Channel,
                bytes_max: usize,
                request: Request<Self>,
            ) -> Result<Response<v1::$response>, Status> {
                let client = AdminServiceClient::new(channel);
                client.max_decoding_message_size(bytes_max).$method(request).await
            }

            fn learned(response: &v1::$response) -> (u64, Option<u32>) {
                let clock: fn(&v1::$response) -> u64 = $clock;
                (clock(response), None)
            }
        })*
    };
}

admin_calls! {
    GetClusterStatusRequest => get_cluster_status -> GetClusterStatusResponse,
        "status", false, |it| it.clock;
    GetTopologyRequest => get_topology -> GetTopologyResponse, "topology", false, |_| 0;
    CreateKeyspaceRequest => create_keyspace -> CreateKeyspaceResponse,
        "create keyspace", true, |_| 0;
    AlterKeyspaceRequest => alter_keyspace -> AlterKeyspaceResponse, "alter keyspace", true, |_| 0;
    DropKeyspaceRequest => drop_keyspace -> DropKeyspaceResponse, "drop keyspace", true, |_| 0;
    ListKeyspacesRequest => list_keyspaces -> ListKeyspacesResponse,
        "list keyspaces", false, |_| 0;
    PlanLayoutRequest => plan_layout -> PlanLayoutResponse, "plan layout", false, |_| 0;
    CommitLayoutRequest => commit_layout -> CommitLayoutResponse, "commit layout", true, |_| 0;
    ExplainRequest => explain -> ExplainResponse, "explain", false, |_| 0;
    ListSnapshotsRequest => list_snapshots -> ListSnapshotsResponse,
        "list snapshots", false, |_| 0;
    DeleteSnapshotRequest => delete_snapshot -> DeleteSnapshotResponse,
        "delete snapshot", true, |_| 0;
    GetHintsRequest => get_hints -> GetHintsResponse, "hints", false, |_| 0;
    WaitHintsRequest => wait_hints -> WaitHintsResponse, "wait for hints", false, |_| 0;
    RepairRequest => repair -> RepairResponse, "repair", false, |_| 0;
    ScrubRequest => scrub -> ScrubResponse, "scrub", false, |_| 0;
    GetConvergenceRequest => get_convergence -> GetConvergenceResponse,
        "convergence", false, |_| 0;
}
