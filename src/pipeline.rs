//! Data manipulation (ISO 13374): quality gates, alignment to a fixed-rate grid, the machine-off
//! gate and sliding windows. Pure: time comes in with the readings, so a replay does the same again.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Cause, Name, Quality, Reading, Reason, Time, Window};

pub mod align;
pub mod clock;
pub mod evidence;
mod layout;
pub mod mode;
mod recent;
mod rhythm;
pub mod window;

use align::{Refused, Row, Track, TroubleKind};
use clock::Step as ClockStep;
pub use layout::{Layout, Settings, StaleAfter};
use window::Rows;

/// How far ahead of the wall clock a reading may be before it is refused.
const FUTURE_LIMIT: Duration = Duration::from_secs(60);
/// Steps that one reading may close; steps beyond that are skipped and told as a gap.
const STEPS_PER_READING: u32 = 1_000;
/// Steps that may be closed at once after a machine has been heard for a while.
const MOST_STEPS: u32 = 200_000;
/// Offsets (ns) of two signals of one device that are nearer than this are the same.
const SAME_OFFSET: i64 = 1_500_000_000;
/// Signals of one device whose clocks step alike within this time have seen one step.
const ONE_CHANGE: Duration = Duration::from_secs(300);
/// A wall clock earlier than this (2024-01-01) has not been set yet and judges nobody.
const CLOCK_IS_SET: Time = Time(1_704_067_200_000_000_000);
/// Signals of one machine that are followed; more would be a topic storm, not a machine.
pub const MAX_SIGNALS: usize = 256;

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The device's clock had stepped, until that was adopted.
    Clock,
    /// The grid would have had more steps than can be closed.
    TooManySteps,
}

impl GapReason {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::NoData => "no_data",
            GapReason::Late => "late",
            GapReason::Clock => "clock",
            GapReason::TooManySteps => "too_many_steps",
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
    /// Another topic or device feeds this signal.
    OtherOrigin,
}

/// A step of a device's clock that was adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockChange {
    /// The signal by which it was found.
    pub signal: Name,
    /// What was found.
    pub step: ClockStep,
    /// Where readings are missing because of it.
    pub gap: Gap,
}

/// One machine's pipeline.
pub struct Machine {
    name: Name,
    layout: Arc<Layout>,
    state: State,
    /// Until somebody takes it, right after the reading that brought it.
    clock_change: Option<ClockChange>,
    /// Readings that wait for their step, of all signals.
    pending: usize,
}

/// What has to survive a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The grid's step (ns): another grid does not go on with what is kept.
    rate: i64,
    tracks: Vec<Track>,
    /// The next step to close.
    next: Option<i64>,
    rows: Rows,
    off: bool,
    /// Readings lost to lateness since the last gap was told.
    late: Option<Gap>,
    /// Steps that may be closed until more is heard.
    allowance: u32,
    /// The last step of a device's clock that was told, and when.
    clock_told: Option<(ClockStep, Time)>,
}

impl Machine {
    /// A machine that has not been heard yet.
    pub fn new(name: Name, layout: Arc<Layout>) -> Machine {
        let tracks = layout.channels.iter().cloned().map(Track::new).collect();
        let state = State { rate: layout.rate, tracks, ..State::default() };
        Machine { name, layout, state, clock_change: None, pending: 0 }
    }

    /// A machine as it was. Under another layout its signals are known, so that repeats and clocks are
    /// recognised, and its windows begin anew, after the last step that was closed.
    pub fn restore(name: Name, layout: Arc<Layout>, state: State) -> Machine {
        let state = if state.fits(&layout) { state } else { State::carried_over(state, &layout) };
        let pending = state.tracks.iter().map(Track::pending).sum();
        Machine { name, layout, state, clock_change: None, pending }
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

    /// Takes one reading of an unnamed source; see [`Machine::push_from`].
    pub fn push(&mut self, reading: &Reading, arrived: Time, again: bool) -> Taken {
        self.push_from(None, reading, arrived, again)
    }

    /// Takes one reading; `arrived` is the wall clock when it came, `again` whether the other side says
    /// that it may have delivered it before. Afterwards [`Machine::take_clock_change`] may have news.
    pub fn push_from(&mut self, source: Option<&Name>, reading: &Reading, arrived: Time, again: bool) -> Taken {
        let Some(index) = self.track(&reading.signal) else { return Taken::Limit };
        self.state.allowance = self.state.allowance.saturating_add(STEPS_PER_READING).min(MOST_STEPS);
        if !self.state.tracks[index].admits(reading.origin, source, arrived, &self.layout) {
            return Taken::OtherOrigin;
        }
        if let Some(step) = self.state.tracks[index].clock_mut().put_right(reading, arrived) {
            self.adopt(index, step, arrived);
        }
        let taken = self.take(index, reading, arrived, again);
        let kind = match taken {
            Taken::Late => TroubleKind::Late,
            Taken::Future => TroubleKind::Future,
            Taken::Duplicate if !again => TroubleKind::Repeated,
            _ => return taken,
        };
        match self.state.tracks[index].refused(reading, arrived, kind) {
            Some(step) => {
                self.adopt(index, step, arrived);
                self.take(index, reading, arrived, again)
            }
            None => taken,
        }
    }

    /// Moves all arrivals: the gateway's clock was set by so many nanoseconds.
    pub fn shift_arrivals(&mut self, by: i64) {
        self.state.tracks.iter_mut().for_each(|t| t.shift_arrivals(by));
        self.state.clock_told = self.state.clock_told.map(|(step, at)| (step, at.shifted(by)));
    }

    /// The clock change that the last reading brought, if it did.
    pub fn take_clock_change(&mut self) -> Option<ClockChange> {
        self.clock_change.take()
    }

    fn take(&mut self, index: usize, reading: &Reading, arrived: Time, again: bool) -> Taken {
        let track = &mut self.state.tracks[index];
        let at = track.clock().corrected(reading, arrived);
        if arrived > CLOCK_IS_SET && at > arrived.plus(FUTURE_LIMIT) {
            return Taken::Future;
        }
        let step = self.layout.step_of(at);
        let next = *self.state.next.get_or_insert(step);
        let range = self.layout.range_of(&reading.signal);
        let jump = self.layout.lateness.max(self.layout.rate.saturating_mul(8));
        match track.push(reading, at, arrived, range, step < next, jump) {
            Err(Refused::Late) if again && track.has_forgotten(at) => Taken::Duplicate,
            Ok(()) => {
                self.pending += 1;
                Taken::Yes
            }
            Err(Refused::Duplicate) => Taken::Duplicate,
            Err(Refused::Late) => {
                self.count_late(at);
                Taken::Late
            }
        }
    }

    /// A device's clock has stepped: windows are cut, since they would mix two times. Signals of one device share
    /// one offset, and only the first of them is told.
    fn adopt(&mut self, index: usize, step: ClockStep, arrived: Time) {
        self.state.rows.clear();
        let late = self.state.late.take();
        let told = self.state.clock_told.filter(|(_, at)| arrived.since(*at) < ONE_CHANGE);
        let step = match (step, told) {
            (ClockStep::Offset(new), Some((ClockStep::Offset(same), _)))
                if new.abs_diff(same) <= SAME_OFFSET as u64 =>
            {
                self.state.tracks[index].clock_mut().align(same);
                return;
            }
            (ClockStep::StandsStill, Some((ClockStep::StandsStill, _))) => return,
            (step, _) => step,
        };
        self.state.clock_told = Some((step, arrived));
        let track = &self.state.tracks[index];
        let trouble = track.trouble();
        let from = trouble.map_or(arrived, |t| t.since);
        let refused = late.map_or(0, |g| g.readings).max(trouble.map_or(0, |t| t.readings));
        let gap = Gap { reason: GapReason::Clock, from, to: arrived, readings: refused };
        self.clock_change = Some(ClockChange { signal: track.signal().clone(), step, gap });
    }

    /// Closes the next step if it is time; call until `None`.
    pub fn pop(&mut self) -> Option<Step> {
        let next = self.state.next?;
        if !self.is_complete(self.layout.time_of(next)) {
            return None;
        }
        self.state.allowance = self.state.allowance.saturating_sub(1);
        if self.state.allowance == 0 {
            return self.skip(next);
        }
        Some(self.close(next))
    }

    /// Goes on at the next reading, or at the newest where all are in a step, without the steps before it.
    fn skip(&mut self, next: i64) -> Option<Step> {
        let pending = self.state.tracks.iter().filter_map(Track::earliest_pending).min();
        let newest = self.state.tracks.iter().filter_map(Track::frontier).max()?;
        let target = self.layout.step_of(pending.unwrap_or(newest).min(newest));
        if target <= next {
            return Some(self.close(next));
        }
        self.state.rows.clear();
        let (from, to) = (self.layout.time_of(next), self.layout.time_of(target));
        let step = self.close(target);
        let gap = Gap { reason: GapReason::TooManySteps, from, to, readings: 0 };
        Some(Step { gap: step.gap.or(Some(gap)), ..step })
    }

    /// Closes the next step though some signals are missing: nothing has been heard for so long
    /// that waiting is of no use. `None` when nothing is pending.
    pub fn pop_idle(&mut self) -> Option<Step> {
        let next = self.state.next.filter(|_| self.is_pending())?;
        Some(self.close(next))
    }

    /// Readings that wait for their step to be closed.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Whether readings wait for their step to be closed.
    pub fn is_pending(&self) -> bool {
        self.pending > 0
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
        self.pending = self.state.tracks.iter().map(Track::pending).sum();
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
        let is_stale =
            |t: &Track| t.last_heard().is_none_or(|at| end.0.saturating_sub(at.0) > t.valid_for(&self.layout));
        let silent = self.layout.step_of(pending) > step && self.state.tracks.iter().all(is_stale);
        silent.then_some(Gap { reason: GapReason::NoData, from: last, to: pending, readings: 0 })
    }

    fn judge(&mut self, step: i64, end: Time, row: &[Row]) -> Option<Due> {
        let unknown = self.update_mode(row);
        if self.layout.channels.is_empty() {
            return None;
        }
        let due = step.rem_euclid(self.layout.stride as i64) == 0;
        if self.state.off {
            self.state.rows.clear();
            let not = match unknown {
                // It was off when that was last known, which is not to know that it is.
                Some(signal) => {
                    let (reason, quality) = (Reason::InputBad, Quality::Stale);
                    Due::NotScored { reason, quality, channel: Some(signal), others: 0 }
                }
                None => {
                    let (reason, quality) = (Reason::MachineOff, Quality::Good);
                    Due::NotScored { reason, quality, channel: None, others: 0 }
                }
            };
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

    /// Notes whether the machine runs; a signal without which that cannot be told, if it cannot.
    fn update_mode(&mut self, row: &[Row]) -> Option<Name> {
        let running = self.layout.running.as_ref()?;
        let tracks = &self.state.tracks;
        let value = |signal: &str| {
            let at = tracks.iter().position(|t| &**t.signal() == signal)?;
            row[at].value.filter(|_| row[at].quality < Quality::Stale)
        };
        match running.holds(&value) {
            Some(on) => {
                self.state.off = !on;
                None
            }
            // A mode that cannot be told stays what it was.
            None => running.signals().into_iter().find(|s| value(s).is_none()).map(Name::from),
        }
    }

    fn count_late(&mut self, at: Time) {
        let gap = self.state.late.get_or_insert(Gap { reason: GapReason::Late, from: at, to: at, readings: 0 });
        gap.from = gap.from.min(at);
        gap.to = gap.to.max(at);
        gap.readings += 1;
    }
}

impl State {
    /// Whether a machine of this layout can go on with it as it is.
    pub fn fits(&self, layout: &Layout) -> bool {
        self.rate == layout.rate
            && self.tracks.len() >= layout.channels.len()
            && self.tracks.iter().zip(&layout.channels).all(|(t, c)| t.signal() == c)
            && self.rows.fits(layout.steps, layout.channels.len())
    }

    /// What of a state goes on under another layout.
    fn carried_over(old: State, layout: &Layout) -> State {
        let closed = old.next.map(|next| Time((next - 1).saturating_mul(old.rate)));
        let mut rest = old.tracks;
        let mut known = |name: &Name| {
            let at = rest.iter().position(|t| t.signal() == name);
            at.map_or_else(|| Track::new(name.clone()), |at| rest.remove(at))
        };
        let mut tracks: Vec<Track> = layout.channels.iter().map(&mut known).collect();
        tracks.append(&mut rest);
        State {
            rate: layout.rate,
            tracks,
            next: closed.map(|end| layout.step_of(Time(end.0.saturating_add(1)))),
            off: old.off,
            late: old.late,
            ..State::default()
        }
    }
}

#[cfg(test)]
mod tests;
