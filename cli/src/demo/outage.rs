//! The chapters about the loss of a datacenter: what goes on, what is refused, and its return.

use std::{cell::Cell, time::Duration};

use client::{Client, Error};
use futures_util::future::join_all;
use model::ConsistencyLevel;
use proto::{CallOutcome, Reason};
use tokio::time::Instant;

use super::{
    attempt,
    cluster::{self, DemoCluster},
    data::DataSet,
    keyspace,
    story::Story,
};
use crate::{
    bench::latency::{Latencies, spell_us},
    connect::{fail, local_datacenter},
    failure::{Attempt, Failure},
    progress,
    values::{spell_count, spell_duration},
};

/// Writes of each surviving datacenter at least, and the pause between them.
const WRITES_MIN: u64 = 100;
const WRITE_PAUSE: Duration = Duration::from_millis(2);
/// How long EACH_QUORUM may take to work again.
const RETURN_PATIENCE: Duration = Duration::from_secs(20);

/// Stops the last datacenter, shows what that means, and brings it back.
pub(super) async fn show(
    cluster: &mut DemoCluster,
    clients: &[Client],
    data: &DataSet,
    story: &mut Story,
) -> Result<(), Failure> {
    let lost = cluster.datacenter_names().pop().expect("there are at least two");
    let survivors = &clients[..clients.len() - 1];
    let written = go_on_without(&lost, cluster, survivors, story).await?;
    refuse_what_needs_it(&lost, &survivors[0], story).await?;
    bring_back(&lost, cluster, &survivors[0], story).await?;
    serve_again(&lost, cluster, &written, data, story).await
}

/// What one datacenter wrote while another was lost.
struct Written {
    rows: Vec<(String, String)>,
    stale: u64,
    failed: Option<Error>,
    latencies: Latencies,
}

async fn go_on_without(
    lost: &str,
    cluster: &mut DemoCluster,
    survivors: &[Client],
    story: &mut Story,
) -> Result<Vec<Written>, Failure> {
    story.chapter(&format!("Stop {lost} at once, as if its power were cut, while others write"))?;
    let begun = Instant::now();
    cluster.kill(lost).await;
    let noticed = Cell::new(false);
    let bar = progress::spinner(story.output(), "LOCAL_QUORUM goes on; the others notice");
    let notice = async {
        let seen = cluster.await_datacenter(lost, false).await;
        noticed.set(true);
        seen.map(|()| begun.elapsed())
    };
    let writing = join_all(survivors.iter().map(|it| write_until(it, &noticed)));
    let (noticed_after, written) = tokio::join!(notice, writing);
    bar.finish_and_clear();
    for (client, it) in survivors.iter().zip(&written) {
        let slowest = spell_us(it.latencies.summary().max_us);
        story.check(
            it.failed.is_none() && it.stale == 0,
            &format!(
                "{}: {} writes and reads at LOCAL_QUORUM meanwhile: none failed, none stale, slowest {slowest}",
                client.datacenter(),
                spell_count(it.latencies.count()),
            ),
        )?;
        if let Some(error) = &it.failed {
            story.fact(&error.to_string())?;
        }
    }
    let after = spell_duration(noticed_after?);
    story.fact(&format!("after {after} every other node had noticed that {lost} is down"))?;
    Ok(written)
}

/// Writes at LOCAL_QUORUM, and reads each write back, until the loss was noticed.
async fn write_until(client: &Client, noticed: &Cell<bool>) -> Written {
    let keyspace = keyspace(client);
    let latencies = Latencies::new();
    let mut it = Written { rows: Vec::new(), stale: 0, failed: None, latencies };
    for number in 0u64.. {
        if noticed.get() && number >= WRITES_MIN {
            break;
        }
        let (key, value) = (format!("outage:{}:{number}", client.datacenter()), number.to_string());
        let level = ConsistencyLevel::LocalQuorum;
        let begun = Instant::now();
        let written = keyspace.put(key.as_str(), value.clone()).consistency(level).await;
        it.latencies.record(begun.elapsed());
        let read = match written {
            Ok(_) => {
                let begun = Instant::now();
                let read = keyspace.get(key.as_str()).consistency(level).await;
                it.latencies.record(begun.elapsed());
                read
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(read) => {
                it.stale += u64::from(read.value.as_deref() != Some(value.as_bytes()));
                it.rows.push((key, value));
            }
            Err(error) => it.failed = Some(error),
        }
        tokio::time::sleep(WRITE_PAUSE).await;
    }
    it
}

/// Shows that what needs the lost datacenter is refused, with nothing written, and what is not.
async fn refuse_what_needs_it(
    lost: &str,
    client: &Client,
    story: &mut Story,
) -> Result<(), Failure> {
    story.chapter(&format!(
        "With {lost} gone: what needs it is refused, before anything is written"
    ))?;
    let keyspace = keyspace(client);
    let mut quoted = false;
    for level in [ConsistencyLevel::EachQuorum, ConsistencyLevel::All] {
        let key = format!("refused:{level}");
        let put = keyspace.put(key.as_str(), "never").consistency(level).await;
        let held = matches!(&put, Err(error) if is_clear_refusal(error));
        story.check(held, &format!("a write at {level} is refused"))?;
        if let Err(error) = put
            && !quoted
        {
            quoted = true;
            let of = Attempt {
                key: Some(key.clone()),
                level: Some(level),
                writes: true,
                local_datacenter: local_datacenter(client),
                ..attempt()
            };
            let colour = story.output().colour();
            story.quote(&fail(&error, &of).render(colour))?;
        }
        let get = keyspace.get(key.as_str()).consistency(level).await;
        let held = matches!(&get, Err(error) if is_clear_refusal(error));
        story.check(held, &format!("a read at {level} is refused"))?;
        let get = keyspace.get(key.as_str()).consistency(ConsistencyLevel::LocalQuorum).await;
        let held = matches!(&get, Ok(read) if read.value.is_none());
        story.check(held, &format!("nothing of the write at {level} is there"))?;
    }
    quorum_of_all(client, story).await
}

/// QUORUM is a majority of all replicas, wherever they are: with three datacenters it survives the
/// loss of one, with two it does not.
async fn quorum_of_all(client: &Client, story: &mut Story) -> Result<(), Failure> {
    let keyspace = keyspace(client);
    let put = keyspace.put("outage:quorum", "a majority").consistency(ConsistencyLevel::Quorum);
    let survives = client.topology().datacenters().len() > 2;
    match put.await {
        Ok(written) => story.check(
            survives,
            &format!(
                "QUORUM, a majority of all replicas, goes on: {} required, {} answered",
                written.required,
                written.answered.len()
            ),
        ),
        Err(error) => {
            let held = !survives && is_clear_refusal(&error);
            story.check(held, &format!("QUORUM, a majority of all replicas: {}", error.message()))
        }
    }
}

fn is_clear_refusal(error: &Error) -> bool {
    error.reason() == Reason::NotEnoughReplicas
        && error.outcome() == CallOutcome::NotApplied
        && error.number("required") > error.number("alive")
}

async fn bring_back(
    lost: &str,
    cluster: &mut DemoCluster,
    client: &Client,
    story: &mut Story,
) -> Result<(), Failure> {
    story.chapter(&format!("Bring {lost} back, with the data it had"))?;
    let begun = Instant::now();
    cluster.revive(lost)?;
    story.fact(&format!("its nodes listen again after {}", spell_duration(begun.elapsed())))?;
    let bar = progress::spinner(story.output(), "the others notice");
    cluster.await_datacenter(lost, true).await?;
    let keyspace = keyspace(client);
    for level in [ConsistencyLevel::EachQuorum, ConsistencyLevel::All] {
        let key = format!("returned:{level}");
        let outcome = loop {
            match keyspace.put(key.as_str(), "yes").consistency(level).await {
                Err(_) if begun.elapsed() < RETURN_PATIENCE => {
                    tokio::time::sleep(WRITE_PAUSE).await;
                }
                other => break other,
            }
        };
        let after = spell_duration(begun.elapsed());
        match outcome {
            Ok(_) => story.check(true, &format!("writes at {level} work again after {after}"))?,
            Err(error) => {
                story.check(false, &format!("writes at {level} after {after}: {error}"))?
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Shows that the datacenter serves what it had, what it missed, and that reading repaired it.
async fn serve_again(
    lost: &str,
    cluster: &DemoCluster,
    written: &[Written],
    data: &DataSet,
    story: &mut Story,
) -> Result<(), Failure> {
    let addresses = cluster.addresses().remove(lost).expect("it is one of them");
    let client = cluster::client(lost, &addresses).await?;
    let loaded: Vec<_> = data.rows().iter().step_by(97).collect();
    let mut found = 0;
    for row in &loaded {
        let read = keyspace(&client).get(&row.key).consistency(ConsistencyLevel::LocalQuorum).await;
        found += usize::from(matches!(&read, Ok(it) if it.value.as_ref() == Some(&row.value)));
    }
    story.check(
        found == loaded.len(),
        &format!(
            "{lost} alone, at LOCAL_QUORUM: {found} of {} rows loaded before are there",
            loaded.len()
        ),
    )?;

    let missed: Vec<_> = written.iter().flat_map(|it| &it.rows).collect();
    let all = missed.len();
    let right = count_right(&client, &missed, ConsistencyLevel::LocalQuorum).await;
    story.fact(&format!(
        "of the {all} rows written while it was away, it alone answers {right} by now"
    ))?;
    let right = count_right(&client, &missed, ConsistencyLevel::EachQuorum).await;
    story.check(
        right == all,
        &format!("read through {lost} at EACH_QUORUM, {right} of {all} are as they were written"),
    )?;
    let right = count_right(&client, &missed, ConsistencyLevel::LocalQuorum).await;
    story.check(
        right == all,
        &format!("those reads repaired it: it alone now answers {right} of {all}"),
    )
}

/// How many of the rows a datacenter answers as they were written.
async fn count_right(
    client: &Client,
    rows: &[&(String, String)],
    level: ConsistencyLevel,
) -> usize {
    let keyspace = keyspace(client);
    let mut right = 0;
    for (key, value) in rows {
        let read = keyspace.get(key.as_str()).consistency(level).await;
        right +=
            usize::from(matches!(&read, Ok(it) if it.value.as_deref() == Some(value.as_bytes())));
    }
    right
}
