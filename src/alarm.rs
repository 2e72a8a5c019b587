//! Advisory generation (ISO 13374): what turns observations into alarms, as ISA-18.2 has them: states,
//! delays, deadband, latch, shelf, suppression, re-alarm and chatter here; floods in [`flood`]. Pure:
//! time comes in with each observation and action.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::{Section, parse_rate};
use crate::types::{
    Action, Alarm, AlarmState, CRITICAL_SEVERITY, Care, Change, Condition, Name, RecordId, Shelf, Time,
};

pub mod flood;
pub mod second;

/// Raised this often within [`CHATTER_WITHIN`], an alarm chatters (ISA-18.2 speaks of three in a minute).
const CHATTER_RAISES: usize = 3;
const CHATTER_WITHIN: Duration = Duration::from_secs(60);
/// Announcing an alarm again more often than this helps nobody.
const MIN_RE_ALARM: Duration = Duration::from_secs(60);

/// `[machine.alarm]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The limit: a budget of false alarms, or a score.
    pub limit: LimitConfig,
    /// Severity of an anomaly, 1..1000.
    pub severity: u16,
    /// Severity of bad inputs, 1..1000; 0 turns these alarms off.
    pub input_severity: u16,
    /// How long the condition has to hold before it is an alarm.
    pub on_delay: Duration,
    /// How long it has to be gone before the alarm is over.
    pub off_delay: Duration,
    /// Share of the limit by which the condition has to recede, 0..1.
    pub deadband: f64,
    /// Stay in alarm after the condition has gone, until somebody acknowledges and resets it.
    pub latch: bool,
    /// An alarm that stands for longer is announced again; `None`: once is enough.
    pub re_alarm: Option<Duration>,
    /// For so long after the machine has started, alarms are suppressed.
    pub start_up: Duration,
    /// Machines with the same word share one first-out; `None`: each machine by itself.
    pub group: Option<String>,
}

/// How the limit is given.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum LimitConfig {
    /// So many false alarms in so long.
    Budget {
        /// How many.
        alarms: f64,
        /// In how long.
        period: Duration,
    },
    /// Scores from here on.
    Score(f64),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            limit: LimitConfig::Budget { alarms: 1.0, period: Duration::from_secs(604_800) },
            severity: 500,
            input_severity: 300,
            on_delay: Duration::ZERO,
            off_delay: Duration::from_secs(10),
            deadband: 0.1,
            latch: false,
            re_alarm: None,
            start_up: Duration::ZERO,
            group: None,
        }
    }
}

impl Config {
    /// Reads `[machine.alarm]`; an absent one is the default.
    pub fn read(machine: &Section<'_>) -> Config {
        let mut config = Config::default();
        let Some(s) = machine.section("alarm") else { return config };
        if let Some(limit) = read_limit(&s) {
            config.limit = limit;
        }
        if let Some(n) = s.integer("severity", 1..=1000) {
            config.severity = n as u16;
        }
        if let Some(n) = s.integer("input_severity", 0..=1000) {
            config.input_severity = n as u16;
        }
        config.on_delay = s.duration("on_delay").unwrap_or(config.on_delay);
        config.off_delay = s.duration("off_delay").unwrap_or(config.off_delay);
        match s.float("deadband") {
            Some(d) if (0.0..1.0).contains(&d) => config.deadband = d,
            Some(d) => s.problem("deadband", format_args!("{d} is not at least 0 and below 1")),
            None => {}
        }
        config.latch = s.boolean("latch").unwrap_or(config.latch);
        config.re_alarm = s.duration("re_alarm");
        if config.re_alarm.is_some_and(|d| d < MIN_RE_ALARM) {
            s.problem("re_alarm", "at least \"1m\": an alarm repeated more often is only noise");
        }
        config.start_up = s.duration("start_up").unwrap_or(config.start_up);
        config.group = s.string("group");
        config
    }
}

fn read_limit(s: &Section<'_>) -> Option<LimitConfig> {
    let score = s.float("threshold");
    let budget = s.string("false_alarms");
    if s.has("threshold") && budget.is_some() {
        s.problem("threshold", "give either `threshold` or `false_alarms`, not both");
    }
    if let Some(text) = budget {
        let limit = parse_budget(&text);
        if limit.is_none() {
            s.problem("false_alarms", format_args!("{text:?} is not a budget such as \"1 per week\" or \"2 per 30d\""));
        }
        return limit;
    }
    score.map(LimitConfig::Score)
}

/// Reads `1 per week`, `0.5 per day`, `2 per 30d`.
fn parse_budget(text: &str) -> Option<LimitConfig> {
    parse_rate(text).map(|(alarms, period)| LimitConfig::Budget { alarms, period })
}

/// One look at the condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// When.
    pub at: Time,
    /// 1 is at the limit, more is beyond; `None`: nothing can be said, everything stays as it is.
    pub strength: Option<f64>,
    /// The channel that speaks loudest.
    pub top_channel: Option<Name>,
    /// In words a shift leader understands.
    pub message: String,
}

/// The fixed part of one machine's alarm.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The machine.
    pub machine: Name,
    /// What is watched.
    pub condition: Condition,
    /// 1..1000; 0 never raises.
    pub severity: u16,
    /// See [`Config`].
    pub on_delay: Duration,
    /// See [`Config`].
    pub off_delay: Duration,
    /// See [`Config`].
    pub deadband: f64,
    /// See [`Config`].
    pub latch: bool,
    /// See [`Config`].
    pub re_alarm: Option<Duration>,
}

/// What somebody does to an alarm.
#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    /// What.
    pub action: Action,
    /// Who.
    pub who: String,
    /// What they say to it.
    pub comment: Option<String>,
    /// When.
    pub at: Time,
}

/// Where one machine's alarm stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tracker {
    /// Since when the condition has held without yet being an alarm.
    pending: Option<Time>,
    /// Since when an active alarm's condition has been gone.
    receding: Option<Time>,
    /// When it was last announced; what re-alarm counts from.
    announced: Time,
    /// When it was last raised, at most [`CHATTER_RAISES`] times.
    raises: VecDeque<Time>,
    /// Suppressed by design, whether or not an alarm stands.
    suppressed: bool,
    /// Changes so far, of all alarms it has had: two at the same time still have records of their own.
    changes: u32,
    /// Until when a larger model's word counts rather than the local one, and how strong the condition was.
    overruled: Option<(Time, f64)>,
    /// The alarm as it stands: gone when all is normal and nobody has put it aside.
    alarm: Option<Alarm>,
}

impl Tracker {
    /// The alarm, unless all is normal. It may be normal itself while it is shelved or out of service.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }

    /// Whether the alarm is raised.
    pub fn is_active(&self) -> bool {
        self.alarm.as_ref().is_some_and(|a| a.state.is_active())
    }

    /// Whether the alarm stands and is neither shelved, nor suppressed, nor out of service.
    pub fn is_calling(&self) -> bool {
        self.alarm.as_ref().is_some_and(|a| a.state.is_active() && !a.care.is_quiet())
    }

    /// Takes an observation; the alarm as it stands afterwards if that changed anything.
    pub fn observe(&mut self, rule: &Rule, seen: &Observation) -> Option<Alarm> {
        let strength = seen.strength.filter(|_| rule.severity > 0)?;
        match self.alarm.as_ref().map(|a| a.state) {
            Some(AlarmState::Unacknowledged | AlarmState::Acknowledged) => self.observe_active(rule, seen, strength),
            Some(state) if state.is_latched() => self.observe_latched(rule, seen, strength),
            _ => self.observe_quiet(rule, seen, strength),
        }
    }

    /// Whether the condition has held for the on-delay.
    fn holds(&mut self, rule: &Rule, seen: &Observation, strength: f64) -> bool {
        if strength < 1.0 || self.is_overruled(seen.at, strength) {
            self.pending = None;
            return false;
        }
        let since = *self.pending.get_or_insert(seen.at);
        let holds = seen.at.since(since) >= rule.on_delay;
        if holds {
            (self.pending, self.receding) = (None, None);
        }
        holds
    }

    fn observe_quiet(&mut self, rule: &Rule, seen: &Observation, strength: f64) -> Option<Alarm> {
        if !self.holds(rule, seen, strength) {
            return None;
        }
        self.begin(rule, seen)
    }

    /// An alarm begins, whatever there was before.
    fn begin(&mut self, rule: &Rule, seen: &Observation) -> Option<Alarm> {
        let aside = self.alarm.take().map(|a| a.care).unwrap_or_default();
        let care = Care {
            shelf: aside.shelf,
            out_of_service: aside.out_of_service,
            suppressed: self.suppressed && rule.severity < CRITICAL_SEVERITY,
            chattering: self.chatters(seen.at),
            ..Care::default()
        };
        self.announced = seen.at;
        let fresh = fresh(rule, seen.at, AlarmState::Unacknowledged, care);
        self.alarm = Some(Alarm { message: seen.message.clone(), top_channel: seen.top_channel.clone(), ..fresh });
        self.alarm.clone()
    }

    /// Notes that it is raised, and says whether that is one time too many.
    fn chatters(&mut self, at: Time) -> bool {
        self.raises.push_back(at);
        while self.raises.front().is_some_and(|t| at.since(*t) > CHATTER_WITHIN) || self.raises.len() > CHATTER_RAISES {
            self.raises.pop_front();
        }
        self.raises.len() >= CHATTER_RAISES
    }

    fn observe_active(&mut self, rule: &Rule, seen: &Observation, strength: f64) -> Option<Alarm> {
        if strength >= 1.0 - rule.deadband {
            self.receding = None;
            return self.repeat(rule, seen.at);
        }
        let since = *self.receding.get_or_insert(seen.at);
        if seen.at.since(since) < rule.off_delay {
            return None;
        }
        self.receding = None;
        let next = cleared(self.alarm.as_ref()?.state, rule.latch);
        self.change(next, Change::Cleared, seen.at)
    }

    fn observe_latched(&mut self, rule: &Rule, seen: &Observation, strength: f64) -> Option<Alarm> {
        if !self.holds(rule, seen, strength) {
            return None;
        }
        self.announced = seen.at;
        self.change(AlarmState::Unacknowledged, Change::Returned, seen.at)
    }

    /// An alarm that has stood for too long is announced again, and has to be acknowledged again.
    fn repeat(&mut self, rule: &Rule, at: Time) -> Option<Alarm> {
        let alarm = self.alarm.as_mut().filter(|a| !a.care.is_quiet())?;
        if rule.re_alarm.is_none_or(|every| at.since(self.announced) < every) {
            return None;
        }
        self.announced = at;
        alarm.care.repeats = alarm.care.repeats.saturating_add(1);
        alarm.acknowledged_by = None;
        self.change(AlarmState::Unacknowledged, Change::Repeated, at)
    }

    /// Moves on and says how it stands; one that is normal and not put aside is forgotten.
    fn change(&mut self, state: AlarmState, change: Change, at: Time) -> Option<Alarm> {
        let alarm = self.alarm.as_mut()?;
        (alarm.state, alarm.at, alarm.care.change) = (state, at, change);
        self.changes = self.changes.saturating_add(1);
        alarm.care.changes = self.changes;
        (alarm.care.by, alarm.care.comment) = (None, None);
        let kept = state != AlarmState::Normal || alarm.care.shelf.is_some() || alarm.care.out_of_service.is_some();
        if kept { self.alarm.clone() } else { self.alarm.take() }
    }

    /// Adds to a standing alarm what its tracker cannot know.
    pub fn annotate(&mut self, note: impl FnOnce(&mut Care)) -> Option<Alarm> {
        note(&mut self.alarm.as_mut()?.care);
        self.alarm.clone()
    }

    /// A rule of the config says from now on whether alarms are suppressed; the alarm as it stands
    /// afterwards if there is one that this changed. Never for severities of [`CRITICAL_SEVERITY`] on.
    pub fn suppress(&mut self, rule: &Rule, on: bool, at: Time) -> Option<Alarm> {
        self.suppressed = on;
        let on = on && rule.severity < CRITICAL_SEVERITY;
        let alarm = self.alarm.as_mut().filter(|a| a.care.suppressed != on)?;
        alarm.care.suppressed = on;
        let (state, change) = (alarm.state, if on { Change::Suppressed } else { Change::Unsuppressed });
        self.back(state, change, at)
    }

    /// When the alarm comes back from the shelf by itself.
    pub fn shelved_until(&self) -> Option<Time> {
        self.alarm.as_ref()?.care.shelf.as_ref().map(|s| s.until)
    }

    /// It is `now`: takes the alarm back from the shelf if its time is over.
    pub fn expire(&mut self, now: Time) -> Option<Alarm> {
        let until = self.shelved_until().filter(|until| *until <= now)?;
        let alarm = self.alarm.as_mut()?;
        alarm.care.shelf = None;
        let state = alarm.state;
        self.back(state, Change::ShelfExpired, until)
    }

    /// Moves on from being put aside: an alarm that calls again has to be acknowledged again.
    fn back(&mut self, state: AlarmState, change: Change, at: Time) -> Option<Alarm> {
        let alarm = self.alarm.as_mut()?;
        let returns = state == AlarmState::Acknowledged && !alarm.care.is_quiet();
        if returns {
            alarm.acknowledged_by = None;
        }
        if !alarm.care.is_quiet() {
            self.announced = at;
        }
        self.change(if returns { AlarmState::Unacknowledged } else { state }, change, at)
    }

    /// Does what somebody wants done to the standing alarm; says how it stands afterwards, or why it
    /// cannot be done. Nothing changes then.
    pub fn act(&mut self, rule: &Rule, act: &Act) -> Result<Alarm, String> {
        self.may(rule, act)?;
        if self.alarm.is_none() {
            self.alarm = Some(fresh(rule, act.at, AlarmState::Normal, Care::default()));
        }
        // The line before made sure of it.
        let Some(alarm) = self.alarm.as_mut() else { return Err("no alarm stands".into()) };
        let state = alarm.state;
        let done = match act.action {
            Action::Acknowledge => {
                alarm.acknowledged_by = Some(act.who.clone());
                let next = match state {
                    AlarmState::ReturnedUnacknowledged => AlarmState::Normal,
                    AlarmState::LatchedUnacknowledged => AlarmState::LatchedAcknowledged,
                    _ => AlarmState::Acknowledged,
                };
                self.announced = act.at;
                self.change(next, Change::Acknowledged, act.at)
            }
            Action::Reset => self.change(AlarmState::Normal, Change::Reset, act.at),
            Action::Shelve(seconds) => {
                let until = act.at.plus(Duration::from_secs(seconds.into()));
                alarm.care.shelf = Some(Shelf { until, by: act.who.clone(), comment: act.comment.clone() });
                self.change(state, Change::Shelved, act.at)
            }
            Action::Unshelve => {
                alarm.care.shelf = None;
                self.back(state, Change::Unshelved, act.at)
            }
            Action::OutOfService => {
                alarm.care.out_of_service = Some(act.who.clone());
                self.change(state, Change::OutOfService, act.at)
            }
            Action::InService => {
                alarm.care.out_of_service = None;
                self.back(state, Change::InService, act.at)
            }
        };
        let mut done = done.ok_or("no alarm stands")?;
        (done.care.by, done.care.comment) = (Some(act.who.clone()), act.comment.clone());
        self.annotate(|care| (care.by, care.comment) = (Some(act.who.clone()), act.comment.clone()));
        Ok(done)
    }

    /// Whether this could be done now; else why not, for a person.
    fn may(&self, rule: &Rule, act: &Act) -> Result<(), String> {
        let alarm = self.alarm.as_ref();
        let state = alarm.map_or(AlarmState::Normal, |a| a.state);
        let care = alarm.map(|a| &a.care);
        let out_of_service = care.and_then(|c| c.out_of_service.as_deref());
        let why = match act.action {
            Action::Acknowledge if !state.is_owed() => match alarm.and_then(|a| a.acknowledged_by.as_deref()) {
                Some(who) if state.is_active() => format!("{who} has acknowledged it already"),
                _ => "there is nothing to acknowledge".into(),
            },
            Action::Reset if state == AlarmState::LatchedUnacknowledged => "acknowledge it first".into(),
            Action::Reset if state != AlarmState::LatchedAcknowledged => "only a latched alarm is reset".into(),
            Action::Shelve(0) => "shelve it for at least a second".into(),
            Action::Shelve(s) if s > Action::MAX_SHELF_SECONDS => {
                format!("an alarm is shelved for {} s (7 days) at most", Action::MAX_SHELF_SECONDS)
            }
            Action::Shelve(_) if rule.severity >= CRITICAL_SEVERITY => format!(
                "an alarm of severity {} is never shelved; acknowledge it, or take it out of service",
                rule.severity
            ),
            Action::Unshelve if care.is_none_or(|c| c.shelf.is_none()) => "it is not shelved".into(),
            Action::OutOfService if out_of_service.is_some() => {
                format!("{} has taken it out of service already", out_of_service.unwrap_or("somebody"))
            }
            Action::InService if out_of_service.is_none() => "it is in service".into(),
            _ => return Ok(()),
        };
        Err(why)
    }
}

/// Where an active alarm goes when its condition has gone.
fn cleared(state: AlarmState, latch: bool) -> AlarmState {
    match (state, latch) {
        (AlarmState::Acknowledged | AlarmState::LatchedAcknowledged, true) => AlarmState::LatchedAcknowledged,
        (AlarmState::Acknowledged, false) => AlarmState::Normal,
        (_, false) => AlarmState::ReturnedUnacknowledged,
        (_, true) => AlarmState::LatchedUnacknowledged,
    }
}

/// An alarm that begins now.
fn fresh(rule: &Rule, at: Time, state: AlarmState, care: Care) -> Alarm {
    let when = at.0.to_le_bytes();
    let parts: [&[u8]; 4] = [b"alarm", rule.machine.as_bytes(), rule.condition.as_str().as_bytes(), &when];
    Alarm {
        id: RecordId::of(&parts),
        machine: rule.machine.clone(),
        condition: rule.condition,
        state,
        severity: rule.severity,
        since: at,
        at,
        message: String::new(),
        top_channel: None,
        acknowledged_by: None,
        care,
    }
}

#[cfg(test)]
mod tests;
