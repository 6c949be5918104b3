//! Opening connections: a seam for simulated networks, and HTTP/2 on what it opens.

use std::{fmt, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use http::uri::Authority;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::body::Body;

use crate::config::ClientConfig;

/// A connection: bytes in order, in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// What [`Connector::connect`] returns.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Opens connections. The default is [`TcpConnector`]; a simulator brings its own.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `host:port`. The caller limits the time.
    fn connect(&self, address: &str) -> Connecting;
}

/// Connects over TCP, with small writes sent at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    #[expect(clippy::disallowed_methods, reason = "this is the connector that is injected")]
    fn connect(&self, address: &str) -> Connecting {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// Opens connections, all with the same settings.
pub(crate) struct Dialer {
    connector: Arc<dyn Connector>,
    connect_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
    /// How many a node gets.
    pub(crate) connections_per_node: usize,
}

impl Dialer {
    pub(crate) fn new(config: &ClientConfig) -> Self {
        Self {
            connector: config.connector.clone(),
            connect_timeout: config.connect_timeout,
            keep_alive_interval: config.keep_alive_interval,
            keep_alive_timeout: config.keep_alive_timeout,
            connections_per_node: config.connections_per_node,
        }
    }

    /// Opens a connection, which lives until it breaks or nobody can send on it any more.
    pub(crate) async fn connect(&self, address: &str) -> io::Result<SendRequest<Body>> {
        let timeout = self.connect_timeout;
        let connecting = async {
            let stream = self.connector.connect(address).await?;
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(self.keep_alive_interval)
                .keep_alive_timeout(self.keep_alive_timeout)
                .keep_alive_while_idle(true)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)
        };
        let (sender, connection) =
            tokio::time::timeout(timeout, connecting).await.map_err(|elapsed| {
                let message = format!("no connection within {timeout:?}: {elapsed}");
                io::Error::new(io::ErrorKind::TimedOut, message)
            })??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection has ended");
            }
        });
        Ok(sender)
    }
}

/// Checks an address. Nothing is resolved, let alone connected.
pub(crate) fn authority_of(address: &str) -> Result<Authority, InvalidAddress> {
    let invalid = || InvalidAddress(address.to_owned());
    let authority: Authority = address.parse().ok().ok_or_else(invalid)?;
    let is_plain = authority.as_str() == address && !address.contains('@');
    if !is_plain || authority.port_u16().is_none() || authority.host().is_empty() {
        return Err(invalid());
    }
    Ok(authority)
}

/// An address that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: host:port is expected")]
pub(crate) struct InvalidAddress(pub(crate) String);

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for address in ["127.0.0.1:7400", "[::1]:7400", "node-1.example:1", "localhost:65535"] {
            assert!(authority_of(address).is_ok(), "{address}");
        }
        for address in [
            "",
            ":7400",
            "localhost",
            "a b:1",
            "host:99999",
            "host:1/path",
            "http://host:1",
            "\0:1",
        ] {
            assert!(authority_of(address).is_err(), "{address}");
        }
    }
}
