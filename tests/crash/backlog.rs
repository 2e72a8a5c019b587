//! A cloud that was away for long and is slow when it comes back: what comes live goes before ten thousand
//! records that wait, alarms before both, and all of it arrives, also when the agent is killed meanwhile.

use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use andon::simulator::cloud::{Cloud, Fault, Options};
use andon::types::Time;
use serde_json::Value;

use super::agent::{CONFIG, Taken, Work, wait_for_all};
use super::support::daemon::{Daemon, until};
use super::support::mosquitto::Mosquitto;
use super::support::publisher::publish;

const MACHINES: u64 = 50;
/// Messages of each machine that come while the cloud is away: 10,500 in all.
const AWAY: u64 = 210;
/// And what comes live, in two parts: before and after a kill.
const LIVE: u64 = 5;
/// Records in a request, and how long the cloud takes for each: 40 s for what waits.
const BATCH: usize = 100;
const SLOW: Duration = Duration::from_millis(400);

/// What has arrived, in order: kind and time, without the machine that was silent for a while.
fn arrived(log: &Path) -> Vec<(String, String)> {
    let silent = format!("m{:02}", MACHINES - 1);
    let lines = std::io::BufReader::new(std::fs::File::open(log).expect("a log")).lines();
    // The last line may be in the middle of being written.
    let events = lines.map_while(|line| serde_json::from_str::<Value>(&line.ok()?).ok());
    let text = |e: &Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
    events.filter(|e| e["subject"] != silent.as_str()).map(|e| (text(&e, "type"), text(&e, "time"))).collect()
}

/// How many verdicts there are of before the n-th message, and from then on.
fn verdicts(log: &Path, work: Work, n: u64) -> (u64, u64) {
    let from = Time(work.time_ms(0, n) * 1_000_000).to_string();
    let times = arrived(log).into_iter().filter(|(kind, _)| kind == "io.andon.verdict.v1").map(|(_, time)| time);
    let (old, new): (Vec<_>, Vec<_>) = times.partition(|time| *time < from);
    (old.len() as u64, new.len() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn live_records_overtake_a_backlog_and_alarms_overtake_both() {
    let work = Work::of((AWAY + 2 * LIVE) * MACHINES, MACHINES, 100);
    let (broker, log) = (Mosquitto::start(), tempfile::NamedTempFile::new().expect("a file"));
    let options = Options { log: Some(log.path().to_owned()), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a port");
    cloud.rules(|r| r.always = Some(Fault::busy(503, "1")));
    let more = format!("[cloud]\nbatch_events = {BATCH}\nmax_requests = 1\n");
    let config = CONFIG.replace("[cloud]\n", &more).replace("@RATE@", "100ms").replace("@BROKER@", &broker.url());
    let mut daemon = Daemon::new(&config.replace("@CLOUD@", &cloud.url()));
    daemon.start_ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let mut messages = work.all();
    let mut say = async |n: u64| publish(&broker.url(), messages.by_ref().take((n * MACHINES) as usize)).await;
    say(AWAY).await;
    let stored = |kind: &str| daemon.metric("andon_store_records_total", kind);
    until("it waits", || stored("verdict") >= (AWAY * MACHINES) as f64);
    let alarms = stored("alarm");
    cloud.rules(|r| r.always = Some(Fault::delay(SLOW)));
    until("the cloud is back", || !arrived(log.path()).is_empty());
    let backlog = || daemon.metric("andon_outbox_backlog_records", "cloud");
    until("what waits is a backlog", || backlog() > 9_000.0);

    say(LIVE).await;
    let live = LIVE * (MACHINES - 1);
    until("what came live is at the cloud", || verdicts(log.path(), work, AWAY).1 >= live);
    let (before, _) = verdicts(log.path(), work, AWAY);
    println!("{before} of {} verdicts of the backlog came before {live} live ones had", AWAY * MACHINES);
    assert!(before < AWAY * MACHINES / 2);
    let all = arrived(log.path());
    let is_alarm = |kind: &str| kind == "io.andon.alarm.v1";
    let last = all.iter().rposition(|(kind, _)| is_alarm(kind)).expect("an alarm");
    let before = all[..last].iter().filter(|(kind, _)| kind == "io.andon.verdict.v1").count();
    let there = all.iter().filter(|(kind, _)| is_alarm(kind)).count();
    println!("{there} of {alarms} alarm records, {before} verdicts before the last of them");
    // What was tried while it was away is tried again; and one request may be under way.
    assert!(before <= 3 * BATCH);

    daemon.kill9();
    daemon.start_ready();
    say(LIVE).await;
    until("what came live is at the cloud", || verdicts(log.path(), work, AWAY + LIVE).1 >= live);
    let (before, _) = verdicts(log.path(), work, AWAY);
    println!("{before} of them before another {live} after a kill");
    assert!(before < AWAY * MACHINES * 3 / 4);
    cloud.rules(|r| r.always = None);
    assert!(wait_for_all(&daemon, &cloud, work), "{:?} of {}\n{}", cloud.stats(), work.messages(), daemon.status());
    until("there is no backlog", || daemon.metric("andon_outbox_backlog_records", "cloud") == 0.0);
    assert!(daemon.terminate().success(), "{}", daemon.log());
    let stats = cloud.stats();
    cloud.stop().await;
    let taken = Taken::read(log.path());
    taken.check(work);
    println!("{} records, {} of them came more than once", stats.distinct, stats.duplicates);
}
