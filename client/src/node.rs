//! One node as this client sees it: its links, its calls in flight, and whether it answers.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicUsize, Ordering},
};

use tonic::ConnectError;

use crate::{
    channel::{Channel, Link},
    connect::{Dialer, InvalidAddress, authority_of},
};

/// A node that can be called. Its connections open when they are first used.
#[derive(Debug)]
pub(crate) struct Node {
    address: Arc<str>,
    links: Box<[Arc<Link>]>,
    next_link: AtomicUsize,
    in_flight: AtomicUsize,
    health: AtomicU8,
}

impl Node {
    pub(crate) fn new(address: &str, dialer: &Arc<Dialer>) -> Result<Self, InvalidAddress> {
        let authority = authority_of(address)?;
        let link = || Link::new(authority.clone(), Arc::clone(dialer));
        Ok(Self {
            address: address.into(),
            links: std::iter::repeat_with(link).take(dialer.connections_per_node).collect(),
            next_link: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            health: AtomicU8::new(UNTRIED),
        })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// One of its connections, in turn, opened if it is not. An error proves that a call was never sent.
    pub(crate) async fn open(&self) -> Result<Channel, ConnectError> {
        let turn = match &*self.links {
            [_only] => 0,
            links => self.next_link.fetch_add(1, Ordering::Relaxed) % links.len(),
        };
        self.links[turn].open().await
    }

    /// Calls sent there and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// True from a broken connection to the next answer. Calls go elsewhere while they can; the
    /// background task asks it until it answers.
    pub(crate) fn is_broken(&self) -> bool {
        self.health.load(Ordering::Relaxed) == BROKEN
    }

    /// True from an answer to the next broken connection: whoever says that it is down errs.
    pub(crate) fn is_answering(&self) -> bool {
        self.health.load(Ordering::Relaxed) == ANSWERING
    }

    /// Notes that its connection broke, or could not be made.
    pub(crate) fn note_broken(&self) {
        self.health.store(BROKEN, Ordering::Relaxed);
    }

    /// Notes that it answered, with whatever.
    pub(crate) fn note_answer(&self) {
        // Nearly always so already: a store would take the cache line from all other threads.
        if !self.is_answering() {
            self.health.store(ANSWERING, Ordering::Relaxed);
        }
    }
}

const UNTRIED: u8 = 0;
const ANSWERING: u8 = 1;
const BROKEN: u8 = 2;

/// Counts one call as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Node>);

impl InFlight {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        node.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(node)
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
