//! What is queued for one peer: bounded, encoded as frames, drained when the link takes more.
//!
//! Whoever queues pays one short lock per call, and wakes the link only if the queue was
//! empty. No timer and no delay: while a frame is on its way, the next one fills.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Context,
};

use futures_util::task::AtomicWaker;
use proto::internal::Frame;

/// A frame is closed when it holds so many bytes, so that one message stays far below the size
/// that a peer accepts and a large queue does not become one allocation.
pub(crate) const FRAME_BYTES: usize = 256 << 10;

/// What a frame's headers say when it leaves.
pub(crate) trait FrameStamp: Send + Sync + 'static {
    /// Fills clock, layout hash, phase and storage ids.
    fn stamp_frame(&self, frame: &mut Frame);
}

/// The queue for one peer.
pub struct Outbox {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
    bytes_max: usize,
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
        Arc::new(Self { queue: Mutex::default(), waker: AtomicWaker::new(), bytes_max })
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
            let mut queue = self.lock();
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

    /// Forgets what is queued and takes nothing more: its link has ended.
    pub fn close(&self) {
        let mut queue = self.lock();
        *queue = Queue { closed: true, ..Queue::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes queued.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

/// What the link of an outbox does.
impl Outbox {
    /// Wakes nobody until [`wake`](Self::wake) is called: the link looks by itself.
    pub(crate) fn wake_nobody(&self) {
        self.waker.take();
    }

    /// Wakes a task when something is queued, from now on.
    pub(crate) fn wake(&self, context: &Context<'_>) {
        self.waker.register(context.waker());
    }

    /// The next frame, if anything is queued.
    pub(crate) fn next_frame(&self) -> Option<Frame> {
        let mut queue = self.lock();
        let (frame, bytes) = queue.frames.pop_front()?;
        queue.bytes -= bytes;
        queue.usual = Usual::of(&frame);
        Some(frame)
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
        self.add_below(self.bytes_max, bytes, fill)
    }

    /// As [`add`](Self::add), for the few bytes that end somebody's wait: they may pass the bound once
    /// more, for without them a call that was served waits for its deadline.
    pub fn add_answer(
        &mut self,
        bytes: usize,
        fill: impl FnOnce(&mut Frame),
    ) -> Result<(), NotQueued> {
        self.add_below(self.bytes_max.saturating_mul(2), bytes, fill)
    }

    fn add_below(
        &mut self,
        bytes_max: usize,
        bytes: usize,
        fill: impl FnOnce(&mut Frame),
    ) -> Result<(), NotQueued> {
        if self.queue.closed || self.queue.bytes >= bytes_max {
            return Err(NotQueued);
        }
        self.queue.bytes += bytes;
        let (frame, frame_bytes) = self.queue.open_frame();
        *frame_bytes += bytes;
        fill(frame);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::{Wake, Waker},
    };

    use super::*;

    #[test]
    fn what_is_queued_goes_out_in_one_frame() {
        let outbox = Outbox::new(1_000);
        assert!(outbox.next_frame().is_none());
        for operation in [1, 2, 3] {
            outbox.push(8, |frame| frame.applied.push(operation)).unwrap();
        }
        let frame = outbox.next_frame().expect("something is queued");
        assert_eq!(frame.applied, [1, 2, 3]);
        assert_eq!(outbox.bytes(), 0);
        assert!(outbox.next_frame().is_none());
    }

    #[test]
    fn the_queue_is_bounded_and_closes() {
        let outbox = Outbox::new(100);
        outbox.push(99, |frame| frame.applied.push(1)).unwrap();
        outbox.push(1_000, |frame| frame.applied.push(2)).expect("there was room for a byte");
        assert_eq!(outbox.push(1, |frame| frame.applied.push(3)), Err(NotQueued));
        while outbox.next_frame().is_some() {}
        outbox.push(1_000, |frame| frame.applied.push(4)).expect("it is empty again");
        outbox.close();
        assert_eq!(outbox.push(1, |frame| frame.applied.push(5)), Err(NotQueued));
        assert!(outbox.next_frame().is_none());
    }

    #[test]
    fn an_answer_of_a_few_bytes_passes_the_bound() {
        let outbox = Outbox::new(100);
        let answer = |operation| {
            let add = |frame: &mut Frame| frame.applied.push(operation);
            outbox.push_many(|batch| batch.add_answer(8, add))
        };
        outbox.push(150, |_| {}).unwrap();
        assert_eq!(outbox.push(8, |_| {}), Err(NotQueued));
        let queued = (0..100).take_while(|it| answer(*it).is_ok()).count();
        assert_eq!(queued, 7, "up to twice the bound");
        assert_eq!(outbox.next_frame().map(|it| it.applied.len()), Some(7));
        outbox.close();
        assert_eq!(answer(9), Err(NotQueued));
    }

    #[test]
    fn large_queues_become_several_frames() {
        let outbox = Outbox::new(10 * FRAME_BYTES);
        for operation in 0..3 {
            outbox.push(FRAME_BYTES, |frame| frame.applied.push(operation)).unwrap();
        }
        let mut frames = 0;
        while outbox.next_frame().is_some() {
            frames += 1;
        }
        assert_eq!(frames, 3);
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_a_link_that_waits_is_woken() {
        let (outbox, woken) = (Outbox::new(1_000), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let count = || woken.0.load(Ordering::Relaxed);
        outbox.wake(&Context::from_waker(&waker));
        for _ in 0..3 {
            outbox.push(8, |frame| frame.applied.push(1)).unwrap();
        }
        assert_eq!(count(), 1, "for the first of them");
        while outbox.next_frame().is_some() {}
        outbox.wake(&Context::from_waker(&waker));
        outbox.wake_nobody();
        outbox.push(8, |frame| frame.applied.push(1)).unwrap();
        assert_eq!(count(), 1, "it looks by itself");
    }
}
