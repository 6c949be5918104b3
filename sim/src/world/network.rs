//! Turmoil's network in the shapes that node and client ask for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use client::{Connecting, Connection, Connector};
use node::io::{Boxed, BoxedStream, Listener, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::controls::Controls;

/// The simulated network of the host that uses it; connections break as its controls say.
pub struct SimNetwork(pub Option<Arc<Controls>>);

impl SimNetwork {
    fn stream(controls: &Option<Arc<Controls>>, stream: TcpStream) -> Fragile {
        Fragile { stream, controls: controls.clone(), broken: false }
    }
}

struct SimListener {
    listener: TcpListener,
    controls: Option<Arc<Controls>>,
}

impl Listener for SimListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn accept(&mut self) -> Boxed<'_, io::Result<(BoxedStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            let stream = SimNetwork::stream(&self.controls, stream);
            Ok((Box::new(stream) as BoxedStream, from))
        })
    }
}

impl Network for SimNetwork {
    fn listen(&self, address: SocketAddr) -> Boxed<'_, io::Result<Box<dyn Listener>>> {
        let controls = self.0.clone();
        Box::pin(async move {
            // A simulated host has one address and listens on all of them.
            let any = (IpAddr::from(Ipv4Addr::UNSPECIFIED), address.port());
            let listener = TcpListener::bind(any).await?;
            Ok(Box::new(SimListener { listener, controls }) as Box<dyn Listener>)
        })
    }

    fn connect(&self, address: String) -> Boxed<'_, io::Result<BoxedStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(Self::stream(&self.0, stream)) as BoxedStream)
        })
    }
}

impl Connector for SimNetwork {
    fn connect(&self, address: &str) -> Connecting {
        let (address, controls) = (address.to_owned(), self.0.clone());
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(Self::stream(&controls, stream)) as Box<dyn Connection>)
        })
    }
}

/// A connection that may break at any read: what was sent has arrived, its answer is lost.
struct Fragile {
    stream: TcpStream,
    controls: Option<Arc<Controls>>,
    broken: bool,
}

impl AsyncRead for Fragile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.broken |= self.controls.as_ref().is_some_and(|it| it.resets());
        if self.broken {
            buffer.set_filled(filled);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Fragile {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
