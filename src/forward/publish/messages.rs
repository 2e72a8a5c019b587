//! Topics and payloads for dashboards. Payloads are flat JSON with fixed types, since that is what
//! Grafana, Node-RED and historians chart without a word of configuration.

use serde_json::{Map, Value, json};

use crate::mqtt::{Outgoing, Qos};
use crate::types::{MachineState, Time};

/// Topics below `{prefix}/{site}/{agent}`.
pub struct Topics {
    root: String,
    agent: String,
}

impl Topics {
    pub fn new(prefix: &str, site: &str, agent: &str) -> Topics {
        let root = [levels(prefix), levels(site), level(agent)].into_iter().filter(|l| !l.is_empty());
        Topics { root: root.collect::<Vec<_>>().join("/"), agent: agent.to_owned() }
    }

    /// A machine's topic.
    pub fn of(&self, machine: &str, what: &str) -> String {
        format!("{}/{}/{what}", self.root, level(machine))
    }

    /// Where commands are taken.
    pub fn command(&self) -> String {
        format!("{}/command", self.root)
    }

    /// `online` or `offline`.
    pub fn status(&self, payload: &str) -> Outgoing {
        Outgoing {
            topic: format!("{}/status", self.root),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: true,
        }
    }

    /// What tells Home Assistant of a machine.
    pub fn discovery(&self, machine: &str) -> Outgoing {
        let id = format!("andon_{}_{}", word(&self.agent), word(machine));
        let component = |name: &str, more: Value| {
            let mut c = json!({"unique_id": format!("{id}_{name}"), "state_topic": self.of(machine, "verdict")});
            merge(&mut c, more);
            (format!("{id}_{name}"), c)
        };
        let score = json!({"p": "sensor", "name": "Anomaly score", "state_class": "measurement",
            "value_template": "{{ value_json.anomaly_score | default(none) }}"});
        let health = json!({"p": "sensor", "name": "Health", "state_class": "measurement", "unit_of_measurement": "%",
            "value_template": "{{ (value_json.health * 100) | round(1) if value_json.health is defined else none }}"});
        let problem = json!({"p": "binary_sensor", "name": "Problem", "device_class": "problem",
            "state_topic": self.of(machine, "state"), "json_attributes_topic": self.of(machine, "alarm"),
            "value_template": "{{ 'ON' if value_json.state == 'red' else 'OFF' }}"});
        let states = MachineState::ALL.map(MachineState::as_str);
        let state = json!({"p": "sensor", "name": "State", "device_class": "enum", "options": states,
            "state_topic": self.of(machine, "state"), "json_attributes_topic": self.of(machine, "state"),
            "value_template": "{{ value_json.state }}"});
        let components: Map<String, Value> =
            [("score", score), ("health", health), ("problem", problem), ("state", state)]
                .into_iter()
                .map(|(name, more)| component(name, more))
                .collect();
        let payload = json!({
            "dev": {"ids": id, "name": machine, "mf": "andon", "mdl": "monitored machine"},
            "o": {"name": "andon", "sw": env!("CARGO_PKG_VERSION")},
            "cmps": components,
            "availability_topic": format!("{}/status", self.root),
            "qos": 1,
        });
        Outgoing {
            topic: format!("homeassistant/device/{id}/config"),
            payload: payload.to_string().into(),
            qos: Qos::AtLeastOnce,
            retain: true,
        }
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// A machine's light as a payload.
pub fn state(light: MachineState, since: Time, why: &str) -> String {
    json!({"state": light, "since": since.to_string(), "why": why}).to_string()
}

/// A record's `data` as flat JSON: lists and nulls are left out, members of objects are joined by
/// `_`, and numbers keep a decimal point even when whole, except those that count. `None` when it
/// is not a JSON object.
pub fn flat(data: &str) -> Option<String> {
    let Ok(Value::Object(data)) = serde_json::from_str(data) else { return None };
    let mut out = Map::new();
    for (key, value) in data {
        match value {
            Value::Object(inner) => {
                for (name, value) in inner {
                    out.extend(scalar(&name, value).map(|v| (format!("{key}_{name}"), v)));
                }
            }
            value => out.extend(scalar(&key, value).map(|v| (key, v))),
        }
    }
    Some(Value::Object(out).to_string())
}

fn scalar(key: &str, value: Value) -> Option<Value> {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        Value::Number(n) if !matches!(key, "prediction" | "severity") => n.as_f64().map(Value::from),
        scalar => Some(scalar),
    }
}

/// One topic level: what would split it or act as a wildcard becomes `_`.
pub fn level(text: &str) -> String {
    let plain =
        |c: char| if matches!(c, '/' | '+' | '#' | '$') || c.is_whitespace() || c.is_control() { '_' } else { c };
    let level: String = text.chars().map(plain).collect();
    if level.is_empty() { "_".to_owned() } else { level }
}

/// Levels joined by `/`; empty ones fall out.
pub fn levels(text: &str) -> String {
    text.split('/').filter(|l| !l.is_empty()).map(level).collect::<Vec<_>>().join("/")
}

/// Letters, digits, `-` and `_`, as ids in Home Assistant have to be.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}
