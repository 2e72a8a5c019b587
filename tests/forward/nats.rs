//! The JetStream sink against a real cluster, of which one node after the other is killed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::metrics::Health;
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::rig::{fill, id, run_sink, until};
use crate::support::nats::Cluster;

const PATIENCE: Duration = Duration::from_secs(90);

async fn make_stream(cluster: &Cluster, replicas: usize) -> jetstream::Context {
    let client = async_nats::connect(cluster.urls()).await.expect("a connection");
    let context = jetstream::new(client);
    let config = stream::Config {
        name: "ANDON".into(),
        subjects: vec!["andon.>".into()],
        num_replicas: replicas,
        duplicate_window: Duration::from_secs(120),
        ..Default::default()
    };
    // The cluster may still be choosing its leader.
    let made = async {
        while let Err(e) = context.create_stream(config.clone()).await {
            println!("not yet: {e}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, made).await.expect("a stream");
    context
}

/// How often each id is in the stream, and the subjects.
async fn content(context: &jetstream::Context) -> (HashMap<String, u32>, Vec<String>) {
    let read = async {
        let mut stream = context.get_stream("ANDON").await.expect("a stream");
        let n = stream.info().await.expect("its state").state.messages;
        let config = jetstream::consumer::pull::OrderedConfig::default();
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let mut messages = consumer.messages().await.expect("messages");
        let (mut ids, mut subjects) = (HashMap::new(), Vec::new());
        for _ in 0..n {
            let message = messages.next().await.expect("one more").expect("a message");
            let event: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
            let header = message.headers.as_ref().and_then(|h| h.get("Nats-Msg-Id")).map(|v| v.to_string());
            assert_eq!(header.as_deref(), event["id"].as_str());
            *ids.entry(event["id"].as_str().expect("an id").to_owned()).or_default() += 1;
            subjects.push(message.subject.to_string());
        }
        (ids, subjects)
    };
    timeout(PATIENCE, read).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_after_the_other_dies_and_every_record_is_in_the_stream_once() {
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::start(3)).await.expect("a cluster");
    let context = make_stream(&cluster, 3).await;
    let outbox = Arc::new(MemoryOutbox::new(1_000_000));
    let text =
        format!("[[sink.nats]]\nname = \"site\"\nurl = {:?}\nstream = \"ANDON\"\ntimeout = \"2s\"\n", cluster.urls());
    let (shared, sink) = run_sink(&text, &outbox);
    let mut n = 0_u64;
    for node in [0, 1, 2, 0, 1, 2] {
        // Killed in the middle of a stream of records, of which some come while it is dead.
        for step in 0..20 {
            fill(&outbox, n..n + 100);
            n += 100;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if step == 5 {
                cluster.kill(node);
            }
        }
        let taken = outbox.acked();
        until("records are taken by the two that are left", || outbox.acked() > taken || outbox.waiting() == 0).await;
        cluster = tokio::task::spawn_blocking(move || {
            cluster.restart(node);
            cluster
        })
        .await
        .expect("it starts again");
    }
    until("all is delivered", || outbox.waiting() == 0).await;
    let (ids, _) = content(&context).await;
    let missing: Vec<u64> = (0..n).filter(|&n| !ids.contains_key(&id(n).to_string())).collect();
    let twice = ids.values().filter(|c| **c > 1).count();
    println!("{n} records, {} messages, 6 kills", ids.values().sum::<u32>());
    assert_eq!((missing, twice, ids.len() as u64), (Vec::new(), 0, n));
    assert_eq!(outbox.dead(), []);
    shared.stop.cancel();
    sink.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_twice_is_in_the_stream_once_and_no_stream_is_waited_for() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(1)).await.expect("a server");
    let outbox = Arc::new(MemoryOutbox::new(1_000));
    fill(&outbox, 0..100);
    let text = format!("[[sink.nats]]\nname = \"site\"\nurl = {:?}\ntimeout = \"1s\"\n", cluster.urls());
    let (shared, sink) = run_sink(&text, &outbox);
    let part = || shared.board.components().remove("sink/site");
    until("it says that nobody takes the subject", || {
        part().is_some_and(|c| c.health == Health::Down && c.detail.contains("no stream"))
    })
    .await;
    assert_eq!(outbox.waiting(), 100);
    let context = make_stream(&cluster, 1).await;
    until("all is delivered", || outbox.waiting() == 0).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    // A run that was killed before its cursor was saved sends some of them again.
    let again = Arc::new(MemoryOutbox::new(1_000));
    fill(&again, 50..150);
    let (shared, sink) = run_sink(&text, &again);
    until("all is delivered again", || again.waiting() == 0).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    let (ids, subjects) = content(&context).await;
    assert_eq!((ids.len(), ids.values().max()), (150, Some(&1)));
    assert!(subjects.iter().all(|s| s == "andon.lyon.line3.gw-07.verdict.press-04"), "{subjects:?}");
}
