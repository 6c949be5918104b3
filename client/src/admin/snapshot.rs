//! Snapshots of one node: [`Admin::at_node`] says of which. Making and verifying one takes as long as its
//! files take to be read: the timeout bounds the silence of the node, not the whole call.

use std::time::Duration;

use proto::v1::{
    self, admin_service_client::AdminServiceClient, create_snapshot_response,
    verify_snapshot_response,
};
use proto::{CallError, Reason};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::Admin;
use crate::{
    call::{Attempts, Failure, Route, failure, no_answer_in_time, out_of_time, send_within},
    channel::Channel,
    error::Error,
    node::InFlight,
    retry::Progress,
};

/// A node says every second how far it is.
const SILENCE_MIN: Duration = Duration::from_secs(10);

impl Admin {
    /// Makes a snapshot, and tells now and then how far it is. If the connection breaks, the node makes
    /// it all the same.
    pub async fn create_snapshot(
        &self,
        name: impl Into<String>,
        mut progress: impl FnMut(v1::SnapshotProgress),
    ) -> Result<v1::Snapshot, Error> {
        let request = v1::CreateSnapshotRequest { name: name.into() };
        let step = |message: v1::CreateSnapshotResponse| match message.step? {
            create_snapshot_response::Step::Progress(it) => {
                progress(it);
                None
            }
            create_snapshot_response::Step::Created(it) => Some(it),
        };
        let open = async |mut client: AdminServiceClient<Channel>, request| {
            client.create_snapshot(request).await
        };
        self.follow("create snapshot", true, request, open, step).await
    }

    /// The node's snapshots, by name.
    pub async fn list_snapshots(&self) -> Result<v1::ListSnapshotsResponse, Error> {
        self.call(v1::ListSnapshotsRequest {}).await
    }

    /// Compares a snapshot with its manifest, and tells now and then how far it is.
    pub async fn verify_snapshot(
        &self,
        name: impl Into<String>,
        mut progress: impl FnMut(v1::SnapshotProgress),
    ) -> Result<v1::SnapshotReport, Error> {
        let request = v1::VerifySnapshotRequest { name: name.into() };
        let step = |message: v1::VerifySnapshotResponse| match message.step? {
            verify_snapshot_response::Step::Progress(it) => {
                progress(it);
                None
            }
            verify_snapshot_response::Step::Report(it) => Some(it),
        };
        let open = async |mut client: AdminServiceClient<Channel>, request| {
            client.verify_snapshot(request).await
        };
        self.follow("verify snapshot", false, request, open, step).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, name: impl Into<String>) -> Result<(), Error> {
        self.call(v1::DeleteSnapshotRequest { name: name.into() }).await?;
        Ok(())
    }

    /// Makes a call that is answered by a stream, and reads that until a message is the result.
    async fn follow<Q, M, R>(
        &self,
        call: &'static str,
        writes: bool,
        request: Q,
        open: impl AsyncFnOnce(
            AdminServiceClient<Channel>,
            Request<Q>,
        ) -> Result<Response<Streaming<M>>, Status>,
        mut step: impl FnMut(M) -> Option<R>,
    ) -> Result<R, Error> {
        let cluster = self.client.cluster();
        let trace = self.options.trace_header(call)?;
        let budget = self.options.timeout(cluster.config());
        let route = self.node.as_ref().map_or(Route::Home, Route::Node);
        let mut attempts = Attempts::default();
        let Some(node) = cluster.choose(&route, &attempts) else {
            return Err(attempts.into_error(call, writes));
        };
        let node = InFlight::new(node);
        let mut request = Request::new(request);
        cluster.set_headers(&mut request, budget, trace.as_ref());
        let bytes_max = cluster.config().message_bytes_max;
        let send = |channel| {
            let client = AdminServiceClient::new(channel);
            open(client.max_decoding_message_size(bytes_max), request)
        };
        let silence = budget.max(SILENCE_MIN);
        let silent =
            || Failure { progress: Progress::NoAnswer, error: no_answer_in_time(writes, silence) };
        let read = async {
            let late = |was_sent| out_of_time(writes, was_sent, budget);
            let mut messages = send_within(node.node(), budget, send, late).await?.into_inner();
            cluster.note_answer(node.node(), None);
            loop {
                let next =
                    timeout(silence, messages.message()).await.map_err(|_elapsed| silent())?;
                match next.map_err(|it| failure(&it))? {
                    Some(message) => {
                        if let Some(result) = step(message) {
                            return Ok(result);
                        }
                    }
                    None => return Err(Failure { progress: Progress::NoAnswer, error: cut_off() }),
                }
            }
        };
        let failed: Failure = match read.await {
            Ok(result) => return Ok(result),
            Err(failed) => failed,
        };
        attempts.note(cluster, node.node(), writes, failed, &route);
        Err(attempts.into_error(call, writes))
    }
}

fn cut_off() -> CallError {
    CallError::new(Reason::ConnectionLost, "the stream ended before its last message")
}
