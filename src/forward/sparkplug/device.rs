//! One machine as a Sparkplug device: its metrics, how they stand, and what of it was told.

use serde_json::{Map, Value as Json};

use crate::mqtt::sparkplug::datatype::{BOOLEAN, DOUBLE, INT32, STRING};
use crate::mqtt::sparkplug::{Metric, Value, ms};
use crate::types::{Condition, MachineState, Time};

/// Aliases of one device; those of the next begin behind them.
pub const ALIASES: u64 = 32;

/// A value of ours.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    Null,
    Number(f64),
    Whole(i32),
    Truth(bool),
    Text(String),
}

/// Which record a metric comes from; each kind has its own order in time.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Verdict,
    Anomaly,
    Input,
    State,
}

/// Name, datatype, where it comes from and the member of the record's `data`.
const METRICS: [(&str, u32, Origin, &str); 19] = [
    ("Anomaly Score", DOUBLE, Origin::Verdict, "anomaly_score"),
    ("P Value", DOUBLE, Origin::Verdict, "p_value"),
    ("Threshold", DOUBLE, Origin::Verdict, "threshold"),
    ("Health", DOUBLE, Origin::Verdict, "health"),
    ("Remaining Life", DOUBLE, Origin::Verdict, "rul"),
    ("Class", STRING, Origin::Verdict, "class"),
    ("Prediction", INT32, Origin::Verdict, "prediction"),
    ("Prediction Reason", STRING, Origin::Verdict, "prediction_reason"),
    ("Top Channel", STRING, Origin::Verdict, "top_channel"),
    ("Alarm/Anomaly/Active", BOOLEAN, Origin::Anomaly, "active"),
    ("Alarm/Anomaly/State", STRING, Origin::Anomaly, "state"),
    ("Alarm/Anomaly/Severity", INT32, Origin::Anomaly, "severity"),
    ("Alarm/Anomaly/Message", STRING, Origin::Anomaly, "message"),
    ("Alarm/Input/Active", BOOLEAN, Origin::Input, "active"),
    ("Alarm/Input/State", STRING, Origin::Input, "state"),
    ("Alarm/Input/Severity", INT32, Origin::Input, "severity"),
    ("Alarm/Input/Message", STRING, Origin::Input, "message"),
    ("Light", STRING, Origin::State, "light"),
    ("Light Reason", STRING, Origin::State, "why"),
];

/// See the module.
pub struct Device {
    /// The first of its aliases.
    alias: u64,
    /// The newest values, by [`METRICS`], and when that was.
    now: Vec<(Held, Time)>,
    /// What was told last in this session.
    told: Vec<(Held, Time)>,
}

impl Device {
    /// Nothing is known of it; `number` is its place among the devices.
    pub fn new(number: u64) -> Device {
        let nothing = vec![(Held::Null, Time(0)); METRICS.len()];
        Device { alias: 1 + number * ALIASES, now: nothing.clone(), told: nothing }
    }

    /// All metrics with how they stand; from now on that is what was told.
    pub fn birth(&mut self, now: Time) -> Vec<Telling> {
        self.told.clone_from(&self.now);
        let first = self.alias;
        let one = |(i, (value, at)): (usize, &(Held, Time))| {
            let at = if at.0 == 0 { now } else { *at };
            Telling { alias: first + i as u64, value: value.clone(), at, historical: false, birth: Some(i) }
        };
        self.told.iter().enumerate().map(one).collect()
    }

    /// The machine's light.
    pub fn light(&mut self, light: MachineState, why: &str, at: Time) {
        let word = light.as_str();
        let data = Map::from_iter([("light".into(), Json::from(word)), ("why".into(), Json::from(why))]);
        self.stand(Origin::State, &data, at);
    }

    /// The time of its light.
    pub fn light_since(&self) -> Time {
        let mine = METRICS.iter().zip(&self.now).filter(|((_, _, source, _), _)| *source == Origin::State);
        mine.map(|(_, (_, at))| *at).max().unwrap_or_default()
    }

    /// A record's `data` is how things stand at `at`, unless something newer is known.
    pub fn stand(&mut self, from: Origin, data: &Map<String, Json>, at: Time) {
        for (i, (_, datatype, source, key)) in METRICS.iter().enumerate() {
            if *source == from && at >= self.now[i].1 {
                self.now[i] = (held(*datatype, data.get(*key)), at);
            }
        }
    }

    /// What of a kind has changed since it was last told.
    pub fn changes(&mut self, from: Origin) -> Vec<Telling> {
        let mut out = Vec::new();
        for (i, (_, _, source, _)) in METRICS.iter().enumerate() {
            if *source == from && self.now[i].0 != self.told[i].0 {
                self.told[i] = self.now[i].clone();
                let (value, at) = self.now[i].clone();
                out.push(self.telling(i, value, at, false));
            }
        }
        out
    }

    fn telling(&self, i: usize, value: Held, at: Time, historical: bool) -> Telling {
        Telling { alias: self.alias + i as u64, value, at, historical, birth: None }
    }

    /// A stored record's values: as history where `at` is not newer than what was told, else what has
    /// changed.
    pub fn record(&mut self, from: Origin, data: &Map<String, Json>, at: Time, stored_long: bool) -> Vec<Telling> {
        let newest = self.newest(from);
        let historical = stored_long || newest.is_some_and(|told| at <= told);
        self.stand(from, data, at);
        let mut out = Vec::new();
        for (i, (_, datatype, source, key)) in METRICS.iter().enumerate() {
            if *source != from {
                continue;
            }
            let value = held(*datatype, data.get(*key));
            if historical {
                // What the birth or an earlier message has told at that very time is no news.
                if value != Held::Null && self.told[i] != (value.clone(), at) {
                    out.push(self.telling(i, value, at, true));
                }
            } else {
                if self.told[i].0 != value {
                    out.push(self.telling(i, value.clone(), at, false));
                }
                self.told[i] = (value, at);
            }
        }
        out
    }

    /// The newest time told of a kind in this session.
    fn newest(&self, from: Origin) -> Option<Time> {
        let mine = METRICS.iter().zip(&self.told).filter(|((_, _, source, _), _)| *source == from);
        mine.map(|(_, (_, at))| *at).max().filter(|at| at.0 != 0)
    }
}

/// A value on its way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Telling {
    alias: u64,
    value: Held,
    at: Time,
    historical: bool,
    /// Which of [`METRICS`], where name and datatype are told too.
    birth: Option<usize>,
}

impl Telling {
    /// As a metric.
    pub fn metric(&self) -> Metric<'_> {
        let value = match &self.value {
            Held::Null => Value::None,
            Held::Number(n) => Value::Double(*n),
            Held::Whole(n) => Value::Int(*n as u32),
            Held::Truth(b) => Value::Boolean(*b),
            Held::Text(t) => Value::Text(t),
        };
        Metric {
            name: self.birth.map(|i| METRICS[i].0),
            datatype: self.birth.map(|i| METRICS[i].1),
            alias: Some(self.alias),
            timestamp: Some(ms(self.at)),
            is_historical: self.historical,
            is_null: self.value == Held::Null,
            value,
            ..Metric::default()
        }
    }
}

/// Which alarm a condition's metrics are.
pub fn of_condition(condition: Condition) -> Origin {
    match condition {
        Condition::Anomaly => Origin::Anomaly,
        Condition::Input => Origin::Input,
    }
}

fn held(datatype: u32, value: Option<&Json>) -> Held {
    let held = value.and_then(|v| match datatype {
        DOUBLE => v.as_f64().map(Held::Number),
        INT32 => v.as_i64().and_then(|n| i32::try_from(n).ok()).map(Held::Whole),
        BOOLEAN => v.as_bool().map(Held::Truth),
        _ => v.as_str().map(|t| Held::Text(t.to_owned())),
    });
    held.unwrap_or(Held::Null)
}
