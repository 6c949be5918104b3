//! Calls to one chosen node, past the client library: nothing is routed, nothing repeated.

use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use model::ConsistencyLevel;
use proto::{
    CallError,
    v1::{self, admin_service_client::AdminServiceClient, kv_service_client::KvServiceClient},
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{workload::KEYSPACE, world::CLIENT_PORT};

/// A node to call, by its place.
#[derive(Clone, Copy)]
pub(crate) struct RawNode(pub usize);

/// What a read found: the value, unless absent.
pub(crate) type Found = Result<Option<Bytes>, CallError>;

impl RawNode {
    /// Puts, with the clock that the caller has seen and for so many seconds. Returns the clock of
    /// the answer.
    pub(crate) async fn put(
        self,
        key: &str,
        value: &str,
        level: ConsistencyLevel,
        clock: u64,
        ttl_seconds: Option<u64>,
    ) -> Result<u64, CallError> {
        let request = v1::PutRequest {
            keyspace: KEYSPACE.to_owned(),
            key: Some(wire_key(key)),
            value: Bytes::copy_from_slice(value.as_bytes()),
            consistency: Some(level.into()),
            clock,
            ttl_seconds,
            ..v1::PutRequest::default()
        };
        let answer = self.kv().put(timed(request)).await;
        answer.map(|it| it.into_inner().clock).map_err(|it| CallError::from(&it))
    }

    /// Deletes.
    pub(crate) async fn delete(self, key: &str, level: ConsistencyLevel) -> Result<(), CallError> {
        let request = v1::DeleteRequest {
            keyspace: KEYSPACE.to_owned(),
            key: Some(wire_key(key)),
            consistency: Some(level.into()),
            ..v1::DeleteRequest::default()
        };
        let answer = self.kv().delete(timed(request)).await;
        answer.map(|_| ()).map_err(|it| CallError::from(&it))
    }

    /// Gets.
    pub(crate) async fn get(self, key: &str, level: ConsistencyLevel) -> Found {
        let request = v1::GetRequest {
            keyspace: KEYSPACE.to_owned(),
            key: Some(wire_key(key)),
            consistency: Some(level.into()),
            ..v1::GetRequest::default()
        };
        let answer = self.kv().get(timed(request)).await;
        let answer = answer.map_err(|it| CallError::from(&it))?.into_inner();
        Ok(answer.found.then_some(answer.value))
    }

    /// The sort keys of the rows of a partition key.
    pub(crate) async fn scan(
        self,
        partition: &str,
        page_rows: u32,
        level: ConsistencyLevel,
    ) -> Result<Vec<Bytes>, CallError> {
        let range = v1::scan_request::Range::Partition(v1::PartitionScan {
            partition_key: Bytes::copy_from_slice(partition.as_bytes()),
            ..v1::PartitionScan::default()
        });
        let request = v1::ScanRequest {
            keyspace: KEYSPACE.to_owned(),
            range: Some(range),
            consistency: Some(level.into()),
            page_rows,
            ..v1::ScanRequest::default()
        };
        let wrong = |it: tonic::Status| CallError::from(&it);
        let mut pages = self.kv().scan(timed(request)).await.map_err(wrong)?.into_inner();
        let mut found = Vec::new();
        while let Some(page) = pages.message().await.map_err(wrong)? {
            let keys = page.rows.into_iter().filter_map(|it| it.key);
            found.extend(keys.map(|it| it.sort_key));
        }
        Ok(found)
    }

    /// Its administration.
    pub(crate) fn admin(self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel())
    }

    fn kv(self) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.channel())
    }

    fn channel(self) -> Channel {
        Endpoint::from_shared(format!("http://n{}:{CLIENT_PORT}", self.0 + 1))
            .expect("a simulated host's name makes a URI")
            .connect_timeout(Duration::from_millis(300))
            .connect_with_connector_lazy(tower::service_fn(|uri: Uri| async move {
                let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
                turmoil::net::TcpStream::connect(authority).await.map(TokioIo::new)
            }))
    }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_millis(1_500));
    request
}

fn wire_key(key: &str) -> v1::Key {
    let (partition, sort) = key.split_once('/').unwrap_or((key, ""));
    v1::Key {
        partition_key: Bytes::copy_from_slice(partition.as_bytes()),
        sort_key: Bytes::copy_from_slice(sort.as_bytes()),
    }
}
