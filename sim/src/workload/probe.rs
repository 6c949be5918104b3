//! Clients that ask at one level, over and over, only to see whether it works.

use std::{rc::Rc, time::Duration};

use model::ConsistencyLevel;
use proto::Reason;

use super::{
    KEYSPACE, Load, Phase,
    calls::{encode, failed, found},
    connect,
};
use crate::{
    discipline::Discipline,
    history::{Action, Outcome, Via},
    recorder::{KeyKind, KeyName, Who, now},
};

/// The levels that are probed.
pub(crate) const PROBED: &[ConsistencyLevel] = &[
    ConsistencyLevel::Any,
    ConsistencyLevel::One,
    ConsistencyLevel::Two,
    ConsistencyLevel::Three,
    ConsistencyLevel::Quorum,
    ConsistencyLevel::All,
    ConsistencyLevel::LocalOne,
    ConsistencyLevel::LocalQuorum,
    ConsistencyLevel::EachQuorum,
    ConsistencyLevel::Count(5),
];

/// What came of one call of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// When it was called, in milliseconds of the run.
    pub at_ms: u64,
    /// The client's datacenter.
    pub datacenter: u8,
    /// At which level.
    pub level: ConsistencyLevel,
    /// A put, or else a get.
    pub writes: bool,
    /// `None` if it was answered; otherwise why not, and whether it is known not to have happened.
    pub failure: Option<(Reason, bool)>,
}

/// Puts and gets at one level until the work is over.
pub(crate) async fn probe(load: Rc<Load>, who: Who, place: u32, seed: u64) {
    load.reach(Phase::Work).await;
    let level = PROBED[usize::try_from(place).expect("few levels")];
    // A key of its own for each datacenter: what loses a race below a quorum says nothing about levels.
    let number = 100 * (1 + u32::from(who.datacenter)) + place;
    let key = KeyName { discipline: Discipline::Mixed, kind: KeyKind::Hot, number };
    let Some(client) = connect(&load, who.datacenter, seed).await else { return };
    let keyspace = client.keyspace(KEYSPACE);
    while load.phase.get() == Phase::Work {
        let value = load.recorder.value();
        let action = Action::Put { value, ttl_ms: None };
        let at_ms = millis();
        let id = load.recorder.call(who, &key, level, action, Via::Single, None);
        let put = keyspace.put(key.key(), encode(value, 0)).consistency(level).send().await;
        let outcome = match &put {
            Ok(written) => Outcome::Written { version: written.version },
            Err(error) => failed(error),
        };
        note(&load, who, level, true, at_ms, &outcome);
        load.recorder.returned(id, outcome);
        if level != ConsistencyLevel::Any {
            let at_ms = millis();
            let id = load.recorder.call(who, &key, level, Action::Get, Via::Single, None);
            let get = keyspace.get(key.key()).consistency(level).send().await;
            let outcome = match &get {
                Ok(read) => found(&load, &key, read.value.as_ref(), read.version),
                Err(error) => failed(error),
            };
            note(&load, who, level, false, at_ms, &outcome);
            load.recorder.returned(id, outcome);
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
}

fn note(
    load: &Load,
    who: Who,
    level: ConsistencyLevel,
    writes: bool,
    at_ms: u64,
    outcome: &Outcome,
) {
    let failure = match outcome {
        Outcome::NotApplied { reason } => Some((*reason, true)),
        Outcome::Unknown { reason: Some(reason), .. } => Some((*reason, false)),
        _ => None,
    };
    let datacenter = who.datacenter;
    load.probes.borrow_mut().push(Probe { at_ms, datacenter, level, writes, failure });
}

fn millis() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}
