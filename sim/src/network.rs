//! Turmoil's network and time in the shape that node asks for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use model::Timestamp;
use node::io::{Boxed, BoxedStream, Listener, Network, WallClock};
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};

/// The simulated wall clock: the simulation's epoch and the time since.
pub struct SimClock;

impl WallClock for SimClock {
    /// Panics outside a simulated host.
    fn now(&self) -> Timestamp {
        let since = turmoil::since_epoch().expect("runs in a simulated host");
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The simulated network of the host that uses it.
pub struct SimNetwork;

struct SimListener(TcpListener);

impl Listener for SimListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> Boxed<'_, io::Result<(BoxedStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as BoxedStream, from))
        })
    }
}

impl Network for SimNetwork {
    fn listen(&self, address: SocketAddr) -> Boxed<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            // A simulated host has one address and listens on all of them.
            let any = (IpAddr::from(Ipv4Addr::UNSPECIFIED), address.port());
            Ok(Box::new(SimListener(TcpListener::bind(any).await?)) as Box<dyn Listener>)
        })
    }

    fn connect(&self, address: String) -> Boxed<'_, io::Result<BoxedStream>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as BoxedStream) })
    }
}

/// A client's channel to `host:port`. Lazy: it connects again by itself.
///
/// Panics unless the address makes a URI.
pub fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a simulated host's name makes a URI")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(tower::service_fn(|uri: Uri| async move {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            TcpStream::connect(authority).await.map(TokioIo::new)
        }))
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
