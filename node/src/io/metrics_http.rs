//! Serves the node's metrics: HTTP/1.1, `GET /metrics` and nothing else, on a port of its own.
//!
//! Whoever watches needs no more than one request per connection, so none may do more: that bounds
//! how long each lives. When too many are open, the oldest is closed, so that strangers who connect
//! and say nothing keep nobody out.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::Refusal;
use prometheus_client::registry::Registry;
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    accept::{accept, next_admitted},
    world::{BoxedStream, Listener},
};
use crate::{counters::Counters, metrics, shared::Shared};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Open at once.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request's head, twice what browsers send.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Serves metrics until `stop`.
pub(super) async fn serve_metrics(
    shared: Arc<Shared>,
    listener: Box<dyn Listener>,
    stop: CancellationToken,
) {
    let registry = Arc::new(metrics::registry(&shared));
    let scrapes = Arc::new(Scrapes { shared, registry, encoding: Semaphore::new(1) });
    let (admitted, mut incoming) = mpsc::channel(1);
    tokio::spawn(accept(listener, admitted, stop.clone(), Some));
    let mut connections = Connections::default();
    while let Some(stream) = next_admitted(&mut incoming, &stop).await {
        if connections.open(Arc::clone(&scrapes).serve(stream)) {
            Counters::count(&scrapes.shared.counters.connections_refused);
        }
    }
}

/// The connections open, oldest first. All are closed when it is dropped.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Connections {
    /// Adds one; true if the oldest was closed for it.
    fn open(&mut self, connection: impl Future<Output = ()> + Send + 'static) -> bool {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|it| !it.is_finished());
        let oldest = match self.order.len() {
            CONNECTIONS_MAX.. => self.order.pop_front(),
            _ => None,
        };
        self.order.push_back(self.tasks.spawn(connection));
        oldest.map(|it| it.abort()).is_some()
    }
}

/// What all connections share.
struct Scrapes {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    /// One answer is made at a time: places in the pool are for reads.
    encoding: Semaphore,
}

impl Scrapes {
    /// Answers one request.
    async fn serve(self: Arc<Self>, stream: BoxedStream) {
        let config = &self.shared.config;
        let head_timeout = Duration::from_millis(config.first_request_timeout_ms);
        let answer_timeout = Duration::from_millis(config.request_timeout_ms);
        let service = service_fn(|request: Request<Incoming>| {
            let scrapes = Arc::clone(&self);
            async move { Ok::<_, Infallible>(scrapes.answer(&request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(false)
            // It is the real time.
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service);
        let is_idle = match timeout(head_timeout + answer_timeout, connection).await {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection for metrics is closed");
                error.is_timeout()
            }
            Err(_) => true,
        };
        if is_idle {
            Counters::count(&self.shared.counters.connections_idle);
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        if request.uri().path() != "/metrics" {
            return refusal(StatusCode::NOT_FOUND, "there is only /metrics here\n");
        }
        if request.method() != Method::GET {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "GET alone is served\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
            return response;
        }
        let _alone = self.encoding.acquire().await;
        let registry = Arc::clone(&self.registry);
        // Not on the loop, where each of its requests would wait for it.
        let text = Arc::clone(&self.shared).blocking(move |_| {
            metrics::encode(&registry).map_err(|error| {
                tracing::error!(%error, "the metrics cannot be written");
                Refusal::Failed
            })
        });
        match text.await {
            Ok(text) => answer(StatusCode::OK, CONTENT_TYPE, text),
            Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n"),
        }
    }
}

fn refusal(status: StatusCode, text: &str) -> Response<String> {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
}

fn answer(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests;
