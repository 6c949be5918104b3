//! What a disk does wrong unnoticed: bits flip, writes are lost, or made in a wrong place.
//!
//! Only one node of a world has such a disk: with a second one no quorum could be relied on. What the
//! others could not make up for is left alone, because nothing is promised of it.

use bytes::Bytes;
use model::{Record, StorageKey};
use node::{
    replica::decode_stored,
    storage::{RangeRequest, Space},
};
use rand::{RngExt, seq::IndexedRandom};

use super::World;

/// What keys' names begin with whose every read asks a quorum: one that finds nothing at a single replica
/// may be told so.
const QUORUMS: &[&str] = &["quorum/", "local", "each/", "each-local/"];

impl World {
    /// Flips a bit in some of a node's rows, and returns in how many.
    pub fn rot(&mut self, index: usize, rows: u32) -> u32 {
        // What nobody else holds is lost, and somebody may have been shown it.
        let rows = self.draw_rows(index, rows, |_, held, others| {
            others.iter().any(|it| it.version() >= held.version())
        });
        for row in &rows {
            let value = self.nodes[index].disk.peek(&one(row)).rows.pop().map(|it| it.1);
            let bit = self.random.random_range(0..value.map_or(1, |it| it.len()) * 8);
            self.nodes[index].disk.flip_bit(Space::Data, row, bit);
        }
        self.scar(index, rows)
    }

    /// Some of a node's rows are gone, and returns how many: each was never written, or over its neighbour.
    pub fn lose_writes(&mut self, index: usize, rows: u32, misplaced: bool) -> u32 {
        let quorum = usize::from(self.shape.replicas_in_all()) - 1;
        let mut rows = self.draw_rows(index, rows, |key, held, others| {
            let name = key.key().map(|it| it.partition_key).unwrap_or_default();
            let reads_quorums = QUORUMS.iter().any(|it| name.starts_with(it.as_bytes()));
            reads_quorums && others.iter().filter(|it| *it == held).count() == quorum
        });
        let disk = &self.nodes[index].disk;
        if misplaced {
            rows.truncate(rows.len() / 2 * 2);
            for pair in rows.chunks_exact(2) {
                disk.move_row(Space::Data, &pair[0], &pair[1]);
            }
        } else {
            for row in &rows {
                disk.lose_row(Space::Data, row);
            }
        }
        self.scar(index, rows)
    }

    /// What is wrong with a row from now on, whoever did it.
    pub fn scar(&mut self, index: usize, rows: Vec<Bytes>) -> u32 {
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        if count > 0 {
            self.rotten = Some(index);
        }
        self.scarred.extend(rows.into_iter().map(|it| (index, it)));
        count
    }

    /// Draws sound rows of a node, given what the other nodes hold.
    fn draw_rows(
        &mut self,
        index: usize,
        rows: u32,
        may: impl Fn(&StorageKey, &Record, &[Record]) -> bool,
    ) -> Vec<Bytes> {
        if self.rotten.is_some_and(|it| it != index) {
            return Vec::new();
        }
        let nodes = &self.nodes;
        let page = nodes[index].disk.peek(&RangeRequest::prefix(Space::Data, Vec::new()));
        let sound = |row: &Bytes, value: Bytes| {
            let key = StorageKey::parse(row.clone())?;
            let record = decode_stored(&key, value).ok()?.record;
            Some((key, record))
        };
        let allowed = page.rows.into_iter().filter_map(|(row, value)| {
            let (key, held) = sound(&row, value)?;
            let others = nodes.iter().enumerate().filter(|it| it.0 != index);
            let others = others.filter_map(|(_, it)| {
                let (row, value) = it.disk.peek(&one(&row)).rows.pop()?;
                Some(sound(&row, value)?.1)
            });
            may(&key, &held, &others.collect::<Vec<_>>()).then_some(row)
        });
        let allowed: Vec<_> = allowed.collect();
        allowed.sample(&mut self.random, rows as usize).cloned().collect()
    }
}

fn one(row: &Bytes) -> RangeRequest {
    let end = [row, &[0][..]].concat().into();
    RangeRequest { end: Some(end), ..RangeRequest::prefix(Space::Data, row.clone()) }
}
