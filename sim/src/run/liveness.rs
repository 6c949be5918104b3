//! Once everything is healed, every node serves: calls of each kind through each of them.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    time::Duration,
};

use model::ConsistencyLevel as L;
use proto::{CallError, CallOutcome};
use tokio::sync::Notify;

use crate::{log::Log, raw::RawNode, recorder::now};

/// The calls that a run makes through each of its nodes, and what was wrong with them.
#[derive(Default)]
pub(super) struct Serving {
    begun: Notify,
    /// Nodes whose calls have not ended; `None` before the beginning.
    left: Cell<Option<usize>>,
    complaints: RefCell<Vec<String>>,
}

impl Serving {
    /// Calls begin.
    pub(super) fn begin(&self, nodes: usize) {
        self.left.set(Some(nodes));
        self.begun.notify_one();
    }

    /// True once every call has been answered or given up.
    pub(super) fn is_over(&self) -> bool {
        self.left.get() == Some(0)
    }

    /// What was wrong.
    pub(super) fn complaints(&self) -> Vec<String> {
        self.complaints.take()
    }

    /// Waits for the beginning, and calls through so many nodes at a time.
    pub(super) async fn ask(self: Rc<Self>, nodes: usize, log: Log) {
        self.begun.notified().await;
        for node in 0..nodes {
            let (it, log) = (Rc::clone(&self), log.clone());
            tokio::task::spawn_local(async move {
                if let Err(what) = serves(node, &log).await {
                    it.complaints.borrow_mut().push(what);
                }
                it.left.update(|left| left.map(|it| it - 1));
            });
        }
    }
}

/// Puts, gets, deletes and puts at ALL through one node, on a key that nobody else uses.
async fn serves(node: usize, log: &Log) -> Result<(), String> {
    let (raw, key) = (RawNode(node), format!("served by n{}", node + 1));
    let key = key.as_str();
    let patient = Patient { node, log };
    patient.call("put at QUORUM", || raw.put(key, "one", L::Quorum, 0, None)).await?;
    let read = patient.call("get at QUORUM", || raw.get(key, L::Quorum)).await?;
    if read.as_deref() != Some(b"one") {
        return Err(format!("n{} reads {read:?} after a put of \"one\" at QUORUM", node + 1));
    }
    patient.call("delete at QUORUM", || raw.delete(key, L::Quorum)).await?;
    patient.call("put at ALL", || raw.put(key, "two", L::All, 0, None)).await?;
    Ok(())
}

struct Patient<'a> {
    node: usize,
    log: &'a Log,
}

impl Patient<'_> {
    /// Calls again while nothing is applied, for some seconds. An unknown outcome is none to wait for:
    /// nothing is wrong any more.
    async fn call<T, F: Future<Output = Result<T, CallError>>>(
        &self,
        what: &str,
        call: impl Fn() -> F,
    ) -> Result<T, String> {
        let give_up = now() + PATIENCE;
        loop {
            let error = match call().await {
                Ok(it) => return Ok(it),
                Err(it) => it,
            };
            let (name, reason, outcome) =
                (format!("n{}", self.node + 1), error.reason.as_str(), error.outcome);
            self.log.say(now(), format_args!("{what} through {name}: {reason}, {outcome:?}"));
            if outcome != CallOutcome::NotApplied || now() > give_up {
                let message = error.message;
                return Err(format!(
                    "{what} through {name} fails, all being healed: {reason}: {message}"
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// How long a healed node may refuse.
const PATIENCE: Duration = Duration::from_secs(10);
