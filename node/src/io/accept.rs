//! Accepts connections and serves them: clients on one port, nodes on another.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use proto::{
    CallError, Reason,
    internal::peer_service_server::PeerServiceServer,
    v1::{admin_service_server::AdminServiceServer, kv_service_server::KvServiceServer},
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, service::Routes, transport::Server};
use tonic_health::pb::health_server::{Health, HealthServer};

use super::{
    admin::AdminApi,
    dispatch::Dispatch,
    guard::{GuardedStream, Port},
    io_loop::IoLoop,
    kv::KvApi,
    links::{Links, PeerApi, frame_bytes_max},
    world::{BoxedStream, Listener},
};
use crate::counters::Counters;

/// Accepted connections on their way to the HTTP/2 server.
struct Incoming<T>(mpsc::Receiver<T>);

impl<T> Stream for Incoming<T> {
    type Item = Result<T, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|it| it.map(Ok))
    }
}

/// Accepts for as long as the node lives. `admit` turns a connection into what is served, or drops
/// it.
pub(super) async fn accept<T>(
    mut listener: Box<dyn Listener>,
    admitted: mpsc::Sender<T>,
    admit: impl Fn(BoxedStream) -> Option<T>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Some(it) = admit(stream)
                    && admitted.send(it).await.is_err()
                {
                    return;
                }
            }
            Err(error) => {
                // Out of file descriptors, or a connection that was gone before it was accepted.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Connections accepted and not yet served.
const BACKLOG: usize = 64;

/// Serves clients on one loop until `stop`, then lets open calls end.
pub(super) async fn serve_clients(
    io: Arc<IoLoop>,
    listener: Box<dyn Listener>,
    health: HealthServer<impl Health>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let shared = Arc::clone(&io.shared);
    let permits = Arc::new(Semaphore::new(shared.config.connections_max));
    let (admitted, incoming) = mpsc::channel(BACKLOG);
    let guarded = Arc::clone(&shared);
    let accepting = tokio::spawn(accept(listener, admitted, move |stream| {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            Counters::count(&guarded.counters.connections_refused);
            return None;
        };
        Counters::count(&guarded.counters.connections_accepted);
        guarded.connections.fetch_add(1, Ordering::Relaxed);
        Some(GuardedStream::new(stream, Port::Clients, Arc::clone(&guarded), permit))
    }));
    let limits = &shared.config.limits;
    // The client's clock and names come on top of keys and values.
    let message_bytes_max = limits.batch_bytes_max.max(limits.value_bytes_max) + (64 << 10);
    let answer_bytes_max = usize::MAX;
    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_v1 = reflection(tonic_reflection::server::Builder::configure())
        .build_v1()
        .expect("the descriptors were checked when they were compiled");
    let reflection_v1alpha = reflection(tonic_reflection::server::Builder::configure())
        .build_v1alpha()
        .expect("the descriptors were checked when they were compiled");
    let counting = Arc::clone(&shared);
    let explain = move |response| explain(response, message_bytes_max, &counting.counters);
    let backstop = Duration::from_millis(shared.config.request_timeout_ms + BACKSTOP_MS);
    let kv = KvServiceServer::new(KvApi { io: Arc::clone(&io) })
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(answer_bytes_max);
    let others = Routes::new(AdminServiceServer::new(AdminApi { io }))
        .add_service(health)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .prepare();
    let served = limited(shared.config.streams_per_connection_max)
        .layer(tower::util::MapResponseLayer::new(explain))
        .serve_with_incoming_shutdown(
            Dispatch { kv, others, backstop },
            Incoming(incoming),
            stop.cancelled_owned(),
        )
        .await;
    accepting.abort();
    served
}

/// Serves the other nodes on one loop until `stop`.
pub(super) async fn serve_peers(
    io: Arc<IoLoop>,
    links: Links,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let permits = Arc::new(Semaphore::new(PEER_CONNECTIONS_MAX));
    let (admitted, incoming) = mpsc::channel(BACKLOG);
    let guarded = Arc::clone(&io.shared);
    let accepting = tokio::spawn(accept(listener, admitted, move |stream| {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            Counters::count(&guarded.counters.connections_refused);
            return None;
        };
        Some(GuardedStream::new(stream, Port::Peers, Arc::clone(&guarded), permit))
    }));
    let limit = frame_bytes_max(&io.shared);
    let served = limited(PEER_STREAMS_MAX)
        .initial_stream_window_size(PEER_WINDOW_BYTES)
        .initial_connection_window_size(PEER_WINDOW_BYTES)
        .add_service(
            PeerServiceServer::new(PeerApi { io, links })
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .serve_with_incoming_shutdown(Incoming(incoming), stop.cancelled_owned())
        .await;
    accepting.abort();
    served
}

/// A server with every limit said: several of the library's defaults are none.
fn limited(streams_max: u32) -> Server {
    Server::builder()
        .max_concurrent_streams(streams_max)
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}

const RESETS_MAX: usize = 1_024;
const PENDING_RESETS_MAX: usize = 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Far more nodes than a cluster has, each with a connection of every loop.
const PEER_CONNECTIONS_MAX: usize = 4_096;
/// A node opens one stream a connection; a few more leave room for reconnects.
const PEER_STREAMS_MAX: u32 = 16;
const PEER_WINDOW_BYTES: u32 = 4 << 20;
/// Beyond a call's own deadline: for requests whose bytes never come.
const BACKSTOP_MS: u64 = 2_000;

/// Gives the transport's own refusals the form of ours, and counts those of broken messages.
/// Successful answers carry their status in trailers and are not touched.
fn explain(
    response: http::Response<Body>,
    message_bytes_max: usize,
    counters: &Counters,
) -> http::Response<Body> {
    let headers = response.headers();
    let Some(code) = headers.get("grpc-status") else { return response };
    if headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    let error = match code.as_bytes() {
        b"11" => {
            let message = format!("the message is larger than {message_bytes_max} bytes");
            CallError::new(Reason::MessageTooLarge, message).with("limit", message_bytes_max)
        }
        b"13" => {
            let message = "the message is no valid protobuf of its type";
            CallError::new(Reason::MalformedMessage, message)
        }
        _ => return response,
    };
    Counters::count(&counters.calls_invalid);
    Status::from(error).into_http()
}
