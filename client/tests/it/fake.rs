//! A cluster of nodes that answer by script, and note what they are asked.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use client::{CallError, Client, ClientConfig, Keyspace, Reason, wire};
use futures_util::{FutureExt, StreamExt, stream};
use proto::v1::{
    admin_service_server::{AdminService, AdminServiceServer},
    kv_service_server::{KvService, KvServiceServer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::AbortOnDropHandle,
};
use tonic::{Request, Response, Status, transport::server::Connected};

/// What the next data call is answered, whichever node it reaches.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Success, with this clock.
    Fine { clock: u64 },
    /// This error.
    Error(CallError),
    /// A status that carries no reason of ours.
    Bare(tonic::Code),
    /// Nothing: all connections of the node break.
    Break,
    /// Nothing, ever.
    Hang,
    /// A batch's results: an error for the keys named here.
    Keys(Vec<(&'static str, CallError)>),
    /// A scan's pages, each with its rows and its next token, and how the stream ends.
    Pages(Vec<(Vec<&'static str>, &'static str)>, Box<Answer>),
    /// Success, as told by the coordinator with this index.
    From(u32),
}

/// One data call, as a node received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) node: usize,
    pub(crate) call: &'static str,
    pub(crate) clock: u64,
    pub(crate) timeout: Option<String>,
    pub(crate) traceparent: Option<String>,
    /// Keys of a batch, or a scan's page token.
    pub(crate) about: Vec<String>,
}

/// What all nodes share.
pub(crate) struct Shared {
    script: Mutex<VecDeque<Answer>>,
    received: watch::Sender<Vec<Received>>,
    topology: Mutex<wire::GetTopologyResponse>,
    topology_calls: watch::Sender<usize>,
    connections: watch::Sender<usize>,
}

/// A cluster of scripted nodes, all replicas of every key unless `topology` is changed.
pub(crate) struct Fake {
    shared: Arc<Shared>,
    nodes: Vec<FakeNode>,
}

struct FakeNode {
    address: String,
    breaker: Arc<Mutex<CancellationToken>>,
    server: Option<AbortOnDropHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds a lock")
}

impl Fake {
    /// Starts nodes, each in the datacenter named, with keyspace `k` on all of them.
    pub(crate) async fn start(datacenters: &[&str]) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            received: watch::Sender::new(Vec::new()),
            topology: Mutex::default(),
            topology_calls: watch::Sender::new(0),
            connections: watch::Sender::new(0),
        });
        let mut it = Self { shared, nodes: Vec::new() };
        for index in 0..datacenters.len() {
            let listener = listen("127.0.0.1:0").await;
            let address = listener.local_addr().expect("it is bound").to_string();
            let breaker = Arc::new(Mutex::new(CancellationToken::new()));
            let server = Some(it.serve(index, listener, breaker.clone()));
            it.nodes.push(FakeNode { address, breaker, server });
        }
        it.set_topology(datacenters);
        it
    }

    fn serve(
        &self,
        node: usize,
        listener: TcpListener,
        breaker: Arc<Mutex<CancellationToken>>,
    ) -> AbortOnDropHandle<()> {
        let service = Service { node, shared: self.shared.clone(), breaker: breaker.clone() };
        let shared = self.shared.clone();
        let incoming = TcpListenerStream::new(listener).map(move |stream| {
            shared.connections.send_modify(|it| *it += 1);
            let broken = Box::pin(lock(&breaker).clone().cancelled_owned());
            stream.map(|stream| Breakable { stream, broken, shared: shared.clone() })
        });
        AbortOnDropHandle::new(tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(KvServiceServer::new(service.clone()))
                .add_service(AdminServiceServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .expect("nothing makes the listener fail");
        }))
    }

    /// Describes the cluster: these datacenters' nodes, in order, hold one partition each.
    fn set_topology(&self, datacenters: &[&str]) {
        let mut names = datacenters.to_vec();
        names.dedup();
        let members = |name: &str| -> Vec<u32> {
            (0u32..).zip(datacenters).filter(|it| *it.1 == name).map(|it| it.0).collect()
        };
        let nodes = self.nodes.iter().zip(datacenters).map(|(node, datacenter)| wire::NodeInfo {
            datacenter: (*datacenter).to_owned(),
            client_address: node.address.clone(),
            up: true,
            ..wire::NodeInfo::default()
        });
        let assignments = names.iter().map(|name| wire::Assignment {
            datacenter: (*name).to_owned(),
            list_length: u32::try_from(members(name).len()).expect("few nodes"),
            nodes: members(name),
        });
        let replicas = names.iter().map(|name| wire::DatacenterReplicas {
            datacenter: (*name).to_owned(),
            replicas: u32::try_from(members(name).len()).expect("few nodes"),
        });
        let quorum = Some(client::ConsistencyLevel::Quorum.into());
        *lock(&self.shared.topology) = wire::GetTopologyResponse {
            cluster_id: vec![1; 16].into(),
            layout_version: 1,
            layout_hash: 1,
            partitions: 1,
            nodes: nodes.collect(),
            assignments: assignments.collect(),
            keyspaces: vec![wire::Keyspace {
                name: "k".to_owned(),
                replicas: replicas.collect(),
                read_consistency: quorum,
                write_consistency: quorum,
                ..wire::Keyspace::default()
            }],
            local_datacenter: datacenters.first().copied().unwrap_or_default().to_owned(),
            metadata_sequence: 1,
            answered_by: None,
        };
    }

    /// Changes what the nodes say of the cluster.
    pub(crate) fn change_topology(&self, change: impl FnOnce(&mut wire::GetTopologyResponse)) {
        change(&mut lock(&self.shared.topology));
    }

    /// Answers the next data calls so; after the last, all is fine.
    pub(crate) fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        lock(&self.shared.script).extend(answers);
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let addresses = self.nodes.iter().map(|it| it.address.clone());
        ClientConfig {
            retry_delay: Duration::from_millis(1),
            topology_refresh_interval: Duration::from_secs(3_600),
            seed: Some(7),
            ..ClientConfig::new(addresses)
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.config()).await.expect("the nodes listen")
    }

    pub(crate) async fn keyspace(&self) -> Keyspace {
        self.client().await.keyspace("k")
    }

    pub(crate) fn address(&self, node: usize) -> &str {
        &self.nodes[node].address
    }

    /// All data calls so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// The nodes that data calls reached so far, in order.
    pub(crate) fn path(&self) -> Vec<usize> {
        self.received().iter().map(|it| it.node).collect()
    }

    /// Breaks a node's connections.
    pub(crate) fn break_connections(&self, node: usize) {
        break_connections(&self.nodes[node].breaker);
    }

    /// Breaks a node's connections, and refuses new ones.
    pub(crate) fn stop(&mut self, node: usize) {
        self.nodes[node].server = None;
        self.break_connections(node);
    }

    /// Listens again.
    pub(crate) async fn restart(&mut self, node: usize) {
        let listener = listen(&self.nodes[node].address).await;
        let server = self.serve(node, listener, self.nodes[node].breaker.clone());
        self.nodes[node].server = Some(server);
    }

    /// Waits until the topology has been asked for so often.
    pub(crate) async fn topology_calls(&self, at_least: usize) {
        let mut calls = self.shared.topology_calls.subscribe();
        let asked = calls.wait_for(|it| *it >= at_least);
        let asked = tokio::time::timeout(Duration::from_secs(20), asked).await;
        asked.expect("it is asked for").expect("the sender lives");
    }

    pub(crate) fn topology_calls_so_far(&self) -> usize {
        *self.shared.topology_calls.borrow()
    }

    /// Waits until so many connections are open.
    pub(crate) async fn connections(&self, expected: usize) {
        let mut connections = self.shared.connections.subscribe();
        connections.wait_for(|it| *it == expected).await.expect("the sender lives");
    }
}

#[expect(clippy::disallowed_methods, reason = "these nodes are real")]
async fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).await.expect("the loopback interface has ports")
}

fn break_connections(breaker: &Mutex<CancellationToken>) {
    std::mem::take(&mut *lock(breaker)).cancel();
}

#[derive(Clone)]
struct Service {
    node: usize,
    shared: Arc<Shared>,
    breaker: Arc<Mutex<CancellationToken>>,
}

impl Service {
    /// Notes a call, and plays the next answer; returns what remains to be said.
    async fn answer<T>(
        &self,
        call: &'static str,
        request: &Request<T>,
        clock: u64,
        about: Vec<String>,
    ) -> Result<Answer, Status> {
        let header = |name| {
            let value = request.metadata().get(name)?;
            Some(value.to_str().expect("the client sends text").to_owned())
        };
        let (timeout, traceparent) = (header("grpc-timeout"), header("traceparent"));
        let received = Received { node: self.node, call, clock, timeout, traceparent, about };
        self.shared.received.send_modify(|it| it.push(received));
        let answer = lock(&self.shared.script).pop_front();
        self.play(answer.unwrap_or(Answer::Fine { clock: 1 })).await
    }

    async fn play(&self, answer: Answer) -> Result<Answer, Status> {
        match answer {
            Answer::Error(error) => Err(error.into()),
            Answer::Bare(code) => Err(Status::new(code, "not of ours")),
            Answer::Break => {
                break_connections(&self.breaker);
                std::future::pending().await
            }
            Answer::Hang => std::future::pending().await,
            other => Ok(other),
        }
    }

    fn participation(&self, answer: &Answer) -> Option<wire::Participation> {
        let own = u32::try_from(self.node).expect("few nodes");
        let coordinator = if let Answer::From(index) = answer { *index } else { own };
        Some(wire::Participation { required: 2, answered: vec![0, 1], coordinator, overlap: true })
    }
}

fn clock_of(answer: &Answer) -> u64 {
    if let Answer::Fine { clock } = answer { *clock } else { 1 }
}

const VERSION: wire::Version = wire::Version { clock: 1, request_id: 2 };

fn name_of(key: &Option<wire::Key>) -> String {
    let bytes = key.as_ref().map(|it| it.partition_key.to_vec());
    String::from_utf8(bytes.unwrap_or_default()).expect("tests name keys in text")
}

#[tonic::async_trait]
impl KvService for Service {
    type ScanStream = stream::BoxStream<'static, Result<wire::ScanResponse, Status>>;

    async fn put(
        &self,
        request: Request<wire::PutRequest>,
    ) -> Result<Response<wire::PutResponse>, Status> {
        let (clock, about) = (request.get_ref().clock, vec![name_of(&request.get_ref().key)]);
        let answer = self.answer("put", &request, clock, about).await?;
        let participation = self.participation(&answer);
        let clock = clock_of(&answer);
        Ok(Response::new(wire::PutResponse { version: Some(VERSION), participation, clock }))
    }

    async fn get(
        &self,
        request: Request<wire::GetRequest>,
    ) -> Result<Response<wire::GetResponse>, Status> {
        let (clock, about) = (request.get_ref().clock, vec![name_of(&request.get_ref().key)]);
        let answer = self.answer("get", &request, clock, about).await?;
        Ok(Response::new(wire::GetResponse {
            found: true,
            value: "value".into(),
            version: Some(VERSION),
            expires_at_ms: 0,
            participation: self.participation(&answer),
            clock: clock_of(&answer),
        }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let (clock, about) = (request.get_ref().clock, vec![name_of(&request.get_ref().key)]);
        let answer = self.answer("delete", &request, clock, about).await?;
        let participation = self.participation(&answer);
        let clock = clock_of(&answer);
        Ok(Response::new(wire::DeleteResponse { version: Some(VERSION), participation, clock }))
    }

    async fn batch_write(
        &self,
        request: Request<wire::BatchWriteRequest>,
    ) -> Result<Response<wire::BatchWriteResponse>, Status> {
        let clock = request.get_ref().clock;
        let names: Vec<_> = request.get_ref().items.iter().map(|it| name_of(&it.key)).collect();
        let answer = self.answer("batch_write", &request, clock, names.clone()).await?;
        let result = |name: String| match error_for(&answer, &name) {
            Some(error) => wire::batch_write_result::Result::Error(error),
            // The version tells which key the result is of.
            None => wire::batch_write_result::Result::Version(wire::Version {
                clock: name.parse().unwrap_or_default(),
                request_id: 0,
            }),
        };
        let results =
            names.into_iter().map(|it| wire::BatchWriteResult { result: Some(result(it)) });
        Ok(Response::new(wire::BatchWriteResponse {
            results: results.collect(),
            participation: self.participation(&answer),
            clock: clock_of(&answer),
        }))
    }

    async fn batch_get(
        &self,
        request: Request<wire::BatchGetRequest>,
    ) -> Result<Response<wire::BatchGetResponse>, Status> {
        let clock = request.get_ref().clock;
        let names: Vec<_> = request.get_ref().keys.iter().cloned().map(Some).collect();
        let names: Vec<_> = names.iter().map(name_of).collect();
        let answer = self.answer("batch_get", &request, clock, names.clone()).await?;
        let result = |name: String| match error_for(&answer, &name) {
            Some(error) => wire::batch_get_result::Result::Error(error),
            None => wire::batch_get_result::Result::Found(wire::Found {
                found: name != "absent",
                value: name.into(),
                version: Some(VERSION),
                expires_at_ms: 0,
            }),
        };
        let results = names.into_iter().map(|it| wire::BatchGetResult { result: Some(result(it)) });
        Ok(Response::new(wire::BatchGetResponse {
            results: results.collect(),
            participation: self.participation(&answer),
            clock: clock_of(&answer),
        }))
    }

    async fn scan(
        &self,
        request: Request<wire::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let token = String::from_utf8_lossy(&request.get_ref().page_token).into_owned();
        let limit = request.get_ref().limit;
        let about = if limit == 0 { token } else { format!("{token} limit {limit}") };
        let answer = self.answer("scan", &request, request.get_ref().clock, vec![about]).await?;
        let participation = self.participation(&answer);
        let (pages, end) = match answer {
            Answer::Pages(pages, end) => (pages, *end),
            other => (Vec::new(), other),
        };
        let pages = pages.into_iter().map(move |(rows, token)| {
            let row = |name: &'static str| wire::Row {
                key: Some(wire::Key { partition_key: name.into(), ..wire::Key::default() }),
                version: Some(VERSION),
                ..wire::Row::default()
            };
            Ok(wire::ScanResponse {
                rows: rows.into_iter().map(row).collect(),
                next_page_token: token.into(),
                clock: 1,
                participation: participation.clone(),
            })
        });
        let it = self.clone();
        let end = async move { it.play(end).await }.into_stream();
        let end = end.filter_map(|it| std::future::ready(it.err().map(Err)));
        Ok(Response::new(stream::iter(pages).chain(end).boxed()))
    }
}

fn error_for(answer: &Answer, name: &str) -> Option<wire::KeyError> {
    let Answer::Keys(errors) = answer else { return None };
    let error = errors.iter().find(|it| it.0 == name)?;
    Some(error.1.clone().into_key_error())
}

type Steps<T> = stream::BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl AdminService for Service {
    async fn get_topology(
        &self,
        _: Request<wire::GetTopologyRequest>,
    ) -> Result<Response<wire::GetTopologyResponse>, Status> {
        let topology = lock(&self.shared.topology).clone();
        self.shared.topology_calls.send_modify(|it| *it += 1);
        Ok(Response::new(topology))
    }

    async fn get_cluster_status(
        &self,
        request: Request<wire::GetClusterStatusRequest>,
    ) -> Result<Response<wire::GetClusterStatusResponse>, Status> {
        self.answer("status", &request, 0, Vec::new()).await?;
        let answered_by = u32::try_from(self.node).expect("few nodes");
        Ok(Response::new(wire::GetClusterStatusResponse {
            answered_by,
            clock: 77,
            ..wire::GetClusterStatusResponse::default()
        }))
    }

    async fn create_keyspace(
        &self,
        request: Request<wire::CreateKeyspaceRequest>,
    ) -> Result<Response<wire::CreateKeyspaceResponse>, Status> {
        self.answer("create_keyspace", &request, 0, Vec::new()).await?;
        let keyspace = request.into_inner().keyspace.unwrap_or_default();
        let mut topology = lock(&self.shared.topology);
        topology.keyspaces.push(keyspace.clone());
        topology.metadata_sequence += 1;
        Ok(Response::new(wire::CreateKeyspaceResponse { keyspace: Some(keyspace) }))
    }

    async fn alter_keyspace(
        &self,
        _: Request<wire::AlterKeyspaceRequest>,
    ) -> Result<Response<wire::AlterKeyspaceResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn drop_keyspace(
        &self,
        _: Request<wire::DropKeyspaceRequest>,
    ) -> Result<Response<wire::DropKeyspaceResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_keyspaces(
        &self,
        _: Request<wire::ListKeyspacesRequest>,
    ) -> Result<Response<wire::ListKeyspacesResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn plan_layout(
        &self,
        _: Request<wire::PlanLayoutRequest>,
    ) -> Result<Response<wire::PlanLayoutResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn commit_layout(
        &self,
        _: Request<wire::CommitLayoutRequest>,
    ) -> Result<Response<wire::CommitLayoutResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn explain(
        &self,
        _: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn get_hints(
        &self,
        _: Request<wire::GetHintsRequest>,
    ) -> Result<Response<wire::GetHintsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn wait_hints(
        &self,
        _: Request<wire::WaitHintsRequest>,
    ) -> Result<Response<wire::WaitHintsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn repair(
        &self,
        _: Request<wire::RepairRequest>,
    ) -> Result<Response<wire::RepairResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn scrub(
        &self,
        _: Request<wire::ScrubRequest>,
    ) -> Result<Response<wire::ScrubResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn get_convergence(
        &self,
        _: Request<wire::GetConvergenceRequest>,
    ) -> Result<Response<wire::GetConvergenceResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    type CreateSnapshotStream = Steps<wire::CreateSnapshotResponse>;

    async fn create_snapshot(
        &self,
        request: Request<wire::CreateSnapshotRequest>,
    ) -> Result<Response<Self::CreateSnapshotStream>, Status> {
        use wire::create_snapshot_response::Step;
        self.answer("create_snapshot", &request, 0, Vec::new()).await?;
        let name = request.into_inner().name;
        let progress = |files_done| {
            let progress = wire::SnapshotProgress { files_done, files: 2, ..Default::default() };
            wire::CreateSnapshotResponse { step: Some(Step::Progress(progress)) }
        };
        let mut steps = vec![Ok(progress(1)), Ok(progress(2))];
        match &*name {
            "cut-off" => {}
            "full" => {
                let full = CallError::new(Reason::DiskFull, "no room");
                steps.push(Err(full.into()));
            }
            _ => {
                let created = wire::Snapshot { name, ..wire::Snapshot::default() };
                let created = Some(Step::Created(created));
                steps.push(Ok(wire::CreateSnapshotResponse { step: created }));
            }
        }
        Ok(Response::new(stream::iter(steps).boxed()))
    }

    async fn list_snapshots(
        &self,
        _: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<wire::ListSnapshotsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    type VerifySnapshotStream = Steps<wire::VerifySnapshotResponse>;

    async fn verify_snapshot(
        &self,
        _: Request<wire::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<wire::DeleteSnapshotRequest>,
    ) -> Result<Response<wire::DeleteSnapshotResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// A connection that breaks on command, and is counted while it is open.
struct Breakable {
    stream: TcpStream,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
    shared: Arc<Shared>,
}

impl Drop for Breakable {
    fn drop(&mut self) {
        self.shared.connections.send_modify(|it| *it -= 1);
    }
}

impl Connected for Breakable {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Breakable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken.poll_unpin(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken.poll_unpin(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
