//! What lies on disk of delivered models: `data_dir/library/NAME/VERSION-SEQUENCE-DIGEST8/` holds bundles
//! that were verified and judged, `data_dir/library/state.json` how far each has come. The bundle that
//! the config names stays in `models_dir`; a delivered one that is active goes before it.
//!
//! `state.json` is replaced whole and synced, so a crash leaves the old or the new. Should it be damaged
//! all the same, it is set aside, and the highest sequence is taken from the directories' names.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::metrics::lock;
use crate::types::{ModelStep, Name, Release, Rollout, Stage, Time};

/// Below `data_dir`. Not `models`: that is where `models_dir` is unless the config says otherwise.
const ROOT: &str = "library";
/// See the module.
const STATE: &str = "state.json";
/// Names the bundle that is being read.
const READING: &str = "reading.json";
/// What is being fetched and unpacked; emptied at the start.
const INCOMING: &str = "incoming";
/// Parts of archives that are still coming; they outlast a restart.
const PARTIAL: &str = "partial";
/// Deliveries that are remembered as done with, the newest: far more than are wanted at a time.
const MAX_SETTLED: usize = 256;
/// Refusals kept for each model, the newest: enough to see what happened lately.
const MAX_REFUSED: usize = 16;
/// Models in the library: far more than a gateway has.
const MAX_MODELS: usize = 256;
/// The longest name or version.
const MAX_NAME: usize = 64;

/// A bundle in the library.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which it is.
    pub release: Release,
    /// Where it lies: absolute when given out, below the library in `state.json`.
    pub dir: PathBuf,
    /// How it is taken into use.
    pub rollout: Rollout,
}

/// A bundle that is not used, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which.
    pub release: Release,
    /// When.
    pub at: Time,
    /// Why.
    pub reason: String,
}

/// How a model stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The delivered bundle in use; none while the one in `models_dir` is.
    pub active: Option<Candidate>,
    /// The bundle that is on its way.
    pub candidate: Option<Candidate>,
    /// The delivered bundle that was in use before, kept for going back.
    pub previous: Option<Candidate>,
    /// How far the newest has come.
    pub stage: Option<Stage>,
    /// Since when.
    pub since: Time,
    /// The newest refusals, oldest first.
    pub refused: Vec<Refusal>,
    /// The highest sequence that was ever taken into the library.
    pub highest: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    models: BTreeMap<Name, Standing>,
    /// Deliveries that came to their end, well or not, oldest first.
    #[serde(default)]
    settled: Vec<String>,
}

/// See the module. All methods block for the disk.
#[derive(Debug)]
pub struct Library {
    root: PathBuf,
    state: Mutex<State>,
}

impl Library {
    /// Opens the library of a data directory, which it makes. The second value says what was damaged.
    ///
    /// # Errors
    /// When the directory cannot be made, read or cleared.
    pub fn open(data_dir: &Path) -> io::Result<(Library, Option<String>)> {
        let root = data_dir.join(ROOT);
        let incoming = root.join(INCOMING);
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        fs::create_dir_all(&incoming)?;
        fs::create_dir_all(root.join(PARTIAL))?;
        let (state, damaged) = read(&root)?;
        let library = Library { root, state: Mutex::new(state) };
        library.tidy()?;
        Ok((library, damaged))
    }

    /// An empty directory of its own, below the library, to unpack a bundle into.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn workspace(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("bundle-").tempdir_in(self.root.join(INCOMING))
    }

    /// A file that stands while a bundle is read.
    pub fn reading(&self) -> PathBuf {
        self.root.join(READING)
    }

    /// Where parts of archives are kept.
    pub fn partial(&self) -> PathBuf {
        self.root.join(PARTIAL)
    }

    /// Whether a delivery came to its end before.
    pub fn is_settled(&self, delivery: &str) -> bool {
        lock(&self.state).settled.iter().any(|s| s == delivery)
    }

    /// Remembers that a delivery has come to its end.
    ///
    /// # Errors
    /// When it cannot be written; it is remembered until the next start all the same.
    pub fn settle(&self, delivery: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.settled.push(delivery.to_owned());
        let surplus = state.settled.len().saturating_sub(MAX_SETTLED);
        state.settled.drain(..surplus);
        write(&self.root, &state)
    }

    /// How a model stands; the default for one that is not known.
    pub fn standing(&self, model: &str) -> Standing {
        let mut standing = lock(&self.state).models.get(model).cloned().unwrap_or_default();
        let all = [&mut standing.active, &mut standing.candidate, &mut standing.previous];
        all.into_iter().flatten().for_each(|c| c.dir = self.root.join(&c.dir));
        standing
    }

    /// Models that the library knows.
    pub fn models(&self) -> Vec<Name> {
        lock(&self.state).models.keys().cloned().collect()
    }

    /// Takes over a bundle that was verified and judged: `from` is moved to its place and is the
    /// model's candidate from now on.
    ///
    /// # Errors
    /// When it cannot be moved or written down; then it is no candidate.
    pub fn place(&self, from: &Path, release: Release, rollout: Rollout, at: Time) -> io::Result<Candidate> {
        if !(plain(&release.model) && plain(&release.version)) {
            return Err(io::Error::other("its name or version cannot be the name of a directory"));
        }
        let known = lock(&self.state).models.len() < MAX_MODELS || self.standing(&release.model).highest > 0;
        if !known {
            return Err(io::Error::other(format!("there are {MAX_MODELS} models already")));
        }
        let digest = release.digest.get(..8).unwrap_or(&release.digest);
        let dir = Path::new(&*release.model).join(format!("{}-{}-{digest}", release.version, release.sequence));
        let to = self.root.join(&dir);
        let above = self.root.join(&*release.model);
        fs::create_dir_all(&above)?;
        sync_tree(from)?;
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(from, &to)?;
        sync_dir(&above)?;
        sync_dir(&self.root)?;
        let candidate = Candidate { release, dir, rollout };
        self.change(&candidate.release.model.clone(), |s| {
            s.highest = s.highest.max(candidate.release.sequence);
            (s.stage, s.since) = (Some(Stage::Selftest), at);
            s.candidate = Some(candidate.clone());
        })?;
        Ok(Candidate { dir: to, ..candidate })
    }

    /// Writes down a step. The same step again changes nothing, so a replay does no harm.
    ///
    /// # Errors
    /// When it cannot be written; memory and disk are then as they were.
    pub fn note(&self, step: &ModelStep) -> io::Result<()> {
        let known = lock(&self.state).models.contains_key(&step.release.model);
        if !known && !plain(&step.release.model) {
            return Ok(());
        }
        self.change(&step.release.model, |s| follow(s, step))
    }

    /// Removes bundles that nothing refers to any more.
    ///
    /// # Errors
    /// When the library cannot be read or something in it not removed.
    pub fn tidy(&self) -> io::Result<()> {
        let kept: Vec<PathBuf> = {
            let state = lock(&self.state);
            let all = state.models.values().flat_map(|s| [&s.active, &s.candidate, &s.previous]);
            all.flatten().map(|c| c.dir.clone()).collect()
        };
        for model in directories(&self.root)?.into_iter().filter(|d| !is_reserved(d)) {
            for bundle in directories(&model)? {
                let relative = bundle.strip_prefix(&self.root).unwrap_or(&bundle);
                if !kept.iter().any(|k| k == relative) {
                    fs::remove_dir_all(&bundle)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes on disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bytes(&self) -> io::Result<u64> {
        tree_bytes(&self.root)
    }

    /// Changes a model's standing on disk, then in memory.
    fn change(&self, model: &Name, change: impl FnOnce(&mut Standing)) -> io::Result<()> {
        let mut state = lock(&self.state);
        let old = state.models.get(model).cloned();
        if old.is_none() && state.models.len() >= MAX_MODELS {
            // Refusals of models that nobody has: said in the record, not kept.
            return Ok(());
        }
        let mut new = old.clone().unwrap_or_default();
        change(&mut new);
        if old.as_ref() == Some(&new) {
            return Ok(());
        }
        state.models.insert(model.clone(), new);
        let written = write(&self.root, &state);
        if written.is_err() {
            match old {
                Some(old) => drop(state.models.insert(model.clone(), old)),
                None => drop(state.models.remove(model)),
            }
        }
        written
    }
}

/// Whether this can be the name of a directory and of a model: letters, digits, `-`, `_`, `.` and `+`,
/// at most 64, not beginning with a dot.
pub fn plain(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && name.chars().all(fits)
        && !is_reserved(Path::new(name))
}

fn is_reserved(dir: &Path) -> bool {
    dir.ends_with(INCOMING) || dir.ends_with(PARTIAL)
}

/// What a step makes of a standing.
fn follow(s: &mut Standing, step: &ModelStep) {
    let is = |c: &Option<Candidate>| c.as_ref().is_some_and(|c| c.release == step.release);
    match step.stage {
        Stage::Fetched | Stage::Verified | Stage::Delayed => return,
        Stage::Selftest | Stage::Shadow | Stage::Canary | Stage::Baking if !is(&s.candidate) => return,
        Stage::Selftest | Stage::Shadow | Stage::Canary | Stage::Baking => {}
        Stage::Active if is(&s.candidate) => {
            s.previous = s.active.take();
            s.active = s.candidate.take();
        }
        Stage::Active => return,
        Stage::Retired => {
            if is(&s.previous) {
                s.previous = None;
            } else if is(&s.candidate) {
                s.candidate = None;
            }
            return;
        }
        Stage::Refused | Stage::RolledBack => {
            if is(&s.candidate) {
                s.candidate = None;
            } else if is(&s.active) {
                s.active = s.previous.take();
            }
            let refusal = Refusal { release: step.release.clone(), at: step.at, reason: step.reason.clone() };
            if s.refused.contains(&refusal) {
                return;
            }
            s.refused.push(refusal);
            let surplus = s.refused.len().saturating_sub(MAX_REFUSED);
            s.refused.drain(..surplus);
        }
    }
    if s.stage != Some(step.stage) {
        (s.stage, s.since) = (Some(step.stage), step.at);
    }
}

fn read(root: &Path) -> io::Result<(State, Option<String>)> {
    let path = root.join(STATE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((State::default(), None)),
        Err(e) => return Err(e),
    };
    match serde_json::from_slice(&text) {
        Ok(state) => Ok((state, None)),
        Err(e) => {
            fs::rename(&path, root.join("state.json.damaged"))?;
            Ok((rebuilt(root)?, Some(format!("{}: {e}", path.display()))))
        }
    }
}

/// What directories tell: no bundle is in use, but none that was seen is taken again.
fn rebuilt(root: &Path) -> io::Result<State> {
    let mut state = State::default();
    for model in directories(root)?.into_iter().filter(|d| !is_reserved(d)) {
        let Some(name) = model.file_name().and_then(|n| n.to_str()) else { continue };
        let sequence = |dir: PathBuf| dir.file_name()?.to_str()?.rsplit('-').nth(1)?.parse::<u64>().ok();
        let highest = directories(&model)?.into_iter().filter_map(sequence).max().unwrap_or(0);
        state.models.insert(name.into(), Standing { highest, ..Standing::default() });
    }
    Ok(state)
}

fn write(root: &Path, state: &State) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(root)?;
    serde_json::to_writer_pretty(&mut file, state)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(root.join(STATE)).map_err(|e| e.error)?;
    sync_dir(root)
}

fn directories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.push(entry.path());
        }
    }
    Ok(out)
}

fn tree_bytes(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        sum += if kind.is_dir() { tree_bytes(&entry.path())? } else { kind.len() };
    }
    Ok(sum)
}

/// Every file of a bundle and its directory, to the disk.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            fs::File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(sequence: u64) -> Release {
        let digest = format!("{sequence:064x}");
        Release { model: "pump".into(), version: "1.2".into(), sequence, digest: digest.into() }
    }

    fn placed(library: &Library, sequence: u64) -> Candidate {
        let dir = library.workspace().expect("a directory").keep();
        fs::write(dir.join("model.json"), "{}").expect("written");
        library.place(&dir, release(sequence), Rollout::default(), Time(1)).expect("placed")
    }

    fn note(library: &Library, sequence: u64, stage: Stage) {
        let step = ModelStep {
            at: Time(2),
            release: release(sequence),
            stage,
            reason: "because".into(),
            figures: BTreeMap::new(),
        };
        library.note(&step).expect("noted");
    }

    #[test]
    fn a_rollout_is_written_down_and_survives() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Library::open(dir.path()).expect("opened").0;
        let library = open();
        let first = placed(&library, 1);
        assert!(first.dir.join("model.json").is_file());
        for stage in [Stage::Shadow, Stage::Canary, Stage::Active] {
            note(&library, 1, stage);
        }
        let second = placed(&library, 2);
        note(&library, 2, Stage::Active);
        let library = open();
        let s = library.standing("pump");
        assert_eq!((s.active, s.previous, s.candidate), (Some(second), Some(first.clone()), None));
        assert_eq!((s.stage, s.highest), (Some(Stage::Active), 2));
        note(&library, 2, Stage::RolledBack);
        note(&library, 2, Stage::RolledBack);
        let s = open().standing("pump");
        assert_eq!((s.active, s.previous, s.highest), (Some(first), None, 2));
        assert_eq!(s.refused.iter().map(|r| r.release.sequence).collect::<Vec<_>>(), [2]);
        assert_eq!(directories(&dir.path().join("library/pump")).expect("read").len(), 1, "the other is removed");
    }

    #[test]
    fn a_damaged_state_is_set_aside_and_old_sequences_stay_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::open(dir.path()).expect("opened").0;
        placed(&library, 17);
        fs::write(dir.path().join("library/state.json"), "{\"models\": {").expect("written");
        let (library, damaged) = Library::open(dir.path()).expect("opened");
        assert!(damaged.is_some());
        assert_eq!(library.standing("pump").highest, 17);
        assert!(dir.path().join("library/state.json.damaged").is_file());
    }

    #[test]
    fn names_are_names_of_directories() {
        assert!(["pump-anomaly", "1.2.3+b", "A_4"].iter().all(|n| plain(n)));
        let long = "x".repeat(65);
        assert!(!["", ".", "..", ".x", "a/b", "a b", "ü", "incoming", &long].iter().any(|n| plain(n)));
    }
}
