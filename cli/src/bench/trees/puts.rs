//! What trees cost of a whole put: two clusters of three node processes, one with trees and one without.

use std::time::Duration;

use model::ConsistencyLevel;

use super::{REST, Spent, TreesArgs, turns};
use crate::{
    args::Global,
    bench::{
        cluster::{BenchCluster, KEYSPACE},
        load::{self, Load},
        process::processor_time,
        run::fill,
        target::Target,
    },
    failure::Failure,
    output::Output,
    progress,
};

/// Has both clusters take turns. What each round with trees and without them spent, and how many puts
/// failed.
pub(super) async fn measure(
    args: &TreesArgs,
    global: &Global,
    output: Output,
) -> Result<([Vec<Spent>; 2], u64), Failure> {
    let load = Load {
        clients: args.clients.get(),
        rate: None,
        // All that is used from the first put on counts.
        warm_up: Duration::ZERO,
        duration: args.duration,
        read_share: 0.0,
        batch: 1,
        space: args.space(),
    };
    let mut sides = Vec::new();
    // Comparing replicas costs something of its own, and without trees next to nothing.
    for options in [&[ALONE][..], &[ALONE, "--without-trees"]] {
        sides.push(Side::start(&load, options, global, output).await?);
    }
    let bar = progress::spinner(output, "whole puts");
    let (mut spent, mut failed) = ([Vec::new(), Vec::new()], 0);
    for round in 0..args.rounds.get() {
        bar.set_message(format!("whole puts: round {} of {}", round + 1, args.rounds));
        for at in turns(round) {
            let (took, errors) = sides[at].put(&load).await?;
            spent[at].push(took);
            failed += errors;
        }
    }
    bar.finish_and_clear();
    for side in sides {
        side.cluster.stop().await?;
    }
    Ok((spent, failed))
}

/// One of the clusters.
struct Side {
    cluster: BenchCluster,
    target: Target,
}

impl Side {
    async fn start(
        load: &Load,
        options: &'static [&'static str],
        global: &Global,
        output: Output,
    ) -> Result<Self, Failure> {
        let cluster = BenchCluster::start(None, 1, options).await?;
        cluster.make(global).await?;
        let keyspace = cluster.client(global).await?.keyspace(KEYSPACE);
        let target = Target::Cluster { keyspace, level: Some(ConsistencyLevel::Quorum) };
        fill(load, &target, output).await?;
        Ok(Self { cluster, target })
    }

    /// Puts for a while. What it took, and how many failed.
    async fn put(&self, load: &Load) -> Result<(Spent, u64), Failure> {
        let before = self.processor()?;
        let measured = load::run(load, &self.target, &[]).await?;
        tokio::time::sleep(REST).await;
        let processor = self.processor()?.saturating_sub(before);
        let spent = Spent {
            processor_us: measured.us_per_call(processor),
            per_second: measured.calls_per_second(),
        };
        Ok((spent, measured.errors()))
    }

    /// What the nodes have used so far.
    fn processor(&self) -> Result<Duration, Failure> {
        self.cluster.pids().into_iter().map(processor_time).sum()
    }
}

const ALONE: &str = "--exchange-interval=1h";
