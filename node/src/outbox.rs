//! What is queued for one peer: bounded, encoded as frames, drained when the transport asks.
//!
//! Whoever queues pays one short lock per call, and wakes the transport only if the queue was
//! empty. No timer and no delay: while a frame is on its way, the next one fills.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{Stream, task::AtomicWaker};
use proto::internal::Frame;
use tonic::Status;

/// A frame is closed when it holds so many bytes, so that one message stays far below the size
/// that a peer accepts and a large queue does not become one allocation.
pub(crate) const FRAME_BYTES: usize = 256 << 10;

/// What a frame's headers say when it leaves.
pub(crate) trait FrameStamp: Send + Sync + 'static {
    /// Fills clock, layout hash, phase and storage ids.
    fn stamp(&self, frame: &mut Frame);
}

/// The queue for one peer.
pub struct Outbox {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
    bytes_max: usize,
    frames_sent: AtomicU64,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Frame, usize)>,
    bytes: usize,
    closed: bool,
    usual: Usual,
}

/// What the last frame held: the next one gets room for as much, and does not grow item by item.
#[derive(Clone, Copy, Default)]
struct Usual {
    mutations: usize,
    applied: usize,
    queries: usize,
    query_answers: usize,
}

impl Usual {
    fn of(frame: &Frame) -> Self {
        Self {
            mutations: frame.mutations.len(),
            applied: frame.applied.len(),
            queries: frame.queries.len(),
            query_answers: frame.query_answers.len(),
        }
    }

    fn frame(self) -> Frame {
        Frame {
            mutations: Vec::with_capacity(self.mutations),
            applied: Vec::with_capacity(self.applied),
            queries: Vec::with_capacity(self.queries),
            query_answers: Vec::with_capacity(self.query_answers),
            ..Frame::default()
        }
    }
}

impl Queue {
    /// The frame that takes the next item.
    fn open_frame(&mut self) -> &mut (Frame, usize) {
        if self.frames.back().is_none_or(|it| it.1 >= FRAME_BYTES) {
            self.frames.push_back((self.usual.frame(), 0));
        }
        self.frames.back_mut().expect("just pushed")
    }
}

/// The queue is full or its peer is gone; nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotQueued;

impl Outbox {
    /// An empty queue that takes items until it holds `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            waker: AtomicWaker::new(),
            bytes_max,
            frames_sent: AtomicU64::new(0),
        })
    }

    /// Queues one item of about `bytes` bytes: `fill` adds it to the frame it is given.
    pub fn push(&self, bytes: usize, fill: impl FnOnce(&mut Frame)) -> Result<(), NotQueued> {
        self.push_many(|batch| batch.add(bytes, fill))
    }

    /// Queues several items under one lock. The result is that of the last one.
    pub fn push_many(
        &self,
        fill: impl FnOnce(&mut OutboxBatch<'_>) -> Result<(), NotQueued>,
    ) -> Result<(), NotQueued> {
        let (result, wake) = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let was_empty = queue.frames.is_empty();
            let mut batch = OutboxBatch { queue: &mut queue, bytes_max: self.bytes_max };
            let result = fill(&mut batch);
            (result, was_empty && !queue.frames.is_empty())
        };
        if wake {
            self.waker.wake();
        }
        result
    }

    /// Forgets what is queued and takes nothing more; the drain ends.
    pub fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        *queue = Queue { closed: true, ..Queue::default() };
        drop(queue);
        self.waker.wake();
    }

    /// Bytes queued.
    pub fn bytes(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Frames given to the transport so far.
    pub fn frames_sent(&self) -> u64 {
        self.frames_sent.load(Ordering::Relaxed)
    }
}

/// Adds items to a queue whose lock is held.
pub struct OutboxBatch<'a> {
    queue: &'a mut Queue,
    bytes_max: usize,
}

impl OutboxBatch<'_> {
    /// Queues one item of about `bytes` bytes. The last one may pass the bound: a large one would never be
    /// sent otherwise while there are small ones.
    pub fn add(&mut self, bytes: usize, fill: impl FnOnce(&mut Frame)) -> Result<(), NotQueued> {
        if self.queue.closed || self.queue.bytes >= self.bytes_max {
            return Err(NotQueued);
        }
        self.queue.bytes += bytes;
        let (frame, frame_bytes) = self.queue.open_frame();
        *frame_bytes += bytes;
        fill(frame);
        Ok(())
    }
}

/// The stream that the transport polls.
pub(crate) struct Drain<S> {
    outbox: Arc<Outbox>,
    stamp: Arc<S>,
    first: Option<Frame>,
}

impl<S: FrameStamp> Drain<S> {
    /// Drains an outbox, after a first frame (the hello).
    pub(crate) fn new(outbox: Arc<Outbox>, stamp: Arc<S>, first: Frame) -> Self {
        Self { outbox, stamp, first: Some(first) }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut frame = if let Some(first) = self.first.take() {
            first
        } else {
            self.outbox.waker.register(context.waker());
            let mut queue = self.outbox.queue.lock().unwrap_or_else(PoisonError::into_inner);
            match queue.frames.pop_front() {
                Some((frame, bytes)) => {
                    queue.bytes -= bytes;
                    queue.usual = Usual::of(&frame);
                    frame
                }
                None if queue.closed => return Poll::Ready(None),
                None => return Poll::Pending,
            }
        };
        self.outbox.frames_sent.fetch_add(1, Ordering::Relaxed);
        self.stamp.stamp(&mut frame);
        Poll::Ready(Some(frame))
    }
}

/// The form that a client-side call wants.
impl<S: FrameStamp> Stream for Drain<S> {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.poll_frame(context)
    }
}

/// The form that a server-side answer wants.
pub(crate) struct AnswerDrain<S>(pub Drain<S>);

impl<S: FrameStamp> Stream for AnswerDrain<S> {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_frame(context).map(|it| it.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    struct Plain;

    impl FrameStamp for Plain {
        fn stamp(&self, frame: &mut Frame) {
            frame.clock = 9;
        }
    }

    fn drain(outbox: &Arc<Outbox>) -> Drain<Plain> {
        Drain::new(Arc::clone(outbox), Arc::new(Plain), Frame { phase: 7, ..Frame::default() })
    }

    fn poll(drain: &mut Drain<Plain>) -> Poll<Option<Frame>> {
        drain.poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_queued_goes_out_in_one_frame() {
        let outbox = Outbox::new(1_000);
        let mut drain = drain(&outbox);
        assert!(matches!(poll(&mut drain), Poll::Ready(Some(Frame { phase: 7, clock: 9, .. }))));
        assert!(poll(&mut drain).is_pending());
        for operation in [1, 2, 3] {
            outbox.push(8, |frame| frame.applied.push(operation)).unwrap();
        }
        let Poll::Ready(Some(frame)) = poll(&mut drain) else { panic!("nothing queued") };
        assert_eq!(frame.applied, [1, 2, 3]);
        assert_eq!(outbox.bytes(), 0);
        assert!(poll(&mut drain).is_pending());
    }

    #[test]
    fn the_queue_is_bounded_and_closes() {
        let outbox = Outbox::new(100);
        let mut drain = drain(&outbox);
        outbox.push(99, |frame| frame.applied.push(1)).unwrap();
        outbox.push(1_000, |frame| frame.applied.push(2)).expect("there was room for a byte");
        assert_eq!(outbox.push(1, |frame| frame.applied.push(3)), Err(NotQueued));
        while poll(&mut drain).is_ready() {}
        outbox.push(1_000, |frame| frame.applied.push(4)).expect("it is empty again");
        outbox.close();
        assert_eq!(outbox.push(1, |frame| frame.applied.push(5)), Err(NotQueued));
        assert!(matches!(poll(&mut drain), Poll::Ready(None)));
    }

    #[test]
    fn the_hello_goes_out_of_a_closed_queue() {
        let outbox = Outbox::new(100);
        let mut drain = drain(&outbox);
        outbox.close();
        assert!(matches!(poll(&mut drain), Poll::Ready(Some(_))));
        assert!(matches!(poll(&mut drain), Poll::Ready(None)));
    }

    #[test]
    fn large_queues_become_several_frames() {
        let outbox = Outbox::new(10 * FRAME_BYTES);
        let mut drain = drain(&outbox);
        for operation in 0..3 {
            outbox.push(FRAME_BYTES, |frame| frame.applied.push(operation)).unwrap();
        }
        let mut frames = 0;
        while poll(&mut drain).is_ready() {
            frames += 1;
        }
        assert_eq!(frames, 4);
    }
}
