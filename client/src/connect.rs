//! Opening connections: a seam for simulated networks, and HTTP/2 on what it opens.

use std::{fmt, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use http::uri::Authority;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
};
use tokio_util::io::InspectReader;
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

/// The largest that HTTP/2 knows (RFC 9113, 6.9.1).
const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;

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
    ///
    /// It is open once the node has said something, its settings: an operating system accepts connections
    /// in the name of processes that hang, or that stop and never see them. What is sent on such a one
    /// was never taken, but nothing would prove it.
    pub(crate) async fn connect(&self, address: &str) -> io::Result<SendRequest<Body>> {
        let timeout = self.connect_timeout;
        let connecting = async {
            let stream = self.connector.connect(address).await?;
            let (tell, said_something) = oneshot::channel();
            let mut tell = Some(tell);
            let stream = InspectReader::new(stream, move |bytes: &[u8]| {
                if let Some(tell) = tell.take_if(|_| !bytes.is_empty()) {
                    // Nobody waits any more: the time to connect was up.
                    let _ = tell.send(());
                }
            });
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(self.keep_alive_interval)
                .keep_alive_timeout(self.keep_alive_timeout)
                .keep_alive_while_idle(true)
                // A scan that nobody reads keeps its own window only, and no answer of another call waits for it.
                .initial_connection_window_size(WINDOW_BYTES_MAX)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            let ended = tokio::spawn(async move {
                let ended = connection.await;
                if let Err(error) = &ended {
                    tracing::debug!(%error, "a connection has ended");
                }
                ended
            });
            if said_something.await.is_ok() {
                return Ok(sender);
            }
            Err(match ended.await {
                Ok(Err(error)) => io::Error::other(error),
                _ => io::Error::from(io::ErrorKind::ConnectionAborted),
            })
        };
        tokio::time::timeout(timeout, connecting).await.map_err(|elapsed| {
            let message = format!("no connection within {timeout:?}: {elapsed}");
            io::Error::new(io::ErrorKind::TimedOut, message)
        })?
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
