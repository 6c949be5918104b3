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
    link::{KeepAlive, LinkCodec, LinkError},
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
    /// Its queue was closed here.
    #[error("closed here")]
    ClosedHere,
    /// The peer says nothing, not even that it is there.
    #[error("nothing heard for {} s", SILENCE_TICKS_MAX)]
    Silent,
}

impl Link {
    /// A connection of which nothing was said. Until it is [`trusted`](Self::trust), frames are short.
    pub(super) fn new(stream: BoxedStream) -> Self {
        let framed = Framed::with_capacity(stream, LinkCodec::new(HELLO_BYTES_MAX), READ_BYTES);
        Self { framed, pulse: Pulse::new() }
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

    /// Sends what the outbox holds and gives what comes to `take`, until the link breaks or the outbox is
    /// closed.
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
        self.poll_pulse(context)?;
        // What is queued while frames are taken goes out below, without another poll.
        outbox.wake_nobody();
        self.poll_frames(context, take)?;
        self.poll_outbox(context, outbox, stamp)
    }

    fn poll_pulse(&mut self, context: &mut Context<'_>) -> Result<(), LinkEnd> {
        while self.pulse.interval.poll_tick(context).is_ready() {
            self.pulse.silent_ticks += 1;
            if self.pulse.silent_ticks > SILENCE_TICKS_MAX {
                return Err(LinkEnd::Silent);
            }
            if !std::mem::take(&mut self.pulse.said)
                && Sink::<KeepAlive>::poll_ready(Pin::new(&mut self.framed), context)?.is_ready()
            {
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
                Poll::Pending => return Ok(()),
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
            match outbox.poll_frame() {
                Poll::Ready(Some(mut frame)) => {
                    stamp.stamp_frame(&mut frame);
                    self.framed.start_send_unpin(&frame)?;
                    self.pulse.said = true;
                }
                Poll::Ready(None) => return Err(LinkEnd::ClosedHere),
                Poll::Pending => break,
            }
        }
        if Sink::<&Frame>::poll_flush(Pin::new(&mut self.framed), context)?.is_ready() {
            shrink(self.framed.write_buffer_mut());
        } else if outbox.is_closed() {
            // Not to be found out only once the peer takes more.
            return Err(LinkEnd::ClosedHere);
        }
        shrink(self.framed.read_buffer_mut());
        Ok(())
    }
}

/// Gives back what a large frame has taken.
fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > KEPT_BYTES_MAX {
        *buffer = BytesMut::new();
    }
}

/// How a link that carries nothing is known to stand.
struct Pulse {
    interval: Interval,
    /// Since when nothing was heard.
    silent_ticks: u32,
    /// Whether anything was said since the last tick.
    said: bool,
}

impl Pulse {
    fn new() -> Self {
        let mut interval = interval_at(Instant::now() + TICK, TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, silent_ticks: 0, said: false }
    }
}

const TICK: Duration = Duration::from_secs(1);
/// A peer that says nothing for so many ticks has lost its link.
const SILENCE_TICKS_MAX: u32 = 3;
const SAY_TIMEOUT: Duration = Duration::from_secs(3);
/// A hello, which names database directories by 40 bytes each.
const HELLO_BYTES_MAX: usize = 1 << 20;
/// What is read at once.
const READ_BYTES: usize = 16 << 10;
/// What is encoded before it is written.
const WRITE_BYTES: usize = 64 << 10;
/// What a buffer keeps while it is empty.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// What is taken before anybody else of the loop has a turn.
const FRAMES_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt, duplex},
        task::JoinHandle,
    };

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
    async fn frames_go_both_ways_until_the_outbox_is_closed() {
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
        outbox.close();
        assert!(matches!(running.await, Ok(LinkEnd::ClosedHere)));
        assert!(matches!(other.hear().await, Err(LinkEnd::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn links_with_nothing_to_say_stand_for_ever() {
        let (one, other) = pair();
        let ((outbox, _, one), (_, _, other)) = (run(one), run(other));
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert!(!one.is_finished() && !other.is_finished());
        outbox.close();
        assert!(matches!(one.await, Ok(LinkEnd::ClosedHere)));
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
    async fn a_stuck_link_ends_when_its_outbox_is_closed() {
        let (ours, _theirs) = duplex(64);
        let (outbox, _, running) = run(Link::new(Box::new(ours)));
        outbox.push(8, |frame| frame.gossip.push(vec![1; 1_000].into())).expect("there is room");
        tokio::task::yield_now().await;
        let begun = Instant::now();
        outbox.close();
        assert!(matches!(running.await, Ok(LinkEnd::ClosedHere)));
        assert_eq!(begun.elapsed(), Duration::ZERO, "it did not wait for the next tick");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_frame_ends_the_link() {
        let (ours, mut theirs) = duplex(64);
        let (_outbox, _, running) = run(Link::new(Box::new(ours)));
        tokio::io::AsyncWriteExt::write_all(&mut theirs, b"PRI * HTTP/2.0").await.expect("room");
        let end = running.await.expect("no panic");
        assert!(matches!(end, LinkEnd::Error(LinkError::NotALink)), "{end}");
    }
}
