//! The vocabulary of shipping models: which bundle it is, how far it has come on its way into use,
//! and how it is to be taken there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Name, Time};

/// How far a bundle has come. The order is that of a rollout that goes well, then how it may end.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// All of it is on this disk.
    Fetched,
    /// It is signed by a key that is trusted, and whole.
    Verified,
    /// It does here what its golden cases say, within time and memory.
    Selftest,
    /// It runs beside the model in use; its results are counted and compared, and go nowhere.
    Shadow,
    /// Some machines use it.
    Canary,
    /// All machines use it, and it is watched.
    Baking,
    /// It is the model in use.
    Active,
    /// Another took its place.
    Retired,
    /// It will not be used: said before any machine used it.
    Refused,
    /// The one before is in use again.
    RolledBack,
    /// It cannot be had now; it is tried again.
    Delayed,
}

impl Stage {
    /// The word used in records, state and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Fetched => "fetched",
            Stage::Verified => "verified",
            Stage::Selftest => "selftest",
            Stage::Shadow => "shadow",
            Stage::Canary => "canary",
            Stage::Baking => "baking",
            Stage::Active => "active",
            Stage::Retired => "retired",
            Stage::Refused => "refused",
            Stage::RolledBack => "rolled_back",
            Stage::Delayed => "delayed",
        }
    }
}

/// One bundle among all that there were of its model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Release {
    /// The model's name, which `[[machine]] model` names too.
    pub model: Name,
    /// Its version, for people.
    pub version: Name,
    /// Rises from bundle to bundle: a lower one than the highest seen is not taken.
    pub sequence: u64,
    /// SHA-256 of `model.onnx`, hex; empty while the bundle has not been read.
    pub digest: Name,
}

/// What is done when a bundle that is in use does worse than the one before.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailurePolicy {
    /// The one before takes over again.
    #[default]
    Rollback,
    /// It is said and recorded; a person decides.
    Report,
}

/// How a bundle is to be taken into use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How long it runs in the shadow.
    pub shadow: Duration,
    /// Globs over machine ids: these use it first. None: all at once.
    pub canary: Vec<String>,
    /// How long it is watched as canary, and again once all machines use it.
    pub bake: Duration,
    /// What to do when it does worse.
    pub failure_policy: FailurePolicy,
}

/// A step that a bundle has taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStep {
    /// When.
    pub at: Time,
    /// Which bundle.
    pub release: Release,
    /// Where it is now.
    pub stage: Stage,
    /// Why, for a person.
    pub reason: String,
    /// What the reason rests on, by name; finite.
    pub figures: BTreeMap<String, f64>,
}

/// What the engine is told of bundles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ModelNews {
    /// Delivery has taken a step with one: it is recorded.
    Step(ModelStep),
    /// One has been judged and lies in the library: its rollout begins.
    Candidate {
        /// When.
        at: Time,
        /// Which.
        release: Release,
        /// How.
        rollout: Rollout,
    },
    /// What was measured of one on its way.
    Measured {
        /// When.
        at: Time,
        /// Which.
        release: Release,
        /// What.
        measured: Measured,
    },
    /// One is to go: that on its way, or the delivered one in use.
    Withdraw {
        /// When.
        at: Time,
        /// The model.
        model: Name,
        /// Of its graph; empty: whichever is on its way, else the one in use.
        digest: Name,
        /// Why, for a person.
        reason: String,
    },
    /// The one on its way is to take its next step now.
    Promote {
        /// When.
        at: Time,
        /// The model.
        model: Name,
        /// Who wants it.
        who: String,
    },
    /// One cannot or must not be used at all: a replay goes without it, and so misses its later steps.
    Unusable {
        /// When.
        at: Time,
        /// Which.
        release: Release,
        /// How far it had come, by the library.
        stage: Stage,
        /// Why, for a person.
        reason: String,
    },
}

/// What was measured of a bundle since it came to its stage: no function of what the engine was fed, so
/// it is told.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Batches run.
    pub runs: u64,
    /// Half of them took longer than this, in milliseconds of processor time.
    pub median_ms: f64,
    /// One in a hundred took longer than this, in milliseconds.
    pub p99_ms: f64,
    /// By how much the process has grown since its first run, in MiB; 0 when it has not.
    pub grown_mb: f64,
}

/// Somebody wants a model's candidate to take its next step, or the version before back.
#[derive(Debug)]
pub struct ModelCommand {
    /// The model.
    pub model: Name,
    /// The next step; else back.
    pub promote: bool,
    /// Who asks.
    pub who: String,
    /// Answered once it is on disk.
    pub reply: tokio::sync::oneshot::Sender<Result<(), super::Refusal>>,
}
