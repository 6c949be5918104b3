//! What may happen next, as stateright asks for it.
//!
//! Merged steps lose no violation: an operation begins with its first effect and returns as soon as
//! it may, which only adds to the order in real time; and an answer is heard when it is given, or
//! never, unless delays are among the bounds.

use coordinator::ReadEvent;
use model::{Hlc, Mutant, Record, ReplicaIndex, ReplicaMask, RequestId, Version};
use stateright::{Model, Property};

use super::{
    ALL_RETURN, Bounds, DECIDED, LINEARIZABLE, Memory, SECOND_STAMP, Start, WRITE_BACK,
    history::is_linearizable,
    operation::{Event, Machine, Running},
    state::{REPLICAS, State, Status},
};

/// The executions within some bounds, with a deliberate bug or without one.
#[derive(Clone, Debug)]
pub(super) struct Protocol {
    pub(super) bounds: Bounds,
    pub(super) mutant: Option<Mutant>,
}

/// One step. Replicas go by their present numbers, places by an operation's list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// A put begins, and one replica takes its first message.
    Put { operation: usize, stamp: Version, replica: usize },
    /// A get begins, and hears a replica.
    Get { operation: usize, replica: usize, place: ReplicaIndex },
    /// A put gets the stamp that it needs, and one replica takes it.
    Stamp { operation: usize, stamp: Hlc, replica: usize },
    /// A replica answers a query.
    Query { operation: usize, replica: usize, place: ReplicaIndex },
    /// A replica takes a mutation, of the stamp in force or of the dead one, and answers.
    Mutate { operation: usize, replica: usize, place: ReplicaIndex, dead: bool },
    /// A record reaches a replica, and nobody hears the answer.
    Deliver { version: Version, replica: usize },
    /// An answer that was under way is heard.
    Hear { operation: usize, place: ReplicaIndex },
    /// A replica refuses, or cannot be reached.
    Fail { operation: usize, place: ReplicaIndex },
    /// A get has waited for long.
    Slow { operation: usize },
    /// A replica forgets the versions before the one that its record replaced.
    Forget { replica: usize },
}

/// The first stamp of all, and the distance of those that nothing has to go between: well within
/// what replicas take for a race.
const FIRST_STAMP: Hlc = Hlc(1 << 30);
const DISTANCE: u64 = 1 << 20;
/// The places of an operation's first replicas.
const FIRST: ReplicaIndex = ReplicaIndex(0);
const SECOND: ReplicaIndex = ReplicaIndex(1);
const EVERYWHERE: ReplicaMask = ReplicaMask((1 << REPLICAS) - 1);

impl Protocol {
    fn begin_put(&self, state: &State, operation: usize, steps: &mut Vec<Step>) {
        // An id on each side of those of the puts before.
        let number = u64::try_from(operation).expect("few operations") + 1;
        let ids = [RequestId(100 + number), RequestId(100 - number)];
        let clocks = state.clocks();
        for hlc in self.stamps(&clocks, Hlc::ZERO) {
            let n_ids = if clocks.contains(&hlc) { 2 } else { 1 };
            for request in ids.into_iter().take(n_ids) {
                let stamp = Version { hlc, request };
                let put = |replica| Step::Put { operation, stamp, replica };
                steps.extend(distinct(state).map(put));
            }
        }
    }

    fn begin_get(&self, state: &State, operation: usize, steps: &mut Vec<Step>) {
        let first = if self.places_matter() { EVERYWHERE } else { ReplicaMask::only(FIRST) };
        let first = Running::get().queried.and(first);
        for replica in distinct(state) {
            steps.extend(first.iter().map(|place| Step::Get { operation, replica, place }));
        }
    }

    fn go_on(&self, state: &State, operation: usize, running: &Running, steps: &mut Vec<Step>) {
        if let Some(above) = running.needs_above {
            for stamp in self.stamps(&state.clocks(), above) {
                let give = |replica| Step::Stamp { operation, stamp, replica };
                steps.extend(distinct(state).map(give));
            }
        }
        for replica in distinct(state) {
            let queried = self.places(state, operation, replica, running.queried);
            steps.extend(queried.iter().map(|place| Step::Query { operation, replica, place }));
            let mut mutate = |record: &Option<Record>, to, dead| {
                // A newer one is delivered first, and answered when it comes again.
                let newer = |it: &Record| it.version() > state.version(replica);
                if !record.as_ref().is_none_or(newer) {
                    let to = self.places(state, operation, replica, to);
                    let mutate = |place| Step::Mutate { operation, replica, place, dead };
                    steps.extend(to.iter().map(mutate));
                }
            };
            mutate(&running.record, running.written, false);
            if !self.bounds.delays {
                mutate(&running.dead, EVERYWHERE, true);
            }
        }
        let is_get = matches!(running.machine, Machine::Get(_));
        if self.bounds.failures {
            // What a put has an answer from cannot fail it.
            let asked = running.queried.or(running.written);
            let asked = if is_get { asked } else { last(free(state, operation, asked)) };
            steps.extend(asked.iter().map(|place| Step::Fail { operation, place }));
        }
        if self.bounds.speculation && is_get {
            steps.push(Step::Slow { operation });
        }
        let late = EVERYWHERE.iter().filter(|it| running.late[it.index()].is_some());
        steps.extend(late.map(|place| Step::Hear { operation, place }));
    }

    /// Every clock above another that a new stamp may have: any place in the order of stamps, as
    /// clock skew has no bound; with `ties` also that of another stamp.
    fn stamps(&self, clocks: &[Hlc], above: Hlc) -> Vec<Hlc> {
        let (Some(lowest), Some(highest)) = (clocks.first(), clocks.last()) else {
            return vec![FIRST_STAMP];
        };
        let mut stamps = vec![Hlc(lowest.0 - DISTANCE), Hlc(highest.0 + DISTANCE)];
        stamps.extend(clocks.windows(2).map(|it| Hlc(it[0].0.midpoint(it[1].0))));
        stamps.extend(clocks.iter().filter(|_| self.bounds.ties));
        stamps.retain(|it| *it > above);
        stamps
    }

    /// For which of `asked` a replica may answer: for its own place if it has one, else for any that
    /// is free. Where those are alike, the first stands for all.
    fn places(
        &self,
        state: &State,
        operation: usize,
        replica: usize,
        asked: ReplicaMask,
    ) -> ReplicaMask {
        if let Some(own) = state.replicas[replica].places[operation] {
            return ReplicaMask::only(own).and(asked);
        }
        let free = free(state, operation, asked);
        match operation >= self.bounds.puts && self.places_matter() {
            true => free,
            false => free.iter().next().map(ReplicaMask::only).unwrap_or_default(),
        }
    }

    /// To a put its replicas are alike, and so are the two that a get asks, until it asks the third.
    fn places_matter(&self) -> bool {
        self.bounds.speculation || self.bounds.failures
    }
}

/// The replicas that differ: of those that are equal the first.
fn distinct(state: &State) -> impl Iterator<Item = usize> {
    (0..REPLICAS).filter(|it| *it == 0 || state.replicas[*it] != state.replicas[*it - 1])
}

/// The places that an operation has heard nothing from.
fn free(state: &State, operation: usize, of: ReplicaMask) -> ReplicaMask {
    let taken = state.replicas.iter().filter_map(|it| it.places[operation]);
    of.without(taken.fold(ReplicaMask::EMPTY, |mask, it| mask.or(ReplicaMask::only(it))))
}

fn last(of: ReplicaMask) -> ReplicaMask {
    of.iter().last().map(ReplicaMask::only).unwrap_or_default()
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let (put, get) = (0, self.bounds.puts);
        let stamp = Version { hlc: FIRST_STAMP, request: RequestId(101) };
        let steps: &[Step] = match self.bounds.start {
            Start::Nothing => &[],
            Start::Read => &[
                Step::Put { operation: put, stamp, replica: 0 },
                Step::Deliver { version: stamp, replica: 0 },
                Step::Get { operation: get, replica: 2, place: FIRST },
                Step::Query { operation: get, replica: 1, place: SECOND },
            ],
            Start::Stale => &[
                Step::Put { operation: put, stamp, replica: 0 },
                Step::Get { operation: get, replica: 0, place: FIRST },
                Step::Deliver { version: stamp, replica: 1 },
                Step::Mutate { operation: put, replica: 1, place: FIRST, dead: false },
                Step::Mutate { operation: put, replica: 2, place: SECOND, dead: false },
            ],
        };
        let taken = |state: State, step: &Step| {
            self.next_state(&state, *step).expect("each of them changes something")
        };
        vec![steps.iter().fold(State::start(), taken)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        Mutant::choose(self.mutant);
        let Bounds { puts, gets, .. } = self.bounds;
        for operation in 0..puts + gets {
            // Operations of one kind are alike: they begin in the order of their numbers.
            let is_next = |it: usize| {
                it == 0 || it == puts || state.operations[it - 1].status != Status::Waiting
            };
            match &state.operations[operation].status {
                Status::Waiting if !is_next(operation) => {}
                Status::Waiting if operation < puts => self.begin_put(state, operation, steps),
                Status::Waiting => self.begin_get(state, operation, steps),
                Status::Running(running) => self.go_on(state, operation, running, steps),
                Status::Returned(_) | Status::Failed => {}
            }
        }
        for replica in distinct(state) {
            let versions = state.sent.iter().map(Record::version);
            let newer = versions.filter(|it| *it > state.version(replica));
            steps.extend(newer.map(|version| Step::Deliver { version, replica }));
            if self.bounds.memory == Memory::Lossy {
                steps.push(Step::Forget { replica });
            }
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        Mutant::choose(self.mutant);
        let (bounds, mut state) = (&self.bounds, before.clone());
        match step {
            Step::Put { operation, stamp, replica } => {
                let put = Running::put(operation, stamp, bounds.query_first);
                state.begin(bounds, operation, put, (replica, FIRST));
            }
            Step::Get { operation, replica, place } => {
                state.begin(bounds, operation, Running::get(), (replica, place));
            }
            Step::Stamp { operation, stamp, replica } => {
                state.stamp(bounds, operation, stamp, (replica, FIRST));
            }
            Step::Query { operation, replica, place } => {
                state.query(bounds, operation, (replica, place));
            }
            Step::Mutate { operation, replica, place, dead } => {
                state.mutate(bounds, operation, (replica, place), dead);
            }
            Step::Deliver { version, replica } => {
                let record = before.sent.iter().find(|it| it.version() == version)?;
                state.deliver(bounds, replica, record);
            }
            Step::Hear { operation, place } => state.hear(operation, place),
            Step::Fail { operation, place } => state.fail(operation, place),
            Step::Slow { operation } => {
                state.tell(operation, Event::Get(ReadEvent::Slow));
            }
            Step::Forget { replica } => state.forget(replica),
        }
        state.settle();
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let decided = |it: &Self, state: &State| {
            let decided = |status: &Status| match status {
                Status::Running(it) => it.stamps < 2 || it.needs_above.is_none(),
                other => *other != Status::Failed,
            };
            !it.bounds.decided
                || state.operations[..it.bounds.puts].iter().all(|it| decided(&it.status))
        };
        let all_return = |it: &Self, state: &State| {
            let operations = &state.operations[..it.bounds.puts + it.bounds.gets];
            operations.iter().all(|it| matches!(it.status, Status::Returned(_)))
        };
        let second_stamp = |it: &Self, state: &State| {
            (0..it.bounds.puts).any(|it| state.running(it).is_some_and(|it| it.stamps > 1))
        };
        let write_back = |it: &Self, state: &State| {
            let gets = it.bounds.puts..it.bounds.puts + it.bounds.gets;
            gets.into_iter().any(|it| state.running(it).is_some_and(|it| it.record.is_some()))
        };
        vec![
            Property::always(LINEARIZABLE, |it, state| is_linearizable(it.bounds.puts, state)),
            Property::always(DECIDED, decided),
            Property::sometimes(ALL_RETURN, all_return),
            Property::sometimes(SECOND_STAMP, second_stamp),
            Property::sometimes(WRITE_BACK, write_back),
        ]
    }
}
