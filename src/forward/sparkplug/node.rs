//! The edge node that this agent is: session and sequence numbers, births, data and deaths. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::device::{Device, Origin, Telling, of_condition};
use crate::mqtt::sparkplug::datatype::{BOOLEAN, INT64, STRING};
use crate::mqtt::sparkplug::{BD_SEQ, Metric, Payload, REBIRTH, Topic, Value, Verb, encode, ms};
use crate::mqtt::{Outgoing, Qos};
use crate::types::{Condition, Kind, Live, Name, Record, Time};

/// Machines that are told of; those beyond are counted and left out.
pub const MAX_MACHINES: usize = 10_000;
/// A record older than this at the birth was stored for long, so it cannot be how things stand.
const PRESENT: Duration = Duration::from_secs(60);

/// See the module.
pub struct Node {
    group: String,
    name: String,
    devices: BTreeMap<Name, Device>,
    seq: u8,
    /// Counts connections; `None` before the first.
    bd_seq: Option<u8>,
    born_at: Option<Time>,
}

impl Node {
    /// Not connected yet.
    pub fn new(group: &str, agent_id: &str) -> Node {
        let (group, name) = (level(group), level(agent_id));
        Node { group, name, devices: BTreeMap::new(), seq: 0, bd_seq: None, born_at: None }
    }

    /// Group and node, for people.
    pub fn name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// The topic of commands to it.
    pub fn commands(&self) -> String {
        Topic::write(&self.group, Verb::NCmd, &self.name, None)
    }

    /// A new connection begins: births and deaths of the one before no longer count.
    pub fn connecting(&mut self) {
        self.bd_seq = Some(self.bd_seq.map_or(0, |n| n.wrapping_add(1)));
        self.born_at = None;
    }

    /// The node's death, for the last will and for a goodbye that is meant.
    pub fn death(&self, now: Time) -> Outgoing {
        let payload = Payload { timestamp: Some(ms(now)), metrics: vec![self.bd_seq(now)], ..Payload::default() };
        let topic = Topic::write(&self.group, Verb::NDeath, &self.name, None);
        Outgoing { topic, payload: encode(&payload), qos: Qos::AtLeastOnce, retain: false }
    }

    fn bd_seq(&self, now: Time) -> Metric<'static> {
        Metric {
            name: Some(BD_SEQ),
            datatype: Some(INT64),
            timestamp: Some(ms(now)),
            value: Value::Long(u64::from(self.bd_seq.unwrap_or(0))),
            ..Metric::default()
        }
    }

    /// The births of the node and of all its devices; sequence numbers begin anew.
    pub fn births(&mut self, now: Time) -> Vec<Outgoing> {
        self.seq = 0;
        self.born_at = Some(now);
        let own = |name, datatype, value| Metric {
            name: Some(name),
            datatype: Some(datatype),
            timestamp: Some(ms(now)),
            value,
            ..Metric::default()
        };
        let metrics = vec![
            self.bd_seq(now),
            own(REBIRTH, BOOLEAN, Value::Boolean(false)),
            own("Properties/Software", STRING, Value::Text("andon")),
            own("Properties/Version", STRING, Value::Text(env!("CARGO_PKG_VERSION"))),
        ];
        let topic = Topic::write(&self.group, Verb::NBirth, &self.name, None);
        let mut out = vec![self.message(topic, now, metrics)];
        let machines: Vec<Name> = self.devices.keys().cloned().collect();
        out.extend(machines.iter().filter_map(|m| self.device_birth(m, now)));
        out
    }

    fn device_birth(&mut self, machine: &Name, now: Time) -> Option<Outgoing> {
        let told = self.devices.get_mut(machine)?.birth(now);
        Some(self.tell(Verb::DBirth, machine, &told, now))
    }

    fn tell(&mut self, verb: Verb, machine: &str, told: &[Telling], now: Time) -> Outgoing {
        let topic = Topic::write(&self.group, verb, &self.name, Some(&level(machine)));
        self.message(topic, now, told.iter().map(Telling::metric).collect())
    }

    /// A message in its place in the sequence.
    fn message(&mut self, topic: String, now: Time, metrics: Vec<Metric<'_>>) -> Outgoing {
        let payload = Payload { timestamp: Some(ms(now)), seq: Some(u64::from(self.seq)), uuid: None, metrics };
        self.seq = self.seq.wrapping_add(1);
        Outgoing { topic, payload: encode(&payload), qos: Qos::AtMostOnce, retain: false }
    }

    /// Notes a machine: `Ok(true)` when it is new, `Err` when there are too many.
    fn meet(&mut self, machine: &Name) -> Result<bool, ()> {
        if self.devices.contains_key(machine) {
            return Ok(false);
        }
        if self.devices.len() >= MAX_MACHINES {
            return Err(());
        }
        self.devices.insert(machine.clone(), Device::new(self.devices.len() as u64));
        Ok(true)
    }

    /// Takes how things stand from what is live, and gives what is to be told at once while the node is
    /// born: the birth of a machine that is new, and its light. `None` when there are too many machines.
    pub fn news(&mut self, news: &Live, now: Time) -> Option<(Option<Outgoing>, Option<Outgoing>)> {
        let machine = match news {
            Live::Step { .. } | Live::Flood(_) | Live::Opinion(..) | Live::Heartbeat(_) | Live::Snapshot(_) => {
                return Some((None, None));
            }
            Live::Verdict(verdict, _) => &verdict.machine,
            Live::Alarm(alarm, _) => &alarm.machine,
            Live::State { machine, .. } => machine,
        };
        let is_new = self.meet(machine).ok()?;
        let device = self.devices.get_mut(machine)?;
        match news {
            Live::Verdict(verdict, data) => stand(device, Origin::Verdict, data, verdict.at),
            Live::Alarm(alarm, data) => stand(device, of_condition(alarm.condition), data, alarm.at),
            Live::State { at, light, why, .. } => device.light(*light, why, *at),
            Live::Step { .. } | Live::Flood(_) | Live::Opinion(..) | Live::Heartbeat(_) | Live::Snapshot(_) => {}
        }
        if self.born_at.is_none() {
            return Some((None, None));
        }
        if is_new {
            return Some((self.device_birth(machine, now), None));
        }
        let changes = self.devices.get_mut(machine)?.changes(Origin::State);
        let told = (!changes.is_empty()).then(|| self.tell(Verb::DData, machine, &changes, now));
        Some((None, told))
    }

    /// The same for an event that is part of a [`Live::Snapshot`]: a state counts whatever its time is.
    pub fn present(&mut self, event: &Live, now: Time) -> Option<(Option<Outgoing>, Option<Outgoing>)> {
        let Live::State { machine, at, light, why } = event else { return self.news(event, now) };
        let known = self.devices.get(machine).map(Device::light_since);
        let at = known.map_or(*at, |known| known.max(*at));
        self.news(&Live::State { machine: machine.clone(), at, light: *light, why: why.clone() }, now)
    }

    /// The messages that tell a stored record: none, its data, or before it the birth of its machine.
    pub fn record(&mut self, record: &Record, now: Time) -> Vec<Outgoing> {
        let Ok(Json::Object(data)) = serde_json::from_str(&record.data) else { return Vec::new() };
        let origin = match record.kind {
            Kind::Verdict => Origin::Verdict,
            Kind::Alarm if is_input(&data) => Origin::Input,
            Kind::Alarm => Origin::Anomaly,
            _ => return Vec::new(),
        };
        let Ok(is_new) = self.meet(&record.subject) else { return Vec::new() };
        let mut out = Vec::new();
        if is_new {
            out.extend(self.device_birth(&record.subject, now));
        }
        let stored_long = self.born_at.is_some_and(|born| born > record.at.plus(PRESENT));
        let Some(device) = self.devices.get_mut(&record.subject) else { return out };
        let told = device.record(origin, &data, record.at, stored_long);
        if !told.is_empty() {
            out.push(self.tell(Verb::DData, &record.subject, &told, now));
        }
        out
    }
}

fn is_input(data: &Map<String, Json>) -> bool {
    data.get("condition").and_then(Json::as_str) == Some(Condition::Input.as_str())
}

fn stand(device: &mut Device, origin: Origin, data: &str, at: Time) {
    if let Ok(Json::Object(data)) = serde_json::from_str(data) {
        device.stand(origin, &data, at);
    }
}

/// Text as one level of a topic.
fn level(text: &str) -> String {
    let plain = |c: char| if matches!(c, '/' | '+' | '#') || c.is_control() { '-' } else { c };
    let level: String = text.chars().map(plain).collect();
    if level.is_empty() { "-".to_owned() } else { level }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
