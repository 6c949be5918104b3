//! Accepts connections and serves them: clients on one port, nodes on another.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hyper::service::service_fn;
use proto::v1::{admin_service_server::AdminServiceServer, kv_service_server::KvServiceServer};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::{
    admin::AdminApi,
    answer_body::ClientConnection,
    dispatch::{Dispatch, Refusals},
    guard::GuardedStream,
    http2::{Http2Limits, serve_http2},
    io_loop::IoLoop,
    kv::KvApi,
    links::Links,
    world::{BoxedStream, Listener},
};
use crate::counters::Counters;

/// Accepts until `stop`: takes those that have connected by then, and listens no more. `admit` turns a
/// connection into what is served, or drops it.
pub(super) async fn accept<T>(
    mut listener: Box<dyn Listener>,
    admitted: mpsc::Sender<T>,
    stop: CancellationToken,
    admit: impl Fn(BoxedStream) -> Option<T>,
) {
    let mut left_after_stop = BACKLOG;
    while left_after_stop > 0 {
        let accepted = tokio::select! {
            biased;
            it = listener.accept() => it,
            () = stop.cancelled() => return,
        };
        let stopping = stop.is_cancelled();
        left_after_stop -= usize::from(stopping);
        match accepted {
            Ok((stream, _)) => {
                if let Some(it) = admit(stream)
                    && admitted.send(it).await.is_err()
                {
                    return;
                }
            }
            Err(_) if stopping => return,
            Err(error) => {
                // Out of file descriptors, or a connection that was gone before it was accepted.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// The next connection that was admitted; none after `stop`, or once nobody accepts any more.
pub(super) async fn next_admitted<T>(
    admitted: &mut mpsc::Receiver<T>,
    stop: &CancellationToken,
) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        it = admitted.recv() => it,
    }
}

const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Connections accepted and not yet served, and those that are taken after a stop.
const BACKLOG: usize = 64;

/// Serves clients on one loop until `stop`, then lets open calls end and tells connections to go away.
pub(super) async fn serve_clients(
    io: Arc<IoLoop>,
    listener: Box<dyn Listener>,
    health: HealthServer<impl Health>,
    stop: CancellationToken,
) {
    let shared = Arc::clone(&io.shared);
    let permits = Arc::new(Semaphore::new(shared.config.connections_max));
    let (admitted, incoming) = mpsc::channel(BACKLOG);
    let guarded = Arc::clone(&shared);
    tokio::spawn(accept(listener, admitted, stop.clone(), move |stream| {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            Counters::count(&guarded.counters.connections_refused);
            return None;
        };
        Counters::count(&guarded.counters.connections_accepted);
        guarded.connections.fetch_add(1, Ordering::Relaxed);
        Some(GuardedStream::new(stream, Arc::clone(&guarded), permit))
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
    let refusals = Arc::new(Refusals { shared: Arc::clone(&shared), message_bytes_max });
    let backstop = Duration::from_millis(shared.config.request_timeout_ms + BACKSTOP_MS);
    let kv = KvServiceServer::new(KvApi { io: Arc::clone(&io) })
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(answer_bytes_max);
    let others = Routes::new(AdminServiceServer::new(AdminApi { io: Arc::clone(&io) }))
        .add_service(health)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .prepare();
    let dispatch = Dispatch { kv, io, others, backstop, refusals };
    let streams_max = shared.config.streams_per_connection_max;
    // Puts, gets and batches under way have ended by then; scans go on on other connections.
    let bounds = Http2Limits { streams_max, goaway_grace: backstop };
    let service = |goaway| {
        let connection = ClientConnection::new(Arc::clone(&dispatch.io), goaway);
        let dispatch = dispatch.clone();
        service_fn(move |request| dispatch.answer(request, &connection))
    };
    serve_http2(incoming, bounds, service, stop).await;
}

/// Serves the other nodes on one loop until `stop`.
pub(super) async fn serve_peers(
    io: Arc<IoLoop>,
    links: Links,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(io.shared.config.peer_connections_max));
    let (admitted, mut incoming) = mpsc::channel(BACKLOG);
    let guarded = Arc::clone(&io.shared);
    tokio::spawn(accept(listener, admitted, stop.clone(), move |stream| {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            Counters::count(&guarded.counters.connections_refused);
            return None;
        };
        Some((stream, permit))
    }));
    let mut connections = JoinSet::new();
    loop {
        let (stream, permit) = tokio::select! {
            biased;
            next = next_admitted(&mut incoming, &stop) => match next {
                Some(it) => it,
                None => break,
            },
            Some(_) = connections.join_next() => continue,
        };
        let (io, links) = (Arc::clone(&io), links.clone());
        connections.spawn(async move {
            links.serve(&io, stream).await;
            drop(permit);
        });
    }
}

/// Beyond a call's own deadline: for requests whose bytes never come.
const BACKSTOP_MS: u64 = 2_000;
