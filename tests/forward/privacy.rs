//! What leaves the plant, found by a canary in names and values; and how many bytes that is.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use andon::agent::records::Recorder;
use andon::forward::Outbox;
use andon::forward::aggregate::{Aggregated, Settings};
use andon::forward::memory::MemoryOutbox;
use andon::simulator::cloud::{Cloud, Options};
use andon::types::{Contribution, Kind, Quality, Reason, Record, RecordId, Time, Verdict};

use crate::rig::{config, run_sink, start, until};
use crate::support::mosquitto::Mosquitto;

/// Stands in a machine's name, and by that in texts, lists and names of members.
const CANARY: &str = "canary-7f3a91";
/// Stands in a value that no list lets through.
const VALUE: &str = "4711.25";

/// One record of each kind that names the machine, wherever it can be named.
fn records() -> Vec<Record> {
    let record = |n: u8, kind, data: String| Record {
        id: RecordId([n; 16]),
        kind,
        subject: CANARY.into(),
        at: Time(1_700_000_000_000_000_000 + i64::from(n)),
        data,
    };
    let verdict = |n| {
        record(
            n,
            Kind::Verdict,
            format!(
                r#"{{"timestamp":"t","machine":"{CANARY}","anomaly_score":0.5,"raw":{VALUE},"diagnostics":[{{"name":"flow","value":0.5}}]}}"#
            ),
        )
    };
    let mut all: Vec<Record> = (0..20).map(verdict).collect();
    all.push(record(
        21,
        Kind::Alarm,
        format!(
            r#"{{"timestamp":"t","machine":"{CANARY}","transition":"raised","raw":{VALUE},"message":"{CANARY}: flow is high",
            "explanation":{{"text":"a\n{CANARY} b","{CANARY}":[{VALUE}]}}}}"#
        ),
    ));
    all.push(record(
        22,
        Kind::Gap,
        format!(r#"{{"timestamp":"t","machine":"{CANARY}","reason":"late","raw":{VALUE}}}"#),
    ));
    all.push(record(
        23,
        Kind::Audit,
        format!(
            r#"{{"timestamp":"t","action":"ack","subject":"{CANARY}","detail":"alarm of {CANARY}","raw":{VALUE}}}"#
        ),
    ));
    all
}

fn waiting() -> Arc<MemoryOutbox> {
    let outbox = Arc::new(MemoryOutbox::new(100));
    for record in records() {
        outbox.push(record).expect("room");
    }
    outbox
}

/// Nothing by the name, and only what the list lets through.
const PRIVATE: &str = "pseudonymise = true\npseudonym_key = \"a key that nobody guesses\"\nfields = [\"anomaly_score\", \"message\", \"explanation\", \"subject\", \"detail\"]\n";

/// All that a file sink writes.
async fn file(more: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events.ndjson");
    let outbox = waiting();
    let text = format!("[[sink.file]]\nname = \"archive\"\npath = {:?}\n{more}", path.display().to_string());
    let (shared, sink) = run_sink(&text, &outbox);
    until("all is written", || outbox.waiting() == 0).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    std::fs::read_to_string(path).expect("the file")
}

/// All that the cloud gets.
async fn cloud(more: &str) -> String {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let options = Options { log: Some(log.path().to_owned()), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a port");
    let outbox = waiting();
    let (shared, sink) = start(config(&cloud.url(), more), &outbox, Duration::ZERO);
    until("all is delivered", || outbox.waiting() == 0).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    std::fs::read_to_string(log.path()).expect("the log")
}

/// All that a broker hands on: topics, properties, payloads.
async fn broker(more: &str) -> String {
    let broker = Mosquitto::start();
    let mut command = Command::new("mosquitto_sub");
    command.args(["-V", "mqttv5", "-q", "1", "-t", "#", "-F", "%t %P %p", "-W", "60"]);
    command.args(["-p", &broker.port().to_string(), "-C", &records().len().to_string()]);
    let subscriber = command.stdout(Stdio::piped()).spawn().expect("mosquitto_sub is installed");
    until("it has subscribed", || broker.log().contains("Sending SUBACK to")).await;
    let outbox = waiting();
    let (shared, sink) = run_sink(&format!("[[sink.mqtt]]\nname = \"iot\"\nurl = {:?}\n{more}", broker.url()), &outbox);
    until("all is delivered", || outbox.waiting() == 0).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    let output = tokio::task::spawn_blocking(|| subscriber.wait_with_output()).await.expect("waiting");
    String::from_utf8(output.expect("its output").stdout).expect("text")
}

/// The pseudonyms in a text.
fn names(text: &str) -> BTreeSet<String> {
    let found = text.match_indices("\"machine\":\"").map(|(at, _)| &text[at + 11..]);
    found.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canary_leaves_by_no_sink_that_is_told_to_hold_it_back() {
    let mut all_names = BTreeSet::new();
    for (sink, plain, private) in [
        ("file", file("").await, file(PRIVATE).await),
        ("cloud", cloud("").await, cloud(PRIVATE).await),
        ("mqtt", broker("").await, broker(PRIVATE).await),
    ] {
        assert!(plain.matches(CANARY).count() > 40 && plain.contains(VALUE), "{sink}: the canary is heard at all");
        assert!(!private.contains(CANARY) && !private.contains("7f3a91"), "{sink}: {private}");
        assert!(private.contains("\"anomaly_score\":0.5"), "{sink}: {private}");
        let raw = private.lines().filter(|l| l.contains("\"raw\"")).count();
        assert_eq!(raw, 0, "{sink}: {private}");
        let names = names(&private);
        assert_eq!(names.len(), 1, "{sink}: one machine, one name");
        all_names.extend(names);
    }
    assert_eq!(all_names.len(), 3, "each sink has names of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_hold_nothing_raw() {
    let dir = tempfile::tempdir().expect("a directory");
    let inner = waiting();
    let settings = Settings { every: Duration::from_secs(60), at_least: 10 };
    let sums = Aggregated::open(inner.clone(), "archive", settings, None, dir.path()).expect("opened");
    assert!(sums.ready().await);
    let told = sums.next(100, 1 << 20).await.expect("summaries");
    assert_eq!(inner.waiting(), 0);
    assert_eq!(told.len(), 1, "one machine, one interval");
    let data = &told[0].record.data;
    assert!(
        data.contains("\"alarm/raised\":1") && data.contains("\"gap/late\":1") && data.contains("\"verdicts\":20"),
        "{data}"
    );
    assert!(!data.contains(VALUE) && !data.contains("flow is high") && !data.contains("detail"), "{data}");
}

/// Verdicts as of a pump with eight channels, ten machines, one a second each.
fn verdicts(n: u64) -> Vec<Record> {
    let mut random = fastrand::Rng::with_seed(4);
    let recorder = Recorder::new("lyon/line3", "gw-07");
    let channels = ["speed", "flow", "pressure_in", "pressure_out", "vibration_rms", "current", "temperature", "valve"];
    let verdict = |n: u64| {
        let mut shares: Vec<f64> = channels.iter().map(|_| random.f64()).collect();
        let sum: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|s| *s /= sum);
        let contributions = channels.iter().zip(&shares);
        let mut contributions: Vec<Contribution> =
            contributions.map(|(name, value)| Contribution { name: (*name).into(), value: *value }).collect();
        contributions.sort_by(|a, b| b.value.total_cmp(&a.value));
        recorder.verdict(&Verdict {
            machine: format!("pump-{}", n % 10).into(),
            at: Time(1_700_000_000_000_000_000 + (n / 10) as i64 * 1_000_000_000),
            model: "pump-anomaly".into(),
            model_version: "1".into(),
            model_digest: "437f3b9a".into(),
            reason: Reason::NoAnomalyDetected,
            score: Some(random.f64() / 10.0),
            p_value: Some(random.f64()),
            threshold: 5.291_005e-6,
            health: Some(random.f64()),
            rul: None,
            class: None,
            quality: Quality::Good,
            contributions,
        })
    };
    (0..n).map(verdict).collect()
}

async fn wire_bytes<O: Outbox>(outbox: O, more: &str, done: impl Fn() -> bool) -> usize {
    let cloud = crate::rig::cloud().await;
    let shared = andon::metrics::Shared::new();
    let sink = andon::forward::cloud::run(
        config(&cloud.url(), more),
        "lyon/line3".into(),
        "gw-07".into(),
        outbox,
        Duration::ZERO,
        shared.clone(),
    );
    let sink = tokio::spawn(sink);
    until("all is delivered", done).await;
    until("and answered", || shared.board.components().get("cloud").is_some_and(|c| c.detail.is_empty())).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    cloud.seen().iter().map(|s| s.wire_bytes).sum()
}

/// The README's table of bytes is this, printed with `--nocapture`.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_for_a_thousand_verdicts() {
    const SHORT: &str = "fields = [\"prediction\", \"prediction_reason\", \"anomaly_score\", \"p_value\"]\n";
    let full = || {
        let outbox = Arc::new(MemoryOutbox::new(1_000));
        for record in verdicts(1_000) {
            outbox.push(record).expect("room");
        }
        outbox
    };
    let mut bytes = Vec::new();
    for (what, fields) in [("every field", ""), ("four fields", SHORT)] {
        for compress in ["none", "gzip", "zstd"] {
            let outbox = full();
            let more = format!("compress = {compress:?}\n{fields}");
            let n = wire_bytes(outbox.clone(), &more, || outbox.waiting() == 0).await;
            println!("| {what} | {compress} | {n} |");
            bytes.push(n);
        }
    }
    for compress in ["none", "gzip", "zstd"] {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = full();
        let settings = Settings { every: Duration::from_secs(100), at_least: 10 };
        let sums = Arc::new(Aggregated::open(inner.clone(), "cloud", settings, None, dir.path()).expect("opened"));
        let empty = || inner.waiting() == 0 && !sums.is_ready();
        let n = wire_bytes(sums.clone(), &format!("compress = {compress:?}"), empty).await;
        println!("| sums over 100 s | {compress} | {n} |");
        bytes.push(n);
    }
    let [all, _, all_zstd, few, _, few_zstd, ..] = bytes[..] else { panic!("{bytes:?}") };
    assert!(all_zstd * 4 < all && few < all && few_zstd < all_zstd, "{bytes:?}");
}
