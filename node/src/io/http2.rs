//! Serves accepted connections as HTTP/2, with every limit said: several of the library's defaults are
//! none.
//!
//! tonic's services are called by hyper itself. tonic's own server would put five layers between the two,
//! and box, clone and time every request for features that no node uses.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http2,
    service::Service,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto::{CallError, CallOutcome, Reason};
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use super::{
    answer_body::{AnswerBody, PIECE_BYTES},
    coordinate::Full,
    guard::GuardedStream,
    io_loop::IoLoop,
};
use crate::call_bytes::Held;

/// Serves connections for as long as somebody accepts them, each by a service made for it, which may tell the
/// connection to go away. Then tells them to go away, if `stop` was why,
/// and lets the open calls end: who connects again at once must not find a port that is about to close.
pub(super) async fn serve_http2<S>(
    mut incoming: mpsc::Receiver<GuardedStream>,
    limits: Http2Limits,
    service: impl Fn(CancellationToken) -> S,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<AnswerBody>, Error = Infallible>,
    S: Send + 'static,
    S::Future: Send + 'static,
{
    let (builder, connections) = (limits.builder(), TaskTracker::new());
    let goaway = CancellationToken::new();
    while let Some(stream) = incoming.recv().await {
        let (stopped, goaway) = (goaway.clone(), goaway.child_token());
        let service = service(goaway.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = goaway.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        biased;
                        ended = connection => ended,
                        () = give_up(&stopped, limits.goaway_grace) => return,
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection has ended");
            }
        });
    }
    if stop.is_cancelled() {
        goaway.cancel();
        connections.close();
        connections.wait().await;
    }
}

/// Ends after `grace`, unless it is the node that stops: then what ends its calls ends connections, too.
async fn give_up(stopped: &CancellationToken, grace: Duration) {
    sleep(grace).await;
    if stopped.is_cancelled() {
        std::future::pending::<()>().await;
    }
}

/// What a connection may have under way.
#[derive(Clone, Copy)]
pub(super) struct Http2Limits {
    /// Requests at once.
    pub(super) streams_max: u32,
    /// For how long they go on when its client has been told to go away.
    pub(super) goaway_grace: Duration,
}

impl Http2Limits {
    fn builder(self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            // Nobody reads it, and it would be made and sent with each answer.
            .auto_date_header(false)
            .max_concurrent_streams(self.streams_max)
            .max_local_error_reset_streams(RESETS_MAX)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            // However wide a client's windows are.
            .max_send_buf_size(PIECE_BYTES)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        builder
    }
}

const RESETS_MAX: usize = 1_024;
const PENDING_RESETS_MAX: usize = 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a request, which has to arrive within a time, and for which there has to be room. Most have
/// come with their head and in one piece: only one that is waited for needs a timer, and counts while its
/// pieces are put together. One for which there is no room is taken to its end all the same: clients
/// go on sending, and a connection with a thousand streams that were given up too early is closed by the
/// library.
pub(super) struct BoundedBody {
    incoming: Incoming,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    io: Arc<IoLoop>,
    first_bytes: usize,
    held: Option<Held>,
    refused: Option<Full>,
}

impl BoundedBody {
    /// A body that may take so long from when it is first waited for.
    pub(super) fn new(incoming: Incoming, patience: Duration, io: Arc<IoLoop>) -> Self {
        Self { incoming, patience, timer: None, io, first_bytes: 0, held: None, refused: None }
    }

    /// Finds room for a piece that has come; for the first one only once another is waited for.
    fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        if self.first_bytes == 0 {
            self.first_bytes = bytes;
            return Ok(());
        }
        if bytes == 0 {
            // Many clients say by an empty piece that there is no more.
            return Ok(());
        }
        let held = self.held()?;
        if held.add(bytes) { Ok(()) } else { Err(self.io.no_room()) }
    }

    fn held(&mut self) -> Result<&mut Held, Full> {
        match &mut self.held {
            Some(held) => Ok(held),
            none => Ok(none.insert(self.io.hold(self.first_bytes)?)),
        }
    }
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        while let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) {
            let piece = frame.as_ref().and_then(|it| it.as_ref().ok()?.data_ref());
            match (piece.map(Bytes::len), self.refused) {
                (Some(bytes), None) => self.refused = self.hold(bytes).err(),
                (None, Some(full)) => {
                    return Poll::Ready(Some(Err(CallError::from(full).into())));
                }
                _ => {}
            }
            if self.refused.is_none() {
                let failed = |error: hyper::Error| Status::from_error(Box::new(error));
                return Poll::Ready(frame.map(|it| it.map_err(failed)));
            }
        }
        if self.refused.is_none() {
            self.refused = self.held().err();
        }
        let patience = self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(timer.as_mut().poll(context));
        let message = "the request did not arrive whole in time";
        let mut error = CallError::new(Reason::DeadlinePassed, message);
        error.outcome = CallOutcome::NotApplied;
        Poll::Ready(Some(Err(error.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.refused.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
