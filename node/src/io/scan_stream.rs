//! A scan as its client sees it: a stream of pages, one of them read in advance.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use prost::Message;
use proto::{CallError, Reason, v1};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tonic::{Status, metadata::MetadataMap};

use super::{coordinate::Full, io_loop::IoLoop, request::MeasuredRequest, scan::Scan};
use crate::{call_bytes::Held, counters::Counters, metrics::RequestKind};

type Page = Result<v1::ScanResponse, Status>;

/// The answer stream of a scan. Dropping it ends the scan before its next page.
pub(super) struct ScanStream {
    pages: mpsc::Receiver<(Page, Held)>,
    wanted: Arc<Wanted>,
    /// The last page has come, or an error.
    has_ended: bool,
}

impl Stream for ScanStream {
    type Item = Page;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.pages.poll_recv(context);
        self.wanted.set(next.is_pending());
        let Poll::Ready(next) = next else { return Poll::Pending };
        // What it holds is held by the answer's body from here on.
        let next = next.map(|(page, _)| page);
        // Who reads to the end must not take a scan for whole that has ended before its last page.
        let next = next.or_else(|| (!self.has_ended).then(|| Err(cut_off().into())));
        self.has_ended |= next.as_ref().is_none_or(is_last);
        Poll::Ready(next)
    }
}

impl ScanStream {
    /// Checks a scan and starts it. The node bounds how many are reading, not how many are open: a client that
    /// takes its time with a page keeps nobody else from one.
    pub(super) fn start(
        io: Arc<IoLoop>,
        metadata: &MetadataMap,
        request: v1::ScanRequest,
    ) -> Result<Self, CallError> {
        let Ok(permit) = Arc::clone(&io.shared.scans).try_acquire_owned() else {
            return Err(full(&io));
        };
        let scan = Scan::new(&io, metadata, request)?;
        let held = io.hold_in_advance(scan.page_bytes())?;
        let (sender, pages) = mpsc::channel(1);
        let wanted = Arc::new(Wanted::default());
        let is_wanted = Arc::clone(&wanted);
        tokio::spawn(async move {
            let mut admitted = Some((permit, held));
            let mut pages = Pages { io, scan, sender, wanted: is_wanted };
            while pages.send_next(admitted.take()).await {
                tokio::select! {
                    biased;
                    () = pages.sender.closed() => return,
                    () = pages.turn() => {}
                }
            }
        });
        Ok(Self { pages, wanted, has_ended: false })
    }
}

/// Whether the client has taken what there was.
#[derive(Default)]
struct Wanted {
    is_so: AtomicBool,
    changed: Notify,
}

impl Wanted {
    fn set(&self, is_so: bool) {
        self.is_so.store(is_so, Ordering::Relaxed);
        if is_so {
            self.changed.notify_one();
        }
    }

    async fn wait(&self) {
        while !self.is_so.load(Ordering::Relaxed) {
            self.changed.notified().await;
        }
    }
}

/// What a page is read by: a permit, and room in memory.
type Admission = (OwnedSemaphorePermit, Held);

/// Reads the pages of a scan.
struct Pages {
    io: Arc<IoLoop>,
    scan: Scan,
    sender: mpsc::Sender<(Page, Held)>,
    wanted: Arc<Wanted>,
}

impl Pages {
    /// Reads a page and sends it. False if it was the last one, or nobody wants it.
    async fn send_next(&mut self, admitted: Option<Admission>) -> bool {
        let io = Arc::clone(&self.io);
        let mut measured = MeasuredRequest::start(&io, RequestKind::Scan);
        measured.at_level(self.scan.level());
        let deadline_us = io.now_us() + self.scan.timeout_us();
        // That of the first page has come with its request.
        let admitted = match admitted {
            Some(admitted) => Ok(admitted),
            None => tokio::select! {
                biased;
                () = self.sender.closed() => return false,
                admitted = self.admit() => admitted,
            },
        };
        // A page that is under way goes on when its client has gone: it counts until it ends.
        let page = match &admitted {
            Ok(_) => self.scan.page(deadline_us).await,
            Err(error) => Err(error.clone()),
        };
        measured.end(&page);
        let page = page.map_err(Status::from);
        let held = io.call_bytes.hold_anyway(page.as_ref().map_or(0, Message::encoded_len));
        drop(admitted);
        let is_last = is_last(&page);
        self.sender.send((page, held)).await.is_ok() && !is_last
    }

    async fn admit(&self) -> Result<Admission, CallError> {
        let permit = Arc::clone(&self.io.shared.scans).acquire_owned();
        let permit = timeout(Duration::from_micros(self.scan.timeout_us()), permit).await;
        let permit = permit.ok().and_then(Result::ok).ok_or_else(|| full(&self.io))?;
        Ok((permit, self.io.hold_in_advance(self.scan.page_bytes())?))
    }

    /// Waits until the next page may be read: as the one before is on its way to the client, or, where memory
    /// is short, when the client has taken it.
    async fn turn(&self) {
        // An error is a client that has gone, which is looked at elsewhere.
        let _ = self.sender.reserve().await;
        if self.io.call_bytes.is_short() {
            self.wanted.wait().await;
        }
    }
}

fn is_last(page: &Page) -> bool {
    page.as_ref().map_or(true, |it| it.next_page_token.is_empty())
}

fn full(io: &IoLoop) -> CallError {
    Counters::count(&io.shared.counters.calls_overloaded);
    Full { what: "scans that read a page", limit: io.shared.config.scans_max }.into()
}

fn cut_off() -> CallError {
    CallError::new(Reason::ReadFailed, "the scan has ended before its last page")
}
