//! Histories of all kinds with our verdicts, one line of JSON each, for `sim/porcupine` to judge again.
//!
//! `cargo run -p sim --example porcupine-histories -- 2000 1` prints 2,000 of them from seed 1 on.

use std::{env, io, process::ExitCode};

use sim::{
    checker::{
        Context,
        generator::{self, Shape},
        porcupine,
    },
    discipline::Discipline,
};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).map(|it| it.parse());
    let numbers = [arguments.next().unwrap_or(Ok(2_000)), arguments.next().unwrap_or(Ok(1))];
    let [Ok(count), Ok(first)] = numbers else {
        eprintln!("usage: porcupine-histories [COUNT [SEED]]");
        return ExitCode::FAILURE;
    };
    match print(count, first, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(count: u64, first: u64, to: &mut impl io::Write) -> io::Result<()> {
    for seed in first..first + count {
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
fn shape(seed: u64) -> Shape {
    let foreign = seed.is_multiple_of(5);
    Shape {
        discipline: if foreign { Discipline::LocalQuorum { home: 0 } } else { Discipline::Quorum },
        sessions: 2 + u32::from(seed.is_multiple_of(4)) * 2,
        foreign_sessions: 2 * u32::from(foreign),
        calls: if seed % 8 < 4 { 20 } else { 8 },
        deletes: if seed % 4 < 2 { 0.05 } else { 0.2 },
        unknown: if seed % 8 < 4 { 0.05 } else { 0.2 },
        ..Shape::default()
    }
}
