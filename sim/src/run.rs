//! One run: a world, its clients and its faults, from one seed.
//!
//! The shape of each: the cluster is set up, clients warm up, faults come and go while they work,
//! everything is healed, the cluster is left alone, everything is read back, and the checkers judge.

mod convergence;
mod liveness;
pub(crate) mod set_up;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

use liveness::Serving;
use model::Mutant;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    checker::{self, Context, Violation},
    coverage::Coverage,
    fault::{ActiveFaults, TimedFault, draw_faults, heal_all},
    history::Operation,
    inspect::{self, Watch},
    log::Log,
    recorder::{Recorder, Who},
    shape::Shape,
    workload::{self, Load, Phase, Probe},
    world::{CLOCK_OFFSET_MAX_MS, EPOCH_MS, World, late},
};

/// What a run is told. The seed decides the rest.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// The seed.
    pub seed: u64,
    /// The cluster; `None` lets the seed draw one.
    pub shape: Option<Shape>,
    /// The faults; `None` lets the seed draw them.
    pub faults: Option<Vec<TimedFault>>,
    /// A deliberate bug.
    pub mutant: Option<Mutant>,
    /// Keeps the log's lines.
    pub keep: bool,
    /// Clients that probe each level in every datacenter work too.
    pub probes: bool,
}

impl RunSettings {
    /// A run of the mix.
    pub fn of_seed(seed: u64) -> Self {
        Self { seed, shape: None, faults: None, mutant: None, keep: false, probes: false }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// Broken promises. None: the run is clean.
    pub violations: Vec<Violation>,
    /// What was exercised.
    pub coverage: Coverage,
    /// A hash of everything that happened.
    pub log_hash: u64,
    /// A hash of all disks at the end.
    pub state_hash: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Operations of clients.
    pub operations: u64,
    /// The log, if it was kept.
    pub lines: Vec<String>,
    /// What of it happened to the world, with its times, if the log was kept.
    pub story: Vec<(Duration, String)>,
    /// What clients asked and were told; empty if the cluster was not set up.
    pub history: Vec<Operation>,
    /// What probes were told, if there were any.
    pub(crate) probes: Vec<Probe>,
    /// When the faults began, in milliseconds of the run.
    pub faults_from_ms: u64,
}

/// Runs once. A panic anywhere in the cluster is a violation.
pub fn run(settings: &RunSettings) -> Report {
    let mut random = StdRng::seed_from_u64(settings.seed);
    let shape = Shape::draw(&mut random);
    let shape = settings.shape.clone().unwrap_or(shape);
    let faults = settings.faults.clone().unwrap_or_else(|| draw_faults(&mut random, &shape));
    let log = Log::new(settings.keep);
    let mut report = Report {
        seed: settings.seed,
        shape: shape.clone(),
        violations: Vec::new(),
        coverage: Coverage::default(),
        log_hash: 0,
        state_hash: 0,
        simulated_ms: 0,
        operations: 0,
        lines: Vec::new(),
        story: Vec::new(),
        history: Vec::new(),
        probes: Vec::new(),
        faults_from_ms: 0,
    };
    let panicked = catching(settings.mutant, || {
        let mut run = Run::new(random, shape, log.clone(), settings.probes);
        run.play(faults, &mut report);
    });
    report.violations.extend(panicked.err());
    report.log_hash = log.hash();
    report.lines = log.take();
    report.story = log.take_story();
    report
}

/// Does something with a deliberate bug, if one is given. A panic, of any task, is a violation.
pub(crate) fn catching<T>(
    mutant: Option<Mutant>,
    what: impl FnOnce() -> T,
) -> Result<T, Violation> {
    Mutant::choose(mutant);
    let result = catch_unwind(AssertUnwindSafe(what));
    Mutant::choose(None);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Violation::broken("no-panic", None, text.unwrap_or_else(|| "no message".to_owned()))
    })
}

struct Run {
    world: World,
    load: Rc<Load>,
    serving: Rc<Serving>,
    active: ActiveFaults,
    /// When each node was found down that nothing wants down.
    down_since: BTreeMap<usize, u64>,
    violations: Vec<Violation>,
    watch: Watch,
    healed_ms: u64,
}

impl Run {
    fn new(mut random: StdRng, shape: Shape, log: Log, probes: bool) -> Self {
        let load = Load::new(shape.clone(), Recorder::new(log.clone(), shape.bounds.purges()));
        let serving = Rc::new(Serving::default());
        let mut world = World::new(random.random(), shape.clone(), log.clone());
        let mut session = 0;
        for datacenter in 0..shape.datacenter_count() {
            let seeds: Vec<u64> = (0..=shape.sessions).map(|_| random.random()).collect();
            let (load, first) = (Rc::clone(&load), session);
            let late = Rc::clone(&world.late);
            let asking = Rc::clone(&serving).ask(shape.nodes().count(), log.clone());
            load.working.set(load.working.get() + u32::from(shape.sessions));
            // One more reads everything back.
            session += u32::from(shape.sessions) + 1;
            let (set_up, operates) = (random.random(), random.random_ratio(1, 3));
            world.add_clients(async move {
                if datacenter == 0 {
                    set_up::set_up(&load, set_up).await;
                    tokio::task::spawn_local(asking);
                    tokio::task::spawn_local(late::carry(late));
                }
                let probed = if probes { workload::PROBED.len() } else { 0 };
                for place in 0..u32::try_from(probed).expect("few levels") {
                    let session = PROBES_FROM + u32::from(datacenter) * 100 + place;
                    let (who, seed) = (Who { session, datacenter }, set_up ^ u64::from(place));
                    tokio::task::spawn_local(workload::probe(Rc::clone(&load), who, place, seed));
                }
                if operates {
                    tokio::task::spawn_local(workload::operate(
                        Rc::clone(&load),
                        datacenter,
                        set_up,
                    ));
                }
                for (session, seed) in (first..).zip(&seeds[1..]) {
                    let who = Who { session, datacenter };
                    tokio::task::spawn_local(workload::work(Rc::clone(&load), who, *seed));
                }
                let who = Who { session: first + u32::from(load.shape.sessions), datacenter };
                workload::read_back(Rc::clone(&load), who, seeds[0]).await;
                // Its connections are closed by their nodes and its own runtime, which has to run.
                std::future::pending().await
            });
        }
        Self {
            world,
            load,
            serving,
            active: ActiveFaults::default(),
            down_since: BTreeMap::new(),
            violations: Vec::new(),
            watch: Watch::default(),
            healed_ms: 0,
        }
    }

    fn play(&mut self, faults: Vec<TimedFault>, report: &mut Report) {
        let shape = self.world.shape.clone();
        self.load.recorder.log.say(self.world.now(), format_args!("{shape:?}"));
        if self.until(SET_UP_MS, |it| it.load.phase.get() != Phase::SetUp) {
            self.steps(shape.warm_up_ms);
            report.faults_from_ms = self.world.now_ms();
            self.suffer(faults, shape.faults_ms, &mut report.coverage);
            self.load.phase.set(Phase::Quiet);
            let read_back_from = if self.until(END_MS, |it| it.load.working.get() == 0) {
                let mending_ms = self.world.links_whole_ms.saturating_sub(self.world.now_ms());
                self.steps(shape.quiet_ms.max(mending_ms));
                self.violations.extend(inspect::members_agree(&self.world));
                self.violations.extend(inspect::nothing_is_unanswered(&self.world));
                self.replicas_are_filled();
                self.every_node_serves();
                self.replicas_converge();
                self.load.recorder.len()
            } else {
                self.violate("liveness", "clients still wait for answers".to_owned());
                u64::MAX
            };
            self.healed_ms = self.world.now_ms();
            self.load.phase.set(Phase::ReadBack);
            if !self.read_back_ends() {
                self.violate("liveness", "the read-back did not end".to_owned());
                self.load.phase.set(Phase::Done);
            }
            if shape.drains {
                self.steps(DRAIN_MS);
                if !inspect::nothing_is_left(&self.world, &shape).is_empty() {
                    // Nodes greet those that they have joined now and then: what leaks stays.
                    self.steps(DRAINED_AGAIN_MS);
                }
                self.violations.extend(inspect::nothing_is_left(&self.world, &shape));
            }
            self.judge(read_back_from, report);
        } else {
            self.violate("liveness", "the cluster was not set up".to_owned());
        }
        self.end(report);
    }

    /// Replicas whose disk was lost or put back are filled (F7); what they take from then on is stamped
    /// after the fences that they have raised for it.
    fn replicas_are_filled(&mut self) {
        let filled = |it: &Self| inspect::nothing_is_filled(&it.world);
        if !self.world.shape.loses_disk && filled(self) {
            return;
        }
        if !self.until(FILL_MS, filled) {
            self.violate("liveness", format!("{FILL_MS} ms after all was healed a node is filled"));
        }
        self.steps(2 * CLOCK_OFFSET_MAX_MS);
    }

    fn every_node_serves(&mut self) {
        self.serving.begin(self.world.nodes.len());
        if !self.until(END_MS, |it| it.serving.is_over()) {
            self.violate("liveness", "calls through single nodes did not end".to_owned());
        }
        for what in self.serving.complaints() {
            self.violate("liveness", what);
        }
        // A replica takes nothing for a record that is damaged.
        let gone = |it: &Self| inspect::hints_are_gone(&it.world).is_ok();
        if !self.until(HINTS_MS + self.heal_ms(), gone)
            && let Err(what) = inspect::hints_are_gone(&self.world)
        {
            self.violate("hints", format!("{HINTS_MS} ms after everything was healed {what}"));
        }
    }

    fn judge(&mut self, read_back_from: u64, report: &mut Report) {
        self.violations.extend(inspect::trees_are_exact(&self.world));
        let complaints = self.load.complaints.take();
        if complaints.is_empty() {
            self.violations.extend(inspect::replicas_agree(&self.world));
        }
        for what in complaints {
            let checker = if what.starts_with("liveness") { "liveness" } else { "no-invention" };
            self.violate(checker, what);
        }
        report.probes = self.load.probes.take();
        let history = self.load.recorder.take();
        let context = Context {
            datacenters: self.world.shape.datacenter_count(),
            read_back_from: (read_back_from < u64::MAX).then_some(read_back_from),
            converges: read_back_from < u64::MAX,
            disks_lost_until_us: self.world.disks_lost_until_ms * 1_000,
            healed_us: Some(self.healed_ms * 1_000),
            clock_offset_max_ms: CLOCK_OFFSET_MAX_MS + self.world.clocks_off_ms,
            epoch_ms: EPOCH_MS,
            deadline_slack_us: DEADLINE_SLACK_US,
            states_max: STATES_MAX,
        };
        self.violations.extend(checker::check(&history, &context));
        report.coverage.add_history(&history);
        for (told, count) in self.load.operated.take() {
            report.coverage.add("operator", told, count);
        }
        report.operations = history.len() as u64;
        report.history = history;
    }

    fn end(&mut self, report: &mut Report) {
        for node in 0..self.world.nodes.len() {
            self.world.end_node(node, crate::world::EndKind::Crash);
        }
        for end in &self.world.ends {
            report.coverage.add_node(&end.counters);
            self.violations.extend(inspect::alarms(&end.counters, self.world.rotten.is_none()));
        }
        report.state_hash = inspect::state_hash(&self.world);
        report.simulated_ms = self.world.now_ms();
        for violation in &self.violations {
            self.world.say(format_args!("VIOLATION {violation}"));
        }
        report.violations = std::mem::take(&mut self.violations);
    }

    /// Faults come and go.
    fn suffer(&mut self, faults: Vec<TimedFault>, for_ms: u64, coverage: &mut Coverage) {
        let began_ms = self.world.now_ms();
        let mut waiting = faults.into_iter().zip(1_u64..).peekable();
        while self.world.now_ms() < began_ms + for_ms {
            let now_ms = self.world.now_ms() - began_ms;
            while let Some((timed, id)) = waiting.next_if(|it| it.0.at_ms <= now_ms) {
                let TimedFault { fault, for_ms, .. } = timed;
                let struck = self.active.begin(&mut self.world, id, fault, for_ms);
                struck.into_iter().for_each(|it| coverage.add("fault", it, 1));
            }
            self.advance_faults(false, coverage);
            self.step();
        }
        let look = |it: &[Operation]| inspect::hints_are_final(&self.world, it);
        let dead = self.load.recorder.look(look);
        self.violations.extend(dead);
        self.advance_faults(true, coverage);
        heal_all(&mut self.world);
    }

    fn advance_faults(&mut self, ends_all: bool, coverage: &mut Coverage) {
        for name in self.active.advance(&mut self.world, ends_all) {
            coverage.add("fault", name, 1);
        }
        self.load.overload.set(self.active.overload());
    }

    fn steps(&mut self, for_ms: u64) {
        let end_ms = self.world.now_ms() + for_ms;
        while self.world.now_ms() < end_ms {
            self.step();
        }
    }

    /// False if it did not come about within so many milliseconds.
    /// How long it takes depends on the number of keys; that it goes on does not.
    fn read_back_ends(&mut self) -> bool {
        let is_done = |it: &Self| it.load.phase.get() == Phase::Done;
        let mut calls = self.load.recorder.len();
        while self
            .until(END_MS, |it| is_done(it) || it.load.recorder.len() >= calls + READ_BACK_STEP)
        {
            if is_done(self) {
                return true;
            }
            calls = self.load.recorder.len();
        }
        false
    }

    fn until(&mut self, for_ms: u64, condition: impl Fn(&Self) -> bool) -> bool {
        let end_ms = self.world.now_ms() + for_ms;
        while !condition(self) {
            if self.world.now_ms() >= end_ms {
                return false;
            }
            self.step();
        }
        true
    }

    fn step(&mut self) {
        if let Err(error) = self.world.step() {
            panic!("{error}");
        }
        if self.world.now_ms().is_multiple_of(LOOK_MS) {
            let seen = inspect::watch(&self.world, &mut self.watch);
            if self.violations.len() < VIOLATIONS_MAX {
                self.violations.extend(seen);
            }
            self.supervise();
        }
        if self.world.now_ms().is_multiple_of(TELL_MS) {
            self.load.recorder.log.say(self.world.now(), inspect::gauges(&self.world));
        }
    }

    /// Starts again what has ended by itself, a while later.
    fn supervise(&mut self) {
        let now_ms = self.world.now_ms();
        for node in 0..self.world.nodes.len() {
            let down = !self.world.nodes[node].running;
            if !down || self.active.is_wanted_down(&self.world, node) {
                self.down_since.remove(&node);
            } else if now_ms >= *self.down_since.entry(node).or_insert(now_ms) + RESTART_MS {
                self.down_since.remove(&node);
                self.world.start_node(node);
            }
        }
    }

    fn violate(&mut self, checker: &'static str, what: String) {
        self.violations.push(Violation::broken(checker, None, what));
    }
}

/// Sessions of probes, above all others.
const PROBES_FROM: u32 = 1_000;
/// How much later than its deadline a call may be answered: the way back, and a tick or two.
const DEADLINE_SLACK_US: u64 = 500_000;
/// States that the search for one key's linearization may visit.
const STATES_MAX: usize = 2_000_000;
/// How long setting up may take.
const SET_UP_MS: u64 = 20_000;
/// How long calls may take to end, and everything to be read back.
const END_MS: u64 = 60_000;
/// Calls of a read-back within that time, at least.
const READ_BACK_STEP: u64 = 100;
/// How long replicas may be filled: the sources are looked for once a second.
const FILL_MS: u64 = 20_000;
/// How long hints may take to be handed over, behind the quiet time.
const HINTS_MS: u64 = 12_000;
/// In what time nodes notice connections that are dead.
const DRAIN_MS: u64 = 45_000;
const DRAINED_AGAIN_MS: u64 = 1_000;
/// How often the nodes are looked at.
pub(crate) const LOOK_MS: u64 = 50;
/// How often the log tells how the nodes are.
const TELL_MS: u64 = 5_000;
/// How long a supervisor waits.
const RESTART_MS: u64 = 500;
/// More of one kind say nothing more.
pub(crate) const VIOLATIONS_MAX: usize = 20;
