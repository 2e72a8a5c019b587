//! What can go wrong in the stand-in cloud, and when.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use serde::Deserialize;

use crate::settings::Secret;

/// How many scripted faults wait at most; more are not taken.
const MAX_SCRIPT: usize = 100_000;

/// What becomes of one request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Nothing out of the ordinary.
    None,
    /// Answered with this status; nothing is taken.
    Status {
        /// 3xx come with a Location.
        status: u16,
        /// The Retry-After header, word for word.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// Taken, after a while.
    Delay {
        /// In milliseconds.
        ms: u64,
    },
    /// The connection is cut and nothing is taken.
    CutBefore,
    /// All is taken and the connection is cut before the answer.
    CutAfter,
    /// Every n-th event gets this status, the others are taken.
    Partial {
        /// 1 for every one.
        every: usize,
        /// Of those that are not taken.
        status: u16,
    },
    /// Taken; the answer's body is not JSON.
    Garbage,
    /// Taken; the answer's body is larger than anyone should read.
    Flood,
}

impl Fault {
    /// A refusal without Retry-After.
    pub fn status(status: u16) -> Fault {
        Fault::Status { status, retry_after: None }
    }

    /// A refusal for a time.
    pub fn busy(status: u16, retry_after: impl Into<String>) -> Fault {
        Fault::Status { status, retry_after: Some(retry_after.into()) }
    }

    /// Answered late.
    pub fn delay(wait: Duration) -> Fault {
        Fault::Delay { ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// Random faults, the same for the same seed and order of requests.
#[derive(Clone, Debug)]
pub struct Storm {
    random: fastrand::Rng,
    percent: u8,
    among: Vec<Fault>,
}

impl Storm {
    /// So many of a hundred requests meet one of these.
    pub fn new(seed: u64, percent: u8, among: Vec<Fault>) -> Storm {
        Storm { random: fastrand::Rng::with_seed(seed), percent, among }
    }

    fn draw(&mut self) -> Option<Fault> {
        let hit = self.random.u8(0..100) < self.percent;
        self.among.get(self.random.usize(0..self.among.len().max(1))).filter(|_| hit).cloned()
    }
}

/// What holds for every request.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Who comes without it gets 401.
    pub token: Option<Secret>,
    /// Requests with more bytes than this, once decoded, get 413.
    pub max_bytes: Option<usize>,
    /// A request with one of these ids gets 422, and nothing of it is taken.
    pub poison: HashSet<String>,
    /// Poison gets its 422 in a 207, and the rest is taken.
    pub per_record: bool,
    /// Content codings that get 415.
    pub unreadable: Vec<String>,
    /// What every request meets when nothing is scripted.
    pub always: Option<Fault>,
    /// Random faults when nothing is scripted.
    pub storm: Option<Storm>,
}

/// The rules and the faults to come.
pub struct Script {
    pub rules: Rules,
    coming: VecDeque<Fault>,
}

impl Script {
    pub fn new(rules: Rules) -> Script {
        Script { rules, coming: VecDeque::new() }
    }

    pub fn extend(&mut self, faults: impl IntoIterator<Item = Fault>) {
        let room = MAX_SCRIPT.saturating_sub(self.coming.len());
        self.coming.extend(faults.into_iter().take(room));
    }

    /// What the next request meets.
    pub fn draw(&mut self) -> Fault {
        let scripted = self.coming.pop_front().or_else(|| self.rules.always.clone());
        scripted.or_else(|| self.rules.storm.as_mut().and_then(Storm::draw)).unwrap_or(Fault::None)
    }
}
