//! One lazy HTTP/2 connection to a node, shared by all calls to it.
//!
//! tonic's own channel queues each call for a task, which passes it on through six layers, with a
//! timer beside the call's. Here a call is handed to hyper's connection by whoever makes it.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use arc_swap::ArcSwapOption;
use http::{
    HeaderValue, Request, Response, Uri,
    header::USER_AGENT,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio::sync::watch;
use tonic::{ConnectError, body::Body};
use tower::Service;

use crate::connect::Dialer;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("quorate-client/", env!("CARGO_PKG_VERSION")));

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The way to a node: a connection that is made when it is first used, and again when it is used after it
/// broke.
pub(crate) struct Link {
    authority: Authority,
    dialer: Arc<Dialer>,
    /// The connection, if there has been one.
    sender: ArcSwapOption<SendRequest<Body>>,
    /// The last attempt to connect, for all who wait for it. It is under way while its task lives.
    attempt: Mutex<Option<watch::Receiver<Option<Attempt>>>>,
}

/// What came of an attempt to connect.
type Attempt = Result<Arc<SendRequest<Body>>, Arc<io::Error>>;

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.authority).finish()
    }
}

/// The connection of a link that is open. Clones share it; it closes when the link has another one, or is gone,
/// and no call is under way on it.
#[derive(Clone)]
pub(crate) struct Channel {
    link: Arc<Link>,
    sender: Arc<SendRequest<Body>>,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The connection itself waits for room among its streams.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let completed = self.link.complete(&mut request);
        let mut sender = SendRequest::clone(&self.sender);
        Box::pin(async move {
            completed?;
            let sent = sender.try_send_request(request).await;
            sent.map_err(|mut error| match error.take_message() {
                // The connection was about to close and has not taken it: it may go by another one.
                Some(_unsent) => ConnectError(error.into_error().into()).into(),
                None => error.into_error().into(),
            })
        })
    }
}

impl Link {
    /// A link without a connection.
    pub(crate) fn new(authority: Authority, dialer: Arc<Dialer>) -> Arc<Self> {
        let (sender, attempt) = (ArcSwapOption::empty(), Mutex::default());
        Arc::new(Self { authority, dialer, sender, attempt })
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

    /// The connection that is open, or a new one. A [`ConnectError`] proves that a call was never sent.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<Channel, ConnectError> {
        let channel = |sender| Channel { link: Arc::clone(self), sender };
        if let Some(open) = self.usable() {
            return Ok(channel(open));
        }
        let mut attempt = self.attempt();
        let ended = attempt.wait_for(Option::is_some).await;
        let ended = ended.map_or(None, |it| it.clone()).unwrap_or_else(|| Err(Arc::new(stopped())));
        ended.map(channel).map_err(|error| ConnectError(Box::new(error)))
    }

    fn usable(&self) -> Option<Arc<SendRequest<Body>>> {
        self.sender.load_full().filter(|it| !it.is_closed())
    }

    /// The attempt to connect that is under way, or a new one. It goes on without the call that began it,
    /// whose time may end before, and what comes of it is for all who wait: a node that cannot be reached
    /// does not cost them an attempt each.
    fn attempt(self: &Arc<Self>) -> watch::Receiver<Option<Attempt>> {
        let mut current = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*current
            && last.has_changed().is_ok()
        {
            return last.clone();
        }
        let (tell, attempt) = watch::channel(self.usable().map(Ok));
        if attempt.borrow().is_none() {
            *current = Some(attempt.clone());
            let (dialer, authority) = (Arc::clone(&self.dialer), self.authority.clone());
            let link = Arc::downgrade(self);
            tokio::spawn(async move {
                let connected = dialer.connect(authority.as_str()).await;
                let ended = connected.map(Arc::new).map_err(Arc::new);
                if let (Some(link), Ok(open)) = (link.upgrade(), &ended) {
                    link.sender.store(Some(Arc::clone(open)));
                }
                tell.send_replace(Some(ended));
            });
        }
        attempt
    }
}

fn stopped() -> io::Error {
    io::Error::other("the runtime has stopped")
}

#[cfg(test)]
mod tests;
