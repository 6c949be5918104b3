//! One unary call: chosen node, deadline, clock, retries. All calls go through here but scans, which
//! share its parts.
//!
//! The way of a call that succeeds at once takes no lock: one snapshot of the cluster, one counter of
//! the node, one atomic of the clock.

use std::{
    error::Error as _,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use model::{ConsistencyLevel, Token};
use proto::{CallError, CallOutcome, Reason};
use tokio::time::Instant;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
};

use crate::{
    channel::Channel,
    cluster::Cluster,
    config::{ATTEMPTS_LIMIT, ClientConfig, TIME_MAX},
    error::Error,
    node::{InFlight, Node},
    retry::{self, Decision, Progress},
    routing::{self, NodeState, Query},
};

/// A unary call: how its request is made and sent, and what its answer says of clock and coordinator.
pub(crate) trait Call: Sync {
    /// Its name in errors.
    const NAME: &'static str;
    /// False if it changes nothing.
    const WRITES: bool;
    type Request: Send;
    type Response: Send;

    /// The request, with the highest clock seen. Made anew for each attempt.
    fn request(&self, clock: u64) -> Self::Request;

    fn send(
        channel: Channel,
        bytes_max: usize,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send;

    /// The clock of an answer, and its coordinator as an index into the layout's nodes.
    fn learned(response: &Self::Response) -> (u64, Option<u32>);
}

/// Where a call may go.
#[derive(Clone, Copy)]
pub(crate) enum Route<'a> {
    /// To a replica of a key.
    Key { keyspace: &'a str, token: Token, stays_local: bool },
    /// To any node; first to the one that the client was connected to.
    Home,
    /// To this node alone.
    Node(&'a Arc<Node>),
}

/// What may be said of any call.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallOptions {
    pub(crate) consistency: Option<ConsistencyLevel>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) traceparent: Option<Box<str>>,
}

impl CallOptions {
    /// The longest that the call may take.
    pub(crate) fn timeout(&self, config: &ClientConfig) -> Duration {
        self.timeout.map_or(config.request_timeout, |it| it.min(TIME_MAX))
    }

    /// The trace context as a header's value.
    pub(crate) fn trace_header(
        &self,
        call: &'static str,
    ) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let parse = |text: &str| {
            text.parse().ok().ok_or_else(|| {
                let message = format!("{text:?} is no trace context");
                let cause = CallError::new(Reason::InvalidField, message);
                Error::refused(call, cause.at_field("traceparent"))
            })
        };
        self.traceparent.as_deref().map(parse).transpose()
    }
}

/// One attempt that failed.
pub(crate) struct Failure {
    pub(crate) progress: Progress,
    pub(crate) error: CallError,
}

/// The nodes that a call was tried on.
#[derive(Default)]
pub(crate) struct Attempts {
    tried: Vec<Arc<Node>>,
    /// The failure to report: the last, unless a node had said more than that it cannot be reached.
    worst: Option<(Arc<str>, Failure)>,
}

impl Attempts {
    pub(crate) fn has_tried(&self, node: &Arc<Node>) -> bool {
        self.tried.iter().any(|it| Arc::ptr_eq(it, node))
    }

    /// Notes a failure; returns what to do, unless the attempts are used up.
    pub(crate) fn note(
        &mut self,
        cluster: &Cluster,
        node: &Arc<Node>,
        writes: bool,
        failure: Failure,
        route: &Route<'_>,
    ) -> Decision {
        let expected = match route {
            Route::Key { keyspace, .. } => cluster.topology().has_keyspace(keyspace),
            Route::Home | Route::Node(_) => false,
        };
        let decision = retry::decide(writes, failure.progress, &failure.error, expected);
        cluster.learn_from(node, &failure);
        self.tried.push(node.clone());
        // All earlier failures were of the kind that is retried: no write among them happened. So it
        // is honest to report an earlier one, and more helpful than "connection refused".
        let says_more = failure.progress == Progress::Answered
            || self.worst.as_ref().is_none_or(|it| it.1.progress != Progress::Answered)
            || (writes && failure.error.outcome == CallOutcome::Unknown);
        if says_more {
            self.worst = Some((node.address().clone(), failure));
        }
        let count = self.count();
        if count >= cluster.config().attempts_max.min(ATTEMPTS_LIMIT) {
            return Decision::GiveUp;
        }
        decision
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.tried.len()).unwrap_or(u32::MAX)
    }

    /// The error to report.
    pub(crate) fn into_error(self, call: &'static str, writes: bool) -> Error {
        let count = self.count();
        match self.worst {
            Some((node, Failure { progress, error })) => {
                let error = Error::new(call, writes, Some(node), count, error);
                if progress == Progress::Answered { error.answered() } else { error }
            }
            None => no_node(call, writes),
        }
    }
}

pub(crate) fn no_node(call: &'static str, writes: bool) -> Error {
    let message = "no node of the cluster has an address that can be connected to";
    let mut cause = CallError::new(Reason::ConnectionLost, message);
    cause.outcome = CallOutcome::NotApplied;
    Error::new(call, writes, None, 0, cause)
}

impl Cluster {
    /// Makes a call, and makes it again where that is safe. Also tells which node answered.
    pub(crate) async fn call<C: Call>(
        &self,
        call: &C,
        route: Route<'_>,
        options: &CallOptions,
    ) -> Result<(C::Response, InFlight), Error> {
        let trace = options.trace_header(C::NAME)?;
        let timeout = options.timeout(self.config());
        let deadline = Instant::now() + timeout;
        let mut remaining = timeout;
        let mut attempts = Attempts::default();
        loop {
            let Some(node) = self.choose(&route, &attempts) else {
                return Err(attempts.into_error(C::NAME, C::WRITES));
            };
            let budget = self.budget(C::WRITES, remaining, &attempts);
            let node = InFlight::new(node);
            let request = call.request(self.clock());
            let failure =
                match self.attempt::<C>(node.node(), request, budget, trace.as_ref()).await {
                    Ok(response) => {
                        let (clock, coordinator) = C::learned(&response);
                        self.observe(clock);
                        self.note_answer(node.node(), coordinator);
                        return Ok((response, node));
                    }
                    Err(failure) => failure,
                };
            let decision = attempts.note(self, node.node(), C::WRITES, failure, &route);
            drop(node);
            remaining = deadline.saturating_duration_since(Instant::now());
            match self.pause_before_next(decision, &route, &attempts, remaining).await {
                true => remaining = deadline.saturating_duration_since(Instant::now()),
                false => return Err(attempts.into_error(C::NAME, C::WRITES)),
            }
        }
    }

    /// Waits as decided. False if there is no next attempt, or no time for one.
    pub(crate) async fn pause_before_next(
        &self,
        decision: Decision,
        route: &Route<'_>,
        attempts: &Attempts,
        remaining: Duration,
    ) -> bool {
        let asked_for = match decision {
            Decision::GiveUp => return false,
            Decision::Elsewhere => {
                let fresh = self
                    .choose(route, attempts)
                    .is_some_and(|it| !attempts.has_tried(&it) && !it.is_broken());
                if fresh {
                    return !remaining.is_zero();
                }
                Duration::ZERO
            }
            Decision::After(asked_for) => asked_for,
        };
        let config = self.config();
        let (first, max) = (config.retry_delay, config.retry_delay_max);
        let pause = retry::pause(first, max, attempts.count(), asked_for, self.draw());
        if pause >= remaining {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    /// The time for one attempt. A read leaves half for another node, should this one hang; a write
    /// can have no second attempt after that.
    pub(crate) fn budget(
        &self,
        writes: bool,
        remaining: Duration,
        attempts: &Attempts,
    ) -> Duration {
        let is_last = attempts.count() + 1 >= self.config().attempts_max;
        if writes || is_last { remaining } else { remaining / 2 }
    }

    /// The best node for the next attempt.
    pub(crate) fn choose(&self, route: &Route<'_>, attempts: &Attempts) -> Option<Arc<Node>> {
        let view = self.view();
        let query = match *route {
            Route::Node(node) => return Some(node.clone()),
            Route::Home => {
                let home = view.home();
                if home.is_some_and(|it| !attempts.has_tried(it) && !it.is_broken()) {
                    return home.cloned();
                }
                Query {
                    keyspace: "",
                    token: Token::default(),
                    datacenter: self.datacenter(),
                    stays_local: false,
                    draw: self.draw(),
                }
            }
            Route::Key { keyspace, token, stays_local } => Query {
                keyspace,
                token,
                datacenter: self.datacenter(),
                stays_local,
                draw: self.draw(),
            },
        };
        let state = |index: model::NodeIndex| match view.node(index) {
            None => NodeState { unusable: true, ..NodeState::default() },
            Some(node) => NodeState {
                in_flight: node.in_flight(),
                broken: node.is_broken(),
                answering: node.is_answering(),
                tried: attempts.has_tried(node),
                unusable: false,
            },
        };
        let chosen = routing::choose(view.topology(), &query, state).and_then(|it| view.node(it));
        match chosen {
            Some(node) => Some(node.clone()),
            // Before the first layout, nobody but the configured addresses is known.
            None if view.topology().nodes().is_empty() => {
                let rank = |it: &&Arc<Node>| (it.is_broken(), attempts.has_tried(it));
                view.seeds().iter().min_by_key(rank).cloned()
            }
            None => None,
        }
    }

    async fn attempt<C: Call>(
        &self,
        node: &Node,
        request: C::Request,
        budget: Duration,
        trace: Option<&MetadataValue<Ascii>>,
    ) -> Result<C::Response, Failure> {
        let mut request = Request::new(request);
        self.set_headers(&mut request, budget, trace);
        let bytes_max = self.config().message_bytes_max;
        let response = send_within(
            node,
            budget,
            |channel| C::send(channel, bytes_max, request),
            |was_sent| out_of_time(C::WRITES, was_sent, budget),
        );
        Ok(response.await?.into_inner())
    }

    /// Sets the deadline and the trace context of a request.
    pub(crate) fn set_headers<T>(
        &self,
        request: &mut Request<T>,
        budget: Duration,
        trace: Option<&MetadataValue<Ascii>>,
    ) {
        match self.timeout_header(budget) {
            Some(prepared) => drop(request.metadata_mut().insert("grpc-timeout", prepared)),
            None => request.set_timeout(budget),
        }
        if let Some(trace) = trace {
            request.metadata_mut().insert("traceparent", trace.clone());
        }
    }

    /// Notes what a failed attempt says of its node and of the cluster.
    pub(crate) fn learn_from(&self, node: &Node, failure: &Failure) {
        self.observe(failure.error.clock);
        let lost = failure.error.reason == Reason::ConnectionLost;
        if failure.progress == Progress::Answered {
            node.note_answer();
        } else if lost {
            tracing::debug!(node = %node.address(), error = %failure.error, "connection lost");
            node.note_broken();
        }
        let outdated = matches!(
            failure.error.reason,
            Reason::KeyspaceNotFound | Reason::NoLayout | Reason::Draining | Reason::StorageFailed
        );
        if lost || outdated {
            self.wake_background();
        }
    }

    /// Notes an answer, and compares who coordinated with who was asked: they differ when the layout
    /// has changed.
    pub(crate) fn note_answer(&self, node: &Arc<Node>, coordinator: Option<u32>) {
        node.note_answer();
        let Some(coordinator) = coordinator else { return };
        let known = u16::try_from(coordinator).ok().map(model::NodeIndex);
        let view = self.view();
        let as_known = known
            .and_then(|it| view.node(it))
            .is_some_and(|it| Arc::ptr_eq(it, node) || !view.is_in_layout(node));
        if !as_known && !view.topology().nodes().is_empty() {
            self.wake_background();
        }
    }

    /// Merges a clock that a node told (P1).
    pub(crate) fn observe(&self, clock: u64) {
        // Mostly it is not above: a read spares the cache line that a write would take.
        if clock > self.clock() {
            self.clock_cell().fetch_max(clock, Ordering::Relaxed);
        }
    }
}

/// Sends a call to a node, whatever the node makes of its deadline, and tells how far it got if it fails: time
/// that is up before there is a connection proves that it was never sent. `late` makes its error, and is told
/// whether it was.
pub(crate) async fn send_within<T, F: Future<Output = Result<T, Status>>>(
    node: &Node,
    budget: Duration,
    send: impl FnOnce(Channel) -> F,
    late: impl FnOnce(bool) -> CallError,
) -> Result<T, Failure> {
    let is_connected = AtomicBool::new(false);
    // The futures are pinned where they are made: moving them would cost more than all else here.
    let mut sending = pin!(async {
        let channel = node.open().await.map_err(|it| Status::from_error(Box::new(it)))?;
        is_connected.store(true, Ordering::Relaxed);
        send(channel).await
    });
    let mut time_is_up = pin!(tokio::time::sleep(budget));
    let answer = poll_fn(|context| match sending.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => time_is_up.as_mut().poll(context).map(|()| None),
    });
    match answer.await {
        Some(answer) => answer.map_err(|status| failure(&status)),
        None => {
            let was_sent = is_connected.load(Ordering::Relaxed);
            let progress = if was_sent { Progress::NoAnswer } else { Progress::NeverTaken };
            Err(Failure { progress, error: late(was_sent) })
        }
    }
}

/// Tells how far a call got, by the error that tonic made of it.
pub(crate) fn failure(status: &Status) -> Failure {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(why) = never_taken(error) {
            let message = format!("{why}: {}", innermost_message(status));
            let mut error = CallError::new(Reason::ConnectionLost, message);
            error.outcome = CallOutcome::NotApplied;
            return Failure { progress: Progress::NeverTaken, error };
        }
        source = error.source();
    }
    let mut error = CallError::from(status);
    // With a source it was made on this side, by the transport: no node said this.
    if status.source().is_some() && error.reason == Reason::Other {
        error.reason = Reason::ConnectionLost;
    }
    let lost = error.reason == Reason::ConnectionLost;
    if lost && status.source().is_some() {
        error.message = format!("the connection broke: {}", innermost_message(status));
    }
    Failure { progress: if lost { Progress::NoAnswer } else { Progress::Answered }, error }
}

/// Why an error proves that no node has begun with the call, if it does.
///
/// A GOAWAY turns away the streams above the last that it names (RFC 9113, 6.8). The library gives its
/// error to one more call at most: one of which only the head has gone out, and hyper does not send its
/// body any more, without which no node begins. A stream that was reset proves nothing: proxies use
/// REFUSED_STREAM to have calls repeated that a node may have seen.
fn never_taken(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if error.is::<tonic::ConnectError>() {
        return Some("cannot connect");
    }
    let turned_away = |it: &h2::Error| it.is_go_away() && it.is_remote();
    error.downcast_ref().is_some_and(turned_away).then_some("the node was closing the connection")
}

/// What the operating system or the library said first: the innermost cause.
fn innermost_message(status: &Status) -> String {
    let mut innermost = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        innermost = error.to_string();
        source = error.source();
    }
    innermost
}

/// The error of a call whose time is up. Where it was not sent that says nothing of the node: connecting may take
/// longer than the call has.
pub(crate) fn out_of_time(writes: bool, was_sent: bool, budget: Duration) -> CallError {
    if was_sent {
        return no_answer_in_time(writes, budget);
    }
    let message =
        format!("there was no connection within {budget:?}, which was all the time there was");
    CallError::new(Reason::DeadlinePassed, message)
}

pub(crate) fn no_answer_in_time(writes: bool, budget: Duration) -> CallError {
    let reason = if writes { Reason::WriteTimeout } else { Reason::ReadTimeout };
    let mut error = CallError::new(reason, format!("the node did not answer within {budget:?}"));
    error.outcome = CallOutcome::Unknown;
    error
}
