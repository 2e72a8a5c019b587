//! Data manipulation (ISO 13374): quality gates, alignment to a fixed-rate grid, the machine-off
//! gate and sliding windows. Pure: time comes in with the readings, so a replay does the same again.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::Section;
use crate::types::{Cause, Name, Quality, Reading, Reason, Time, Window};

pub mod align;
pub mod mode;
mod recent;
pub mod window;

use align::{Refused, Row, Track};
use mode::Condition;
use window::Rows;

/// How far ahead of the wall clock a reading may be before it is refused.
const FUTURE_LIMIT: Duration = Duration::from_secs(60);
/// A wall clock earlier than this (2024-01-01) has not been set yet and judges nobody.
const CLOCK_IS_SET: Time = Time(1_704_067_200_000_000_000);
/// Signals of one machine that are followed; more would be a topic storm, not a machine.
pub const MAX_SIGNALS: usize = 256;

/// The pipeline's part of a `[[machine]]` block.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The grid's step; absent: the model's.
    pub rate: Option<Duration>,
    /// How long a value stays valid without a new one; absent: five steps, at least 1 s.
    pub stale_after: Option<Duration>,
    /// How long to wait for stragglers before a step is closed without them; absent: two steps, at
    /// least 200 ms, and no waiting at all once every channel has been heard.
    pub lateness: Option<Duration>,
    /// The machine is off unless this holds.
    pub running: Option<Condition>,
    /// Signals and the values they can have: outside is bad.
    pub ranges: Vec<(String, [f64; 2])>,
    /// A channel that rests on the very same value for longer is bad; absent: never.
    pub stuck_after: Option<Duration>,
}

impl Settings {
    /// Reads its keys of a `[[machine]]` section.
    pub fn read(s: &Section<'_>) -> Settings {
        let ranges = s.section("range").map(|r| {
            let read = |key: String| r.floats::<2>(&key).map(|bounds| (key, bounds));
            r.keys().into_iter().filter_map(read).collect()
        });
        let running = s.string("running").and_then(|text| match Condition::parse(&text) {
            Ok(c) => Some(c),
            Err(e) => {
                s.problem("running", e);
                None
            }
        });
        let positive = |key: &str| {
            let d = s.duration(key);
            if d.is_some_and(|d| d.is_zero()) {
                s.problem(key, "has to be longer than zero");
            }
            d.filter(|d| !d.is_zero())
        };
        Settings {
            rate: positive("rate"),
            stale_after: positive("stale_after"),
            lateness: s.duration("lateness"),
            running,
            ranges: ranges.unwrap_or_default(),
            stuck_after: positive("stuck_after"),
        }
    }
}

/// Everything fixed about one machine's pipeline: the settings met with its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The grid's step in nanoseconds, above zero.
    pub rate: i64,
    /// Rows in a window.
    pub steps: usize,
    /// A window is due at every step whose index is a multiple of this.
    pub stride: usize,
    /// The signal of each of the model's channels, in order; empty without a model.
    pub channels: Vec<Name>,
    /// Nanoseconds a value stays valid.
    pub stale_after: i64,
    /// Nanoseconds to wait for stragglers.
    pub lateness: i64,
    /// Close a step as soon as every channel has been heard.
    pub eager: bool,
    /// The machine is off unless this holds.
    pub running: Option<Condition>,
    /// Bounds by signal.
    pub ranges: Vec<(String, [f64; 2])>,
    /// Nanoseconds after which a resting channel is bad.
    pub stuck_after: Option<i64>,
}

impl Layout {
    /// Settings met with what the model asks for; without a model the grid is 1 s.
    pub fn new(settings: &Settings, channels: Vec<Name>, steps: usize, stride: usize, rate: Duration) -> Layout {
        let rate = nanos(settings.rate.unwrap_or(rate)).max(1);
        Layout {
            rate,
            steps: steps.max(1),
            stride: stride.max(1),
            channels,
            stale_after: settings.stale_after.map_or((5 * rate).max(1_000_000_000), nanos),
            lateness: settings.lateness.map_or((2 * rate).max(200_000_000), nanos),
            eager: settings.lateness.is_none(),
            running: settings.running.clone(),
            ranges: settings.ranges.clone(),
            stuck_after: settings.stuck_after.map(nanos),
        }
    }

    fn step_of(&self, at: Time) -> i64 {
        at.0.saturating_add(self.rate - 1).div_euclid(self.rate)
    }

    fn time_of(&self, step: i64) -> Time {
        Time(step.saturating_mul(self.rate))
    }

    fn range_of(&self, signal: &str) -> Option<[f64; 2]> {
        self.ranges.iter().find(|(s, _)| s == signal).map(|(_, r)| *r)
    }
}

fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX / 4)
}

/// One closed step of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The step's time.
    pub at: Time,
    /// Each followed signal's value.
    pub values: Vec<(Name, Option<f64>, Quality, Cause)>,
    /// What is due to the model, if anything.
    pub due: Option<Due>,
    /// Data that is missing before this step.
    pub gap: Option<Gap>,
}

/// What a step asks of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Due {
    /// Score this.
    Window(Window),
    /// Nothing can be scored, and why.
    NotScored {
        /// `MachineOff`, `WarmingUp` or `InputBad`.
        reason: Reason,
        /// The worst quality among the channels.
        quality: Quality,
        /// The channel that is to blame, where one is: the first of the worst.
        channel: Option<Name>,
        /// How many more are as bad as cannot be used.
        others: usize,
    },
}

/// A stretch without usable data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// `no_data` or `late`.
    pub reason: GapReason,
    /// Where it begins.
    pub from: Time,
    /// Where it ends.
    pub to: Time,
    /// Readings lost in it; 0 where none came.
    pub readings: u64,
}

/// Why data is missing.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Nothing came.
    NoData,
    /// It came after its step had been closed.
    Late,
}

impl GapReason {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::NoData => "no_data",
            GapReason::Late => "late",
        }
    }
}

/// What became of a reading.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It will be in its step.
    Yes,
    /// Heard before.
    Duplicate,
    /// Its step is closed.
    Late,
    /// Too far ahead of the wall clock.
    Future,
    /// The machine has too many signals.
    Limit,
}

/// One machine's pipeline.
pub struct Machine {
    name: Name,
    layout: Arc<Layout>,
    state: State,
}

/// What has to survive a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    tracks: Vec<Track>,
    /// The next step to close.
    next: Option<i64>,
    rows: Rows,
    off: bool,
    /// Readings lost to lateness since the last gap was told.
    late: Option<Gap>,
}

impl Machine {
    /// A machine that has not been heard yet.
    pub fn new(name: Name, layout: Arc<Layout>) -> Machine {
        let mut state = State::default();
        state.tracks.extend(layout.channels.iter().cloned().map(Track::new));
        Machine { name, layout, state }
    }

    /// A machine as it was. A state that was kept under another layout starts afresh.
    pub fn restore(name: Name, layout: Arc<Layout>, state: State) -> Machine {
        let same = state.tracks.len() >= layout.channels.len()
            && state.tracks.iter().zip(&layout.channels).all(|(t, c)| t.signal() == c)
            && state.rows.fits(layout.steps, layout.channels.len());
        if same { Machine { name, layout, state } } else { Machine::new(name, layout) }
    }

    /// What has to survive a restart.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The machine's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Signals that are followed.
    pub fn signals(&self) -> usize {
        self.state.tracks.len()
    }

    /// Whether this signal is followed.
    pub fn follows(&self, signal: &str) -> bool {
        self.state.tracks.iter().any(|t| &**t.signal() == signal)
    }

    /// Takes one reading; `arrived` is the wall clock when it came, `again` whether the other side says
    /// that it may have delivered it before.
    pub fn push(&mut self, reading: &Reading, arrived: Time, again: bool) -> Taken {
        if arrived > CLOCK_IS_SET && reading.at > arrived.plus(FUTURE_LIMIT) {
            return Taken::Future;
        }
        let step = self.layout.step_of(reading.at);
        let Some(index) = self.track(&reading.signal) else { return Taken::Limit };
        let next = *self.state.next.get_or_insert(step);
        let range = self.layout.range_of(&reading.signal);
        let jump = self.layout.lateness.max(8 * self.layout.rate);
        let track = &mut self.state.tracks[index];
        match track.push(reading, arrived, range, step < next, jump) {
            Err(Refused::Late) if again && track.has_forgotten(reading.at) => Taken::Duplicate,
            Ok(()) => Taken::Yes,
            Err(Refused::Duplicate) => Taken::Duplicate,
            Err(Refused::Late) => {
                self.count_late(reading.at);
                Taken::Late
            }
        }
    }

    /// Closes the next step if it is time; call until `None`.
    pub fn pop(&mut self) -> Option<Step> {
        let next = self.state.next?;
        if !self.is_complete(self.layout.time_of(next)) {
            return None;
        }
        Some(self.close(next))
    }

    /// Closes the next step though some signals are missing: nothing has been heard for so long
    /// that waiting is of no use. `None` when nothing is pending.
    pub fn pop_idle(&mut self) -> Option<Step> {
        let next = self.state.next.filter(|_| self.is_pending())?;
        Some(self.close(next))
    }

    /// Whether readings wait for their step to be closed.
    pub fn is_pending(&self) -> bool {
        self.state.tracks.iter().any(|t| t.earliest_pending().is_some())
    }

    /// Whether every channel has been heard beyond `end`, or the stragglers had their time.
    fn is_complete(&self, end: Time) -> bool {
        let n = if self.layout.channels.is_empty() { self.state.tracks.len() } else { self.layout.channels.len() };
        let heard = |t: &Track| t.frontier() >= Some(end);
        let all = self.layout.eager && self.state.tracks[..n].iter().all(heard);
        let newest = self.state.tracks.iter().filter_map(Track::frontier).max();
        all || newest.is_some_and(|t| t.0 >= end.0.saturating_add(self.layout.lateness))
    }

    fn track(&mut self, signal: &Name) -> Option<usize> {
        if let Some(i) = self.state.tracks.iter().position(|t| t.signal() == signal) {
            return Some(i);
        }
        (self.state.tracks.len() < MAX_SIGNALS).then(|| {
            self.state.tracks.push(Track::new(signal.clone()));
            self.state.tracks.len() - 1
        })
    }

    fn close(&mut self, step: i64) -> Step {
        let mut step = step;
        let mut gap = self.state.late.take_if(|g| self.layout.time_of(step).since(g.from) >= Duration::from_secs(10));
        if let Some(silence) = self.silence(step) {
            step = self.layout.step_of(silence.to).max(step);
            gap = Some(silence);
            self.state.rows.clear();
        }
        let end = self.layout.time_of(step);
        let row: Vec<Row> = self.state.tracks.iter_mut().map(|t| t.close(end, &self.layout)).collect();
        self.state.next = Some(step + 1);
        let due = self.judge(step, end, &row);
        let values = self.state.tracks.iter().zip(&row);
        let values = values.map(|(t, r)| (t.signal().clone(), r.value, r.quality, r.cause)).collect();
        Step { at: end, values, due, gap }
    }

    /// A stretch in which every signal was stale: it is skipped, not filled.
    fn silence(&self, step: i64) -> Option<Gap> {
        let end = self.layout.time_of(step);
        let last = self.state.tracks.iter().filter_map(Track::last_heard).max()?;
        let pending = self.state.tracks.iter().filter_map(Track::earliest_pending).min()?;
        let silent = end.0 - last.0 > self.layout.stale_after && self.layout.step_of(pending) > step;
        silent.then_some(Gap { reason: GapReason::NoData, from: last, to: pending, readings: 0 })
    }

    fn judge(&mut self, step: i64, end: Time, row: &[Row]) -> Option<Due> {
        if self.layout.channels.is_empty() {
            return None;
        }
        self.update_mode(row);
        let due = step.rem_euclid(self.layout.stride as i64) == 0;
        if self.state.off {
            self.state.rows.clear();
            let not = Due::NotScored { reason: Reason::MachineOff, quality: Quality::Good, channel: None, others: 0 };
            return due.then_some(not);
        }
        let channels = &row[..self.layout.channels.len()];
        self.state.rows.push(channels, self.layout.steps);
        if !due {
            return None;
        }
        let quality = self.state.rows.quality();
        // Of equals the first: the last is what `max_by_key` would give.
        let worst = quality.iter().copied().enumerate().rev().max_by_key(|(_, q)| *q);
        let (at, worst) = worst.unwrap_or((0, Quality::Good));
        let blame = (worst != Quality::Good).then(|| self.layout.channels[at].clone());
        if worst >= Quality::Stale {
            let others = quality.iter().filter(|q| **q >= Quality::Stale).count() - 1;
            return Some(Due::NotScored { reason: Reason::InputBad, quality: worst, channel: blame, others });
        }
        match self.state.rows.full(self.layout.steps) {
            Some(data) => Some(Due::Window(Window { machine: self.name.clone(), end, data, quality })),
            None => Some(Due::NotScored { reason: Reason::WarmingUp, quality: worst, channel: None, others: 0 }),
        }
    }

    fn update_mode(&mut self, row: &[Row]) {
        let Some(running) = &self.layout.running else { return };
        let tracks = &self.state.tracks;
        let value = |signal: &str| {
            let at = tracks.iter().position(|t| &**t.signal() == signal)?;
            row[at].value.filter(|_| row[at].quality < Quality::Stale)
        };
        // A mode that cannot be told stays what it was.
        if let Some(on) = running.holds(&value) {
            self.state.off = !on;
        }
    }

    fn count_late(&mut self, at: Time) {
        let gap = self.state.late.get_or_insert(Gap { reason: GapReason::Late, from: at, to: at, readings: 0 });
        gap.from = gap.from.min(at);
        gap.to = gap.to.max(at);
        gap.readings += 1;
    }
}

#[cfg(test)]
mod tests;
