//! New versions on live data, the real binary between a real broker and a stand-in for the cloud: a good one
//! comes in step by step and is killed at each, bad ones are refused or sent back, each with a record that
//! says why; and every window end of every machine has exactly one verdict in the cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use andon::types::Time;
use serde_json::{Value, json};

use super::bundles::{Keys, archive, bundle, copy_dir, edit, sha, sign};
use crate::support::daemon::{Daemon, repository, until};
use crate::support::depot::{Depot, TOKEN};
use crate::support::mosquitto::Mosquitto;
use crate::support::publisher::publish;

const CONFIG: &str = r#"
[agent]
data_dir = "@DIR@/data"
models_dir = "@DIR@/models"

[[source.mqtt]]
name = "shop"
url = "@BROKER@"
[[source.mqtt.subscribe]]
topic = "plant/{machine}"
time = "/ts"
time_format = "unix_ms"

[[machine]]
match = "pump-*"
model = "pump-anomaly"

[cloud]
url = "@DEPOT@/events"
token = "@TOKEN@"
compress = "none"

[models]
trusted_keys = ["@DIR@/maker.pem"]
require_signature = false
desired = "@DEPOT@/desired"
poll = "200ms"
judge_time = "60s"
report_every = "5s"

[web]
listen = "@WEB@"
token = "@TOKEN@"
"#;

/// Of the grid, in ms.
const STEP: i64 = 100;
/// From one window to the next, in ms.
const STRIDE: i64 = 4 * STEP;
const PUMPS: [&str; 2] = ["pump-1", "pump-2"];

/// Two well pumps at ten readings a second from here on. Holds the last step that the broker has.
fn pumps(url: String) -> (tokio::task::JoinHandle<()>, Arc<AtomicI64>) {
    let manifest = fs::read(repository("models/pump-anomaly/model.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let channels = manifest["channels"].as_array().unwrap().iter();
    let channels: Vec<(String, f64, f64)> =
        channels.map(|c| (c["name"].as_str().unwrap().into(), number(&c["mean"]), number(&c["std"]))).collect();
    let last = Arc::new(AtomicI64::new(0));
    let told = last.clone();
    let running = tokio::spawn(async move {
        let mut step = Time::now().0 / 1_000_000 / STEP - 50;
        loop {
            let now = Time::now().0 / 1_000_000 / STEP;
            let mut messages = Vec::new();
            for step in step..now {
                for pump in PUMPS {
                    let mut payload = json!({"ts": step * STEP});
                    for (i, (name, mean, std)) in channels.iter().enumerate() {
                        let wobble = ((step * 7 + i as i64) % 13) as f64 / 13.0 - 0.5;
                        payload[name] = json!(mean + std * 0.05 * wobble);
                    }
                    messages.push((format!("plant/{pump}"), payload.to_string()));
                }
            }
            publish(&url, messages).await;
            told.store(now - 1, Ordering::SeqCst);
            step = now;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    (running, last)
}

struct Plant {
    daemon: Daemon,
    depot: Depot,
    maker: Keys,
    entries: Vec<Value>,
}

impl Plant {
    fn start(broker: &Mosquitto) -> Plant {
        let depot = Depot::start();
        let mut daemon = Daemon::new("");
        let maker = Keys::make(daemon.dir(), "maker", "P-256");
        copy_dir(&repository("models/pump-anomaly"), &daemon.dir().join("models/pump-anomaly"));
        let config = CONFIG.replace("@BROKER@", &broker.url()).replace("@TOKEN@", TOKEN);
        daemon.configure(&config.replace("@DEPOT@", &depot.url("")));
        daemon.start_ready();
        Plant { daemon, depot, maker, entries: Vec::new() }
    }

    /// Makes a version wanted; `change` is done before it is signed.
    fn ship(&mut self, version: &str, sequence: u64, rollout: &Value, change: impl FnOnce(&Path)) {
        let dir = self.daemon.dir().join(format!("workshop/{version}"));
        bundle(&repository("models/pump-anomaly"), &dir, version, sequence);
        change(&dir);
        edit(&dir, |_| {});
        sign(&dir, &self.maker);
        let archive = archive(&dir);
        let sha256 = sha(&archive);
        let url = self.depot.put(&format!("{version}.tar"), archive, &[]);
        self.entries = vec![json!({
            "handle": "pump-anomaly", "version": version, "url": url, "sha256": sha256, "state": "deploy", "rollout": rollout,
        })];
        let all = json!({"deployments": [{"name": version, "failure_policy": "rollback", "models": self.entries}]});
        self.depot.desire(&all.to_string());
    }

    /// How far the newest has come, by the library's state on disk.
    fn written(&self) -> Value {
        let state = fs::read(self.daemon.dir().join("data/library/state.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        state["models"]["pump-anomaly"]["stage"].clone()
    }

    /// The steps of a version, with the reasons.
    fn steps(&self, version: &str) -> Vec<(String, String)> {
        let mine = |e: &Value| e["model_version"] == version && e["event"] == "rollout";
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let all = self.depot.model_events();
        all.iter().filter(|e| mine(e)).map(|e| (text(&e["stage"]), text(&e["reason"]))).collect()
    }

    fn reaches(&self, version: &str, stage: &str) -> String {
        let find = || self.steps(version).into_iter().find(|(s, _)| s == stage);
        let what = format!("{version} is {stage}");
        until(&what, || {
            let over = |s: &String| s != stage && ["refused", "rolled_back"].contains(&s.as_str());
            let steps = self.steps(version);
            assert!(find().is_some() || !steps.iter().any(|(s, _)| over(s)), "{what}: {steps:?}");
            find().is_some()
        });
        println!("{version}: {stage}: {}", find().unwrap().1);
        find().unwrap().1
    }

    fn again(&mut self) {
        self.daemon.kill9();
        self.daemon.start_ready();
    }

    /// With the token: status and body.
    fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.daemon.web_port())).unwrap();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }

    /// The model as `/api/v1/models` has it.
    fn model(&self) -> Value {
        let (status, body) = self.ask("GET", "/api/v1/models");
        assert_eq!(status, 200, "{body}");
        body["models"][0].clone()
    }

    /// Verdicts by machine: window ends, with the version that judged each. Fails where one has two.
    fn verdicts(&self) -> BTreeMap<String, BTreeMap<i64, String>> {
        let (mut ids, mut out) = (BTreeSet::new(), BTreeMap::<String, BTreeMap<i64, String>>::new());
        for e in self.depot.events().iter().filter(|e| e["type"] == "io.andon.verdict.v1") {
            // The cloud sees some again after a kill, by the same id.
            if !ids.insert(e["id"].to_string()) {
                continue;
            }
            let at: Time = e["data"]["timestamp"].as_str().unwrap().parse().unwrap();
            let (machine, version) =
                (e["data"]["machine"].as_str().unwrap(), e["data"]["model_version"].as_str().unwrap());
            let before = out.entry(machine.into()).or_default().insert(at.0 / 1_000_000, version.into());
            assert_eq!(before, None, "judged twice: {e}");
        }
        out
    }
}

fn quick(canary: &[&str]) -> Value {
    json!({"shadow_s": 4, "canary": canary, "bake_s": 4})
}

#[tokio::test(flavor = "multi_thread")]
async fn good_versions_come_in_and_bad_ones_go_back_and_every_window_has_one_verdict() {
    let broker = Mosquitto::start();
    let mut plant = Plant::start(&broker);
    let (running, last) = pumps(broker.url());

    // A good one, with the plug pulled at every step from the self-test on.
    plant.ship("good", 10, &quick(&["pump-1"]), |_| {});
    let way = ["fetched", "verified", "selftest", "shadow", "canary", "baking", "active"];
    for (i, stage) in way.into_iter().enumerate() {
        plant.reaches("good", stage);
        if i >= 2 {
            // Three bad ends within what the library knows as one stage are a crash loop.
            until("the library has heard of it", || way[i..].iter().any(|s| plant.written() == *s));
            plant.again();
        }
    }
    until("it is in use", || plant.model()["version"] == "good");
    // Killed before it was noted as placed, it is fetched again; from the shadow on each step is taken once.
    let way = ["shadow", "canary", "baking", "active"];
    let taken: Vec<String> = plant.steps("good").into_iter().map(|(s, _)| s).collect();
    let order: Vec<&str> = taken.iter().map(String::as_str).filter(|s| way.contains(s)).collect();
    assert_eq!(order, way, "each once: {taken:?}");

    // Its outputs are not those it was signed with: seen before it runs beside anything.
    plant.ship("wrong", 11, &quick(&[]), |dir| {
        let path = dir.join("golden.json");
        let mut golden: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        golden[0]["response"]["outputs"][0]["data"] = json!(vec![9.5; 32 * 8]);
        fs::write(path, golden.to_string()).unwrap();
    });
    assert!(plant.reaches("wrong", "refused").contains("case 1"));

    // Alarm-happy: healthy windows are far beyond its reference. Nobody hears of it.
    plant.ship("happy", 12, &quick(&[]), |dir| {
        let path = dir.join("reference.json");
        let mut reference: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for score in reference["scores"].as_array_mut().unwrap() {
            *score = json!(score.as_f64().unwrap() * 1e-4);
        }
        fs::write(path, reference.to_string()).unwrap();
    });
    assert!(plant.reaches("happy", "refused").contains("anomalies, the incumbent 0"));

    // Too slow for what it promises: by its judging, or (a debug build) beside the one in use.
    plant.ship("slow", 13, &quick(&[]), |dir| edit(dir, |m| m["compat"] = json!({"p99_ms": 0.0001})));
    assert!(plant.reaches("slow", "refused").contains("p99"));

    // The agent ends badly again and again as soon as it is heard.
    plant.ship("crashing", 14, &json!({"shadow_s": 4, "canary": ["pump-2"], "bake_s": 600}), |_| {});
    plant.reaches("crashing", "canary");
    until("the canary is heard", || plant.verdicts()["pump-2"].values().any(|v| v == "crashing"));
    (0..3).for_each(|_| plant.again());
    // It is left out of the replay, so the engine may still have it in the shadow: refused or rolled back.
    until("the crashing one is sent back", || plant.steps("crashing").iter().any(|(_, why)| why.contains("3 times")));
    assert_eq!((&plant.model()["version"], &plant.model()["candidate"]), (&json!("good"), &Value::Null));

    // A person hurries one, takes it back, and goes back once more to what the config names.
    plant.ship("hurried", 15, &json!({"shadow_s": 86400, "canary": [], "bake_s": 600}), |_| {});
    plant.reaches("hurried", "shadow");
    assert_eq!(plant.ask("POST", "/api/v1/models/pump-anomaly/promote").0, 200);
    plant.reaches("hurried", "baking");
    assert_eq!(plant.ask("POST", "/api/v1/models/pump-anomaly/rollback").0, 200);
    assert!(plant.reaches("hurried", "rolled_back").contains("127.0.0.1 wants"));
    assert_eq!(plant.ask("POST", "/api/v1/models/pump-anomaly/promote").0, 409);
    assert_eq!(plant.ask("POST", "/api/v1/models/pump-anomaly/rollback").0, 200);
    until("the first is in use again", || plant.model()["version"] == "1");
    assert_eq!(plant.ask("POST", "/api/v1/models/none/rollback").0, 404);

    // What runs is reported on: these pumps hardly move, which the reference's never did.
    until("a report", || plant.depot.model_events().iter().any(|e| e["event"] == "drift"));
    until("the board has it", || plant.model()["drift"]["warning"].as_str().is_some_and(|w| w.contains("PSI")));

    // Every window end of both machines once, from the first to the last, whoever judged it.
    running.abort();
    let end = last.load(Ordering::SeqCst) * STEP;
    let end = end - end.rem_euclid(STRIDE);
    until("the last window is in the cloud", || {
        let seen = plant.verdicts();
        PUMPS.iter().all(|pump| seen.get(*pump).is_some_and(|v| v.keys().next_back() >= Some(&end)))
    });
    let seen = plant.verdicts();
    for pump in PUMPS {
        let (ends, first) = (&seen[pump], *seen[pump].keys().next().unwrap());
        let missing: Vec<i64> = (first..=end).step_by(STRIDE as usize).filter(|t| !ends.contains_key(t)).collect();
        assert!(missing.is_empty(), "{pump}: no verdict on {missing:?}");
        let mut versions = BTreeMap::<&str, usize>::new();
        ends.values().for_each(|v| *versions.entry(v).or_default() += 1);
        println!("{pump}: {} window ends, each judged once, by {versions:?}", ends.len());
        assert!(!versions.contains_key("happy") && !versions.contains_key("slow") && versions.contains_key("good"));
    }
    assert!(plant.daemon.terminate().success());
}
