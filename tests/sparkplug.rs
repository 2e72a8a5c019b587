//! Sparkplug B over a real mosquitto with an independent implementation (pysparkplug from PyPI) on the
//! other side: as what listens to an edge node, and as an edge node.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::forward::{publish, sparkplug};
use andon::metrics::{Health, Shared};
use andon::mqtt::{self, Address, Connection};
use andon::settings::{Document, Surroundings};
use andon::source;
use andon::types::{Batch, Kind, Live, MachineState, Quality, Record, RecordId, Time};
use serde_json::Value;
use support::daemon::{Daemon, until};
use support::mosquitto::Mosquitto;
use support::peer::Peer;
use support::publisher::publish as send;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

mod support;

const PATIENCE: Duration = Duration::from_secs(60);

/// pysparkplug in a process of its own.
fn peer(role: &str, broker: &Mosquitto) -> Peer {
    Peer::start("sparkplug_peer.py", &[role, &broker.port().to_string()])
}

/// A running source that listens to edge nodes.
struct Source {
    shared: Shared,
    batches: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

impl Source {
    async fn start(broker: &Mosquitto, more: &str) -> Source {
        let text = format!(
            "[[source.mqtt]]\nname = \"shop\"\nurl = \"{}\"\n[[source.mqtt.subscribe]]\n\
             topic = \"spBv1.0/plant/+/{{machine...}}\"\npayload = \"sparkplug_b\"\n{more}\n",
            broker.url()
        );
        let document = Document::parse(&text, Surroundings::default());
        let config = source::Config::read(&document.root(), "test");
        assert_eq!(document.into_problems(), []);
        let shared = Shared::new();
        let (tx, batches) = mpsc::channel(16);
        let config = config.mqtt.into_iter().next().unwrap();
        let task = tokio::spawn(source::mqtt::run(config, shared.clone(), tx));
        let source = Source { shared, batches, task };
        source.until_up().await;
        source
    }

    async fn until_up(&self) {
        let up = || self.shared.board.components().get("source/shop").is_some_and(|c| c.health == Health::Up);
        timeout(PATIENCE, async {
            while !up() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("it connects");
    }

    /// Goes through what comes until a line of it is this: `machine signal value`, a cause in place of
    /// the value where it is not good, or the reason of a reject. Gives all that came.
    async fn until(&mut self, wanted: &str) -> Vec<(String, Time)> {
        let mut all: Vec<(String, Time)> = Vec::new();
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let batch = tokio::time::timeout_at(until, self.batches.recv()).await;
            let batch = batch
                .unwrap_or_else(|_| panic!("no {wanted:?} in {:#?}", &all[all.len().saturating_sub(40)..]))
                .expect("the source runs");
            for r in &batch.readings {
                let value = match r.quality {
                    Quality::Good => r.value.to_string(),
                    _ => r.cause.as_str().to_owned(),
                };
                all.push((format!("{} {} {value}", r.machine, r.signal), r.at));
            }
            all.extend(batch.rejects.iter().map(|r| (r.reason.clone(), r.at)));
            if let Some(receipt) = batch.receipt {
                receipt.complete();
            }
            if all.iter().any(|(line, _)| line == wanted) {
                return all;
            }
        }
    }

    async fn stop(self) {
        self.shared.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("it stops").expect("without a panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_node_is_heard_through_birth_data_gap_rebirth_and_death() {
    let broker = Mosquitto::start();
    let mut source = Source::start(&broker, "hold = \"0s\"").await;
    let mut edge = peer("edge", &broker);
    let born = source.until("edge/press boolean 1").await;
    let born: Vec<&str> = born.iter().map(|(line, _)| line.as_str()).collect();
    for line in [
        "edge/press int8 -128",
        "edge/press int16 -32768",
        "edge/press int32 -2147483648",
        "edge/press int64 -9007199254740992",
        "edge/press uint8 255",
        "edge/press uint16 65535",
        "edge/press uint32 4294967295",
        "edge/press uint64 9007199254740992",
        "edge/press float 1.5",
        "edge/press double -2.25",
    ] {
        assert!(born.contains(&line), "{line} in {born:?}");
    }
    assert!(!born.iter().any(|l| l.contains("bdSeq") || l.contains("Node Control") || l.contains("text")), "{born:?}");
    edge.order("named -7");
    source.until("edge/press int16 -7").await;
    edge.order("alias -8");
    source.until("edge/press int32 -8").await;
    edge.order("null");
    source.until("edge/press int32 source").await;
    edge.order("historical 5 1700000000000");
    let stored = source.until("edge/press int32 5").await;
    assert_eq!(stored.last().unwrap().1, Time(1_700_000_000_000_000_000));
    // A message is missing: what is under an alias is not believed until the births have come again.
    edge.order("gap");
    edge.order("alias 44");
    let told = source.until("edge/press int32 -2147483648").await;
    assert!(
        told.iter().any(|(l, _)| l.starts_with("messages of this edge node are missing: sequence number")),
        "{told:?}"
    );
    assert!(!told.iter().any(|(l, _)| l.ends_with(" 44")), "{told:?}");
    assert_eq!(edge.says("ncmd").await["ncmd"], serde_json::json!([["Node Control/Rebirth", true]]));
    edge.order("alias 45");
    source.until("edge/press int32 45").await;
    edge.order("device-dies");
    source.until("edge/press int32 disconnected").await;
    edge.order("device-lives");
    source.until("edge/press double -2.25").await;
    // The broker tells its death by last will.
    edge.order("die");
    let dead = source.until("edge/press double disconnected").await;
    assert!(dead.iter().any(|(l, _)| l == "edge/press int8 disconnected"), "{dead:?}");
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn births_are_asked_for_after_a_restart_and_when_the_broker_was_away() {
    let mut broker = Mosquitto::start();
    let mut edge = peer("edge", &broker);
    edge.says("started").await;
    let mut source = Source::start(&broker, "hold = \"200ms\"").await;
    // Nobody has heard its birth: the first data leads to one. More comes before it is there.
    edge.order("alias 1");
    source.until("edge/press int32 -2147483648").await;
    edge.order("alias 2");
    let first = source.until("edge/press int32 2").await.pop().unwrap().1;
    // It does not change, and is told again while the node lives.
    let again = source.until("edge/press int32 2").await;
    assert!(again.iter().all(|(line, at)| line != "edge/press int32 2" || *at > first), "{again:?}");
    broker.kill();
    source.until("edge/press int32 disconnected").await;
    broker.restart();
    // The library connects again by itself and is born again.
    source.until("edge/press int32 -2147483648").await;
    edge.order("named 3");
    source.until("edge/press int16 3").await;
    source.stop().await;
}

fn verdict(at: Time, score: f64) -> Record {
    let data = format!(
        r#"{{"anomaly_score":{score},"p_value":0.5,"threshold":0.001,"health":0.75,"rul":null,"prediction":0,"prediction_reason":"NO_ANOMALY_DETECTED","top_channel":"speed"}}"#
    );
    Record { id: RecordId([0; 16]), kind: Kind::Verdict, subject: "press-04".into(), at, data }
}

/// Metric values of a message, those told as history marked.
fn values(message: &Value) -> Vec<String> {
    let metrics = message["metrics"].as_array().expect("metrics").iter();
    let mark = |m: &Value| if m["historical"] == true { " historical" } else { "" };
    metrics.map(|m| format!("{}={}{}", m["name"].as_str().unwrap(), m["value"], mark(m))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_application_hears_us_through_birth_data_rebirth_outage_and_death() {
    let broker = Mosquitto::start();
    let mut host = peer("host", &broker);
    host.says("subscribed").await;
    let outbox = Arc::new(MemoryOutbox::new(1000));
    let (live, receiver) = broadcast::channel(64);
    let shared = Shared::new();
    let config = publish::Config {
        source: "shop".into(),
        prefix: "andon".into(),
        home_assistant: false,
        format: publish::Format::SparkplugB,
        group: "lyon-line3".into(),
        primary_host: None,
        command_token: None,
    };
    let connection = Connection::new(vec![Address::parse(&broker.url()).unwrap()], "andon-test");
    let grace = Duration::from_secs(5);
    let (o, s) = (outbox.clone(), shared.clone());
    let task = tokio::spawn(sparkplug::run(config, connection.clone(), "gw-07".into(), o, receiver, grace, s));

    let birth = host.says("type").await;
    assert_eq!(
        (&birth["type"], &birth["group"], &birth["node"]),
        (&"NBIRTH".into(), &"lyon-line3".into(), &"gw-07".into())
    );
    assert_eq!((birth["seq"].as_u64(), birth["qos"].as_u64(), birth["retain"].as_u64()), (Some(0), Some(0), Some(0)));
    let own = values(&birth);
    assert!(own.contains(&"bdSeq=0".into()) && own.contains(&"Node Control/Rebirth=false".into()), "{own:?}");

    let state = |light| Live::State { machine: "press-04".into(), at: Time::now(), light, why: "well".into() };
    assert!(live.send(state(MachineState::Green)).is_ok());
    let birth = host.says("type").await;
    assert_eq!(
        (&birth["type"], &birth["device"], birth["seq"].as_u64()),
        (&"DBIRTH".into(), &"press-04".into(), Some(1))
    );
    assert!(values(&birth).contains(&"Light=\"green\"".into()), "{birth}");

    outbox.push(verdict(Time::now(), 0.25)).unwrap();
    let data = host.says("type").await;
    assert_eq!((&data["type"], data["seq"].as_u64()), (&"DDATA".into(), Some(2)));
    assert!(values(&data).contains(&"Anomaly Score=0.25".into()), "the library knows our alias: {data}");
    assert!(live.send(state(MachineState::Red)).is_ok());
    assert_eq!(values(&host.says("type").await), ["Light=\"red\""]);

    host.order("rebirth lyon-line3 gw-07");
    assert_eq!(host.says("type").await["type"], "NCMD");
    let birth = host.says("type").await;
    assert_eq!((&birth["type"], birth["seq"].as_u64()), (&"NBIRTH".into(), Some(0)));
    assert!(values(&birth).contains(&"bdSeq=0".into()), "the same session: {birth}");
    let birth = host.says("type").await;
    assert_eq!((&birth["type"], birth["seq"].as_u64()), (&"DBIRTH".into(), Some(1)));
    assert!(values(&birth).contains(&"Anomaly Score=0.25".into()), "births tell how things stand: {birth}");

    // Thrown out by a namesake: the broker tells our death. What comes meanwhile waits.
    let namesake = Connection { client_id: "andon-test-publish".into(), clean: true, ..connection };
    let thief = mqtt::open(&namesake, &namesake.urls[0], None).expect("a link");
    let death = host.says("type").await;
    assert_eq!((&death["type"], values(&death)), (&"NDEATH".into(), vec!["bdSeq=0".to_owned()]));
    let now = Time::now();
    for (seconds, score) in [(3600, 0.5), (3599, 0.625)] {
        outbox.push(verdict(now.minus(Duration::from_secs(seconds)), score)).unwrap();
    }
    drop(thief);
    let birth = host.says("type").await;
    assert_eq!(birth["type"], "NBIRTH");
    // The namesake may throw it out once more before it is gone.
    let bd_seq = values(&birth).into_iter().find(|v| v.starts_with("bdSeq=")).unwrap();
    assert_ne!(bd_seq, "bdSeq=0");
    assert_eq!(host.says("type").await["type"], "DBIRTH");
    for (seconds, score) in [(3600, "0.5"), (3599, "0.625")] {
        let data = host.says("type").await;
        assert!(values(&data).contains(&format!("Anomaly Score={score} historical")), "{data}");
        let at = now.minus(Duration::from_secs(seconds)).0 / 1_000_000;
        assert_eq!(data["metrics"][0]["at"].as_i64(), Some(at));
    }
    outbox.push(verdict(Time::now(), 0.875)).unwrap();
    assert!(values(&host.says("type").await).contains(&"Anomaly Score=0.875".into()));

    outbox.push(verdict(Time::now(), 0.9)).unwrap();
    shared.stop.cancel();
    assert!(values(&host.says("type").await).contains(&"Anomaly Score=0.9".into()), "what is left goes out");
    let death = host.says("type").await;
    assert_eq!((&death["type"], values(&death)), (&"NDEATH".into(), vec![bd_seq]));
    timeout(PATIENCE, task).await.expect("it stops").expect("without a panic");
    assert_eq!((outbox.acked(), outbox.waiting()), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_while_the_primary_host_is_away() {
    let broker = Mosquitto::start();
    let mut host = peer("host", &broker);
    host.says("subscribed").await;
    let outbox = Arc::new(MemoryOutbox::new(1000));
    let (_live, receiver) = broadcast::channel(64);
    let shared = Shared::new();
    let config = publish::Config {
        source: "shop".into(),
        prefix: "andon".into(),
        home_assistant: false,
        format: publish::Format::SparkplugB,
        group: "g".into(),
        primary_host: Some("scada".into()),
        command_token: None,
    };
    let url = Address::parse(&broker.url()).unwrap();
    let connection = Connection::new(vec![url], "andon-test");
    let (o, s) = (outbox.clone(), shared.clone());
    let grace = Duration::from_secs(5);
    let task = tokio::spawn(sparkplug::run(config, connection.clone(), "gw".into(), o, receiver, grace, s));
    outbox.push(verdict(Time::now(), 0.25)).unwrap();
    let scada = Connection { client_id: "scada".into(), clean: true, ..connection };
    let mut link = mqtt::open(&scada, &scada.urls[0], None).expect("a link");
    assert!(matches!(link.next().await, mqtt::Event::Connected { .. }));
    let say = |online: bool| {
        let payload = format!("{{\"online\":{online},\"timestamp\":{}}}", Time::now().0 / 1_000_000).into_bytes();
        let topic = "spBv1.0/STATE/scada".to_owned();
        let state = mqtt::Outgoing { topic, payload, qos: mqtt::Qos::AtLeastOnce, retain: true };
        link.client.publish(&state).expect("room");
    };
    say(true);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|t| t != "DDATA") {
        seen.push(host.says("type").await["type"].as_str().unwrap().to_owned());
    }
    seen.retain(|t| t != "STATE");
    assert_eq!(seen, ["NBIRTH", "DBIRTH", "DDATA"]);
    say(false);
    while host.says("type").await["type"] != "NDEATH" {}
    outbox.push(verdict(Time::now(), 0.5)).unwrap();
    say(true);
    while host.says("type").await["type"] != "DDATA" {}
    shared.stop.cancel();
    timeout(PATIENCE, task).await.expect("it stops").expect("without a panic");
    assert_eq!((outbox.acked(), outbox.waiting()), (2, 0));
}

/// The whole agent: results wait in the store for the primary host, over a kill too, and go out as history.
#[tokio::test(flavor = "multi_thread")]
async fn results_wait_in_the_store_over_a_kill() {
    let broker = Mosquitto::start();
    let mut host = peer("host", &broker);
    host.says("subscribed").await;
    let config = r#"
[agent]
site = "lyon/line3"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"
[[source.mqtt]]
name = "shop"
url = "@BROKER@"
[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
value = "/value"
time = "/ts"
time_format = "unix_ms"
[[machine]]
match = "*"
model = "one-step"
rate = "100ms"
[machine.alarm]
threshold = 1000000
[publish]
source = "shop"
format = "sparkplug_b"
primary_host = "scada"
[web]
listen = "@WEB@"
"#;
    let mut daemon = Daemon::new(&config.replace("@BROKER@", &broker.url())).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let message = |n: i64| {
        let payload = format!("{{\"value\":{n},\"ts\":{}}}", 1_735_689_600_000 + n * 100);
        ("plant/press/count".to_owned(), payload)
    };
    send(&broker.url(), (1..=20).map(message)).await;
    until("it is judged", || daemon.metric("andon_store_records_total", "verdict") == 20.0);
    daemon.kill9();
    daemon.start_ready();
    let state = r#"{"online":true,"timestamp":1}"#;
    let out = std::process::Command::new("mosquitto_pub")
        .args(["-p", &broker.port().to_string(), "-q", "1", "-r", "-t", "spBv1.0/STATE/scada", "-m", state])
        .status();
    assert!(out.expect("mosquitto_pub is there").success());
    let (mut seen, mut scores) = (Vec::new(), Vec::new());
    while scores.len() < 20 {
        let line = host.says("type").await;
        seen.push(line["type"].as_str().unwrap().to_owned());
        let score = values(&line).into_iter().find(|v| v.starts_with("Anomaly Score="));
        scores.extend(score.filter(|_| line["type"] == "DDATA"));
    }
    // The broker told the killed one's death by its will.
    seen.retain(|t| t != "STATE" && t != "NDEATH");
    assert_eq!(seen[..2], ["NBIRTH", "DBIRTH"], "{seen:?}");
    let wanted: Vec<String> = (1..=20).map(|n| format!("Anomaly Score={n}.0 historical")).collect();
    assert_eq!(scores, wanted);
    assert!(daemon.terminate().success());
    while host.says("type").await["type"] != "NDEATH" {}
}
