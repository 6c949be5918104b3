//! Calls to one node, without the client library: nothing is routed, retried or hidden.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use model::Key;
use proto::{
    CallError,
    v1::{
        self, admin_service_client::AdminServiceClient, consistency::Choice,
        kv_service_client::KvServiceClient,
    },
};
use tokio::time::timeout;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

/// What a call came to.
pub(crate) type Called<T> = Result<T, CallError>;

/// A connection to one node, made with the first call and made again when it broke.
#[derive(Clone)]
pub(crate) struct Api {
    channel: Channel,
}

/// A deadline that healthy nodes never come close to.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl Api {
    /// Connects to the node when the first call is made.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self { channel: endpoint.connect_timeout(CALL_TIMEOUT).connect_lazy() }
    }

    /// The connection.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The data interface.
    pub(crate) fn kv(&self) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// The administration interface.
    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel())
    }

    /// Writes a key.
    pub(crate) async fn put(&self, request: v1::PutRequest) -> Called<v1::PutResponse> {
        answer(self.kv().put(deadline(request))).await
    }

    /// Reads a key.
    pub(crate) async fn get(&self, request: v1::GetRequest) -> Called<v1::GetResponse> {
        answer(self.kv().get(deadline(request))).await
    }

    /// Deletes a key.
    pub(crate) async fn delete(&self, request: v1::DeleteRequest) -> Called<v1::DeleteResponse> {
        answer(self.kv().delete(deadline(request))).await
    }

    /// Writes a batch.
    pub(crate) async fn batch_write(
        &self,
        request: v1::BatchWriteRequest,
    ) -> Called<v1::BatchWriteResponse> {
        answer(self.kv().batch_write(deadline(request))).await
    }

    /// Reads a batch.
    pub(crate) async fn batch_get(
        &self,
        request: v1::BatchGetRequest,
    ) -> Called<v1::BatchGetResponse> {
        answer(self.kv().batch_get(deadline(request))).await
    }

    /// Scans to the end: all messages, in order.
    pub(crate) async fn scan(&self, request: v1::ScanRequest) -> Called<Vec<v1::ScanResponse>> {
        let mut stream = answer(self.kv().scan(deadline(request))).await?;
        let mut pages = Vec::new();
        loop {
            match timeout(CALL_TIMEOUT, stream.message()).await {
                Ok(Ok(Some(page))) => pages.push(page),
                Ok(Ok(None)) => return Ok(pages),
                Ok(Err(status)) => return Err(CallError::from(&status)),
                Err(_) => panic!("a scan stopped in the middle"),
            }
        }
    }

    /// Scans up to the first message, and hangs up.
    pub(crate) async fn scan_page(&self, request: v1::ScanRequest) -> Called<v1::ScanResponse> {
        let mut stream = answer(self.kv().scan(deadline(request))).await?;
        let page = timeout(CALL_TIMEOUT, stream.message()).await.expect("a page in time");
        let page = page.map_err(|it| CallError::from(&it))?;
        Ok(page.expect("a scan answers at least one message"))
    }

    /// How the cluster looks from this node.
    pub(crate) async fn status(&self) -> Called<v1::GetClusterStatusResponse> {
        answer(self.admin().get_cluster_status(deadline(v1::GetClusterStatusRequest {}))).await
    }

    /// One of the node's figures. Panics if it has none of that name.
    pub(crate) async fn counter(&self, name: &str) -> u64 {
        let status = self.status().await.expect("a node that is up");
        *status.counters.get(name).unwrap_or_else(|| panic!("no counter {name:?}"))
    }

    /// Who holds what.
    pub(crate) async fn topology(&self) -> Called<v1::GetTopologyResponse> {
        answer(self.admin().get_topology(deadline(v1::GetTopologyRequest::default()))).await
    }

    /// Creates a keyspace.
    pub(crate) async fn create_keyspace(
        &self,
        request: v1::CreateKeyspaceRequest,
    ) -> Called<v1::Keyspace> {
        let made = answer(self.admin().create_keyspace(deadline(request))).await?;
        Ok(made.keyspace.expect("a keyspace as created"))
    }

    /// What each replica holds of a key.
    pub(crate) async fn explain(&self, keyspace: &str, key: &Key) -> Called<v1::ExplainResponse> {
        let key = Some(key.clone().into());
        let request = v1::ExplainRequest { keyspace: keyspace.to_owned(), key };
        answer(self.admin().explain(deadline(request))).await
    }

    /// How far the node's replicas are known to be the same as those of the others.
    pub(crate) async fn convergence(&self) -> Called<v1::GetConvergenceResponse> {
        answer(self.admin().get_convergence(deadline(v1::GetConvergenceRequest {}))).await
    }

    /// Writes a value, without anything special.
    pub(crate) async fn set(
        &self,
        keyspace: &str,
        key: &Key,
        value: impl Into<Bytes>,
        consistency: Option<v1::Consistency>,
    ) -> Called<v1::PutResponse> {
        self.put(v1::PutRequest {
            keyspace: keyspace.to_owned(),
            key: Some(key.clone().into()),
            value: value.into(),
            consistency,
            ..v1::PutRequest::default()
        })
        .await
    }

    /// Reads a value, without anything special.
    pub(crate) async fn read(
        &self,
        keyspace: &str,
        key: &Key,
        consistency: Option<v1::Consistency>,
    ) -> Called<v1::GetResponse> {
        self.get(v1::GetRequest {
            keyspace: keyspace.to_owned(),
            key: Some(key.clone().into()),
            consistency,
            clock: 0,
        })
        .await
    }

    /// Deletes a key, without anything special.
    pub(crate) async fn remove(
        &self,
        keyspace: &str,
        key: &Key,
        consistency: Option<v1::Consistency>,
    ) -> Called<v1::DeleteResponse> {
        self.delete(v1::DeleteRequest {
            keyspace: keyspace.to_owned(),
            key: Some(key.clone().into()),
            consistency,
            ..v1::DeleteRequest::default()
        })
        .await
    }
}

/// A named level.
pub(crate) fn level(level: v1::ConsistencyLevel) -> Option<v1::Consistency> {
    Some(v1::Consistency { choice: Some(Choice::Level(level.into())) })
}

/// A raw count of replicas.
pub(crate) fn count(replicas: u32) -> Option<v1::Consistency> {
    Some(v1::Consistency { choice: Some(Choice::Replicas(replicas)) })
}

fn deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Awaits an answer. Panics if the node says nothing at all, long after the deadline.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Called<T> {
    let answered = timeout(2 * CALL_TIMEOUT, call).await.expect("every call is answered");
    answered.map(Response::into_inner).map_err(|it| CallError::from(&it))
}
