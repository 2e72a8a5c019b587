//! Second opinions, seen from outside: the real binary between mosquitto, a real MLServer (and stand-ins
//! that fail and count), a stand-in cloud, and a real browser.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use andon::forward::inference;
use andon::metrics::Shared;
use andon::settings::{Document, Surroundings};
use andon::simulator::cloud::{Cloud, Options};
use andon::types::{Ask, Asking, Outcome, RecordId, Time};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::chromium::Chromium;
use crate::support::daemon::{Daemon, andon, repository, until};
use crate::support::mlserver::MlServer;
use crate::support::mosquitto::Mosquitto;
use crate::support::oip::{Reply, Server};
use crate::support::publisher::publish;

/// Time of the first reading: 2025-01-01T00:00:00Z. A step later each.
const EPOCH_MS: i64 = 1_735_689_600_000;

/// The bundle's score is the reading itself, and its reference 0.01 to 10: 9.6 has a p-value of 0.04 and is
/// uncertain; from 50 on there is an alarm.
const CONFIG: &str = r#"
[agent]
site = "test/opinion"
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
[machine.alarm]
threshold = 50
off_delay = "1h"

[cloud]
url = "@CLOUD@"

[cloud.inference]
url = "@SERVER@"
escalate = [0.001, 0.05]
threshold = 9.0
@MORE@

[publish]
source = "shop"

[web]
listen = "@WEB@"
"#;

struct Plant {
    broker: Mosquitto,
    cloud: Cloud,
    log: tempfile::NamedTempFile,
    daemon: Daemon,
    step: i64,
}

impl Plant {
    async fn start(server: &str, more: &str) -> Plant {
        let broker = Mosquitto::start();
        let log = tempfile::NamedTempFile::new().unwrap();
        let options = Options { log: Some(log.path().to_owned()), ..Options::default() };
        let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let config = CONFIG.replace("@BROKER@", &broker.url()).replace("@CLOUD@", &cloud.url());
        let config = config.replace("@SERVER@", server).replace("@MORE@", more);
        let daemon = Daemon::new(&config).ready();
        until("it has subscribed", || daemon.component("source/shop").0 == "up");
        Plant { broker, cloud, log, daemon, step: 0 }
    }

    /// One reading of each of these machines.
    async fn read(&mut self, machines: &[&str], value: f64) {
        self.step += 1;
        let at = EPOCH_MS + self.step * 100;
        let message = |m: &&str| (format!("plant/{m}/count"), format!("{{\"value\":{value},\"ts\":{at}}}"));
        publish(&self.broker.url(), machines.iter().map(message)).await;
    }

    /// What the cloud has taken of a kind, by id, each as it came first.
    fn taken(&self, kind: &str) -> BTreeMap<String, Value> {
        let text = std::fs::read_to_string(self.log.path()).unwrap();
        let mut out = BTreeMap::new();
        for line in text.lines().filter(|l| l.ends_with('}')) {
            let event: Value = serde_json::from_str(line).unwrap();
            if event["type"] == kind {
                let id = event["id"].as_str().unwrap().to_owned();
                let before = out.insert(id.clone(), event.clone());
                assert!(before.is_none_or(|b| b["data"] == event["data"]), "{id} came twice and was not the same");
            }
        }
        out
    }

    fn usage(&self) -> Vec<Value> {
        self.taken("io.andon.usage.v1").into_values().collect()
    }

    fn ended(&self, reason: &str, outcome: &str) -> f64 {
        let label = format!("reason=\"{reason}\",outcome=\"{outcome}\"");
        self.daemon.metric("andon_escalations_total", &label)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_is_asked_and_what_it_says_is_shown_and_published() {
    let (one_step, pump) = (repository("tests/data/one-step"), repository("models/pump-anomaly"));
    let server = MlServer::start(&[&one_step, &pump]).await;
    let more =
        "model = \"one-step\"\nbudget = \"8 per 10000d\"\nreserve = 0.5\nburst = 8\nmay = [\"confirm\", \"raise\"]";
    let mut plant = Plant::start(&server.url(), more).await;
    let said = andon(["check", "-c", plant.daemon.config().to_str().unwrap(), "--connect"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    // Ten windows a second, of which 4.9 % are uncertain while all is well; the budget is for 10,000 days.
    assert!(said.contains("each healthy machine of \"*\": 864000 windows a day, 42336 units of 0"), "{said}");
    assert!(said.contains("model \"one-step\" is ready and takes our windows (JSON)"), "{said}");

    // Well, then uncertain: the verdict says so, MLServer finds an anomaly, and that raises an alarm.
    plant.read(&["pump-1"], 5.0).await;
    plant.read(&["pump-1"], 9.6).await;
    until("it is answered", || plant.ended("uncertain", "answered") == 1.0);
    let browser = Chromium::start(false).await;
    browser.open(&format!("http://127.0.0.1:{}/", plant.daemon.port())).await;
    let row = "document.querySelector('#alarms li .second')";
    browser
        .until(&format!("{row} && {row}.innerText.includes('second opinion: an anomaly (one-step, score 9.6')"))
        .await;
    browser.screenshot("second-opinion.png").await;
    let mut listen = Command::new("mosquitto_sub");
    listen.args(["-p", &plant.broker.port().to_string(), "-C", "1", "-W", "60"]);
    let heard = listen.args(["-t", "andon/test/opinion/gw/pump-1/opinion"]).output().expect("mosquitto_sub");
    let heard: Value = serde_json::from_slice(&heard.stdout).expect("flat JSON");
    assert_eq!(
        (&heard["model"], &heard["model_version"], &heard["prediction"]),
        (&json!("one-step"), &json!("7"), &json!(1))
    );
    let score = heard["anomaly_score"].as_f64().unwrap();
    assert!((score - 9.6).abs() < 1e-5 && heard["agrees"] == false, "{heard}");

    // Records: the second is linked to the first, and says what it cost.
    until("they are at the cloud", || plant.usage().len() == 1);
    let verdicts = plant.taken("io.andon.verdict.v1");
    let second = verdicts.values().find(|e| e["data"]["verdict_source"] == "second_opinion").expect("a second opinion");
    let first = &verdicts[second["causationid"].as_str().unwrap()];
    assert_eq!((&first["data"]["prediction_reason"], &first["time"]), (&json!("UNCERTAIN"), &second["time"]));
    let usage = &plant.usage()[0];
    assert_eq!((&usage["data"]["cost_units"], &usage["causationid"]), (&json!(1.0), &second["causationid"]));
    let alarms = plant.taken("io.andon.alarm.v1");
    let raised = alarms.values().find(|e| e["data"]["transition"] == "raised").expect("an alarm");
    assert_eq!(raised["causationid"], second["id"]);

    // The routine part of the budget is spent: four in all. Alarms still go.
    for _ in 0..8 {
        plant.read(&["pump-2"], 9.6).await;
    }
    until("the rest is told apart", || {
        plant.ended("uncertain", "answered") + plant.ended("uncertain", "budget") == 9.0
    });
    assert_eq!(plant.ended("uncertain", "answered"), 4.0);
    until("it is on the board", || {
        plant.daemon.component("inference/budget").1.starts_with("only alarms are asked about: 4 of 8")
    });
    plant.read(&["pump-3"], 60.0).await;
    until("the alarm is answered", || plant.ended("alarm", "answered") == 1.0);
    plant.read(&["pump-2"], 9.6).await;
    until("routine is still denied", || plant.ended("uncertain", "budget") > 5.0);
    assert_eq!(plant.ended("uncertain", "answered"), 4.0);
    until("one more is gone", || plant.daemon.metric("andon_budget_remaining_ratio", "one-step") == 0.375);
    assert_eq!(plant.daemon.metric("andon_cost_units_total", "one-step"), 5.0);
    let status = andon(["status", "-c", plant.daemon.config().to_str().unwrap()]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("inference/budget") && status.contains("3 of 8 units left"), "{status}");
    println!("answered by MLServer: {} windows\n{status}", plant.daemon.metric("andon_escalations_total", "answered"));
    assert!(plant.daemon.terminate().success());
}

/// What a larger bundle says through MLServer of its own golden windows: the client and the wire, with windows
/// of many steps and channels.
#[tokio::test(flavor = "multi_thread")]
async fn windows_arrive_whole() {
    let bundle = repository("models/pump-anomaly");
    let server = MlServer::start(&[&bundle]).await;
    let read = |file: &str| serde_json::from_slice::<Value>(&std::fs::read(bundle.join(file)).unwrap()).unwrap();
    let (manifest, golden) = (read("model.json"), read("golden.json"));
    let floats = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
    let window = floats(&golden[0]["request"]["inputs"][0]["data"]);
    let rebuilt = floats(&golden[0]["response"]["outputs"][0]["data"]);
    let std: Vec<f64> = manifest["channels"].as_array().unwrap().iter().map(|c| c["std"].as_f64().unwrap()).collect();
    let (steps, channels) = (32, std.len());
    let size = steps * channels;
    let error = |i: usize| ((rebuilt[i] - window[i]) / std[i % channels]).powi(2);
    let wanted = (0..size).map(error).sum::<f64>() / size as f64;
    let text = format!("url = {:?}\nmodel = \"pump-anomaly\"\n", server.url());
    let document = Document::parse(&text, Surroundings::default());
    let config = inference::Config::read(&document.root());
    let (asks, asked) = mpsc::channel(1);
    let (answered, mut answers) = mpsc::channel(1);
    let shared = Shared::new();
    let client = tokio::spawn(inference::run(config, inference::Tempo::default(), asked, answered, shared.clone()));
    let ask = Ask {
        id: RecordId::of(&[b"golden"]),
        machine: "pump-1".into(),
        at: Time::now(),
        reason: Asking::Audit,
        steps,
        channels,
        window: window[..size].iter().map(|v| *v as f32).collect(),
    };
    asks.send(inference::Asked { ask: ask.clone(), durable: None }).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(60), answers.recv()).await.unwrap().unwrap();
    assert_eq!(
        (answer.id, answer.outcome, answer.version.as_deref()),
        (ask.id, Outcome::Answered, Some("7")),
        "{answer:?}"
    );
    let score = answer.score.unwrap();
    println!("MLServer says {score}, by hand from the golden case it is {wanted}, in {} ms", answer.took_ms);
    assert!((score - wanted).abs() < 1e-3 * wanted.max(1.0));
    shared.stop.cancel();
    client.await.unwrap();
}

/// Whoever comes without the key of the day is refused; a new one is read from its file.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_key_is_taken_up() {
    let server = Server::start().await;
    server.wants("x-api-key", "first");
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("key");
    std::fs::write(&file, "first\n").unwrap();
    let mut plant = Plant::start(server.url(), &format!("model = \"large\"\napi_key_file = {file:?}")).await;
    plant.read(&["pump-1"], 9.6).await;
    until("the first is good", || plant.ended("uncertain", "answered") == 1.0);
    server.wants("x-api-key", "second");
    plant.read(&["pump-1"], 9.6).await;
    until("it is not any more", || plant.ended("uncertain", "refused") == 1.0);
    std::fs::write(&file, "second\n").unwrap();
    plant.read(&["pump-1"], 9.6).await;
    until("the second is", || plant.ended("uncertain", "answered") == 2.0);
    let log = plant.daemon.log();
    assert!(!log.contains("second") && !plant.daemon.status().to_string().contains("first"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backtest_asks_nobody() {
    let server = Server::start().await;
    let mut plant = Plant::start(server.url(), "model = \"large\"\naudit_fraction = 1").await;
    plant.daemon.terminate();
    let recording = plant.daemon.dir().join("recording.csv");
    std::fs::write(&recording, "time,count\n2025-01-01T00:00:00Z,9.6\n2025-01-01T00:00:00.1Z,60\n").unwrap();
    let (config, input) = (plant.daemon.config(), recording.to_str().unwrap().to_owned());
    let done = andon(["backtest", "-c", config.to_str().unwrap(), "--input", &input, "--json"]);
    assert!(done.status.success(), "{done:?}");
    let figures: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&figures["rows"], server.keys().len()), (&json!(2), 0), "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_andon_can_be_the_larger_model() {
    // It asks itself: with binary tensors, since it says that it reads them.
    let mut plant = Plant::start("http://@WEB@", "model = \"one-step\"\nmay = []").await;
    plant.read(&["pump-1"], 9.6).await;
    until("it is answered", || plant.ended("uncertain", "answered") == 1.0);
    let machine = || -> Value {
        let (_, machine) = plant.daemon.get("/api/v1/machines/pump-1").unwrap();
        serde_json::from_str(&machine).unwrap()
    };
    until("it is on the dashboard", || machine()["second_opinion"]["anomaly"] == true);
    assert_eq!(machine()["alarms"], json!([]));
    let said = andon(["check", "-c", plant.daemon.config().to_str().unwrap(), "--connect"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("takes our windows (binary tensors)"), "{said:?}");
}

/// Each way of failing, by name, and how it stands in the usage record.
#[tokio::test(flavor = "multi_thread")]
async fn every_failure_is_an_outcome_in_the_usage_record() {
    let good = |data: &str| {
        Reply::body(format!(r#"{{"outputs":[{{"name":"score","datatype":"FP32","shape":[1],"data":{data}}}]}}"#))
    };
    let binary = Reply::Raw(200, vec![("inference-header-content-length", "99999")], b"{}".to_vec());
    let rows: Vec<(&str, Vec<Reply>, &str, u64)> = vec![
        ("an answer", vec![Reply::Score(9.5)], "answered", 1),
        ("timeout", vec![Reply::Never], "timeout", 1),
        ("500 in plain text", vec![Reply::status(500, "Internal Server Error")], "failed", 1),
        ("404, no such model", vec![Reply::status(404, "{\"error\":\"Model large not found\"}")], "refused", 1),
        ("401", vec![Reply::status(401, "")], "refused", 1),
        ("302", vec![Reply::Raw(302, vec![("location", "http://127.0.0.1:9/")], Vec::new())], "refused", 1),
        ("503, then an answer", vec![Reply::status(503, "later"), Reply::Score(1.0)], "answered", 2),
        ("503 again and again", vec![Reply::status(503, "no"); 3], "busy", 3),
        ("malformed JSON", vec![Reply::body("{\"outputs\":[{")], "malformed", 1),
        ("no JSON", vec![Reply::body("hello")], "malformed", 1),
        ("a header that lies", vec![binary], "malformed", 1),
        (
            "wrong shape",
            vec![Reply::body(r#"{"outputs":[{"name":"score","datatype":"FP32","shape":[2],"data":[1,2]}]}"#)],
            "misfit",
            1,
        ),
        (
            "another output",
            vec![Reply::body(
                r#"{"outputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[1]},{"name":"b","datatype":"FP32","shape":[1],"data":[1]}]}"#,
            )],
            "misfit",
            1,
        ),
        ("NaN", vec![good("[NaN]")], "not_finite", 1),
        ("null for NaN", vec![good("[null]")], "not_finite", 1),
        ("a huge answer", vec![Reply::body(vec![b' '; 3 << 20])], "too_large", 1),
        (
            "429 with Retry-After",
            vec![Reply::Raw(429, vec![("retry-after", "1")], Vec::new()), Reply::Score(1.0)],
            "answered",
            2,
        ),
        ("429 with a long Retry-After", vec![Reply::Raw(429, vec![("retry-after", "3600")], Vec::new())], "busy", 1),
        ("within that", vec![], "busy", 0),
    ];
    let server = Server::start().await;
    let mut plant = Plant::start(server.url(), "model = \"large\"\ntimeout = \"1s\"").await;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let total = rows.len();
    for (name, replies, outcome, calls) in rows {
        server.script(replies);
        plant.read(&["pump-1"], 9.6).await;
        until(name, || plant.usage().len() > seen.len());
        let usage = plant.taken("io.andon.usage.v1");
        let (id, record) = usage.iter().find(|(id, _)| !seen.contains(*id)).expect("a new one");
        let data = &record["data"];
        println!("{name:30} {:12} {} calls, {} units: {}", outcome, data["calls"], data["cost_units"], data["detail"]);
        assert_eq!((&data["outcome"], &data["calls"]), (&json!(outcome), &json!(calls)), "{name}: {data}");
        assert_eq!(data["cost_units"], json!(if calls == 0 { 0.0 } else { 1.0 }), "{name}");
        seen.insert(id.clone());
    }
    assert_eq!(seen.len(), total);
    assert_eq!(plant.daemon.component("inference").0, "degraded");
    assert!(plant.daemon.is_running());

    // A model of another shape is noticed before anything is sent; a server that is gone costs nothing.
    let mut other = Plant::start(server.url(), "model = \"large\"\ntimeout = \"1s\"").await;
    server.takes(json!([-1, 32, 8]));
    let sent = server.keys().len();
    other.read(&["pump-1"], 9.6).await;
    until("it does not fit", || other.usage().len() == 1);
    assert_eq!((&other.usage()[0]["data"]["outcome"], server.keys().len()), (&json!("misfit"), sent));
    let said = andon(["check", "-c", other.daemon.config().to_str().unwrap(), "--connect"]);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.code() == Some(1) && text.contains("does not take the windows of \"*\""), "{text}");
    drop(server);
    other.read(&["pump-1"], 9.6).await;
    until("nobody is there", || other.ended("uncertain", "unreachable") == 1.0);
    assert_eq!(other.daemon.metric("andon_cost_units_total", ""), 0.0);
}

/// Killed again and again while questions are under way: each is charged once, and each has one usage
/// record, whatever was asked twice.
#[tokio::test(flavor = "multi_thread")]
async fn kills_count_nothing_twice() {
    let kills: u64 = std::env::var("ANDON_OPINION_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let server = Server::start().await;
    server.always(Reply::Score(9.5), Duration::from_millis(120));
    let more = "model = \"large\"\nbudget = \"100000 per 10000d\"\nburst = 100000";
    let mut plant = Plant::start(server.url(), more).await;
    let machines: Vec<String> = (0..12).map(|n| format!("m{n:02}")).collect();
    let machines: Vec<&str> = machines.iter().map(String::as_str).collect();
    for kill in 0..kills {
        for _ in 0..3 {
            plant.read(&machines, 9.6).await;
        }
        let before = server.keys().len();
        until("some are asked", || server.keys().len() > before);
        std::thread::sleep(Duration::from_millis(40 * (kill % 5)));
        plant.daemon.kill9();
        plant.daemon.start_ready();
    }
    plant.read(&machines, 60.0).await;
    until("all is answered", || plant.daemon.component("inference/budget").1.ends_with(", 0 pending"));
    until("all is at the cloud", || plant.daemon.status()["records_waiting"].as_f64() == Some(0.0));
    let keys = server.keys();
    let usage = plant.usage();
    let charged: BTreeSet<String> = usage.iter().map(|u| u["causationid"].as_str().unwrap().to_owned()).collect();
    assert_eq!(charged.len(), usage.len(), "one usage record for each question");
    assert_eq!(charged, keys.keys().cloned().collect(), "charged is what was asked, all of it and nothing else");
    let units: f64 = usage.iter().map(|u| u["data"]["cost_units"].as_f64().unwrap()).sum();
    let left = plant.daemon.metric("andon_budget_remaining_ratio", "large") * 100_000.0;
    assert_eq!((units, (100_000.0 - left).round()), (usage.len() as f64, usage.len() as f64));
    let alarms = usage.iter().filter(|u| u["data"]["reason"] == "alarm").count();
    assert_eq!(alarms, machines.len(), "alarms found room");
    let opinions = plant.taken("io.andon.verdict.v1");
    let opinions = opinions.values().filter(|e| e["data"]["verdict_source"] == "second_opinion");
    assert_eq!(opinions.count(), usage.len());
    let twice = keys.values().filter(|n| **n > 1).count();
    println!("{kills} kills: {} questions, {twice} asked more than once, each charged once", keys.len());
    assert!(Path::new(plant.log.path()).exists() && plant.cloud.stats().strays == 0);
}
