//! What is fixed about one machine's pipeline: its settings met with what its model asks for.

use std::time::Duration;

use super::mode::Condition;
use super::rhythm::Rhythm;
use crate::settings::Section;
use crate::types::{Name, Time};

/// Stands for all signals that are not named.
const ALL_SIGNALS: &str = "*";

/// The pipeline's part of a `[[machine]]` block.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The grid's step; absent: the model's.
    pub rate: Option<Duration>,
    /// How long a value stays valid without a new one, by signal, `*` for all others; those without one are
    /// held to their own rhythm.
    pub stale_after: Vec<(String, Duration)>,
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
            stale_after: read_stale_after(s),
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
    /// How long a value stays valid.
    pub stale_after: StaleAfter,
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
            stale_after: StaleAfter::new(&settings.stale_after, rate),
            lateness: settings.lateness.map_or((2 * rate).max(200_000_000), nanos),
            eager: settings.lateness.is_none(),
            running: settings.running.clone(),
            ranges: settings.ranges.clone(),
            stuck_after: settings.stuck_after.map(nanos),
        }
    }

    pub(super) fn step_of(&self, at: Time) -> i64 {
        at.0.saturating_add(self.rate - 1).div_euclid(self.rate)
    }

    pub(super) fn time_of(&self, step: i64) -> Time {
        Time(step.saturating_mul(self.rate))
    }

    pub(super) fn range_of(&self, signal: &str) -> Option<[f64; 2]> {
        self.ranges.iter().find(|(s, _)| s == signal).map(|(_, r)| *r)
    }
}

/// `stale_after`: one duration for all signals, or a table by signal.
fn read_stale_after(s: &Section<'_>) -> Vec<(String, Duration)> {
    let mut all = Vec::new();
    let mut add = |s: &Section<'_>, key: &str, signal: &str| match s.duration(key) {
        Some(d) if d.is_zero() => s.problem(key, "has to be longer than zero"),
        Some(d) => all.push((signal.to_owned(), d)),
        None => {}
    };
    if !s.is_table("stale_after") {
        add(s, "stale_after", ALL_SIGNALS);
    } else if let Some(table) = s.section("stale_after") {
        table.keys().iter().for_each(|key| add(&table, key, key));
    }
    all
}

/// How long (ns) a value stays valid without a new one.
#[derive(Clone, Debug, PartialEq)]
pub struct StaleAfter {
    by_signal: Vec<(String, i64)>,
    others: Option<i64>,
    /// What is learnt from a signal's rhythm is never below this.
    least: i64,
}

impl StaleAfter {
    /// As configured; without that five steps of `rate` (ns), at least 1 s, or longer by the signal's rhythm.
    pub fn new(configured: &[(String, Duration)], rate: i64) -> StaleAfter {
        let (others, by_signal): (Vec<_>, Vec<_>) =
            configured.iter().map(|(s, d)| (s.clone(), nanos(*d))).partition(|(s, _)| s == ALL_SIGNALS);
        let least = rate.saturating_mul(5).max(1_000_000_000);
        StaleAfter { by_signal, others: others.first().map(|(_, d)| *d), least }
    }

    /// The limit for a signal of this rhythm.
    pub(super) fn limit(&self, signal: &str, rhythm: &Rhythm) -> i64 {
        let own = self.by_signal.iter().find(|(s, _)| s == signal).map(|(_, d)| *d);
        own.or(self.others).unwrap_or_else(|| rhythm.limit(self.least))
    }
}

pub(super) fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX / 4)
}
