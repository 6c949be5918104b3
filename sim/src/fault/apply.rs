//! Begins and ends faults in a world. What several of them set at one place is computed from all that
//! are in force, so that the end of one does not undo another.

use std::sync::atomic::Ordering;

use super::Fault;
use crate::world::{Cut, CutKind, DiskFaults, EndKind, World, late::InHand};

/// A fault in force.
struct ActiveFault {
    id: u64,
    fault: Fault,
    begun_ms: u64,
    for_ms: u64,
    has_struck: bool,
    /// What it keeps back until it ends.
    in_hand: Vec<InHand>,
}

/// All faults in force.
#[derive(Default)]
pub struct ActiveFaults(Vec<ActiveFault>);

impl ActiveFaults {
    /// Begins a fault under an id that no other has. Returns its name if it has struck already.
    pub fn begin(
        &mut self,
        world: &mut World,
        id: u64,
        fault: Fault,
        for_ms: u64,
    ) -> Option<&'static str> {
        world.say(format_args!("fault {id} for {for_ms} ms: {fault}"));
        let begun_ms = world.now_ms();
        let in_hand = match fault {
            Fault::Late { node, rows } => world.take_in_hand(node, rows),
            _ => Vec::new(),
        };
        let mut begun = ActiveFault { id, fault, begun_ms, for_ms, has_struck: false, in_hand };
        begun.has_struck = begun.strike(world);
        let struck = begun.has_struck.then(|| begun.fault.name());
        self.0.push(begun);
        self.set_all(world);
        struck
    }

    /// To be called with each step: ends what is over, or everything. Returns the names of those that
    /// have struck only now.
    pub fn advance(&mut self, world: &mut World, ends_all: bool) -> Vec<&'static str> {
        let mut struck = Vec::new();
        for fault in self.0.iter_mut().filter(|it| !it.has_struck) {
            fault.has_struck = fault.strikes_late(world);
            struck.extend(fault.has_struck.then(|| fault.fault.name()));
        }
        let (over, active): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|it| ends_all || world.now_ms() >= it.begun_ms + it.for_ms);
        self.0 = active;
        for fault in &over {
            world.say(format_args!("fault {} ends", fault.id));
            fault.end(world);
        }
        if !over.is_empty() {
            self.set_all(world);
        }
        for fault in &over {
            for node in fault.downs(world) {
                if !self.is_wanted_down(world, node) {
                    world.start_node(node);
                }
            }
        }
        for fault in &self.0 {
            if let Fault::Swizzle { nodes, freed } = &fault.fault {
                fault.swizzle(world, nodes, freed);
            }
        }
        struck
    }

    /// True if clients are to call too often.
    pub fn overload(&self) -> bool {
        self.0.iter().any(|it| it.fault == Fault::Overload)
    }

    /// What a supervisor asks: a process that has ended by itself is started again, unless it is to
    /// be down.
    pub fn is_wanted_down(&self, world: &World, node: usize) -> bool {
        let downs = |it: &&ActiveFault| !matches!(it.fault, Fault::DiskErrors { .. });
        self.0.iter().filter(downs).any(|it| it.downs(world).contains(&node))
    }

    /// Sets each node's disk, connections and speed, and the latency of each link.
    fn set_all(&self, world: &mut World) {
        for node in 0..world.nodes.len() {
            let mut disk = DiskFaults {
                blocking_reads: world.shape.reads_from_disk_per_mille,
                ..DiskFaults::default()
            };
            let (mut disk_ms, mut resets, mut pauses, mut ppm) =
                (world.shape.disk_ms, 0, false, None);
            for fault in &self.0 {
                match fault.fault {
                    Fault::SlowDisk { node: it, disk_ms: ms } if it == node => {
                        disk_ms = disk_ms.max(ms);
                    }
                    Fault::Resets { node: it, per_mille } if it == node => {
                        resets = resets.max(per_mille);
                    }
                    Fault::Pause { node: it } if it == node => pauses = true,
                    Fault::ClockDrift { node: it, ppm: more } if it == node => {
                        ppm = Some(ppm.unwrap_or(0) + more);
                    }
                    Fault::FullDisk { node: it, per_mille } if it == node => {
                        disk.full = disk.full.max(per_mille);
                    }
                    Fault::DiskErrors { node: it, reads, writes, syncs } if it == node => {
                        disk.read_errors = disk.read_errors.max(reads);
                        disk.write_errors = disk.write_errors.max(writes);
                        disk.sync_errors = disk.sync_errors.max(syncs);
                    }
                    _ => {}
                }
            }
            let controls = &world.nodes[node].controls;
            controls.disk_ms.store(disk_ms, Ordering::Relaxed);
            controls.resets_per_mille.store(resets, Ordering::Relaxed);
            controls.paused.store(pauses, Ordering::Relaxed);
            controls.drift(world.now(), ppm);
            if world.nodes[node].disk_faults != disk {
                world.set_disk_faults(node, |it| *it = disk);
            }
        }
        world.reset_latencies();
        let mut slow: Vec<_> = self.0.iter().filter(|it| it.is_slow()).collect();
        // The slowest last: where two meet, it counts.
        slow.sort_by_key(|it| match it.fault {
            Fault::Slow { latency_ms, .. } => latency_ms,
            _ => 0,
        });
        for it in slow {
            if let Fault::Slow { from, to, latency_ms } = &it.fault {
                world.set_latency(from, to, *latency_ms);
            }
        }
    }
}

impl ActiveFault {
    /// Does what happens at its beginning. False if nothing has.
    fn strike(&self, world: &mut World) -> bool {
        match &self.fault {
            Fault::Cut(cut) => world.cut(self.id * IDS, cut.clone()),
            Fault::End { node, kind } => return self.end_process(world, *node, *kind),
            Fault::Stop { node } => return world.stop_node(*node),
            Fault::EndAt { node, stage, groups, .. } => {
                world.nodes[*node].controls.freeze_at(self.id, *stage, *groups);
                return false;
            }
            Fault::DatacenterEnd { datacenter, kind } => {
                let (from, all) = (world.hosts_of(*datacenter), world.hosts());
                let to = all.into_iter().filter(|it| !from.contains(it)).collect();
                world.cut(self.id * IDS, Cut { kind: CutKind::Stop, from, to });
                let mut ended = false;
                for node in self.downs(world) {
                    ended |= world.nodes[node].running;
                    world.end_node(node, *kind);
                }
                return ended;
            }
            Fault::Rot { node, rows } => return world.rot(*node, *rows) > 0,
            Fault::LostWrites { node, rows, misplaced } => {
                return world.lose_writes(*node, *rows, *misplaced) > 0;
            }
            Fault::Wipe { node } => {
                let ran = self.end_process(world, *node, EndKind::PowerLoss);
                world.wipe(*node);
                return ran;
            }
            Fault::RollBack { node } => {
                world.take_image(*node);
                return false;
            }
            // What it has in hand was taken.
            Fault::Late { .. } => return false,
            Fault::ClockJump { node, jump_ms } => {
                world.nodes[*node].controls.clock_offset_ms.fetch_add(*jump_ms, Ordering::Relaxed);
            }
            Fault::Pause { node } => {
                let name = world.nodes[*node].name.clone();
                let to = world.hosts();
                world.cut(self.id * IDS, Cut { kind: CutKind::Jam, from: vec![name], to });
                return world.nodes[*node].running;
            }
            Fault::SlowDisk { node, .. }
            | Fault::FullDisk { node, .. }
            | Fault::DiskErrors { node, .. }
            | Fault::Resets { node, .. } => return world.nodes[*node].running,
            Fault::Slow { .. }
            | Fault::ClockDrift { .. }
            | Fault::Swizzle { .. }
            | Fault::Overload => {}
        }
        true
    }

    /// What happens when its moment has come.
    fn strikes_late(&self, world: &mut World) -> bool {
        match self.fault {
            Fault::EndAt { node, kind, .. }
                if world.nodes[node].controls.frozen_by() == Some(self.id) =>
            {
                self.end_process(world, node, kind)
            }
            Fault::RollBack { node } if world.now_ms() >= self.begun_ms + self.for_ms => {
                world.roll_back(node)
            }
            Fault::Late { .. } if world.now_ms() >= self.begun_ms + self.for_ms => {
                world.send_late(&self.in_hand);
                !self.in_hand.is_empty()
            }
            _ => false,
        }
    }

    /// Ends a process. With its machine's power the links go too: its peers learn of it by silence.
    fn end_process(&self, world: &mut World, node: usize, kind: EndKind) -> bool {
        let ran = world.nodes[node].running;
        if kind == EndKind::PowerLoss {
            let name = world.nodes[node].name.clone();
            let to = world.hosts();
            world.cut(self.id * IDS, Cut { kind: CutKind::Stop, from: vec![name], to });
        }
        world.end_node(node, kind);
        ran
    }

    /// Undoes what is its alone.
    fn end(&self, world: &mut World) {
        match &self.fault {
            Fault::Cut(_)
            | Fault::End { .. }
            | Fault::DatacenterEnd { .. }
            | Fault::Wipe { .. }
            | Fault::Pause { .. } => world.heal(self.id * IDS),

            Fault::EndAt { node, .. } => {
                world.nodes[*node].controls.forget_freeze(self.id);
                world.heal(self.id * IDS);
            }
            Fault::Stop { node } => world.end_stopping(*node),
            Fault::ClockJump { node, jump_ms } => {
                world.nodes[*node].controls.clock_offset_ms.fetch_sub(*jump_ms, Ordering::Relaxed);
            }
            Fault::Swizzle { nodes, .. } => {
                (0..nodes.len()).for_each(|it| world.heal(self.cut_id(it)));
            }
            _ => {}
        }
    }

    /// The nodes that it ends, and that start when it is over.
    fn downs(&self, world: &World) -> Vec<usize> {
        match self.fault {
            Fault::End { node, .. } | Fault::Stop { node } | Fault::Wipe { node } => vec![node],
            Fault::EndAt { node, .. } | Fault::RollBack { node } if self.has_struck => vec![node],
            // A failed write ends the node.
            Fault::DiskErrors { node, .. } => vec![node],
            Fault::DatacenterEnd { datacenter, .. } => (0..world.nodes.len())
                .filter(|it| world.nodes[*it].datacenter == datacenter)
                .collect(),
            _ => Vec::new(),
        }
    }

    fn is_slow(&self) -> bool {
        matches!(self.fault, Fault::Slow { .. })
    }

    /// Half of the time nodes jam one after another, and in the other half they are freed.
    fn swizzle(&self, world: &mut World, nodes: &[usize], freed: &[usize]) {
        let since_ms = world.now_ms() - self.begun_ms;
        let step_ms = (self.for_ms / 2 / nodes.len() as u64).max(1);
        if !since_ms.is_multiple_of(step_ms) {
            return;
        }
        let step = usize::try_from(since_ms / step_ms).unwrap_or(usize::MAX);
        if let Some(node) = nodes.get(step) {
            let name = world.nodes[*node].name.clone();
            let to = world.hosts();
            world.cut(self.cut_id(step), Cut { kind: CutKind::Jam, from: vec![name], to });
        } else if let Some(place) = freed.get(step - nodes.len()) {
            world.heal(self.cut_id(*place));
        }
    }

    fn cut_id(&self, place: usize) -> u64 {
        self.id * IDS + place as u64
    }
}

/// Ids of cuts that one fault may use.
const IDS: u64 = 1_000;

/// Ends what the faults have left: everything that is down starts, every disk works.
pub fn heal_all(world: &mut World) {
    world.say("all faults end");
    for node in 0..world.nodes.len() {
        world.start_node(node);
    }
}
