//! A scan as its client sees it: a stream of pages, begun with a permit of the node.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use proto::{CallError, Reason, v1};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, metadata::MetadataMap};

use super::{coordinate::Full, io_loop::IoLoop, scan::Scan};
use crate::counters::Counters;

/// The answer stream of a scan. Dropping it ends the scan before its next page.
pub(super) struct ScanStream {
    pages: mpsc::Receiver<Result<v1::ScanResponse, Status>>,
    /// The last page has come, or an error.
    has_ended: bool,
    /// A scan holds pages for as long as its client does not take them: hence a bound for the node.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Stream for ScanStream {
    type Item = Result<v1::ScanResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.pages.poll_recv(context));
        // Who reads to the end must not take a scan for whole that has ended before its last page.
        let next = next.or_else(|| (!self.has_ended).then(|| Err(cut_off().into())));
        self.has_ended |= next.as_ref().is_none_or(|it| match it {
            Ok(page) => page.next_page_token.is_empty(),
            Err(_) => true,
        });
        Poll::Ready(next)
    }
}

impl ScanStream {
    /// Checks a scan and starts it.
    pub(super) fn start(
        io: Arc<IoLoop>,
        metadata: &MetadataMap,
        request: v1::ScanRequest,
    ) -> Result<Self, CallError> {
        let shared = Arc::clone(&io.shared);
        let Ok(permit) = Arc::clone(&shared.scans).try_acquire_owned() else {
            Counters::count(&shared.counters.calls_overloaded);
            return Err(Full { what: "scans under way", limit: shared.config.scans_max }.into());
        };
        let scan = Scan::new(&io, metadata, request)?;
        let (sender, pages) = mpsc::channel(1);
        // A page that is under way goes on when its client has gone: it counts until it ends.
        let permit = Arc::new(permit);
        tokio::spawn(scan.run(sender, Arc::clone(&permit)));
        Ok(Self { pages, has_ended: false, _permit: permit })
    }
}

fn cut_off() -> CallError {
    CallError::new(Reason::ReadFailed, "the scan has ended before its last page")
}
