//! Delivered models around the engine: what the library has is at its hand before it replays, what it
//! decides is written down, and what it cannot know (time a model takes, memory, crashes) it is told.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::engine::{Drift, Engine, Outcome, Versions, figures, release_of};
use crate::metrics::{Health, Shared};
use crate::model::contents::Contents;
use crate::model::library::{Candidate, Library};
use crate::model::rollout::Trial;
use crate::model::signature::{self, PublicKey};
use crate::model::{Model, SelfTest};
use crate::types::{Measured, ModelNews, ModelStep, Name, Receipt, ReceiptWaiter, Release, Stage, Time};

/// Steps that wait to be written down; a model takes a dozen in its life.
const N_QUEUED_STEPS: usize = 256;
/// So many restarts ...
const CRASHES: usize = 3;
/// ... in so long after a bundle came to its stage send it back.
const CRASH_TIME: Duration = Duration::from_secs(600);
/// Starts that are remembered.
const MAX_STARTS: usize = 16;
/// Below the data directory.
const STARTS: &str = "starts.json";
/// A candidate's measurements are told this often.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// Runs of a candidate that are kept for its percentiles, the newest.
const MAX_RUNS: usize = 2_000;

/// What was found in the library at the start.
#[derive(Default)]
pub struct Found {
    /// Models that the engine may need.
    pub models: Vec<Arc<Model>>,
    /// Releases that must not be used, and why.
    withdrawn: Vec<(Release, String)>,
}

/// Loads the library's bundles of these models, but for those that the agent may have crashed of and those
/// that are not, or no longer, signed by somebody trusted. Blocks.
pub fn load(library: &Library, names: &[Name], keys: &[PublicKey], data_dir: &Path, now: Time) -> Found {
    let standings: Vec<_> = names.iter().map(|n| library.standing(n)).collect();
    let any = standings.iter().any(|s| s.active.is_some() || s.candidate.is_some());
    let starts = if any { note_start(&data_dir.join(STARTS), now) } else { Vec::new() };
    let mut found = Found::default();
    for s in standings {
        // What happened to others since says nothing against the one in use.
        let active = s.active.as_ref().filter(|_| s.stage == Some(Stage::Active));
        let suspect = s.candidate.as_ref().or(active).filter(|_| crashes(&starts, s.since) >= CRASHES);
        let suspect = suspect.map(|c| c.release.clone());
        for candidate in [&s.active, &s.candidate, &s.previous].into_iter().flatten() {
            if suspect.as_ref() == Some(&candidate.release) {
                let minutes = CRASH_TIME.as_secs() / 60;
                let why = format!("the agent ended badly {CRASHES} times within {minutes} minutes of its coming");
                found.withdrawn.push((candidate.release.clone(), why));
                continue;
            }
            match usable(candidate, keys) {
                Ok(model) => found.models.push(model),
                Err(why) => found.withdrawn.push((candidate.release.clone(), why)),
            }
        }
    }
    found
}

/// What was verified when it came has been on a disk since, and its key may have been given up.
fn usable(candidate: &Candidate, keys: &[PublicKey]) -> Result<Arc<Model>, String> {
    let contents = Contents::read_all(&candidate.dir).map_err(|e| e.to_string())?;
    signature::verify_contents(&contents, keys).map_err(|e| e.to_string())?;
    let model = Model::from_contents(contents, SelfTest::Run).map_err(|e| format!("it cannot be loaded: {e}"))?;
    if release_of(&model) == candidate.release { Ok(model) } else { Err("it is not the one that was delivered".into()) }
}

/// Starts that followed this soon, this one included.
fn crashes(starts: &[Time], since: Time) -> usize {
    starts.iter().filter(|t| **t >= since && t.since(since) <= CRASH_TIME).count()
}

/// Adds a start to those remembered since the last good end. What cannot be read or written is as
/// good as not there: then no crash loop is seen.
fn note_start(path: &Path, now: Time) -> Vec<Time> {
    let text = std::fs::read(path).unwrap_or_default();
    let mut starts: Vec<Time> = serde_json::from_slice(&text).unwrap_or_default();
    starts.push(now);
    let surplus = starts.len().saturating_sub(MAX_STARTS);
    starts.drain(..surplus);
    let written = serde_json::to_vec(&starts).map_err(std::io::Error::other).and_then(|text| replace(path, &text));
    if let Err(error) = written {
        tracing::warn!(%error, "starts are not counted: a model that makes the agent crash is not sent back");
    }
    starts
}

/// Whole or not at all.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    std::io::Write::write_all(&mut file, text)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// The agent ends well: earlier starts count no more.
pub fn ended_well(data_dir: &Path) {
    // Mostly there is none.
    let _ = std::fs::remove_file(data_dir.join(STARTS));
}

/// After a replay: writes down how the engine stands, and says what it is to be told first.
pub fn reconcile(engine: &Engine, library: &Library, found: &Found, now: Time) -> Vec<ModelNews> {
    let versions = engine.versions();
    // Before the engine's steps are noted: it replayed without those that were withdrawn.
    let stages: BTreeMap<Name, Stage> =
        library.models().into_iter().filter_map(|m| Some((m.clone(), library.standing(&m).stage?))).collect();
    for step in versions.iter().filter_map(|v| v.last.as_ref()) {
        note(library, step);
    }
    let uses = |release: &Release| {
        let of = versions.iter().filter(|v| v.name == release.model);
        of.flat_map(|v| [v.active.as_ref(), v.trial.as_ref().map(|t| &t.release)]).flatten().any(|r| r == release)
    };
    let withdraw = |release: &Release, why: &str| {
        let stage = stages.get(&release.model).copied().unwrap_or(Stage::Shadow);
        ModelNews::Unusable { at: now, release: release.clone(), stage, reason: why.to_owned() }
    };
    let mut news = Vec::new();
    for (release, why) in &found.withdrawn {
        news.push(if uses(release) {
            withdraw(release, why)
        } else {
            let (release, reason) = (release.clone(), why.clone());
            ModelNews::Step(ModelStep { at: now, release, stage: Stage::Refused, reason, figures: BTreeMap::new() })
        });
    }
    let told = |release: &Release| found.withdrawn.iter().any(|(r, _)| r == release);
    for release in engine.missing().into_iter().filter(|r| !told(r)) {
        news.push(withdraw(&release, "its bundle is no longer in the library"));
    }
    for name in versions.iter().map(|v| &v.name) {
        let Some(candidate) = library.standing(name).candidate else { continue };
        if !uses(&candidate.release) && !told(&candidate.release) {
            let Candidate { release, rollout, .. } = candidate;
            news.push(ModelNews::Candidate { at: now, release, rollout });
        }
    }
    news
}

fn note(library: &Library, step: &ModelStep) {
    if let Err(error) = library.note(step) {
        tracing::warn!(%error, model = %step.release.model, "the library's state cannot be written; the engine knows it");
    }
}

/// Steps on their way to the library, each once it is durable.
type Steps = mpsc::Receiver<(ModelStep, ReceiptWaiter)>;

/// Writes steps down until the engine has ended.
pub async fn keep(library: Arc<Library>, mut steps: Steps) {
    while let Some((step, durable)) = steps.recv().await {
        if durable.await.is_err() {
            continue;
        }
        let library = library.clone();
        let noting = tokio::task::spawn_blocking(move || note(&library, &step));
        // It fails only when it panicked, and then nothing was written.
        let _ = noting.await;
    }
}

/// The engine's end of it all, kept by its thread.
pub struct Rollouts {
    steps: mpsc::Sender<(ModelStep, ReceiptWaiter)>,
    versions: watch::Sender<Vec<Versions>>,
    clocks: BTreeMap<Name, Stopwatch>,
    shared: Shared,
    /// To be told before anything else.
    pub first: Vec<ModelNews>,
}

/// How long a candidate's batches take in its stage.
struct Stopwatch {
    key: (Name, Stage),
    runs: u64,
    /// In milliseconds.
    took: VecDeque<f64>,
    told: Instant,
    told_runs: u64,
    /// What the process used when the candidate was first run, in MiB.
    ram: f64,
}

impl Rollouts {
    /// With where the steps and the versions go.
    pub fn new(shared: Shared) -> (Rollouts, Steps, watch::Receiver<Vec<Versions>>) {
        let (steps, to_write) = mpsc::channel(N_QUEUED_STEPS);
        let (versions, seen) = watch::channel(Vec::new());
        let rollouts = Rollouts { steps, versions, clocks: BTreeMap::new(), shared, first: Vec::new() };
        (rollouts, to_write, seen)
    }

    /// Tells of what a step of the engine brought; the receipt is to go with its commit.
    pub fn tell(&mut self, engine: &Engine, outcome: &Outcome) -> Vec<Receipt> {
        self.time(engine, outcome);
        outcome.drifts.iter().for_each(|d| self.tell_drift(d));
        let mut receipts = Vec::new();
        for step in &outcome.steps {
            self.tell_step(engine, step);
            let (receipt, durable) = Receipt::new();
            receipts.push(receipt);
            if self.steps.try_send((step.clone(), durable)).is_err() {
                tracing::warn!(model = %step.release.model, "the library falls behind; it catches up at the next start");
            }
        }
        if !outcome.steps.is_empty() || !outcome.drifts.is_empty() {
            self.show(engine);
        }
        receipts
    }

    /// Shows how the models stand.
    pub fn show(&self, engine: &Engine) {
        self.versions.send_replace(engine.versions());
    }

    fn time(&mut self, engine: &Engine, outcome: &Outcome) {
        let runs = &outcome.tally.trial_runs;
        for (model, took) in runs {
            let histogram = &self.shared.metrics.candidate_inference;
            histogram.get_or_create(&[("model", model.to_string())]).observe(took.as_secs_f64());
        }
        if runs.is_empty() && self.clocks.is_empty() {
            return;
        }
        for trial in engine.trials() {
            let key = (trial.release.digest.clone(), trial.stage);
            let fresh = || Stopwatch::new(key.clone(), ram_mb());
            let clock = self.clocks.entry(trial.release.model.clone()).or_insert_with(fresh);
            if clock.key != key {
                let ram = if clock.key.0 == key.0 { clock.ram } else { ram_mb() };
                *clock = Stopwatch::new(key, ram);
            }
            let mine = runs.iter().filter(|(model, _)| *model == trial.release.model);
            mine.for_each(|(_, took)| clock.add(took.as_secs_f64() * 1e3));
        }
        self.clocks.retain(|model, _| engine.trials().any(|t| t.release.model == *model));
    }

    /// Measurements that the engine is to be told now.
    pub fn measured(&mut self, engine: &Engine, at: Time) -> Vec<ModelNews> {
        let mut news = Vec::new();
        for trial in engine.trials() {
            let Some(clock) = self.clocks.get_mut(&trial.release.model) else { continue };
            if let Some(measured) = clock.measured() {
                news.push(ModelNews::Measured { at, release: trial.release.clone(), measured });
            }
        }
        news
    }

    fn tell_step(&self, engine: &Engine, step: &ModelStep) {
        let (release, stage) = (&step.release, step.stage);
        // Names that nobody here uses may come without end.
        let part = if engine.has_model(&release.model) { &*release.model } else { "other" };
        let steps = &self.shared.metrics.model_steps;
        steps.get_or_create(&[("model", part.into()), ("stage", stage.as_str().into())]).inc();
        let (model, version, reason) = (&release.model, &release.version, &step.reason);
        let ill = matches!(stage, Stage::Refused | Stage::RolledBack);
        if ill {
            tracing::warn!(%model, %version, stage = stage.as_str(), "a version of a model is not used: {reason}");
        } else {
            tracing::info!(%model, %version, stage = stage.as_str(), "{reason}");
        }
        let health = if ill { Health::Degraded } else { Health::Up };
        let detail = format!("version {version} {}: {reason}", stage.as_str());
        self.shared.board.set(&format!("rollout/{part}"), health, detail);
    }

    fn tell_drift(&self, drift: &Drift) {
        let (m, report, model) = (&self.shared.metrics, &drift.report, drift.model.to_string());
        for (c, psi) in report.channels.iter().filter_map(|c| Some((c, c.psi?))) {
            m.drift_psi.get_or_create(&[("model", model.clone()), ("channel", c.name.to_string())]).set(psi);
        }
        if let Some(ks) = report.p_ks {
            m.score_drift.get_or_create(&[("model", model.clone())]).set(ks);
        }
        m.bad_windows.get_or_create(&[("model", model.clone())]).set(report.outcomes.bad_ratio());
        if let Some((promised, measured, _)) = report.alarms {
            let gauge = |kind: &str, v: f64| {
                m.alarms_per_day.get_or_create(&[("model", model.clone()), ("kind", kind.into())]).set(v);
            };
            gauge("promised", promised);
            gauge("measured", measured);
        }
        let part = format!("drift/{model}");
        match report.warning() {
            Some(why) => {
                let stood = self.shared.board.components().get(&part).is_some_and(|c| c.health == Health::Degraded);
                if !stood {
                    tracing::warn!(%model, "the plant has moved away from what a model was made from: {why}");
                }
                self.shared.board.set(&part, Health::Degraded, why);
            }
            None => {
                let worst = report.worst().map(|c| format!("{} most: PSI {:.2}", c.name, c.psi.unwrap_or(0.0)));
                let detail = worst.unwrap_or_else(|| "its bundle does not say how channels were spread".into());
                self.shared.board.set(&part, Health::Up, detail);
            }
        }
    }
}

impl Stopwatch {
    fn new(key: (Name, Stage), ram: f64) -> Stopwatch {
        Stopwatch { key, runs: 0, took: VecDeque::new(), told: Instant::now(), told_runs: 0, ram }
    }

    fn add(&mut self, ms: f64) {
        self.runs += 1;
        if self.took.len() == MAX_RUNS {
            self.took.pop_front();
        }
        self.took.push_back(ms);
    }

    fn measured(&mut self) -> Option<Measured> {
        if self.runs == self.told_runs || self.told.elapsed() < MEASURE_EVERY {
            return None;
        }
        (self.told, self.told_runs) = (Instant::now(), self.runs);
        let mut sorted: Vec<f64> = self.took.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
        Some(Measured {
            runs: self.runs,
            median_ms: at(0.5),
            p99_ms: at(0.99),
            grown_mb: (ram_mb() - self.ram).max(0.0),
        })
    }
}

/// What this process holds in memory, in MiB; 0 where that cannot be read.
fn ram_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).map_or(0.0, |kb| kb / 1024.0)
}

/// How a model stands, as the dashboard has it.
pub fn describe(v: &Versions) -> Value {
    let step = |s: &ModelStep| json!({"version": &*s.release.version, "stage": s.stage.as_str(), "reason": s.reason, "at": s.at.to_string()});
    let trial = |t: &Trial| {
        json!({
            "version": &*t.release.version, "sequence": t.release.sequence, "digest": &*t.release.digest,
            "stage": t.stage.as_str(), "since": t.since.to_string(), "figures": figures(t),
        })
    };
    let drift = v.report.as_ref().map(|r| {
        let channels: Vec<Value> = r
            .channels
            .iter()
            .map(|c| json!({"name": &*c.name, "psi": c.psi, "ks": c.ks, "blocked": c.blamed}))
            .collect();
        json!({
            "from": r.from.to_string(), "to": r.to.to_string(), "rows": r.rows, "warning": r.warning(),
            "channels": channels, "worst": r.worst().map(|c| json!({"name": &*c.name, "psi": c.psi})),
            "p_value_ks": r.p_ks, "bad_ratio": r.outcomes.bad_ratio(), "windows": r.outcomes,
            "false_alarms_promised_per_machine_day": r.alarms.map(|a| a.0),
            "alarms_per_machine_day": r.alarms.map(|a| a.1), "machine_days": r.alarms.map(|a| a.2),
        })
    });
    json!({
        "stage": "active", "delivered": v.active.is_some(), "sequence": v.active.as_ref().map(|r| r.sequence),
        "since": Some(v.since).filter(|t| t.0 > 0).map(|t| t.to_string()),
        "candidate": v.trial.as_ref().map(trial), "last_step": v.last.as_ref().map(step), "drift": drift,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_restarts_soon_after_a_bundle_came_are_a_crash_loop() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(STARTS);
        let minute = |m: i64| Time(1_700_000_000_000_000_000 + m * 60_000_000_000);
        note_start(&path, minute(0));
        note_start(&path, minute(2));
        assert_eq!(crashes(&note_start(&path, minute(3)), minute(1)), 2, "the first was before it came");
        assert_eq!(crashes(&note_start(&path, minute(4)), minute(1)), CRASHES);
        assert_eq!(crashes(&note_start(&path, minute(30)), minute(1)), CRASHES);
        ended_well(dir.path());
        assert_eq!(note_start(&path, minute(31)).len(), 1);
        std::fs::write(&path, "nonsense").expect("written");
        assert_eq!(note_start(&path, minute(32)).len(), 1);
        (0..40).for_each(|m| drop(note_start(&path, minute(m))));
        assert_eq!(note_start(&path, minute(50)).len(), MAX_STARTS);
    }

    #[test]
    fn what_was_changed_on_the_disk_or_is_of_a_key_given_up_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let (library, _) = Library::open(dir.path()).expect("opened");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/motor-health");
        let release = release_of(&Model::load(&shipped).expect("loaded"));
        let (key, other) = [(); 2].map(|()| signature::PrivateKey::generate().expect("a key").0).into();
        let bundle = library.workspace().expect("a directory").keep();
        for file in std::fs::read_dir(shipped).expect("a directory").flatten() {
            std::fs::copy(file.path(), bundle.join(file.file_name())).expect("copied");
        }
        signature::sign(&bundle, &key).expect("signed");
        let placed = library.place(&bundle, release.clone(), Default::default(), Time(1)).expect("placed");
        let load = |key: &signature::PrivateKey| {
            let keys = std::slice::from_ref(key.public());
            let mut found = load(&library, std::slice::from_ref(&release.model), keys, dir.path(), Time(0));
            (found.models.len(), found.withdrawn.pop().map(|(_, why)| why).unwrap_or_default())
        };
        assert_eq!(load(&key), (1, String::new()));
        assert!(load(&other).0 == 0 && load(&other).1.contains("key"), "{}", load(&other).1);
        let card = placed.dir.join("MODEL_CARD.md");
        std::fs::write(card, "It never errs.").expect("written");
        assert!(load(&key).0 == 0 && load(&key).1.contains("\"MODEL_CARD.md\" is not as it was signed"));
    }

    #[test]
    fn percentiles_are_of_the_stage_and_told_once() {
        let mut clock = Stopwatch::new(("d".into(), Stage::Shadow), 0.0);
        assert!(clock.measured().is_none());
        (1..=200).for_each(|ms| clock.add(f64::from(ms)));
        clock.told -= MEASURE_EVERY;
        let measured = clock.measured().expect("measured");
        assert_eq!((measured.runs, measured.median_ms, measured.p99_ms), (200, 100.0, 198.0));
        assert!(measured.grown_mb > 0.0);
        clock.told -= MEASURE_EVERY;
        assert!(clock.measured().is_none(), "nothing new");
    }
}
