//! A scan as its client sees it: a stream of pages, one of them read in advance.

use std::{
    pin::Pin,
    sync::Arc,
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
    /// Told when the client has taken what there was.
    wanted: Arc<Notify>,
    /// The last page has come, or an error.
    has_ended: bool,
}

impl Stream for ScanStream {
    type Item = Page;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Poll::Ready(next) = self.pages.poll_recv(context) else {
            self.wanted.notify_one();
            return Poll::Pending;
        };
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
        let wanted = Arc::new(Notify::new());
        let (ended, room) = (sender.clone(), Arc::clone(&wanted));
        tokio::spawn(async move {
            let mut admitted = Some((permit, held));
            let mut pages = Pages { io, scan, sender, wanted: room };
            while pages.send_next(admitted.take()).await {
                // A page that is under way goes on when its client has gone: it counts until it ends.
                tokio::select! {
                    biased;
                    () = ended.closed() => return,
                    () = pages.turn() => {}
                }
            }
        });
        Ok(Self { pages, wanted, has_ended: false })
    }
}

/// Reads the pages of a scan.
struct Pages {
    io: Arc<IoLoop>,
    scan: Scan,
    sender: mpsc::Sender<(Page, Held)>,
    wanted: Arc<Notify>,
}

impl Pages {
    /// Reads a page and sends it. False if it was the last one.
    async fn send_next(&mut self, admitted: Option<(OwnedSemaphorePermit, Held)>) -> bool {
        let io = Arc::clone(&self.io);
        let mut measured = MeasuredRequest::start(&io, RequestKind::Scan);
        measured.at_level(self.scan.level());
        let (permit, in_advance) = admitted.unzip();
        let page = self.read(permit).await;
        measured.end(&page);
        let page = page.map_err(Status::from);
        let held = io.call_bytes.hold_anyway(page.as_ref().map_or(0, Message::encoded_len));
        drop(in_advance);
        let is_last = is_last(&page);
        self.sender.send((page, held)).await.is_ok() && !is_last
    }

    /// The permit of the first page has come with its request; that of a later one is waited for.
    async fn read(
        &mut self,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<v1::ScanResponse, CallError> {
        let _permit = match permit {
            Some(permit) => permit,
            None => {
                let permit = Arc::clone(&self.io.shared.scans).acquire_owned();
                let permit = timeout(Duration::from_micros(self.scan.timeout_us()), permit).await;
                permit.ok().and_then(Result::ok).ok_or_else(|| full(&self.io))?
            }
        };
        self.scan.page().await
    }

    /// Waits until the next page may be read: as the one before is on its way to the client, or, where memory
    /// is short, when the client has taken it.
    async fn turn(&self) {
        // An error is a client that has gone, which is looked at elsewhere.
        let _ = self.sender.reserve().await;
        if self.io.call_bytes.is_short() {
            self.wanted.notified().await;
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
