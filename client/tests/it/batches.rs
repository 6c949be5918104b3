//! Batches: results in order, keys sent again one by one.

use client::{CallError, CallOutcome, ClientConfig, Reason, WriteItem};

use crate::fake::{Answer, Fake};

fn items(names: &[&str]) -> Vec<WriteItem> {
    names.iter().map(|it| WriteItem::put(*it, "value")).collect()
}

/// The keys of each call so far.
fn calls(fake: &Fake) -> Vec<String> {
    fake.received().iter().map(|it| it.about.join(" ")).collect()
}

#[tokio::test]
async fn a_batch_is_one_call_with_results_in_order() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let results = keyspace.batch_write(items(&["3", "1", "2"])).await;
    let clocks: Vec<_> = results.into_iter().map(|it| it.unwrap().hlc.0).collect();
    assert_eq!(clocks, [3, 1, 2]);
    let results = keyspace.batch_get(["x", "absent", "y"]).await;
    let values: Vec<_> = results.into_iter().map(|it| it.unwrap()).collect();
    assert_eq!(
        values.iter().map(|it| it.value.as_deref()).collect::<Vec<_>>(),
        [Some(&b"x"[..]), None, Some(&b"y"[..])]
    );
    assert!(values.iter().all(|it| it.version.is_some()), "a deletion tells its version too");
    assert_eq!(calls(&fake), ["3 1 2", "x absent y"]);
    assert!(keyspace.batch_write(Vec::new()).await.is_empty());
    assert_eq!(fake.received().len(), 2, "an empty batch sends nothing");
}

#[tokio::test]
async fn only_keys_that_were_not_written_are_sent_again() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([
        Answer::Keys(vec![
            ("1", CallError::new(Reason::NotEnoughReplicas, "none is up").with_clock(9)),
            ("2", CallError::new(Reason::WriteTimeout, "1 of 2")),
            ("4", CallError::new(Reason::NotEnoughReplicas, "none is up")),
            ("5", CallError::new(Reason::ValueTooLarge, "too large")),
        ]),
        Answer::Keys(vec![("4", CallError::new(Reason::WriteTimeout, "1 of 2"))]),
    ]);
    let results = keyspace.batch_write(items(&["1", "2", "3", "4", "5"])).await;
    let told: Vec<_> = results
        .iter()
        .map(|it| it.as_ref().map(|it| it.hlc.0).map_err(|it| (it.reason(), it.outcome())))
        .collect();
    assert_eq!(
        told,
        [
            Ok(1),
            Err((Reason::WriteTimeout, CallOutcome::Unknown)),
            Ok(3),
            Err((Reason::WriteTimeout, CallOutcome::Unknown)),
            Err((Reason::ValueTooLarge, CallOutcome::NotApplied)),
        ]
    );
    assert_eq!(calls(&fake), ["1 2 3 4 5", "1 4"]);
    assert_eq!(fake.received()[1].clock, 9, "a key's error carries the clock too");
}

#[tokio::test]
async fn keys_that_could_not_be_read_are_read_again() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([Answer::Keys(vec![("b", CallError::new(Reason::ReadTimeout, "1 of 2"))])]);
    let results = keyspace.batch_get(["a", "b"]).await;
    let values: Vec<_> = results.into_iter().map(|it| it.unwrap().value.unwrap()).collect();
    assert_eq!(values, ["a", "b"]);
    assert_eq!(calls(&fake), ["a b", "b"]);
}

#[tokio::test]
async fn a_broken_connection_leaves_every_write_of_the_batch_unknown() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([Answer::Break]);
    let results = keyspace.batch_write(items(&["1", "2"])).await;
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|it| it.as_ref().unwrap_err().is_unknown_write()));
    assert_eq!(fake.received().len(), 1);
}

#[tokio::test]
async fn all_parts_of_a_batch_share_its_time() {
    let fake = Fake::start(&["a", "a"]).await;
    let config = ClientConfig { batch_keys_max: 1, ..fake.config() };
    let keyspace = client::Client::connect(config).await.unwrap().keyspace("k");
    fake.script(vec![Answer::Hang; 4]);
    let call = keyspace.batch_write(items(&["1", "2", "3", "4", "5"]));
    let results = call.timeout(std::time::Duration::from_millis(200)).await;
    let outcomes: Vec<_> = results.iter().map(|it| it.as_ref().unwrap_err().outcome()).collect();
    assert_eq!(outcomes[..4], [CallOutcome::Unknown; 4]);
    assert_eq!(outcomes[4], CallOutcome::NotApplied, "it was never sent");
    assert_eq!(fake.received().len(), 4);
}

#[tokio::test]
async fn a_large_batch_is_sent_in_parts() {
    let fake = Fake::start(&["a", "a"]).await;
    let config = ClientConfig { batch_keys_max: 2, ..fake.config() };
    let keyspace = client::Client::connect(config).await.unwrap().keyspace("k");
    let results = keyspace.batch_write(items(&["5", "4", "3", "2", "1"])).await;
    let clocks: Vec<_> = results.into_iter().map(|it| it.unwrap().hlc.0).collect();
    assert_eq!(clocks, [5, 4, 3, 2, 1]);
    let mut calls = calls(&fake);
    calls.sort();
    assert_eq!(calls, ["1", "3 2", "5 4"]);
    let results = keyspace.batch_write(items(&["1", "2", "1"])).await;
    assert!(results.iter().all(|it| it.as_ref().unwrap_err().reason() == Reason::DuplicateKey));
    assert_eq!(fake.received().len(), 3, "nothing of it was sent");
}
