//! One connection between two nodes: what is queued for the peer goes out, what it says is taken.
//!
//! Both in one task, reading first: what the answers to a frame put into the queue leaves with the same
//! poll that took the frame.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use proto::{
    CallError,
    internal::{Frame, Refused},
    link::{KeepAlive, LinkCodec, LinkError, READ_BYTES},
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::codec::Framed;
use tonic::Status;

use super::world::BoxedStream;
use crate::outbox::{FrameStamp, Outbox};

/// A connection to another node, by whichever side it was opened.
pub(super) struct Link {
    framed: Framed<BoxedStream, LinkCodec>,
    pulse: Pulse,
    /// A large frame has made the buffer large that waits to be written.
    wrote_large: bool,
}

/// Why a link has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    /// What came was none of what peers say, or nothing comes any more.
    #[error(transparent)]
    Error(#[from] LinkError),
    /// The peer has closed it.
    #[error("closed by the peer")]
    Closed,
    /// The peer says nothing, not even that it is there, or takes nothing.
    #[error("the peer is silent")]
    Silent,
}

impl Link {
    /// A connection of which nothing was said. Until it is [`trusted`](Self::trust), frames are short.
    pub(super) fn new(stream: BoxedStream) -> Self {
        let framed = Framed::with_capacity(stream, LinkCodec::new(HELLO_BYTES_MAX), READ_BYTES);
        Self { framed, pulse: Pulse::new(), wrote_large: false }
    }

    /// Takes frames of up to so many bytes from now on.
    pub(super) fn trust(&mut self, frame_bytes_max: usize) {
        self.framed.codec_mut().frame_bytes_max = frame_bytes_max;
        self.framed.set_backpressure_boundary(WRITE_BYTES);
    }

    /// Says one frame. A peer that does not take it is silent.
    pub(super) async fn say(&mut self, frame: &Frame) -> Result<(), LinkEnd> {
        Ok(timeout(SAY_TIMEOUT, self.framed.send(frame))
            .await
            .map_err(|_elapsed| LinkEnd::Silent)??)
    }

    /// Hears one frame; an empty one if the peer says only that it is there.
    pub(super) async fn hear(&mut self) -> Result<Frame, LinkEnd> {
        let frame = self.framed.next().await.ok_or(LinkEnd::Closed)??;
        Ok(frame.unwrap_or_default())
    }

    /// Lets the peer know why it is not let in, as far as it listens.
    pub(super) async fn refuse(mut self, error: CallError) {
        let refused = Some(Refused::from(&Status::from(error)));
        let said = self.say(&Frame { refused, ..Frame::default() }).await;
        if let Err(error) = said {
            tracing::debug!(%error, "a peer that is refused has gone");
        }
    }

    /// Sends what the outbox holds and gives what comes to `take`, until the link breaks.
    pub(super) async fn run(
        mut self,
        outbox: &Outbox,
        stamp: &impl FrameStamp,
        mut take: impl FnMut(Frame) + Send,
    ) -> LinkEnd {
        poll_fn(|context| match self.poll(context, outbox, stamp, &mut take) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        outbox: &Outbox,
        stamp: &impl FrameStamp,
        take: &mut impl FnMut(Frame),
    ) -> Result<(), LinkEnd> {
        // What is queued while frames are taken goes out below, without another poll.
        outbox.wake_nobody();
        self.poll_frames(context, take)?;
        self.poll_pulse(context)?;
        self.poll_outbox(context, outbox, stamp)
    }

    fn poll_pulse(&mut self, context: &mut Context<'_>) -> Result<(), LinkEnd> {
        while self.pulse.interval.poll_tick(context).is_ready() {
            self.pulse.silent_ticks += 1;
            if self.pulse.silent_ticks > SILENCE_TICKS_MAX {
                return Err(LinkEnd::Silent);
            }
            if Sink::<KeepAlive>::poll_ready(Pin::new(&mut self.framed), context)?.is_ready() {
                self.framed.start_send_unpin(KeepAlive)?;
            }
        }
        Ok(())
    }

    fn poll_frames(
        &mut self,
        context: &mut Context<'_>,
        take: &mut impl FnMut(Frame),
    ) -> Result<(), LinkEnd> {
        for _ in 0..FRAMES_AT_ONCE {
            match Pin::new(&mut self.framed).poll_next(context)? {
                Poll::Ready(Some(frame)) => {
                    self.pulse.silent_ticks = 0;
                    if let Some(frame) = frame {
                        take(frame);
                    }
                }
                Poll::Ready(None) => return Err(LinkEnd::Closed),
                Poll::Pending => {
                    // A part of a large frame is a sign of life as well.
                    let buffered = self.framed.read_buffer().len();
                    if std::mem::replace(&mut self.pulse.buffered_bytes, buffered) < buffered {
                        self.pulse.silent_ticks = 0;
                    }
                    return Ok(());
                }
            }
        }
        // There may be more, after the others of this loop have had their turn.
        context.waker().wake_by_ref();
        Ok(())
    }

    fn poll_outbox(
        &mut self,
        context: &mut Context<'_>,
        outbox: &Outbox,
        stamp: &impl FrameStamp,
    ) -> Result<(), LinkEnd> {
        outbox.wake(context);
        while Sink::<&Frame>::poll_ready(Pin::new(&mut self.framed), context)?.is_ready() {
            let Some(mut frame) = outbox.next_frame() else { break };
            stamp.stamp_frame(&mut frame);
            self.framed.start_send_unpin(&frame)?;
            self.wrote_large |= self.framed.write_buffer().len() > KEPT_BYTES_MAX;
        }
        let flushed = Sink::<&Frame>::poll_flush(Pin::new(&mut self.framed), context)?;
        if flushed.is_ready() && std::mem::take(&mut self.wrote_large) {
            *self.framed.write_buffer_mut() = BytesMut::new();
        }
        Ok(())
    }
}

/// How a link that carries nothing is known to stand.
struct Pulse {
    interval: Interval,
    /// How often it has ticked since anything was heard.
    silent_ticks: u32,
    /// What there was of a frame that had not come whole.
    buffered_bytes: usize,
}

impl Pulse {
    fn new() -> Self {
        let mut interval = interval_at(Instant::now() + TICK, TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, silent_ticks: 0, buffered_bytes: 0 }
    }
}

const TICK: Duration = Duration::from_secs(1);
/// A peer that says nothing for so many ticks has lost its link.
const SILENCE_TICKS_MAX: u32 = 3;
const SAY_TIMEOUT: Duration = Duration::from_secs(3);
/// A hello, which names database directories by 40 bytes each.
const HELLO_BYTES_MAX: usize = 1 << 20;
/// What is encoded before it is written.
const WRITE_BYTES: usize = 64 << 10;
/// What the buffer that is written keeps while it is empty.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// What is taken before anybody else of the loop has a turn.
const FRAMES_AT_ONCE: u32 = 64;

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        task::JoinHandle,
    };
    use tokio_util::codec::Encoder;

    use super::*;

    struct Plain;

    impl FrameStamp for Plain {
        fn stamp_frame(&self, frame: &mut Frame) {
            frame.clock = 9;
        }
    }

    fn pair() -> (Link, Link) {
        let (one, other) = duplex(4 << 10);
        let (mut one, mut other) = (Link::new(Box::new(one)), Link::new(Box::new(other)));
        one.trust(64 << 20);
        other.trust(64 << 20);
        (one, other)
    }

    /// Runs a link that answers each operation applied by the next one, and counts what it takes.
    fn run(link: Link) -> (Arc<Outbox>, Arc<AtomicU64>, JoinHandle<LinkEnd>) {
        let (outbox, taken) = (Outbox::new(64 << 20), Arc::new(AtomicU64::new(0)));
        let (queue, count) = (Arc::clone(&outbox), Arc::clone(&taken));
        let running = tokio::spawn(async move {
            let take = |frame: Frame| {
                assert_eq!(frame.clock, 9, "frames are stamped as they leave");
                for operation in frame.applied {
                    count.fetch_add(1, Ordering::Relaxed);
                    let next = queue.push(8, |frame| frame.applied.push(operation + 1));
                    next.expect("there is room");
                }
            };
            link.run(&queue, &Plain, take).await
        });
        (outbox, taken, running)
    }

    #[tokio::test(start_paused = true)]
    async fn frames_go_both_ways_until_the_peer_closes() {
        let (one, mut other) = pair();
        let (outbox, taken, running) = run(one);
        for operation in [10, 20] {
            let frame = Frame { applied: vec![operation], clock: 9, ..Frame::default() };
            other.say(&frame).await.expect("it is taken");
            assert_eq!(other.hear().await.expect("an answer").applied, [operation + 1]);
        }
        // Far more than the connection holds.
        let gossip = vec![vec![7; 1 << 20].into(); 3];
        outbox.push(3 << 20, |frame| frame.gossip = gossip.clone()).expect("there is room");
        assert_eq!(other.hear().await.expect("a large frame").gossip, gossip);
        assert_eq!(taken.load(Ordering::Relaxed), 2);
        drop(other);
        assert!(matches!(running.await, Ok(LinkEnd::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn more_frames_than_are_taken_at_once_are_taken() {
        let (one, mut other) = pair();
        let (_outbox, taken, running) = run(one);
        for operation in 0..10 * u64::from(FRAMES_AT_ONCE) {
            let frame = Frame { applied: vec![operation], clock: 9, ..Frame::default() };
            other.framed.feed(&frame).await.expect("it is taken");
        }
        let (mut answers, begun) = (0, Instant::now());
        SinkExt::<&Frame>::flush(&mut other.framed).await.expect("it is taken");
        while answers < 10 * u64::from(FRAMES_AT_ONCE) {
            answers += other.hear().await.expect("answers").applied.len() as u64;
        }
        assert_eq!(taken.load(Ordering::Relaxed), answers);
        assert_eq!(begun.elapsed(), Duration::ZERO, "it did not wait for the next tick");
        assert!(!running.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn links_with_nothing_to_say_stand_for_ever() {
        let (one, other) = pair();
        let ((_one, _, one), (_other, _, other)) = (run(one), run(other));
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert!(!one.is_finished() && !other.is_finished());
        one.abort();
        assert!(matches!(other.await, Ok(LinkEnd::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_has_lost_its_link_even_while_it_takes_nothing() {
        let (ours, mut theirs) = duplex(64);
        let (outbox, _, running) = run(Link::new(Box::new(ours)));
        outbox.push(8, |frame| frame.gossip.push(vec![1; 1_000].into())).expect("there is room");
        let begun = Instant::now();
        assert!(matches!(running.await, Ok(LinkEnd::Silent)));
        assert!(begun.elapsed() > SILENCE_TICKS_MAX * TICK, "{:?}", begun.elapsed());
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.expect("what fitted");
        assert_eq!(said.len(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_frame_may_come_slowly() {
        let (ours, theirs) = duplex(1 << 20);
        let (mut theirs_from, mut theirs_to) = tokio::io::split(theirs);
        let mut link = Link::new(Box::new(ours));
        link.trust(64 << 20);
        let (_outbox, taken, running) = run(link);
        let gossip = vec![vec![7; 100_000].into()];
        let frame = Frame { applied: vec![1], clock: 9, gossip, ..Frame::default() };
        let mut bytes = BytesMut::new();
        Encoder::<&Frame>::encode(&mut LinkCodec::new(64 << 20), &frame, &mut bytes).unwrap();
        for part in bytes.chunks(5_000) {
            tokio::time::sleep(2 * TICK).await;
            theirs_to.write_all(part).await.expect("the link stands");
        }
        let mut answer = [0; 1];
        theirs_from.read_exact(&mut answer).await.expect("the link stands");
        tokio::time::sleep(TICK / 2).await;
        assert_eq!((taken.load(Ordering::Relaxed), running.is_finished()), (1, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_frame_ends_the_link() {
        let (ours, mut theirs) = duplex(64);
        let (_outbox, _, running) = run(Link::new(Box::new(ours)));
        theirs.write_all(b"PRI * HTTP/2.0").await.expect("room");
        let end = running.await.expect("no panic");
        assert!(matches!(end, LinkEnd::Error(LinkError::NotALink)), "{end}");
    }
}
