//! The real world: TCP, the system's clock, the system's randomness.

use std::{
    io,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use model::Timestamp;
use rand::{TryRng, rngs::SysRng};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::world::{Boxed, BoxedStream, Listener, Network, WallClock};

/// The system's wall clock.
pub struct SystemClock;

impl WallClock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Draws a seed from the operating system.
pub(super) fn system_seed() -> io::Result<u64> {
    SysRng.try_next_u64().map_err(io::Error::other)
}

/// TCP.
pub struct TcpNetwork {
    /// Several loops of the process listen on the same port, and the system spreads connections.
    pub shared_ports: bool,
}

struct Tcp(TcpListener);

impl Listener for Tcp {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> Boxed<'_, io::Result<(BoxedStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as BoxedStream, from))
        })
    }
}

impl Network for TcpNetwork {
    fn listen(&self, address: SocketAddr) -> Boxed<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let socket =
                Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if self.shared_ports {
                socket.set_reuse_port(true)?;
            }
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(LISTEN_BACKLOG)?;
            let listener = TcpListener::from_std(socket.into())?;
            Ok(Box::new(Tcp(listener)) as Box<dyn Listener>)
        })
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that opens connections")]
    fn connect(&self, address: String) -> Boxed<'_, io::Result<BoxedStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxedStream)
        })
    }
}

const LISTEN_BACKLOG: i32 = 1_024;
