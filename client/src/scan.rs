//! Scans: rows in order, page by page, over however many streams that takes.
//!
//! A stream that breaks is resumed after the last page that arrived, on another node. Nothing comes
//! twice, and a stream that was cut off is never taken for the end.

use std::{collections::VecDeque, ops::RangeInclusive, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use model::{Key, Token, Version};
use proto::{
    CallError, Reason,
    v1::{self, kv_service_client::KvServiceClient, scan_request},
};
use tokio::time::Instant;
use tonic::{Request, Streaming};

use crate::{
    call::{Attempts, CallOptions, Failure, failure, no_answer_in_time, out_of_time, send_within},
    error::Error,
    keyspace::Keyspace,
    node::InFlight,
    options::call_options,
    retry::{Decision, Progress},
};

/// Which rows a scan reads.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanRange(scan_request::Range);

impl ScanRange {
    /// The rows of one partition key, in the order of their sort keys.
    pub fn partition(partition_key: impl Into<Bytes>) -> PartitionRange {
        let partition_key = partition_key.into();
        PartitionRange(v1::PartitionScan { partition_key, ..v1::PartitionScan::default() })
    }

    /// All rows of the keyspace, in the order of their tokens.
    pub fn all() -> Self {
        Self(scan_request::Range::Tokens(v1::TokenScan { start: 0, end: None }))
    }

    /// The rows of the keyspace whose tokens lie in the range, in the order of their tokens.
    pub fn tokens(range: RangeInclusive<Token>) -> Self {
        let (start, end) = (range.start().0, Some(range.end().0));
        Self(scan_request::Range::Tokens(v1::TokenScan { start, end }))
    }

    fn token(&self) -> Token {
        match &self.0 {
            scan_request::Range::Partition(it) => Token::of(&it.partition_key),
            scan_request::Range::Tokens(it) => Token(it.start),
        }
    }
}

/// Rows of one partition key; all of them unless it says otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionRange(v1::PartitionScan);

impl PartitionRange {
    /// From this sort key on.
    pub fn start(mut self, sort_key: impl Into<Bytes>) -> Self {
        self.0.start = sort_key.into();
        self
    }

    /// Up to this sort key, exclusive.
    pub fn end(mut self, sort_key: impl Into<Bytes>) -> Self {
        self.0.end = sort_key.into();
        self
    }

    /// Only sort keys that begin so.
    pub fn prefix(mut self, prefix: impl Into<Bytes>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// From the last row to the first.
    pub fn reverse(mut self) -> Self {
        self.0.reverse = true;
        self
    }
}

impl From<PartitionRange> for ScanRange {
    fn from(it: PartitionRange) -> Self {
        Self(scan_request::Range::Partition(it.0))
    }
}

/// One row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// When it expires, in milliseconds since the Unix epoch; `None` for never.
    pub expires_at_ms: Option<u64>,
}

impl From<v1::Row> for Row {
    fn from(it: v1::Row) -> Self {
        Self {
            key: it.key.map(Into::into).unwrap_or_default(),
            value: it.value,
            version: it.version.map(Into::into).unwrap_or_default(),
            expires_at_ms: (it.expires_at_ms != 0).then_some(it.expires_at_ms),
        }
    }
}

/// Some rows of a scan. It may have none, and yet more may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The rows, in order.
    pub rows: Vec<Row>,
    /// Resumes the scan after this page, in this process or another: see [`Scan::page_token`]. Empty in
    /// the last page.
    pub next_page_token: Bytes,
    /// How many replicas the level required of each row.
    pub required: u32,
    /// True if the scan sees every write at the keyspace's default level: R + W > N.
    pub overlap: bool,
}

/// A scan. Every row meets the level at some instant of its page's reading; a scan is no snapshot.
///
/// ```no_run
/// # async fn example(users: client::Keyspace) -> Result<(), client::Error> {
/// use client::ScanRange;
/// use futures_util::TryStreamExt;
///
/// let mut rows = users.scan(ScanRange::all()).page_rows(500).rows();
/// while let Some(row) = rows.try_next().await? {
///     println!("{:?} = {:?}", row.key, row.value);
/// }
/// # Ok(()) }
/// ```
#[must_use = "nothing is read before the first page is asked for"]
pub struct Scan {
    keyspace: Keyspace,
    range: ScanRange,
    page_rows: u32,
    limit: u64,
    page_token: Bytes,
    options: CallOptions,
    delivered: u64,
    stream: Option<Open>,
    ended: bool,
}

/// A stream under way.
struct Open {
    messages: Streaming<v1::ScanResponse>,
    node: InFlight,
    pages: u64,
}

call_options!(Scan);

impl Scan {
    pub(crate) fn new(keyspace: Keyspace, range: ScanRange) -> Self {
        Self {
            keyspace,
            range,
            page_rows: 0,
            limit: 0,
            page_token: Bytes::new(),
            options: CallOptions::default(),
            delivered: 0,
            stream: None,
            ended: false,
        }
    }

    /// Rows of one page at most. Default: the node's choice, which also bounds larger wishes.
    pub fn page_rows(mut self, rows: u32) -> Self {
        self.page_rows = rows;
        self
    }

    /// Rows in all at most; 0 for no limit, which is the default.
    pub fn limit(mut self, rows: u64) -> Self {
        self.limit = rows;
        self
    }

    /// Resumes after the page that carried this token. Everything else must be as it was then.
    pub fn page_token(mut self, token: impl Into<Bytes>) -> Self {
        self.page_token = token.into();
        self
    }

    /// The next page; `None` after the last. After an error it may be called again, and goes on where
    /// it stopped.
    ///
    /// # Errors
    /// Only what was not cured by resuming on other nodes.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        let trace = self.options.trace_header(NAME)?;
        let timeout = self.options.timeout(self.config());
        let deadline = Instant::now() + timeout;
        let mut attempts = Attempts::default();
        while !self.ended {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => match self.open(timeout, deadline, trace.as_ref(), &attempts).await {
                    Ok(stream) => stream,
                    Err(None) => return Err(attempts.into_error(NAME, false)),
                    Err(Some((node, failure))) => {
                        self.recover(node, failure, &mut attempts, deadline, timeout).await?;
                        continue;
                    }
                },
            };
            let remaining = deadline.saturating_duration_since(Instant::now());
            let patience = self.keyspace.cluster().budget(false, remaining, &attempts);
            let next = tokio::time::timeout(patience, stream.messages.message()).await;
            let is_silent = next.is_err();
            let lost = match next {
                Ok(Ok(Some(response))) => {
                    stream.pages += 1;
                    return Ok(Some(self.accept(response, stream)));
                }
                // In good order, and before the last page: resumed like one that broke.
                Ok(Ok(None)) => Failure { progress: Progress::NoAnswer, error: cut_off() },
                Ok(Err(status)) => failure(&status),
                Err(_) => Failure {
                    progress: Progress::NoAnswer,
                    error: no_answer_in_time(false, patience),
                },
            };
            // A stream that served pages before it ended was no failed attempt: its node's time was up, or
            // the node went away. One that says nothing was.
            if stream.pages == 0 || is_silent || lost.progress == Progress::Answered {
                self.recover(stream.node, lost, &mut attempts, deadline, timeout).await?;
            } else {
                self.keyspace.cluster().learn_from(stream.node.node(), &lost);
            }
        }
        Ok(None)
    }

    /// All pages as a stream. After an error it ends.
    pub fn pages(self) -> BoxStream<'static, Result<Page, Error>> {
        stream::try_unfold(self, |mut scan| async move {
            Ok(scan.next_page().await?.map(|page| (page, scan)))
        })
        .boxed()
    }

    /// All rows as a stream. After an error it ends.
    pub fn rows(self) -> BoxStream<'static, Result<Row, Error>> {
        stream::try_unfold((self, VecDeque::new()), |(mut scan, mut rows)| async move {
            loop {
                if let Some(row) = rows.pop_front() {
                    return Ok(Some((row, (scan, rows))));
                }
                match scan.next_page().await? {
                    Some(page) => rows = page.rows.into(),
                    None => return Ok(None),
                }
            }
        })
        .boxed()
    }

    fn config(&self) -> &crate::ClientConfig {
        self.keyspace.cluster().config()
    }
}

const NAME: &str = "scan";

impl Scan {
    /// Opens a stream behind the last page. `Err(None)` if there is no node to ask.
    async fn open(
        &self,
        timeout: Duration,
        deadline: Instant,
        trace: Option<&tonic::metadata::MetadataValue<tonic::metadata::Ascii>>,
        attempts: &Attempts,
    ) -> Result<Open, Option<(InFlight, Failure)>> {
        let cluster = self.keyspace.cluster();
        let route = self.keyspace.route(self.range.token(), false, &self.options);
        let node = InFlight::new(cluster.choose(&route, attempts).ok_or(None)?);
        let mut request = Request::new(v1::ScanRequest {
            keyspace: self.keyspace.name().to_owned(),
            range: Some(self.range.0.clone()),
            consistency: self.options.consistency.map(Into::into),
            page_rows: self.page_rows,
            // A node counts from the token on.
            limit: self.limit.saturating_sub(self.delivered),
            page_token: self.page_token.clone(),
            clock: cluster.clock(),
        });
        cluster.set_headers(&mut request, timeout, trace);
        let bytes_max = self.config().message_bytes_max;
        let scan = async |channel| {
            KvServiceClient::new(channel).max_decoding_message_size(bytes_max).scan(request).await
        };
        // Always half of what is left: a page has to come after it.
        let budget = deadline.saturating_duration_since(Instant::now()) / 2;
        let late = |was_sent| out_of_time(false, was_sent, budget);
        match send_within(node.node(), budget, scan, late).await {
            Ok(response) => Ok(Open { messages: response.into_inner(), node, pages: 0 }),
            Err(failure) => Err(Some((node, failure))),
        }
    }

    /// Notes a failed attempt, and waits as the retry rules say; an error if they give up.
    async fn recover(
        &self,
        node: InFlight,
        failure: Failure,
        attempts: &mut Attempts,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), Error> {
        let cluster = self.keyspace.cluster();
        let route = self.keyspace.route(self.range.token(), false, &self.options);
        let decision: Decision = attempts.note(cluster, node.node(), false, failure, &route);
        drop(node);
        let remaining = deadline.saturating_duration_since(Instant::now()).min(timeout);
        if cluster.pause_before_next(decision, &route, attempts, remaining).await {
            return Ok(());
        }
        Err(std::mem::take(attempts).into_error(NAME, false))
    }

    /// Takes over a page, and keeps the stream for the next one unless it was the last.
    fn accept(&mut self, response: v1::ScanResponse, stream: Open) -> Page {
        let participation = response.participation.unwrap_or_default();
        let cluster = self.keyspace.cluster();
        cluster.observe(response.clock);
        cluster.note_answer(stream.node.node(), Some(participation.coordinator));
        let mut rows: Vec<Row> = response.rows.into_iter().map(Row::from).collect();
        if self.limit > 0 {
            let left = usize::try_from(self.limit - self.delivered).unwrap_or(usize::MAX);
            rows.truncate(left);
        }
        self.delivered += u64::try_from(rows.len()).unwrap_or(u64::MAX);
        self.page_token = response.next_page_token.clone();
        let is_full = self.limit > 0 && self.delivered >= self.limit;
        self.ended = self.page_token.is_empty() || is_full;
        if !self.ended {
            self.stream = Some(stream);
        }
        Page {
            rows,
            next_page_token: response.next_page_token,
            required: participation.required,
            overlap: participation.overlap,
        }
    }
}

fn cut_off() -> CallError {
    CallError::new(Reason::ReadFailed, "the stream ended before its last page")
}
