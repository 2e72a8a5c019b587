//! How much of what a source delivers is not used, and what a person is told of it. Pure: time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::printable::{example, mentions_secret, printable, reason_class};

/// The sliding window, in slots of a second.
const WINDOW_SECONDS: usize = 60;
/// A source is degraded when more than one in so many is refused ...
const TOLERATED: u64 = 10;
/// ... and at least so many are, or all.
const LEAST_REFUSED: u64 = 5;
/// Places with a log line of their own. Those beyond are counted together.
const MAX_PLACES: usize = 256;
/// The wait before the second line of one place. Each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait, and how long a place has to be quiet until it is forgotten.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How often quiet places are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Bytes of a topic, place or reason that are shown.
const MAX_TEXT_BYTES: usize = 120;

/// Something that was delivered and is not used.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Its kind as it stands in a sentence: `rejected`, `late`, `of no machine`.
    pub kind: &'static str,
    /// Where: a topic pattern or a machine. Each place has log lines of its own.
    pub place: &'a str,
    /// The topic or signal it came by.
    pub topic: &'a str,
    /// Why. May quote the payload.
    pub reason: &'a str,
    /// What came. Only its beginning is shown.
    pub payload: &'a [u8],
    /// How many.
    pub count: u64,
}

/// What the log is to say of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Topic pattern or machine; `further places` where there are too many.
    pub place: String,
    /// The newest topic or signal.
    pub topic: String,
    /// The newest reason.
    pub reason: String,
    /// The beginning of the newest payload.
    pub example: String,
    /// Refused since the line before.
    pub count: u64,
}

/// When to write of something that goes on: at once, then after a minute, then each time after twice as
/// long, up to an hour. After an hour of quiet it counts as new.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    told: Option<Instant>,
    seen: Option<Instant>,
    wait: Duration,
    untold: u64,
}

impl Pace {
    /// `count` more have come; `Some(all since the last line)` when a line is due.
    pub fn due(&mut self, count: u64, now: Instant) -> Option<u64> {
        if self.is_quiet(now) {
            *self = Pace { untold: self.untold, ..Pace::default() };
        }
        self.seen = Some(now);
        self.untold = self.untold.saturating_add(count);
        let early = self.told.is_some_and(|told| now.saturating_duration_since(told) < self.wait);
        if early {
            return None;
        }
        self.wait = if self.told.is_none() { FIRST_WAIT } else { (self.wait * 2).min(LONGEST_WAIT) };
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) >= LONGEST_WAIT)
    }
}

/// Kind, place and class of reason.
type Key = (&'static str, String, String);

/// What one source delivered and what of it was refused within the last minute.
pub struct Refusals {
    /// What is counted: `payloads` or `readings`.
    unit: &'static str,
    begin: Option<Instant>,
    received: Minute,
    kinds: BTreeMap<&'static str, Kind>,
    places: HashMap<Key, Pace>,
    forgotten: Option<Instant>,
    standing: Standing,
}

#[derive(Default)]
struct Kind {
    refused: Minute,
    /// The newest topic, reason and example, for the board.
    newest: String,
    /// The second of it.
    at: Option<u64>,
    /// Whether there is a complaint on the board.
    shown: bool,
}

/// How much is refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Standing {
    Little,
    Share,
    All,
}

impl Refusals {
    /// Nothing has come yet. `unit` is what is counted: `payloads` or `readings`.
    pub fn new(unit: &'static str) -> Refusals {
        Refusals {
            unit,
            begin: None,
            received: Minute::default(),
            kinds: BTreeMap::new(),
            places: HashMap::new(),
            forgotten: None,
            standing: Standing::Little,
        }
    }

    /// So many have come, with those that are refused.
    pub fn received(&mut self, count: u64, now: Instant) {
        let second = self.second(now);
        self.received.add(count, second);
    }

    /// Some of them are refused. `Some` when the log is to say so.
    pub fn refuse(&mut self, refusal: &Refusal<'_>, now: Instant) -> Option<LogLine> {
        let second = self.second(now);
        let kind = self.kinds.entry(refusal.kind).or_default();
        kind.refused.add(refusal.count, second);
        if kind.at != Some(second) {
            kind.at = Some(second);
            let Shown { topic, reason, example } = shown(refusal);
            let example = if example.is_empty() { example } else { format!(", for example {example}") };
            kind.newest = format!("{topic}: {reason}{example}");
        }
        let (pace, place) = self.pace(refusal, now);
        let count = pace.due(refusal.count, now)?;
        let Shown { topic, reason, example } = shown(refusal);
        Some(LogLine { place, topic, reason, example, count })
    }

    /// Whether [`Refusals::review`] may have something to say though nothing comes.
    pub fn is_watching(&self) -> bool {
        self.standing != Standing::Little || self.kinds.values().any(|k| k.shown || !k.refused.is_empty())
    }

    /// The complaints that are to stand from now on, by kind, and those (`None`) that are over.
    pub fn review(&mut self, now: Instant) -> Vec<(&'static str, Option<String>)> {
        let second = self.second(now);
        let received = self.received.sum(second);
        let refused: u64 = self.kinds.values_mut().map(|k| k.refused.sum(second)).sum();
        self.standing = match self.standing {
            // Nothing says that it is better now.
            Standing::All if received == 0 && refused == 0 => return Vec::new(),
            _ if refused > 0 && refused >= received => Standing::All,
            _ if refused >= LEAST_REFUSED && refused.saturating_mul(TOLERATED) > received => Standing::Share,
            _ => Standing::Little,
        };
        let mut changes = Vec::new();
        for (name, kind) in &mut self.kinds {
            let n = kind.refused.sum(second);
            let show = self.standing != Standing::Little && n > 0;
            if show {
                let (unit, newest) = (self.unit, &kind.newest);
                let all = received.max(n);
                let detail = format!("{n} of {all} {unit} in the last minute are {name}; newest: {newest}");
                changes.push((*name, Some(detail)));
            } else if kind.shown {
                changes.push((*name, None));
            }
            kind.shown = show;
        }
        changes
    }

    fn second(&mut self, now: Instant) -> u64 {
        now.saturating_duration_since(*self.begin.get_or_insert(now)).as_secs()
    }

    /// The pace of this place, and the place for a person.
    fn pace(&mut self, refusal: &Refusal<'_>, now: Instant) -> (&mut Pace, String) {
        let place = printable(refusal.place, MAX_TEXT_BYTES);
        let class = reason_class(&printable(refusal.reason, MAX_TEXT_BYTES));
        let mut key = (refusal.kind, place, class);
        if !self.places.contains_key(&key) && !self.has_room(now) {
            key = (refusal.kind, "further places".to_owned(), String::new());
        }
        let place = key.1.clone();
        (self.places.entry(key).or_default(), place)
    }

    /// Room for one more place; those that are quiet make some.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.places.len() < MAX_PLACES {
            return true;
        }
        let due = self.forgotten.is_none_or(|at| now.saturating_duration_since(at) >= FORGET_EVERY);
        if due {
            self.forgotten = Some(now);
            self.places.retain(|_, pace| !pace.is_quiet(now));
        }
        self.places.len() < MAX_PLACES
    }
}

/// A refusal as a person may see it.
struct Shown {
    topic: String,
    reason: String,
    example: String,
}

fn shown(refusal: &Refusal<'_>) -> Shown {
    let hidden = mentions_secret(refusal.topic.as_bytes());
    let quotes = hidden || mentions_secret(refusal.payload) || mentions_secret(refusal.reason.as_bytes());
    let reason = printable(refusal.reason, MAX_TEXT_BYTES);
    Shown {
        topic: printable(refusal.topic, MAX_TEXT_BYTES),
        // A reason may quote what follows the secret word.
        reason: if quotes { reason_class(&reason) } else { reason },
        example: if hidden { "[hidden]".to_owned() } else { example(refusal.payload) },
    }
}

/// Counts of the last minute, one for each second.
struct Minute {
    counts: [u64; WINDOW_SECONDS],
    /// The newest second.
    at: u64,
}

impl Default for Minute {
    fn default() -> Minute {
        Minute { counts: [0; WINDOW_SECONDS], at: 0 }
    }
}

impl Minute {
    fn add(&mut self, count: u64, second: u64) {
        self.advance(second);
        let slot = &mut self.counts[(second % WINDOW_SECONDS as u64) as usize];
        *slot = slot.saturating_add(count);
    }

    fn sum(&mut self, second: u64) -> u64 {
        self.advance(second);
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    fn is_empty(&self) -> bool {
        self.counts.iter().all(|n| *n == 0)
    }

    fn advance(&mut self, second: u64) {
        let window = WINDOW_SECONDS as u64;
        for over in (self.at + 1..=second).rev().take(WINDOW_SECONDS) {
            self.counts[(over % window) as usize] = 0;
        }
        self.at = self.at.max(second);
    }
}

#[cfg(test)]
mod tests;
