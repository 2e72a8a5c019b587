//! A crash changes nothing: `andon run` is killed with kill -9, or loses its power, again and again while
//! numbered messages come in, and in the end the cloud has exactly what it has from a run that was left
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant};

use andon::simulator::cloud::{Cloud, Fault, Options, Stats, Storm};
use andon::types::Time;
use serde_json::Value;

use super::powercut::{Disk, Knob, Taste};
use super::setting;
use super::support::daemon::{Daemon, until};
use super::support::mosquitto::Mosquitto;
use super::support::publisher::publish;

/// Time of the first message: 2025-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_735_689_600_000;
/// A score from here on is an anomaly. Some numbers are lifted beyond it.
const LIMIT: f64 = 1_000_000.0;
/// How long the cloud may take to get the last record, and how long nothing may move.
const STALL: Duration = Duration::from_secs(60);

pub const CONFIG: &str = r#"
[agent]
site = "test/crash"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"

[[source.mqtt]]
name = "shop"
url = "@BROKER@"
receive_maximum = 1000

[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
qos = 1
value = "/value"
time = "/ts"
time_format = "unix_ms"

[[machine]]
match = "*"
model = "one-step"
rate = "@RATE@"
[machine.alarm]
# Silence is noticed by the gateway's clock: how often a machine falls silent differs with each kill.
input_severity = 0
threshold = 1000000
on_delay = "300ms"
off_delay = "500ms"

[cloud]
url = "@CLOUD@"

[web]
listen = "@WEB@"
"#;

/// What is published: so many messages of each machine, as far apart as the grid.
#[derive(Copy, Clone)]
pub struct Work {
    pub machines: u64,
    pub per_machine: u64,
    step_ms: i64,
    /// All of it waits at the broker before the daemon takes the first.
    backlog: bool,
}

impl Work {
    pub fn of(messages: u64, machines: u64, step_ms: i64) -> Work {
        Work { machines, per_machine: messages.div_ceil(machines), step_ms, backlog: false }
    }

    pub fn messages(self) -> u64 {
        self.per_machine * self.machines
    }

    /// The value of message `n`: its number, now and then lifted beyond the limit for a while.
    fn value(n: u64) -> f64 {
        if n % 100 >= 90 { n as f64 + LIMIT } else { n as f64 }
    }

    /// The last machine goes silent in the middle, which makes a gap.
    pub fn time_ms(self, machine: u64, n: u64) -> i64 {
        let pause = if machine == self.machines - 1 && n >= self.per_machine / 2 { 60_000 } else { 0 };
        EPOCH_MS + n as i64 * self.step_ms + pause
    }

    pub fn all(self) -> impl Iterator<Item = (String, String)> {
        (0..self.per_machine).flat_map(move |n| {
            (0..self.machines).map(move |m| {
                let payload = format!("{{\"value\":{},\"ts\":{}}}", Work::value(n), self.time_ms(m, n));
                (format!("plant/m{m:02}/count"), payload)
            })
        })
    }
}

/// Everything the cloud was sent, by id.
#[derive(Debug, Default, PartialEq)]
pub struct Taken(BTreeMap<String, Event>);

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    kind: String,
    subject: String,
    time: String,
    data: Value,
}

impl Taken {
    /// Reads the stand-in's log. The same id always comes with the same content and the same sequence,
    /// and no two ids share a sequence.
    pub fn read(path: &Path) -> Taken {
        let mut taken = Taken::default();
        let mut sequences: BTreeMap<String, String> = BTreeMap::new();
        let file = std::fs::File::open(path).expect("the cloud's log");
        for line in std::io::BufReader::new(file).lines() {
            let e: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            let text = |key: &str| e[key].as_str().expect("a string").to_owned();
            // The audit log tells when the agent was started with what, which no two runs share.
            if text("type") == "io.andon.audit.v1" {
                continue;
            }
            let event =
                Event { kind: text("type"), subject: text("subject"), time: text("time"), data: e["data"].clone() };
            let (id, sequence) = (text("id"), text("sequence"));
            let holder = sequences.entry(sequence.clone()).or_insert_with(|| id.clone());
            assert_eq!(*holder, id, "two records have the sequence {sequence}");
            if let Some(before) = taken.0.insert(id.clone(), event.clone()) {
                assert_eq!(before, event, "record {id} came twice and was not the same");
            }
        }
        taken
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What the gap records say.
    pub fn gaps(&self) -> Vec<String> {
        self.0.values().filter(|e| e.kind.contains("gap")).map(|e| e.data.to_string()).collect()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.0.values().filter(|e| e.kind.contains(kind)).count()
    }

    /// Every message has its verdict, which holds its number, and there is no other.
    pub fn check(&self, work: Work) {
        let mut scores: BTreeMap<(String, String), f64> = BTreeMap::new();
        for e in self.0.values().filter(|e| e.kind == "io.andon.verdict.v1") {
            let score = e.data["anomaly_score"].as_f64().expect("a score");
            let before = scores.insert((e.subject.clone(), e.time.clone()), score);
            assert_eq!(before, None, "{} has two verdicts for {}", e.subject, e.time);
        }
        let mut missing = Vec::new();
        for m in 0..work.machines {
            let machine = format!("m{m:02}");
            for n in 0..work.per_machine {
                let at = Time(work.time_ms(m, n) * 1_000_000).to_string();
                match scores.remove(&(machine.clone(), at.clone())) {
                    Some(score) => assert_eq!(score, Work::value(n), "{machine} at {at}"),
                    None => missing.push(format!("{machine} at {at}, message {n}")),
                }
            }
        }
        assert!(missing.is_empty(), "{} verdicts are missing: {:?}", missing.len(), &missing[..missing.len().min(10)]);
        let silent = format!("m{:02}", work.machines - 1);
        // Before the gap is noticed, the silent machine's value is held for as long as it is valid.
        let stray: Vec<_> = scores.keys().filter(|(machine, _)| **machine != *silent).collect();
        assert!(stray.is_empty(), "verdicts for what was never sent: {:?}", &stray[..stray.len().min(10)]);
        assert!(scores.len() < 20, "{} verdicts in the gap", scores.len());
    }

    /// What one has and the other has not, or has otherwise.
    fn difference(&self, other: &Taken) -> String {
        let ids: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let differ: Vec<String> = ids
            .into_iter()
            .filter(|id| self.0.get(*id) != other.0.get(*id))
            .map(|id| format!("{id}\n   {:?}\n   {:?}", self.0.get(id), other.0.get(id)))
            .collect();
        format!("{} records differ:\n{}", differ.len(), differ[..differ.len().min(10)].join("\n"))
    }
}

/// How a run ends again and again.
#[derive(Copy, Clone, PartialEq)]
enum End {
    Kill,
    /// A kill, and what the process had not synced is gone in part.
    PowerCut,
}

/// What a run came to.
struct Outcome {
    taken: Taken,
    stats: Stats,
    kills: usize,
    kills_in_start: usize,
    seconds: f64,
    redelivered: f64,
}

/// Runs the work through broker, daemon and cloud, ending the daemon `kills` times.
async fn run(work: Work, end: End, kills: usize, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let broker = Mosquitto::start();
    let log = tempfile::NamedTempFile::new().expect("a file");
    let options = Options { log: Some(log.path().to_owned()), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a port");
    let trouble = vec![Fault::status(503), Fault::CutBefore, Fault::CutAfter, Fault::busy(429, "1")];
    cloud.rules(|r| r.storm = Some(Storm::new(seed, 2, trouble)));
    let config = CONFIG
        .replace("@RATE@", &format!("{}ms", work.step_ms))
        .replace("@BROKER@", &broker.url())
        .replace("@CLOUD@", &cloud.url());
    let mut daemon = Daemon::new(&config);
    let disk = (end == End::PowerCut).then(|| Disk::new(&daemon.dir().join("data"), &daemon.dir().join("beside")));
    daemon.environment(disk.iter().flat_map(Disk::environment));
    daemon.start_ready();
    // The session has to be there before anything is published for it.
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let begun = Instant::now();
    let url = broker.url();
    let mut publishing = tokio::spawn(async move { publish(&url, work.all()).await });
    if work.backlog {
        daemon.kill9();
        (&mut publishing).await.expect("all is published");
        publishing = tokio::spawn(async {});
        daemon.start_ready();
    }
    let (kills_in_start, mut redelivered) = torment(&mut daemon, disk.as_ref(), &cloud, work, kills, &mut random);
    publishing.await.expect("all is published");
    let waiting = wait_for_all(&daemon, &cloud, work);
    assert!(waiting, "the cloud has {:?} of {} messages\n{}", cloud.stats(), work.messages(), daemon.status());
    redelivered += recognised(&daemon);
    assert!(daemon.terminate().success(), "{}", daemon.log());
    let stats = cloud.stats();
    cloud.stop().await;
    let seconds = begun.elapsed().as_secs_f64();
    Outcome { taken: Taken::read(log.path()), stats, kills, kills_in_start, seconds, redelivered }
}

/// Messages that came again and were known. None may count as late.
fn recognised(daemon: &Daemon) -> f64 {
    let late = daemon.metric("andon_readings_dropped_total", "late");
    assert_eq!(late, 0.0, "what comes again after a crash is known, not late");
    daemon.metric("andon_readings_dropped_total", "duplicate")
}

/// Ends it at random moments spread over the work, some of them while it starts. Returns how many
/// of them were while it started, and how many messages came again.
fn torment(
    daemon: &mut Daemon,
    disk: Option<&Disk>,
    cloud: &Cloud,
    work: Work,
    kills: usize,
    random: &mut fastrand::Rng,
) -> (usize, f64) {
    let slow_syncs = |us| disk.iter().for_each(|d| d.set(Knob::SyncDelayUs, us));
    let end = |daemon: &mut Daemon, random: &mut fastrand::Rng| {
        daemon.kill9();
        // Now and then only the process dies, and the power goes later.
        if let Some(disk) = disk.filter(|_| random.u8(..5) > 0) {
            println!("power cut: took back {}", disk.cut(Taste::any(random)));
        }
        slow_syncs(0);
    };
    let mut moments: Vec<u64> = (0..kills).map(|_| random.u64(1..work.messages() * 9 / 10)).collect();
    moments.sort_unstable();
    let (mut in_start, mut redelivered) = (0, 0.0);
    for moment in moments {
        if random.u8(0..4) == 0 && in_start < kills / 3 {
            in_start += 1;
            end(daemon, random);
            daemon.start();
            std::thread::sleep(Duration::from_millis(random.u64(0..150)));
            end(daemon, random);
        } else {
            if work.backlog {
                // It is taken in long before the cloud has it: the moment is right after a commit.
                let moment = random.u64(1..work.messages() / 20) as f64;
                until("the next kill is due", || daemon.metric("andon_store_records_total", "verdict") >= moment);
            } else {
                until("the next kill is due", || cloud.stats().distinct >= moment);
                std::thread::sleep(Duration::from_millis(random.u64(0..60)));
            }
            redelivered += recognised(daemon);
            end(daemon, random);
        }
        daemon.start_ready();
        // The slower a sync, the more is under way when the power goes.
        slow_syncs([0, 2_000, 20_000, 60_000][random.usize(..4)]);
    }
    (in_start, redelivered)
}

/// Until everything has reached the cloud; `false` when nothing moves any more.
pub fn wait_for_all(daemon: &Daemon, cloud: &Cloud, work: Work) -> bool {
    let (mut seen, mut moved) = (0, Instant::now());
    loop {
        let stats = cloud.stats();
        let verdicts = stats.types.get("io.andon.verdict.v1").copied().unwrap_or(0);
        let idle = || daemon.status()["records_waiting"].as_f64() == Some(0.0);
        if verdicts >= work.messages() && idle() && cloud.stats().received == stats.received {
            return true;
        }
        if stats.distinct != seen {
            (seen, moved) = (stats.distinct, Instant::now());
        }
        if moved.elapsed() > STALL {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Under torment, then left alone: the same. Returns how many messages came again.
async fn changes_nothing(work: Work, end: End, kills: usize) -> f64 {
    let seed = setting("ANDON_CRASH_SEED", 7);
    let killed = run(work, end, kills, seed).await;
    println!(
        "{} messages of {} machines, {} {} and {} more while starting, {:.1} s: \
         {} records at the cloud ({} verdicts, {} alarms, {} gaps); \
         {} came more than once; {} messages came again and were known",
        work.messages(),
        work.machines,
        killed.kills,
        if end == End::Kill { "kills" } else { "power cuts" },
        killed.kills_in_start,
        killed.seconds,
        killed.taken.0.len(),
        killed.taken.count("verdict"),
        killed.taken.count("alarm"),
        killed.taken.count("gap"),
        killed.stats.duplicates,
        killed.redelivered,
    );
    killed.taken.check(work);
    assert!(killed.taken.count("alarm") > 0, "the work has alarms in it");
    assert_eq!(killed.taken.count("gap"), 1, "and one gap: {:#?}", killed.taken.gaps());
    let calm = run(work, End::Kill, 0, seed).await;
    println!("left alone: {:.1} s, {} came more than once", calm.seconds, calm.stats.duplicates);
    calm.taken.check(work);
    assert!(killed.taken == calm.taken, "killed and left alone: {}", killed.taken.difference(&calm.taken));
    println!("none missing, none different");
    killed.redelivered
}

/// The usual work: many machines, a message of each in every step of the grid.
fn usual() -> Work {
    let messages = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
    Work::of(setting("ANDON_CRASH_MESSAGES", messages), 50, 100)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_change_nothing() {
    changes_nothing(usual(), End::Kill, setting("ANDON_CRASH_KILLS", 10) as usize).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_change_nothing() {
    changes_nothing(usual(), End::PowerCut, setting("ANDON_CRASH_AGENT_CUTS", 4) as usize).await;
}

/// Few machines that speak rarely: what the broker sends again after a kill then reaches back for
/// many minutes of their time.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_is_known_however_far_it_reaches_back() {
    let work = Work { backlog: true, ..Work::of(20_000, 2, 1_000) };
    let redelivered = changes_nothing(work, End::Kill, 10).await;
    assert!(redelivered > 0.0, "nothing came again: the kills were too early or too late to show anything");
}
