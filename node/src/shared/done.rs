//! Answers of the commit path on their way to the loops.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::Destination;
use crate::commit::CommitAnswer;

/// The commit path's answers on their way to one loop, those for its peers among them: one wake-up
/// for all of a group, because waking another thread costs more than anything done with an answer.
#[derive(Default)]
pub(crate) struct DoneQueue {
    answers: Mutex<Vec<(Destination, CommitAnswer)>>,
    wake: Notify,
}

impl DoneQueue {
    /// Adds answers, which are drained, and wakes the loop if it has none left.
    pub(crate) fn push(&self, answers: impl Iterator<Item = (Destination, CommitAnswer)>) {
        let was_empty = {
            let mut queue = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let was_empty = queue.is_empty();
            queue.extend(answers);
            was_empty
        };
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Waits until the loop is woken and swaps the answers, if any, with the empty `taken`.
    pub(crate) async fn take(&self, taken: &mut Vec<(Destination, CommitAnswer)>) {
        self.wake.notified().await;
        let mut queue = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, taken);
    }

    /// Wakes the loop for another reason.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }
}
