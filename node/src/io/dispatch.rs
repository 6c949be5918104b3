//! Which service a client's request is for.
//!
//! The data interface is told by its path alone; the general router would look it up and box it for
//! every put and get. Everything else goes through the router.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{Request, Response};
use proto::v1::kv_service_server::{KvServiceServer, SERVICE_NAME};
use tonic::{body::Body, service::Routes};
use tower::Service;

use super::kv::KvApi;

/// All services of the clients' port.
#[derive(Clone)]
pub(super) struct Dispatch {
    /// The data interface.
    pub(super) kv: KvServiceServer<KvApi>,
    /// The other services, and the answer to unknown ones.
    pub(super) others: Routes,
}

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <KvServiceServer<KvApi> as Service<Request<Body>>>::Future,
        <Routes as Service<Request<Body>>>::Future,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Both always are: they have no queues of their own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_of(request.uri().path(), SERVICE_NAME) {
            Either::Left(self.kv.call(request))
        } else {
            Either::Right(self.others.call(request))
        }
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
