//! Turmoil's network in the shapes that node and client ask for.

use std::{
    collections::BTreeMap,
    io, mem,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
        let stream = Arc::new(Mutex::new(Some(stream)));
        let id = controls.as_ref().map_or(0, |it| it.connections.add(&stream));
        Fragile { stream, id, controls: controls.clone(), broken: false }
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

/// A stream that a crash may have taken away.
type Shared = Arc<Mutex<Option<TcpStream>>>;

/// The open connections of one node, so that a crash closes them in the order of their beginnings.
///
/// A runtime that is dropped drops its tasks in an order that depends on their ids, which are counted
/// over all simulations of the process; its peers would see that order.
#[derive(Default)]
pub(super) struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, Shared>,
    crashing: bool,
}

impl Connections {
    /// Runs what drops all tasks of the node.
    pub(super) fn crash(&self, drop_tasks: impl FnOnce()) {
        lock(&self.0).crashing = true;
        drop_tasks();
        *lock(&self.0) = Open::default();
    }

    fn add(&self, stream: &Shared) -> u64 {
        let mut open = lock(&self.0);
        open.next += 1;
        let id = open.next;
        open.streams.insert(id, Arc::clone(stream));
        id
    }

    /// Closes a connection; in a crash all of them.
    fn close(&self, id: u64) {
        let mut open = lock(&self.0);
        let closed = if open.crashing {
            mem::take(&mut open.streams)
        } else {
            open.streams.remove_entry(&id).into_iter().collect()
        };
        drop(open);
        for stream in closed.values() {
            lock(stream).take();
        }
    }
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that may break at any read: what was sent has arrived, its answer is lost.
struct Fragile {
    stream: Shared,
    id: u64,
    controls: Option<Arc<Controls>>,
    broken: bool,
}

impl Fragile {
    fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match lock(&self.stream).as_mut() {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if let Some(controls) = &self.controls {
            controls.connections.close(self.id);
        }
    }
}

impl AsyncRead for Fragile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        ready!(self.poll(|it| it.poll_read(context, buffer)))?;
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
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        self.poll(|it| it.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|it| it.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|it| it.poll_shutdown(context))
    }
}
