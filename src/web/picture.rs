//! What the dashboard knows of every machine: plain state, fed one event at a time, clock passed in.
//! Every collection here has a bound; what does not fit is counted and shown.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::course::Course;
use super::ring::{KeptPoint, KeptScore, Point, Ring, ScorePoint};
use crate::types::{
    Alarm, AlarmState, Care, Cause, Condition, Flood, Live, MachineState, Name, Quality, Reason, SecondOpinion, Time,
    Verdict,
};

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
/// Alarms listed. Those that are over make room first.
pub const MAX_ALARMS: usize = 500;
/// Longer names are not shown: topics may carry names of 64 KiB.
pub const MAX_NAME_BYTES: usize = 512;
/// Longer verdict records are not kept for the page.
pub const MAX_VERDICT_BYTES: usize = 16 * 1024;

const MAX_WHY_CHARS: usize = 200;

/// What the threshold is held against. The verdict does not say, so it is told from what it decided.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// The score must stay below it.
    Score,
    /// The p-value must stay above it.
    PValue,
}

/// The last known of one signal. Times are the wall clock's at arrival unless said otherwise.
#[derive(Clone, Debug)]
pub struct Signal {
    /// The last usable value; kept when later steps have none.
    pub value: Option<f64>,
    /// Of the last step.
    pub quality: Quality,
    /// Of the last step.
    pub cause: Cause,
    /// When the device or broker was last heard on this signal, whatever it said.
    pub heard: Option<Time>,
    /// When the value last became another.
    pub changed: Option<Time>,
    /// The plot, where there is room for one.
    pub points: Option<Ring<KeptPoint>>,
}

impl Default for Signal {
    fn default() -> Signal {
        Signal { value: None, quality: Quality::Stale, cause: Cause::None, heard: None, changed: None, points: None }
    }
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its light.
    pub light: MachineState,
    /// Why, in a few words.
    pub why: String,
    /// Since when, by the event's own time.
    pub since: Time,
    /// Time of the last step.
    pub at: Time,
    /// By name.
    pub signals: BTreeMap<Name, Signal>,
    /// The last verdict.
    pub verdict: Option<Arc<Verdict>>,
    /// The `data` of its record.
    pub data: Option<Arc<str>>,
    /// What the threshold is held against.
    pub held: Held,
    /// What a larger model said last.
    pub opinion: Option<Arc<SecondOpinion>>,
    /// The score plot; it is there exactly when the machine has plots at all.
    pub scores: Option<Ring<KeptScore>>,
    /// Health and useful life, where its model speaks of them and there is room.
    pub course: Option<Course>,
    wanted: u64,
    fresh_step: bool,
    fresh_verdict: bool,
}

impl Machine {
    fn new(now: Time) -> Machine {
        Machine {
            light: MachineState::Amber,
            why: "not heard yet".into(),
            since: now,
            at: Time::default(),
            signals: BTreeMap::new(),
            verdict: None,
            data: None,
            held: Held::PValue,
            opinion: None,
            scores: None,
            course: None,
            wanted: 0,
            fresh_step: false,
            fresh_verdict: false,
        }
    }

    fn rings(&self) -> usize {
        usize::from(self.scores.is_some()) + self.signals.values().filter(|s| s.points.is_some()).count()
    }
}

/// How many machines show which light.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Lights {
    /// Judged and normal.
    pub green: usize,
    /// To look at.
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
    alarms: Vec<Arc<Alarm>>,
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
        match event {
            Live::Step { machine, at, values } => self.step(machine, *at, values, now),
            Live::Verdict(verdict, data) => self.verdict(verdict, data, now),
            Live::Alarm(alarm, _) => self.alarm(alarm),
            Live::State { machine, at, light, why } => self.state(machine, *at, *light, why, now),
            Live::Opinion(machine, opinion, _) => self.opinion(machine, opinion),
            Live::Flood(flood) => self.flood.clone_from(flood),
        }
    }

    /// All machines by name.
    pub fn machines(&self) -> &BTreeMap<Name, Machine> {
        &self.machines
    }

    /// The alarms listed, in no particular order.
    pub fn alarms(&self) -> &[Arc<Alarm>] {
        &self.alarms
    }

    /// Counts by light.
    pub fn lights(&self) -> Lights {
        let mut n = Lights::default();
        for m in self.machines.values() {
            match m.light {
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
        if !self.admit(name, now) {
            return;
        }
        let Some(m) = self.machines.get_mut(name) else { return };
        if m.light != light {
            m.since = at;
        }
        m.light = light;
        m.why = why.chars().take(MAX_WHY_CHARS).collect();
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
        }
        let about = |a: &&mut Arc<Alarm>| {
            let mine = a.machine == *name && a.condition == Condition::Anomaly && a.state.is_active();
            mine && a.since <= opinion.at
        };
        if let Some(alarm) = self.alarms.iter_mut().find(about) {
            let mut told = Alarm::clone(alarm);
            told.care.opinion = Some(SecondOpinion::clone(opinion));
            *alarm = Arc::new(told);
        }
    }

    fn alarm(&mut self, alarm: &Arc<Alarm>) {
        // What people put aside goes with the alarm that stands; one before it is history.
        let same = |a: &Arc<Alarm>| a.machine == alarm.machine && a.condition == alarm.condition && a.id != alarm.id;
        for old in self.alarms.iter_mut().filter(|a| same(a) && (a.care.is_quiet() || a.state != AlarmState::Normal)) {
            let mut over = Alarm::clone(old);
            over.state = AlarmState::Normal;
            let Care { explanation, opinion, .. } = over.care;
            over.care = Care { explanation, opinion, ..Care::default() };
            *old = Arc::new(over);
        }
        if let Some(known) = self.alarms.iter_mut().find(|a| a.id == alarm.id) {
            *known = alarm.clone();
            return;
        }
        if alarm.machine.len() > MAX_NAME_BYTES {
            self.not_shown += 1;
            return;
        }
        if self.alarms.len() >= MAX_ALARMS {
            // Those that are over go first, then the mildest, then the oldest.
            let least = |a: &Arc<Alarm>| (a.state != AlarmState::Normal, a.state.is_active(), a.severity, a.at);
            if let Some(i) = (0..self.alarms.len()).min_by_key(|i| least(&self.alarms[*i])) {
                let gone = self.alarms.swap_remove(i);
                self.not_shown += u64::from(gone.state != AlarmState::Normal);
            }
        }
        self.alarms.push(alarm.clone());
    }
}

impl Signal {
    fn take(&mut self, at: Time, value: Option<f64>, quality: Quality, cause: Cause, now: Time) {
        if was_heard(value, quality, cause) {
            self.heard = Some(now);
            if value.is_some() && value != self.value {
                self.changed = Some(now);
            }
        }
        self.value = value.or(self.value);
        (self.quality, self.cause) = (quality, cause);
        if let Some(ring) = &mut self.points {
            ring.push(Point { at, value, quality });
        }
    }
}

/// Whether the equipment spoke, as against a value that was held over or is missing.
fn was_heard(value: Option<f64>, quality: Quality, cause: Cause) -> bool {
    match cause {
        Cause::Held | Cause::Timeout | Cause::Exception | Cause::Disconnected => false,
        Cause::None => value.is_some() && quality != Quality::Stale,
        Cause::NotFinite | Cause::OutOfRange | Cause::Stuck | Cause::Source => true,
    }
}

/// Gives the machine all the plots it lacks, within `room`; says how many it gave.
fn give_plots(m: &mut Machine, room: usize) -> usize {
    let before = m.rings();
    let mut room = room;
    if m.scores.is_none() && room > 0 {
        m.scores = Some(Ring::default());
        room -= 1;
    }
    for signal in m.signals.values_mut().filter(|s| s.points.is_none()).take(room) {
        signal.points = Some(Ring::default());
    }
    m.rings() - before
}

fn held_against(v: &Verdict, before: Held) -> Held {
    let anomaly = match v.reason {
        Reason::AnomalyDetected => true,
        Reason::NoAnomalyDetected => false,
        _ => return if v.p_value.is_none() && v.score.is_some() { Held::Score } else { before },
    };
    let by_p = v.p_value.map(|p| (p <= v.threshold) == anomaly);
    let by_score = v.score.map(|s| (s >= v.threshold) == anomaly);
    match (by_p, by_score) {
        (None, Some(_)) | (Some(false), Some(true)) => Held::Score,
        (Some(_), None) | (Some(true), Some(false)) => Held::PValue,
        _ => before,
    }
}
