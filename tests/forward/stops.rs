//! Stopping, draining, and how soon a single record leaves.

use std::time::Duration;

use andon::forward::cloud::probe;
use andon::simulator::cloud::Fault;
use tokio::time::{Instant, timeout};

use crate::rig::{cloud, config, fill, rig, start, until};

#[tokio::test]
async fn a_stop_lets_the_request_in_flight_finish_and_sends_the_rest() {
    let slow = Fault::delay(Duration::from_millis(300));
    let mut rig = rig(2000, "", |c| c.rules(|r| r.always = Some(slow))).await;
    until("the first answer has come", || !rig.seen().is_empty()).await;
    rig.cloud.rules(|r| r.always = None);
    rig.outbox.close();
    rig.stop().await;
    assert_eq!(rig.outbox.waiting(), 0);
    rig.taken_once(0..2000);
}

#[tokio::test]
async fn records_that_come_while_stopping_are_sent() {
    let mut rig = rig(1, "", |_| {}).await;
    rig.all_settled().await;
    rig.shared.stop.cancel();
    fill(&rig.outbox, 1..300);
    rig.outbox.close();
    (&mut rig.sink).await.expect("the sink ends");
    rig.taken_once(0..300);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_cloud_that_is_away() {
    let mut rig = rig(10, "", |c| c.rules(|r| r.always = Some(Fault::CutBefore))).await;
    until("the sink has tried", || !rig.seen().is_empty()).await;
    timeout(Duration::from_secs(4), rig.stop()).await.expect("well before the grace is over");
    assert_eq!(rig.outbox.waiting(), 10, "all is kept");
    assert_eq!(rig.outbox.dead(), []);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_long_retry_after() {
    let mut rig = rig(10, "", |c| c.script([Fault::busy(429, "3600")])).await;
    until("the cloud has answered", || rig.seen().len() == 1).await;
    timeout(Duration::from_secs(4), rig.stop()).await.expect("at once");
    assert_eq!(rig.statuses(), [429], "and it is not disturbed again");
    assert_eq!(rig.outbox.waiting(), 10);
}

#[tokio::test]
async fn a_hanging_cloud_cannot_hold_up_a_stop_for_ever() {
    let cloud = cloud().await;
    cloud.rules(|r| r.always = Some(Fault::delay(Duration::from_secs(120))));
    let outbox = std::sync::Arc::new(andon::forward::memory::MemoryOutbox::new(100));
    fill(&outbox, 0..10);
    let mut config = config(&cloud.url(), "");
    config.tempo.finish = Duration::from_millis(200);
    let (shared, sink) = start(config, &outbox, Duration::from_millis(200));
    tokio::time::sleep(Duration::from_millis(100)).await;
    shared.stop.cancel();
    timeout(Duration::from_secs(4), sink).await.expect("in time").expect("without panic");
    assert_eq!(outbox.waiting(), 10);
}

#[tokio::test]
async fn a_probe_dials_and_sends_nothing() {
    let cloud = cloud().await;
    let config = config(&cloud.url(), "");
    assert_eq!(probe(&config).await.expect("an answer"), 405);
    assert_eq!(cloud.stats().requests, 0);
    cloud.stop().await;
    let error = probe(&config).await.expect_err("nobody is there");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn an_outbox_that_closes_ends_the_sink() {
    let mut rig = rig(10, "", |_| {}).await;
    rig.outbox.close();
    (&mut rig.sink).await.expect("the sink ends");
    rig.taken_once(0..10);
}

#[tokio::test]
async fn a_single_record_leaves_at_once_and_a_trickle_is_gathered() {
    let rig = rig(1, "", |_| {}).await;
    rig.all_settled().await;
    let start = Instant::now();
    for n in 1..200 {
        fill(&rig.outbox, n..n + 1);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    rig.all_settled().await;
    let (took, requests) = (start.elapsed(), rig.seen().len() as u128 - 1);
    // One request at most for every 100 ms, and some for those that came after a quiet time.
    assert!(requests <= 4 + took.as_millis() / 50, "{requests} requests in {took:?}");
    rig.taken_once(0..200);
}
