//! The loss of datacenters.

use std::ops::Range;

use model::{ConsistencyLevel as L, Mutant};
use proto::v1::GetClusterStatusRequest;

use super::{
    Failure, Plot, Scenario, Shown,
    executions::steps,
    names,
    script::{Script, ensure, works},
};
use crate::{
    fault::{Fault, TimedFault},
    shape::{Bounds, Shape, datacenter_name},
    workload::PROBED,
    world::{Cut, CutKind, EndKind},
};

/// What three datacenters can do while two of them hear each other, three replicas in each.
const TWO_OF_THREE: &[L] =
    &[L::Any, L::One, L::Two, L::Three, L::Quorum, L::LocalOne, L::LocalQuorum, L::Count(5)];
/// What one of them can do alone.
const ONE_OF_THREE: &[L] = &[L::Any, L::One, L::Two, L::Three, L::LocalOne, L::LocalQuorum];
/// What a datacenter does that has lost one node of three and hears the others.
const ALL_BUT_ALL: &[L] = &[
    L::Any,
    L::One,
    L::Two,
    L::Three,
    L::Quorum,
    L::LocalOne,
    L::LocalQuorum,
    L::EachQuorum,
    L::Count(5),
];
/// What goes on where every node is heard by somebody of each datacenter.
const EVERYTHING: &[L] = PROBED;
const LOCAL: &[L] = &[L::LocalOne, L::LocalQuorum];

pub(super) fn all() -> Vec<Scenario> {
    let mut all = lost();
    all.extend(impaired());
    all.push(last_one_restarts());
    all.push(one_has_missed_much());
    all
}

fn lost() -> Vec<Scenario> {
    let isolated = |datacenter| Fault::Cut(isolation(&[datacenter]));
    let ends = |datacenter| Fault::DatacenterEnd { datacenter, kind: EndKind::PowerLoss };
    vec![
        scenario(
            "datacenter-isolated",
            "The third datacenter hears nobody for eight seconds, and nobody hears it; its clients \
             are with it. Both sides go on at the levels they can meet, and agree again afterwards.",
            vec![lasting(1_000, 8_000, isolated(2))],
            Judged { inside: &[2], inside_goes_on: ONE_OF_THREE, ..Judged::strictly(TWO_OF_THREE) },
        ),
        scenario(
            "datacenter-lost-to-power",
            "The third datacenter loses its power under load, and returns eight seconds later with \
             what its disks had synced.",
            vec![lasting(1_000, 8_000, ends(2))],
            Judged { inside: &[2], ..Judged::strictly(TWO_OF_THREE) },
        ),
        scenario(
            "datacenter-lost-for-good",
            "The third datacenter loses its power and stays away as long as anybody works. The others do \
             without it all the time. It returns for the judges alone, who compare its data.",
            vec![lasting(500, FOR_GOOD_MS, ends(2))],
            Judged {
                inside: &[2],
                faults_ms: 20_000,
                // Who calls later may still be waiting when everything is healed.
                judged_ms: (6_000, 18_300),
                ..Judged::strictly(TWO_OF_THREE)
            },
        ),
        scenario(
            "two-datacenters-lost",
            "Two of three datacenters lose their power. The last one goes on alone with what needs \
             no majority of all.",
            vec![lasting(1_000, 8_000, ends(1)), lasting(1_300, 7_700, ends(2))],
            Judged { inside: &[1, 2], ..Judged::strictly(ONE_OF_THREE) },
        ),
        scenario(
            "coordinators-datacenter-lost-in-a-write",
            "A datacenter whose clients write at every level is lost to power three times, each time \
             with writes under way. Whoever was not answered is not promised anything; nothing that \
             was acknowledged is lost.",
            (0..3).map(|it| lasting(600 + it * 3_000, 1_500, ends(0))).collect(),
            Judged { inside: &[0], ..Judged::loosely(LOCAL) },
        ),
    ]
}

fn impaired() -> Vec<Scenario> {
    let flap = |it: u64| lasting(800 + it * 900, 450, Fault::Cut(isolation(&[2])));
    let split = Fault::Cut(Cut {
        kind: CutKind::Stop,
        from: names(&["n7"]),
        to: names(&["n8", "n9", "clients-dc3"]),
    });
    let skewed =
        (6..9).map(|node| lasting(1_000, 8_000, Fault::ClockJump { node, jump_ms: 3_600_000 }));
    let restarts = (0..9).map(|node| {
        lasting(600 + node as u64 * 1_200, 700, Fault::End { node, kind: EndKind::Crash })
    });
    let stops = (0..9).map(|node| lasting(600 + node as u64 * 2_000, 1_500, Fault::Stop { node }));
    vec![
        scenario(
            "datacenter-flapping",
            "The third datacenter is cut off and heard again, ten times in nine seconds.",
            (0..10).map(flap).collect(),
            Judged {
                inside: &[2],
                inside_goes_on: LOCAL,
                judged_ms: (0, 9_800),
                ..Judged::loosely(LOCAL)
            },
        ),
        scenario(
            "datacenter-split-in-two",
            "One node of the third datacenter stops hearing the two others there, while all other \
             links work. Nothing is refused: who cannot pass a write on says so.",
            vec![lasting(1_000, 8_000, split)],
            Judged { inside: &[2], ..Judged::loosely(EVERYTHING) },
        ),
        scenario(
            "datacenter-slow",
            "Every message between the third datacenter and the others takes 120 ms for eight \
             seconds. Nothing is refused; whoever waits for a quorum of all waits for it.",
            vec![lasting(
                1_000,
                8_000,
                Fault::Slow {
                    from: names(&["n7", "n8", "n9", "clients-dc3"]),
                    to: names(&["n1", "n2", "n3", "n4", "n5", "n6", "clients-dc1", "clients-dc2"]),
                    latency_ms: 120,
                },
            )],
            Judged { inside: &[2], inside_goes_on: ALL_BUT_ALL, ..Judged::loosely(ALL_BUT_ALL) },
        ),
        scenario(
            "datacenter-with-a-skewed-clock",
            "All clocks of the third datacenter jump an hour ahead. Its nodes stop coordinating \
             before they stamp anything, answer as replicas, and coordinate again when their clocks \
             are set right. No record is poisoned (C1, C2, CE30).",
            skewed.collect(),
            Judged { inside: &[2], ..Judged::loosely(TWO_OF_THREE) },
        ),
        scenario(
            "rolling-restart",
            "All nine nodes are killed and started, one after another.",
            restarts.collect(),
            Judged { faults_ms: 12_000, judged_ms: (0, 12_000), ..Judged::loosely(LOCAL) },
        ),
        scenario(
            "rolling-stop",
            "All nine nodes are stopped, as for an upgrade, and started, one after another. Nobody notices \
             but who asks for all replicas.",
            stops.collect(),
            Judged { faults_ms: 20_000, judged_ms: (0, 20_000), ..Judged::loosely(ALL_BUT_ALL) },
        ),
    ]
}

/// What is judged of a failure.
struct Judged {
    inside: &'static [u8],
    inside_goes_on: &'static [L],
    outside_goes_on: &'static [L],
    others_are_refused: bool,
    faults_ms: u64,
    judged_ms: (u64, u64),
}

impl Judged {
    /// These go on outside, and all else is refused.
    fn strictly(outside_goes_on: &'static [L]) -> Self {
        Self {
            inside: &[],
            inside_goes_on: &[],
            outside_goes_on,
            others_are_refused: true,
            faults_ms: 10_000,
            judged_ms: (4_500, 7_000),
        }
    }

    /// These go on outside; all else may work or not.
    fn loosely(outside_goes_on: &'static [L]) -> Self {
        Self { others_are_refused: false, ..Self::strictly(outside_goes_on) }
    }
}

fn scenario(
    name: &'static str,
    story: &'static str,
    faults: Vec<TimedFault>,
    judged: Judged,
) -> Scenario {
    let shape = Shape { faults_ms: judged.faults_ms, sessions: 1, ..Shape::grid(3, 3) };
    let failure = Failure {
        shape,
        faults,
        judged_ms: judged.judged_ms,
        inside: judged.inside,
        inside_goes_on: judged.inside_goes_on,
        outside_goes_on: judged.outside_goes_on,
        others_are_refused: judged.others_are_refused,
    };
    Scenario { name, story, plot: Plot::Failure(failure), shows: &[] }
}

/// Longer than any run: faults end with the work.
const FOR_GOOD_MS: u64 = 600_000;

fn lasting(at_ms: u64, for_ms: u64, fault: Fault) -> TimedFault {
    TimedFault { at_ms, for_ms, fault }
}

/// Some of three datacenters of three nodes, cut from the others.
fn isolation(inside: &[u8]) -> Cut {
    let hosts = |datacenter: u8| {
        let first = u32::from(datacenter) * 3 + 1;
        let nodes = (first..first + 3).map(|it| format!("n{it}"));
        nodes.chain([format!("clients-{}", datacenter_name(datacenter))]).collect::<Vec<_>>()
    };
    let (from, to): (Vec<u8>, Vec<u8>) = (0..3).partition(|it| inside.contains(it));
    Cut {
        kind: CutKind::Stop,
        from: from.into_iter().flat_map(hosts).collect(),
        to: to.into_iter().flat_map(hosts).collect(),
    }
}

fn last_one_restarts() -> Scenario {
    let shape = Shape { wan_ms: 5, disk_ms: 1, clock_offset_ms: 0, ..Shape::grid(3, 3) };
    steps(
        "the-last-datacenter-restarts",
        "One datacenter is lost, then another one, and neither returns. The last one loses its power, \
         too, comes back alone, and serves what it had acknowledged.",
        &shape,
        |it| Box::pin(restart(it)),
        &[Shown { mutant: Mutant::AcknowledgedBeforeSync, says: "was lost: " }],
    )
}

fn one_has_missed_much() -> Scenario {
    let bounds = Bounds { hint_bytes: 1, ..Bounds::default() };
    let shape = Shape { wan_ms: 20, disk_ms: 1, clock_offset_ms: 0, bounds, ..Shape::grid(2, 1) };
    steps(
        "far-records-are-compressed",
        "A datacenter was away and has missed values that say the same over and over. The exchange \
         brings them in far fewer bytes than they have.",
        &Shape { replicas: 1, ..shape },
        |it| Box::pin(missed_much(it)),
        &[Shown { mutant: Mutant::FarUncompressed, says: "of records took" }],
    )
}

async fn missed_much(it: Script) -> Result<(), String> {
    let (keys, value) = (20, "the same ".repeat(500));
    it.end(1, EndKind::PowerLoss).await;
    it.until_missed(0).await?;
    for number in 0..keys {
        let put = it.put(0, &format!("key {number}"), &value, L::LocalQuorum).await;
        works("put", put)?;
    }
    it.start(1).await;
    for number in 0..keys {
        it.within(30, async || {
            let found = it.get(1, &format!("key {number}"), L::LocalOne).await.ok().flatten();
            ensure(found.as_deref() == Some(value.as_bytes()), "a datacenter has not caught up")
        })
        .await?;
    }
    // Counted once a round has ended.
    it.wait(5_000).await;
    let (mut messages, mut records) = (0, 0);
    for node in [0, 1] {
        let status = it.admin(node).get_cluster_status(GetClusterStatusRequest {}).await;
        let counters = status.map_err(|error| error.to_string())?.into_inner().counters;
        let of = |name: &str| counters.get(name).copied().unwrap_or_default();
        messages += of("exchange_bytes_sent") + of("exchange_bytes_received");
        records += of("exchange_record_bytes");
    }
    let told = format!("{records} bytes of records took {messages} bytes of messages");
    ensure(records > 80_000 && messages < records / 2, told)
}

async fn restart(it: Script) -> Result<(), String> {
    let lose = async |nodes: Range<usize>| {
        for node in nodes {
            it.end(node, EndKind::PowerLoss).await;
        }
    };
    it.put_soon(8, "of all", L::EachQuorum).await?;
    lose(6..9).await;
    it.put_soon(3, "of two", L::Quorum).await?;
    let read = it.get_soon(0, "key", L::Quorum).await?;
    ensure(read.as_deref() == Some(b"of two"), format!("\"of two\" was lost: {read:?}"))?;
    lose(3..6).await;
    it.put_soon(0, "of one", L::LocalQuorum).await?;
    // Several: which of them a disk would lose that has not synced them is chance.
    let keys = (0..8).map(|number| format!("key {number}"));
    for key in keys.clone() {
        works("put", it.put(0, &key, "of one", L::LocalQuorum).await)?;
    }
    lose(0..3).await;
    for node in 0..3 {
        it.start(node).await;
    }
    let read = it.get_soon(1, "key", L::LocalQuorum).await?;
    ensure(read.as_deref() == Some(b"of one"), format!("\"of one\" was lost: {read:?}"))?;
    for key in keys {
        let read = it.get_soon(1, &key, L::LocalQuorum).await?;
        ensure(read.as_deref() == Some(b"of one"), format!("\"of one\" was lost: {read:?}"))?;
    }
    it.put_soon(2, "after", L::LocalQuorum).await
}
