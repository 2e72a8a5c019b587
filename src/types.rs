//! The vocabulary every stage speaks: readings, windows, verdicts, alarms, records, receipts.
//! Imports nothing of ours.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

mod alarm;
mod opinion;
mod rollout;

pub use alarm::{
    Action, CRITICAL_SEVERITY, Care, Change, Command, Explanation, Flood, Ranked, Refusal, Shelf, Target, priority,
};
pub use opinion::{Answer, Ask, Asking, May, Outcome, SecondOpinion};
pub use rollout::{FailurePolicy, Measured, ModelCommand, ModelNews, ModelStep, Release, Rollout, Stage};

/// A machine, signal or channel name; cheap to clone.
pub type Name = Arc<str>;

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(pub i64);

impl Time {
    /// The wall clock, now.
    pub fn now() -> Time {
        Time(i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX))
    }

    /// From seconds since the epoch; `None` when not finite or out of range (years 1678 to 2262).
    pub fn from_unix_seconds(seconds: f64) -> Option<Time> {
        let nanos = seconds * 1e9;
        (nanos.is_finite() && nanos.abs() < 9.2e18).then_some(Time(nanos.round() as i64))
    }

    /// This many seconds since the epoch.
    pub fn unix_seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Later by `d`, stopping at the end of time.
    pub fn plus(self, d: Duration) -> Time {
        Time(self.0.saturating_add(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// Earlier by `d`, stopping at the beginning of time.
    pub fn minus(self, d: Duration) -> Time {
        Time(self.0.saturating_sub(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// Moved by so many nanoseconds, as when the clock that it was read from was set.
    pub fn shifted(self, by: i64) -> Time {
        Time(self.0.saturating_add(by))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

impl fmt::Display for Time {
    /// RFC 3339 in UTC, to the millisecond, or to the nanosecond where that is needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) if self.0 % 1_000_000 == 0 => write!(f, "{t:.3}"),
            Ok(t) => write!(f, "{t:.9}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl FromStr for Time {
    type Err = String;

    /// Reads RFC 3339, e.g. `2026-11-22T10:15:30.250Z`.
    fn from_str(text: &str) -> Result<Time, String> {
        let t: jiff::Timestamp = text.parse().map_err(|e| format!("{text:?} is not an RFC 3339 time: {e}"))?;
        i64::try_from(t.as_nanosecond()).map(Time).map_err(|_| format!("{text:?} is out of range"))
    }
}

/// How far a value can be trusted.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// As measured.
    #[default]
    Good,
    /// Usable with care, for instance held over from the step before.
    Uncertain,
    /// Not heard for longer than allowed.
    Stale,
    /// Not usable.
    Bad,
}

impl Quality {
    /// The word used in records, topics and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Quality::Good => "good",
            Quality::Uncertain => "uncertain",
            Quality::Stale => "stale",
            Quality::Bad => "bad",
        }
    }
}

/// Why a value is not good.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nothing is wrong.
    #[default]
    None,
    /// NaN or infinite.
    NotFinite,
    /// Outside the configured range.
    OutOfRange,
    /// Unchanged for longer than the signal ever rests.
    Stuck,
    /// No value came in time; the last one is held.
    Held,
    /// The device did not answer.
    Timeout,
    /// The device answered with an exception.
    Exception,
    /// The connection is down.
    Disconnected,
    /// The device or publisher marked it bad itself.
    Source,
}

impl Cause {
    /// The word used in records, topics and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::None => "none",
            Cause::NotFinite => "not_finite",
            Cause::OutOfRange => "out_of_range",
            Cause::Stuck => "stuck",
            Cause::Held => "held",
            Cause::Timeout => "timeout",
            Cause::Exception => "exception",
            Cause::Disconnected => "disconnected",
            Cause::Source => "source",
        }
    }
}

/// One value of one signal of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The machine it belongs to.
    pub machine: Name,
    /// The signal of that machine.
    pub signal: Name,
    /// When it was measured.
    pub at: Time,
    /// In the signal's own unit; meaningless when `quality` is bad.
    pub value: f64,
    /// How far to trust it.
    pub quality: Quality,
    /// Why not, when not good.
    pub cause: Cause,
    /// The topic or device it came from.
    pub origin: Origin,
    /// Whose clock `at` is.
    pub clock: Clock,
}

impl Reading {
    /// A good value of unknown origin.
    pub fn good(machine: Name, signal: Name, at: Time, value: f64) -> Reading {
        let (quality, cause, origin, clock) = Default::default();
        Reading { machine, signal, at, value, quality, cause, origin, clock }
    }

    /// A value that could not be had, of unknown origin.
    pub fn bad(machine: Name, signal: Name, at: Time, cause: Cause) -> Reading {
        Reading { quality: Quality::Bad, cause, ..Reading::good(machine, signal, at, 0.0) }
    }

    /// The same reading with its origin and clock.
    pub fn of(self, origin: Origin, clock: Clock) -> Reading {
        Reading { origin, clock, ..self }
    }
}

/// The topic or device that a reading came from, as a hash of its source's name and its own; 0 is unknown.
/// Two origins of one signal are told apart by it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin(pub u32);

impl Origin {
    /// The origin `place` of the source `source`; never 0.
    pub fn new(source: &str, place: &str) -> Origin {
        let mut hash = crc32fast::Hasher::new();
        hash.update(source.as_bytes());
        hash.update(&[0]);
        hash.update(place.as_bytes());
        Origin(hash.finalize().max(1))
    }

    /// Whether it is known.
    pub fn is_known(self) -> bool {
        self != Origin::default()
    }
}

/// Whose clock gives a reading's time, and what is done when that clock steps.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The device's; a steady new offset to the gateway's clock is adopted.
    #[default]
    Follow,
    /// The device's, as it is.
    Device,
    /// The gateway's, at arrival.
    Arrival,
}

/// Input that could not be read: kept aside as a dead letter so that it can be looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reject {
    /// When it arrived.
    pub at: Time,
    /// The source's name in the config.
    pub source: Name,
    /// The topic or address it came from.
    pub origin: String,
    /// What is wrong with it, for a person.
    pub reason: String,
    /// Its first bytes, at most [`Reject::KEEP_BYTES`].
    pub payload: Vec<u8>,
}

impl Reject {
    /// How much of a bad payload is kept.
    pub const KEEP_BYTES: usize = 4096;
}

/// What a source delivers at a time.
#[derive(Debug)]
pub struct Batch {
    /// The source's name in the config.
    pub source: Name,
    /// When it arrived here, by the wall clock.
    pub arrived: Time,
    /// In order of arrival.
    pub readings: Vec<Reading>,
    /// What could not be read.
    pub rejects: Vec<Reject>,
    /// Some of it may have been delivered before, says the other side.
    pub again: bool,
    /// Completed once all of this, and all it caused, is on disk.
    pub receipt: Option<Receipt>,
}

/// A source's claim ticket for one batch. Dropping it uncompleted tells the source that the batch
/// is not on disk.
#[derive(Debug)]
pub struct Receipt(oneshot::Sender<()>);

/// The source's half of a [`Receipt`]: resolves to `Ok` when the batch is durable and to `Err`
/// when it will not be.
pub type ReceiptWaiter = oneshot::Receiver<()>;

impl Receipt {
    /// A ticket and the end to wait on.
    pub fn new() -> (Receipt, ReceiptWaiter) {
        let (tx, rx) = oneshot::channel();
        (Receipt(tx), rx)
    }

    /// The batch is durable.
    pub fn complete(self) {
        // The source may have gone; then nobody needs to know.
        let _ = self.0.send(());
    }
}

/// A fixed-rate stretch of one machine's channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The machine.
    pub machine: Name,
    /// Time of the last step.
    pub end: Time,
    /// Row-major [steps × channels], in the channels' own units.
    pub data: Vec<f32>,
    /// The worst quality of each channel within the window.
    pub quality: Vec<Quality>,
}

/// Why a verdict says what it says.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// The score is beyond the alarm limit.
    AnomalyDetected,
    /// The score is within the limit.
    NoAnomalyDetected,
    /// The machine is not running.
    MachineOff,
    /// The window is not full yet.
    WarmingUp,
    /// A channel the model needs is bad or stale.
    InputBad,
    /// The score is within the band that asks for a second opinion.
    Uncertain,
    /// The model could not be run.
    ModelUnavailable,
}

impl Reason {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::AnomalyDetected => "ANOMALY_DETECTED",
            Reason::NoAnomalyDetected => "NO_ANOMALY_DETECTED",
            Reason::MachineOff => "MACHINE_OFF",
            Reason::WarmingUp => "WARMING_UP",
            Reason::InputBad => "INPUT_BAD",
            Reason::Uncertain => "UNCERTAIN",
            Reason::ModelUnavailable => "MODEL_UNAVAILABLE",
        }
    }
}

/// Remaining useful life, in the model's unit (cycles or hours).
#[derive(Copy, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rul {
    /// Lower end of the interval.
    pub low: f64,
    /// The estimate.
    pub median: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// One channel's share in a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// The channel's signal.
    pub name: Name,
    /// Its share; all shares sum to 1.
    pub value: f64,
}

/// What a model says of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The machine.
    pub machine: Name,
    /// The window's last step.
    pub at: Time,
    /// The model's name.
    pub model: Name,
    /// The model's version.
    pub model_version: Name,
    /// SHA-256 of `model.onnx`, hex.
    pub model_digest: Name,
    /// Why.
    pub reason: Reason,
    /// The model's score; `None` when nothing was scored.
    pub score: Option<f64>,
    /// How often a healthy machine scores this high, 0..1.
    pub p_value: Option<f64>,
    /// The limit the score or p-value was held against.
    pub threshold: f64,
    /// 1 is well, 0 is at the alarm limit.
    pub health: Option<f64>,
    /// Remaining useful life, where the model gives it.
    pub rul: Option<Rul>,
    /// The class found, where the model gives one.
    pub class: Option<Name>,
    /// The worst quality among the channels.
    pub quality: Quality,
    /// Shares in the score, largest first.
    pub contributions: Vec<Contribution>,
}

/// What is stored and forwarded.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model's verdict on a window.
    Verdict,
    /// An alarm changed its state.
    Alarm,
    /// Data that is missing, and why.
    Gap,
    /// Something happened to a model.
    Model,
    /// What was used and what it cost.
    Usage,
    /// Who did what.
    Audit,
    /// A larger model's verdict on a window that was judged here first.
    Opinion,
    /// What was summed up in place of records that may not leave.
    Summary,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] =
        [Kind::Verdict, Kind::Alarm, Kind::Gap, Kind::Model, Kind::Usage, Kind::Audit, Kind::Opinion, Kind::Summary];

    /// Whether it is one of many: others go before it.
    pub fn is_routine(self) -> bool {
        matches!(self, Kind::Verdict | Kind::Opinion)
    }

    /// The word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Verdict => "verdict",
            Kind::Alarm => "alarm",
            Kind::Gap => "gap",
            Kind::Model => "model",
            Kind::Usage => "usage",
            Kind::Audit => "audit",
            Kind::Opinion => "opinion",
            Kind::Summary => "summary",
        }
    }

    /// The CloudEvents type. A second opinion is a verdict too: its data say whose.
    pub fn event_type(self) -> &'static str {
        match self {
            Kind::Verdict | Kind::Opinion => "io.andon.verdict.v1",
            Kind::Alarm => "io.andon.alarm.v1",
            Kind::Gap => "io.andon.gap.v1",
            Kind::Model => "io.andon.model.v1",
            Kind::Usage => "io.andon.usage.v1",
            Kind::Audit => "io.andon.audit.v1",
            Kind::Summary => "io.andon.summary.v1",
        }
    }
}

/// A record's identity: the same happening always has the same id, however often it is replayed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordId(pub [u8; 16]);

impl RecordId {
    /// The first 128 bits of SHA-256 over the parts, each preceded by its length.
    pub fn of(parts: &[&[u8]]) -> RecordId {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finish().as_ref()[..16]);
        RecordId(id)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// One thing to keep and to forward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Deterministic.
    pub id: RecordId,
    /// What it is.
    pub kind: Kind,
    /// The machine, model or part of the agent it is about.
    pub subject: Name,
    /// When what it tells of happened.
    pub at: Time,
    /// A JSON object: the `data` member of the CloudEvent.
    pub data: String,
}

/// A record as the store holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The store's own order; unique and rising over all lanes.
    pub sequence: u64,
    /// The record.
    pub record: Record,
}

/// The state of a machine, as every light and list shows it. Declared from the most to the least urgent.
/// docs/machine-state.md holds the truth table.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// An alarm is active. It stays so when data stops.
    Red,
    /// A person is needed: an alarm returned and unacknowledged, or input missing, bad, late or of a wrong clock.
    Amber,
    /// Watched, but not judged: no model is bound, or the model warms up within its time.
    White,
    /// Judged just now, normal, inputs good.
    Green,
    /// Fresh data says that the machine is not running.
    Off,
}

impl MachineState {
    /// All states, most urgent first.
    pub const ALL: [MachineState; 5] =
        [MachineState::Red, MachineState::Amber, MachineState::White, MachineState::Green, MachineState::Off];

    /// The word used in the API, topics and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            MachineState::Red => "red",
            MachineState::Amber => "amber",
            MachineState::White => "white",
            MachineState::Green => "green",
            MachineState::Off => "off",
        }
    }
}

/// An alarm as it stands after a transition. The states are those of ISA-18.2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// Deterministic: machine, condition and the time it was raised.
    pub id: RecordId,
    /// The machine.
    pub machine: Name,
    /// What it watches: `anomaly` (the model) or `input` (the machine's own signals).
    pub condition: Condition,
    /// The state it is in now.
    pub state: AlarmState,
    /// 1..1000.
    pub severity: u16,
    /// When it was raised.
    pub since: Time,
    /// When it came into its present state.
    pub at: Time,
    /// In words a shift leader understands.
    pub message: String,
    /// The channel that speaks loudest.
    pub top_channel: Option<Name>,
    /// Who acknowledged it.
    pub acknowledged_by: Option<String>,
    /// What people and rules have made of it.
    #[serde(default)]
    pub care: Care,
}

impl Alarm {
    /// The state as an ISA-18.2 list shows it: what keeps an alarm from being announced comes first.
    pub fn shown_state(&self) -> &'static str {
        match &self.care {
            c if c.out_of_service.is_some() => "out_of_service",
            c if c.suppressed => "suppressed",
            c if c.shelf.is_some() => "shelved",
            _ => self.state.as_str(),
        }
    }

    /// Whether it is announced one by one; else it is only listed and recorded.
    pub fn is_announced(&self) -> bool {
        !self.care.is_quiet() && !self.care.grouped
    }
}

/// What an alarm watches.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// The model's verdicts.
    Anomaly,
    /// The quality of the machine's signals.
    Input,
}

impl Condition {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Anomaly => "anomaly",
            Condition::Input => "input",
        }
    }
}

/// ISA-18.2 alarm states.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmState {
    /// Nothing is wrong and nothing is owed.
    Normal,
    /// Raised and not acknowledged.
    Unacknowledged,
    /// Raised and acknowledged.
    Acknowledged,
    /// Over, but nobody has acknowledged it.
    ReturnedUnacknowledged,
    /// The condition has gone, but the alarm stays until it is acknowledged and reset.
    LatchedUnacknowledged,
    /// The same, acknowledged: a reset ends it.
    LatchedAcknowledged,
}

impl AlarmState {
    /// Whether the alarm stands: its condition holds, or it is latched.
    pub fn is_active(self) -> bool {
        !matches!(self, AlarmState::Normal | AlarmState::ReturnedUnacknowledged)
    }

    /// Whether somebody still has to acknowledge it.
    pub fn is_owed(self) -> bool {
        matches!(
            self,
            AlarmState::Unacknowledged | AlarmState::ReturnedUnacknowledged | AlarmState::LatchedUnacknowledged
        )
    }

    /// Whether the condition has gone but the alarm stays until it is reset.
    pub fn is_latched(self) -> bool {
        matches!(self, AlarmState::LatchedUnacknowledged | AlarmState::LatchedAcknowledged)
    }

    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            AlarmState::Normal => "normal",
            AlarmState::Unacknowledged => "unacknowledged",
            AlarmState::Acknowledged => "acknowledged",
            AlarmState::ReturnedUnacknowledged => "returned_unacknowledged",
            AlarmState::LatchedUnacknowledged => "latched_unacknowledged",
            AlarmState::LatchedAcknowledged => "latched_acknowledged",
        }
    }
}

/// An engine that sends nothing for this long is silent, and no machine is shown as green, white or off. It sends a
/// heartbeat every 500 ms.
pub const ENGINE_SILENT_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

/// What dashboards hear as it happens, before it is durable.
#[derive(Clone, Debug)]
pub enum Live {
    /// One step of the grid: each signal's value in its own unit.
    Step {
        /// The machine.
        machine: Name,
        /// The step's time.
        at: Time,
        /// `None` where nothing usable was heard.
        values: Vec<(Name, Option<f64>, Quality, Cause)>,
    },
    /// A verdict, with its record's `data`.
    Verdict(Arc<Verdict>, Arc<str>),
    /// An alarm changed.
    Alarm(Arc<Alarm>, Arc<str>),
    /// A machine's light changed.
    State {
        /// The machine.
        machine: Name,
        /// When.
        at: Time,
        /// Its light.
        light: MachineState,
        /// Why, in a few words.
        why: String,
    },
    /// What a larger model says of a window of this machine, with its record's `data`.
    Opinion(Name, Arc<SecondOpinion>, Arc<str>),
    /// So many alarms have come that they are announced together, or that is over.
    Flood(Option<Flood>),
    /// The engine is alive. Sent every 500 ms, whatever else is sent.
    Heartbeat(Time),
    /// The present state of everything: every machine's state, every alarm that is not normal, the flood.
    /// An alarm or machine that is not in it is over. One message, so that it cannot be lost in part.
    Snapshot(Arc<[Live]>),
}
