//! The first test of all: a seed decides everything.

use sim::run::{RunSettings, run};

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut hashes = Vec::new();
    for seed in 1..=3 {
        let (first, second) = (run(&RunSettings::of_seed(seed)), run(&RunSettings::of_seed(seed)));
        assert!(first.operations > 20, "seed {seed}: {} operations", first.operations);
        assert_eq!(first.log_hash, second.log_hash, "seed {seed}: the logs differ");
        assert_eq!(first.state_hash, second.state_hash, "seed {seed}: the disks differ");
        hashes.push(first.log_hash);
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 3, "a seed that decides nothing would prove nothing");
}
