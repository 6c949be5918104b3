//! Opening connections: a seam for simulated networks, and one lazy HTTP/2 channel per connection.
//!
//! Every failure to connect reaches the caller as tonic's `ConnectError`, also when it took too long:
//! that is the only proof that a call was never sent.

use std::{fmt, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint, Uri};

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

/// Makes channels, all with the same settings.
pub(crate) struct Dialer {
    connector: Arc<dyn Connector>,
    connect_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
    connections_per_node: usize,
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

    /// Checks an address. Nothing is resolved, let alone connected.
    pub(crate) fn endpoint(&self, address: &str) -> Result<Endpoint, InvalidAddress> {
        let invalid = || InvalidAddress(address.to_owned());
        let uri: Uri = format!("http://{address}").parse().ok().ok_or_else(invalid)?;
        let is_plain = uri.authority().is_some_and(|it| it.as_str() == address);
        if !is_plain || uri.port_u16().is_none() || uri.host().is_none_or(str::is_empty) {
            return Err(invalid());
        }
        let endpoint = Endpoint::from(uri)
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true);
        let user_agent = concat!("quorate-client/", env!("CARGO_PKG_VERSION"));
        Ok(endpoint.user_agent(user_agent).expect("a valid header value"))
    }

    /// One lazy channel for each connection. They connect when they are first used, and again when
    /// they are used after their connection broke. Must be called within a tokio runtime.
    pub(crate) fn channels(&self, endpoint: &Endpoint, address: &Arc<str>) -> Box<[Channel]> {
        (0..self.connections_per_node).map(|_| self.channel(endpoint, address)).collect()
    }

    fn channel(&self, endpoint: &Endpoint, address: &Arc<str>) -> Channel {
        let connector = self.connector.clone();
        let timeout = self.connect_timeout;
        let address = address.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let connecting = connector.connect(&address);
            async move {
                // Not `Endpoint::connect_timeout`: its error is no `ConnectError`.
                match tokio::time::timeout(timeout, connecting).await {
                    Ok(connected) => connected.map(TokioIo::new),
                    Err(elapsed) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no connection within {timeout:?}: {elapsed}"),
                    )),
                }
            }
        }))
    }
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
        let dialer = Dialer::new(&ClientConfig::default());
        for address in ["127.0.0.1:7400", "[::1]:7400", "node-1.example:1", "localhost:65535"] {
            assert!(dialer.endpoint(address).is_ok(), "{address}");
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
            assert!(dialer.endpoint(address).is_err(), "{address}");
        }
    }
}
