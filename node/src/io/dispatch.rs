//! Which service a client's request is for, and how long its answer may take at most.
//!
//! The data interface is told by its path alone; the general router would look it up and box it for
//! every put and get. Everything else goes through the router.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, Request, Response};
use proto::v1::kv_service_server::{KvServiceServer, SERVICE_NAME};
use proto::{CallError, CallOutcome, Reason};
use tokio::time::timeout;
use tonic::{Status, body::Body, service::Routes};
use tower::Service;

use super::kv::KvApi;
use super::world::Boxed;

/// All services of the clients' port.
#[derive(Clone)]
pub(super) struct Dispatch {
    /// The data interface.
    pub(super) kv: KvServiceServer<KvApi>,
    /// The other services, and the answer to unknown ones.
    pub(super) others: Routes,
    /// How long a request without a deadline may take until its answer begins: only one whose bytes
    /// never come meets it, every other is answered by its call's own deadline before.
    pub(super) backstop: Duration,
}

type Answer = Result<Response<Body>, Infallible>;

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Boxed<'static, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Both always are: they have no queues of their own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // With a deadline of the client's, the library's own timer stands behind ours.
        let has_deadline = request.headers().contains_key(GRPC_TIMEOUT);
        let answer: Self::Future = match is_of(request.uri().path(), SERVICE_NAME) {
            true => self.kv.call(request),
            false => Box::pin(self.others.call(request)),
        };
        if has_deadline { answer } else { Box::pin(within(self.backstop, answer)) }
    }
}

async fn within(backstop: Duration, answer: Boxed<'static, Answer>) -> Answer {
    timeout(backstop, answer).await.unwrap_or_else(|_| {
        let message = "the request did not arrive whole in time";
        let mut error = CallError::new(Reason::DeadlinePassed, message);
        error.outcome = CallOutcome::Unknown;
        Ok(Status::from(error).into_http())
    })
}

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

fn is_of(path: &str, service: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|it| it.strip_prefix(service));
    method.is_some_and(|it| it.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_by_its_whole_name() {
        for path in ["/quorate.v1.KvService/Put", "/quorate.v1.KvService/"] {
            assert!(is_of(path, SERVICE_NAME), "{path}");
        }
        for path in ["", "/", "/quorate.v1.KvService", "/quorate.v1.KvServiceX/Put", "//Put"] {
            assert!(!is_of(path, SERVICE_NAME), "{path}");
        }
    }
}
