//! Plays a script: steps the world, and does to it what the script orders.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use model::Mutant;
use node::storage::{RangeRequest, Space};

use super::{Order, Playing, Script};
use crate::{
    checker::Violation,
    inspect::{self, Watch},
    log::Log,
    recorder::Recorder,
    run::{LOOK_MS, VIOLATIONS_MAX, catching, set_up},
    scenario::story::{Told, lines},
    shape::Shape,
    workload::Load,
    world::{World, late},
};

/// Plays a script in a cluster that has been set up. The nodes are watched as in any run.
pub(crate) fn play(
    shape: &Shape,
    script: fn(Script) -> Playing,
    mutant: Option<Mutant>,
    seed: u64,
) -> Told {
    let log = Log::new(true);
    let (mut violations, mut ended_at) = (Vec::new(), Duration::ZERO);
    let played = catching(mutant, || {
        play_to_end(shape, script, seed, &log, &mut violations, &mut ended_at);
    });
    violations.extend(played.err());
    for violation in &violations {
        log.tell(ended_at, format_args!("VIOLATION {violation}"));
    }
    let (lines, timeline) = (log.take(), lines(&log.take_story()));
    Told { violations, timeline, availability: Vec::new(), lines }
}

fn play_to_end(
    shape: &Shape,
    script: fn(Script) -> Playing,
    seed: u64,
    log: &Log,
    violations: &mut Vec<Violation>,
    ended_at: &mut Duration,
) {
    let load = Load::new(shape.clone(), Recorder::new(log.clone(), shape.bounds.purges()));
    let orders = Rc::new(RefCell::new(VecDeque::new()));
    let ended = Rc::new(RefCell::new(None));
    let mut world = World::new(seed, shape.clone(), log.clone());
    let disks: Rc<Vec<_>> = Rc::new(world.nodes.iter().map(|it| it.disk.clone()).collect());
    for datacenter in 0..shape.datacenter_count() {
        let disks = Rc::clone(&disks);
        let (load, orders, ended) = (Rc::clone(&load), Rc::clone(&orders), Rc::clone(&ended));
        let frames = Rc::clone(&world.late);
        world.add_clients(async move {
            if datacenter == 0 {
                set_up::set_up(&load, seed).await;
                tokio::task::spawn_local(late::carry(frames));
                // Every node has heard every other's clock.
                tokio::time::sleep(Duration::from_secs(2)).await;
                let result = script(Script { load, orders, disks, clock: Rc::default() }).await;
                *ended.borrow_mut() = Some(result);
            }
            std::future::pending().await
        });
    }
    let mut watch = Watch::default();
    while ended.borrow().is_none() {
        if let Err(error) = world.step() {
            violations.push(Violation::broken("scenario", None, error));
            break;
        }
        if world.now() > Duration::from_secs(120) {
            violations.push(Violation::broken("scenario", None, "it did not end".to_owned()));
            break;
        }
        *ended_at = world.now();
        let ms = u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX);
        if ms.is_multiple_of(LOOK_MS) && violations.len() < VIOLATIONS_MAX {
            violations.extend(inspect::watch(&world, &mut watch));
        }
        let order = orders.borrow_mut().pop_front();
        order.into_iter().for_each(|it| obey(&mut world, it));
    }
    violations.extend(inspect::watch(&world, &mut watch));
    if let Some(Err(what)) = ended.take() {
        violations.push(Violation::broken("scenario", None, what));
    }
}

fn obey(world: &mut World, order: Order) {
    match order {
        Order::Cut(id, cut) => {
            world.say(format_args!("step: cut {:?} from {:?}", cut.from, cut.to));
            world.cut(id, cut);
        }
        Order::Heal(id) => {
            world.say("step: healed");
            world.heal(id);
        }
        Order::End(node, kind) => world.end_node(node, kind),
        Order::Wipe(node) => world.wipe(node),
        Order::TakeImage(node) => world.take_image(node),
        Order::RollBack(node) => {
            if !world.roll_back(node) {
                world.say("step: the others have not seen how far the disk had come");
            }
        }
        Order::CopyDisk(from, to) => world.copy_disk(from, to),
        Order::Start(node) => world.start_node(node),
        Order::ClockJump(node, ms) => {
            world.say(format_args!("step: the clock of n{} jumps by {ms} ms", node + 1));
            world.nodes[node].controls.clock_offset_ms.fetch_add(ms, Ordering::Relaxed);
        }
        Order::Freeze(node, stage) => world.nodes[node].controls.freeze_at(0, stage, 0),
        Order::SlowDisk(node, ms) => {
            world.say(format_args!("step: the disk of n{} takes up to {ms} ms", node + 1));
            world.nodes[node].controls.disk_ms.store(ms, Ordering::Relaxed);
        }
        Order::FullDisk(node, full) => {
            let has = if full { "no room" } else { "room" };
            world.say(format_args!("step: the disk of n{} has {has}", node + 1));
            world.set_disk_faults(node, |it| it.full = if full { 1_000 } else { 0 });
        }
        Order::Rot(node) => {
            world.say(format_args!("step: the data of n{} rot", node + 1));
            let disk = world.nodes[node].disk.clone();
            let page = disk.peek(&RangeRequest::prefix(Space::Data, Vec::new()));
            for (key, value) in &page.rows {
                disk.flip_bit(Space::Data, key, value.len() * 4);
            }
            world.scar(node, page.rows.into_iter().map(|it| it.0).collect());
        }
        Order::Lose(node, bytes) => {
            world.say(format_args!("step: the disk of n{} loses a write", node + 1));
            let lost = rows_with(world, node, bytes);
            for row in &lost {
                world.nodes[node].disk.lose_row(Space::Data, row);
            }
            world.scar(node, lost);
        }
        Order::Misplace(node, bytes, over) => {
            world.say(format_args!("step: the disk of n{} puts a write over another", node + 1));
            let (from, to) = (rows_with(world, node, bytes), rows_with(world, node, over));
            for (from, to) in from.iter().zip(&to) {
                world.nodes[node].disk.move_row(Space::Data, from, to);
            }
            world.scar(node, [from, to].concat());
        }
        Order::Late(node, in_hand) => world.send_late_to(node, &[in_hand]),
    }
}

/// The keys of a node's rows that hold these bytes.
fn rows_with(world: &World, node: usize, bytes: &[u8]) -> Vec<Bytes> {
    let page = world.nodes[node].disk.peek(&RangeRequest::prefix(Space::Data, Vec::new()));
    let holds = |it: &(Bytes, Bytes)| it.1.windows(bytes.len()).any(|it| it == bytes);
    page.rows.into_iter().filter(holds).map(|it| it.0).collect()
}
