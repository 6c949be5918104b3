//! The checker against a dumb one that tries every order, and against histories of known making.

use model::{Hlc, RequestId, Version};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Verdict, judge, order, search, zones};
use crate::{
    checker::{
        Context,
        generator::{self, HistoryShape},
        key::KeyHistory,
        register::{ABSENT, Access, PENDING, Register, State, Step},
        regular,
    },
    discipline::Discipline,
    history::{Action, Operation, Outcome, Via},
};

const STATES_MAX: usize = 100_000;

/// Tries every order of the complete steps, with any of the pending ones.
fn dumb(register: &Register<'_>) -> bool {
    fn goes_on(register: &Register<'_>, left: &[Step<'_>], state: State) -> bool {
        if left.iter().all(|it| it.ret == PENDING) {
            return true;
        }
        let first_return = left.iter().map(|it| it.ret).min().unwrap_or(PENDING);
        (0..left.len()).any(|at| {
            let step = left[at];
            let after = match step.access {
                Access::Write(written) => Some(written),
                Access::Read(read) if read == state => Some(state),
                Access::Read(ABSENT) if register.absent_from[state] <= step.ret => Some(state),
                Access::Read(_) => None,
            };
            let mut rest = left.to_vec();
            rest.remove(at);
            step.call <= first_return && after.is_some_and(|it| goes_on(register, &rest, it))
        })
    }
    goes_on(register, &register.steps, ABSENT)
}

/// Operations that nobody had in mind. Versions fit nothing but the values that they name.
fn arbitrary(seed: u64) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(seed);
    let count = random.random_range(1..8);
    // Unique by their counters; early enough for some values to expire.
    let stamps = (0..count).map(|it| Hlc(Hlc::from_ms(random.random_range(1..12)).0 + it));
    let stamps: Vec<_> = stamps.map(|hlc| Version { hlc, request: RequestId(1) }).collect();
    let actions: Vec<_> = (0..count)
        .map(|it| match random.random_range(0..8) {
            0..3 => Action::Put { value: it + 1, ttl_ms: random.random_bool(0.2).then_some(2) },
            3 => Action::Delete,
            _ => Action::Get,
        })
        .collect();
    let mut operations = Vec::new();
    for (id, action) in (0..count).zip(&actions) {
        let called_us = random.random_range(0..12) * 1_000;
        let returned_us = called_us + random.random_range(0..6) * 1_000;
        let place = usize::try_from(random.random_range(0..count)).unwrap();
        let own = usize::try_from(id).unwrap();
        let told = random.random_bool(0.7);
        let expires = matches!(action, Action::Put { ttl_ms: Some(_), .. });
        let outcome = match (action, actions[place]) {
            (Action::Get, Action::Put { value, .. }) if random.random_bool(0.9) => {
                Outcome::Found { value: Some(value), version: told.then_some(stamps[place]) }
            }
            (Action::Get, Action::Get) => {
                Outcome::Found { value: None, version: told.then_some(Version::ABSENT) }
            }
            (Action::Get, _) => {
                Outcome::Found { value: None, version: told.then_some(stamps[place]) }
            }
            _ if random.random_bool(0.3) => {
                let versions = (told && !expires).then(|| vec![stamps[own]]);
                Outcome::Unknown { reason: None, answered: told, versions }
            }
            _ => Outcome::Written { version: stamps[own] },
        };
        operations.push(Operation {
            id,
            session: 0,
            datacenter: 0,
            key: "quorum".into(),
            discipline: Discipline::Quorum,
            level: model::ConsistencyLevel::Quorum,
            action: *action,
            via: Via::Scan,
            request: None,
            tries: 1,
            called_us,
            deadline_us: None,
            returned_us: Some(returned_us),
            outcome,
            purges: false,
        });
    }
    operations
}

fn with_register<T>(operations: &[Operation], ask: impl FnOnce(&Register<'_>) -> T) -> T {
    let context = Context { clock_offset_max_ms: 0, ..Context::default() };
    let keys = KeyHistory::all(operations);
    ask(&Register::of(&keys[0], &context))
}

#[test]
fn agrees_with_every_order_tried() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..60_000 {
        let operations = arbitrary(seed);
        with_register(&operations, |register| {
            let expected = dumb(register);
            let verdict = judge(register, STATES_MAX);
            let told = matches!(verdict, Verdict::Linearizable);
            assert_eq!(told, expected, "seed {seed}: {verdict:?} of {operations:#?}");
            assert!(!matches!(verdict, Verdict::Undecided(_)), "seed {seed}");
            *if expected { &mut good } else { &mut bad } += 1;
        });
    }
    assert!(good > 44_000 && bad > 14_000, "{good} good and {bad} bad ones");
}

/// The cheap ways may leave a question open, and must not answer it differently.
#[test]
fn each_way_agrees_with_every_order_tried() {
    let mut answers = [0; 4];
    for seed in 0..60_000 {
        let operations = arbitrary(seed);
        with_register(&operations, |register| {
            let expected = dumb(register);
            let resolved = register.resolve();
            if order::proves(&resolved) {
                answers[0] += 1;
                assert!(expected, "seed {seed}: the order of versions of {operations:#?}");
            }
            if let Some(what) = regular::irregular(register) {
                answers[1] += 1;
                assert!(!expected, "seed {seed}: {what}");
                return;
            }
            match zones::judge(&resolved) {
                Some(Verdict::Linearizable) => {
                    answers[2] += 1;
                    assert!(expected, "seed {seed}: zones of {operations:#?}");
                }
                Some(verdict) => {
                    answers[2] += 1;
                    assert!(!expected, "seed {seed}: {verdict:?}");
                }
                None => {}
            }
            answers[3] += 1;
            let found = search::judge(&resolved, STATES_MAX) == Verdict::Linearizable;
            assert_eq!(found, expected, "seed {seed}: the search in {operations:#?}");
        });
    }
    let least = [29_000, 13_000, 26_000, 44_000];
    let tried = answers.iter().zip(least).all(|(it, least)| *it > least);
    assert!(tried, "each way is tried: {answers:?} of {least:?}");
}

#[test]
fn versions_change_no_verdict() {
    let mut violated = 0;
    for seed in 0..400 {
        let mut history =
            generator::history(seed, &HistoryShape { calls: 8, ..HistoryShape::default() });
        if seed % 2 == 1 {
            let _ = generator::spoil(&mut history, seed);
        }
        let with = with_register(&history, |it| judge(it, STATES_MAX));
        generator::forget_versions(&mut history);
        let without = with_register(&history, |it| judge(it, STATES_MAX));
        let kind = std::mem::discriminant::<Verdict>;
        assert_eq!(kind(&with), kind(&without), "seed {seed}: {with:?}, {without:?}");
        violated += usize::from(matches!(with, Verdict::Violated(_)));
        assert!(seed % 2 == 1 || with == Verdict::Linearizable, "seed {seed}: {with:?}");
    }
    assert!(violated > 105, "{violated} of 200 spoiled histories");
}

/// What versions were given for: with a certain outcome of each write they always suffice.
#[test]
fn the_order_of_versions_proves_good_histories() {
    for seed in 0..300 {
        let shape =
            HistoryShape { unknown: 0.0, scans: 0.3, deletes: 0.15, ..HistoryShape::default() };
        let history = generator::history(seed, &shape);
        assert!(with_register(&history, |it| order::proves(&it.resolve())), "seed {seed}");
    }
}

#[test]
fn a_search_that_ends_early_is_undecided() {
    // Deletes without versions: neither the order of versions nor zones decide.
    let mut history =
        generator::history(7, &HistoryShape { deletes: 0.3, ..HistoryShape::default() });
    generator::forget_versions(&mut history);
    with_register(&history, |register| {
        assert_eq!(zones::judge(&register.resolve()), None);
        assert_eq!(judge(register, STATES_MAX), Verdict::Linearizable);
        assert_eq!(judge(register, 3), Verdict::Undecided(3));
    });
}
