//! What a machine's inputs show at a moment of the gateway's clock: which are fresh, which are silent, and why
//! what came cannot be used. Pure: the moment is an argument.

use std::fmt;

use super::Machine;
use super::align::{Track, TroubleKind};
use crate::types::{Cause, Name, Time};

/// A moment may lie this far (ns) after now: clocks of two threads, not a clock that was set back.
const TOLERANCE: i64 = 2_000_000_000;

/// Whether something that happened at `at` is no older than `limit` (ns) at `now`. What seems to have happened
/// later than now is of unknown age, and not fresh.
pub fn is_fresh(at: Time, now: Time, limit: i64) -> bool {
    let age = now.0.saturating_sub(at.0);
    age >= -TOLERANCE && age <= limit
}

/// An input that cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct InputTrouble {
    /// The first signal that has it.
    pub signal: Name,
    /// How many more have trouble.
    pub others: usize,
    /// What it is.
    pub kind: InputTroubleKind,
    /// The last usable value arrived then; `None`: there was none.
    pub since: Option<Time>,
}

/// Why an input cannot be used.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum InputTroubleKind {
    /// The newest reading is marked bad, or out of range.
    Bad(Cause),
    /// Nothing comes.
    Silent,
    /// Readings come, with a time that cannot be used: device time minus the gateway's (ns).
    Refused(TroubleKind, i64),
}

impl fmt::Display for InputTrouble {
    /// A sentence without a full stop. It does not change while the trouble stays the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = &self.signal;
        match self.kind {
            InputTroubleKind::Bad(cause) => write!(f, "{signal} is bad ({})", cause.as_str().replace('_', " "))?,
            InputTroubleKind::Silent => write!(f, "no value of {signal}")?,
            InputTroubleKind::Refused(TroubleKind::Repeated, _) => {
                write!(f, "readings of {signal} repeat one time: the device's clock may stand still")?;
            }
            InputTroubleKind::Refused(_, offset) => {
                let (by, way) = (Span(offset), if offset < 0 { "behind" } else { "ahead" });
                write!(f, "readings of {signal} cannot be used: the device's clock is {by} {way}")?;
            }
        }
        match self.since {
            Some(at) => write!(f, ", the last usable value came at {}", Time(at.0 - at.0.rem_euclid(1_000_000_000)))?,
            None => write!(f, ", no usable value has come yet")?,
        }
        if self.others > 0 {
            write!(f, "; {} more signals have trouble", self.others)?;
        }
        Ok(())
    }
}

/// A span of time (ns) as people say it, without its sign: `50 s`, `3 min`, `1 h 5 min`, `20 d`.
#[derive(Copy, Clone, Debug)]
pub struct Span(pub i64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.unsigned_abs().saturating_add(500_000_000) / 1_000_000_000;
        match seconds {
            0..120 => write!(f, "{seconds} s"),
            120..3_600 => write!(f, "{} min", (seconds + 30) / 60),
            3_600..172_800 => write!(f, "{} h {} min", seconds / 3600, seconds % 3600 / 60),
            _ => write!(f, "{} d", seconds / 86_400),
        }
    }
}

impl Machine {
    /// The first input without which the machine cannot be judged at `now`. A signal counts from `since` at the
    /// earliest: before that nobody listened, or it was not known.
    pub fn input_trouble(&self, now: Time, since: Time) -> Option<InputTrouble> {
        let of = |t: &Track| self.trouble_of(t, now, since).map(|kind| (t.signal().clone(), kind, t.usable()));
        let mut found = self.inputs().filter_map(of);
        let (signal, kind, usable) = found.next()?;
        let others = found.count();
        // Without a model signals may be events: one that is silent says nothing while another one speaks.
        let all = || others + 1 == self.state.tracks.len();
        let event = self.layout.channels.is_empty() && matches!(kind, InputTroubleKind::Silent);
        if event && !self.keeps_time(&signal) && !all() {
            return None;
        }
        Some(InputTrouble { signal, others, kind, since: usable })
    }

    fn trouble_of(&self, track: &Track, now: Time, since: Time) -> Option<InputTroubleKind> {
        let trouble = track.trouble();
        if let Some(TroubleKind::Bad(cause)) = trouble.map(|t| t.kind) {
            return Some(InputTroubleKind::Bad(cause));
        }
        let limit = track.silence_limit(&self.layout);
        let from = track.usable().map_or(since, |at| at.max(since));
        if is_fresh(from, now, limit) {
            return None;
        }
        Some(trouble.map_or(InputTroubleKind::Silent, |t| InputTroubleKind::Refused(t.kind, t.offset)))
    }

    /// The signals without which nothing can be said of the machine: its channels and those of its running
    /// condition; without a model all of them.
    fn inputs(&self) -> impl Iterator<Item = &Track> {
        let channels = self.layout.channels.len();
        let running = self.layout.running.as_ref();
        let is_input = move |(i, t): &(usize, &Track)| {
            channels == 0 || *i < channels || running.is_some_and(|c| c.names(t.signal()))
        };
        self.state.tracks.iter().enumerate().filter(is_input).map(|(_, t)| t)
    }

    fn keeps_time(&self, signal: &Name) -> bool {
        let track = self.state.tracks.iter().find(|t| t.signal() == signal);
        track.is_some_and(|t| t.usual_arrival().is_some())
    }

    /// Whether the machine runs, as far as fresh data says so; `None`: they do not.
    pub fn runs(&self, now: Time) -> Option<bool> {
        let Some(running) = &self.layout.running else { return Some(true) };
        let value = |signal: &str| {
            let track = self.state.tracks.iter().find(|t| &**t.signal() == signal)?;
            let fresh = |at| is_fresh(at, now, track.silence_limit(&self.layout));
            let usable = track.usable().is_some_and(fresh);
            let bad = track.trouble().is_some_and(|t| matches!(t.kind, TroubleKind::Bad(_)));
            track.value().filter(|_| usable && !bad)
        };
        running.holds(&value)
    }

    /// The shortest silence (ns) of any input that is out of the ordinary.
    pub fn shortest_silence(&self) -> i64 {
        self.inputs().map(|t| t.silence_limit(&self.layout)).min().unwrap_or(TOLERANCE)
    }

    /// The usual distance (ns) between arrivals of the fastest input, 0 while unknown.
    pub fn usual_arrival(&self) -> i64 {
        self.inputs().filter_map(Track::usual_arrival).min().unwrap_or(0)
    }

    /// Sources that feed the machine, some of them perhaps more than once.
    pub fn sources(&self) -> impl Iterator<Item = &Name> {
        self.state.tracks.iter().filter_map(Track::source)
    }

    /// A signal behind whose readings a clock is steadily wrong, and by how much (ns, below zero is behind).
    pub fn wrong_clock(&self) -> Option<(&Name, i64)> {
        self.state.tracks.iter().find_map(|t| t.clock().wrong_by().map(|by| (t.signal(), by)))
    }

    /// The signals, each with its last usable value and whether it is fresh at `now`.
    pub fn values(&self, now: Time) -> impl Iterator<Item = (&Name, Option<f64>, bool)> {
        let fresh = move |t: &Track| t.usable().is_some_and(|at| is_fresh(at, now, t.silence_limit(&self.layout)));
        self.state.tracks.iter().map(move |t| (t.signal(), t.value(), fresh(t)))
    }
}
