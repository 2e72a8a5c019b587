//! Pipeline, models and alarms of all machines in one place, run by one thread. Its state is a
//! function of the groups it was fed, in order: that is what makes a replay exact.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::audit::{Entry, Ledger};
use super::input::{Group, Input, Running};
use super::records::Recorder;
use crate::alarm::{self, Act, Observation, Rule, Tracker, flood};
use crate::forward::inference::Policy;
use crate::model::calibration::Limit;
use crate::model::{Model, ModelError, Opinion};
use crate::pipeline::{self, Due, Layout, Step, Taken};
use crate::types::{
    Alarm, Ask, Change, Condition, Explanation, Live, MachineState, ModelStep, Name, Quality, Reading, Reason, Record,
    RecordId, Release, Time, Verdict, Window,
};
use second::Judged;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod any_bytes;
mod judge;
mod people;
mod rollout;
pub mod second;

pub use rollout::{Drift, Versions, figures, release_of};
use rollout::{Line, LineState};

/// Signals that are followed, of all machines together; at some 500 bytes each this bounds the memory that
/// made-up topics can take.
const MAX_SIGNALS: usize = 200_000;

/// Version of the snapshot; another one is not restored.
const SNAPSHOT_VERSION: u32 = 6;
/// What every machine has an alarm for.
const CONDITIONS: [Condition; 2] = [Condition::Anomaly, Condition::Input];

/// One `[[machine]]` block met with its model.
pub struct Block {
    /// Which machines it is for.
    pub matcher: WildMatch,
    /// Their model, if they have one.
    pub model: Option<Arc<Model>>,
    /// Their pipeline.
    pub layout: Arc<Layout>,
    /// What their verdicts are held against.
    pub limit: Limit,
    /// Their alarms.
    pub alarm: alarm::Config,
    /// While this holds, alarms are suppressed.
    pub suppress: Option<pipeline::mode::Condition>,
}

/// What became of a group.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be stored, in order.
    pub records: Vec<Record>,
    /// The ordinal of the first record; ordinals count all records the engine ever made.
    pub first_ordinal: u64,
    /// For dashboards.
    pub live: Vec<Live>,
    /// To be put before a larger model once the group is durable.
    pub asks: Vec<Ask>,
    /// What happened, for the counters.
    pub tally: Tally,
    /// Steps that bundles took.
    pub steps: Vec<ModelStep>,
    /// Reports on models in service.
    pub drifts: Vec<Drift>,
}

/// Counts of one group.
#[derive(Debug, Default)]
pub struct Tally {
    /// Readings not used, by reason.
    pub dropped: HashMap<&'static str, u64>,
    /// Batches run: the model and how long it took.
    pub runs: Vec<(Name, Duration)>,
    /// The same of candidates.
    pub trial_runs: Vec<(Name, Duration)>,
    /// Batches that failed: the model and why.
    pub errors: Vec<(Name, String)>,
    /// The first reading for which there was no room, for a person.
    pub full: Option<String>,
    /// Windows that were to be put before a larger model: how that ended, as far as it has.
    pub escalations: Vec<second::Escalation>,
    /// What those that ended have cost, in millionths of a unit.
    pub cost: u64,
}

/// See the module.
pub struct Engine {
    recorder: Recorder,
    blocks: Vec<Block>,
    units: Vec<Unit>,
    places: HashMap<Name, usize>,
    max_machines: usize,
    /// Signals of all machines, and how many there may be.
    signals: usize,
    max_signals: usize,
    ordinal: u64,
    flood: flood::Watch,
    ledger: Ledger,
    running: Running,
    /// The wall clock as the inputs told it at its furthest.
    now: Time,
    /// The wall clock as the inputs told it last, right or wrong.
    wall: Time,
    policy: Option<Policy>,
    desk: second::Desk,
    /// Models by name, with their versions.
    lines: BTreeMap<Name, Line>,
    /// Delivered models at hand.
    shelf: BTreeMap<Release, Arc<Model>>,
    report_every: Duration,
}

/// One machine.
struct Unit {
    block: usize,
    pipe: pipeline::Machine,
    /// What the incumbent keeps, and what the candidate does.
    memory: Memory,
    rival: Memory,
    anomaly: Tracker,
    input: Tracker,
    /// Wall clock of its last reading.
    heard: Time,
    light: MachineState,
    why: String,
    /// What the last verdict said.
    reason: Reason,
    /// When it last began to run.
    on_since: Option<Time>,
    /// The end of its last window that was judged, or could not be.
    judged: Time,
}

/// What a machine's model keeps from window to window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Memory {
    /// Of the graph that left it; another one cannot go on with it.
    digest: Option<Name>,
    /// The graph's states one after the other.
    values: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u32,
    ordinal: u64,
    units: Vec<UnitSnapshot>,
    flood: flood::Watch,
    ledger: Ledger,
    running: Running,
    now: Time,
    desk: second::Desk,
    lines: BTreeMap<Name, LineState>,
}

#[derive(Serialize, Deserialize)]
struct UnitSnapshot {
    name: Name,
    pipe: pipeline::State,
    memory: Memory,
    rival: Memory,
    anomaly: Tracker,
    input: Tracker,
    heard: Time,
    light: MachineState,
    why: String,
    reason: Reason,
    on_since: Option<Time>,
    judged: Time,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(recorder: Recorder, blocks: Vec<Block>, max_machines: usize) -> Engine {
        let (units, places) = (Vec::new(), HashMap::new());
        let (flood, ledger, running, now, wall, desk) = Default::default();
        let (signals, max_signals, ordinal) = (0, MAX_SIGNALS, 0);
        let (lines, shelf, report_every) = (BTreeMap::new(), BTreeMap::new(), crate::config::REPORT_EVERY);
        let mut engine = Engine {
            recorder,
            blocks,
            units,
            places,
            max_machines,
            signals,
            max_signals,
            ordinal,
            flood,
            ledger,
            running,
            now,
            wall,
            policy: None,
            desk,
            lines,
            shelf,
            report_every,
        };
        engine.line_up(BTreeMap::new());
        engine
    }

    /// Machines known.
    pub fn machines(&self) -> usize {
        self.units.len()
    }

    /// Signals followed, of all machines together.
    pub fn signals(&self) -> usize {
        self.signals
    }

    /// The ordinal the next record will have.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// Gives the next record this ordinal.
    pub fn count_from(&mut self, ordinal: u64) {
        self.ordinal = ordinal;
    }

    /// Active alarms of a condition.
    pub fn active_alarms(&self, condition: Condition) -> usize {
        self.units.iter().filter(|u| u.tracker(condition).is_active()).count()
    }

    /// Each machine's light.
    pub fn lights(&self) -> impl Iterator<Item = (Name, MachineState)> {
        self.units.iter().map(|u| (u.pipe.name().clone(), u.light))
    }

    /// How the machines stand, for a dashboard that starts after a restart.
    pub fn present(&self) -> Vec<Live> {
        let mut live = Vec::new();
        for u in &self.units {
            let alarms = [&u.anomaly, &u.input].into_iter().filter_map(Tracker::alarm);
            live.extend(alarms.map(|a| Live::Alarm(Arc::new(a.clone()), self.recorder.alarm(a).data.into())));
            live.push(u.state(u.heard));
        }
        live.extend(self.flood.flood().map(|f| Live::Flood(Some(f.clone()))));
        live
    }

    /// Whether a machine has fallen silent with readings pending or a light still on.
    pub fn wants_tick(&self, now: Time) -> bool {
        self.units.iter().any(|u| u.wants_tick(now))
    }

    /// Takes a group in.
    pub fn step(&mut self, group: &Group) -> Outcome {
        let mut out = Outcome { first_ordinal: self.ordinal, ..Outcome::default() };
        let mut touched = Vec::new();
        let mut again = false;
        for input in &group.inputs {
            match input {
                Input::Readings(arrived, readings) => {
                    self.hear_clock(*arrived);
                    self.take(readings, *arrived, again, &mut touched, &mut out);
                    again = false;
                }
                Input::Again => again = true,
                Input::Tick(now) => {
                    self.hear_clock(*now);
                    self.tick(*now, &mut out);
                }
                Input::Act(target, act) => self.act(target, act, &mut out),
                Input::Clock(now) => self.clock(*now, &mut out),
                Input::Running(running) => self.runs(running, &mut out),
                Input::Wrote(wrote) => self.wrote(wrote, &mut out),
                Input::Opinion(answer) => {
                    self.hear_clock(answer.at);
                    self.opinion(answer, &mut out);
                }
                Input::Rollout(news) => self.news(news, &mut out),
            }
        }
        touched.sort_unstable();
        touched.dedup();
        // Rounds: each machine gives at most one window to a round, so that what a verdict changes
        // is there for the machine's next window, however the readings were grouped.
        loop {
            let due: Vec<(usize, Window)> =
                touched.iter().filter_map(|&i| self.advance(i, &mut out).map(|w| (i, w))).collect();
            if due.is_empty() {
                break;
            }
            self.judge(due, &mut out);
        }
        self.review(&mut out);
        self.ordinal += out.records.len() as u64;
        out
    }

    fn hear_clock(&mut self, now: Time) {
        (self.now, self.wall) = (self.now.max(now), now);
    }

    fn take(&mut self, readings: &[Reading], arrived: Time, again: bool, touched: &mut Vec<usize>, out: &mut Outcome) {
        for r in readings {
            let Some(i) = self.place(&r.machine, arrived, out) else { continue };
            let unit = &mut self.units[i];
            unit.heard = unit.heard.max(arrived);
            let before = unit.pipe.signals();
            let taken = if self.signals >= self.max_signals && !unit.pipe.follows(&r.signal) {
                Taken::Limit
            } else {
                unit.pipe.push(r, arrived, again)
            };
            self.signals += unit.pipe.signals() - before;
            let drop = match taken {
                Taken::Yes => {
                    if touched.last() != Some(&i) {
                        touched.push(i);
                    }
                    continue;
                }
                Taken::Duplicate => "duplicate",
                Taken::Late => "late",
                Taken::Future => "future",
                Taken::Limit => {
                    let signals = unit.pipe.signals();
                    let full =
                        || format!("signal {:?} of machine {:?}: {signals} signals of it are", r.signal, r.machine);
                    out.tally.full.get_or_insert_with(|| format!("{} followed, of all {}", full(), self.signals));
                    "limit"
                }
            };
            *out.tally.dropped.entry(drop).or_default() += 1;
        }
    }

    /// The machine's place; a new one is made where a block matches and there is room.
    fn place(&mut self, name: &Name, arrived: Time, out: &mut Outcome) -> Option<usize> {
        if let Some(i) = self.places.get(name) {
            return Some(*i);
        }
        let block = self.blocks.iter().position(|b| b.matcher.matches(name));
        let full = self.units.len() >= self.max_machines;
        let Some(block) = block.filter(|_| !full) else {
            if full && block.is_some() {
                let n = self.max_machines;
                out.tally
                    .full
                    .get_or_insert_with(|| format!("machine {name:?}: {n} are followed ([agent] max_machines)"));
            }
            *out.tally.dropped.entry(if full { "limit" } else { "no_machine" }).or_default() += 1;
            return None;
        };
        let pipe = pipeline::Machine::new(name.clone(), self.blocks[block].layout.clone());
        self.places.insert(name.clone(), self.units.len());
        self.signals += pipe.signals();
        self.units.push(Unit::new(block, pipe, arrived));
        let i = self.units.len() - 1;
        let line = self.line(i);
        let memory = Memory::of(line.map(|l| &*l.incumbent));
        let rival = Memory::of(line.and_then(|l| l.candidate.as_deref()));
        (self.units[i].memory, self.units[i].rival) = (memory, rival);
        Some(i)
    }

    /// Closes a machine's steps up to the next window it has for the model.
    fn advance(&mut self, i: usize, out: &mut Outcome) -> Option<Window> {
        while let Some(step) = self.units[i].pipe.pop() {
            if let Some(window) = self.closed(i, step, out) {
                return Some(window);
            }
        }
        None
    }

    fn closed(&mut self, i: usize, step: Step, out: &mut Outcome) -> Option<Window> {
        let unit = &self.units[i];
        let machine = unit.pipe.name().clone();
        if let Some(gap) = &step.gap {
            out.records.push(self.recorder.gap(&machine, gap));
        }
        let block = unit.block;
        self.watch_rule(i, &step, out);
        out.live.push(Live::Step { machine: machine.clone(), at: step.at, values: step.values });
        match step.due {
            None => {
                if self.blocks[block].model.is_none() {
                    self.set_light(i, step.at, MachineState::Green, "no model is bound", out);
                }
                None
            }
            Some(Due::Window(window)) => {
                self.watch_input(i, step.at, None, out);
                Some(window)
            }
            Some(Due::NotScored { reason, quality, channel, others }) => {
                let blame = channel.filter(|_| reason == Reason::InputBad).map(|c| (c, others));
                self.not_scored(i, step.at, (reason, quality), blame, out);
                None
            }
        }
    }

    fn not_scored(
        &mut self,
        i: usize,
        at: Time,
        (reason, quality): (Reason, Quality),
        blame: Option<(Name, usize)>,
        out: &mut Outcome,
    ) {
        let machine = self.units[i].pipe.name().clone();
        let Some(line) = self.line(i) else { return };
        let limit = &self.blocks[self.units[i].block].limit;
        let verdict = line.heard(&machine).empty_verdict(machine, at, reason, quality, limit);
        self.emit_verdict(verdict, out);
        self.ran(i, at, reason);
        self.watch_unjudged(i, reason, blame.as_ref().map(|(c, _)| c));
        self.watch_input(i, at, blame.map(|(c, others)| (c, others, quality)), out);
        if reason == Reason::MachineOff {
            // A machine at rest cannot be in trouble; its alarm ends as if all were well.
            let look = Observation { at, strength: Some(0.0), top_channel: None, message: String::new() };
            self.observe(i, Condition::Anomaly, &look, None, out);
        }
        self.refresh_light(i, at, out);
    }

    fn emit_verdict(&mut self, verdict: Verdict, out: &mut Outcome) -> (Arc<Verdict>, RecordId) {
        let record = self.recorder.verdict(&verdict);
        let verdict = Arc::new(verdict);
        out.live.push(Live::Verdict(verdict.clone(), record.data.as_str().into()));
        let id = record.id;
        out.records.push(record);
        (verdict, id)
    }

    fn watch_input(&mut self, i: usize, at: Time, bad: Option<(Name, usize, Quality)>, out: &mut Outcome) {
        let strength = if bad.is_some() { 2.0 } else { 0.0 };
        let message = bad.as_ref().map_or(String::new(), |(c, others, q)| input_message(c, *others, *q));
        let look = Observation { at, strength: Some(strength), top_channel: bad.map(|(c, ..)| c), message };
        self.observe(i, Condition::Input, &look, None, out);
    }

    fn rule(&self, i: usize, condition: Condition) -> Rule {
        let unit = &self.units[i];
        let config = &self.blocks[unit.block].alarm;
        Rule {
            machine: unit.pipe.name().clone(),
            condition,
            severity: if condition == Condition::Anomaly { config.severity } else { config.input_severity },
            on_delay: config.on_delay,
            off_delay: config.off_delay,
            deadband: config.deadband,
            latch: config.latch,
            re_alarm: config.re_alarm,
        }
    }

    /// Shows an observation to a machine's alarm; `why` tells more of one that is raised by it. Whether
    /// one was that calls for somebody.
    fn observe(
        &mut self,
        i: usize,
        condition: Condition,
        look: &Observation,
        why: Option<&dyn Fn() -> Explanation>,
        out: &mut Outcome,
    ) -> bool {
        let rule = self.rule(i, condition);
        let Some(mut alarm) = self.units[i].tracker_mut(condition).observe(&rule, look) else { return false };
        if alarm.care.change == Change::Raised {
            let first = self.is_first_out(i, condition);
            let explanation = why.map(|why| Arc::new(why()));
            let noted = self.units[i].tracker_mut(condition).annotate(|care| {
                (care.first_out, care.explanation) = (first, explanation);
            });
            alarm = noted.unwrap_or(alarm);
            if condition == Condition::Anomaly {
                self.watch_alarm(i);
            }
        }
        let calls = matches!(alarm.care.change, Change::Raised | Change::Returned) && !alarm.care.is_quiet();
        self.announce(i, alarm, out);
        calls
    }

    fn emit_alarm(&self, alarm: Alarm, out: &mut Outcome) {
        let record = self.recorder.alarm(&alarm);
        out.live.push(Live::Alarm(Arc::new(alarm), record.data.as_str().into()));
        out.records.push(record);
    }

    /// Machines that have fallen silent: what is pending is judged, and the light goes grey.
    fn tick(&mut self, now: Time, out: &mut Outcome) {
        for i in 0..self.units.len() {
            if !self.units[i].wants_tick(now) {
                continue;
            }
            while let Some(step) = self.units[i].pipe.pop_idle() {
                if let Some(window) = self.closed(i, step, out) {
                    self.judge(vec![(i, window)], out);
                }
            }
            let heard = self.units[i].heard;
            self.set_light(i, now, MachineState::Off, &format!("not heard since {heard}"), out);
        }
    }

    fn refresh_light(&mut self, i: usize, at: Time, out: &mut Outcome) {
        let unit = &self.units[i];
        let (anomaly, input, reason) = (unit.anomaly.alarm(), unit.input.alarm(), unit.reason);
        let (light, why) = if let Some(a) = anomaly.filter(|_| unit.anomaly.is_calling()) {
            (MachineState::Red, a.message.clone())
        } else if reason == Reason::MachineOff {
            (MachineState::Off, "off".into())
        } else if let Some(a) = input.filter(|_| unit.input.is_calling()) {
            (MachineState::Amber, a.message.clone())
        } else if let Some(a) = anomaly.filter(|a| a.state.is_active()) {
            (MachineState::Amber, format!("{}: {}", people::put_aside(a), a.message))
        } else if let Some(a) = anomaly.filter(|a| a.state.is_owed()) {
            (MachineState::Amber, format!("over, not acknowledged: {}", a.message))
        } else {
            match reason {
                Reason::WarmingUp => (MachineState::Amber, "warming up".into()),
                Reason::InputBad => (MachineState::Amber, "a signal is not usable".into()),
                Reason::ModelUnavailable => (MachineState::Amber, "the model cannot be run".into()),
                _ => (MachineState::Green, "well".into()),
            }
        };
        self.set_light(i, at, light, &why, out);
    }

    fn set_light(&mut self, i: usize, at: Time, light: MachineState, why: &str, out: &mut Outcome) {
        let unit = &mut self.units[i];
        if unit.light != light || unit.why != why {
            unit.light = light;
            why.clone_into(&mut unit.why);
            out.live.push(unit.state(at));
        }
    }

    /// Everything that has to survive a restart.
    pub fn snapshot(&self) -> Vec<u8> {
        let unit = |u: &Unit| UnitSnapshot {
            name: u.pipe.name().clone(),
            pipe: u.pipe.state().clone(),
            memory: u.memory.clone(),
            rival: u.rival.clone(),
            anomaly: u.anomaly.clone(),
            input: u.input.clone(),
            heard: u.heard,
            light: u.light,
            why: u.why.clone(),
            reason: u.reason,
            on_since: u.on_since,
            judged: u.judged,
        };
        let snapshot = Snapshot {
            version: SNAPSHOT_VERSION,
            ordinal: self.ordinal,
            units: self.units.iter().map(unit).collect(),
            flood: self.flood.clone(),
            ledger: self.ledger.clone(),
            running: self.running.clone(),
            now: self.now,
            desk: self.desk.clone(),
            lines: self.line_states(),
        };
        postcard::to_stdvec(&snapshot).unwrap_or_default()
    }

    /// Goes back to a snapshot. Machines that no block matches any more are left out; a machine
    /// whose model has changed its channels starts afresh, and so does what another model kept.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), String> {
        let damaged = |e| format!("a damaged snapshot: {e}");
        let (version, _): (u32, _) = postcard::take_from_bytes(bytes).map_err(damaged)?;
        if version != SNAPSHOT_VERSION {
            return Err(format!("snapshots of version {version} are not known here"));
        }
        let snapshot: Snapshot = postcard::from_bytes(bytes).map_err(damaged)?;
        self.ordinal = snapshot.ordinal;
        (self.flood, self.ledger, self.running) = (snapshot.flood, snapshot.ledger, snapshot.running);
        self.now = snapshot.now;
        self.desk = snapshot.desk.restored(self.policy.as_ref());
        self.line_up(snapshot.lines);
        self.units.clear();
        self.places.clear();
        for u in snapshot.units {
            let Some(block) = self.blocks.iter().position(|b| b.matcher.matches(&u.name)) else { continue };
            let pipe = pipeline::Machine::restore(u.name.clone(), self.blocks[block].layout.clone(), u.pipe);
            self.places.insert(u.name, self.units.len());
            let UnitSnapshot { memory, rival, anomaly, input, heard, light, why, reason, on_since, judged, .. } = u;
            self.units.push(Unit {
                block,
                pipe,
                memory,
                rival,
                anomaly,
                input,
                heard,
                light,
                why,
                reason,
                on_since,
                judged,
            });
            let i = self.units.len() - 1;
            let line = self.line(i);
            let incumbent = Memory::of(line.map(|l| &*l.incumbent));
            let candidate = Memory::of(line.and_then(|l| l.candidate.as_deref()));
            let unit = &mut self.units[i];
            unit.memory.renew(incumbent);
            unit.rival.renew(candidate);
        }
        self.signals = self.units.iter().map(|u| u.pipe.signals()).sum();
        Ok(())
    }
}

impl Memory {
    /// Of a machine that its model has not seen.
    fn of(model: Option<&Model>) -> Memory {
        let keeps = model.filter(|m| !m.initial_state().is_empty());
        keeps.map_or_else(Memory::default, |m| Memory {
            digest: Some(m.digest().clone()),
            values: m.initial_state().to_vec(),
        })
    }

    /// Starts afresh where another model left it.
    fn renew(&mut self, fresh: Memory) {
        if self.digest != fresh.digest {
            *self = fresh;
        }
    }
}

impl Unit {
    fn new(block: usize, pipe: pipeline::Machine, heard: Time) -> Unit {
        let (anomaly, input, reason) = (Tracker::default(), Tracker::default(), Reason::WarmingUp);
        let (light, why) = (MachineState::Amber, "warming up".into());
        let (memory, rival, on_since, judged) = (Memory::default(), Memory::default(), None, Time::default());
        Unit { block, pipe, memory, rival, anomaly, input, heard, light, why, reason, on_since, judged }
    }

    fn tracker(&self, condition: Condition) -> &Tracker {
        match condition {
            Condition::Anomaly => &self.anomaly,
            Condition::Input => &self.input,
        }
    }

    fn tracker_mut(&mut self, condition: Condition) -> &mut Tracker {
        match condition {
            Condition::Anomaly => &mut self.anomaly,
            Condition::Input => &mut self.input,
        }
    }

    fn is_silent(&self, now: Time) -> bool {
        // Messages may come in bursts: a quiet second is not silence.
        let limit = Duration::from_nanos(self.pipe.layout().stale_after as u64).max(Duration::from_secs(2));
        now.since(self.heard) > limit
    }

    /// A grey one too may have readings that only a tick will judge: it went grey, and began to speak
    /// again for less than its lateness.
    fn wants_tick(&self, now: Time) -> bool {
        self.is_silent(now) && (self.light != MachineState::Off || self.pipe.is_pending())
    }

    fn state(&self, at: Time) -> Live {
        Live::State { machine: self.pipe.name().clone(), at, light: self.light, why: self.why.clone() }
    }
}

fn input_message(channel: &str, others: usize, quality: Quality) -> String {
    let what = quality.as_str();
    match others {
        0 => format!("{channel} is {what}: nothing can be judged"),
        // The rest may be stale where the first is bad, so they are not called the same.
        n => format!("{channel} is {what}, and {n} more are not usable: nothing can be judged"),
    }
}

fn anomaly_message(v: &Verdict) -> String {
    let loudest: Vec<String> =
        v.contributions.iter().take(2).map(|c| format!("{} {:.0} %", c.name, c.value * 100.0)).collect();
    match &v.class {
        Some(class) => format!("{class}: unusual behaviour, mostly {}", loudest.join(", ")),
        None => format!("unusual behaviour, mostly {}", loudest.join(", ")),
    }
}

#[cfg(test)]
mod tests;
