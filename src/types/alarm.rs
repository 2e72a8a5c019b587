//! The vocabulary around an alarm: what people and rules make of it, what can be done to it, and why
//! it was raised.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Name, RecordId, SecondOpinion, Time};

/// From here on an alarm is always announced by itself: it is neither grouped, nor suppressed by
/// design, nor put on the shelf.
pub const CRITICAL_SEVERITY: u16 = 800;

/// Classes of severity as people speak of them.
pub fn priority(severity: u16) -> &'static str {
    match severity {
        CRITICAL_SEVERITY.. => "critical",
        600.. => "high",
        300.. => "medium",
        _ => "low",
    }
}

/// What people and rules have made of an alarm, beside its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Care {
    /// What brought it to where it stands.
    pub change: Change,
    /// How many changes there were before this one: tells records apart.
    pub changes: u32,
    /// Who did, where it was a person.
    pub by: Option<String>,
    /// What they said to it.
    pub comment: Option<String>,
    /// Put aside for a while.
    pub shelf: Option<Shelf>,
    /// Suppressed by design: a rule of the config holds.
    pub suppressed: bool,
    /// Who took it out of service.
    pub out_of_service: Option<String>,
    /// The first of its group: none other stood when it was raised.
    pub first_out: bool,
    /// It comes and goes: raised again and again within a minute.
    pub chattering: bool,
    /// One of too many at a time, or chattering: not announced by itself.
    pub grouped: bool,
    /// How often it was announced again because it stood for so long.
    pub repeats: u32,
    /// Why it was raised, as it was then.
    pub explanation: Option<Arc<Explanation>>,
    /// What a larger model said of it last.
    pub opinion: Option<SecondOpinion>,
}

impl Care {
    /// Whether a person or a rule keeps it from being announced.
    pub fn is_quiet(&self) -> bool {
        self.shelf.is_some() || self.suppressed || self.out_of_service.is_some()
    }
}

/// An alarm put aside until a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shelf {
    /// When it comes back by itself.
    pub until: Time,
    /// Who put it there.
    pub by: String,
    /// Why, if they said.
    pub comment: Option<String>,
}

/// What happened to an alarm.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The condition came.
    #[default]
    Raised,
    /// The condition went.
    Cleared,
    /// The condition came back while the alarm was latched.
    Returned,
    /// Somebody has seen it.
    Acknowledged,
    /// Somebody released a latched alarm.
    Reset,
    /// It has stood for so long that it is announced again.
    Repeated,
    /// Put aside.
    Shelved,
    /// Taken back from the shelf by somebody.
    Unshelved,
    /// Its time on the shelf is over.
    ShelfExpired,
    /// A rule of the config keeps it quiet from now on.
    Suppressed,
    /// That rule no longer holds.
    Unsuppressed,
    /// Taken out of service.
    OutOfService,
    /// Back in service.
    InService,
    /// A larger model finds the same.
    Confirmed,
    /// A larger model finds nothing; the alarm stands all the same.
    Doubted,
    /// A larger model finds nothing, and that ended it.
    Overruled,
}

impl Change {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Raised => "raised",
            Change::Cleared => "cleared",
            Change::Returned => "returned",
            Change::Acknowledged => "acknowledged",
            Change::Reset => "reset",
            Change::Repeated => "repeated",
            Change::Shelved => "shelved",
            Change::Unshelved => "unshelved",
            Change::ShelfExpired => "shelf_expired",
            Change::Suppressed => "suppressed",
            Change::Unsuppressed => "unsuppressed",
            Change::OutOfService => "out_of_service",
            Change::InService => "in_service",
            Change::Confirmed => "confirmed",
            Change::Doubted => "doubted",
            Change::Overruled => "overruled",
        }
    }

    /// Whether a larger model brought it about.
    pub fn is_of_opinion(self) -> bool {
        matches!(self, Change::Confirmed | Change::Doubted | Change::Overruled)
    }
}

/// What a person can do to an alarm.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Says that it has been seen.
    Acknowledge,
    /// Releases a latched alarm whose condition has gone.
    Reset,
    /// Puts it aside for so many seconds.
    Shelve(u32),
    /// Takes it back from the shelf.
    Unshelve,
    /// Keeps it from being announced until somebody ends that.
    OutOfService,
    /// Ends that.
    InService,
}

impl Action {
    /// The longest that an alarm stays on the shelf: a week.
    pub const MAX_SHELF_SECONDS: u32 = 7 * 86_400;

    /// The word used in the API and the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Acknowledge => "ack",
            Action::Reset => "reset",
            Action::Shelve(_) => "shelve",
            Action::Unshelve => "unshelve",
            Action::OutOfService => "out_of_service",
            Action::InService => "in_service",
        }
    }
}

impl Action {
    /// The action of that name; shelving says for how long.
    ///
    /// # Errors
    /// What would be one, for a person.
    pub fn named(name: &str, seconds: Option<u32>) -> Result<Action, String> {
        Ok(match name {
            "ack" => Action::Acknowledge,
            "reset" => Action::Reset,
            "unshelve" => Action::Unshelve,
            "out_of_service" => Action::OutOfService,
            "in_service" => Action::InService,
            "shelve" => Action::Shelve(seconds.ok_or("say for how long: {\"seconds\": 3600}")?),
            _ => return Err("what can be done is ack, reset, shelve, unshelve, out_of_service or in_service".into()),
        })
    }
}

/// What a person wants done to alarms.
#[derive(Debug)]
pub struct Command {
    /// To which.
    pub target: Target,
    /// What to do.
    pub action: Action,
    /// Who wants it, at most 64 characters: as they call themselves, and where they come from.
    pub who: String,
    /// What they say to it, at most 200 characters.
    pub comment: Option<String>,
    /// The answer, once it is on disk. Dropping it tells them that the agent could not say.
    pub reply: oneshot::Sender<Result<(), Refusal>>,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No alarm of that id stands, or there is no such model.
    NoSuchAlarm,
    /// The alarm is there, but not in a state for this; says why.
    NotNow(String),
}

/// What an action is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// One alarm.
    Alarm(RecordId),
    /// All alarms of a machine, those that may come included.
    Machine(Name),
}

/// Why an alarm was raised: what the model saw, and what is worth a look first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The model's name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// The score.
    pub score: Option<f64>,
    /// How rare a healthy machine scores as high.
    pub p_value: Option<f64>,
    /// Those that speak loudest, loudest first.
    pub channels: Vec<Ranked>,
    /// What to check first, by language (`en`, `zh`), from the model's bundle.
    pub advice: BTreeMap<String, Vec<String>>,
}

/// One channel of an [`Explanation`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// The signal.
    pub name: Name,
    /// Its share in the score, 0..1.
    pub share: f64,
    /// Its unit.
    pub unit: String,
    /// Its value at the end of the window.
    pub value: Option<f64>,
    /// Where it is while the machine is healthy: least and greatest.
    pub normal: Option<[f64; 2]>,
    /// Its course over the window, at most [`Ranked::TRACE`] points; for a plot.
    pub trace: Vec<f32>,
}

impl Ranked {
    /// Points of a trace.
    pub const TRACE: usize = 64;
}

/// A flood of alarms: more than people can take in one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flood {
    /// When it began.
    pub since: Time,
    /// Alarms raised in it so far, those before it that made it one included.
    pub raised: u32,
    /// The machine whose alarm was the first.
    pub first: Name,
}
