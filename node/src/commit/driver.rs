//! Runs a committer over its queue: on a thread of its own in a node, as a task in the simulator.
//!
//! Both end when the queue is closed and drained, and both close it when they end for another
//! reason, so that nobody waits for a consumer that is gone. After a failure of the storage they
//! go on, so that every item still gets its refusal.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::thread::{Builder, JoinHandle};

use super::{CommitAnswer, CommitItem, CommitQueue, Committer, queue::GROUP_ITEMS_MAX};
use crate::storage::{Storage, StorageError};

/// Starts the commit thread. `deliver` gets the answers of one group and drains them; `failed` is
/// called for every group that was refused because of the disk, and after
/// [`StorageError::Failed`] the node must stop. Errors if the system gives no thread.
#[expect(
    clippy::disallowed_methods,
    reason = "the commit thread of a real node, which waits for its disk; the simulator runs the task"
)]
pub fn run_on_thread<S: Storage, D: Send + 'static>(
    queue: Arc<CommitQueue<D>>,
    mut committer: Committer<S>,
    mut deliver: impl FnMut(&mut Vec<(D, CommitAnswer)>) + Send + 'static,
    mut failed: impl FnMut(&StorageError) + Send + 'static,
) -> io::Result<JoinHandle<Committer<S>>> {
    Builder::new().name("commit".to_owned()).spawn(move || {
        let consumer = Consumer(queue);
        let (mut group, mut answers) = (Vec::new(), Vec::new());
        while consumer.0.take_blocking(&mut group) {
            let items = group.len();
            write_group(&mut committer, &mut group, &mut answers, &mut failed);
            end_group(&mut group, &mut answers, &mut deliver);
            tend(&mut committer, items, &mut failed);
        }
        committer
    })
}

/// Where a group is while [`run_as_task`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitStage {
    /// Taken from the queue, not yet written.
    Taken,
    /// Written, or refused; nobody has been told.
    Written,
}

/// The same loop for a single-threaded executor, which gets its turn after each group. `pace` is
/// awaited at each stage: it stands for the time that a disk takes. The caller decides by dropping
/// the task that the process has crashed.
pub async fn run_as_task<S: Storage, D>(
    queue: Arc<CommitQueue<D>>,
    mut committer: Committer<S>,
    mut pace: impl AsyncFnMut(CommitStage),
    mut deliver: impl FnMut(&mut Vec<(D, CommitAnswer)>),
    mut failed: impl FnMut(&StorageError),
) -> Committer<S> {
    let consumer = Consumer(queue);
    let (mut group, mut answers) = (Vec::new(), Vec::new());
    while poll_fn(|context| consumer.0.poll_take(context, &mut group)).await {
        let items = group.len();
        pace(CommitStage::Taken).await;
        write_group(&mut committer, &mut group, &mut answers, &mut failed);
        pace(CommitStage::Written).await;
        end_group(&mut group, &mut answers, &mut deliver);
        tend(&mut committer, items, &mut failed);
        yield_once().await;
    }
    committer
}

fn write_group<S: Storage, D>(
    committer: &mut Committer<S>,
    group: &mut Vec<CommitItem<D>>,
    answers: &mut Vec<(D, CommitAnswer)>,
    failed: &mut impl FnMut(&StorageError),
) {
    if let Err(error) = committer.commit(group, answers) {
        failed(&error);
    }
}

fn tend<S: Storage>(
    committer: &mut Committer<S>,
    items: usize,
    failed: &mut impl FnMut(&StorageError),
) {
    if let Err(error) = committer.tend(items) {
        failed(&error);
    }
}

fn end_group<D>(
    group: &mut Vec<CommitItem<D>>,
    answers: &mut Vec<(D, CommitAnswer)>,
    deliver: &mut impl FnMut(&mut Vec<(D, CommitAnswer)>),
) {
    deliver(answers);
    debug_assert!(answers.is_empty(), "deliver drains the answers");
    answers.clear();
    // A group was larger only by what the node wrote about itself.
    group.shrink_to(GROUP_ITEMS_MAX);
    answers.shrink_to(GROUP_ITEMS_MAX);
}

/// Closes the queue when its consumer ends, by return, panic or cancellation.
struct Consumer<D>(Arc<CommitQueue<D>>);

impl<D> Drop for Consumer<D> {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
