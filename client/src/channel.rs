//! One lazy HTTP/2 connection to a node, shared by all calls to it.
//!
//! tonic's own channel queues each call for a task, which passes it on through six layers, with a
//! timer beside the call's. Here a call is handed to hyper's connection by whoever makes it.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwapOption;
use http::{
    HeaderValue, Request, Response, Uri,
    header::USER_AGENT,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio::sync::Mutex;
use tonic::{ConnectError, body::Body};
use tower::Service;

use crate::connect::Dialer;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("quorate-client/", env!("CARGO_PKG_VERSION")));

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection that is made when it is first used, and again when it is used after it broke. Clones
/// share it; it closes with the last of them.
#[derive(Clone)]
pub(crate) struct Channel(Arc<Link>);

struct Link {
    authority: Authority,
    dialer: Arc<Dialer>,
    /// The connection, if there has been one.
    sender: ArcSwapOption<SendRequest<Body>>,
    /// Held by whoever connects; why the last attempt failed, if it did.
    connecting: Mutex<Option<(io::ErrorKind, String)>>,
    /// Attempts to connect that came to an end.
    attempts: AtomicU64,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.0.authority).finish()
    }
}

impl Channel {
    /// A channel that is not connected yet.
    pub(crate) fn new(authority: Authority, dialer: Arc<Dialer>) -> Self {
        let (sender, connecting) = (ArcSwapOption::empty(), Mutex::default());
        Self(Arc::new(Link { authority, dialer, sender, connecting, attempts: AtomicU64::new(0) }))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The connection itself waits for room among its streams.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let link = Arc::clone(&self.0);
        Box::pin(async move { link.send(request).await })
    }
}

impl Link {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        self.complete(&mut request)?;
        let open = self.open().await?;
        let unsent = match SendRequest::clone(&open).try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut error) => match error.take_message() {
                // The connection was about to close and has not taken it: it may go by another one.
                Some(unsent) => unsent,
                None => return Err(error.into_error().into()),
            },
        };
        self.sender.compare_and_swap(&open, None);
        let open = self.open().await?;
        Ok(SendRequest::clone(&open).send_request(unsent).await?)
    }

    /// Says whom the request is for, and from whom.
    fn complete(&self, request: &mut Request<Body>) -> Result<(), http::Error> {
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(self.authority.clone());
        *request.uri_mut() = uri.path_and_query(path).build()?;
        request.headers_mut().insert(USER_AGENT, AGENT);
        Ok(())
    }

    /// The connection that is open, or a new one.
    async fn open(&self) -> Result<Arc<SendRequest<Body>>, ConnectError> {
        match self.sender.load_full().filter(|it| !it.is_closed()) {
            Some(open) => Ok(open),
            None => self.connect().await,
        }
    }

    /// Connects. Of those who wait meanwhile, each gets what came of it: a node that cannot be reached
    /// does not cost them an attempt each.
    async fn connect(&self) -> Result<Arc<SendRequest<Body>>, ConnectError> {
        let before = self.attempts.load(Ordering::Acquire);
        let mut last = self.connecting.lock().await;
        if let Some(open) = self.sender.load_full().filter(|it| !it.is_closed()) {
            return Ok(open);
        }
        if self.attempts.load(Ordering::Acquire) != before
            && let Some((kind, message)) = &*last
        {
            return Err(ConnectError(io::Error::new(*kind, message.clone()).into()));
        }
        let connected = self.dialer.connect(self.authority.as_str()).await;
        self.attempts.fetch_add(1, Ordering::Release);
        match connected {
            Ok(sender) => {
                let open = Arc::new(sender);
                self.sender.store(Some(Arc::clone(&open)));
                *last = None;
                Ok(open)
            }
            Err(error) => {
                *last = Some((error.kind(), error.to_string()));
                Err(ConnectError(error.into()))
            }
        }
    }
}
