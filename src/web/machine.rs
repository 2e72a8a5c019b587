//! One machine as the dashboard knows it: state, last values, last verdict, plots.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::course::Course;
use super::ring::{KeptPoint, KeptScore, Point, Ring};
use crate::types::{Cause, MachineState, Name, Quality, Reason, SecondOpinion, Time, Verdict};

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

/// The picture's version at the last change of each part of a machine.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// State, reason and since when.
    pub state: u64,
    /// The signals' values.
    pub step: u64,
    /// The last verdict.
    pub verdict: u64,
    /// The second opinion.
    pub opinion: u64,
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its state, as the engine gave it last.
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
    /// Of each part.
    pub versions: Versions,
    /// When its page was last opened, as a count.
    pub(super) wanted: u64,
    /// Whether a step waits to be sent.
    pub(super) fresh_step: bool,
    /// Whether a verdict waits to be sent.
    pub(super) fresh_verdict: bool,
}

impl Machine {
    /// Known by name only.
    pub(super) fn new(now: Time) -> Machine {
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
            versions: Versions::default(),
            wanted: 0,
            fresh_step: false,
            fresh_verdict: false,
        }
    }

    /// Its plots.
    pub(super) fn rings(&self) -> usize {
        usize::from(self.scores.is_some()) + self.signals.values().filter(|s| s.points.is_some()).count()
    }
}

impl Signal {
    /// Takes in a step.
    pub(super) fn take(&mut self, at: Time, value: Option<f64>, quality: Quality, cause: Cause, now: Time) {
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
pub(super) fn give_plots(m: &mut Machine, room: usize) -> usize {
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

/// What this verdict shows of what the threshold is held against.
pub(super) fn held_against(v: &Verdict, before: Held) -> Held {
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
