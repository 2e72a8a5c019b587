//! The board: the health of each part, what others complain of in it, the pulses of the stages, and
//! which stages have failed.

use std::any::Any;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Notify;

use super::lock;
use super::printable::printable;
use crate::types::Time;

/// How often a stage that waits for others beats.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Kinds of complaints that one part can carry.
const MAX_COMPLAINTS: usize = 16;
/// Complaints named in a part's detail. The rest are counted.
const MAX_NAMED: usize = 4;
/// Bytes of a complaint's detail, and of the reason of a failure.
const MAX_DETAIL_BYTES: usize = 400;
/// Bytes of what a part says of itself.
const MAX_STANDING_BYTES: usize = 2000;

/// How well a part of the agent is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not yet tried.
    Starting,
    /// Working.
    Up,
    /// Working, with something to look at.
    Degraded,
    /// Not working; the agent keeps trying.
    Down,
}

/// One line on the board.
#[derive(Clone, Debug, Serialize)]
pub struct Component {
    /// How it is.
    pub health: Health,
    /// Why, for a person.
    pub detail: String,
    /// Since when.
    pub since: Time,
    /// When it last did its work; `None` if never.
    pub last_good: Option<Time>,
}

/// What another part of the agent holds against a part.
#[derive(Clone, Debug)]
struct Complaint {
    detail: String,
    since: Time,
}

/// Why a stage does not work any more.
#[derive(Clone, Debug)]
struct Failure {
    reason: String,
    since: Time,
}

/// The health of each part, written by the parts and read by status, dashboard and watchdog.
/// Parts are named `source/NAME`, `engine`, `store`, `cloud`, `sink/NAME`, `publish/NAME`, `model/NAME`.
#[derive(Default)]
pub struct Board {
    components: Mutex<BTreeMap<String, Component>>,
    complaints: Mutex<BTreeMap<String, BTreeMap<&'static str, Complaint>>>,
    failures: Mutex<BTreeMap<String, Failure>>,
    failed: Notify,
    beats: Mutex<BTreeMap<String, Arc<AtomicI64>>>,
}

impl Board {
    /// An empty board.
    pub fn new() -> Arc<Board> {
        Arc::default()
    }

    /// Says how a part is; `since` moves only when the health changes.
    pub fn set(&self, part: &str, health: Health, detail: impl Into<String>) {
        let now = Time::now();
        let mut components = lock(&self.components);
        let old = components.get(part);
        let since = old.filter(|c| c.health == health).map_or(now, |c| c.since);
        let last_good = if health == Health::Up { Some(now) } else { old.and_then(|c| c.last_good) };
        let detail = printable(&detail.into(), MAX_STANDING_BYTES);
        components.insert(part.to_owned(), Component { health, detail, since, last_good });
    }

    /// It did its work just now.
    pub fn good(&self, part: &str) {
        if let Some(c) = lock(&self.components).get_mut(part) {
            c.last_good = Some(Time::now());
        }
    }

    /// Holds something against a part, or takes it back with `None`. It stands beside what the part says of
    /// itself; while any stands, the part is degraded at best. One complaint for each kind. A part carries at
    /// most 16 kinds; further ones are not taken.
    pub fn complain(&self, part: &str, kind: &'static str, detail: Option<&str>) {
        let mut complaints = lock(&self.complaints);
        let Some(detail) = detail else {
            if let Some(kinds) = complaints.get_mut(part) {
                kinds.remove(kind);
            }
            complaints.retain(|_, kinds| !kinds.is_empty());
            return;
        };
        let kinds = complaints.entry(part.to_owned()).or_default();
        let detail = printable(detail, MAX_DETAIL_BYTES);
        if let Some(standing) = kinds.get_mut(kind) {
            standing.detail = detail;
        } else if kinds.len() < MAX_COMPLAINTS {
            kinds.insert(kind, Complaint { detail, since: Time::now() });
        }
    }

    /// All parts: what they say of themselves, what others complain of, and which have failed.
    pub fn components(&self) -> BTreeMap<String, Component> {
        let mut components = self.own();
        for (part, kinds) in lock(&self.complaints).iter() {
            let own = components.remove(part);
            components.insert(part.clone(), with_complaints(own, kinds));
        }
        for (part, Failure { reason, since }) in lock(&self.failures).iter() {
            let last_good = components.get(part).and_then(|c| c.last_good);
            let failed = Component { health: Health::Down, detail: reason.clone(), since: *since, last_good };
            components.insert(part.clone(), failed);
        }
        components
    }

    /// All parts as they say themselves, without complaints and failures.
    pub fn own(&self) -> BTreeMap<String, Component> {
        lock(&self.components).clone()
    }

    /// A stage has failed and will not work again: it panicked, ended too early or makes no progress. Its
    /// part is down from now on, whatever it says later. Logged. The first reason of a part stays.
    pub fn fail(&self, part: &str, reason: &str) {
        let reason = printable(reason, MAX_DETAIL_BYTES);
        let mut failures = lock(&self.failures);
        if !failures.contains_key(part) {
            tracing::error!(stage = part, "a stage has failed: {reason}");
            failures.insert(part.to_owned(), Failure { reason, since: Time::now() });
        }
        drop(failures);
        self.failed.notify_waiters();
    }

    /// A stage has panicked; see [`Board::fail`].
    pub fn panicked(&self, part: &str, panic: &(dyn Any + Send)) {
        let message = panic.downcast_ref::<&str>().copied();
        let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        self.fail(part, &format!("panicked: {}", message.unwrap_or("without a message")));
    }

    /// The stages that have failed, each `NAME: REASON`, the first to fail first.
    pub fn failures(&self) -> Vec<String> {
        let failures = lock(&self.failures);
        let mut all: Vec<_> = failures.iter().collect();
        all.sort_by_key(|(_, failure)| failure.since.0);
        all.into_iter().map(|(part, failure)| format!("{part}: {}", failure.reason)).collect()
    }

    /// Resolves once a stage has failed.
    pub async fn failed(&self) {
        let mut news = pin!(self.failed.notified());
        // Before looking, so that a failure in between is not missed.
        news.as_mut().enable();
        if lock(&self.failures).is_empty() {
            news.await;
        }
    }

    /// A stage's pulse: the stage beats while it makes progress, the watchdog looks.
    pub fn pulse(&self, stage: &str) -> Pulse {
        let cell = lock(&self.beats).entry(stage.to_owned()).or_default().clone();
        let pulse = Pulse(cell);
        pulse.beat();
        pulse
    }

    /// The stage has ended as it should: its beat is no longer waited for. One that panicked has not.
    pub fn ended(&self, stage: &str) {
        lock(&self.beats).remove(stage);
    }

    /// Stages that have taken a pulse.
    pub fn stages(&self) -> Vec<String> {
        lock(&self.beats).keys().cloned().collect()
    }

    /// The last beat of each stage, in nanoseconds of a clock that is never set.
    pub fn beats(&self) -> Vec<(String, i64)> {
        lock(&self.beats).iter().map(|(stage, beat)| (stage.clone(), beat.load(Ordering::Relaxed))).collect()
    }

    /// Stages that have not beaten for longer than `limit`.
    pub fn silent(&self, limit: Duration) -> Vec<String> {
        let now = monotonic();
        let limit = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
        let late = |beat: &AtomicI64| now.saturating_sub(beat.load(Ordering::Relaxed)) > limit;
        lock(&self.beats).iter().filter(|(_, b)| late(b)).map(|(stage, _)| stage.clone()).collect()
    }
}

/// Nanoseconds since some moment in the life of this process. A wall clock that is set forward must not make
/// every stage look silent.
fn monotonic() -> i64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    i64::try_from(BEGIN.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

/// A part as it is shown while others complain of it.
fn with_complaints(own: Option<Component>, kinds: &BTreeMap<&'static str, Complaint>) -> Component {
    let mut details: Vec<&str> = kinds.values().take(MAX_NAMED).map(|c| c.detail.as_str()).collect();
    let more = format!("and {} more", kinds.len().saturating_sub(MAX_NAMED));
    if kinds.len() > MAX_NAMED {
        details.push(&more);
    }
    let complained = details.join("; ");
    let since = kinds.values().map(|c| c.since).min().unwrap_or_default();
    let Some(own) = own else {
        return Component { health: Health::Degraded, detail: complained, since, last_good: None };
    };
    let detail = match (own.health, own.detail.is_empty()) {
        (_, true) => complained,
        (Health::Degraded | Health::Down, false) => format!("{}; {complained}", own.detail),
        (Health::Starting | Health::Up, false) => format!("{complained}; {}", own.detail),
    };
    match own.health {
        Health::Degraded | Health::Down => Component { detail, ..own },
        Health::Starting | Health::Up => Component { health: Health::Degraded, detail, since, ..own },
    }
}

/// See [`Board::pulse`]. The default one belongs to no stage.
#[derive(Clone, Default)]
pub struct Pulse(Arc<AtomicI64>);

impl Pulse {
    /// Still making progress, or idle and well.
    pub fn beat(&self) {
        self.0.store(monotonic(), Ordering::Relaxed);
    }

    /// Waits for what may rightly take long, because somebody outside is waited for or because it has a
    /// time limit of its own, and beats meanwhile. Not for work of one's own: that has to show by itself
    /// that it goes on. What blocks the thread is noticed here too.
    pub async fn during<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        loop {
            self.beat();
            if let Ok(done) = tokio::time::timeout(BEAT_EVERY, wait.as_mut()).await {
                self.beat();
                return done;
            }
        }
    }

    /// As though the last beat were so long ago.
    #[cfg(test)]
    pub fn beaten_before(&self, ago: Duration) {
        let ago = i64::try_from(ago.as_nanos()).expect("less than centuries");
        self.0.store(monotonic() - ago, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn since_moves_only_with_the_health() {
        let board = Board::new();
        board.set("store", Health::Up, "");
        let first = board.components()["store"].since;
        board.set("store", Health::Up, "again");
        assert_eq!(board.components()["store"].since, first);
        board.set("store", Health::Down, "disk full");
        let c = board.components()["store"].clone();
        assert_eq!(c.detail, "disk full");
        assert!(c.last_good.is_some());
    }

    #[test]
    fn a_complaint_degrades_what_is_up_and_leaves_what_is_down() {
        let board = Board::new();
        board.set("source/shop", Health::Up, "connected");
        board.complain("source/shop", "late", Some("late: 9 of 10 readings"));
        let shown = &board.components()["source/shop"];
        assert_eq!((shown.health, shown.detail.as_str()), (Health::Degraded, "late: 9 of 10 readings; connected"));
        assert!(shown.last_good.is_some());
        let since = shown.since;
        board.complain("source/shop", "late", Some("late: 10 of 10 readings"));
        board.set("source/shop", Health::Up, "connected again");
        let shown = &board.components()["source/shop"];
        assert_eq!((shown.since, shown.detail.as_str()), (since, "late: 10 of 10 readings; connected again"));
        board.set("source/shop", Health::Down, "no route");
        let shown = &board.components()["source/shop"];
        assert_eq!((shown.health, shown.detail.as_str()), (Health::Down, "no route; late: 10 of 10 readings"));
        assert_eq!(board.own()["source/shop"].detail, "no route");
        board.complain("source/shop", "late", None);
        assert_eq!(board.components()["source/shop"].detail, "no route");
        assert!(lock(&board.complaints).is_empty());
    }

    #[test]
    fn complaints_are_bounded_in_number_and_length() {
        const KINDS: [&str; 17] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"];
        let board = Board::new();
        for kind in KINDS {
            board.complain("source/shop", kind, Some(&"long\n".repeat(1000)));
        }
        let shown = &board.components()["source/shop"];
        assert_eq!(shown.health, Health::Degraded, "also where the part has not spoken yet");
        assert!(shown.detail.ends_with("; and 12 more") && shown.detail.len() < 2_000, "{}", shown.detail);
        assert!(!shown.detail.contains('\n'));
    }

    #[tokio::test]
    async fn a_failure_stays_and_wakes_who_waits() {
        let board = Board::new();
        let waiting = tokio::spawn({
            let board = board.clone();
            async move { board.failed().await }
        });
        tokio::task::yield_now().await;
        board.set("store", Health::Up, "");
        board.fail("store", "panicked: index\nout of range");
        board.fail("store", "closed");
        board.set("store", Health::Up, "");
        waiting.await.expect("woken");
        board.failed().await;
        let shown = &board.components()["store"];
        assert_eq!((shown.health, shown.detail.as_str()), (Health::Down, "panicked: index\\nout of range"));
        assert_eq!(board.failures(), ["store: panicked: index\\nout of range"]);
    }

    #[test]
    fn a_stage_that_stops_beating_is_named() {
        let board = Board::new();
        let pulse = board.pulse("engine");
        assert!(board.silent(Duration::from_secs(5)).is_empty());
        pulse.beaten_before(LONG);
        assert_eq!(board.silent(Duration::from_secs(5)), ["engine"]);
        board.ended("engine");
        assert!(board.silent(Duration::from_secs(5)).is_empty(), "what has ended is waited for no more");
    }

    #[tokio::test]
    async fn waiting_for_others_is_no_silence_and_blocking_is() {
        let board = Board::new();
        let pulse = board.pulse("source/shop");
        pulse.beaten_before(LONG);
        pulse.during(tokio::time::sleep(Duration::from_millis(20))).await;
        assert!(board.silent(Duration::from_secs(5)).is_empty());
        let blocking = async {
            pulse.beaten_before(LONG);
            board.silent(Duration::from_secs(5))
        };
        assert_eq!(pulse.during(blocking).await, ["source/shop"], "nothing beats while the thread is held");
    }
}
