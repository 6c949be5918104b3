//! Where the result of an operation goes: to one waiting call, or into its place in a batch.

use std::sync::{Arc, Mutex, PoisonError};

use coordinator::{ReadError, ReadReply, WriteError, WriteReply};
use tokio::sync::oneshot;

use crate::call_bytes::Held;

/// The result of a put or delete.
pub(crate) type WriteDone = Result<WriteReply, WriteError>;
/// The result of a get, and what is held for it until it has been passed on.
pub(crate) type ReadDone = (Result<ReadReply, ReadError>, Held);

/// Where a write's result goes.
pub(crate) type WriteReplyTo = ReplyTo<WriteDone>;
/// Where a read's result goes.
pub(crate) type ReadReplyTo = ReplyTo<ReadDone>;

/// Where a result goes. Nobody listening any more (the client hung up) is no error.
pub enum ReplyTo<T> {
    /// To one call.
    Call(oneshot::Sender<T>),
    /// Into a batch.
    Batch {
        /// The batch.
        batch: Arc<Batch<T>>,
        /// The key's place in it.
        position: usize,
    },
}

impl<T> ReplyTo<T> {
    /// Hands the result over.
    pub fn send(self, result: T) {
        match self {
            Self::Call(call) => drop(call.send(result)),
            Self::Batch { batch, position } => batch.put(position, result),
        }
    }
}

/// The results of a batch, as they come.
pub struct Batch<T> {
    state: Mutex<BatchState<T>>,
}

struct BatchState<T> {
    results: Vec<Option<T>>,
    missing: usize,
    done: Option<oneshot::Sender<Vec<T>>>,
}

impl<T> Batch<T> {
    /// A batch of `keys` results, sent together when the last has come. `keys` is at least 1.
    pub fn new(keys: usize, done: oneshot::Sender<Vec<T>>) -> Arc<Self> {
        let results = std::iter::repeat_with(|| None).take(keys).collect();
        let state = BatchState { results, missing: keys, done: Some(done) };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn put(&self, position: usize, result: T) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.results[position].replace(result).is_none() {
            state.missing -= 1;
        }
        if state.missing == 0
            && let Some(done) = state.done.take()
        {
            let results = std::mem::take(&mut state.results);
            drop(state);
            // A failed send is a client that hung up.
            let _ = done.send(results.into_iter().flatten().collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_answers_once_in_request_order() {
        let (done, mut results) = oneshot::channel();
        let batch = Batch::new(2, done);
        ReplyTo::Batch { batch: Arc::clone(&batch), position: 1 }.send('b');
        assert!(results.try_recv().is_err());
        ReplyTo::Batch { batch, position: 0 }.send('a');
        assert_eq!(results.try_recv().unwrap(), ['a', 'b']);
    }
}
