//! Which service a client's request is for, and how long its answer may take at most.
//!
//! The data interface is told by its path alone; the general router would look it up and box it for
//! every put and get. Everything else goes through the router.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use proto::v1::kv_service_server::{KvServiceServer, SERVICE_NAME};
use proto::{CallError, CallOutcome, Reason};
use tokio::time::timeout;
use tonic::{Status, body::Body, service::Routes};
use tower::Service as _;

use super::{
    answer_body::{AnswerBody, ClientConnection},
    call::timeout_of,
    http2::BoundedBody,
    io_loop::IoLoop,
    kv::KvApi,
    world::Boxed,
};
use crate::{counters::Counters, shared::Shared};

/// All services of the clients' port.
#[derive(Clone)]
pub(super) struct Dispatch {
    /// The data interface, whose calls all end by deadlines of their own once they have arrived.
    pub(super) kv: KvServiceServer<KvApi>,
    /// Where calls hold what they take of memory.
    pub(super) io: Arc<IoLoop>,
    /// The other services, and the answer to unknown ones.
    pub(super) others: Routes,
    /// How long a request without a deadline of its client's may take to arrive whole; and one of the
    /// others, until its answer begins.
    pub(super) backstop: Duration,
    /// What refusals by the transport say.
    pub(super) refusals: Arc<Refusals>,
}

type Answer = Result<Response<Body>, Infallible>;

impl Dispatch {
    /// Answers one request of a connection.
    pub(super) fn answer(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ClientConnection>,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + Send + use<> {
        let (backstop, refusals) = (self.backstop, Arc::clone(&self.refusals));
        let connection = Arc::clone(connection);
        let wanted = timeout_of(request.headers());
        let answer: Boxed<'static, Answer> = match is_of(request.uri().path(), SERVICE_NAME) {
            true => {
                let patience = wanted.map_or(backstop, |it| it.min(backstop));
                let io = Arc::clone(&self.io);
                let whole = |it| Body::new(BoundedBody::new(it, patience, io));
                self.kv.clone().call(request.map(whole))
            }
            false => {
                let request = request.map(Body::new);
                let limit = wanted.unwrap_or(backstop);
                Box::pin(within(limit, self.others.clone().call(request)))
            }
        };
        async move {
            let answer = refusals.explain(answer.await?);
            Ok(answer.map(|it| AnswerBody::new(it, connection)))
        }
    }
}

async fn within(limit: Duration, answer: impl Future<Output = Answer>) -> Answer {
    timeout(limit, answer).await.unwrap_or_else(|_| {
        let message = "the call did not end in time";
        let mut error = CallError::new(Reason::DeadlinePassed, message);
        error.outcome = CallOutcome::Unknown;
        Ok(Status::from(error).into_http())
    })
}

/// Gives the transport's own refusals the form of ours, and counts those of broken messages.
pub(super) struct Refusals {
    /// Where they are counted.
    pub(super) shared: Arc<Shared>,
    /// The largest message that is taken.
    pub(super) message_bytes_max: usize,
}

impl Refusals {
    /// Successful answers carry their status in trailers and are not touched.
    fn explain(&self, response: Response<Body>) -> Response<Body> {
        let headers = response.headers();
        let Some(code) = headers.get("grpc-status") else { return response };
        if headers.contains_key("grpc-status-details-bin") {
            return response;
        }
        let error = match code.as_bytes() {
            b"11" => {
                let limit = self.message_bytes_max;
                let message = format!("the message is larger than {limit} bytes");
                CallError::new(Reason::MessageTooLarge, message).with("limit", limit)
            }
            b"13" => {
                let message = "the message is no valid protobuf of its type";
                CallError::new(Reason::MalformedMessage, message)
            }
            _ => return response,
        };
        Counters::count(&self.shared.counters.calls_invalid);
        Status::from(error).into_http()
    }
}

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
