//! The MQTT bridge against a real broker, and against one that takes its time over an answer.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::forward::sinks;
use andon::metrics::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::rig::{fill, id, record, run_sink, sink as sink_of, until};
use crate::support::mosquitto::Mosquitto;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(url: &str, more: &str) -> String {
    format!("[[sink.mqtt]]\nname = \"iot\"\nurl = {url:?}\n{more}")
}

/// `mosquitto_sub`, waiting for so many messages: topic, content type, user properties, payload.
fn subscriber(broker: &Mosquitto, n: usize) -> std::process::Child {
    let mut command = Command::new("mosquitto_sub");
    command.args(["-V", "mqttv5", "-q", "1", "-t", "andon/#", "-F", "%t\t%C\t%P\t%p", "-W", "60"]);
    command.args(["-p", &broker.port().to_string(), "-C", &n.to_string()]);
    let child = command.stdout(Stdio::piped()).spawn().expect("mosquitto_sub is installed");
    let log = || broker.log().matches("Sending SUBACK to").count();
    let before = std::time::Instant::now();
    while log() == 0 {
        assert!(before.elapsed() < PATIENCE, "it does not subscribe");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn lines(child: std::process::Child) -> Vec<Vec<String>> {
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|l| l.split('\t').map(str::to_owned).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_5_in_binary_mode() {
    let broker = Mosquitto::start();
    let subscriber = subscriber(&broker, 1_000);
    let outbox = Arc::new(MemoryOutbox::new(10_000));
    fill(&outbox, 0..1_000);
    let (shared, sink) = run_sink(&config(&broker.url(), ""), &outbox);
    until("all is delivered", || outbox.waiting() == 0).await;
    let lines = tokio::task::spawn_blocking(|| lines(subscriber)).await.expect("lines");
    let mut seen = BTreeMap::new();
    for line in &lines {
        assert_eq!(line[0], "andon/lyon/line3/gw-07/verdict/press-04");
        assert_eq!(line[1], "application/json");
        let data: serde_json::Value = serde_json::from_str(&line[3]).expect("JSON");
        let n = data["n"].as_u64().expect("a number");
        assert!(
            line[2].contains(&format!("id:{}", id(n))) && line[2].contains("type:io.andon.verdict.v1"),
            "{}",
            line[2]
        );
        *seen.entry(n).or_insert(0) += 1;
    }
    assert_eq!((seen.len(), seen.values().max()), (1_000, Some(&1)));
    shared.stop.cancel();
    sink.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_3_in_structured_mode_and_what_is_too_large_is_set_aside() {
    let broker = Mosquitto::start();
    let subscriber = subscriber(&broker, 20);
    let outbox = Arc::new(MemoryOutbox::new(100));
    fill(&outbox, 0..10);
    let mut large = record(77);
    large.data = format!(r#"{{"machine":"press-04","text":"{}"}}"#, "x".repeat(128 << 10));
    outbox.push(large).expect("room");
    fill(&outbox, 10..20);
    let (shared, sink) = run_sink(&config(&broker.url(), "version = \"3.1.1\"\n"), &outbox);
    until("all is settled", || outbox.waiting() == 0).await;
    let lines = tokio::task::spawn_blocking(|| lines(subscriber)).await.expect("lines");
    let ids: Vec<String> = lines
        .iter()
        .map(|l| serde_json::from_str::<serde_json::Value>(&l[3]).expect("JSON")["id"].as_str().expect("id").to_owned())
        .collect();
    assert_eq!(ids, (0..20).map(|n| id(n).to_string()).collect::<Vec<_>>());
    let dead = outbox.dead();
    assert_eq!((dead.len(), dead[0].0.record.id), (1, id(77)));
    assert!(dead[0].1.contains("131072"), "{}", dead[0].1);
    shared.stop.cancel();
    sink.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_is_waited_for() {
    let mut broker = Mosquitto::start();
    let outbox = Arc::new(MemoryOutbox::new(10_000));
    fill(&outbox, 0..100);
    let (shared, sink) = run_sink(&config(&broker.url(), ""), &outbox);
    until("all is delivered", || outbox.waiting() == 0).await;
    let health = || shared.board.components().get("sink/iot").map(|c| c.health);
    assert_eq!(health(), Some(Health::Up));
    let itself = sink_of(&config(&broker.url(), ""));
    assert!(sinks::probe(&itself, "gw-07").await.expect("it answers").contains("lets us in"));
    broker.kill();
    assert!(sinks::probe(&itself, "gw-07").await.is_err());
    until("it notices, with nothing to send", || health() == Some(Health::Down)).await;
    fill(&outbox, 100..200);
    broker.restart();
    until("all is delivered", || outbox.waiting() == 0).await;
    assert_eq!(outbox.dead(), []);
    shared.stop.cancel();
    sink.await.expect("it ends");
}

/// The first byte and the body of an MQTT packet.
async fn packet(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let first = stream.read_u8().await.expect("a byte");
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = stream.read_u8().await.expect("a byte");
        length |= usize::from(byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    (first, body)
}

#[tokio::test]
async fn only_a_puback_moves_the_cursor() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("mqtt://{}", listener.local_addr().expect("an address"));
    let outbox = Arc::new(MemoryOutbox::new(100));
    fill(&outbox, 0..10);
    let (shared, sink) = run_sink(&config(&url, "version = \"3.1.1\"\n"), &outbox);
    let accept = || async {
        let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.expect("in time").expect("a connection");
        assert_eq!(packet(&mut stream).await.0 >> 4, 1, "CONNECT");
        stream.write_all(&[0x20, 2, 0, 0]).await.expect("written");
        stream
    };
    let mut stream = accept().await;
    let mut packet_ids = Vec::new();
    while packet_ids.len() < 10 {
        let (first, body) = packet(&mut stream).await;
        assert_eq!(first >> 4, 3, "PUBLISH");
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        packet_ids.push([body[2 + topic], body[3 + topic]]);
    }
    // The broker has all of them, and says so of four.
    assert_eq!(outbox.acked(), 0);
    for packet_id in &packet_ids[..4] {
        stream.write_all(&[0x40, 2, packet_id[0], packet_id[1]]).await.expect("written");
    }
    drop(stream);
    let mut stream = accept().await;
    let (_, body) = packet(&mut stream).await;
    assert_eq!(outbox.acked(), 4, "the four are done with");
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(text.contains(&id(4).to_string()), "the fifth comes again: {text}");
    shared.stop.cancel();
    drop(stream);
    let _ = timeout(PATIENCE, sink).await.expect("it ends");
}
