//! An outbox, a sink and a stand-in cloud, wired up.

use std::sync::Arc;
use std::time::Duration;

use andon::forward::cloud::{Config, run};
use andon::forward::memory::MemoryOutbox;
use andon::forward::sinks;
use andon::metrics::{Component, Health, Shared};
use andon::settings::{Document, Surroundings};
use andon::simulator::cloud::{Cloud, Options, Seen};
use andon::types::{Kind, Record, RecordId, Time};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub cloud: Cloud,
    pub outbox: Arc<MemoryOutbox>,
    pub shared: Shared,
    pub sink: JoinHandle<()>,
}

/// A config as a user writes it, except that it retries fast.
pub fn config(url: &str, more: &str) -> Config {
    let text = format!("url = {url:?}\n{more}");
    let document = Document::parse(&text, Surroundings::default());
    let mut config = Config::read(&document.root());
    assert_eq!(document.into_problems(), []);
    config.tempo.retry_first = Duration::from_millis(2);
    config.tempo.retry_cap = Duration::from_millis(20);
    config
}

/// The first sink of a config file's text.
pub fn sink(text: &str) -> sinks::Config {
    let document = Document::parse(text, Surroundings::default());
    let config = sinks::Config::read_all(&document.root(), "lyon/line3", "gw-07").remove(0);
    assert_eq!(document.into_problems(), []);
    config
}

/// Runs the first sink of a config file's text on this outbox.
pub fn run_sink(text: &str, outbox: &Arc<MemoryOutbox>) -> (Shared, JoinHandle<()>) {
    let config = sink(text);
    let shared = Shared::new();
    let who = ("lyon/line3".to_owned(), "gw-07".to_owned());
    let sink = sinks::run(config, who, outbox.clone(), Duration::from_secs(5), shared.clone());
    (shared, tokio::spawn(sink))
}

pub async fn cloud() -> Cloud {
    Cloud::start(([127, 0, 0, 1], 0).into(), Options::default()).await.expect("a free port")
}

pub fn record(n: u64) -> Record {
    let data = format!(r#"{{"timestamp":"2026-11-22T10:15:30.250Z","machine":"press-04","n":{n},"score":0.25}}"#);
    Record { id: id(n), kind: Kind::Verdict, subject: "press-04".into(), at: Time::now(), data }
}

pub fn id(n: u64) -> RecordId {
    RecordId::of(&[b"test", &n.to_le_bytes()])
}

pub fn fill(outbox: &MemoryOutbox, numbers: std::ops::Range<u64>) {
    for n in numbers {
        outbox.push(record(n)).expect("room");
    }
}

pub fn start(config: Config, outbox: &Arc<MemoryOutbox>, grace: Duration) -> (Shared, JoinHandle<()>) {
    let shared = Shared::new();
    let sink = run(config, "lyon/line3".into(), "gw-07".into(), outbox.clone(), grace, shared.clone());
    (shared, tokio::spawn(sink))
}

/// A sink that finds `count` records waiting and meets a cloud prepared by `prepare`.
pub async fn rig(count: u64, more: &str, prepare: impl FnOnce(&Cloud)) -> Rig {
    let cloud = cloud().await;
    prepare(&cloud);
    let outbox = Arc::new(MemoryOutbox::new(100_000));
    fill(&outbox, 0..count);
    let (shared, sink) = start(config(&cloud.url(), more), &outbox, Duration::from_secs(5));
    Rig { cloud, outbox, shared, sink }
}

/// Polls until it holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Rig {
    pub async fn all_settled(&self) {
        until("the outbox is empty", || self.outbox.waiting() == 0).await;
    }

    /// Each of these was taken exactly once.
    pub fn taken_once(&self, mut numbers: impl Iterator<Item = u64>) {
        let wrong = numbers.find(|&n| self.cloud.count(&id(n).to_string()) != 1);
        assert_eq!(wrong, None, "taken {:?} times", wrong.map(|n| self.cloud.count(&id(n).to_string())));
    }

    pub fn statuses(&self) -> Vec<u16> {
        self.cloud.seen().iter().map(|s| s.status).collect()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.cloud.seen()
    }

    /// What the board says; the sink writes itself in when it starts.
    pub fn board(&self) -> Component {
        let starting = Component { health: Health::Starting, detail: String::new(), since: Time(0), last_good: None };
        self.shared.board.components().remove("cloud").unwrap_or(starting)
    }

    pub fn metric(&self, line: &str) -> Option<f64> {
        let text = self.shared.metrics.render();
        let found = text.lines().find_map(|l| l.strip_prefix(line))?;
        found.trim().parse().ok()
    }

    /// Stops the sink; it has to end by itself.
    pub async fn stop(&mut self) {
        self.shared.stop.cancel();
        (&mut self.sink).await.expect("the sink ends without panic");
    }
}
