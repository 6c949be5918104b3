//! Answers on their way to clients. What a client leaves untaken counts among the bytes that calls hold, and
//! where they run short, connections whose clients take nothing are closed.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use super::io_loop::IoLoop;
use crate::{call_bytes::Held, counters::Counters};

/// A client's connection, as its answers know it.
pub(super) struct ClientConnection {
    io: Arc<IoLoop>,
    /// Tells the client to go away.
    goaway: CancellationToken,
}

impl ClientConnection {
    /// A connection that is told to go away by `goaway`.
    pub(super) fn new(io: Arc<IoLoop>, goaway: CancellationToken) -> Arc<Self> {
        Arc::new(Self { io, goaway })
    }
}

/// The body of an answer, handed to the library piece by piece: it asks for the next one when the client has
/// taken most of those before.
pub(super) struct AnswerBody {
    inner: Body,
    connection: Arc<ClientConnection>,
    /// Of the message that is being handed over.
    rest: Bytes,
    /// Its number among what is untaken.
    id: u64,
}

impl AnswerBody {
    /// The answer of a call on this connection.
    pub(super) fn new(inner: Body, connection: Arc<ClientConnection>) -> Self {
        Self { inner, connection, rest: Bytes::new(), id: 0 }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Frame::data(piece)
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.rest.is_empty() {
            let io = &this.connection.io;
            io.untaken.progressed(this.id, io.now_us());
            return Poll::Ready(Some(Ok(this.next_piece())));
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let message = match frame.into_data() {
            Ok(message) if message.len() > UNCOUNTED_BYTES => message,
            Ok(small) => return Poll::Ready(Some(Ok(Frame::data(small)))),
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let untaken = Untaken::new(&this.connection, message);
        this.id = untaken.id;
        this.rest = Bytes::from_owner(untaken);
        Poll::Ready(Some(Ok(this.next_piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest.len() {
            0 => self.inner.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

/// A message that its client has yet to take. It is dropped with the last piece of it, which the library keeps
/// until it is written to the connection: each of them keeps all of it in memory.
struct Untaken {
    message: Bytes,
    connection: Arc<ClientConnection>,
    id: u64,
    _held: Held,
}

impl Untaken {
    fn new(connection: &Arc<ClientConnection>, message: Bytes) -> Self {
        let io = &connection.io;
        let id = io.untaken.add(io.now_us(), connection.goaway.clone());
        let _held = io.call_bytes.hold_anyway(message.len());
        Self { message, connection: Arc::clone(connection), id, _held }
    }
}

impl AsRef<[u8]> for Untaken {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.connection.io.untaken.remove(self.id);
    }
}

/// The messages of one loop that clients have yet to take. Only tasks of the loop take its lock.
#[derive(Debug, Default)]
pub(super) struct UntakenMessages(Mutex<Messages>);

#[derive(Debug, Default)]
struct Messages {
    by_id: BTreeMap<u64, Message>,
    next_id: u64,
    judged_us: u64,
}

#[derive(Debug)]
struct Message {
    progressed_us: u64,
    goaway: CancellationToken,
}

impl UntakenMessages {
    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, now_us: u64, goaway: CancellationToken) -> u64 {
        let mut messages = self.lock();
        let id = messages.next_id;
        messages.next_id += 1;
        messages.by_id.insert(id, Message { progressed_us: now_us, goaway });
        id
    }

    fn progressed(&self, id: u64, now_us: u64) {
        if let Some(message) = self.lock().by_id.get_mut(&id) {
            message.progressed_us = now_us;
        }
    }

    fn remove(&self, id: u64) {
        self.lock().by_id.remove(&id);
    }

    /// Tells the connections to go away that have taken nothing of a message for `patience_us`. Says how many.
    fn close_stalled(&self, now_us: u64, patience_us: u64) -> usize {
        let mut messages = self.lock();
        // Every call that is refused asks for it.
        if now_us < messages.judged_us + JUDGED_EVERY_US {
            return 0;
        }
        messages.judged_us = now_us;
        let stalled = messages.by_id.values().filter(|it| it.progressed_us + patience_us <= now_us);
        let mut closed = 0;
        for it in stalled.filter(|it| !it.goaway.is_cancelled()) {
            it.goaway.cancel();
            closed += 1;
        }
        closed
    }
}

impl IoLoop {
    /// Makes room, as far as it is clients that take nothing who hold it.
    pub(super) fn close_stalled(&self) {
        let patience_us = self.shared.config.answer_patience_ms * 1_000;
        for _ in 0..self.untaken.close_stalled(self.now_us(), patience_us) {
            Counters::count(&self.shared.counters.connections_stalled);
            tracing::info!("a client that does not take its answers is told to go away");
        }
    }
}

/// What the library gets at a time, and keeps of one answer at most.
pub(super) const PIECE_BYTES: usize = 16 << 10;
/// A stream takes as much by itself, and streams are bounded by their number.
const UNCOUNTED_BYTES: usize = 1 << 10;
const JUDGED_EVERY_US: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_nothing_is_told_to_go_away() {
        let messages = UntakenMessages::default();
        let tokens = [(); 3].map(|()| CancellationToken::new());
        let [slow, stalled, gone] = tokens.clone().map(|it| messages.add(0, it));
        messages.progressed(slow, 500_000);
        messages.remove(gone);
        assert_eq!(messages.close_stalled(999_999, 1_000_000), 0);
        assert_eq!(messages.close_stalled(1_000_000, 1_000_000), 0, "it was just looked at");
        assert_eq!(messages.close_stalled(1_100_000, 1_000_000), 1);
        let told = tokens.map(|it| it.is_cancelled());
        assert_eq!(told, [false, true, false]);
        assert_eq!(messages.close_stalled(1_300_000, 1_000_000), 0, "once is enough");
        messages.remove(stalled);
        assert_eq!(messages.close_stalled(1_500_000, 1_000_000), 1, "its time has come");
    }
}
