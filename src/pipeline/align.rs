//! One signal on the grid: pending readings, the step's value, holding, staleness and stuckness.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Layout;
use super::clock::{DeviceClock, Step};
use super::recent::Recent;
use super::rhythm::Rhythm;
use crate::types::{Cause, Name, Origin, Quality, Reading, Time};

/// Times remembered to tell a repeat from a straggler. A broker that keeps to `receive_maximum` repeats
/// less; mosquitto 2.0.11 was seen to have its whole queue unacked, 1000 messages more for each ack.
const RECENT_TIMES: usize = 4096;
/// How long (ns) they are remembered. It counts by the arrivals, not by the readings' own time: a
/// backlog of hours is unacked for moments.
const RECENT_AGE: i64 = 10_000_000_000;
/// A pause between arrivals counts as no more than this (ns): what was unacked when the link or the
/// agent went down comes again when it is back, whenever that is.
const RECENT_PAUSE: i64 = 1_000_000_000;
/// Readings of one signal waiting for their step; beyond this the oldest step is overdue anyway.
const MAX_PENDING: usize = 65_536;

/// Messages may come in bursts: a shorter pause (ns) by the gateway's clock is not silence.
const SHORTEST_SILENCE: i64 = 2_000_000_000;

/// Why a reading was not taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A reading of that time was taken before.
    Duplicate,
    /// Its step is closed.
    Late,
}

/// A signal's value at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In the signal's unit; `None` when never heard.
    pub value: Option<f64>,
    /// How far to trust it.
    pub quality: Quality,
    /// Why not, or that it is held over.
    pub cause: Cause,
}

/// One signal of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Track {
    signal: Name,
    /// Not yet in a step, by time.
    pending: VecDeque<Point>,
    /// Times taken of late, and when on `heard_for` that was.
    recent: Recent,
    /// Nanoseconds in which this signal arrived, pauses cut short.
    heard_for: i64,
    /// When it last arrived, by the wall clock.
    arrived: Time,
    /// The last usable value and when it was measured.
    last: Option<(Time, f64)>,
    /// When anything at all was last taken into a step, usable or not.
    heard: Option<Time>,
    /// Time up to which this signal has been heard without a leap.
    frontier: Option<Time>,
    /// A reading far ahead of the frontier: believed once a second one agrees.
    leap: Option<Time>,
    /// Nanoseconds between the last two readings that agreed on a leap: how slow the signal is.
    leap_pace: i64,
    /// Since when the value has been the very same.
    resting_since: Option<Time>,
    /// The topic or device that feeds it, and the source that one belongs to.
    origin: Origin,
    source: Option<Name>,
    /// Distances between readings by their own time, and by their arrival.
    pace: Rhythm,
    arrivals: Rhythm,
    /// The clock behind it.
    clock: DeviceClock,
    /// When a usable value arrived last, by the gateway's clock.
    usable: Option<Time>,
    /// Why what came after that cannot be used.
    trouble: Option<Trouble>,
}

/// Why the newest readings of a signal cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong with them.
    pub kind: TroubleKind,
    /// When the first of them arrived.
    pub since: Time,
    /// How many there are.
    pub readings: u64,
    /// Device time minus arrival (ns) of the newest one.
    pub offset: i64,
}

/// What is wrong with readings that cannot be used.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TroubleKind {
    /// They are marked bad, or are out of range.
    Bad(Cause),
    /// Their step is closed.
    Late,
    /// They have the time of one before them.
    Repeated,
    /// They are from the future.
    Future,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    at: Time,
    value: f64,
    quality: Quality,
    cause: Cause,
}

impl Track {
    /// A signal not heard yet.
    pub fn new(signal: Name) -> Track {
        Track {
            signal,
            pending: VecDeque::new(),
            recent: Recent::default(),
            heard_for: 0,
            arrived: Time(0),
            last: None,
            heard: None,
            frontier: None,
            leap: None,
            leap_pace: 0,
            resting_since: None,
            origin: Origin::default(),
            source: None,
            pace: Rhythm::default(),
            arrivals: Rhythm::default(),
            clock: DeviceClock::default(),
            usable: None,
            trouble: None,
        }
    }

    /// The signal's name.
    pub fn signal(&self) -> &Name {
        &self.signal
    }

    /// Heard without a leap up to here.
    pub fn frontier(&self) -> Option<Time> {
        self.frontier
    }

    /// The newest reading that is in a step.
    pub fn last_heard(&self) -> Option<Time> {
        self.heard
    }

    /// Readings that wait for their step.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The oldest reading that is not.
    pub fn earliest_pending(&self) -> Option<Time> {
        self.pending.front().map(|p| p.at)
    }

    /// The source that feeds it, once a reading with a source has come.
    pub fn source(&self) -> Option<&Name> {
        self.source.as_ref()
    }

    /// When a usable value arrived last, by the gateway's clock.
    pub fn usable(&self) -> Option<Time> {
        self.usable
    }

    /// Moves all arrivals: the gateway's clock was set by so many nanoseconds.
    pub(super) fn shift_arrivals(&mut self, by: i64) {
        if self.arrived != Time(0) {
            self.arrived = self.arrived.shifted(by);
        }
        self.usable = self.usable.map(|at| at.shifted(by));
        if let Some(trouble) = &mut self.trouble {
            trouble.since = trouble.since.shifted(by);
        }
    }

    /// Why what came after that cannot be used.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// The last usable value.
    pub fn value(&self) -> Option<f64> {
        self.last.map(|(_, v)| v)
    }

    /// The clock behind it.
    pub fn clock(&self) -> &DeviceClock {
        &self.clock
    }

    /// The same, to be aligned with another's.
    pub fn clock_mut(&mut self) -> &mut DeviceClock {
        &mut self.clock
    }

    /// The usual distance (ns) between arrivals, once it is known.
    pub fn usual_arrival(&self) -> Option<i64> {
        self.arrivals.usual()
    }

    /// How long (ns) no value may have come by the gateway's clock before the signal counts as silent.
    pub fn silence_limit(&self, layout: &Layout) -> i64 {
        layout.stale_after.limit(&self.signal, &self.arrivals).max(SHORTEST_SILENCE)
    }

    /// Nanoseconds of its own time that a value stays valid.
    pub fn valid_for(&self, layout: &Layout) -> i64 {
        layout.stale_after.limit(&self.signal, &self.pace)
    }

    /// Whether readings of this origin are the signal's. The first origin is; another one takes over once the
    /// first has been silent for too long.
    pub fn admits(&mut self, origin: Origin, source: Option<&Name>, arrived: Time, layout: &Layout) -> bool {
        if origin.is_known() && origin != self.origin {
            let silent = || arrived.since(self.arrived).as_nanos() as i64 > self.silence_limit(layout);
            if self.origin.is_known() && !silent() {
                return false;
            }
            self.origin = origin;
        }
        if let Some(source) = source.filter(|s| self.source.as_ref() != Some(*s)) {
            self.source = Some(source.clone());
        }
        true
    }

    /// Notes that a reading was refused for its time; what that tells of the device's clock.
    pub fn refused(&mut self, r: &Reading, arrived: Time, kind: TroubleKind) -> Option<Step> {
        self.note(kind, r, arrived);
        self.clock.refused(r, arrived)
    }

    fn note(&mut self, kind: TroubleKind, r: &Reading, arrived: Time) {
        let offset = r.at.0.saturating_sub(arrived.0);
        match self.trouble.as_mut().filter(|t| t.kind == kind) {
            Some(t) => (t.readings, t.offset) = (t.readings.saturating_add(1), offset),
            None => self.trouble = Some(Trouble { kind, since: arrived, readings: 1, offset }),
        }
    }

    /// Takes a reading that counts as of `at` and arrived at `arrived`. `closed`: its step is closed already. `jump` (ns): how far
    /// ahead of the frontier one reading alone is not believed, so that a single wild clock closes no steps.
    pub fn push(
        &mut self,
        r: &Reading,
        at: Time,
        arrived: Time,
        range: Option<[f64; 2]>,
        closed: bool,
        jump: i64,
    ) -> Result<(), Refused> {
        // What was repeated once may be repeated until it is acked.
        if self.recent.hear(at.0, self.heard_for) {
            return Err(Refused::Duplicate);
        }
        if closed || self.pending.len() >= MAX_PENDING {
            return Err(Refused::Late);
        }
        self.remember(at.0, arrived);
        self.advance(at, jump);
        let (quality, cause) = gate(r, range);
        if quality == Quality::Bad {
            self.note(TroubleKind::Bad(cause), r, arrived);
        } else {
            (self.usable, self.trouble) = (Some(arrived), None);
        }
        self.clock.taken(r, arrived);
        let in_order = self.pending.back().is_none_or(|last| last.at <= at);
        let place = if in_order { self.pending.len() } else { self.pending.partition_point(|p| p.at <= at) };
        self.pending.insert(place, Point { at, value: r.value, quality, cause });
        Ok(())
    }

    /// Whether a reading of that time may have been taken so long ago that nobody knows.
    pub fn has_forgotten(&self, at: Time) -> bool {
        self.recent.first().is_some_and(|first| at.0 < first)
    }

    /// The value at the step that ends at `end`: the mean of its usable readings, else the last
    /// value held, as long as that is valid.
    pub fn close(&mut self, end: Time, layout: &Layout) -> Row {
        let (mut mean, mut n, mut bad) = (0.0, 0.0, None);
        while let Some(p) = self.pending.pop_front_if(|p| p.at <= end) {
            self.pace.learn(self.heard.map_or(0, |heard| p.at.0.saturating_sub(heard.0)));
            self.heard = Some(p.at);
            if p.quality == Quality::Bad {
                bad = Some(p.cause);
                continue;
            }
            n += 1.0;
            // A running mean does not overflow where a sum would.
            mean += p.value / n - mean / n;
            if self.last.is_none_or(|(_, v)| v != p.value) {
                self.resting_since = Some(p.at);
            }
            self.last = Some((p.at, p.value));
        }
        let Some((at, held)) = self.last else {
            let (quality, cause) = bad.map_or((Quality::Stale, Cause::None), |c| (Quality::Bad, c));
            return Row { value: None, quality, cause };
        };
        if n == 0.0 {
            let (quality, cause) = match bad {
                Some(cause) => (Quality::Bad, cause),
                None if end.0.saturating_sub(at.0) > self.valid_for(layout) => (Quality::Stale, Cause::Held),
                None => (Quality::Good, Cause::Held),
            };
            return Row { value: Some(held), quality, cause };
        }
        let value = Some(mean);
        match (layout.stuck_after, self.resting_since) {
            (Some(limit), Some(since)) if end.0 - since.0 > limit => {
                Row { value, quality: Quality::Bad, cause: Cause::Stuck }
            }
            _ => Row { value, quality: Quality::Good, cause: Cause::None },
        }
    }

    fn remember(&mut self, at: i64, arrived: Time) {
        let since = arrived.0.saturating_sub(self.arrived.0);
        if self.arrived != Time(0) {
            self.arrivals.learn(since);
        }
        self.heard_for += since.clamp(0, RECENT_PAUSE);
        self.arrived = arrived;
        self.recent.insert(at, self.heard_for);
        self.recent.forget(self.heard_for - RECENT_AGE, RECENT_TIMES);
    }

    /// Moves the frontier. A reading far ahead of it is believed when the next one agrees: it is
    /// near, or as far ahead again as at a slow signal's own pace.
    fn advance(&mut self, at: Time, jump: i64) {
        let Some(frontier) = self.frontier else {
            self.frontier = Some(at);
            return;
        };
        let reach = jump.max(self.leap_pace.saturating_mul(3));
        if at.0 <= frontier.0.saturating_add(reach) {
            self.frontier = Some(frontier.max(at));
            self.leap = None;
            return;
        }
        let agrees = |leap: &Time| {
            let (first, second) = (leap.0.saturating_sub(frontier.0), at.0.saturating_sub(leap.0));
            second != 0 && second.abs() <= jump || second > 0 && second <= first.saturating_mul(2)
        };
        match self.leap.take_if(|leap| agrees(leap)) {
            Some(leap) => {
                self.leap_pace = at.0.saturating_sub(leap.0).max(0);
                self.frontier = Some(at.max(leap));
            }
            None => self.leap = Some(at),
        }
    }
}

/// Whether a reading can be used at all.
fn gate(r: &Reading, range: Option<[f64; 2]>) -> (Quality, Cause) {
    if r.quality == Quality::Bad {
        return (Quality::Bad, r.cause);
    }
    if !r.value.is_finite() {
        return (Quality::Bad, Cause::NotFinite);
    }
    match range {
        Some([low, high]) if r.value < low || r.value > high => (Quality::Bad, Cause::OutOfRange),
        _ => (r.quality, r.cause),
    }
}
