//! Histories of all kinds with our verdicts, one line of JSON each, for `sim/porcupine` to judge again.
//!
//! `cargo run -p sim --example porcupine-histories -- 2000 1 10` prints 2,000 generated ones from seed 1
//! on, then those of 10 simulated runs, of which every second one has a deliberate bug.

use std::{env, io, ops::Range, process::ExitCode};

use model::Mutant;
use sim::{
    checker::{
        Context,
        generator::{self, HistoryShape},
        porcupine,
    },
    discipline::Discipline,
    run::{self, RunSettings},
    world::EPOCH_MS,
};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).map(|it| it.parse());
    let numbers = [2_000, 1, 0].map(|default| arguments.next().unwrap_or(Ok(default)));
    let [Ok(count), Ok(first), Ok(runs)] = numbers else {
        eprintln!("usage: porcupine-histories [COUNT [SEED [RUNS]]]");
        return ExitCode::FAILURE;
    };
    let to = &mut io::stdout().lock();
    match generate(first..first + count, to).and_then(|()| simulate(first..first + runs, to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Bugs that leave the cluster at work, and its answers wrong.
const BUGS: &[Mutant] = &[
    Mutant::HalfIsAQuorum,
    Mutant::NoConfirmation,
    Mutant::CountOverStamps,
    Mutant::LocalCountsRemote,
    Mutant::AcknowledgedBeforeSync,
];

fn simulate(seeds: Range<u64>, to: &mut impl io::Write) -> io::Result<()> {
    for (number, seed) in seeds.enumerate() {
        let bug = BUGS[number / 2 % BUGS.len()];
        let mutant = Some(bug).filter(|_| !number.is_multiple_of(2));
        let report = run::run(&RunSettings { mutant, keep: true, ..RunSettings::of_seed(seed) });
        let datacenters = report.shape.datacenter_count();
        let context = Context { datacenters, epoch_ms: EPOCH_MS, ..Context::default() };
        porcupine::write(&report.history, &context, to)?;
    }
    Ok(())
}

fn generate(seeds: Range<u64>, to: &mut impl io::Write) -> io::Result<()> {
    for seed in seeds {
        let shape = shape(seed);
        let mut history = generator::history(seed, &shape);
        if !seed.is_multiple_of(3) {
            let _how = generator::spoil(&mut history, seed);
        }
        // Stamps made elsewhere are told apart by their versions.
        if shape.foreign_sessions == 0 && seed.is_multiple_of(2) {
            generator::forget_versions(&mut history);
        }
        let context = Context { epoch_ms: shape.epoch_ms, ..Context::default() };
        porcupine::write(&history, &context, to)?;
    }
    Ok(())
}

/// Few clients and many, few deletes and many, with and without another datacenter.
fn shape(seed: u64) -> HistoryShape {
    let foreign = seed.is_multiple_of(5);
    HistoryShape {
        discipline: if foreign { Discipline::LocalQuorum { home: 0 } } else { Discipline::Quorum },
        sessions: 2 + u32::from(seed.is_multiple_of(4)) * 2,
        foreign_sessions: 2 * u32::from(foreign),
        calls: if seed % 8 < 4 { 20 } else { 8 },
        deletes: if seed % 4 < 2 { 0.05 } else { 0.2 },
        unknown: if seed % 8 < 4 { 0.05 } else { 0.2 },
        ..HistoryShape::default()
    }
}
