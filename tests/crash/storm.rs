//! The whole agent in a storm: the cloud answers with everything in the table that lets a record arrive in
//! the end (410 stops the sink and 400 and 422 set records aside: those have tests of their own), the agent is
//! killed ten times meanwhile, and a file takes the same records beside it.
//!
//! `ANDON_STORM_SECONDS` says how long it lasts, 12 unless given.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant};

use andon::simulator::cloud::{Cloud, Fault, Options, Storm};
use serde_json::Value;

use super::agent::{CONFIG, Taken, Work, wait_for_all};
use super::setting;
use super::support::daemon::{Daemon, until};
use super::support::mosquitto::Mosquitto;
use super::support::publisher::publish;

const KILLS: u64 = 10;
/// Requests of each life that the cloud sees at least.
const REQUESTS: u64 = 3;
/// Messages a second.
const RATE: u64 = 300;

/// In a directory of its own, so that what is there is only lines.
const FILE: &str = r#"
[[sink.file]]
name = "archive"
path = "@DIR@/archive/events.ndjson"
max_bytes = "256KiB"
max_files = 10000
"#;

fn weather() -> Vec<Fault> {
    let date = |seconds| {
        let at = jiff::Timestamp::now() + Duration::from_secs(seconds);
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).expect("a date")
    };
    let statuses = [408, 409, 425, 429, 500, 501, 502, 503, 504, 599, 401, 403, 301, 302, 307, 404, 405, 415];
    let mut all: Vec<Fault> = statuses.map(Fault::status).into();
    all.extend([
        Fault::busy(429, "1"),
        // In the past by the time it comes, which means the least that is waited.
        Fault::busy(503, date(1)),
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::delay(Duration::from_millis(300)),
        Fault::Partial { every: 3, status: 503 },
        Fault::Partial { every: 1, status: 429 },
        Fault::Garbage,
        Fault::Flood,
    ]);
    all
}

async fn cloud(log: &Path) -> Cloud {
    let options = Options { log: Some(log.to_owned()), ..Options::default() };
    Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a port")
}

/// How often each id stands on a line of these files.
fn ids(files: impl IntoIterator<Item = std::path::PathBuf>) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::new();
    for path in files {
        for line in std::io::BufReader::new(std::fs::File::open(path).expect("a file")).lines() {
            let event: Value = serde_json::from_str(&line.expect("text")).expect("an event on each line");
            *all.entry(event["id"].as_str().expect("an id").to_owned()).or_default() += 1;
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_in_a_storm_of_all_answers_lose_nothing_and_repeat_no_id() {
    let (seconds, seed) = (setting("ANDON_STORM_SECONDS", 12), setting("ANDON_CRASH_SEED", 7));
    let work = Work::of(seconds * RATE, 50, 100);
    let (broker, log) = (Mosquitto::start(), tempfile::NamedTempFile::new().expect("a file"));
    let cloud = cloud(log.path()).await;
    cloud.rules(|r| {
        r.storm = Some(Storm::new(seed, 40, weather()));
        r.max_bytes = Some(48 << 10);
    });
    let config = CONFIG.replace("@RATE@", "100ms").replace("@BROKER@", &broker.url()) + FILE;
    let mut daemon = Daemon::new(&config.replace("@CLOUD@", &cloud.url()));
    daemon.start_ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let (url, begun) = (broker.url(), Instant::now());
    let publishing = tokio::spawn(async move {
        let mut all = work.all();
        for second in 0..seconds {
            publish(&url, all.by_ref().take(RATE as usize).collect::<Vec<_>>()).await;
            tokio::time::sleep_until((begun + Duration::from_secs(second + 1)).into()).await;
        }
        publish(&url, all.collect::<Vec<_>>()).await;
    });
    let mut heard = 0;
    for kill in 1..=KILLS {
        let due = begun + Duration::from_millis(seconds * 1_000 * kill / (KILLS + 1));
        tokio::time::sleep_until(due.into()).await;
        // In the middle of something: this life has met the storm.
        until("the cloud has heard of it", || cloud.stats().requests >= heard + REQUESTS);
        daemon.kill9();
        heard = cloud.stats().requests;
        daemon.start_ready();
    }
    publishing.await.expect("all is published");
    let in_storm = cloud.stats();
    cloud.rules(|r| r.storm = None);
    assert!(wait_for_all(&daemon, &cloud, work), "{:?} of {}\n{}", cloud.stats(), work.messages(), daemon.status());
    let letters = daemon.metric("andon_forward_dead_letters_total", "");
    assert!(daemon.terminate().success(), "{}", daemon.log());
    let stats = cloud.stats();
    cloud.stop().await;
    let taken = Taken::read(log.path());
    taken.check(work);
    let archive = std::fs::read_dir(daemon.dir().join("archive")).expect("a directory");
    let archived = ids(archive.map(|e| e.expect("an entry").path()));
    let arrived = ids([log.path().to_owned()]);
    println!(
        "{seconds} s, {KILLS} kills, {} requests ({} recognised as repeated): {} records at the cloud, {} of them came \
         more than once, {} during the storm; {} in the files",
        stats.requests,
        stats.replays,
        stats.distinct,
        stats.duplicates,
        in_storm.distinct,
        archived.len(),
    );
    assert!(in_storm.distinct > 0, "something came through");
    assert_eq!(letters, 0.0, "nothing was set aside");
    assert_eq!(archived.values().max(), Some(&1), "no line stands in the files twice");
    let (at_cloud, in_files): (BTreeSet<_>, BTreeSet<_>) = (arrived.keys().collect(), archived.keys().collect());
    assert_eq!(at_cloud.symmetric_difference(&in_files).count(), 0, "both sinks got the same");
    assert_eq!(arrived.len() as u64, stats.distinct);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_overtakes_ten_thousand_routine_records() {
    let (broker, log) = (Mosquitto::start(), tempfile::NamedTempFile::new().expect("a file"));
    let cloud = cloud(log.path()).await;
    cloud.rules(|r| r.always = Some(Fault::busy(503, "1")));
    let config = CONFIG.replace("@RATE@", "100ms").replace("@BROKER@", &broker.url());
    let mut daemon = Daemon::new(&config.replace("@CLOUD@", &cloud.url()));
    daemon.start_ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let message = |n: u64, value: f64| {
        let ms = 1_735_689_600_000 + n / 50 * 100;
        (format!("plant/m{:02}/count", n % 50), format!("{{\"value\":{value},\"ts\":{ms}}}"))
    };
    publish(&broker.url(), (0..10_200).map(|n| message(n, 1.0))).await;
    let stored = |kind: &str| daemon.metric("andon_store_records_total", kind);
    until("ten thousand wait", || stored("verdict") >= 10_000.0);
    publish(&broker.url(), (10_200..10_700).map(|n| message(n, 2_000_000.0))).await;
    until("there is an alarm", || stored("alarm") > 0.0);
    cloud.rules(|r| r.always = None);
    let arrived = || std::fs::read_to_string(log.path()).expect("a log");
    until("an alarm is at the cloud", || arrived().contains("io.andon.alarm.v1"));
    let text = arrived();
    let first = text.lines().position(|l| l.contains("io.andon.alarm.v1")).expect("an alarm");
    let before = text.lines().take(first).filter(|l| l.contains("io.andon.verdict.v1")).count();
    println!("{before} of {} verdicts came before the first alarm", stored("verdict"));
    // One request may have been under way.
    assert!(before <= 500, "{before} verdicts came before the first alarm");
    daemon.terminate();
}
