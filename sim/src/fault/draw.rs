//! Draws what goes wrong from a seed.

use node::commit::CommitStage;
use rand::{
    RngExt,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

use super::{Fault, TimedFault};
use crate::{
    shape::{Shape, datacenter_name},
    world::{Cut, CutKind, EndKind},
};

/// Draws the faults of a run: more of them the longer it is, and overlapping now and then.
pub fn draw_faults(random: &mut StdRng, shape: &Shape) -> Vec<TimedFault> {
    let count = random.random_range(1..=2 + shape.faults_ms / 2_500);
    let mut faults: Vec<_> = (0..count)
        .map(|_| {
            let for_ms = random.random_range(100..=shape.faults_ms.min(8_000) * 2 / 3);
            let at_ms = random.random_range(0..shape.faults_ms - for_ms);
            TimedFault { at_ms, for_ms, fault: draw(random, shape) }
        })
        .collect();
    if shape.loses_disk {
        // One: two at a time would be more than a quorum has to spare.
        let node = random.random_range(0..shape.nodes().count());
        let rolls_back = random.random();
        let for_ms = if rolls_back { 3_000..=5_000 } else { 100..=3_000 };
        let for_ms = random.random_range(for_ms);
        let at_ms = random.random_range(0..shape.faults_ms - for_ms);
        let fault = if rolls_back { Fault::RollBack { node } } else { Fault::Wipe { node } };
        faults.push(TimedFault { at_ms, for_ms, fault });
    }
    // What a sync has not brought to disk is missed only when the power goes.
    let power_goes = |it: &TimedFault| match it.fault {
        Fault::DiskErrors { node, syncs: 1.., .. } => {
            let fault = Fault::End { node, kind: EndKind::PowerLoss };
            Some(TimedFault { at_ms: it.at_ms + it.for_ms * 3 / 4, for_ms: it.for_ms / 4, fault })
        }
        _ => None,
    };
    let power_losses: Vec<_> = faults.iter().filter_map(power_goes).collect();
    faults.extend(power_losses);
    if shape.bounds.purges() && random.random() {
        // Longer than a fence lags: what was in hand may have been purged meanwhile.
        let at_ms = random.random_range(0..shape.faults_ms / 4);
        let for_ms = random.random_range(shape.faults_ms / 2..shape.faults_ms - at_ms);
        let node = random.random_range(0..shape.nodes().count());
        faults.push(TimedFault { at_ms, for_ms, fault: Fault::Late { node, rows: 40 } });
    }
    faults.sort_by_key(|it| it.at_ms);
    let nodes = shape.nodes().count();
    let mut kept: Vec<TimedFault> = Vec::new();
    for fault in faults {
        kept.push(fault);
        // Most clocks wrong alike, but not all: no node could tell, and nothing is promised.
        if most_jump_alike(&kept, nodes) {
            kept.pop();
        }
    }
    kept
}

/// True if more than half of all clocks are off by the same time at any moment.
fn most_jump_alike(faults: &[TimedFault], nodes: usize) -> bool {
    let ends = |it: &TimedFault| it.at_ms + it.for_ms;
    faults.iter().flat_map(|it| [it.at_ms, ends(it)]).any(|at_ms| {
        let mut errors_ms = vec![0; nodes];
        for it in faults.iter().filter(|it| (it.at_ms..ends(it)).contains(&at_ms)) {
            if let Fault::ClockJump { node, jump_ms } = it.fault {
                errors_ms[node] += jump_ms;
            }
        }
        let alike = |error_ms: &i64| errors_ms.iter().filter(|it| *it == error_ms).count();
        errors_ms.iter().any(|it| *it != 0 && alike(it) * 2 > nodes)
    })
}

fn draw(random: &mut StdRng, shape: &Shape) -> Fault {
    let places: Vec<u8> = shape.nodes().collect();
    let node = random.random_range(0..places.len());
    if shape.damages_disks() && random.random_ratio(1, 4) {
        return match random.random_range(0..3) {
            0 => Fault::LostWrites { node, rows: 4, misplaced: false },
            1 => Fault::LostWrites { node, rows: 6, misplaced: true },
            _ => Fault::Rot { node, rows: 10 },
        };
    }
    match random.random_range(0..23) {
        0..=3 => Fault::Cut(draw_cut(random, shape)),
        4 => draw_swizzle(random, places.len()),
        5 => {
            let (from, to) = halves(random, hosts(shape));
            Fault::Slow { from, to, latency_ms: random.random_range(20..=400) }
        }
        6 | 7 => Fault::Resets { node, per_mille: *[2, 10, 50].choose(random).expect("some") },
        8 | 9 => Fault::End { node, kind: draw_end(random) },
        10 => Fault::EndAt {
            node,
            stage: *[CommitStage::Taken, CommitStage::Written].choose(random).expect("some"),
            groups: random.random_range(0..40),
            kind: draw_end(random),
        },
        11 => {
            let datacenter = random.random_range(0..shape.datacenter_count());
            Fault::DatacenterEnd { datacenter, kind: draw_end(random) }
        }
        12 => Fault::SlowDisk { node, disk_ms: random.random_range(50..=1_500) },
        13 => Fault::FullDisk { node, per_mille: *[100, 1_000].choose(random).expect("some") },
        // Twice: what a failed sync has lost shows only where no other replica has it.
        14 | 21 => match random.random_range(0..5) {
            0 => Fault::DiskErrors { node, reads: 50, writes: 0, syncs: 0 },
            1 => Fault::DiskErrors { node, reads: 0, writes: 20, syncs: 0 },
            _ => Fault::DiskErrors { node, reads: 0, writes: 0, syncs: 100 },
        },
        15 | 16 => {
            const JUMPS_MS: &[i64] = &[-60_000, -2_000, -300, 130, 300, 600, 2_000, 3_600_000];
            Fault::ClockJump { node, jump_ms: *JUMPS_MS.choose(random).expect("some") }
        }
        17 => Fault::ClockDrift {
            node,
            ppm: *[-50_000, -500, 500, 50_000].choose(random).expect("some"),
        },
        18 => Fault::Pause { node },
        19 => Fault::Late { node, rows: 20 },
        20 => Fault::Stop { node },
        _ => Fault::Overload,
    }
}

fn draw_end(random: &mut StdRng) -> EndKind {
    if random.random() { EndKind::PowerLoss } else { EndKind::Crash }
}

fn draw_swizzle(random: &mut StdRng, nodes: usize) -> Fault {
    let mut all: Vec<usize> = (0..nodes).collect();
    all.shuffle(random);
    all.truncate(random.random_range(1..=nodes));
    let mut freed: Vec<usize> = (0..all.len()).collect();
    freed.shuffle(random);
    Fault::Swizzle { nodes: all, freed }
}

fn draw_cut(random: &mut StdRng, shape: &Shape) -> Cut {
    let kind = *[CutKind::Jam, CutKind::Stop, CutKind::OneWay].choose(random).expect("some");
    let all = hosts(shape);
    let (from, to) = match random.random_range(0..4) {
        // A datacenter on its own, its clients with it.
        0 if shape.datacenters.len() > 1 => {
            let datacenter = random.random_range(0..shape.datacenter_count());
            let inside = hosts_of(shape, datacenter);
            let outside = all.into_iter().filter(|it| !inside.contains(it)).collect();
            (inside, outside)
        }
        // One node on its own.
        1 => {
            let name = format!("n{}", random.random_range(1..=shape.nodes().count()));
            let others = all.into_iter().filter(|it| *it != name).collect();
            (vec![name], others)
        }
        // A bridge: one node hears both halves, which do not hear each other.
        2 => {
            let bridge = format!("n{}", random.random_range(1..=shape.nodes().count()));
            halves(random, all.into_iter().filter(|it| *it != bridge).collect())
        }
        _ => halves(random, all),
    };
    Cut { kind, from, to }
}

fn halves(random: &mut StdRng, mut hosts: Vec<String>) -> (Vec<String>, Vec<String>) {
    hosts.shuffle(random);
    let rest = hosts.split_off(hosts.len() / 2);
    (hosts, rest)
}

fn hosts(shape: &Shape) -> Vec<String> {
    (0..shape.datacenter_count()).flat_map(|it| hosts_of(shape, it)).collect()
}

fn hosts_of(shape: &Shape, datacenter: u8) -> Vec<String> {
    let nodes = (1..).zip(shape.nodes()).filter(|it| it.1 == datacenter);
    let nodes = nodes.map(|(number, _): (usize, u8)| format!("n{number}"));
    nodes.chain([format!("clients-{}", datacenter_name(datacenter))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_clocks_are_never_wrong_alike() {
        let jump = |node, at_ms, jump_ms| {
            let fault = Fault::ClockJump { node, jump_ms };
            TimedFault { at_ms, for_ms: 100, fault }
        };
        assert!(most_jump_alike(&[jump(0, 0, 600), jump(1, 50, 600)], 3));
        assert!(most_jump_alike(&[jump(0, 0, 600), jump(1, 0, 300), jump(1, 99, 300)], 3));
        assert!(!most_jump_alike(&[jump(0, 0, 600), jump(1, 100, 600)], 3));
        assert!(!most_jump_alike(&[jump(0, 0, 600), jump(1, 50, 300)], 3));
        assert!(!most_jump_alike(&[jump(0, 0, 600), jump(1, 50, 600)], 4));
    }
}
