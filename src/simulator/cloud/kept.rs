//! What the stand-in cloud has taken: a count for every id, and answers to repeat.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::Write;

use serde_json::value::RawValue;

use super::{Seen, Stats};
use crate::types::{RecordId, Time};

/// How many answers are remembered by Idempotency-Key.
const MAX_ANSWERS: usize = 4096;
/// How many requests are remembered, and how many ids of theirs.
const MAX_SEEN: usize = 20_000;
const MAX_SEEN_IDS: usize = 200_000;
/// How many ids are counted, at some 40 bytes each; then nothing more is taken.
const MAX_IDS: usize = 20_000_000;
/// How many event types are counted apart; more count as `other`.
const MAX_TYPES: usize = 64;
/// Ages of events kept for the percentiles.
const MAX_DELAYS: usize = 100_000;

/// An answer to repeat.
pub type Answer = (u16, Vec<u8>);

#[derive(Default)]
pub struct Kept {
    counts: HashMap<[u8; 16], u32>,
    stats: Stats,
    types: BTreeMap<String, u64>,
    answers: HashMap<String, Answer>,
    answered: VecDeque<String>,
    seen: VecDeque<Seen>,
    seen_ids: usize,
    delays: VecDeque<f64>,
    log: Option<File>,
}

impl Kept {
    pub fn new(log: Option<File>) -> Kept {
        Kept { log, ..Kept::default() }
    }

    pub fn stats(&self) -> Stats {
        Stats { types: self.types.clone(), ..self.stats.clone() }
    }

    pub fn count(&self, id: &str) -> u32 {
        self.counts.get(&short(id)).copied().unwrap_or(0)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.iter().cloned().collect()
    }

    /// Whether no further id can be counted.
    pub fn is_full(&self) -> bool {
        self.counts.len() >= MAX_IDS
    }

    /// A request has been answered.
    pub fn saw(&mut self, seen: Seen) {
        self.stats.requests += 1;
        self.seen_ids += seen.ids.len();
        self.seen.push_back(seen);
        while self.seen.len() > MAX_SEEN || self.seen_ids > MAX_SEEN_IDS {
            self.seen_ids -= self.seen.pop_front().map_or(self.seen_ids, |oldest| oldest.ids.len());
        }
    }

    pub fn stray(&mut self) {
        self.stats.strays += 1;
    }

    /// Takes an event.
    pub fn take(&mut self, id: &str, event_type: &str, event: &RawValue) {
        self.stats.received += 1;
        let count = self.counts.entry(short(id)).or_default();
        *count += 1;
        if *count > 1 {
            self.stats.duplicates += 1;
        } else {
            self.stats.distinct += 1;
            self.time(event);
            let known = self.types.len() < MAX_TYPES || self.types.contains_key(event_type);
            *self.types.entry(if known { event_type } else { "other" }.to_owned()).or_default() += 1;
        }
        if let Some(log) = &mut self.log {
            // JSON may hold line breaks between its members; a line holds one event.
            let line = event.get().replace(['\n', '\r'], " ");
            if let Err(e) = log.write_all(format!("{line}\n").as_bytes()) {
                tracing::warn!("the stand-in cloud cannot write its log: {e}");
            }
        }
    }

    /// Notes how old an event is on its arrival.
    fn time(&mut self, event: &RawValue) {
        #[derive(serde::Deserialize)]
        struct Timed {
            time: String,
        }
        let told = serde_json::from_str::<Timed>(event.get()).ok().and_then(|t| t.time.parse::<Time>().ok());
        let Some(at) = told else { return };
        if self.delays.len() >= MAX_DELAYS {
            self.delays.pop_front();
        }
        self.delays.push_back((Time::now().0 - at.0) as f64 / 1e6);
    }

    /// Median and 99th percentile of the age of the latest events at their arrival, milliseconds.
    pub fn delay_ms(&self) -> (f64, f64) {
        let mut sorted: Vec<f64> = self.delays.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| sorted.get((sorted.len() as f64 * q) as usize).copied().unwrap_or(0.0);
        (at(0.5), at(0.99))
    }

    /// The answer given before to a request with this key.
    pub fn answer(&mut self, key: &str) -> Option<Answer> {
        let answer = self.answers.get(key).cloned();
        self.stats.replays += u64::from(answer.is_some());
        answer
    }

    /// Remembers an answer.
    pub fn remember(&mut self, key: String, answer: Answer) {
        if key.is_empty() || self.answers.insert(key.clone(), answer).is_some() {
            return;
        }
        self.answered.push_back(key);
        if self.answered.len() > MAX_ANSWERS {
            let oldest = self.answered.pop_front().unwrap_or_default();
            self.answers.remove(&oldest);
        }
    }
}

/// 16 bytes for any id: those of our own records are hexadecimal.
fn short(id: &str) -> [u8; 16] {
    match u128::from_str_radix(id, 16) {
        Ok(number) if id.len() == 32 => number.to_be_bytes(),
        _ => RecordId::of(&[id.as_bytes()]).0,
    }
}
