use proptest::prelude::*;

use super::*;
use crate::{ConsistencyLevel, DcIndex, Hlc, NodeIndex, ReplicaSet, RequestId};

fn requirement(level: ConsistencyLevel, sizes: &[usize]) -> Option<Requirement> {
    let mut nodes = (0..).map(NodeIndex);
    let dcs = (0..).map(DcIndex).zip(sizes);
    let replicas = ReplicaSet::new(dcs.map(|(dc, n)| (dc, nodes.by_ref().take(*n).collect())));
    Requirement::for_write(level, &replicas, DcIndex(0), true).ok()
}

/// Plays answers into the initials of the outcomes. "A+" is Applied or Held, "A<" Superseded,
/// "A0" Superseded and never newest there, "A-" failed.
fn replay(level: ConsistencyLevel, sizes: &[usize], round: Round, answers: &str) -> String {
    let requirement = requirement(level, sizes).unwrap();
    let mut tally = WriteTally::new(round, ReplicaMask::first(sizes.iter().sum()));
    let mut record = |it: &str| {
        let vote = match &it[1..] {
            "+" => Vote::Held,
            "-" => Vote::Failed,
            never => Vote::Superseded { never: never == "0" },
        };
        tally.record(ReplicaIndex(it.as_bytes()[0] - b'A'), vote);
        format!("{:?}", tally.outcome(&requirement)).remove(0)
    };
    answers.split(' ').map(&mut record).collect()
}

#[test]
fn outcomes() {
    use ConsistencyLevel::{All, EachQuorum, LocalQuorum, One, Quorum};
    use Round::{First, Ordered};
    let check = |level, sizes: &[usize], round, answers, expected| {
        assert_eq!(
            replay(level, sizes, round, answers),
            expected,
            "{level} of {sizes:?}: {answers}"
        );
    };
    check(Quorum, &[3], First, "A+ A+ F+ B+ C-", "PPPRR"); // a repeat, then a stranger: no count
    check(Quorum, &[3], First, "A+ B< C+", "PPR");
    check(Quorum, &[3], First, "A+ B0 C-", "PPL"); // CE6: no rule can ack here
    check(Quorum, &[3], First, "A0 B0", "PD");
    check(Quorum, &[3], First, "A< B< C0", "PLL"); // memories too short: nothing is proved
    check(Quorum, &[3], First, "A- B- C+", "PLL");
    check(Quorum, &[3], Ordered, "A< B0", "PR"); // above what a quorum answered: superseded is fine
    check(Quorum, &[3], Ordered, "A- B-", "PL");
    check(All, &[3], First, "A+ B+ C<", "PPR");
    check(All, &[3], First, "A+ B+ C-", "PPL");
    check(All, &[3], First, "A0 B-", "PP"); // may still be dead
    check(One, &[3], First, "A< B- C+", "PPR");
    check(One, &[3], First, "A0 B0", "PD");
    check(One, &[3], Ordered, "A< B<", "PR");
    check(LocalQuorum, &[3, 3], First, "D+ E+ A+ B+", "PPPR");
    check(LocalQuorum, &[3, 3], First, "A- B- D+", "PLL");
    check(EachQuorum, &[3, 3], First, "A+ B+ D< E<", "PPPR"); // P6: newest at one quorum is enough
    check(EachQuorum, &[3, 3], First, "A0 B0 D+ E0 F0", "PPPPD");
    check(EachQuorum, &[3, 3], First, "A0 B0 D+ E+", "PPPR");
    check(EachQuorum, &[1, 3], First, "A-", "L");
}

/// One answer of each replica, if it has given one.
type Votes = Vec<Option<Vote>>;

/// The counts of one scope, recounted.
struct Recount {
    n: usize,
    required: usize,
    held: usize,
    answers: usize,
    never: usize,
}

fn recount(requirement: &Requirement, votes: &Votes) -> Vec<Recount> {
    let scope = |it: &ScopeRequirement| {
        let members: Vec<Vote> = it.mask.iter().filter_map(|it| votes[it.index()]).collect();
        let count = |keep: &dyn Fn(Vote) -> bool| members.iter().filter(|it| keep(**it)).count();
        Recount {
            n: it.mask.iter().count(),
            required: usize::from(it.required),
            held: count(&|it| it == Vote::Held),
            answers: count(&|it| it != Vote::Failed),
            never: count(&|it| it == Vote::Superseded { never: true }),
        }
    };
    requirement.scopes().iter().map(scope).collect()
}

fn is_reached(round: Round, scopes: &[Recount]) -> bool {
    let majority = |it: &Recount, count: usize| 2 * count > it.n;
    if scopes.iter().any(|it| !majority(it, it.required)) {
        let ordered = |it: &Recount| it.answers >= it.required && majority(it, it.answers);
        let second = round == Round::Ordered && scopes.iter().all(ordered);
        return second || scopes.iter().all(|it| it.held >= it.required);
    }
    let somewhere = round == Round::Ordered || scopes.iter().any(|it| majority(it, it.held));
    somewhere && scopes.iter().all(|it| it.answers >= it.required)
}

/// No majority can ever hold it: those that never will leave fewer than one.
fn is_dead(round: Round, scopes: &[Recount]) -> bool {
    round == Round::First && scopes.iter().all(|it| 2 * (it.n - it.never) <= it.n)
}

const VOTES: [Vote; 4] =
    [Vote::Held, Vote::Superseded { never: true }, Vote::Superseded { never: false }, Vote::Failed];

/// True if some way to complete the votes decides. The dumbest way: all of them are tried.
fn may_decide(requirement: &Requirement, round: Round, votes: &Votes) -> bool {
    match votes.iter().position(Option::is_none) {
        None => {
            let scopes = recount(requirement, votes);
            is_reached(round, &scopes) || is_dead(round, &scopes)
        }
        Some(at) => VOTES.iter().any(|vote| {
            let mut votes = votes.clone();
            votes[at] = Some(*vote);
            may_decide(requirement, round, &votes)
        }),
    }
}

fn expected(requirement: &Requirement, round: Round, votes: &Votes) -> Outcome {
    let scopes = recount(requirement, votes);
    match (is_reached(round, &scopes), is_dead(round, &scopes)) {
        (true, _) => Outcome::Reached,
        (_, true) => Outcome::Dead,
        _ if may_decide(requirement, round, votes) => Outcome::Pending,
        _ => Outcome::Lost,
    }
}

fn levels() -> impl Strategy<Value = ConsistencyLevel> {
    use ConsistencyLevel::{Count, EachQuorum, LocalOne, LocalQuorum, Quorum};
    let counted = (1u8..=5).prop_map(Count);
    prop_oneof![counted, Just(EachQuorum), Just(LocalOne), Just(LocalQuorum), Just(Quorum)]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let few = |it: &Vec<usize>| it.iter().sum::<usize>() <= 5;
    proptest::collection::vec(1usize..=5, 1..=3).prop_filter("at most five replicas", few)
}

proptest! {
    #[test]
    fn outcome_is_that_of_a_recount(
        level in levels(),
        sizes in sizes(),
        ordered: bool,
        answers in proptest::collection::vec((0u8..7, 0usize..4), 0..10),
    ) {
        let Some(requirement) = requirement(level, &sizes) else { return Ok(()) };
        let round = if ordered { Round::Ordered } else { Round::First };
        let replicas: usize = sizes.iter().sum();
        let mut tally = WriteTally::new(round, ReplicaMask::first(replicas));
        let mut votes: Votes = vec![None; replicas];
        for (from, vote) in answers {
            let slot = votes.get_mut(usize::from(from)).filter(|it| it.is_none());
            let awaited = slot.is_some();
            slot.into_iter().for_each(|it| *it = Some(VOTES[vote]));
            prop_assert_eq!(tally.record(ReplicaIndex(from), VOTES[vote]), awaited);
            let expected = expected(&requirement, round, &votes);
            prop_assert_eq!(tally.outcome(&requirement), expected, "{:?} of {:?}", votes, requirement);
        }
    }

    #[test]
    fn ack_and_dead_exclude_each_other(
        level in levels(),
        sizes in sizes(),
        answers in proptest::collection::vec(0usize..4, 5),
    ) {
        let requirement = requirement(level, &sizes).filter(Requirement::is_ordered);
        let Some(requirement) = requirement else { return Ok(()) };
        let mut tally = WriteTally::new(Round::First, requirement.mask());
        for (from, vote) in (0..).zip(answers) {
            tally.record(ReplicaIndex(from), VOTES[vote]);
            let both = tally.is_reached(&requirement, tally.held) && tally.is_dead(&requirement, tally.never);
            prop_assert!(!both, "{:?}", tally);
        }
    }

    #[test]
    fn reads_follow_the_newest(answers in proptest::collection::vec((0u8..6, 0u64..4), 0..12)) {
        let requirement = requirement(ConsistencyLevel::Quorum, &[5]).unwrap();
        let mut tally = ReadTally::default();
        let mut first = [None; 6];
        for (from, hlc) in answers {
            let version = Version { hlc: Hlc(hlc), request: RequestId(0) };
            tally.record(ReplicaIndex(from), version);
            first[usize::from(from)].get_or_insert(version);

            let newest = first.iter().flatten().max().copied().unwrap();
            let count = |keep: &dyn Fn(Version) -> bool| first[..5].iter().flatten().filter(|it| keep(**it)).count();
            prop_assert_eq!(tally.newest(), newest);
            prop_assert_eq!(tally.is_answered(&requirement), count(&|_| true) >= 3);
            prop_assert_eq!(tally.is_confirmed(&requirement), count(&|it| it == newest) >= 3);
            prop_assert_eq!(tally.stale(), tally.answered().without(tally.holding()));
        }
    }
}

#[test]
fn an_adopted_version_is_held_by_its_source_alone() {
    let version = |hlc| Version { hlc: Hlc(hlc), request: RequestId(0) };
    let [a, b, c] = [0, 1, 2].map(ReplicaIndex);
    let mut tally = ReadTally::default();
    tally.record(a, version(10));
    tally.record(b, version(10));
    assert!(!tally.adopt(c, version(10)), "it is known already");
    assert!(tally.adopt(c, version(20)));
    assert_eq!(tally.holding(), ReplicaMask::only(c));
    assert_eq!(tally.stale().len(), 2);
    tally.hold(a);
    assert_eq!(tally.stale(), ReplicaMask::only(b));
}
