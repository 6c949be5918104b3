//! The chapter about consistency levels: what each requires, what it costs here, and whether a read
//! at it sees the write before it.

use client::{Client, Error, Keyspace};
use model::ConsistencyLevel;
use serde::Serialize;
use tokio::time::Instant;

use super::{attempt, keyspace, story::Story};
use crate::{
    bench::latency::{Latencies, spell_us},
    connect::fail,
    failure::{Attempt, Failure},
    output::Paint,
    table::{Cell, Table},
};

/// Calls of each kind at each level.
const CALLS: u32 = 60;

/// What one level required and cost.
#[derive(Clone, Debug, Serialize)]
struct LevelDocument {
    level: String,
    write_required: u32,
    write_p50_us: f64,
    write_p99_us: f64,
    read_required: Option<u32>,
    read_p50_us: Option<f64>,
    read_p99_us: Option<f64>,
    /// True if R + W > N holds between reads and writes of this level.
    overlap: bool,
    /// Reads that saw the write before them, of as many as writes.
    fresh: Option<u32>,
}

/// Writes and reads at each level through one datacenter.
pub(super) async fn show(client: &Client, story: &mut Story) -> Result<(), Failure> {
    story.chapter(&format!(
        "Write and read at each level from {}, {CALLS} calls of each",
        client.datacenter()
    ))?;
    let replicas = replicas(client);
    let keyspace = keyspace(client);
    let all = replicas.iter().map(|it| u32::from(it.1)).sum();
    let (possible, impossible): (Vec<_>, Vec<_>) =
        ConsistencyLevel::NAMED.into_iter().partition(|it| is_possible(*it, all));
    let mut levels = Vec::new();
    for level in possible {
        levels.push(measure(level, &keyspace, client, &replicas).await?);
    }
    story.table(&table(&levels, all), &levels)?;
    for level in impossible {
        story.fact(&format!("{level} is left out: a row has {all} replicas here"))?;
    }
    let overlapping = || levels.iter().filter(|it| it.overlap);
    let stale = overlapping().filter(|it| it.fresh != Some(CALLS)).count();
    story.check(
        stale == 0,
        &format!(
            "at the {} levels with R+W>N every read saw the write before it",
            overlapping().count()
        ),
    )
}

/// True unless the level asks for more replicas than a row has.
fn is_possible(level: ConsistencyLevel, replicas: u32) -> bool {
    match level {
        ConsistencyLevel::Two => replicas >= 2,
        ConsistencyLevel::Three => replicas >= 3,
        _ => true,
    }
}

async fn measure(
    level: ConsistencyLevel,
    keyspace: &Keyspace,
    client: &Client,
    replicas: &[(model::DcIndex, u8)],
) -> Result<LevelDocument, Failure> {
    let (mut writes, mut reads) = (Latencies::new(), Latencies::new());
    let (mut write_required, mut read_required, mut fresh) = (0, None, 0);
    let failure =
        |error: &Error, writes| fail(error, &Attempt { level: Some(level), writes, ..attempt() });
    for call in 0..CALLS {
        let (key, value) = (format!("level:{level}:{call}"), format!("{level} {call}"));
        let begun = Instant::now();
        let written = keyspace.put(key.as_str(), value.clone()).consistency(level).await;
        writes.record(begun.elapsed());
        write_required = written.map_err(|error| failure(&error, true))?.required;
        // ANY is a level of writes only: there is no reading a hint.
        if level == ConsistencyLevel::Any {
            continue;
        }
        let begun = Instant::now();
        let read = keyspace.get(key.as_str()).consistency(level).await;
        reads.record(begun.elapsed());
        let read = read.map_err(|error| failure(&error, false))?;
        read_required = Some(read.required);
        fresh += u32::from(read.value.as_deref() == Some(value.as_bytes()));
    }
    let can_read = read_required.is_some();
    let local = client.topology().datacenters().iter().position(|it| *it == client.datacenter());
    let local = model::DcIndex(local.and_then(|it| u8::try_from(it).ok()).unwrap_or_default());
    Ok(LevelDocument {
        level: level.to_string(),
        write_required,
        write_p50_us: writes.quantile_us(0.5),
        write_p99_us: writes.quantile_us(0.99),
        read_required,
        read_p50_us: can_read.then(|| reads.quantile_us(0.5)),
        read_p99_us: can_read.then(|| reads.quantile_us(0.99)),
        overlap: model::overlaps(level, level, replicas, local),
        fresh: can_read.then_some(fresh),
    })
}

/// Replicas of the demo's keyspace in each datacenter: as many as have partitions to hold, at most 3.
fn replicas(client: &Client) -> Vec<(model::DcIndex, u8)> {
    let topology = client.topology();
    let count = |name: &str| topology.nodes().iter().filter(|it| it.datacenter == name).count();
    let datacenters = (0u8..).map(model::DcIndex).zip(topology.datacenters());
    let replicas = |it| u8::try_from(count(it).min(3)).expect("at most 3");
    datacenters.map(|(index, name)| (index, replicas(name))).collect()
}

fn table(levels: &[LevelDocument], all: u32) -> Table {
    let columns = [
        "level",
        "write needs",
        ">p50",
        ">p99",
        "read needs",
        ">p50",
        ">p99",
        "R+W>N",
        "read the write",
    ];
    let mut table = Table::new(&columns);
    for it in levels {
        let needs = |required: u32| format!("{required} of {all}");
        let us = |us: Option<f64>| Cell::from(us.map(spell_us).unwrap_or_default());
        let (overlap, paint) = match it.overlap {
            true => ("yes", Paint::Good),
            false => ("no", Paint::Faint),
        };
        table.row([
            it.level.as_str().into(),
            needs(it.write_required).into(),
            us(Some(it.write_p50_us)),
            us(Some(it.write_p99_us)),
            it.read_required.map_or_else(|| "cannot read".to_owned(), needs).into(),
            us(it.read_p50_us),
            us(it.read_p99_us),
            Cell::painted(paint, overlap),
            it.fresh.map(|fresh| format!("{fresh} of {CALLS}")).unwrap_or_default().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_a_small_cluster() {
        let left_out = |replicas| {
            let levels = ConsistencyLevel::NAMED.into_iter();
            levels
                .filter(|it| !is_possible(*it, replicas))
                .map(|it| it.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(left_out(2), ["THREE"]);
        assert_eq!(left_out(1), ["TWO", "THREE"]);
        assert!(left_out(3).is_empty());
    }
}
