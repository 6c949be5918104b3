//! The first test of all: a seed decides everything.

use std::collections::BTreeSet;

use sim::{
    replay,
    run::{Report, RunSettings, run},
};

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut hashes = BTreeSet::new();
    for seed in 1..=3 {
        let settings = RunSettings { keep: true, ..RunSettings::of_seed(seed) };
        let (first, second) = (run(&settings), run(&settings));
        assert!(first.operations > 20, "seed {seed}: {} operations", first.operations);
        if (first.log_hash, first.state_hash) != (second.log_hash, second.state_hash) {
            panic!("seed {seed}: {}", differ(&first, &second));
        }
        hashes.insert(first.log_hash);
    }
    assert_eq!(hashes.len(), 3, "a seed that decides nothing would prove nothing");
}

/// Where two runs part, and their logs.
fn differ(first: &Report, second: &Report) -> String {
    let both = first.lines.iter().zip(&second.lines);
    let at = both.take_while(|(one, other)| one == other).count();
    let [one, other] = [first, second].map(|it| it.lines.get(at).map_or("the end", |it| it));
    let logs = [("first", first), ("second", second)].map(|(name, it)| {
        let name = format!("determinism-{}-{name}.log", it.seed);
        replay::tell_log(&replay::keep_log(crate::LOGS.as_ref(), &name, &it.lines))
    });
    let (at, logs) = (at + 1, logs.join("\n  "));
    format!("two runs differ from line {at} on, or in their disks:\n  {one}\n  {other}\n  {logs}")
}
