//! Reads everything back once all is healed: what was promised must be there, from every datacenter.

use std::{rc::Rc, time::Duration};

use client::Keyspace;
use model::ConsistencyLevel;

use super::{
    KEYSPACE, Load, Phase, REQUEST_TIMEOUT,
    calls::{failed, found},
    connect,
};
use crate::{
    discipline::Discipline,
    history::{Action, Via},
    recorder::{KeyName, Who, now},
};

/// Reads every key at the level of its discipline from one datacenter; the first datacenter then
/// reads at ALL, which repairs every replica.
pub(crate) async fn read_back(load: Rc<Load>, who: Who, seed: u64) {
    load.reach(Phase::ReadBack).await;
    let Some(client) = connect(&load, who.datacenter, seed).await else { return };
    let keyspace = client.keyspace(KEYSPACE);
    let keys = load.recorder.keys();
    let mine: Vec<_> = keys.iter().filter(|it| is_readable(it.discipline, who)).collect();
    for some in mine.chunk_by(|a, b| a.discipline == b.discipline) {
        let level = some[0].discipline.read_levels()[0];
        for chunk in some.chunks(chunk_keys(&load, load.shape.datacenters.len())) {
            read_until_answered(&load, &keyspace, who, chunk, level).await;
        }
    }
    load.read_back.set(load.read_back.get() + 1);
    if who.datacenter == 0 {
        while load.read_back.get() < load.shape.datacenter_count() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let keys: Vec<_> = keys.iter().collect();
        for chunk in keys.chunks(chunk_keys(&load, 2)) {
            read_until_answered(&load, &keyspace, who, chunk, ConsistencyLevel::All).await;
        }
        // Repairs go on behind the answers.
        tokio::time::sleep(Duration::from_secs(2)).await;
        load.phase.set(Phase::Done);
    }
}

/// Keys of one call: few enough for so many batches to fit into one node.
fn chunk_keys(load: &Load, batches: usize) -> usize {
    (load.shape.bounds.operations / batches).clamp(1, 40)
}

/// How long after everything was healed a read may still fail.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_readable(discipline: Discipline, who: Who) -> bool {
    !matches!(discipline, Discipline::LocalQuorum { home } if home != who.datacenter)
}

async fn read_until_answered(
    load: &Load,
    keyspace: &Keyspace,
    who: Who,
    keys: &[&KeyName],
    level: ConsistencyLevel,
) {
    let mut left = keys.to_vec();
    let give_up = now() + PATIENCE;
    let mut last = None;
    while !left.is_empty() && now() < give_up {
        let call = |key: &&KeyName| {
            load.recorder.call(who, key, level, Action::Get, Via::Batch, Some(REQUEST_TIMEOUT))
        };
        let ids: Vec<u64> = left.iter().map(call).collect();
        let results = keyspace.batch_get(left.iter().map(|it| it.key())).consistency(level).await;
        let mut unanswered = Vec::new();
        for ((key, id), result) in left.into_iter().zip(ids).zip(results) {
            let outcome = match result {
                Ok(read) => found(load, key, read.value.as_ref(), read.version),
                Err(error) => {
                    unanswered.push(key);
                    let outcome = failed(&error);
                    last = Some(error);
                    outcome
                }
            };
            load.recorder.returned(id, outcome);
        }
        left = unanswered;
        if !left.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    if let (Some(key), Some(error)) = (left.first(), last) {
        let (count, name) = (left.len(), key.name());
        load.complain(format!(
            "liveness: {count} keys, {name} among them, cannot be read at {level} {PATIENCE:?} after \
             everything was healed: {error}"
        ));
    }
}
