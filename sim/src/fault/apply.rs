//! Begins and ends faults in a world.

use std::sync::atomic::Ordering;

use super::Fault;
use crate::world::{Cut, CutKind, World};

/// A fault in force.
pub struct ActiveFault {
    id: u64,
    fault: Fault,
    begun_ms: u64,
    for_ms: u64,
}

impl ActiveFault {
    /// Begins a fault under an id that no other has.
    pub fn begin(world: &mut World, id: u64, fault: Fault, for_ms: u64) -> Self {
        world.say(format_args!("fault {id} for {for_ms} ms: {fault}"));
        match &fault {
            Fault::Cut(cut) => world.cut(id * IDS, cut.clone()),
            Fault::Slow { from, to, latency_ms } => world.set_latency(from, to, *latency_ms),
            Fault::Resets { node, per_mille } => {
                world.nodes[*node].controls.resets_per_mille.store(*per_mille, Ordering::Relaxed);
            }
            Fault::End { node, kind } => world.end_node(*node, *kind),
            Fault::EndAt { node, stage, groups, .. } => {
                world.nodes[*node].controls.freeze_at(Some((*stage, *groups)));
            }
            Fault::DatacenterEnd { datacenter, kind } => {
                let (from, all) = (world.hosts_of(*datacenter), world.hosts());
                let to = all.into_iter().filter(|it| !from.contains(it)).collect();
                world.cut(id * IDS, Cut { kind: CutKind::Stop, from, to });
                for node in nodes_of(world, *datacenter) {
                    world.end_node(node, *kind);
                }
            }
            Fault::SlowDisk { node, disk_ms } => {
                world.nodes[*node].controls.disk_ms.store(*disk_ms, Ordering::Relaxed);
            }
            Fault::FullDisk { node, per_mille } => {
                world.set_disk_faults(*node, |it| it.full = *per_mille);
            }
            Fault::DiskErrors { node, reads, writes, syncs } => {
                world.set_disk_faults(*node, |it| {
                    it.read_errors = *reads;
                    it.write_errors = *writes;
                    it.sync_errors = *syncs;
                });
            }
            Fault::Rot { node, rows } => world.rot(*node, *rows),
            Fault::ClockJump { node, jump_ms } => {
                world.nodes[*node].controls.clock_offset_ms.fetch_add(*jump_ms, Ordering::Relaxed);
            }
            Fault::ClockDrift { node, ppm } => {
                world.nodes[*node].controls.clock_drift_ppm.store(*ppm, Ordering::Relaxed);
            }
            Fault::Pause { node } => {
                let name = world.nodes[*node].name.clone();
                let to = world.hosts();
                world.cut(id * IDS, Cut { kind: CutKind::Jam, from: vec![name], to });
                let disk_ms = &world.nodes[*node].controls.disk_ms;
                disk_ms.store(for_ms, Ordering::Relaxed);
            }
            Fault::Swizzle { .. } | Fault::Overload => {}
        }
        let begun_ms = now_ms(world);
        Self { id, fault, begun_ms, for_ms }
    }

    /// What it is.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// True once its time is over.
    pub fn is_over(&self, world: &World) -> bool {
        now_ms(world) >= self.begun_ms + self.for_ms
    }

    /// To be called with each step while it lasts.
    pub fn advance(&self, world: &mut World) {
        match &self.fault {
            Fault::Swizzle { nodes, freed } => self.swizzle(world, nodes, freed),
            Fault::EndAt { node, kind, .. }
                if world.nodes[*node].controls.frozen.swap(false, Ordering::Relaxed) =>
            {
                world.end_node(*node, *kind);
            }
            _ => {}
        }
    }

    /// Ends it.
    pub fn end(self, world: &mut World) {
        world.say(format_args!("fault {} ends", self.id));
        let shape = world.shape.clone();
        match self.fault.clone() {
            Fault::Cut(_) => world.heal(self.id * IDS),
            Fault::Slow { .. } => world.reset_latencies(),
            Fault::Resets { node, .. } => {
                world.nodes[node].controls.resets_per_mille.store(0, Ordering::Relaxed);
            }
            Fault::End { node, .. } => world.start_node(node),
            Fault::EndAt { node, kind, .. } => {
                if world.nodes[node].controls.frozen.load(Ordering::Relaxed) {
                    world.end_node(node, kind);
                }
                world.nodes[node].controls.freeze_at(None);
                world.start_node(node);
            }
            Fault::DatacenterEnd { datacenter, .. } => {
                world.heal(self.id * IDS);
                for node in nodes_of(world, datacenter) {
                    world.start_node(node);
                }
            }
            Fault::SlowDisk { node, .. } => {
                world.nodes[node].controls.disk_ms.store(shape.disk_ms, Ordering::Relaxed);
            }
            Fault::FullDisk { node, .. } => world.set_disk_faults(node, |it| it.full = 0),
            Fault::DiskErrors { node, .. } => {
                world.set_disk_faults(node, |it| {
                    (it.read_errors, it.write_errors, it.sync_errors) = (0, 0, 0);
                });
                world.start_node(node);
            }
            Fault::ClockJump { node, jump_ms } => {
                world.nodes[node].controls.clock_offset_ms.fetch_sub(jump_ms, Ordering::Relaxed);
            }
            Fault::ClockDrift { node, .. } => {
                world.nodes[node].controls.clock_drift_ppm.store(0, Ordering::Relaxed);
            }
            Fault::Pause { node } => {
                world.nodes[node].controls.disk_ms.store(shape.disk_ms, Ordering::Relaxed);
                world.heal(self.id * IDS);
            }
            Fault::Swizzle { nodes, .. } => {
                (0..nodes.len()).for_each(|it| world.heal(self.cut_id(it)));
            }
            Fault::Rot { .. } | Fault::Overload => {}
        }
    }

    /// Half of the time nodes jam one after another, and in the other half they are freed.
    fn swizzle(&self, world: &mut World, nodes: &[usize], freed: &[usize]) {
        let since_ms = now_ms(world) - self.begun_ms;
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

fn nodes_of(world: &World, datacenter: u8) -> Vec<usize> {
    (0..world.nodes.len()).filter(|it| world.nodes[*it].datacenter == datacenter).collect()
}

fn now_ms(world: &World) -> u64 {
    u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX)
}

/// Ends what the faults have left: everything that is down starts, every disk works.
pub fn heal_all(world: &mut World) {
    world.say("all faults end");
    for node in 0..world.nodes.len() {
        world.start_node(node);
    }
}

/// What a supervisor does: a process that has ended by itself is started again.
pub fn is_wanted_down(active: &[ActiveFault], world: &World, node: usize) -> bool {
    active.iter().any(|it| match it.fault {
        Fault::End { node: down, .. } => down == node,
        Fault::EndAt { node: down, .. } => down == node,
        Fault::DatacenterEnd { datacenter, .. } => world.nodes[node].datacenter == datacenter,
        _ => false,
    })
}
