//! The vocabulary of second opinions: what a larger model is asked, why, and what came of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Name, RecordId, Time};

/// Why a larger model is asked. The more urgent comes first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asking {
    /// The window raised an alarm.
    Alarm,
    /// Its p-value lies in the uncertain band.
    Uncertain,
    /// It was drawn by lot, to see how often the two models agree.
    Audit,
}

impl Asking {
    /// All of them.
    pub const ALL: [Asking; 3] = [Asking::Alarm, Asking::Uncertain, Asking::Audit];

    /// The word used in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Asking::Alarm => "alarm",
            Asking::Uncertain => "uncertain",
            Asking::Audit => "audit",
        }
    }
}

/// A window that is put before a larger model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The id of the verdict's record: asked twice, it is the same question.
    pub id: RecordId,
    /// The machine; it is not sent.
    pub machine: Name,
    /// The window's last step.
    pub at: Time,
    /// Why.
    pub reason: Asking,
    /// Rows of the window.
    pub steps: usize,
    /// Columns of the window.
    pub channels: usize,
    /// Row-major [steps × channels], all finite, in the channels' own units.
    pub window: Arc<[f32]>,
}

/// How asking ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// No answer in time.
    Timeout,
    /// No connection could be made, or it broke.
    Unreachable,
    /// The server has no time for us (408, 409, 425, 429, 502, 503, 504).
    Busy,
    /// The server will not (another 3xx or 4xx): no such model, no right to it.
    Refused,
    /// The server failed (another 5xx).
    Failed,
    /// The answer cannot be read.
    Malformed,
    /// The answer, or the model, is not of the shape that was expected.
    Misfit,
    /// The answer is not a finite number.
    NotFinite,
    /// The answer is larger than anyone should read.
    TooLarge,
}

impl Outcome {
    /// The word used in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Timeout => "timeout",
            Outcome::Unreachable => "unreachable",
            Outcome::Busy => "busy",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Malformed => "malformed",
            Outcome::Misfit => "misfit",
            Outcome::NotFinite => "not_finite",
            Outcome::TooLarge => "too_large",
        }
    }
}

/// What came of an [`Ask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the ask.
    pub id: RecordId,
    /// When it ended, by the wall clock.
    pub at: Time,
    /// How.
    pub outcome: Outcome,
    /// What the larger model gave, when it answered; finite.
    pub score: Option<f64>,
    /// The version that answered, where the server says so.
    pub version: Option<String>,
    /// More of a bad outcome, for a person; at most [`Answer::MAX_DETAIL`] bytes, without control characters.
    pub detail: String,
    /// Requests that may have reached the server; 0 costs nothing.
    pub calls: u32,
    /// Bytes of request bodies in all of them.
    pub bytes_out: u64,
    /// From the first try to the end, milliseconds.
    pub took_ms: u64,
}

impl Answer {
    /// The longest [`Answer::detail`].
    pub const MAX_DETAIL: usize = 300;
}

/// A larger model's word on a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecondOpinion {
    /// The id of its own record.
    pub record: RecordId,
    /// The larger model.
    pub model: Name,
    /// Its version, where the server says so.
    pub version: Option<String>,
    /// The last step of the window it is about.
    pub at: Time,
    /// Whether it finds an anomaly.
    pub anomaly: bool,
    /// Its score.
    pub score: f64,
    /// The score from which on it is an anomaly.
    pub threshold: f64,
}

/// What answers may do to alarms. Nothing of it makes a local alarm wait.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct May {
    /// Confirm or doubt one that stands: a transition that changes no state.
    pub confirm: bool,
    /// Raise one where the gateway's own model was uncertain.
    pub raise: bool,
    /// End one that the larger model finds nothing in.
    pub clear: bool,
}
