//! Every row of the table under "Replies" in the design, by name.

use std::time::Duration;

use andon::metrics::Health;
use andon::settings::Secret;
use andon::simulator::cloud::{Cloud, Fault, Options};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::rig::{Rig, config, fill, id, rig, start, until};

#[tokio::test]
async fn accepted_2xx() {
    for status in [200, 201, 202, 204, 207] {
        let rig = rig(3, "", |c| c.rules(|r| r.always = Some(Fault::status(status)))).await;
        rig.all_settled().await;
        assert_eq!(rig.statuses(), [status]);
        assert_eq!(rig.board().health, Health::Up);
        assert_eq!(rig.metric(r#"andon_forward_records_total{sink="cloud"}"#), Some(3.0));
        assert_eq!(rig.metric(r#"andon_forward_delay_seconds_count{sink="cloud"}"#), Some(3.0));
    }
}

#[tokio::test]
async fn retried_408_409_425_429_and_5xx() {
    for status in [408, 409, 425, 429, 500, 501, 502, 503, 504, 599] {
        let rig = rig(700, "", |c| c.script(vec![Fault::status(status); 5])).await;
        rig.all_settled().await;
        rig.taken_once(0..700);
        assert_eq!(rig.outbox.dead(), [], "{status}");
        let seen = rig.seen();
        assert_eq!(rig.statuses(), [status, status, status, status, status, 202, 202]);
        assert!(seen[..6].iter().all(|s| s.key == seen[0].key), "a resend has the same key");
        assert_ne!(seen[6].key, seen[0].key);
        assert_eq!(
            rig.metric(&format!(r#"andon_forward_requests_total{{sink="cloud",outcome="{status}"}}"#)),
            Some(5.0)
        );
    }
}

#[tokio::test]
async fn retried_after_a_cut_connection() {
    let rig = rig(10, "", |c| c.script([Fault::CutBefore, Fault::CutBefore])).await;
    rig.all_settled().await;
    rig.taken_once(0..10);
    assert_eq!(rig.statuses(), [0, 0, 202]);
}

#[tokio::test]
async fn a_lost_answer_repeats_the_same_request() {
    let rig = rig(10, "", |c| c.script([Fault::CutAfter])).await;
    rig.all_settled().await;
    rig.taken_once(0..10);
    assert_eq!(rig.cloud.stats().replays, 1, "recognised by its Idempotency-Key");
}

#[tokio::test]
async fn retried_after_a_timeout() {
    let slow = Fault::delay(Duration::from_secs(30));
    let rig = rig(10, "timeout = \"300ms\"", |c| c.script([slow])).await;
    rig.all_settled().await;
    assert_eq!(rig.metric(r#"andon_forward_requests_total{sink="cloud",outcome="timeout"}"#), Some(1.0));
    rig.taken_once(0..10);
}

#[tokio::test]
async fn a_cloud_that_is_not_there_is_waited_for() {
    let mut rig = rig(10, "", |_| {}).await;
    rig.all_settled().await;
    let addr = rig.cloud.addr();
    let other = crate::rig::cloud().await;
    std::mem::replace(&mut rig.cloud, other).stop().await;
    fill(&rig.outbox, 10..20);
    until("the board tells", || rig.board().health == Health::Down).await;
    assert_eq!(rig.outbox.waiting(), 10);
    rig.cloud = Cloud::start(addr, Options::default()).await.expect("the port is still free");
    rig.all_settled().await;
    rig.taken_once(10..20);
    assert_eq!(rig.board().health, Health::Up);
}

#[tokio::test]
async fn half_an_answer_of_200_is_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let outbox = std::sync::Arc::new(andon::forward::memory::MemoryOutbox::new(10));
    fill(&outbox, 0..3);
    let (_shared, _sink) = start(config(&url, "compress = \"none\""), &outbox, Duration::ZERO);
    let mut bodies = Vec::new();
    for answer in ["200 OK\r\ncontent-length: 99\r\n\r\n{\"results\":", "202 Accepted\r\ncontent-length: 0\r\n\r\n"] {
        let (mut stream, _) =
            timeout(Duration::from_secs(20), listener.accept()).await.expect("in time").expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(b"]") {
            assert!(stream.read_buf(&mut request).await.expect("bytes") > 0);
        }
        assert_eq!(outbox.waiting(), 3, "nothing is acked yet");
        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.expect("written");
        bodies.push(request);
    }
    until("all is delivered", || outbox.waiting() == 0).await;
    assert_eq!(bodies[0], bodies[1], "the same request again, byte for byte");
}

fn gap(rig: &Rig) -> Duration {
    let seen = rig.seen();
    seen[1].at - seen[0].at
}

#[tokio::test]
async fn retry_after_in_seconds_is_honoured() {
    let rig = rig(10, "", |c| c.script([Fault::busy(429, "2")])).await;
    rig.all_settled().await;
    assert!(gap(&rig) >= Duration::from_secs(2), "{:?}", gap(&rig));
    rig.taken_once(0..10);
}

#[tokio::test]
async fn retry_after_as_a_date_is_honoured() {
    let in_three_seconds = jiff::Timestamp::now() + Duration::from_secs(3);
    let date =
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&in_three_seconds).expect("a date");
    let rig = rig(10, "", |c| c.script([Fault::busy(503, date)])).await;
    rig.all_settled().await;
    // The date has lost its fraction of a second.
    assert!(gap(&rig) >= Duration::from_millis(1800), "{:?}", gap(&rig));
}

#[tokio::test]
async fn too_large_413_splits_and_remembers_the_size() {
    let rig = rig(5000, "batch_events = 2000", |c| c.rules(|r| r.max_bytes = Some(32 << 10))).await;
    rig.all_settled().await;
    rig.taken_once(0..5000);
    assert_eq!(rig.outbox.dead(), []);
    let statuses = rig.statuses();
    let refusals = statuses.iter().filter(|&&s| s == 413).count();
    assert!((1..=8).contains(&refusals), "{refusals} of {} requests were too large", statuses.len());
    let last_refusal = statuses.iter().rposition(|&s| s == 413);
    assert!(last_refusal < Some(10), "remembered after the first batch: {last_refusal:?}");
}

#[tokio::test]
async fn too_large_413_on_its_own_is_set_aside() {
    let rig = rig(0, "", |c| c.rules(|r| r.max_bytes = Some(2 << 10))).await;
    let mut big = crate::rig::record(1);
    big.data = format!(r#"{{"machine":"press-04","text":"{}"}}"#, "x".repeat(4 << 10));
    for record in [crate::rig::record(0), big, crate::rig::record(2)] {
        rig.outbox.push(record).expect("room");
    }
    rig.all_settled().await;
    rig.taken_once([0, 2].into_iter());
    let dead = rig.outbox.dead();
    assert_eq!((dead.len(), dead[0].0.record.id), (1, id(1)));
}

#[tokio::test]
async fn refused_400_and_422_bisect_to_the_one_poison_record() {
    let poison = id(321).to_string();
    let rig = rig(500, "", |c| c.rules(|r| r.poison.extend([poison]))).await;
    rig.all_settled().await;
    rig.taken_once((0..500).filter(|n| *n != 321));
    let dead = rig.outbox.dead();
    assert_eq!((dead.len(), dead[0].0.record.id), (1, id(321)));
    assert_eq!(dead[0].1, "422: one event is not acceptable");
    assert!(rig.seen().len() < 20);
    assert_eq!(rig.metric(r#"andon_forward_dead_letters_total{sink="cloud"}"#), Some(1.0));
}

#[tokio::test]
async fn refused_400_alone_is_set_aside() {
    let rig = rig(1, "", |c| c.script([Fault::status(400)])).await;
    rig.all_settled().await;
    assert_eq!(rig.outbox.dead()[0].1, "400");
}

#[tokio::test]
async fn data_that_is_no_json_is_set_aside_without_asking() {
    let rig = rig(2, "", |_| {}).await;
    let mut broken = crate::rig::record(2);
    broken.data = "{\"half\":".into();
    rig.outbox.push(broken).expect("room");
    fill(&rig.outbox, 3..5);
    rig.all_settled().await;
    rig.taken_once([0, 1, 3, 4].into_iter());
    assert_eq!(rig.outbox.dead().len(), 1);
    assert!(!rig.statuses().contains(&400));
}

#[tokio::test]
async fn a_cloud_that_refuses_everything_is_not_fed_everything() {
    let rig = rig(5000, "", |c| c.rules(|r| r.always = Some(Fault::status(400)))).await;
    until("the board tells", || rig.board().health == Health::Down).await;
    let dead = rig.outbox.dead().len();
    assert!((32..200).contains(&dead), "{dead} set aside");
    rig.cloud.rules(|r| r.always = None);
    rig.all_settled().await;
    assert_eq!(rig.outbox.acked() as usize + rig.outbox.dead().len(), 5000);
}

#[tokio::test]
async fn unauthorized_401_rereads_the_token_and_keeps_everything() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("token");
    std::fs::write(&file, "old\n").expect("written");
    let more = format!("token_file = {:?}", file.display().to_string());
    let rig = rig(10, &more, |c| c.rules(|r| r.token = Some(Secret::new("new".into())))).await;
    until("the sink has tried a few times", || rig.seen().len() > 3).await;
    assert_eq!(rig.board().health, Health::Down);
    assert_eq!((rig.outbox.waiting(), rig.outbox.dead().len()), (10, 0));
    std::fs::write(&file, "new\n").expect("written");
    rig.all_settled().await;
    rig.taken_once(0..10);
    assert_eq!(rig.board().health, Health::Up);
}

#[tokio::test]
async fn forbidden_403_keeps_everything() {
    let rig = rig(10, "", |c| c.script(vec![Fault::status(403); 4])).await;
    rig.all_settled().await;
    rig.taken_once(0..10);
    assert_eq!(rig.statuses(), [403, 403, 403, 403, 202]);
}

#[tokio::test]
async fn redirects_3xx_are_never_followed() {
    for status in [301, 302, 303, 307, 308] {
        let rig = rig(10, "", |c| c.rules(|r| r.always = Some(Fault::status(status)))).await;
        until("the sink has tried twice", || rig.seen().len() > 1).await;
        assert_eq!(rig.board().health, Health::Down);
        assert!(rig.board().detail.contains("check `url`"), "{}", rig.board().detail);
        rig.cloud.rules(|r| r.always = None);
        rig.all_settled().await;
        assert_eq!(rig.cloud.stats().strays, 0);
        rig.taken_once(0..10);
    }
}

#[tokio::test]
async fn other_4xx_keep_everything() {
    for status in [402, 404, 405, 406, 451] {
        let rig = rig(10, "", |c| c.script(vec![Fault::status(status); 3])).await;
        rig.all_settled().await;
        rig.taken_once(0..10);
        assert_eq!(rig.outbox.dead(), []);
    }
}

#[tokio::test]
async fn gone_410_stops_the_sink() {
    let mut rig = rig(10, "", |c| c.script([Fault::status(410)])).await;
    until("the board tells", || rig.board().health == Health::Down).await;
    fill(&rig.outbox, 10..600);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.statuses(), [410], "nothing is sent any more");
    assert!(!rig.sink.is_finished(), "it ends with the agent");
    rig.stop().await;
    assert_eq!(rig.outbox.waiting(), 600);
    assert_eq!(rig.statuses(), [410]);
    // A restart tries again.
    let (shared, sink) = start(config(&rig.cloud.url(), ""), &rig.outbox, Duration::from_secs(5));
    rig.all_settled().await;
    shared.stop.cancel();
    sink.await.expect("the sink ends");
    rig.taken_once(0..600);
}

#[tokio::test]
async fn unreadable_codings_415_are_replaced_by_older_ones() {
    let rig = rig(10, "", |c| c.rules(|r| r.unreadable = vec!["zstd".into(), "gzip".into()])).await;
    rig.all_settled().await;
    assert_eq!(rig.statuses(), [415, 415, 202]);
    rig.taken_once(0..10);
    let key = rig.seen()[0].key.clone();
    assert!(rig.seen().iter().all(|s| s.key == key), "the content is the same");
}

#[tokio::test]
async fn results_put_off_per_record_are_sent_again_alone() {
    let rig = rig(100, "", |c| c.script([Fault::Partial { every: 3, status: 503 }])).await;
    rig.all_settled().await;
    rig.taken_once(0..100);
    let sent: Vec<usize> = rig.seen().iter().map(|s| s.ids.len()).collect();
    assert_eq!(sent, [100, 33]);
}

#[tokio::test]
async fn results_refused_per_record_are_set_aside_without_bisecting() {
    let poison = [id(7).to_string(), id(8).to_string()];
    let rig = rig(100, "", |c| {
        c.rules(|r| {
            r.poison.extend(poison);
            r.per_record = true;
        })
    })
    .await;
    rig.all_settled().await;
    assert_eq!(rig.statuses(), [207]);
    rig.taken_once((0..100).filter(|n| ![7, 8].contains(n)));
    let dead: Vec<_> = rig.outbox.dead().iter().map(|(s, why)| (s.record.id, why.clone())).collect();
    assert_eq!(dead, [(id(7), "422".into()), (id(8), "422".into())]);
}

#[tokio::test]
async fn bodies_that_are_no_json_or_too_large_mean_accepted() {
    for fault in [Fault::Garbage, Fault::Flood] {
        let rig = rig(10, "", |c| c.script([fault])).await;
        rig.all_settled().await;
        assert_eq!(rig.statuses(), [200]);
        rig.taken_once(0..10);
    }
}

#[tokio::test]
async fn single_events_have_their_own_content_type() {
    for compress in ["none", "gzip", "zstd"] {
        let rig = rig(5, &format!("batch_events = 1\ncompress = {compress:?}"), |_| {}).await;
        rig.all_settled().await;
        rig.taken_once(0..5);
        let seen = rig.seen();
        assert_eq!(seen.len(), 5);
        assert!(seen.iter().all(|s| s.content_type == "application/cloudevents+json"));
    }
}

#[tokio::test]
async fn batches_are_full_compressed_and_keyed() {
    let rig = rig(1000, "batch_events = 250\nmax_requests = 1", |_| {}).await;
    rig.all_settled().await;
    let seen = rig.seen();
    assert_eq!(seen.iter().map(|s| s.ids.len()).collect::<Vec<_>>(), [250; 4]);
    assert!(seen.iter().all(|s| s.content_type == "application/cloudevents-batch+json" && s.wire_bytes < 250 * 100));
    assert!(seen.iter().all(|s| s.key.len() == 66 && s.key.starts_with('"') && s.key.ends_with('"')));
    let order: Vec<String> = seen.into_iter().flat_map(|s| s.ids).collect();
    assert_eq!(order, (0..1000).map(|n| id(n).to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_not_to_leave_does_not_leave() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (key, log) = (dir.path().join("key"), dir.path().join("log"));
    std::fs::write(&key, "a key that nobody guesses").expect("written");
    let options = Options { log: Some(log.clone()), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a free port");
    let outbox = std::sync::Arc::new(andon::forward::memory::MemoryOutbox::new(10));
    fill(&outbox, 0..3);
    let more =
        format!("fields = [\"score\"]\npseudonymise = true\npseudonym_key_file = {:?}", key.display().to_string());
    let (_shared, _sink) = start(config(&cloud.url(), &more), &outbox, Duration::ZERO);
    until("all is delivered", || outbox.waiting() == 0).await;
    let taken = std::fs::read_to_string(log).expect("a log");
    assert_eq!(taken.lines().count(), 3);
    assert!(!taken.contains("press-04") && !taken.contains("\"n\""), "{taken}");
    assert!(taken.contains("\"score\":0.25"), "{taken}");
}
