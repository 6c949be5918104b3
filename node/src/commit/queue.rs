//! The queue in front of the commit path: one short lock per frame, bounded, woken only when its
//! consumer sleeps.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use model::Refusal;

use super::CommitItem;

/// The most items of one group. More save no fsyncs worth speaking of, and make everybody wait: a node
/// that has just started reads from disk before every write.
pub(super) const GROUP_ITEMS_MAX: usize = 4_096;

/// Bounds of a queue. A single item always fits an empty queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// The most items waiting, not counting the group being written.
    pub items_max: usize,
    /// The most bytes waiting: keys, records and the items themselves.
    pub bytes_max: usize,
}

impl Default for QueueLimits {
    /// 64 Ki items and 64 MiB: some hundred milliseconds of work while what they replace is in memory,
    /// and seconds when it has to be read first. More than any deadline waits for with profit.
    fn default() -> Self {
        Self { items_max: 64 << 10, bytes_max: 64 << 20 }
    }
}

impl QueueLimits {
    fn half(self) -> Self {
        Self { items_max: self.items_max / 2, bytes_max: self.bytes_max / 2 }
    }
}

/// What a queue did not take, for the caller to answer. Nothing of it was written.
pub struct Rejected<D> {
    /// Why: `Overloaded`, or `Failed` when the queue is closed.
    pub refusal: Refusal,
    /// The items, in their order.
    pub items: Vec<CommitItem<D>>,
}

/// Items on their way to the one consumer. Shared by all loops of a node.
pub struct CommitQueue<D> {
    state: Mutex<State<D>>,
    thread: Condvar,
    limits: QueueLimits,
}

struct State<D> {
    /// What the node has to know about itself, before everything else: no stamp is given meanwhile.
    urgent: Vec<CommitItem<D>>,
    items: VecDeque<CommitItem<D>>,
    bytes: usize,
    closed: bool,
    sleeper: Sleeper,
}

/// Who waits for the queue to fill.
enum Sleeper {
    Nobody,
    Thread,
    Task(Waker),
}

impl<D> CommitQueue<D> {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        let state = State {
            urgent: Vec::new(),
            items: VecDeque::new(),
            bytes: 0,
            closed: false,
            sleeper: Sleeper::Nobody,
        };
        Self { state: Mutex::new(state), thread: Condvar::new(), limits }
    }

    /// Appends what `fill` pushes, whole frames at a time, and wakes the consumer if it sleeps.
    /// `fill` must only push. Mutations and hints beyond the limits come back, and so does
    /// everything when the queue is closed.
    pub fn push(&self, fill: impl FnOnce(&mut VecDeque<CommitItem<D>>)) -> Result<(), Rejected<D>> {
        self.push_within(self.limits, fill)
    }

    /// As [`CommitQueue::push`], for what no client waits for: it finds half of the room only, so that
    /// clients' writes find the other half.
    pub fn push_background(
        &self,
        fill: impl FnOnce(&mut VecDeque<CommitItem<D>>),
    ) -> Result<(), Rejected<D>> {
        self.push_within(self.limits.half(), fill)
    }

    fn push_within(
        &self,
        limits: QueueLimits,
        fill: impl FnOnce(&mut VecDeque<CommitItem<D>>),
    ) -> Result<(), Rejected<D>> {
        let (rejected, sleeper) = {
            let mut state = self.lock();
            let before = state.items.len();
            fill(&mut state.items);
            let rejected = state.admit(before, limits);
            let ready = !state.items.is_empty();
            (rejected, if ready { state.take_sleeper() } else { Sleeper::Nobody })
        };
        self.wake(sleeper);
        rejected.map_or(Ok(()), Err)
    }

    /// Appends a change of what the node knows about itself. It passes all that wait, except its like:
    /// no mutation depends on its place, and a backlog of them must not hold up the clock's ceiling,
    /// without which the node stamps nothing. Comes back when the queue is closed. Whoever sends it
    /// bounds how many there are.
    pub fn push_system(&self, item: CommitItem<D>) -> Result<(), CommitItem<D>> {
        let sleeper = {
            let mut state = self.lock();
            if state.closed {
                return Err(item);
            }
            state.urgent.push(item);
            state.take_sleeper()
        };
        self.wake(sleeper);
        Ok(())
    }

    /// Refuses all later items. What is queued is still written; then the consumer ends.
    pub fn close(&self) {
        let sleeper = {
            let mut state = self.lock();
            state.closed = true;
            state.take_sleeper()
        };
        self.wake(sleeper);
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.urgent.len() + state.items.len()
    }

    /// True if no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks until there are items and moves them into the empty `group`, [`GROUP_ITEMS_MAX`] at
    /// most and the urgent ones besides; false when the queue is closed and drained.
    pub(super) fn take_blocking(&self, group: &mut Vec<CommitItem<D>>) -> bool {
        let mut state = self.lock();
        while state.is_empty() && !state.closed {
            state.sleeper = Sleeper::Thread;
            state = self.thread.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.take(group)
    }

    /// As [`CommitQueue::take_blocking`], for a task.
    pub(super) fn poll_take(
        &self,
        context: &mut Context<'_>,
        group: &mut Vec<CommitItem<D>>,
    ) -> Poll<bool> {
        let mut state = self.lock();
        if state.is_empty() && !state.closed {
            state.sleeper = Sleeper::Task(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.take(group))
    }

    fn wake(&self, sleeper: Sleeper) {
        match sleeper {
            Sleeper::Nobody => {}
            Sleeper::Thread => self.thread.notify_one(),
            Sleeper::Task(waker) => waker.wake(),
        }
    }

    /// A panic of some `fill` leaves whole items behind, so a poisoned lock is still sound.
    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D> State<D> {
    /// Counts the items from `before` on, and takes out again what may not stay.
    fn admit(&mut self, before: usize, limits: QueueLimits) -> Option<Rejected<D>> {
        if self.closed {
            let items = self.items.split_off(before).into();
            return Some(Rejected { refusal: Refusal::Failed, items })
                .filter(|it| !it.items.is_empty());
        }
        let pushed: usize = self.items.range(before..).map(CommitItem::bytes).sum();
        if self.items.len() <= limits.items_max && self.bytes + pushed <= limits.bytes_max {
            self.bytes += pushed;
            return None;
        }
        let mut items = Vec::new();
        for item in self.items.split_off(before) {
            let bytes = item.bytes();
            let fits =
                self.items.len() < limits.items_max && self.bytes + bytes <= limits.bytes_max;
            if fits || self.items.is_empty() || !item.is_refusable() {
                self.bytes += bytes;
                self.items.push_back(item);
            } else {
                items.push(item);
            }
        }
        Some(Rejected { refusal: Refusal::Overloaded, items }).filter(|it| !it.items.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.items.is_empty()
    }

    /// Moves the next group into `group`; false if there was nothing.
    fn take(&mut self, group: &mut Vec<CommitItem<D>>) -> bool {
        debug_assert!(group.is_empty(), "the committer drains its group");
        self.sleeper = Sleeper::Nobody;
        group.append(&mut self.urgent);
        let first = group.len();
        group.extend(self.items.drain(..self.items.len().min(GROUP_ITEMS_MAX)));
        if self.items.is_empty() {
            self.bytes = 0;
            self.items.shrink_to(GROUP_ITEMS_MAX);
        } else {
            self.bytes -= group[first..].iter().map(CommitItem::bytes).sum::<usize>();
        }
        !group.is_empty()
    }

    fn take_sleeper(&mut self) -> Sleeper {
        std::mem::replace(&mut self.sleeper, Sleeper::Nobody)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::commit::HintClass;

    fn system(done: u8) -> CommitItem<u8> {
        let key = Bytes::copy_from_slice(&[done]);
        CommitItem::System { key, value: None, done: Box::new(|_| {}) }
    }

    fn hint(bytes: usize) -> CommitItem<u8> {
        let key = model::Key::new(&b"k"[..]);
        let key = model::StorageKey::encode(model::KeyspaceId(1), key.token(), &key);
        let record = model::Record::encode(&key, model::Version::ABSENT, 0, Some(&vec![0; bytes]));
        let (operation, slot, target) = Default::default();
        CommitItem::Hint {
            destination: 0,
            operation,
            slot,
            target,
            key,
            record,
            class: HintClass::Ordinary,
            replaces: None,
        }
    }

    fn push(queue: &CommitQueue<u8>, items: Vec<CommitItem<u8>>) -> (Option<Refusal>, usize) {
        match queue.push(|it| it.extend(items)) {
            Ok(()) => (None, 0),
            Err(rejected) => (Some(rejected.refusal), rejected.items.len()),
        }
    }

    #[test]
    fn bounded_in_items() {
        let queue = CommitQueue::new(QueueLimits { items_max: 3, bytes_max: usize::MAX });
        assert_eq!(push(&queue, vec![hint(0), hint(0)]), (None, 0));
        let over = vec![hint(0), hint(0), system(1), hint(0)];
        assert_eq!(push(&queue, over), (Some(Refusal::Overloaded), 2));
        assert_eq!(queue.len(), 4, "the system item is taken in any case");
        let mut group = Vec::new();
        assert!(queue.take_blocking(&mut group));
        assert_eq!(group.len(), 4);
        assert_eq!(push(&queue, vec![hint(0)]), (None, 0), "room again");
    }

    #[test]
    fn a_backlog_goes_in_groups_and_what_the_node_needs_passes_it() {
        let queue = CommitQueue::new(QueueLimits { items_max: 10_000, bytes_max: usize::MAX });
        let backlog = std::iter::repeat_with(|| hint(0)).take(GROUP_ITEMS_MAX + 2).collect();
        assert_eq!(push(&queue, backlog), (None, 0));
        let mut group = Vec::new();
        assert!(queue.take_blocking(&mut group));
        assert_eq!(group.len(), GROUP_ITEMS_MAX);
        assert!(queue.push_system(system(1)).is_ok());
        assert!(queue.push_system(system(2)).is_ok());
        assert_eq!(queue.len(), 4);
        group.clear();
        assert!(queue.take_blocking(&mut group));
        let is_system = |it: &CommitItem<u8>| matches!(it, CommitItem::System { .. });
        assert_eq!(group.iter().map(is_system).collect::<Vec<_>>(), [true, true, false, false]);
        assert_eq!(queue.lock().bytes, 0, "what was taken counts no more");
    }

    #[test]
    fn the_bytes_of_a_backlog_count_until_they_are_taken() {
        let bytes_max = hint(100).bytes() * (GROUP_ITEMS_MAX + 1);
        let queue = CommitQueue::new(QueueLimits { items_max: usize::MAX, bytes_max });
        let backlog = std::iter::repeat_with(|| hint(100)).take(GROUP_ITEMS_MAX + 1).collect();
        assert_eq!(push(&queue, backlog), (None, 0));
        assert_eq!(push(&queue, vec![hint(100)]), (Some(Refusal::Overloaded), 1));
        let mut group = Vec::new();
        assert!(queue.take_blocking(&mut group));
        assert_eq!(push(&queue, vec![hint(100)]), (None, 0), "room again");
    }

    #[test]
    fn bounded_in_bytes() {
        let queue = CommitQueue::new(QueueLimits { items_max: 100, bytes_max: 10_000 });
        assert_eq!(push(&queue, vec![hint(20_000)]), (None, 0), "one item always fits");
        assert_eq!(push(&queue, vec![hint(0)]), (Some(Refusal::Overloaded), 1));
        let mut group = Vec::new();
        assert!(queue.take_blocking(&mut group));
        let three = vec![hint(6_000), hint(6_000), hint(0)];
        assert_eq!(push(&queue, three), (Some(Refusal::Overloaded), 1), "the small one still fits");
    }

    #[test]
    fn what_no_client_waits_for_leaves_room() {
        let queue = CommitQueue::new(QueueLimits { items_max: 4, bytes_max: usize::MAX });
        let background = |count: usize| {
            let items = std::iter::repeat_with(|| hint(0)).take(count);
            queue.push_background(|it| it.extend(items)).map_or_else(|it| it.items.len(), |()| 0)
        };
        assert_eq!(background(3), 1);
        assert_eq!(push(&queue, vec![hint(0), hint(0)]), (None, 0), "the other half");
        assert_eq!(background(1), 1);
        assert_eq!(push(&queue, vec![hint(0)]), (Some(Refusal::Overloaded), 1));

        let narrow = CommitQueue::new(QueueLimits { items_max: 1, bytes_max: 1 });
        let alone = narrow.push_background(|it| it.push_back(hint(0)));
        assert!(alone.is_ok(), "one item always fits");
    }

    #[test]
    fn a_closed_queue_is_drained_and_takes_nothing() {
        let queue = CommitQueue::new(QueueLimits::default());
        assert_eq!(push(&queue, vec![system(1)]), (None, 0));
        queue.close();
        assert_eq!(push(&queue, vec![system(2), hint(0)]), (Some(Refusal::Failed), 2));
        assert!(queue.push_system(system(3)).is_err());
        let mut group = Vec::new();
        assert!(queue.take_blocking(&mut group));
        assert_eq!(group.len(), 1);
        group.clear();
        assert!(!queue.take_blocking(&mut group));
    }
}
