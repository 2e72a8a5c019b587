//! Pipeline, models and alarms of all machines in one place, run by one thread. Its state is a
//! function of the groups it was fed, in order: that is what makes a replay exact.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::audit::{Entry, Ledger};
use super::input::{Group, Input, Link, Running};
use super::machine_state::Evidence;
use super::records::Recorder;
use super::refused::Refused;
use crate::alarm::{self, Act, Observation, Rule, Tracker, flood};
use crate::forward::inference::Policy;
use crate::model::calibration::Limit;
use crate::model::{Model, ModelError, Opinion};
use crate::pipeline::{self, ClockChange, Due, Layout, Step, Taken};
use crate::types::{
    Alarm, Ask, Change, Condition, Explanation, Live, MachineState, ModelStep, Name, Quality, Reading, Reason, Record,
    RecordId, Release, Time, Verdict, Window,
};
use intake::Delivery;
use second::Judged;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod any_bytes;
mod intake;
mod judge;
mod people;
mod rollout;
pub mod second;
mod silence;
mod standing;

pub use rollout::{Drift, Versions, figures, release_of};
use rollout::{Line, LineState};

/// Signals that are followed, of all machines together; at some 500 bytes each this bounds the memory that
/// made-up topics can take.
const MAX_SIGNALS: usize = 200_000;

/// Readings of all machines that may wait for late ones; at some 40 bytes each this bounds the memory that a long
/// `lateness` can take. Beyond it steps are closed early.
pub const MAX_PENDING_READINGS: usize = 1 << 21;

/// Version of the snapshot; another one is not restored.
const SNAPSHOT_VERSION: u32 = 7;
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
    /// Readings not used, by machine and reason; at most [`MOST_REFUSED`].
    pub refused: Vec<Refused>,
    /// Steps closed before their lateness was over, since too many readings wait.
    pub closed_early: u64,
    /// Clocks of devices that were found to have stepped.
    pub clock_changes: Vec<(Name, ClockChange)>,
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
    /// Readings that wait for their step, of all machines, and how many there may be.
    pending: usize,
    max_pending: usize,
    ordinal: u64,
    flood: flood::Watch,
    ledger: Ledger,
    running: Running,
    /// The wall clock as the inputs told it at its furthest.
    now: Time,
    /// The wall clock as the inputs told it last, right or wrong.
    wall: Time,
    /// The sources, as far as anything was said of them.
    links: BTreeMap<Name, Link>,
    /// When the gateway's clock was set last: ages across that moment are unknown.
    clock_set: Time,
    policy: Option<Policy>,
    desk: second::Desk,
    /// Models by name, with their versions.
    lines: BTreeMap<Name, Line>,
    /// Delivered models at hand.
    shelf: BTreeMap<Release, Arc<Model>>,
    report_every: Duration,
}

/// One machine: its block, its pipeline and its state.
struct Unit {
    block: usize,
    pipe: pipeline::Machine,
    state: UnitState,
}

/// What of a machine has to survive, beside its pipeline's state. Times are the gateway's clock at arrival, unless
/// said otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct UnitState {
    /// What the incumbent keeps, and what the candidate does.
    memory: Memory,
    rival: Memory,
    anomaly: Tracker,
    input: Tracker,
    /// Its last reading.
    heard: Time,
    /// Its first reading.
    first_heard: Time,
    /// The state as it is shown, why, and the evidence for it.
    light: MachineState,
    why: String,
    evidence: Evidence,
    /// What the last verdict said.
    reason: Reason,
    /// When it last began to run, by its own time.
    on_since: Option<Time>,
    /// The end of its last window that was judged, or could not be, by its own time.
    judged: Time,
    /// When that was.
    judged_at: Time,
    /// Since when it has been warming up.
    warming_since: Time,
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
    wall: Time,
    desk: second::Desk,
    lines: BTreeMap<Name, LineState>,
    links: BTreeMap<Name, Link>,
    clock_set: Time,
}

#[derive(Serialize, Deserialize)]
struct UnitSnapshot {
    name: Name,
    pipe: pipeline::State,
    state: UnitState,
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
            pending: 0,
            max_pending: MAX_PENDING_READINGS,
            ordinal,
            flood,
            ledger,
            running,
            now,
            wall,
            links: BTreeMap::new(),
            clock_set: Time::default(),
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
        self.units.iter().map(|u| (u.pipe.name().clone(), u.state.light))
    }

    /// How the machines stand, for a dashboard that starts after a restart.
    pub fn present(&self) -> Vec<Live> {
        let mut live = Vec::new();
        for u in &self.units {
            let alarms = [&u.state.anomaly, &u.state.input].into_iter().filter_map(Tracker::alarm);
            live.extend(alarms.map(|a| Live::Alarm(Arc::new(a.clone()), self.recorder.alarm(a).data.into())));
            live.push(u.shown(u.state.heard));
        }
        live.extend(self.flood.flood().map(|f| Live::Flood(Some(f.clone()))));
        live
    }

    /// Takes a group in.
    pub fn step(&mut self, group: &Group) -> Outcome {
        let mut out = Outcome { first_ordinal: self.ordinal, ..Outcome::default() };
        let mut touched = Vec::new();
        let (mut again, mut source) = (false, None);
        for input in &group.inputs {
            match input {
                Input::Readings(arrived, readings) => {
                    self.hear_clock(*arrived);
                    let delivery = Delivery { source: source.take(), arrived: *arrived, again };
                    self.take(readings, &delivery, &mut touched, &mut out);
                    again = false;
                }
                Input::Again => again = true,
                Input::From(name) => source = Some(name),
                Input::Link(link) => self.link(link, &mut out),
                Input::GatewayClock(now, by) => self.gateway_clock(*now, *by, &mut out),
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
        for i in touched {
            self.refresh_light(i, self.wall, &mut out);
        }
        self.review(&mut out);
        self.ordinal += out.records.len() as u64;
        out
    }

    fn hear_clock(&mut self, now: Time) {
        (self.now, self.wall) = (self.now.max(now), now);
    }

    /// Closes a machine's steps up to the next window it has for the model.
    fn advance(&mut self, i: usize, out: &mut Outcome) -> Option<Window> {
        while let Some(step) = self.next_step(i, out) {
            if let Some(window) = self.closed(i, step, out) {
                return Some(window);
            }
        }
        None
    }

    /// A machine's next step. Where too many readings wait over all machines, it is closed though late ones may
    /// come: memory is bounded, and what comes late then is counted as late.
    fn next_step(&mut self, i: usize, out: &mut Outcome) -> Option<Step> {
        let before = self.units[i].pipe.pending();
        let mut step = self.units[i].pipe.pop();
        if step.is_none() && self.pending > self.max_pending && before > 0 {
            step = self.units[i].pipe.pop_idle();
            out.tally.closed_early += u64::from(step.is_some());
        }
        self.pending -= before - self.units[i].pipe.pending();
        step
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
                    self.watched(i, step.at, out);
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

    /// Everything that has to survive a restart, in one piece.
    pub fn snapshot(&self) -> Vec<u8> {
        self.shared_part(self.units.iter().map(Unit::kept).collect())
    }

    /// The same in parts by name: first what machines share, then each machine.
    pub fn parts(&self) -> impl Iterator<Item = (Name, Vec<u8>)> {
        let shared = (Name::from("engine"), self.shared_part(Vec::new()));
        let machine = |u: &Unit| {
            let bytes = postcard::to_stdvec(&u.kept()).unwrap_or_default();
            (format!("machine/{}", u.pipe.name()).as_str().into(), bytes)
        };
        std::iter::once(shared).chain(self.units.iter().map(machine))
    }

    fn shared_part(&self, units: Vec<UnitSnapshot>) -> Vec<u8> {
        let snapshot = Snapshot {
            version: SNAPSHOT_VERSION,
            ordinal: self.ordinal,
            units,
            flood: self.flood.clone(),
            ledger: self.ledger.clone(),
            running: self.running.clone(),
            now: self.now,
            wall: self.wall,
            desk: self.desk.clone(),
            lines: self.line_states(),
            links: self.links.clone(),
            clock_set: self.clock_set,
        };
        // Encoding into memory cannot fail for these types.
        postcard::to_stdvec(&snapshot).unwrap_or_default()
    }

    /// Goes back to a snapshot. Machines that no block matches any more are left out; a machine
    /// whose model has changed its channels starts afresh, and so does what another model kept.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.restore_parts([bytes])
    }

    /// The same of the parts that [`Engine::parts`] gave, in their order.
    pub fn restore_parts<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<(), String> {
        let damaged = |e| format!("a damaged snapshot: {e}");
        let mut parts = parts.into_iter();
        let bytes = parts.next().ok_or("a snapshot without parts")?;
        let (version, _): (u32, _) = postcard::take_from_bytes(bytes).map_err(damaged)?;
        if version != SNAPSHOT_VERSION {
            return Err(format!("snapshots of version {version} are not known here"));
        }
        let mut snapshot: Snapshot = postcard::from_bytes(bytes).map_err(damaged)?;
        for bytes in parts {
            snapshot.units.push(postcard::from_bytes(bytes).map_err(damaged)?);
        }
        self.ordinal = snapshot.ordinal;
        (self.flood, self.ledger, self.running) = (snapshot.flood, snapshot.ledger, snapshot.running);
        (self.now, self.wall) = (snapshot.now, snapshot.wall);
        (self.links, self.clock_set) = (snapshot.links, snapshot.clock_set);
        self.desk = snapshot.desk.restored(self.policy.as_ref());
        self.line_up(snapshot.lines);
        self.units.clear();
        self.places.clear();
        for u in snapshot.units {
            let Some(block) = self.blocks.iter().position(|b| b.matcher.matches(&u.name)) else { continue };
            let layout = &self.blocks[block].layout;
            let mut state = u.state;
            if !u.pipe.fits(layout) {
                (state.reason, state.warming_since) = (Reason::WarmingUp, snapshot.now);
            }
            let pipe = pipeline::Machine::restore(u.name.clone(), layout.clone(), u.pipe);
            self.places.insert(u.name, self.units.len());
            self.units.push(Unit { block, pipe, state });
            let i = self.units.len() - 1;
            let line = self.line(i);
            let incumbent = Memory::of(line.map(|l| &*l.incumbent));
            let candidate = Memory::of(line.and_then(|l| l.candidate.as_deref()));
            let unit = &mut self.units[i];
            unit.state.memory.renew(incumbent);
            unit.state.rival.renew(candidate);
        }
        self.signals = self.units.iter().map(|u| u.pipe.signals()).sum();
        self.pending = self.units.iter().map(|u| u.pipe.pending()).sum();
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
        let state = UnitState {
            memory: Memory::default(),
            rival: Memory::default(),
            anomaly: Tracker::default(),
            input: Tracker::default(),
            heard,
            first_heard: heard,
            light: MachineState::White,
            why: String::new(),
            evidence: Evidence::default(),
            reason: Reason::WarmingUp,
            on_since: None,
            judged: Time::default(),
            judged_at: heard,
            warming_since: heard,
        };
        Unit { block, pipe, state }
    }

    fn tracker(&self, condition: Condition) -> &Tracker {
        match condition {
            Condition::Anomaly => &self.state.anomaly,
            Condition::Input => &self.state.input,
        }
    }

    fn tracker_mut(&mut self, condition: Condition) -> &mut Tracker {
        match condition {
            Condition::Anomaly => &mut self.state.anomaly,
            Condition::Input => &mut self.state.input,
        }
    }

    /// What of it has to survive.
    fn kept(&self) -> UnitSnapshot {
        UnitSnapshot { name: self.pipe.name().clone(), pipe: self.pipe.state().clone(), state: self.state.clone() }
    }

    /// Its state for dashboards.
    fn shown(&self, at: Time) -> Live {
        let (machine, light, why) = (self.pipe.name().clone(), self.state.light, self.state.why.clone());
        Live::State { machine, at, light, why }
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
