//! The server side of the gRPC floor: the node's own messages, answered at once, by one loop.
//!
//! Holds nothing and checks nothing. Its replies have the size of a node's.

use std::{net::SocketAddr, pin::Pin};

use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, stream};
use proto::v1::{
    self,
    kv_service_server::{KvService, KvServiceServer},
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    failure::{Exit, Failure, with_causes},
    output::Output,
    values,
};

/// Options of the echo server.
#[derive(Clone, Debug, Args)]
pub(crate) struct EchoArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Bytes of the value in every answer to Get
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = values::size)]
    value_size: usize,
}

/// What the server says when it listens, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EchoReady {
    /// Where clients connect.
    pub(crate) client_address: SocketAddr,
}

/// Serves until it is killed.
pub(crate) async fn run(args: EchoArgs, output: Output) -> Result<Exit, Failure> {
    let failure = |error| Failure::file(format!("cannot listen on {}", args.listen), &error);
    let listener = TcpListener::bind(args.listen).await.map_err(failure)?;
    let client_address = listener.local_addr().map_err(failure)?;
    output.document(&EchoReady { client_address })?;
    let value = Bytes::from(vec![b'v'; args.value_size]);
    let incoming = futures_util::StreamExt::map(TcpListenerStream::new(listener), |stream| {
        // As the nodes do: without it the kernel waits for more before it sends.
        stream.and_then(|it| it.set_nodelay(true).map(|()| it))
    });
    let served = Server::builder()
        .add_service(KvServiceServer::new(Echo { value }))
        .serve_with_incoming(incoming);
    served.await.map_err(|error| Failure::new("ECHO_SERVER", with_causes(&error)))?;
    Ok(Exit::Ok)
}

struct Echo {
    value: Bytes,
}

/// A reading as large as real ones, so that messages are as long.
const CLOCK: u64 = 1 << 56;

fn version() -> Option<v1::Version> {
    Some(v1::Version { clock: CLOCK, request_id: CLOCK })
}

fn participation() -> Option<v1::Participation> {
    Some(v1::Participation { required: 2, answered: vec![1, 2], coordinator: 1, overlap: true })
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the echo server answers Put and Get"))
}

#[tonic::async_trait]
impl KvService for Echo {
    type ScanStream = Pin<Box<dyn Stream<Item = Result<v1::ScanResponse, Status>> + Send>>;

    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (version, participation) = (version(), participation());
        Ok(Response::new(v1::PutResponse { version, participation, clock: CLOCK }))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(v1::GetResponse {
            found: true,
            value: self.value.clone(),
            version: version(),
            expires_at_ms: 0,
            participation: participation(),
            clock: CLOCK,
        }))
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        not_here()
    }

    async fn batch_write(
        &self,
        _: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        not_here()
    }

    async fn batch_get(
        &self,
        _: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        not_here()
    }

    async fn scan(
        &self,
        _: Request<v1::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let none: Self::ScanStream = Box::pin(stream::empty());
        drop(none);
        not_here()
    }
}
