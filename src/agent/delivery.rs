//! New models on their way in: fetched, unpacked, verified, judged in a process of their own, put into the
//! library and handed to the engine, which takes them into use. Each step becomes a record.
//!
//! What may pass is tried again, later and later; what will not is refused once, and not fetched again
//! before the settings it was refused under change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::feed::Order;
use crate::backoff::Backoff;
use crate::config::Config;
use crate::forward::delivery::{self, Courier, Desired, Inbox, Trouble, Wanted, Where, parse};
use crate::metrics::{Health, Shared};
use crate::model::bundle::sha256;
use crate::model::library::{Library, plain};
use crate::model::signature;
use crate::model::trust::Trust;
use crate::types::{ModelNews, ModelStep, Release, Rollout, Stage, Time};

mod admit;
mod crash;

use admit::disk;

/// How the board calls it.
const PART: &str = "models";
/// The folder is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Waits between tries.
const FIRST: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(300);
/// Archives that are downloaded at a time.
pub const MAX_DOWNLOADS: usize = 4;
/// How often it is looked whether a download has ended.
const DOWNLOAD_LOOK: Duration = Duration::from_millis(200);
/// The longest reason in a record.
const MAX_REASON: usize = 500;

/// See the module.
pub struct Delivery {
    config: delivery::Config,
    trust: Trust,
    library: Arc<Library>,
    models_dir: PathBuf,
    /// Models that a `[[machine]]` uses.
    known: BTreeSet<String>,
    courier: Courier,
    inbox: Option<Inbox>,
    orders: mpsc::Sender<Order>,
    shared: Shared,
    /// What the cloud wants, as it last said.
    desired: Desired,
    next_poll: Instant,
    tries: HashMap<String, Try>,
    /// Archives on their way, by delivery. Those that nobody wants any more are cut off.
    downloads: HashMap<String, AbortOnDropHandle<Result<u64, Trouble>>>,
    /// The delivery during which the agent ended badly, and how often.
    crashed: Option<(String, u32)>,
    /// What a refusal rests on besides the bundle.
    context: String,
}

/// A delivery that did not work yet.
struct Try {
    backoff: Backoff,
    again: Instant,
    said: String,
    /// It has been told that the archive is here.
    fetched: bool,
}

impl Try {
    fn new() -> Try {
        Try { backoff: Backoff::new(FIRST, CAP), again: Instant::now(), said: String::new(), fetched: false }
    }
}

/// How far a delivery has come.
enum Arrival {
    Coming,
    Done,
}

/// What did not work with which bundle, as far as that is known.
type Failed = (Release, Trouble);

impl Delivery {
    /// For what `[models]` asks for; `None` when that is nothing.
    pub fn new(
        config: &Config,
        library: Arc<Library>,
        orders: mpsc::Sender<Order>,
        shared: Shared,
    ) -> Option<Delivery> {
        let delivery = config.delivery.clone()?;
        let known: BTreeSet<String> = config.machines.iter().filter_map(|m| m.model.clone()).collect();
        let keys: Vec<&str> = config.trust.keys.iter().map(|k| k.fingerprint()).collect();
        let (max, quota, judge) = (delivery.max_bundle, delivery.quota, delivery.judge);
        let context = format!("{} {keys:?} {known:?} {max} {quota} {judge:?}", env!("CARGO_PKG_VERSION"));
        Some(Delivery {
            trust: config.trust.clone(),
            library,
            models_dir: config.agent.models_dir.clone(),
            known,
            courier: Courier::new(delivery.clone()),
            inbox: delivery.inbox.clone().map(|dir| Inbox::new(dir, delivery.rollout.clone())),
            orders,
            shared,
            desired: Desired::default(),
            next_poll: Instant::now(),
            tries: HashMap::new(),
            downloads: HashMap::new(),
            crashed: None,
            context,
            config: delivery,
        })
    }

    /// Runs until the agent stops.
    pub async fn run(mut self) {
        self.shared.board.set(PART, Health::Starting, "");
        let stop = self.shared.stop.clone();
        let work = async {
            self.after_crash().await;
            loop {
                let all = self.look().await;
                let next = self.follow(all).await;
                tokio::time::sleep(next).await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// What is wanted now, by the cloud and in the folder.
    async fn look(&mut self) -> Desired {
        let mut trouble = None;
        if self.config.desired.is_some() && self.next_poll <= Instant::now() {
            self.next_poll = Instant::now() + self.config.poll;
            match self.courier.desired().await {
                Ok(None) => {}
                Ok(Some(text)) => match parse(&text, &self.config.rollout, false) {
                    Ok(desired) => self.desired = desired,
                    Err(why) => {
                        self.courier.forget();
                        trouble = Some(why);
                    }
                },
                Err(why) => trouble = Some(why),
            }
            let detail = trouble.as_ref().map(|why| format!("the desired state cannot be had: {why}"));
            self.say(detail);
        }
        let mut all = self.desired.clone();
        if let Some(mut inbox) = self.inbox.take() {
            let looked = tokio::task::spawn_blocking(move || (inbox.look(), inbox)).await;
            let Ok((found, inbox)) = looked else { return all };
            self.inbox = Some(inbox);
            match found {
                Ok(found) => {
                    all.wanted.extend(found.wanted);
                    all.wrong.extend(found.wrong);
                    if self.config.desired.is_none() {
                        self.say(None);
                    }
                }
                Err(why) => self.say(Some(format!("the inbox cannot be read: {why}"))),
            }
        }
        all
    }

    /// Puts it on the board, and into the log when it is news.
    fn say(&self, trouble: Option<String>) {
        let before = self.shared.board.components().remove(PART);
        let Some(why) = trouble else {
            self.shared.board.set(PART, Health::Up, "");
            return;
        };
        if before.is_none_or(|c| c.detail != why) {
            warn!("no news of models: {why}; trying again");
        }
        self.shared.board.set(PART, Health::Degraded, why);
    }

    /// Goes through what is wanted; gives how long to wait before the next look.
    async fn follow(&mut self, all: Desired) -> Duration {
        for (model, version, why) in &all.wrong {
            let key = self.key(&[model, version, why]);
            if !self.library.is_settled(&key) {
                self.refuse(bare(model, version), why.clone()).await;
                self.settle(key).await;
            }
        }
        let mut open = BTreeSet::new();
        for wanted in &all.wanted {
            let key = self.key(&[&wanted.model, &wanted.version, &wanted.sha256]);
            if self.library.is_settled(&key) {
                continue;
            }
            open.insert(key.clone());
            if self.tries.get(&key).is_none_or(|t| t.again <= Instant::now()) {
                self.attempt(wanted, key).await;
            }
        }
        self.tries.retain(|key, _| open.contains(key));
        self.downloads.retain(|key, _| open.contains(key));
        self.prune(&all);
        let wait = if self.inbox.is_some() { LOOK } else { self.config.poll };
        let wait = if self.downloads.is_empty() { wait } else { wait.min(DOWNLOAD_LOOK) };
        let now = Instant::now();
        let others = self.tries.values().map(|t| t.again).chain(self.config.desired.as_ref().map(|_| self.next_poll));
        others.map(|t| t.saturating_duration_since(now)).fold(wait, Duration::min).max(Duration::from_millis(20))
    }

    async fn attempt(&mut self, wanted: &Wanted, key: String) {
        let accepted = match self.deliver(wanted, &key).await {
            Ok(Arrival::Done) => true,
            Ok(Arrival::Coming) => return,
            Err((release, Trouble::Final(why))) => {
                self.refuse(release, why).await;
                false
            }
            Err((release, Trouble::Passing(why))) => return self.later(release, key, why).await,
        };
        if let (Where::File(name), Some(inbox)) = (&wanted.at, &self.inbox)
            && let Err(e) = inbox.done(name, accepted)
        {
            info!(name, "the archive stays in the inbox: {e}");
        }
        self.settle(key).await;
    }

    async fn later(&mut self, release: Release, key: String, why: String) {
        let t = self.tries.entry(key).or_insert_with(Try::new);
        t.again = Instant::now() + t.backoff.after_failure(fastrand::f64());
        if std::mem::replace(&mut t.said, why.clone()) != why {
            warn!(model = %release.model, version = %release.version, "a model cannot be had: {why}; trying again");
            self.tell(release, Stage::Delayed, why, &[]).await;
        }
    }

    async fn refuse(&self, release: Release, why: String) {
        self.tell(release, Stage::Refused, why, &[]).await;
    }

    /// Takes one all the way into the library and to the engine.
    async fn deliver(&mut self, wanted: &Wanted, key: &str) -> Result<Arrival, Failed> {
        let named = match &wanted.at {
            Where::File(name) if wanted.model.is_empty() => name.trim_end_matches(".tar"),
            _ => &wanted.model,
        };
        let bare = bare(named, &wanted.version);
        if !wanted.model.is_empty() && !self.known.contains(&wanted.model) {
            return Err((bare, Trouble::Final(format!("no [[machine]] uses a model {:?}", wanted.model))));
        }
        let fetched = self.fetch(wanted, key).await.map_err(|t| (bare.clone(), t))?;
        let Some((archive, bytes)) = fetched else { return Ok(Arrival::Coming) };
        let told = &mut self.tries.entry(key.to_owned()).or_insert_with(Try::new).fetched;
        if !std::mem::replace(told, true) {
            self.tell(bare.clone(), Stage::Fetched, from(wanted), &[("bytes", bytes as f64)]).await;
        }
        let mark = self.mark(wanted, key);
        let done = self.admit(wanted, &bare, &archive).await;
        drop(mark);
        let again = matches!(done, Err((_, Trouble::Passing(_))));
        if matches!(wanted.at, Where::Url(_)) && !again {
            let _ = std::fs::remove_file(&archive);
        }
        done.map(|()| Arrival::Done)
    }

    /// The archive and its size; `None` while it is on its way.
    async fn fetch(&mut self, wanted: &Wanted, key: &str) -> Result<Option<(PathBuf, u64)>, Trouble> {
        if self.downloads.get(key).is_some_and(|d| !d.is_finished()) {
            return Ok(None);
        }
        let library = self.library.clone();
        let used = blocking(move || library.tidy().and_then(|()| library.bytes()).map_err(disk)).await?;
        let room = self.config.quota.saturating_sub(used);
        if room == 0 {
            let why = format!("the library is full: {used} bytes (`quota`)");
            return Err(Trouble::Passing(why));
        }
        let (path, bytes) = match &wanted.at {
            Where::Url(url) => {
                let path = self.library.partial().join(format!("{}.tar", wanted.sha256));
                let Some(download) = self.downloads.remove(key) else {
                    if self.downloads.len() < MAX_DOWNLOADS {
                        self.download(url, wanted, &path, key);
                    }
                    return Ok(None);
                };
                let ended = download.await;
                (path, ended.unwrap_or_else(|e| Err(Trouble::Passing(e.to_string())))?)
            }
            Where::File(name) => {
                let path = self.inbox.as_ref().map(|i| i.path(name)).unwrap_or_default();
                let (file, limit) = (path.clone(), self.config.max_bundle);
                let found = blocking(move || {
                    let bytes = std::fs::metadata(&file).map_err(disk)?.len();
                    let digest = if bytes > limit { Ok(String::new()) } else { delivery::sha256_of(&file) };
                    digest.map(|d| (bytes, d)).map_err(disk)
                });
                let (bytes, digest) = found.await?;
                if bytes > limit {
                    return Err(Trouble::Final(format!("it is larger than {limit} bytes (`max_bundle`)")));
                }
                if digest != wanted.sha256 {
                    let why = format!("its SHA-256 is {digest}, and {} is wanted", wanted.sha256);
                    return Err(Trouble::Final(why));
                }
                (path, bytes)
            }
        };
        if bytes > room {
            let _ = std::fs::remove_file(&path);
            return Err(Trouble::Final(format!("it does not fit into the library: {room} bytes are left (`quota`)")));
        }
        Ok(Some((path, bytes)))
    }

    fn download(&mut self, url: &str, wanted: &Wanted, to: &Path, key: &str) {
        let (config, url, wanted, to) = (self.config.clone(), url.to_owned(), wanted.clone(), to.to_path_buf());
        let work = async move { delivery::download(&config, &url, &wanted, &to).await };
        self.downloads.insert(key.to_owned(), AbortOnDropHandle::new(tokio::spawn(work)));
    }

    /// Tells the engine of a step, and the library where it matters there.
    async fn tell(&self, release: Release, stage: Stage, reason: String, figures: &[(&str, f64)]) {
        let figures: BTreeMap<String, f64> = figures.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let reason: String = reason.chars().take(MAX_REASON).collect();
        let step = ModelStep { at: Time::now(), release, stage, reason, figures };
        if self.known.contains(&*step.release.model) {
            let (library, step) = (self.library.clone(), step.clone());
            self.written(blocking(move || library.note(&step).map_err(disk)).await);
        }
        let _ = self.orders.send(Order::News(ModelNews::Step(step), None)).await;
    }

    async fn settle(&self, key: String) {
        let library = self.library.clone();
        self.written(blocking(move || library.settle(&key).map_err(disk)).await);
    }

    fn written(&self, done: Result<(), Trouble>) {
        if let Err(Trouble::Passing(why) | Trouble::Final(why)) = done {
            warn!("the library's state cannot be written; after a restart a step may be repeated: {why}");
        }
    }

    fn key(&self, parts: &[&str]) -> String {
        sha256(format!("{parts:?} {}", self.context).as_bytes())[..32].to_owned()
    }

    /// Removes parts of archives that nobody wants any more.
    fn prune(&self, all: &Desired) {
        let kept: Vec<String> = all.wanted.iter().map(|w| format!("{}.tar", w.sha256)).collect();
        for entry in std::fs::read_dir(self.library.partial()).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|n| kept.iter().any(|k| k == n)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A bundle of which no more is known than what it is called.
fn bare(model: &str, version: &str) -> Release {
    let name = |t: &str| if plain(t) { t.into() } else { "unnamed".into() };
    Release { model: name(model), version: version.into(), sequence: 0, digest: "".into() }
}

/// Where it came from, without what may be secret in an address.
fn from(wanted: &Wanted) -> String {
    match &wanted.at {
        Where::File(name) => format!("from the inbox: {name}"),
        Where::Url(url) => format!("from {}", url.split(['?', '#']).next().unwrap_or_default()),
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Trouble> + Send + 'static) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Trouble::Passing(e.to_string())))
}
