//! What dashboards should know of each machine, and what of it is still to be sent. Only the
//! latest counts, so an absent broker costs no more memory than a present one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::messages::{self, Topics, flat};
use crate::mqtt::{Outgoing, Qos};
use crate::types::{Alarm, AlarmState, Condition, MachineState, Name, RecordId, Time};

/// Machines that are published; those beyond are counted and left out.
pub const MAX_MACHINES: usize = 10_000;

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Discovery,
    State,
    Alarm,
    Opinion,
}

const ALL: [What; 4] = [What::Discovery, What::State, What::Alarm, What::Opinion];

#[derive(PartialEq)]
struct State {
    light: MachineState,
    since: Time,
    why: String,
}

#[derive(Default)]
struct Machine {
    state: Option<State>,
    alarms: BTreeMap<Condition, (Alarm, Arc<str>)>,
    opinion: Option<Arc<str>>,
}

/// See the module.
pub struct Standing {
    topics: Topics,
    discovery: bool,
    machines: BTreeMap<Name, Machine>,
    due: BTreeSet<(What, Name)>,
}

impl Standing {
    pub fn new(topics: Topics, discovery: bool) -> Standing {
        Standing { topics, discovery, machines: BTreeMap::new(), due: BTreeSet::new() }
    }

    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Notes that a machine exists; `false` when there are too many.
    pub fn meet(&mut self, machine: &Name) -> bool {
        if self.machines.contains_key(machine) {
            return true;
        }
        if self.machines.len() >= MAX_MACHINES {
            return false;
        }
        self.machines.insert(machine.clone(), Machine::default());
        if self.discovery {
            self.due.insert((What::Discovery, machine.clone()));
        }
        true
    }

    /// A machine's alarm changed.
    pub fn alarm(&mut self, alarm: &Alarm, data: Arc<str>) {
        if let Some(m) = self.machines.get_mut(&alarm.machine) {
            m.alarms.insert(alarm.condition, (alarm.clone(), data));
            self.due.insert((What::Alarm, alarm.machine.clone()));
        }
    }

    /// A larger model has spoken about a machine.
    pub fn opinion(&mut self, machine: &Name, data: Arc<str>) {
        if let Some(m) = self.machines.get_mut(machine) {
            m.opinion = Some(data);
            self.due.insert((What::Opinion, machine.clone()));
        }
    }

    /// A machine's state changed.
    pub fn state(&mut self, machine: &Name, light: MachineState, since: Time, why: &str) {
        if let Some(m) = self.machines.get_mut(machine) {
            m.state = Some(State { light, since, why: why.to_owned() });
            self.due.insert((What::State, machine.clone()));
        }
    }

    /// The engine has not been heard since `at`: all machines that are not in alarm need a person.
    pub fn engine_is_silent(&mut self, at: Time) {
        let why = format!("the engine has not been heard since {at}");
        let known = |(name, m): (&Name, &Machine)| m.state.as_ref().map(|s| (name.clone(), s.light));
        let lights: Vec<(Name, MachineState)> = self.machines.iter().filter_map(known).collect();
        for (name, _) in lights.iter().filter(|(_, light)| *light != MachineState::Red) {
            self.state(name, MachineState::Amber, at, &why);
        }
    }

    /// A machine's present state, whenever it began. It is due where it differs from what is known.
    pub fn present_state(&mut self, machine: &Name, light: MachineState, at: Time, why: &str) {
        let known = self.machines.get(machine).and_then(|m| m.state.as_ref()).filter(|s| s.light == light);
        match known {
            Some(known) if known.why == why => {}
            Some(known) => self.state(machine, light, known.since, why),
            None => self.state(machine, light, at, why),
        }
    }

    /// An alarm as it stands at present. It is due where it differs from what is known.
    pub fn present_alarm(&mut self, alarm: &Alarm, data: &Arc<str>) {
        let known = self.machines.get(&alarm.machine).and_then(|m| m.alarms.get(&alarm.condition));
        if known.is_none_or(|(a, _)| a != alarm) {
            self.alarm(alarm, data.clone());
        }
    }

    /// Ends all alarms that are not among these, which are all that stand.
    pub fn end_alarms_but(&mut self, standing: &HashSet<RecordId>) {
        for (name, machine) in &mut self.machines {
            let over = |a: &Alarm| a.state != AlarmState::Normal && !standing.contains(&a.id);
            for (alarm, data) in machine.alarms.values_mut().filter(|(a, _)| over(a)) {
                alarm.state = AlarmState::Normal;
                *data = ended(data);
                self.due.insert((What::Alarm, name.clone()));
            }
        }
    }

    /// The broker is new to us: everything is due.
    pub fn all_again(&mut self) {
        for machine in self.machines.keys() {
            self.due.extend(ALL.map(|what| (what, machine.clone())));
        }
    }

    /// Home Assistant has started: the announcements are due.
    pub fn announce_again(&mut self) {
        self.due.extend(self.machines.keys().map(|m| (What::Discovery, m.clone())));
    }

    /// Whether anything is due.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next message to send, until [`Standing::sent`] says that it is.
    pub fn due(&mut self) -> Option<Outgoing> {
        loop {
            let (what, machine) = self.due.first()?;
            if let Some(message) = self.message(*what, machine) {
                return Some(message);
            }
            self.due.pop_first();
        }
    }

    /// The message that [`Standing::due`] gave is on its way.
    pub fn sent(&mut self) {
        self.due.pop_first();
    }

    fn message(&self, what: What, machine: &Name) -> Option<Outgoing> {
        let m = self.machines.get(machine)?;
        let retained = |level: &str, payload: String| Outgoing {
            topic: self.topics.of(machine, level),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: true,
        };
        match what {
            What::Discovery => self.discovery.then(|| self.topics.discovery(machine)),
            What::State => {
                let state = m.state.as_ref()?;
                Some(retained("state", messages::state(state.light, state.since, &state.why)))
            }
            What::Opinion => Some(retained("opinion", flat(m.opinion.as_ref()?)?)),
            What::Alarm => {
                // One topic per machine: an alarm that stands hides one that is over.
                let first = m.alarms.values().max_by_key(|(a, _)| (a.state.is_active(), a.severity, a.at));
                Some(retained("alarm", flat(&first?.1)?))
            }
        }
    }
}

/// An alarm record's `data` once the alarm is over.
fn ended(data: &str) -> Arc<str> {
    let Ok(Value::Object(mut data)) = serde_json::from_str(data) else { return data.into() };
    data.insert("state".into(), json!(AlarmState::Normal));
    data.insert("active".into(), json!(false));
    data.remove("shown_state");
    Value::Object(data).to_string().into()
}
