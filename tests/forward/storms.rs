//! Everything at once, for a while: nothing is lost and nothing is taken twice.

use std::sync::Arc;
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::simulator::cloud::{Fault, Options, Storm};

use crate::rig::{Rig, config, fill, id, rig, start};

fn weather() -> Vec<Fault> {
    vec![
        Fault::status(408),
        Fault::status(409),
        Fault::status(429),
        Fault::status(500),
        Fault::status(503),
        Fault::status(401),
        Fault::status(302),
        Fault::status(404),
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::delay(Duration::from_millis(5)),
        Fault::Partial { every: 3, status: 503 },
        Fault::Partial { every: 1, status: 429 },
        Fault::Garbage,
        Fault::Flood,
    ]
}

async fn ten_thousand_records(seed: u64) {
    let poison: Vec<u64> = vec![17, 4_242, 9_999];
    let rig = rig(10_000, "batch_events = 100", |c| {
        c.rules(|r| {
            r.storm = Some(Storm::new(seed, 60, weather()));
            r.poison = poison.iter().map(|&n| id(n).to_string()).collect();
            r.max_bytes = Some(20 << 10);
        });
    })
    .await;
    rig.all_settled().await;
    let mut dead: Vec<_> = rig.outbox.dead().iter().map(|(s, _)| s.record.id).collect();
    let mut expected: Vec<_> = poison.iter().map(|&n| id(n)).collect();
    dead.sort();
    expected.sort();
    assert_eq!(dead, expected);
    rig.taken_once((0..10_000).filter(|n| !poison.contains(n)));
    let stats = rig.cloud.stats();
    assert_eq!((stats.distinct, stats.duplicates, stats.strays), (9_997, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_records_through_a_mixed_storm() {
    ten_thousand_records(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_records_through_another_storm() {
    ten_thousand_records(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_a_storm_lose_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("events.ndjson");
    let options = Options { log: Some(log.clone()), ..Options::default() };
    let cloud = andon::simulator::cloud::Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a free port");
    cloud.rules(|r| r.storm = Some(Storm::new(7, 50, weather())));
    let outbox = Arc::new(MemoryOutbox::new(10_000));
    fill(&outbox, 0..5_000);
    let mut kills = 0;
    while outbox.waiting() > 0 {
        let (shared, sink) = start(config(&cloud.url(), "batch_events = 50"), &outbox, Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(20)).await;
        // As kill -9: in the middle of anything.
        sink.abort();
        let _ = sink.await;
        shared.stop.cancel();
        kills += 1;
    }
    assert!(kills > 2, "it was killed {kills} times");
    assert_eq!(outbox.dead(), []);
    let missing = (0..5_000).find(|&n| cloud.count(&id(n).to_string()) == 0);
    assert_eq!(missing, None);
    assert_eq!(cloud.stats().distinct, 5_000);
    let text = std::fs::read_to_string(log).expect("a log");
    let events: Vec<serde_json::Value> =
        text.lines().map(|l| serde_json::from_str(l).expect("an event on each line")).collect();
    assert_eq!(events.len() as u64, cloud.stats().received);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_tells_its_stats_and_takes_faults_over_http() {
    let rig: Rig = rig(0, "", |_| {}).await;
    let base = format!("http://{}", rig.cloud.addr());
    let client = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(plain()).build().expect("a client");
    let faults = r#"[{"fault":"status","status":503},{"fault":"cut_after"}]"#;
    let post = client.post(format!("{base}/faults")).header("content-type", "application/json").body(faults);
    assert!(post.send().await.expect("an answer").status().is_success());
    fill(&rig.outbox, 0..3);
    rig.all_settled().await;
    let stats: serde_json::Value =
        client.get(format!("{base}/stats")).send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(stats["distinct"], 3);
    assert_eq!(stats["replays"], 1);
    assert_eq!(stats["types"]["io.andon.verdict.v1"], 3);
}

fn plain() -> rustls::ClientConfig {
    andon::tls::Tls::default().client_config().expect("no files needed")
}
