//! Watches the raw bytes of an accepted connection for what the HTTP/2 library lets through: bytes
//! that are no HTTP/2, connections that never come to a request, floods of control frames.
//!
//! Source of the framing: RFC 9113, 3.4 and 4.1.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};

use super::world::BoxedStream;
use crate::{counters::Counters, shared::Shared};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
/// Pings and settings of one connection within a window. Keep-alive needs a few a minute; some clients measure
/// their connection by a ping for each answer: what is asked and answered excuses some.
const CONTROL_FRAMES_MAX: u32 = 1_000;
/// Of these, excused by a request.
const EXCUSED_BY_REQUEST: u32 = 3;
/// Bytes of answers that excuse one. The answer to a ping is far from it.
const EXCUSED_BY_BYTES: usize = 1_024;
const CONTROL_WINDOW: Duration = Duration::from_secs(10);

/// What is wrong with a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offence {
    /// They do not begin as HTTP/2 does.
    NotHttp2,
    /// Too many pings and settings.
    Flood,
}

/// Follows the frames of one direction of an HTTP/2 connection.
#[derive(Debug, Default)]
struct FrameWatch {
    preface: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    payload_left: usize,
    requested: bool,
    control_frames: u32,
    answered_bytes: usize,
}

impl FrameWatch {
    /// Takes the next bytes.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Offence> {
        if self.preface < PREFACE.len() {
            let count = bytes.len().min(PREFACE.len() - self.preface);
            let (first, rest) = bytes.split_at(count);
            if *first != PREFACE[self.preface..self.preface + count] {
                return Err(Offence::NotHttp2);
            }
            self.preface += count;
            bytes = rest;
        }
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skipped = bytes.len().min(self.payload_left);
                self.payload_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let count = bytes.len().min(FRAME_HEAD_BYTES - self.head_bytes);
            self.head[self.head_bytes..self.head_bytes + count].copy_from_slice(&bytes[..count]);
            self.head_bytes += count;
            bytes = &bytes[count..];
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.frame()?;
            }
        }
        Ok(())
    }

    fn excuse(&mut self, frames: u32) {
        self.control_frames = self.control_frames.saturating_sub(frames);
    }

    /// Notes that bytes went the other way.
    fn answered(&mut self, bytes: usize) {
        self.answered_bytes += bytes;
        let excused = self.answered_bytes / EXCUSED_BY_BYTES;
        self.answered_bytes %= EXCUSED_BY_BYTES;
        self.excuse(u32::try_from(excused).unwrap_or(u32::MAX));
    }

    fn frame(&mut self) -> Result<(), Offence> {
        let [high, middle, low, kind, ..] = self.head;
        self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.head_bytes = 0;
        match kind {
            HEADERS => {
                self.requested = true;
                self.excuse(EXCUSED_BY_REQUEST);
            }
            PING | SETTINGS => {
                self.control_frames += 1;
                if self.control_frames > CONTROL_FRAMES_MAX {
                    return Err(Offence::Flood);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// An accepted connection of a client; it is counted while it stands.
pub(super) struct GuardedStream {
    inner: BoxedStream,
    watch: FrameWatch,
    first_request: Option<Pin<Box<Sleep>>>,
    window_started: Instant,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl GuardedStream {
    /// Guards a connection; the permit is given back when it closes.
    pub(super) fn new(
        inner: BoxedStream,
        shared: Arc<Shared>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let timeout = Duration::from_millis(shared.config.first_request_timeout_ms);
        Self {
            inner,
            watch: FrameWatch::default(),
            first_request: Some(Box::pin(sleep(timeout))),
            window_started: Instant::now(),
            shared,
            _permit: permit,
        }
    }

    fn judge(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.watch.control_frames > 0 && self.window_started.elapsed() > CONTROL_WINDOW {
            self.window_started = Instant::now();
            self.watch.control_frames = 0;
        }
        self.watch.take(bytes).map_err(|offence| {
            Counters::count(&self.shared.counters.connections_refused);
            tracing::debug!(?offence, "a connection is closed");
            io::Error::new(io::ErrorKind::InvalidData, format!("{offence:?}"))
        })?;
        if self.watch.requested {
            self.first_request = None;
        }
        Ok(())
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(timeout) = &mut self.first_request
            && timeout.as_mut().poll(context).is_ready()
        {
            Counters::count(&self.shared.counters.connections_idle);
            let error = io::Error::new(io::ErrorKind::TimedOut, "no request in time");
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.judge(&buffer.filled()[before..])?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.watch.answered(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, buffers))?;
        self.watch.answered(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl Drop for GuardedStream {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        bytes.resize(FRAME_HEAD_BYTES + payload, 0xaa);
        bytes
    }

    #[test]
    fn a_request_is_seen_however_the_bytes_are_cut() {
        let frames = [frame(SETTINGS, 12), frame(0x8, 4), frame(HEADERS, 300), frame(PING, 8)];
        let bytes = [PREFACE, &frames.concat()].concat();
        for cut in 1..40 {
            let mut watch = FrameWatch::default();
            for part in bytes.chunks(cut) {
                watch.take(part).unwrap();
            }
            assert!(watch.requested, "cut every {cut} bytes");
            assert_eq!(watch.control_frames, 1);
        }
    }

    #[test]
    fn other_protocols_are_refused_at_their_first_byte_that_differs() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0x16, 3, 1, 2, 0], b"PRI * HTTP/1.1"] {
            assert_eq!(FrameWatch::default().take(bytes), Err(Offence::NotHttp2));
        }
    }

    #[test]
    fn floods_are_refused() {
        let mut watch = FrameWatch::default();
        watch.take(PREFACE).unwrap();
        for _ in 0..CONTROL_FRAMES_MAX {
            watch.take(&frame(PING, 8)).unwrap();
        }
        assert_eq!(watch.take(&frame(PING, 8)), Err(Offence::Flood));
        // Answered or not: an answer to a ping has 17 bytes.
        let mut watch = FrameWatch::default();
        watch.take(PREFACE).unwrap();
        let mut pings = (0..2 * CONTROL_FRAMES_MAX).map(|_| {
            watch.answered(17);
            watch.take(&frame(PING, 8))
        });
        assert!(pings.any(|it| it == Err(Offence::Flood)));
    }

    #[test]
    fn a_ping_for_each_answer_is_no_flood() {
        // Of a call, and of a page of a scan.
        for answer in [(Some(frame(HEADERS, 40)), 60), (None, 2_100)] {
            let mut watch = FrameWatch::default();
            watch.take(PREFACE).unwrap();
            for _ in 0..10 * CONTROL_FRAMES_MAX {
                let (request, bytes) = &answer;
                request.iter().for_each(|it| watch.take(it).unwrap());
                watch.answered(*bytes);
                watch.take(&frame(PING, 8)).unwrap();
                watch.take(&frame(PING, 8)).unwrap();
            }
        }
    }
}
