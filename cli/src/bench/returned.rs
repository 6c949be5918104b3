//! Nodes that come back under load, and what clients notice of it.

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use super::{
    bar::BarDocument,
    keys::KeySpace,
    latency::spell_us,
    load::{Kind, Load, Measured},
};
use crate::{
    failure::Exit,
    output::{Output, Paint},
    values::{self, spell_count, spell_duration},
};

/// The load, and what is written while nodes are away.
#[derive(Clone, Debug, Args)]
pub(super) struct ReturnArgs {
    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = values::size)]
    value_size: usize,

    /// Per cent of the keys that are written while nodes are away
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(super) behind: u64,

    /// Clients of the load, half of their calls reads; each calls again as soon as it has its answer
    #[arg(long, value_name = "N", default_value = "16")]
    clients: NonZeroUsize,

    /// How long the load is measured before nodes are stopped
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    duration: Duration,

    /// The folder for the nodes' data [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) folder: Option<PathBuf>,
}

impl ReturnArgs {
    /// The load over so many keys.
    pub(super) fn load(&self, keys: u64) -> Load {
        Load {
            clients: self.clients.get(),
            rate: None,
            warm_up: Duration::from_secs(2),
            duration: self.duration,
            read_share: 0.5,
            batch: 1,
            space: KeySpace::uniform(keys, self.value_size),
        }
    }
}

/// Nodes that came back while the others were under load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Returned {
    /// Keys that were written while they were down, beside those of the load.
    pub(super) keys: u64,
    /// From their start until all replicas were the same.
    pub(super) took_ms: f64,
    /// While all were up.
    pub(super) before: Latency,
    /// From their start until all replicas were the same.
    pub(super) meanwhile: Latency,
    /// Calls that failed, by reason.
    errors: BTreeMap<String, u64>,
}

/// What the clients noticed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    p99_us: BTreeMap<Kind, f64>,
    calls_per_second: f64,
}

impl Latency {
    fn new(measured: &Measured) -> Self {
        let p99 = measured.tallies.iter().map(|(kind, it)| (*kind, it.latencies.quantile_us(0.99)));
        Self { p99_us: p99.collect(), calls_per_second: measured.calls_per_second() }
    }
}

/// What a p99 may be at most, over that before.
const P99_RATIO_MAX: f64 = 2.0;

impl Returned {
    /// Of what was measured before and meanwhile.
    pub(super) fn new(keys: u64, took_ms: f64, before: &Measured, meanwhile: &Measured) -> Self {
        let tallies = before.tallies.values().chain(meanwhile.tallies.values());
        let mut errors = BTreeMap::new();
        for (reason, count) in tallies.flat_map(|it| &it.errors) {
            *errors.entry(reason.clone()).or_default() += count;
        }
        let (before, meanwhile) = (Latency::new(before), Latency::new(meanwhile));
        Self { keys, took_ms, before, meanwhile, errors }
    }

    /// What clients noticed against what they may.
    pub(super) fn bars(&self, happening: &str) -> [BarDocument; 2] {
        [(Kind::Put, "puts"), (Kind::Get, "gets")].map(|(kind, calls)| {
            let name = format!("p99 of {calls} while {happening}, over before");
            BarDocument::new(name, "", self.p99_ratio(kind), P99_RATIO_MAX)
        })
    }

    /// NaN, which reaches no bar, if there were no such calls.
    fn p99_ratio(&self, kind: Kind) -> f64 {
        let (before, meanwhile) = (self.before.p99_us.get(&kind), self.meanwhile.p99_us.get(&kind));
        before.zip(meanwhile).map_or(f64::NAN, |(before, meanwhile)| meanwhile / before)
    }

    /// In a line, for people.
    pub(super) fn describe(&self) -> String {
        let p99 = |kind| {
            let of = |side: &Latency| side.p99_us.get(&kind).copied().unwrap_or_default();
            let [before, meanwhile] = [&self.before, &self.meanwhile].map(|it| spell_us(of(it)));
            format!("{before} before, {meanwhile} meanwhile")
        };
        format!(
            "under load {} keys in {}: p99 of puts {}, of gets {}; calls/s {:.0} before, {:.0} meanwhile",
            spell_count(self.keys),
            spell_duration(Duration::from_secs_f64(self.took_ms / 1e3)),
            p99(Kind::Put),
            p99(Kind::Get),
            self.before.calls_per_second,
            self.meanwhile.calls_per_second,
        )
    }
}

/// True if every bar is reached, and no call has failed.
pub(super) fn is_held<'a>(
    bars: &[BarDocument],
    mut returned: impl Iterator<Item = &'a Returned>,
) -> bool {
    bars.iter().all(BarDocument::is_held) && returned.all(|it| it.errors.is_empty())
}

/// Tells which calls have failed; how the benchmark ends.
pub(super) fn conclude<'a>(
    held: bool,
    returned: impl Iterator<Item = &'a Returned>,
    output: Output,
) -> Exit {
    for (reason, count) in returned.flat_map(|it| &it.errors) {
        let told = format!("calls that failed with {reason}: {}", spell_count(*count));
        output.note(&output.paint(Paint::Bad, &told));
    }
    if held { Exit::Ok } else { Exit::Failed }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Puts had such a p99, gets half of it.
    pub(in crate::bench) fn returned(before_us: f64, meanwhile_us: f64) -> Returned {
        let latency = |us: f64| Latency {
            p99_us: [(Kind::Put, us), (Kind::Get, us / 2.0)].into(),
            calls_per_second: 1.0,
        };
        let (before, meanwhile) = (latency(before_us), latency(meanwhile_us));
        Returned { keys: 10, took_ms: 1.0, before, meanwhile, errors: BTreeMap::new() }
    }

    #[test]
    fn a_call_that_failed_holds_no_bar() {
        let (bars, mut it) = (returned(100.0, 200.0).bars("a"), returned(100.0, 200.0));
        assert!(is_held(&bars, [&it].into_iter()));
        it.errors.insert("WRITE_TIMEOUT (unknown)".to_owned(), 3);
        assert!(!is_held(&bars, [&it].into_iter()));
    }

    #[test]
    fn what_was_not_measured_reaches_no_bar() {
        let mut it = returned(100.0, 200.0);
        assert!(it.bars("a").iter().all(BarDocument::is_held));
        it.meanwhile.p99_us.remove(&Kind::Put);
        assert_eq!(it.bars("a").map(|it| it.is_held()), [false, true]);
        let described = it.describe();
        assert!(described.contains("p99 of puts 100 us before, 0 us meanwhile"), "{described}");
    }
}
