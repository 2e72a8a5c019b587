//! State detection and prognosis (ISO 13374): a bundle is loaded once, its graph is run by tract,
//! and what comes out is calibrated and explained.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use crate::types::{Contribution, Name, Quality, Reason, Rul, Verdict, Window};

pub mod aspects;
pub mod bundle;
pub mod calibration;
pub mod cgroup;
pub mod compat;
pub mod contents;
pub mod course;
pub mod directions;
pub mod drift;
pub mod explain;
pub mod fit;
pub mod gauge;
pub mod graph;
pub mod judge;
pub mod learnt;
pub mod library;
pub mod manifest_limits;
pub mod rollout;
pub mod session;
pub mod signature;
pub mod spread;
pub mod state;
pub mod trust;
pub mod unpack;
pub mod write;

pub use bundle::{Bundle, Manifest, Task};
use calibration::{Calibration, Limit};
use contents::Contents;
use drift::{Bins, Yardstick};
use session::{Outputs, Session};

/// Why a model cannot be used. `Display` is for a person; it says what and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the bundle cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file of the bundle is not what it should be.
    #[error("{path}: {message}")]
    Manifest {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A file is not the one the manifest names.
    #[error("{file} has SHA-256 {found} but model.json says {expected}; the bundle is damaged or was changed")]
    Digest {
        /// The file.
        file: String,
        /// As computed.
        found: String,
        /// As written.
        expected: String,
    },
    /// The graph uses operators that tract does not have.
    #[error("model.onnx uses operators that are not supported here: {0}; export it without them")]
    Operators(String),
    /// The graph cannot be loaded or run.
    #[error("model.onnx cannot be used: {0}")]
    Graph(String),
    /// The graph does not do what the golden cases say.
    #[error("the model failed its self-test: {0}")]
    Golden(String),
    /// It is not signed, not by a key that is trusted, or not as it was signed.
    #[error("{0}")]
    Signature(String),
    /// It was tried in a process of its own, which did not end well.
    #[error("{0}")]
    Test(String),
}

/// Whether golden cases are replayed when a model is loaded.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Here and now.
    Run,
    /// They were, in a process of its own.
    Done,
}

/// A loaded model, shared by all machines that use it.
pub struct Model {
    /// Name and version, shared by all verdicts.
    name: Name,
    version: Name,
    digest: Name,
    manifest: Manifest,
    channel_names: Vec<Name>,
    session: Session,
    calibration: Calibration,
    reference: Vec<Option<Bins>>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({} {})", self.name, self.version)
    }
}

/// What a model says of one window before it is held against a limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinion {
    /// The anomaly score: higher is stranger.
    pub score: f64,
    /// How often a healthy machine scores this high.
    pub p_value: f64,
    /// Shares by channel, in channel order; they sum to 1.
    pub shares: Vec<f64>,
    /// The model's own health index, 0..1.
    pub health: Option<f64>,
    /// Remaining useful life.
    pub rul: Option<Rul>,
    /// The class found.
    pub class: Option<Name>,
    /// The model's states after this window; empty for a model without.
    pub next: Vec<f32>,
}

impl Model {
    /// Loads a bundle, builds its plan and proves it on the golden cases. A panic inside tract is
    /// an error like any other.
    pub fn load(dir: &Path) -> Result<Arc<Model>, ModelError> {
        Model::from_contents(Contents::read(dir)?, SelfTest::Run)
    }

    /// The same out of what has been read. Golden cases that were replayed elsewhere are not parsed.
    pub fn from_contents(mut contents: Contents, test: SelfTest) -> Result<Arc<Model>, ModelError> {
        if test == SelfTest::Done {
            contents.forget_golden();
        }
        let bundle = Bundle::from_contents(contents)?;
        let built = catch_unwind(AssertUnwindSafe(|| Model::build(bundle)));
        built.unwrap_or_else(|_| Err(ModelError::Graph("tract gave up while building it".into())))
    }

    fn build(bundle: Bundle) -> Result<Arc<Model>, ModelError> {
        let session = Session::build(&bundle.onnx, &bundle.manifest)?;
        session.self_test(&bundle.golden)?;
        let channels = &bundle.manifest.channels;
        let channel_names = channels.iter().map(|c| Name::from(c.name.as_str())).collect();
        let spread = &bundle.reference.channels;
        // Those that say nothing of use were refused when the bundle was read.
        let reference = channels.iter().map(|c| spread.get(&c.name)?.bins().ok().flatten()).collect();
        Ok(Arc::new(Model {
            name: bundle.manifest.name.as_str().into(),
            version: bundle.manifest.version.as_str().into(),
            digest: bundle.digest.as_str().into(),
            channel_names,
            session,
            calibration: Calibration::new(bundle.reference.scores),
            reference,
            manifest: bundle.manifest,
        }))
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// SHA-256 of `model.onnx`, hex.
    pub fn digest(&self) -> &Name {
        &self.digest
    }

    /// The model's channels, in order.
    pub fn channel_names(&self) -> &[Name] {
        &self.channel_names
    }

    /// The reference scores.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// What its service is held against.
    pub fn yardstick(&self) -> Yardstick<'_> {
        Yardstick { digest: &self.digest, reference: &self.reference, channels: &self.channel_names }
    }

    /// Whether another version can stand in for this one: it has to cut the same windows of the same
    /// channels, or windows would be lost or judged twice on the way. `Err` says what differs.
    pub fn can_be_followed_by(&self, other: &Model) -> Result<(), String> {
        let (a, b) = (&self.manifest, &other.manifest);
        if self.channel_names != other.channel_names {
            return Err(format!("its channels are {:?}, not {:?}", other.channel_names, self.channel_names));
        }
        if (a.steps, a.stride, a.rate) != (b.steps, b.stride, b.rate) {
            let cut = |m: &Manifest| format!("{} steps of {:?}, every {} steps", m.steps, m.rate, m.stride);
            return Err(format!("its windows are {}, not {}", cut(b), cut(a)));
        }
        if !self.calibration.is_empty() && other.calibration.is_empty() {
            return Err("it has no reference scores, so that no budget of false alarms can be held".into());
        }
        Ok(())
    }

    /// Windows in a batch.
    pub fn batch(&self) -> usize {
        self.session.batch()
    }

    /// What the model keeps for a machine that it has not seen: its states one after the other.
    pub fn initial_state(&self) -> &[f32] {
        self.session.initial()
    }

    /// Takes over what an opinion left behind; `in_alarm` holds still the states that ask for it.
    pub fn follow(&self, state: &mut Vec<f32>, next: Vec<f32>, in_alarm: bool) {
        state::follow(&self.manifest.states, state, next, in_alarm);
    }

    /// Judges up to [`Model::batch`] windows, each with the states its machine has; `None` where the
    /// outcome is of no use. The same window gets the same answer whatever else is in the batch.
    pub fn judge(&self, windows: &[&Window], states: &[&[f32]]) -> Result<Vec<Option<Opinion>>, ModelError> {
        let inputs: Vec<&[f32]> = windows.iter().map(|w| w.data.as_slice()).collect();
        let run = catch_unwind(AssertUnwindSafe(|| self.session.run(&inputs, states)));
        let outputs = run.unwrap_or_else(|_| Err(ModelError::Graph("tract gave up while running it".into())))?;
        Ok(inputs.iter().enumerate().map(|(i, x)| self.opinion(x, &outputs, i)).collect())
    }

    /// Runs any number of windows, flat and row-major, each as if it were the first of its machine:
    /// every output's name, the length of one window's part, and all of it.
    pub fn infer(&self, windows: &[f32]) -> Result<Vec<(String, usize, Vec<f32>)>, ModelError> {
        let window = self.manifest.steps * self.channel_names.len();
        let rows: Vec<&[f32]> = windows.chunks(window.max(1)).collect();
        let mut all: Vec<(String, usize, Vec<f32>)> = Vec::new();
        for batch in rows.chunks(self.batch()) {
            let states = vec![self.initial_state(); batch.len()];
            let run = catch_unwind(AssertUnwindSafe(|| self.session.run(batch, &states)));
            let outputs = run.unwrap_or_else(|_| Err(ModelError::Graph("tract gave up while running it".into())))?;
            for (n, (name, len, part)) in outputs.parts(batch.len()).enumerate() {
                match all.get_mut(n) {
                    Some((_, _, data)) => data.extend_from_slice(part),
                    None => all.push((name.to_owned(), len, part.to_vec())),
                }
            }
        }
        Ok(all)
    }

    fn opinion(&self, window: &[f32], outputs: &Outputs, i: usize) -> Option<Opinion> {
        let found = explain::read(&self.manifest, window, outputs, i)?;
        let next = self.session.next(outputs, i)?;
        let p_value = self.calibration.p_value(found.score);
        Some(Opinion {
            score: found.score,
            p_value,
            shares: found.shares,
            health: found.health,
            rul: found.rul,
            class: found.class,
            next,
        })
    }

    /// The verdict on a window, held against the machine's limit.
    pub fn verdict(&self, window: &Window, opinion: Option<Opinion>, limit: &Limit, signals: &[Name]) -> Verdict {
        let quality = window.quality.iter().copied().max().unwrap_or(Quality::Good);
        let mut v = self.empty_verdict(window.machine.clone(), window.end, Reason::ModelUnavailable, quality, limit);
        let Some(o) = opinion else { return v };
        let strength = limit.strength(o.score, o.p_value);
        v.reason = if strength >= 1.0 { Reason::AnomalyDetected } else { Reason::NoAnomalyDetected };
        v.health = Some(o.health.unwrap_or_else(|| (1.0 - strength).clamp(0.0, 1.0)));
        v.score = Some(o.score);
        v.p_value = Some(o.p_value);
        v.rul = o.rul;
        v.class = o.class;
        v.contributions =
            signals.iter().zip(o.shares).map(|(s, value)| Contribution { name: s.clone(), value }).collect();
        v.contributions.sort_by(|a, b| b.value.total_cmp(&a.value));
        v
    }

    /// A verdict that says why nothing was scored.
    pub fn empty_verdict(
        &self,
        machine: Name,
        at: crate::types::Time,
        reason: Reason,
        quality: Quality,
        limit: &Limit,
    ) -> Verdict {
        Verdict {
            machine,
            at,
            model: self.name.clone(),
            model_version: self.version.clone(),
            model_digest: self.digest.clone(),
            reason,
            score: None,
            p_value: None,
            threshold: limit.threshold(),
            health: None,
            rul: None,
            class: None,
            quality,
            contributions: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
