//! Advisory generation (ISO 13374): what turns observations into alarms, as ISA-18.2 states with
//! on-delay, off-delay, deadband and latch. Pure: time comes in with each observation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::{Section, parse_duration};
use crate::types::{Alarm, AlarmState, Condition, Name, RecordId, Time};

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
    /// Stay active until acknowledged.
    pub latch: bool,
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
    let (count, period) = text.split_once(" per ")?;
    let alarms: f64 = count.trim().parse().ok()?;
    let period = period.trim();
    let period = match period {
        "month" => Duration::from_secs(30 * 86_400),
        "year" => Duration::from_secs(365 * 86_400),
        word => parse_duration(word).or_else(|| parse_duration(&format!("1{word}")))?,
    };
    (alarms > 0.0 && alarms.is_finite() && !period.is_zero()).then_some(LimitConfig::Budget { alarms, period })
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
}

/// Where one machine's alarm stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tracker {
    /// Since when the condition has held without yet being an alarm.
    pending: Option<Time>,
    /// Since when an active alarm's condition has been gone.
    receding: Option<Time>,
    alarm: Option<Alarm>,
}

impl Tracker {
    /// The alarm, unless all is normal.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }

    /// Whether the alarm is raised.
    pub fn is_active(&self) -> bool {
        self.alarm.as_ref().is_some_and(|a| a.state.is_active())
    }

    /// Takes an observation; the alarm as it stands afterwards if that changed anything.
    pub fn observe(&mut self, rule: &Rule, seen: &Observation) -> Option<Alarm> {
        let strength = seen.strength.filter(|_| rule.severity > 0)?;
        if self.is_active() {
            self.observe_active(rule, seen, strength)
        } else {
            self.observe_quiet(rule, seen, strength)
        }
    }

    fn observe_quiet(&mut self, rule: &Rule, seen: &Observation, strength: f64) -> Option<Alarm> {
        if strength < 1.0 {
            self.pending = None;
            return None;
        }
        let since = *self.pending.get_or_insert(seen.at);
        if seen.at.since(since) < rule.on_delay {
            return None;
        }
        self.pending = None;
        self.receding = None;
        let at = seen.at.0.to_le_bytes();
        let parts: [&[u8]; 4] = [b"alarm", rule.machine.as_bytes(), rule.condition.as_str().as_bytes(), &at];
        self.alarm = Some(Alarm {
            id: RecordId::of(&parts),
            machine: rule.machine.clone(),
            condition: rule.condition,
            state: AlarmState::Unacknowledged,
            severity: rule.severity,
            since: seen.at,
            at: seen.at,
            message: seen.message.clone(),
            top_channel: seen.top_channel.clone(),
            acknowledged_by: None,
        });
        self.alarm.clone()
    }

    fn observe_active(&mut self, rule: &Rule, seen: &Observation, strength: f64) -> Option<Alarm> {
        if strength >= 1.0 - rule.deadband {
            self.receding = None;
            return None;
        }
        let since = *self.receding.get_or_insert(seen.at);
        let alarm = self.alarm.as_mut()?;
        let held = rule.latch && alarm.state != AlarmState::Acknowledged;
        if held || seen.at.since(since) < rule.off_delay {
            return None;
        }
        self.receding = None;
        alarm.at = seen.at;
        if alarm.state == AlarmState::Acknowledged {
            alarm.state = AlarmState::Normal;
            return self.alarm.take();
        }
        alarm.state = AlarmState::ReturnedUnacknowledged;
        Some(alarm.clone())
    }

    /// Somebody has seen it; the alarm as it stands afterwards if that changed anything.
    pub fn acknowledge(&mut self, id: RecordId, who: &str, at: Time) -> Option<Alarm> {
        let alarm = self.alarm.as_mut().filter(|a| a.id == id)?;
        let next = match alarm.state {
            AlarmState::Unacknowledged => AlarmState::Acknowledged,
            AlarmState::ReturnedUnacknowledged => AlarmState::Normal,
            AlarmState::Acknowledged | AlarmState::Normal => return None,
        };
        alarm.state = next;
        alarm.at = at;
        alarm.acknowledged_by = Some(who.to_owned());
        if next == AlarmState::Normal { self.alarm.take() } else { Some(alarm.clone()) }
    }
}

#[cfg(test)]
mod tests;
