use super::*;

/// What a bad time server makes of a clock.
const FAR_MS: i64 = 3 * 3_600_000;

/// A node with its own wall clock among others, in a time of their own.
struct Cluster {
    watch: ClockWatch,
    true_us: u64,
    own_ms: i64,
    others: Vec<OtherNode>,
    /// How far each of the others is ahead of true time; `None` while it is out of reach.
    offsets: Vec<Option<i64>>,
    round_trip_us: u64,
}

impl Cluster {
    /// So many other nodes of this node's datacenter, and of another one. All can be reached and are
    /// right. Nothing has been compared.
    fn new(local: usize, remote: usize) -> Self {
        let other = |it: usize| OtherNode { node: NodeId(it as u128 + 1), local: it < local };
        let mut it = Self {
            watch: ClockWatch::new(500, Reading { wall: Timestamp(0), elapsed_us: 0 }),
            true_us: 10_000_000,
            own_ms: 0,
            others: (0..local + remote).map(other).collect(),
            offsets: vec![Some(0); local + remote],
            round_trip_us: 2_000,
        };
        it.watch = ClockWatch::new(500, it.now());
        it.watch.look(it.now(), &it.others);
        it
    }

    fn wall(&self, offset_ms: i64) -> Timestamp {
        let true_ms = 1_700_000_000_000 + i64::try_from(self.true_us / 1_000).unwrap();
        Timestamp(u64::try_from(true_ms + offset_ms).unwrap())
    }

    fn now(&self) -> Reading {
        Reading { wall: self.wall(self.own_ms), elapsed_us: self.true_us - 10_000_000 }
    }

    fn look(&mut self) -> ClockState {
        self.watch.look(self.now(), &self.others)
    }

    /// Pings all that can be reached, some time after what was before.
    fn ping(&mut self) -> ClockState {
        self.true_us += 100_000;
        let sent_us = self.now().elapsed_us;
        let peers: Vec<_> = self.offsets.iter().map(|it| it.map(|it| self.wall(it))).collect();
        self.true_us += self.round_trip_us;
        for (it, wall) in self.others.iter().zip(peers) {
            let Some(wall) = wall else { continue };
            let between = Timestamp(wall.0 + self.round_trip_us / 2_000);
            self.watch.measured(it.node, sent_us, self.now(), between);
        }
        self.look()
    }

    /// Lets so many seconds pass, with a ping in each.
    fn run(&mut self, seconds: u64) -> ClockState {
        for _ in 0..seconds {
            self.true_us += 900_000 - self.round_trip_us;
            self.ping();
        }
        self.watch.state()
    }

    /// By how much the time that the node believes differs from true time, give or take a rounding.
    fn believed_off_ms(&self) -> i64 {
        let off_ms = self.watch.believed_ms() - self.now().origin_ms() + self.own_ms;
        if off_ms.abs() <= 3 { 0 } else { off_ms }
    }
}

/// The state after a round of pings, of which some nodes answer none: `l` and `r` are others of the
/// own and of another datacenter, in capitals those that can be reached.
fn started(nodes: &str) -> ClockState {
    let local = nodes.to_lowercase().matches('l').count();
    let mut it = Cluster::new(local, nodes.len() - local);
    for (at, node) in nodes.chars().enumerate() {
        it.offsets[at] = node.is_uppercase().then_some(0);
    }
    it.ping()
}

#[test]
fn a_start_waits_for_a_majority() {
    use ClockState::{Alone, Good, Unverified};
    let check = |nodes, expected| assert_eq!(started(nodes), expected, "{nodes:?}");
    check("", Alone);
    check("l", Alone);
    check("r", Alone);
    check("L", Good);
    check("ll", Unverified);
    check("Ll", Good);
    check("llll", Unverified);
    check("Llll", Unverified);
    check("LLll", Good);
    // The own datacenter's majority will do, once the others have had the time to answer.
    check("llrrr", Unverified);
    check("Llrrr", Unverified);
    check("llRrr", Unverified);
    check("llRRR", Good);
    // This node alone is no majority of anything, even where it is all of its datacenter.
    check("rr", Unverified);
    check("Rr", Good);
    check("rrrr", Unverified);
    check("Rrrr", Unverified);
}

#[test]
fn the_own_datacenter_alone_is_believed_when_the_others_have_had_their_say() {
    let mut it = Cluster::new(2, 6);
    (0..8).for_each(|at| it.offsets[at] = (at < 2).then_some(0));
    assert_eq!(it.ping(), ClockState::Unverified);
    assert_eq!(it.run(1), ClockState::Unverified);
    assert_eq!(it.run(1), ClockState::Good, "nobody else can be reached");
    // The whole datacenter jumps by an hour, with the others in reach.
    let mut it = Cluster::new(2, 6);
    it.run(3);
    it.own_ms = 3_600_000;
    (0..2).for_each(|at| it.offsets[at] = Some(3_600_000));
    (2..8).for_each(|at| it.offsets[at] = None);
    assert_eq!(it.look(), ClockState::Jumped);
    assert_eq!(it.ping(), ClockState::Jumped, "its own answer first");
    (2..8).for_each(|at| it.offsets[at] = Some(0));
    assert_eq!(it.ping(), ClockState::Off);
    assert_eq!(it.run(2), ClockState::Off);
}

#[test]
fn nothing_is_coordinated_before_the_first_answers() {
    let mut it = Cluster::new(2, 0);
    assert_eq!(it.look(), ClockState::Unverified);
    assert!(!it.look().coordinates());
    assert_eq!(it.ping(), ClockState::Good);
    it.others.clear();
    assert_eq!(it.look(), ClockState::Alone, "no layout");
}

#[test]
fn a_jump_is_confirmed_by_pings_sent_since() {
    let mut it = Cluster::new(2, 0);
    assert_eq!(it.run(3), ClockState::Good);
    it.own_ms = 124;
    assert_eq!(it.look(), ClockState::Good, "within a quarter of the bound");
    it.own_ms = 124 + 126;
    assert_eq!(it.look(), ClockState::Jumped, "measured a moment ago, but before the jump");
    assert_eq!(it.believed_off_ms(), 124);
    assert_eq!(it.ping(), ClockState::Good, "the others are near enough");
    assert_eq!(it.believed_off_ms(), 250);
    it.own_ms = -20;
    assert_eq!(it.look(), ClockState::Jumped, "backwards too");
    it.offsets = vec![None, None];
    assert_eq!(it.run(60), ClockState::Jumped, "nobody confirms it");
    it.own_ms = 250;
    assert_eq!(it.look(), ClockState::Good, "the wall clock has come back by itself");
}

#[test]
fn slewing_is_no_jump() {
    let mut it = Cluster::new(2, 0);
    it.run(1);
    for _ in 0..40 {
        it.own_ms += 6;
        assert_eq!(it.run(1), ClockState::Good);
    }
    it.own_ms += 20;
    assert_eq!(it.run(1), ClockState::Off, "but it does not go far");
}

#[test]
fn a_clock_far_off_is_told_by_the_median() {
    let mut it = Cluster::new(2, 2);
    it.run(2);
    for off_ms in [FAR_MS, -FAR_MS, 260, -260] {
        it.own_ms = off_ms;
        assert_eq!(it.look(), ClockState::Jumped);
        assert_eq!(it.ping(), ClockState::Off, "{off_ms}");
        assert_eq!(it.believed_off_ms(), 0, "{off_ms}");
        assert_eq!(it.watch.median_ms(it.now(), &it.others), Some(-off_ms));
        assert_eq!(it.run(20), ClockState::Off);
        it.own_ms = 0;
        assert_eq!(it.look(), ClockState::Good);
    }
    // The clocks of a minority of the others move nothing.
    it.offsets = vec![Some(FAR_MS), Some(FAR_MS), Some(0), Some(0)];
    assert_eq!(it.run(20), ClockState::Good);
    it.offsets = vec![Some(FAR_MS), Some(FAR_MS), Some(FAR_MS), Some(0)];
    assert_eq!(it.run(20), ClockState::Off);
}

#[test]
fn silence_acquits_nobody() {
    // A datacenter whose clocks are wrong alike, and known to be, is cut off.
    let mut it = Cluster::new(2, 6);
    it.run(1);
    it.own_ms = FAR_MS;
    for at in 0..2 {
        it.offsets[at] = Some(FAR_MS);
    }
    assert_eq!(it.run(10), ClockState::Off);
    for at in 2..8 {
        it.offsets[at] = None;
    }
    assert_eq!(it.run(30), ClockState::Off);
    // Set right before its neighbours it does not believe them either, and then needs no other.
    it.own_ms = 0;
    assert_eq!(it.run(10), ClockState::Off);
    it.offsets[0] = Some(0);
    assert!(it.run(1).coordinates());
}

#[test]
fn a_start_hears_all_out() {
    // Another datacenter's first answer comes later than one's own, when links have come up.
    let mut it = Cluster::new(2, 6);
    it.own_ms = FAR_MS;
    it.offsets = vec![None; 8];
    it.true_us += 3_000_000;
    assert_eq!(it.look(), ClockState::Unverified);
    for at in 0..2 {
        it.offsets[at] = Some(FAR_MS);
    }
    assert_eq!(it.ping(), ClockState::Unverified, "its neighbours are not all");
    it.true_us += 900_000;
    assert_eq!(it.ping(), ClockState::Unverified);
    for at in 2..8 {
        it.offsets[at] = Some(0);
    }
    assert_eq!(it.ping(), ClockState::Off);
}

#[test]
fn a_survivor_of_two_follows_its_clock() {
    let mut it = Cluster::new(1, 0);
    it.run(1);
    it.offsets = vec![None];
    it.run(8);
    it.own_ms = 1_000;
    assert_eq!(it.look(), ClockState::Jumped);
    assert_eq!(it.run(4), ClockState::Jumped, "it may come back");
    assert_eq!(it.run(4), ClockState::Alone);
}

#[test]
fn half_of_the_clocks_prove_nothing() {
    let mut it = Cluster::new(3, 0);
    it.run(1);
    it.offsets = vec![Some(FAR_MS), Some(FAR_MS), Some(0)];
    assert_eq!(it.run(20), ClockState::Good);

    // Nor do they confirm one that has jumped to where the other half is.
    let mut it = Cluster::new(1, 2);
    it.run(1);
    it.own_ms = FAR_MS;
    it.offsets = vec![Some(FAR_MS), Some(0), Some(0)];
    assert!(!it.run(20).coordinates());
    it.offsets = vec![Some(FAR_MS), Some(FAR_MS), Some(0)];
    assert_eq!(it.run(20), ClockState::Good);
}

#[test]
fn the_one_in_the_middle_of_clocks_that_all_differ_proves_nothing() {
    // The right one of three goes on, though another lies in the middle.
    let mut it = Cluster::new(2, 0);
    it.run(1);
    it.offsets = vec![Some(FAR_MS), Some(2_000)];
    assert_eq!(it.run(20), ClockState::Disputed);
    assert!(it.watch.state().coordinates());
    it.offsets = vec![Some(0), Some(2_000)];
    assert_eq!(it.run(20), ClockState::Good);

    // The one that has jumped into the middle waits for more than itself.
    let mut it = Cluster::new(2, 0);
    it.run(1);
    it.offsets = vec![Some(FAR_MS), Some(0)];
    it.run(8);
    it.own_ms = 2_000;
    assert_eq!(it.run(20), ClockState::Jumped);
    it.offsets = vec![Some(0), Some(0)];
    assert_eq!(it.run(20), ClockState::Off);
    it.own_ms = 0;
    assert_eq!(it.run(1), ClockState::Good);

    // So does one that starts there.
    let mut it = Cluster::new(2, 0);
    it.offsets = vec![Some(FAR_MS), Some(-2_000)];
    assert_eq!(it.run(20), ClockState::Unverified);
}

#[test]
fn of_two_clocks_nobody_knows_which_is_wrong() {
    let mut it = Cluster::new(1, 0);
    assert_eq!(it.run(1), ClockState::Good);
    it.offsets = vec![Some(FAR_MS)];
    assert_eq!(it.run(6), ClockState::Disputed);
    assert!(it.look().coordinates());
    it.offsets = vec![Some(0)];
    assert_eq!(it.run(8), ClockState::Good);
    // The one that has jumped does know.
    it.own_ms = FAR_MS;
    assert_eq!(it.run(6), ClockState::Jumped);
    it.own_ms = 0;
    assert_eq!(it.run(1), ClockState::Good);

    // So does a cluster that has three, of which one is away; but not at a start.
    let mut it = Cluster::new(2, 0);
    it.offsets = vec![Some(FAR_MS), None];
    assert_eq!(it.run(6), ClockState::Unverified);
    it.offsets = vec![Some(0), None];
    assert_eq!(it.run(8), ClockState::Good);
    it.offsets = vec![Some(FAR_MS), None];
    assert_eq!(it.run(8), ClockState::Disputed);
}

#[test]
fn a_lone_survivor_goes_on() {
    let mut it = Cluster::new(2, 3);
    assert_eq!(it.run(2), ClockState::Good);
    it.offsets = vec![None; 5];
    assert_eq!(it.run(60), ClockState::Good);
}

#[test]
fn a_node_alone_follows_its_clock() {
    let mut it = Cluster::new(0, 0);
    it.own_ms = FAR_MS;
    assert_eq!(it.look(), ClockState::Alone);
    assert_eq!(it.believed_off_ms(), FAR_MS);
}

#[test]
fn clocks_that_jump_together_go_on_together() {
    // CE32: a bad time server.
    let mut it = Cluster::new(2, 0);
    it.run(10);
    it.own_ms = FAR_MS;
    assert_eq!(it.look(), ClockState::Jumped);
    it.offsets = vec![Some(FAR_MS); 2];
    assert_eq!(it.ping(), ClockState::Good, "older samples, as exact, do not hide the newer");
    // This one last: the others seem wrong until their older samples are gone.
    it.offsets = vec![Some(0); 2];
    assert_eq!(it.run(8), ClockState::Off);
    it.own_ms = 0;
    assert_eq!(it.look(), ClockState::Good);
}

#[test]
fn the_most_exact_answer_counts() {
    let mut it = Cluster::new(2, 0);
    it.round_trip_us = 501_000;
    assert_eq!(it.ping(), ClockState::Unverified, "too slow to say anything");
    let exact = it.now();
    it.watch.measured(NodeId(1), exact.elapsed_us - 1_000, exact, it.wall(40));
    let slow = it.now();
    it.watch.measured(NodeId(1), slow.elapsed_us - 400_000, slow, it.wall(-300));
    let offset_ms = it.watch.offset_ms(NodeId(1), it.now()).unwrap();
    assert!((39..=42).contains(&offset_ms), "{offset_ms}");
    assert_eq!(it.watch.offset_ms(NodeId(2), it.now()), None);
    it.true_us += FRESH_US + 1_000;
    assert_eq!(it.watch.offset_ms(NodeId(1), it.now()), None, "long ago");
    // An answer to no ping of ours.
    it.watch.measured(NodeId(2), u64::MAX, it.now(), it.wall(0));
    assert_eq!(it.watch.offset_ms(NodeId(2), it.now()), None);
}
