//! What the dashboard knows of every machine: plain state, fed one event at a time, clock passed in.
//! Every collection here has a bound; what does not fit is counted and shown. Every change raises the
//! version, and each part of a machine and each alarm keeps the version of its last change.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::alarm_list::{AlarmList, Listed};
use super::course::Course;
use super::machine::{Machine, Signal, give_plots, held_against};
use super::ring::{Ring, ScorePoint};
use crate::types::{Alarm, Cause, Flood, Live, MachineState, Name, Quality, Reason, SecondOpinion, Time, Verdict};

/// Machines shown. Further ones are counted as not shown.
pub const MAX_MACHINES: usize = 10_000;
/// Signals shown for one machine.
pub const MAX_SIGNALS: usize = 64;
/// Signals shown in all, at about 150 bytes each.
pub const MAX_SIGNALS_TOTAL: usize = 100_000;
/// Plots that can be kept at a time, over all machines: at most 2,048 × 600 × 24 bytes = 29 MB.
/// First come, first served; opening a machine's page takes the plots of the one looked at longest ago.
pub const MAX_RINGS: usize = 2_048;
/// Courses of health and useful life that can be kept at a time: at most 2,048 × 360 × 40 bytes = 30 MB.
pub const MAX_COURSES: usize = 2_048;
/// Longer names are not shown: topics may carry names of 64 KiB.
pub const MAX_NAME_BYTES: usize = 512;
/// Longer verdict records are not kept for the page.
pub const MAX_VERDICT_BYTES: usize = 16 * 1024;

const MAX_WHY_CHARS: usize = 200;
pub use crate::types::ENGINE_SILENT_AFTER;

/// How many machines show which light.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Lights {
    /// Judged and normal.
    pub green: usize,
    /// In need of a person.
    pub amber: usize,
    /// In alarm.
    pub red: usize,
    /// Watched, not judged.
    pub white: usize,
    /// Not running.
    pub off: usize,
}

/// All that is shown. See the module's constants for its bounds.
#[derive(Debug, Default)]
pub struct Picture {
    machines: BTreeMap<Name, Machine>,
    alarms: AlarmList,
    version: u64,
    flood_version: u64,
    version_of_removal: u64,
    /// When the engine was last heard, by the wall clock and by the monotonic one.
    engine_heard: Option<(Time, Instant)>,
    /// Since when the engine is silent, by the wall clock.
    silent_since: Option<Time>,
    fresh: VecDeque<Name>,
    signals: usize,
    rings: usize,
    courses: usize,
    looks: u64,
    /// The flood of alarms, while there is one.
    pub flood: Option<Flood>,
    /// Events about machines, signals or alarms that found no room.
    pub not_shown: u64,
    /// Events missed because they came faster than they could be taken.
    pub lagged: u64,
}

impl Picture {
    /// Takes in one event.
    pub fn apply(&mut self, event: &Live, now: Time) {
        if matches!(event, Live::Heartbeat(_)) {
            return;
        }
        self.version += 1;
        match event {
            Live::Snapshot(events) => self.snapshot(events, now),
            event => self.apply_one(event, now),
        }
    }

    fn apply_one(&mut self, event: &Live, now: Time) {
        match event {
            Live::Step { machine, at, values } => self.step(machine, *at, values, now),
            Live::Verdict(verdict, data) => self.verdict(verdict, data, now),
            Live::Alarm(alarm, _) => self.alarm(alarm),
            Live::State { machine, at, light, why } => self.state(machine, *at, *light, why, now),
            Live::Opinion(machine, opinion, _) => self.opinion(machine, opinion),
            Live::Flood(flood) => self.set_flood(flood.as_ref()),
            Live::Heartbeat(_) | Live::Snapshot(_) => {}
        }
    }

    /// Takes in the present state of everything. Only what differs is changed; what is not in it is over.
    fn snapshot(&mut self, events: &[Live], now: Time) {
        let (mut machines, mut alarms, mut flood) = (HashSet::new(), HashSet::new(), None);
        for event in events {
            match event {
                Live::State { machine, .. } => {
                    machines.insert(machine.clone());
                }
                Live::Alarm(alarm, _) => {
                    alarms.insert(alarm.id);
                }
                Live::Flood(present) => flood = present.as_ref(),
                _ => {}
            }
        }
        self.alarms.end_all_but(&alarms, self.version);
        let gone: Vec<Name> = self.machines.keys().filter(|name| !machines.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        self.fresh.retain(|name| machines.contains(name));
        for event in events {
            match event {
                Live::Flood(_) => {}
                Live::Alarm(alarm, _) if self.alarms.has(alarm) => {}
                event => self.apply_one(event, now),
            }
        }
        self.set_flood(flood);
    }

    /// The engine has sent something; `true` when it was silent until now.
    pub fn hear_engine(&mut self, now: Time, monotonic: Instant) -> bool {
        self.engine_heard = Some((now, monotonic));
        let was_silent = self.silent_since.take().is_some();
        if was_silent {
            self.touch_all_states();
        }
        was_silent
    }

    /// Looks whether the engine has become silent; `true` when it has just now. Before its first event it
    /// is not: there are no machines yet.
    pub fn watch_engine(&mut self, monotonic: Instant) -> bool {
        let Some((at, heard)) = self.engine_heard else { return false };
        if self.silent_since.is_some() || monotonic.saturating_duration_since(heard) < ENGINE_SILENT_AFTER {
            return false;
        }
        self.silent_since = Some(at);
        self.touch_all_states();
        true
    }

    fn touch_all_states(&mut self) {
        self.version += 1;
        self.machines.values_mut().for_each(|m| m.versions.state = self.version);
    }

    /// The number of changes so far.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version at which the flood began, grew or ended.
    pub fn flood_version(&self) -> u64 {
        self.flood_version
    }

    /// The version at which a machine was last removed.
    pub fn version_of_removal(&self) -> u64 {
        self.version_of_removal
    }

    /// Since when the engine is silent, if it is.
    pub fn silent_since(&self) -> Option<Time> {
        self.silent_since
    }

    /// The state of a machine that is shown. While the engine is silent, only red is known to hold.
    pub fn light(&self, m: &Machine) -> MachineState {
        match self.silent_since {
            Some(_) if m.light != MachineState::Red => MachineState::Amber,
            _ => m.light,
        }
    }

    /// Why it is in the state that is shown.
    pub fn why<'a>(&self, m: &'a Machine) -> Cow<'a, str> {
        match self.silent_since {
            None => Cow::Borrowed(&m.why),
            Some(at) if m.light == MachineState::Red => {
                Cow::Owned(format!("{}; the engine has not been heard since {at}", m.why))
            }
            Some(at) => Cow::Owned(format!("the engine has not been heard since {at}")),
        }
    }

    /// Since when it is in the state that is shown.
    pub fn since(&self, m: &Machine) -> Time {
        self.silent_since.filter(|_| m.light != self.light(m)).unwrap_or(m.since)
    }

    /// All machines by name.
    pub fn machines(&self) -> &BTreeMap<Name, Machine> {
        &self.machines
    }

    /// The alarms listed, in no particular order.
    pub fn alarms(&self) -> &[Listed] {
        self.alarms.as_slice()
    }

    /// Counts by the state that is shown.
    pub fn lights(&self) -> Lights {
        let mut n = Lights::default();
        for m in self.machines.values() {
            match self.light(m) {
                MachineState::Green => n.green += 1,
                MachineState::Amber => n.amber += 1,
                MachineState::Red => n.red += 1,
                MachineState::White => n.white += 1,
                MachineState::Off => n.off += 1,
            }
        }
        n
    }

    /// Plots held now.
    pub fn rings(&self) -> usize {
        self.rings
    }

    /// The next machine with news, and whether it has a new step and a new verdict.
    pub fn take_fresh(&mut self) -> Option<(Name, bool, bool)> {
        let name = self.fresh.pop_front()?;
        let m = self.machines.get_mut(&name)?;
        let news = (m.fresh_step, m.fresh_verdict);
        (m.fresh_step, m.fresh_verdict) = (false, false);
        Some((name, news.0, news.1))
    }

    /// Somebody begins to follow this machine: how it stands counts as news.
    pub fn tell_again(&mut self, name: &Name) {
        let Some(m) = self.machines.get_mut(name) else { return };
        let (step, verdict) = (m.at != Time::default(), m.verdict.is_some());
        if (step || verdict) && !m.fresh_step && !m.fresh_verdict {
            self.fresh.push_back(name.clone());
        }
        m.fresh_step |= step;
        m.fresh_verdict |= verdict;
    }

    /// Somebody looks at this machine: it gets plots, at the cost of the one looked at longest ago.
    pub fn look_at(&mut self, name: &str) {
        self.looks += 1;
        let Some(m) = self.machines.get_mut(name) else { return };
        m.wanted = self.looks;
        let needed = 1 + m.signals.len();
        let own = m.rings();
        while self.rings - own + needed > MAX_RINGS {
            let with_plots = self.machines.iter().filter(|(n, m)| m.scores.is_some() && n.as_ref() != name);
            let Some(oldest) = with_plots.min_by_key(|(_, m)| m.wanted).map(|(n, _)| n.clone()) else { break };
            self.forget_plots(&oldest);
        }
        if let Some(m) = self.machines.get_mut(name) {
            self.rings += give_plots(m, MAX_RINGS - self.rings);
        }
        self.make_room_for_course(name);
    }

    /// Where all courses are given away, the machine looked at longest ago gives its own up.
    fn make_room_for_course(&mut self, name: &str) {
        if self.courses < MAX_COURSES || self.machines.get(name).is_none_or(|m| m.course.is_some()) {
            return;
        }
        let with_course = self.machines.values_mut().filter(|m| m.course.is_some());
        if let Some(oldest) = with_course.min_by_key(|m| m.wanted) {
            oldest.course = None;
            self.courses -= 1;
        }
    }

    fn forget_plots(&mut self, name: &str) {
        if let Some(m) = self.machines.get_mut(name) {
            self.rings -= m.rings();
            m.scores = None;
            m.signals.values_mut().for_each(|s| s.points = None);
        }
    }

    /// Makes room for a machine not seen before; false where there is none.
    fn admit(&mut self, name: &Name, now: Time) -> bool {
        if self.machines.contains_key(name) {
            return true;
        }
        if self.machines.len() >= MAX_MACHINES || name.len() > MAX_NAME_BYTES {
            self.not_shown += 1;
            return false;
        }
        let mut machine = Machine::new(now);
        machine.versions.state = self.version;
        self.rings += give_plots(&mut machine, MAX_RINGS - self.rings);
        self.machines.insert(name.clone(), machine);
        true
    }

    fn step(&mut self, name: &Name, at: Time, values: &[(Name, Option<f64>, Quality, Cause)], now: Time) {
        if !self.admit(name, now) {
            return;
        }
        let Some(m) = self.machines.get_mut(name) else { return };
        m.at = at;
        m.versions.step = self.version;
        for (signal, value, quality, cause) in values {
            let value = value.filter(|v| v.is_finite());
            if let Some(s) = m.signals.get_mut(signal) {
                s.take(at, value, *quality, *cause, now);
            } else {
                let full = m.signals.len() >= MAX_SIGNALS || self.signals >= MAX_SIGNALS_TOTAL;
                if full || signal.len() > MAX_NAME_BYTES {
                    self.not_shown += 1;
                    continue;
                }
                self.signals += 1;
                let plotted = m.scores.is_some() && self.rings < MAX_RINGS;
                self.rings += usize::from(plotted);
                let mut new = Signal { points: plotted.then(Ring::default), ..Signal::default() };
                new.take(at, value, *quality, *cause, now);
                m.signals.insert(signal.clone(), new);
            }
        }
        if !m.fresh_step && !m.fresh_verdict {
            self.fresh.push_back(name.clone());
        }
        m.fresh_step = true;
    }

    fn state(&mut self, name: &Name, at: Time, light: MachineState, why: &str, now: Time) {
        let is_new = !self.machines.contains_key(name);
        if !self.admit(name, now) {
            return;
        }
        let Some(m) = self.machines.get_mut(name) else { return };
        let why: String = why.chars().take(MAX_WHY_CHARS).collect();
        if !is_new && m.light == light && m.why == why {
            return;
        }
        if is_new || m.light != light {
            m.since = at;
        }
        (m.light, m.why) = (light, why);
        m.versions.state = self.version;
    }

    fn verdict(&mut self, verdict: &Arc<Verdict>, data: &Arc<str>, now: Time) {
        if !self.admit(&verdict.machine, now) {
            return;
        }
        let Some(m) = self.machines.get_mut(&verdict.machine) else { return };
        m.held = held_against(verdict, m.held);
        if let Some(ring) = &mut m.scores {
            ring.push(ScorePoint {
                at: verdict.at,
                score: verdict.score.filter(|s| s.is_finite()),
                p_value: verdict.p_value.filter(|p| p.is_finite()),
                threshold: verdict.threshold,
                anomaly: verdict.reason == Reason::AnomalyDetected,
            });
        }
        if m.course.is_none() && self.courses < MAX_COURSES && (verdict.health.is_some() || verdict.rul.is_some()) {
            m.course = Some(Course::default());
            self.courses += 1;
        }
        if let Some(course) = &mut m.course {
            course.push(verdict.at, verdict.health, verdict.rul);
        }
        m.verdict = Some(verdict.clone());
        m.versions.verdict = self.version;
        m.data = (data.len() <= MAX_VERDICT_BYTES).then(|| data.clone());
        if !m.fresh_step && !m.fresh_verdict {
            self.fresh.push_back(verdict.machine.clone());
        }
        m.fresh_verdict = true;
    }

    /// It is shown with the machine, and with the alarm it is about.
    fn opinion(&mut self, name: &Name, opinion: &Arc<SecondOpinion>) {
        if let Some(m) = self.machines.get_mut(name) {
            m.opinion = Some(opinion.clone());
            m.versions.opinion = self.version;
        }
        self.alarms.opinion(name, opinion, self.version);
    }

    fn alarm(&mut self, alarm: &Arc<Alarm>) {
        let complete = alarm.machine.len() <= MAX_NAME_BYTES && self.alarms.apply(alarm, self.version);
        self.not_shown += u64::from(!complete);
    }

    fn set_flood(&mut self, flood: Option<&Flood>) {
        if self.flood.as_ref() != flood {
            self.flood = flood.cloned();
            self.flood_version = self.version;
        }
    }

    /// The engine does not know this machine any more.
    fn forget(&mut self, name: &Name) {
        let Some(m) = self.machines.remove(name) else { return };
        self.rings -= m.rings();
        self.signals -= m.signals.len();
        self.courses -= usize::from(m.course.is_some());
        self.version_of_removal = self.version;
    }
}
