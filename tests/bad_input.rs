//! Nothing that comes from outside stops the daemon: garbage in messages, models that cannot be used,
//! brokers, devices and clouds that are not there, and a data directory that cannot be had.

#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::Output;

use andon::simulator::cloud::{Cloud, Options};
use andon::simulator::plc::Plc;
use andon::source::modbus::registers::Table;
use serde_json::{Value, json};
use support::daemon::{Daemon, andon, repository, until};
use support::mosquitto::{Mosquitto, free_port};
use support::publisher::publish;

mod support;

/// A config error, as in sysexits.h.
const BAD_CONFIG: i32 = 78;
/// 2025-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_735_689_600_000;

const AGENT: &str = r#"
[agent]
site = "test/bad"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"

[web]
listen = "@WEB@"
"#;

fn mqtt(url: &str) -> String {
    format!(
        r#"
[[source.mqtt]]
name = "shop"
url = "{url}"
[[source.mqtt.subscribe]]
topic = "plant/{{machine}}/{{signal}}"
value = "/value"
time = "/ts"
time_format = "unix_ms"
"#
    )
}

/// Every machine is judged by the one-step model.
const MACHINES: &str = r#"
[[machine]]
match = "*"
model = "one-step"
[machine.alarm]
threshold = 1e6
"#;

fn cloud_at(url: &str) -> String {
    format!("\n[cloud]\nurl = \"{url}\"\n")
}

async fn cloud() -> Cloud {
    Cloud::start(([127, 0, 0, 1], 0).into(), Options::default()).await.expect("a port")
}

fn verdicts(cloud: &Cloud) -> u64 {
    cloud.stats().types.get("io.andon.verdict.v1").copied().unwrap_or(0)
}

/// Message `n` of the good machine, as it should be.
fn good(n: i64) -> (String, Vec<u8>) {
    let payload = json!({"value": n, "ts": EPOCH_MS + n * 100}).to_string();
    ("plant/good/count".into(), payload.into_bytes())
}

/// Payloads that hold no reading.
fn unreadable() -> Vec<Vec<u8>> {
    let ts = EPOCH_MS;
    let mut all: Vec<Vec<u8>> = [
        "",
        " ",
        "garbage",
        "{",
        "{\"value\":1",
        "{\"value\":1,\"ts\":1735689600000}}",
        "{}",
        "[]",
        "null",
        "17",
        "\"text\"",
        "{\"ts\":1735689600000}",
        "{\"value\":1}",
        "{\"value\":\"hot\",\"ts\":1735689600000}",
        "{\"value\":\"17\",\"ts\":1735689600000}",
        "{\"value\":[1,2],\"ts\":1735689600000}",
        "{\"value\":{\"value\":1},\"ts\":1735689600000}",
        "{\"value\":NaN,\"ts\":1735689600000}",
        "{\"value\":Infinity,\"ts\":1735689600000}",
        "{\"value\":-Infinity,\"ts\":1735689600000}",
        "{\"value\":1e400,\"ts\":1735689600000}",
        "{\"value\":1,\"ts\":\"yesterday\"}",
        "{\"value\":1,\"ts\":1e300}",
        "{\"value\":1,\"ts\":null}",
        "{\"value\":1,\"ts\":{}}",
        "{\"value\":0x1F,\"ts\":1735689600000}",
        "{'value':1,'ts':1735689600000}",
        "<xml>1</xml>",
        "\u{feff}{\"value\":1,\"ts\":1735689600000}",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    all.push(b"{\"value\":1,\"ts\":1735689600000,\"\xff\xfe\":1}".to_vec());
    all.push(vec![0xff; 64]);
    all.push(vec![0; 64]);
    all.push((0..=255).collect());
    // Deeper than any stack, in arrays and in objects.
    all.push(b"[".repeat(200_000));
    all.push(b"{\"value\":".repeat(20_000));
    // Larger than a payload may be.
    all.push(format!("{{\"value\":1,\"ts\":{ts},\"x\":\"{}\"}}", "y".repeat(300 << 10)).into_bytes());
    all.push(vec![b' '; 3 << 20]);
    all
}

/// Payloads with a reading and with something else that nobody looks at, however odd it is.
fn readable() -> Vec<Vec<u8>> {
    let deep = format!("\"x\":{}1{}", "[".repeat(50_000), "]".repeat(50_000)).into_bytes();
    let others = [deep, b"\"x\":\"\xff\xfe\"".to_vec(), b"\"x\":1e999".to_vec(), b"\"value2\":null".to_vec()];
    let payload = |(n, x): (usize, Vec<u8>)| {
        let ts = EPOCH_MS + n as i64 * 100;
        [format!("{{\"value\":{n},\"ts\":{ts},").as_bytes(), &x, b"}"].concat()
    };
    others.into_iter().enumerate().map(payload).collect()
}

/// Topics below the subscription that name no machine or no signal.
fn unusable_topics() -> Vec<String> {
    vec![
        "plant//count".into(),
        "plant/m/".into(),
        "plant//".into(),
        format!("plant/{}/count", "m".repeat(2_000)),
        format!("plant/m/{}", "s".repeat(2_000)),
    ]
}

/// Topics that are odd and yet name a machine; each is one of its own.
fn odd_topics() -> Vec<String> {
    ["..", ".", "%2e%2e", "a b", "Ünïcödé-机器", "$SYS", "-", "\"quoted\"", "<script>", "{machine}", "a\\b"]
        .iter()
        .map(|m| format!("plant/{m}/count"))
        .collect()
}

/// The machines on the dashboard, sorted.
fn heard(daemon: &Daemon) -> Vec<String> {
    let machines = daemon.get("/api/v1/machines").expect("an answer").1;
    let machines: Value = serde_json::from_str(&machines).expect("JSON");
    let listed = machines["machines"].as_array().expect("a list");
    let mut heard: Vec<String> = listed.iter().filter_map(|m| Some(m["id"].as_str()?.to_owned())).collect();
    heard.sort_unstable();
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_set_aside_and_the_rest_goes_on() {
    let (broker, cloud) = (Mosquitto::start(), cloud().await);
    let config = [AGENT, &mqtt(&broker.url()), MACHINES, &cloud_at(&cloud.url())].concat();
    let mut daemon = Daemon::new(&config).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    publish(&broker.url(), (0..10).map(good)).await;
    until("the messages before are judged", || verdicts(&cloud) == 10);

    let bad = unreadable().into_iter().map(|p| ("plant/bad/count".to_owned(), p));
    let bad = bad.chain(unusable_topics().into_iter().map(|t| (t, good(0).1)));
    let bad: Vec<(String, Vec<u8>)> = bad.collect();
    let count = bad.len() as f64;
    publish(&broker.url(), bad).await;
    until("the source is degraded", || daemon.component("source/shop").0 == "degraded");
    let (_, detail) = daemon.component("source/shop");
    assert!(detail.contains("payloads in the last minute are rejected; newest: "), "{detail}");
    let readable = readable().into_iter().map(|p| ("plant/readable/count".to_owned(), p));
    let readable: Vec<(String, Vec<u8>)> = readable.collect();
    let odd = odd_topics();
    let judged = (readable.len() + odd.len()) as u64;
    publish(&broker.url(), readable).await;
    publish(&broker.url(), odd.iter().map(|t| (t.clone(), good(0).1))).await;
    publish(&broker.url(), (10..20).map(good)).await;

    until("the messages after are judged", || verdicts(&cloud) >= 20 + judged);
    assert!(daemon.is_running());
    let mut named: Vec<&str> = odd.iter().filter_map(|t| t.split('/').nth(1)).chain(["good", "readable"]).collect();
    named.sort_unstable();
    // A verdict may be at the cloud a moment before its machine is on the dashboard.
    until("each is a machine on the dashboard", || heard(&daemon) == named);
    assert_eq!(daemon.metric("andon_rejected_payloads_total", "source=\"shop\""), count);
    until("the dead letters are kept", || {
        daemon.status().pointer("/store/lanes/dead/records").and_then(Value::as_f64) == Some(count)
    });
    assert_eq!(daemon.metric("andon_source_connects_total", "source=\"shop\""), 1.0, "no message costs the connection");
    let told = daemon.log().lines().filter(|l| l.contains("payloads are rejected")).count() as f64;
    assert!((2.0..=count).contains(&told), "{told} lines of {count} payloads: {}", daemon.log());
    assert!(daemon.terminate().success());

    // Acked they are too: nothing of it comes again.
    daemon.start_ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    publish(&broker.url(), (20..21).map(good)).await;
    until("the next message is judged", || verdicts(&cloud) == 21 + judged);
    assert_eq!(daemon.metric("andon_rejected_payloads_total", ""), 0.0);
    assert_eq!(
        daemon.status().pointer("/store/lanes/dead/records").and_then(Value::as_f64),
        Some(count),
        "dead letters outlive a restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_no_good_are_bad_readings_not_verdicts() {
    let (broker, cloud) = (Mosquitto::start(), cloud().await);
    let config = [AGENT, &mqtt(&broker.url()), MACHINES, &cloud_at(&cloud.url())].concat();
    let daemon = Daemon::new(&config).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let null =
        |n: i64| ("plant/m/count".into(), format!("{{\"value\":null,\"ts\":{}}}", EPOCH_MS + n * 100).into_bytes());
    publish(&broker.url(), (0..5).map(null)).await;
    publish(&broker.url(), [good(0)]).await;
    until("the good one is judged", || verdicts(&cloud) >= 1);
    until("all are taken", || daemon.metric("andon_windows_total", "reason=\"INPUT_BAD\"") == 5.0);
    assert_eq!(daemon.metric("andon_readings_total", "quality=\"bad\""), 5.0);
    assert_eq!(daemon.metric("andon_rejected_payloads_total", ""), 0.0);
}

/// The one-step bundle in a directory of its own, to be damaged.
fn bundle(dir: &Path) {
    let to = dir.join("one-step");
    fs::create_dir_all(&to).expect("a directory");
    for entry in fs::read_dir(repository("tests/data/one-step")).expect("the bundle") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copying");
    }
}

fn change_manifest(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("one-step/model.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).expect("reading")).expect("JSON");
    change(&mut manifest);
    fs::write(path, manifest.to_string()).expect("writing");
}

fn change_graph(dir: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = dir.join("one-step/model.onnx");
    let graph = change(fs::read(&path).expect("reading"));
    fs::write(path, graph).expect("writing");
    change_manifest(dir, |m| m["digests"] = json!({}));
}

/// The same length, so that the protobuf around it stays right.
fn replace(mut graph: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = graph.windows(old.len()).position(|w| w == old).expect("it is there");
    graph[at..at + new.len()].copy_from_slice(new);
    graph
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `check` and `run` on a config whose models are in `dir`.
fn check_and_run(dir: &Path) -> [Output; 2] {
    let config = [AGENT, &mqtt("mqtt://127.0.0.1:1"), MACHINES].concat();
    let path = dir.join("andon.toml");
    let dir = dir.to_str().expect("a plain path");
    let config = config.replace("@DIR@", dir).replace("@DATA@", dir).replace("@WEB@", "127.0.0.1:0");
    fs::write(&path, config).expect("writing");
    ["check", "run"].map(|command| andon([command, "-c", path.to_str().expect("a plain path")]))
}

/// Both refuse the model, say why with the config's line, and exit 78.
fn is_refused(what: &str, damage: impl FnOnce(&Path), because: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    bundle(dir.path());
    damage(dir.path());
    for output in check_and_run(dir.path()) {
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(BAD_CONFIG), "{what}: {told}");
        for word in because {
            assert!(told.contains(word), "{what}: {word:?} is not in {told}");
        }
        assert!(told.contains("andon.toml:"), "{what}: no line of the config in {told}");
        assert!(told.contains("one-step") && !told.contains("panicked"), "{what}: {told}");
    }
}

#[test]
fn models_that_cannot_be_used_are_refused() {
    is_refused("truncated", |dir| change_graph(dir, |g| g[..g.len() / 2].to_vec()), &["damaged or not ONNX"]);
    is_refused("empty", |dir| change_graph(dir, |_| Vec::new()), &["model.onnx"]);
    is_refused("not ONNX", |dir| change_graph(dir, |_| b"<html>404 not found</html>".to_vec()), &["not ONNX"]);
    is_refused(
        "an unknown operator",
        |dir| change_graph(dir, |g| replace(g, b"ReduceSum", b"ReduceFoo")),
        &["ReduceFoo"],
    );
    is_refused(
        "a digest that is not the file's",
        |dir| change_manifest(dir, |m| m["digests"]["model.onnx"] = json!("00".repeat(32))),
        &["model.onnx has SHA-256", "damaged or was changed"],
    );
    is_refused(
        "more channels than the manifest's own shape",
        |dir| change_manifest(dir, |m| m["inputs"][0]["shape"] = json!([-1, 1, 3])),
        &["3 channels"],
    );
    is_refused(
        "a window the graph does not take",
        |dir| {
            fs::remove_file(dir.join("one-step/golden.json")).expect("removing");
            change_manifest(dir, |m| {
                m["digests"] = json!({});
                m["inputs"][0]["shape"] = json!([-1, 4, 2]);
                m["window"]["steps"] = json!(4);
                let channel = |name: &str| json!({"name": name, "mean": 0.0, "std": 1.0});
                m["channels"] = json!([channel("count"), channel("other")]);
            });
        },
        &["[4, 2]"],
    );
    is_refused(
        "golden cases it does not pass",
        |dir| {
            let path = dir.join("one-step/golden.json");
            let golden =
                text(&fs::read(&path).expect("reading")).replace("4000.0", "5000.0").replacen("5000.0", "4000.0", 1);
            fs::write(path, golden).expect("writing");
            change_manifest(dir, |m| m["digests"] = json!({}));
        },
        &["self-test"],
    );
    is_refused(
        "a manifest that is not JSON",
        |dir| fs::write(dir.join("one-step/model.json"), "{").expect("writing"),
        &["model.json"],
    );
    is_refused("no graph", |dir| fs::remove_file(dir.join("one-step/model.onnx")).expect("removing"), &["model.onnx"]);
    is_refused(
        "no bundle, but one of a similar name",
        |dir| fs::rename(dir.join("one-step"), dir.join("one-stop")).expect("renaming"),
        &["did you mean `one-stop`"],
    );
}

#[test]
fn the_bundle_of_these_tests_is_itself_good() {
    let dir = tempfile::tempdir().expect("a directory");
    bundle(dir.path());
    let [check, _] = check_only(dir.path());
    assert_eq!(check.status.code(), Some(0), "{}", text(&check.stderr));
}

/// `check` alone: `run` would run.
fn check_only(dir: &Path) -> [Output; 2] {
    let config = [AGENT, &mqtt("mqtt://127.0.0.1:1"), MACHINES].concat();
    let path = dir.join("andon.toml");
    let dir = dir.to_str().expect("a plain path");
    fs::write(&path, config.replace("@DIR@", dir).replace("@DATA@", dir).replace("@WEB@", "off")).expect("writing");
    ["check", "check"].map(|command| andon([command, "-c", path.to_str().expect("a plain path")]))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_at_start_is_waited_for() {
    let mut broker = Mosquitto::start();
    broker.kill();
    let (plc_port, cloud_port) = (free_port(), free_port());
    let modbus = format!(
        "\n[[source.modbus]]\nname = \"plc\"\nurl = \"tcp://127.0.0.1:{plc_port}\"\npoll = \"100ms\"\ntimeout = \"200ms\"\n\
         machine = \"press\"\n[[source.modbus.signal]]\nname = \"count\"\nat = \"holding:0\"\ntype = \"f32\"\n"
    );
    let cloud_url = format!("http://127.0.0.1:{cloud_port}/v1/events");
    let config = [AGENT, &mqtt(&broker.url()), &modbus, MACHINES, &cloud_at(&cloud_url)].concat();
    let daemon = Daemon::new(&config).ready();

    let down = |name: &str| daemon.component(name).0 == "down";
    until("broker and device are told as missing", || down("source/shop") && down("source/plc"));
    assert_eq!(daemon.get("/health/ready").expect("an answer").0, 200, "the agent itself is well");
    let told = andon(["status", "--json", "-c", daemon.config().to_str().expect("a path")]);
    assert!(told.status.success(), "{}", text(&told.stderr));
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    for source in ["source/shop", "source/plc"] {
        assert_eq!(told["components"][source]["health"], "down", "{told}");
        let detail = told["components"][source]["detail"].as_str().unwrap_or("");
        assert!(detail.contains("127.0.0.1") || detail.to_lowercase().contains("refused"), "{source}: {detail:?}");
    }

    broker.restart();
    let plc = Plc::start(([127, 0, 0, 1], plc_port).into()).await.expect("the port is free");
    plc.set_f32(Table::Holding, 0, 42.0);
    until("broker and device are there", || {
        daemon.component("source/shop").0 == "up" && daemon.component("source/plc").0 == "up"
    });
    publish(&broker.url(), (0..10).map(good)).await;
    until("the cloud is missed", || down("cloud") && daemon.status()["records_waiting"].as_f64() >= Some(10.0));

    let options = Options::default();
    let cloud = Cloud::start(([127, 0, 0, 1], cloud_port).into(), options).await.expect("the port is free");
    until("all has arrived", || verdicts(&cloud) >= 20 && daemon.component("cloud").0 == "up");
}

#[test]
fn a_data_directory_that_cannot_be_had_is_told() {
    let below_a_file = AGENT.replace("@DIR@/data", "@DIR@/andon.toml/data");
    let config = [&below_a_file, &mqtt("mqtt://127.0.0.1:1"), MACHINES].concat();
    let mut daemon = Daemon::new(&config);
    daemon.start();
    let code = daemon.wait().code();
    assert!(matches!(code, Some(1 | BAD_CONFIG)), "{code:?}");
    let log = daemon.log();
    assert!(log.contains("andon.toml/data") && log.contains("Not a directory") && !log.contains("panicked"), "{log}");
}

#[test]
fn two_daemons_do_not_share_a_data_directory() {
    let config = [AGENT, &mqtt("mqtt://127.0.0.1:1"), MACHINES].concat();
    let mut first = Daemon::new(&config).ready();
    let data = first.dir().join("data");
    let mut second = Daemon::new(&config.replace("@DIR@/data", data.to_str().expect("a plain path")));
    second.start();
    let code = second.wait().code();
    assert!(matches!(code, Some(1 | BAD_CONFIG)), "{code:?}");
    let log = second.log();
    assert!(log.contains(data.to_str().expect("a path")) && log.contains("is in use by process"), "{log}");
    assert!(first.is_running());
    assert!(first.terminate().success());
    // Now that it is free, it is taken over.
    second.start_ready();
    assert!(second.terminate().success());
}
