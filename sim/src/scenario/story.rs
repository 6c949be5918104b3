//! Plays a scenario, judges it, and tells it as a timeline and a table of what each level could do.

use std::{collections::BTreeMap, time::Duration};

use model::{ConsistencyLevel, Mutant};
use proto::Reason;

use super::{Failure, Plot, Scenario, script};
use crate::{
    checker::Violation,
    fault::Fault,
    run::{Report, RunSettings, run},
    workload::{PROBED, Probe},
};

/// For how long a put may be under way before its coordinator's end, in milliseconds.
const CALL_MS: u64 = 250;

/// A scenario that was played.
#[derive(Clone, Debug)]
pub struct Told {
    /// Broken promises, those of the scenario's own among them. None: it went as it should.
    pub violations: Vec<Violation>,
    /// What happened, in order.
    pub timeline: Vec<String>,
    /// What each level could do, for failures.
    pub availability: Vec<Availability>,
    /// The whole log.
    pub lines: Vec<String>,
}

/// What one level could do for the clients of one side, while everybody knew of the failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// True for clients on the wrong side.
    pub inside: bool,
    /// The level.
    pub level: ConsistencyLevel,
    /// Calls answered, of so many.
    pub writes: (u64, u64),
    /// Calls answered, of so many.
    pub reads: (u64, u64),
    /// Why calls failed, and how often.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Failed writes whose outcome nobody knows.
    pub unknown: u64,
}

/// Plays a scenario, with a deliberate bug if one is given.
pub fn tell(scenario: &Scenario, mutant: Option<Mutant>) -> Told {
    tell_seed(scenario, mutant, None)
}

/// As `tell`, with latencies and interleavings of another seed than the scenario's own.
pub fn tell_seed(scenario: &Scenario, mutant: Option<Mutant>, seed: Option<u64>) -> Told {
    match &scenario.plot {
        Plot::Failure(failure) => {
            tell_failure(failure, mutant, seed.unwrap_or_else(|| seed_of(scenario.name)))
        }
        Plot::Steps { shape, script } => script::play(shape, *script, mutant, seed.unwrap_or(1)),
    }
}

fn tell_failure(failure: &Failure, mutant: Option<Mutant>, seed: u64) -> Told {
    let settings = RunSettings {
        shape: Some(failure.shape.clone()),
        faults: Some(failure.faults.clone()),
        mutant,
        keep: true,
        probes: true,
        ..RunSettings::of_seed(seed)
    };
    let mut report = run(&settings);
    let availability = availability(failure, &report);
    let mut violations = std::mem::take(&mut report.violations);
    violations.extend(judge(failure, &availability));
    let timeline = timeline(&report);
    Told { violations, timeline, availability, lines: report.lines }
}

/// A scenario's seed: another name, another run.
pub(super) fn seed_of(name: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(name.as_bytes())
}

fn availability(failure: &Failure, report: &Report) -> Vec<Availability> {
    let (from_ms, to_ms) = failure.judged_ms;
    let window = report.faults_from_ms + from_ms..report.faults_from_ms + to_ms;
    let mut all = Vec::new();
    for inside in [false, true] {
        for level in PROBED {
            let of_level = |it: &&Probe| {
                let side = failure.inside.contains(&it.datacenter) == inside;
                it.level == *level && side && window.contains(&it.at_ms)
            };
            let mut it = Availability {
                inside,
                level: *level,
                writes: (0, 0),
                reads: (0, 0),
                reasons: BTreeMap::new(),
                unknown: 0,
            };
            for probe in report.probes.iter().filter(of_level) {
                if died_with_its_coordinator(probe, failure, report) {
                    continue;
                }
                let count = if probe.writes { &mut it.writes } else { &mut it.reads };
                count.1 += 1;
                match probe.failure {
                    None => count.0 += 1,
                    Some((reason, not_applied)) => {
                        *it.reasons.entry(reason.as_str()).or_default() += 1;
                        it.unknown += u64::from(probe.writes && !not_applied);
                    }
                }
            }
            if it.writes.1 + it.reads.1 > 0 {
                all.push(it);
            }
        }
    }
    all
}

/// True for a put whose answer was lost because its coordinator ended in the middle: no level can do
/// anything about that, and the client may not send it again.
fn died_with_its_coordinator(probe: &Probe, failure: &Failure, report: &Report) -> bool {
    let ends = failure.faults.iter().filter(|it| matches!(it.fault, Fault::End { .. }));
    let mut in_the_middle = ends.map(|it| report.faults_from_ms + it.at_ms);
    probe.writes
        && probe.failure == Some((Reason::ConnectionLost, false))
        && in_the_middle.any(|it| (probe.at_ms..probe.at_ms + CALL_MS).contains(&it))
}

fn judge(failure: &Failure, availability: &[Availability]) -> Vec<Violation> {
    let mut violations = silent(failure, availability);
    // Who is asked to stop finishes what it has taken.
    let all_say_so = failure.faults.iter().all(|it| matches!(it.fault, Fault::Stop { .. }));
    for it in availability {
        let goes_on = if it.inside { failure.inside_goes_on } else { failure.outside_goes_on };
        let (answered, called) = (it.writes.0 + it.reads.0, it.writes.1 + it.reads.1);
        let side = if it.inside { "inside" } else { "outside" };
        let mut violated = |what: String| {
            let what = format!("{side}, {}: {what}; {:?}", it.level, it.reasons);
            violations.push(Violation::broken("availability", None, what));
        };
        if goes_on.contains(&it.level) {
            if answered < called {
                violated(format!("{answered} of {called} calls answered, and it should go on"));
            }
        } else if failure.others_are_refused {
            if answered > 0 {
                violated(format!("{answered} of {called} calls answered, and it cannot be met"));
            } else if it.unknown > 0 && !goes_on.is_empty() {
                violated(format!("{} writes of unknown outcome, and nothing is sent", it.unknown));
            }
        } else if all_say_so && it.unknown > 0 {
            violated(format!(
                "{} writes of unknown outcome, and who stopped had said so",
                it.unknown
            ));
        }
    }
    violations
}

/// Levels that have to go on and were not called at all: nothing shows that they did.
fn silent(failure: &Failure, availability: &[Availability]) -> Vec<Violation> {
    let inside = if failure.inside.is_empty() { &[][..] } else { failure.inside_goes_on };
    let mut violations = Vec::new();
    for (side, levels) in [(false, failure.outside_goes_on), (true, inside)] {
        for level in levels {
            if !availability.iter().any(|it| it.inside == side && it.level == *level) {
                let side = if side { "inside" } else { "outside" };
                let what = format!("{side}, {level}: nobody called, and it should go on");
                violations.push(Violation::broken("availability", None, what));
            }
        }
    }
    violations
}

/// What happened to nodes and links, and which levels began or ceased to work where.
fn timeline(report: &Report) -> Vec<String> {
    let mut events = report.story.clone();
    let mut working = BTreeMap::new();
    for probe in &report.probes {
        let works = probe.failure.is_none();
        let place = (probe.datacenter, probe.level, probe.writes);
        if working.insert(place, works).unwrap_or(true) != works {
            let kind = if probe.writes { "puts" } else { "gets" };
            let change = match probe.failure {
                None => "work again".to_owned(),
                Some((reason, _)) => format!("fail: {}", reason.as_str()),
            };
            let datacenter = crate::shape::datacenter_name(probe.datacenter);
            events.push((
                Duration::from_millis(probe.at_ms),
                format!("{datacenter}: {kind} at {} {change}", probe.level),
            ));
        }
    }
    events.sort_by_key(|it| it.0);
    lines(&events)
}

/// A story with its times, as the log writes them.
pub(super) fn lines(story: &[(Duration, String)]) -> Vec<String> {
    story.iter().map(|(at, what)| format!("{:>9.3} {what}", at.as_secs_f64())).collect()
}
