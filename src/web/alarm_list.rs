//! The alarms that the dashboard lists: bounded, each with the version of its last change.

use std::collections::HashSet;
use std::sync::Arc;

use crate::types::{Alarm, AlarmState, Care, Condition, RecordId, SecondOpinion};

/// Alarms listed. Those that are over make room first.
pub const MAX_ALARMS: usize = 500;

/// One alarm.
#[derive(Clone, Debug)]
pub struct Listed {
    /// As it stands.
    pub alarm: Arc<Alarm>,
    /// The picture's version at its last change.
    pub version: u64,
}

/// The alarms listed, in no particular order.
#[derive(Debug, Default)]
pub struct AlarmList(Vec<Listed>);

impl AlarmList {
    /// All of them.
    pub fn as_slice(&self) -> &[Listed] {
        &self.0
    }

    /// Takes in a transition; `false` when an alarm that is not normal had to make room.
    pub fn apply(&mut self, alarm: &Arc<Alarm>, version: u64) -> bool {
        // Shelving and suppression pass to the new alarm. An earlier one of the same condition is over.
        let earlier = |a: &Alarm| a.machine == alarm.machine && a.condition == alarm.condition && a.id != alarm.id;
        self.end_where(earlier, version);
        if let Some(known) = self.0.iter_mut().find(|l| l.alarm.id == alarm.id) {
            *known = Listed { alarm: alarm.clone(), version };
            return true;
        }
        let mut complete = true;
        if self.0.len() >= MAX_ALARMS {
            // Those that are over go first, then the mildest, then the oldest.
            let least = |l: &Listed| {
                let a = &l.alarm;
                (a.state != AlarmState::Normal, a.state.is_active(), a.severity, a.at)
            };
            if let Some(i) = (0..self.0.len()).min_by_key(|i| least(&self.0[*i])) {
                complete = self.0.swap_remove(i).alarm.state == AlarmState::Normal;
            }
        }
        self.0.push(Listed { alarm: alarm.clone(), version });
        complete
    }

    /// Ends all alarms that are not among these, which are all that stand.
    pub fn end_all_but(&mut self, standing: &HashSet<RecordId>, version: u64) {
        self.end_where(|a| !standing.contains(&a.id), version);
    }

    /// Whether the list has this alarm exactly as it is here.
    pub fn has(&self, alarm: &Alarm) -> bool {
        self.0.iter().any(|l| *l.alarm == *alarm)
    }

    /// Adds a second opinion to the alarm it is about.
    pub fn opinion(&mut self, machine: &str, opinion: &SecondOpinion, version: u64) {
        let about = |l: &&mut Listed| {
            let a = &l.alarm;
            let mine = &*a.machine == machine && a.condition == Condition::Anomaly && a.state.is_active();
            mine && a.since <= opinion.at
        };
        if let Some(listed) = self.0.iter_mut().find(about) {
            let mut alarm = Alarm::clone(&listed.alarm);
            alarm.care.opinion = Some(opinion.clone());
            *listed = Listed { alarm: Arc::new(alarm), version };
        }
    }

    fn end_where(&mut self, wanted: impl Fn(&Alarm) -> bool, version: u64) {
        let stands = |a: &Alarm| a.care.is_quiet() || a.state != AlarmState::Normal;
        for listed in self.0.iter_mut().filter(|l| stands(&l.alarm) && wanted(&l.alarm)) {
            let mut over = Alarm::clone(&listed.alarm);
            over.state = AlarmState::Normal;
            let Care { explanation, opinion, .. } = over.care;
            over.care = Care { explanation, opinion, ..Care::default() };
            *listed = Listed { alarm: Arc::new(over), version };
        }
    }
}
