//! The data interface: each call is checked, planned and handed to its loop; the call then only
//! waits. A client that hangs up drops the waiting, never the work.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coordinator::{ReadReply, ReadRequest, WriteReply, WriteRequest};
use model::{ConsistencyLevel, Hlc, Key, Mutant, ReplicaSet, RequestId, Requirement, StorageKey};
use proto::{
    CallError, CallOutcome, Reason,
    v1::{self, kv_service_server::KvService},
};
use rand::RngExt;
use tokio::sync::oneshot;
use tonic::{
    Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use super::{
    call::{Call, RETRY, TRACEPARENT, level_error, level_of, overlap_error},
    coordinate::{PlannedRead, PlannedWrite},
    io_loop::IoLoop,
    request::MeasuredRequest,
    scan_stream::ScanStream,
};
use crate::{
    call_bytes::Held,
    counters::Counters,
    metrics::RequestKind,
    reply::{ReadDone, ReplyTo, WriteDone},
    view::KeyspaceView,
};

/// The data interface on one loop.
#[derive(Clone)]
pub(super) struct KvApi {
    /// The loop.
    pub io: Arc<IoLoop>,
}

/// A write's level, resolved.
pub(super) struct WriteLevel {
    pub(super) level: ConsistencyLevel,
    pub(super) overlap: bool,
}

/// One key of a write, before it is stamped.
pub(super) struct WriteItem {
    pub(super) key: Key,
    pub(super) value: Option<Bytes>,
    pub(super) ttl_seconds: Option<u64>,
    pub(super) request_id: u64,
}

impl WriteItem {
    pub(super) fn bytes(&self) -> usize {
        self.key.partition_key.len()
            + self.key.sort_key.len()
            + self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl KvApi {
    pub(super) fn write_level(
        &self,
        keyspace: &KeyspaceView,
        wanted: Option<&v1::Consistency>,
    ) -> Result<WriteLevel, CallError> {
        let level = level_of(wanted, keyspace.keyspace.write_level)?;
        if !keyspace.allows_write(level) {
            return Err(overlap_error(level, keyspace));
        }
        let overlap = keyspace.overlap(keyspace.keyspace.read_level, level);
        Ok(WriteLevel { level, overlap })
    }

    pub(super) fn read_level(
        &self,
        keyspace: &KeyspaceView,
        wanted: Option<&v1::Consistency>,
    ) -> Result<(ConsistencyLevel, bool), CallError> {
        let level = level_of(wanted, keyspace.keyspace.read_level)?;
        if level != ConsistencyLevel::Any && !keyspace.allows_read(level) {
            return Err(overlap_error(level, keyspace));
        }
        let overlap = keyspace.overlap(level, keyspace.keyspace.write_level);
        Ok((level, overlap))
    }

    /// Plans one write, without a stamp yet.
    pub(super) fn plan_write(
        &self,
        call: &Call<'_>,
        keyspace: &KeyspaceView,
        level: ConsistencyLevel,
        item: WriteItem,
    ) -> Result<(WriteRequest, Arc<ReplicaSet>), CallError> {
        let limits = &call.shared.config.limits;
        if let Some(actual) = item.value.as_ref().map(Bytes::len)
            && actual > limits.value_bytes_max
        {
            let limit = limits.value_bytes_max;
            let message = format!("the value has {actual} bytes; at most {limit} are allowed");
            return Err(CallError::new(Reason::ValueTooLarge, message)
                .at_field("value")
                .with("limit", limit)
                .with("actual", actual));
        }
        let ttl_seconds = match item.ttl_seconds {
            None => keyspace.keyspace.default_ttl_seconds,
            Some(0) => None,
            Some(actual) if actual > limits.ttl_seconds_max => {
                let limit = limits.ttl_seconds_max;
                let message = format!("the TTL is {actual} s; at most {limit} s are allowed");
                return Err(CallError::new(Reason::TtlOutOfBounds, message)
                    .at_field("ttl_seconds")
                    .with("limit", limit)
                    .with("actual", actual));
            }
            ttl => ttl,
        };
        if let Some(value) = &item.value {
            keyspace.usual_value.measured(value.len());
        }
        let token = item.key.token();
        let replicas = keyspace.replica_set(call.view.partition(token));
        let allow_any = keyspace.keyspace.allow_any;
        let local_dc = call.view.local_dc();
        let requirement = Requirement::for_write(level, replicas, local_dc, allow_any)
            .map_err(|error| level_error(&error))?;
        let request = match item.request_id {
            0 => RequestId(self.io.lock().random.random::<u64>().max(1)),
            given => RequestId(given),
        };
        let request = WriteRequest {
            key: StorageKey::encode(keyspace.keyspace.id, token, &item.key),
            value: item.value,
            request,
            ttl_ms: ttl_seconds.map(|it| it * 1_000),
            requirement,
            query_first: false,
        };
        self.io.check_any_room(&call.view, &request, replicas)?;
        Ok((request, Arc::clone(replicas)))
    }

    pub(super) fn plan_read(
        &self,
        call: &Call<'_>,
        keyspace: &KeyspaceView,
        level: ConsistencyLevel,
        key: &Key,
        held: Held,
    ) -> Result<PlannedRead, CallError> {
        let token = key.token();
        let replicas = keyspace.replica_set(call.view.partition(token));
        let requirement = Requirement::for_read(level, replicas, call.view.local_dc())
            .map_err(|error| level_error(&error))?;
        let read_at = match Mutant::ExpiryByOwnClock.is_on() {
            true => Hlc::from_ms(call.shared.wall().0),
            false => call.shared.clock.read(call.wall),
        };
        Ok(PlannedRead {
            request: ReadRequest { requirement, read_at },
            replicas: Arc::clone(replicas),
            key: StorageKey::encode(keyspace.keyspace.id, token, key),
            held,
            traceparent: call.traceparent.clone(),
        })
    }

    /// Stamps one write and waits for its result. Nothing is sent before the stamp, so a client that
    /// hangs up while it waits for one has written nothing.
    async fn write_one(
        &self,
        call: &Call<'_>,
        request: WriteRequest,
        replicas: Arc<ReplicaSet>,
        held: Held,
    ) -> Result<WriteDone, CallError> {
        let stamp = self.stamp(call, 1).await?;
        let traceparent = call.traceparent.clone();
        let planned = PlannedWrite { request, replicas, stamp, held, traceparent };
        let (reply, result) = oneshot::channel();
        let writes = std::iter::once((planned, ReplyTo::Call(reply)));
        self.io.start_writes(writes, call.deadline_us)?;
        result.await.map_err(stopped_write)
    }

    /// A stamp for so many writes. Whoever has to wait for it holds their places among the operations
    /// in flight: a disk that stalls must not collect bodies without end.
    pub(super) async fn stamp(&self, call: &Call<'_>, writes: usize) -> Result<Hlc, CallError> {
        if let Some(stamp) = call.shared.stamp_at(call.wall) {
            return Ok(stamp);
        }
        let _places = self.io.reserve(writes)?;
        let left = Duration::from_micros(call.deadline_us.saturating_sub(self.io.now_us()));
        let late = |_| {
            let message = if call.shared.floors.is_shut() {
                "no other node has looked at this node's database directory since its start: it stamps nothing"
            } else {
                "this node's disk did not make its clock durable in time"
            };
            let mut error = CallError::new(Reason::WriteTimeout, message);
            error.outcome = CallOutcome::NotApplied;
            error
        };
        let stamp = tokio::time::timeout(left, call.shared.stamp()).await.map_err(late)?;
        stamp.map_err(|state| call.clock_error(state))
    }

    async fn put_or_delete(
        &self,
        metadata: &MetadataMap,
        target: WriteTarget,
        item: impl FnOnce(&Call<'_>) -> Result<WriteItem, CallError>,
        measured: &mut MeasuredRequest<'_>,
    ) -> Result<Written, CallError> {
        let call = Call::coordinate(&self.io, metadata, target.clock).await?;
        call.check_writable()?;
        let keyspace = call.keyspace(&target.keyspace)?;
        let item = item(&call)?;
        let held = self.io.hold(item.bytes())?;
        let WriteLevel { level, overlap } =
            self.write_level(keyspace, target.consistency.as_ref())?;
        measured.at_level(level);
        let (request, replicas) = self.plan_write(&call, keyspace, level, item)?;
        let done = self.write_one(&call, request, Arc::clone(&replicas), held).await?;
        let WriteReply { version, required, answered, .. } =
            done.map_err(|error| call.write_error(level, &error))?;
        Ok(Written {
            version: Some(version.into()),
            participation: Some(call.participation(required, answered, &replicas, overlap)),
            clock: call.clock(),
        })
    }

    async fn get_call(
        &self,
        metadata: &MetadataMap,
        request: v1::GetRequest,
        measured: &mut MeasuredRequest<'_>,
    ) -> Result<v1::GetResponse, CallError> {
        let call = Call::coordinate(&self.io, metadata, request.clock).await?;
        let keyspace = call.keyspace(&request.keyspace)?;
        let key = call.key(request.key)?;
        let (level, overlap) = self.read_level(keyspace, request.consistency.as_ref())?;
        measured.at_level(level);
        let expected = keyspace.usual_value.expected() * READ_COPIES;
        let held = self.io.hold_in_advance(expected)?;
        let planned = self.plan_read(&call, keyspace, level, &key, held)?;
        let replicas = Arc::clone(&planned.replicas);
        let (reply, result) = oneshot::channel();
        let reads = std::iter::once((planned, ReplyTo::Call(reply)));
        self.io.start_reads(reads, call.deadline_us)?;
        let (done, _held): ReadDone = result.await.map_err(stopped_read)?;
        let reply = done.map_err(|error| call.read_error(level, &error))?;
        if let Some(value) = &reply.value {
            keyspace.usual_value.measured(value.len());
        }
        let participation = call.participation(reply.required, reply.answered, &replicas, overlap);
        let found = found(reply);
        Ok(v1::GetResponse {
            found: found.found,
            value: found.value,
            version: found.version,
            expires_at_ms: found.expires_at_ms,
            participation: Some(participation),
            clock: call.clock(),
        })
    }

    fn measured(&self, kind: RequestKind) -> MeasuredRequest<'_> {
        MeasuredRequest::start(&self.io, kind)
    }

    /// Turns a result into what goes over the wire, with the client's trace context.
    fn answer<T>(
        &self,
        metadata: &MetadataMap,
        result: Result<T, CallError>,
    ) -> Result<Response<T>, Status> {
        let headers: &http::HeaderMap = metadata.as_ref();
        let traceparent: Option<AsciiMetadataValue> =
            headers.get(TRACEPARENT).and_then(|it| it.to_str().ok()?.parse().ok());
        match result {
            Ok(message) => {
                let mut response = Response::new(message);
                if let Some(traceparent) = traceparent {
                    response.metadata_mut().insert("traceparent", traceparent);
                }
                Ok(response)
            }
            Err(error) => {
                if error.code == tonic::Code::InvalidArgument {
                    Counters::count(&self.io.shared.counters.calls_invalid);
                }
                let mut status = Status::from(error);
                if let Some(traceparent) = traceparent {
                    status.metadata_mut().insert("traceparent", traceparent);
                }
                Err(status)
            }
        }
    }
}

/// What puts and deletes have in common.
struct WriteTarget {
    keyspace: String,
    consistency: Option<v1::Consistency>,
    clock: u64,
}

/// What is told of a put or a delete.
struct Written {
    version: Option<v1::Version>,
    participation: Option<v1::Participation>,
    clock: u64,
}

#[tonic::async_trait]
impl KvService for KvApi {
    type ScanStream = ScanStream;

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let mut measured = self.measured(RequestKind::Put);
        let (metadata, _, request) = request.into_parts();
        let v1::PutRequest { keyspace, key, value, consistency, ttl_seconds, request_id, clock } =
            request;
        let target = WriteTarget { keyspace, consistency, clock };
        let item = |call: &Call<'_>| {
            Ok(WriteItem { key: call.key(key)?, value: Some(value), ttl_seconds, request_id })
        };
        let done = self.put_or_delete(&metadata, target, item, &mut measured).await;
        measured.end(&done);
        let done = done.map(|Written { version, participation, clock }| v1::PutResponse {
            version,
            participation,
            clock,
        });
        self.answer(&metadata, done)
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let mut measured = self.measured(RequestKind::Get);
        let (metadata, _, request) = request.into_parts();
        let done = self.get_call(&metadata, request, &mut measured).await;
        measured.end(&done);
        self.answer(&metadata, done)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let mut measured = self.measured(RequestKind::Delete);
        let (metadata, _, request) = request.into_parts();
        let v1::DeleteRequest { keyspace, key, consistency, request_id, clock } = request;
        let target = WriteTarget { keyspace, consistency, clock };
        let item = |call: &Call<'_>| {
            let ttl_seconds = Some(0);
            Ok(WriteItem { key: call.key(key)?, value: None, ttl_seconds, request_id })
        };
        let done = self.put_or_delete(&metadata, target, item, &mut measured).await;
        measured.end(&done);
        let done = done.map(|Written { version, participation, clock }| v1::DeleteResponse {
            version,
            participation,
            clock,
        });
        self.answer(&metadata, done)
    }

    async fn batch_write(
        &self,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        let mut measured = self.measured(RequestKind::BatchWrite);
        let (metadata, _, request) = request.into_parts();
        let done = self.batch_write_call(&metadata, request, &mut measured).await;
        measured.end(&done);
        self.answer(&metadata, done)
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let mut measured = self.measured(RequestKind::BatchGet);
        let (metadata, _, request) = request.into_parts();
        let done = self.batch_get_call(&metadata, request, &mut measured).await;
        measured.end(&done);
        self.answer(&metadata, done)
    }

    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let started = ScanStream::start(Arc::clone(&self.io), &metadata, request);
        if started.is_err() {
            // One that has begun is counted by its pages.
            self.measured(RequestKind::Scan).end(&started);
        }
        self.answer(&metadata, started)
    }
}

/// What is told of a value read.
pub(super) fn found(reply: ReadReply) -> v1::Found {
    let expires_at_ms = reply.record.as_ref().map_or(0, model::Record::expiry_ms);
    let version = (!reply.version.is_absent()).then(|| reply.version.into());
    let found = reply.value.is_some();
    let expires_at_ms = if found { expires_at_ms } else { 0 };
    v1::Found { found, value: reply.value.unwrap_or_default(), version, expires_at_ms }
}

/// The node has stopped under a write.
pub(super) fn stopped_write(_: oneshot::error::RecvError) -> CallError {
    let mut error = CallError::new(Reason::WriteFailed, STOPPED);
    error.outcome = CallOutcome::Unknown;
    error
}

/// The node has stopped under a read.
pub(super) fn stopped_read(_: oneshot::error::RecvError) -> CallError {
    CallError::new(Reason::ReadFailed, STOPPED).retry_after(RETRY)
}

/// How often a value that is read is held, usually: as answered by two replicas of three.
pub(super) const READ_COPIES: usize = 2;
const STOPPED: &str = "the node stopped during the call";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_cut_off_is_no_write_of_unknown_outcome() {
        let cut = || oneshot::channel::<()>().1;
        let read = cut().await.map_err(stopped_read).unwrap_err();
        assert_eq!((read.reason, read.outcome), (Reason::ReadFailed, CallOutcome::NotApplied));
        let write = cut().await.map_err(stopped_write).unwrap_err();
        assert_eq!((write.reason, write.outcome), (Reason::WriteFailed, CallOutcome::Unknown));
    }
}
