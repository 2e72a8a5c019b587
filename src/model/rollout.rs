//! A new version of a model beside the one in force: run on the same windows, compared, let in step by
//! step, or sent back. Pure: time, latency and memory come in from outside.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::drift::PValues;
use crate::types::{Name, Time};

/// A stage is not left before so many windows were judged by both.
pub const MIN_WINDOWS: u64 = 20;
/// The stages in which a candidate is heard are not left before so many of its verdicts were published.
pub const MIN_PUBLISHED: u64 = 10;
/// Share of windows on which only the candidate may fail, and how many failures it takes to say so.
const MOST_ERRORS: f64 = 0.01;
const MIN_ERRORS: u64 = 3;
/// So many times as many anomalies as the incumbent and the budget together are too many, and how many it
/// takes to say so.
const MOST_ALARMS: f64 = 3.0;
const MIN_ALARMS: u64 = 10;
/// P-values may be so far from uniform, or so much farther than the incumbent's on the same windows, whose
/// reference the plant may have left too. Windows overlap, so that few of them say little.
const MOST_DRIFT: f64 = 0.4;
const MOST_EXTRA_DRIFT: f64 = 0.25;
const MIN_DRIFT_WINDOWS: u64 = 50;
/// Runs that a 99th percentile takes; half of them slower than the limit are told by fewer.
const MIN_RUNS: u64 = 100;
const MIN_SLOW_RUNS: u64 = 10;
/// As much of a failure as is kept.
const MOST_ERROR_CHARS: usize = 200;

/// How far a candidate has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is run and compared; nothing of it is published.
    Shadow,
    /// Its first verdicts are published, of the machines listed.
    Canary,
    /// The same, for the time set.
    Baking,
    /// Of all machines. The incumbent is run beside it for the same time once more.
    Active,
}

impl Stage {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Shadow => "shadow",
            Stage::Canary => "canary",
            Stage::Baking => "baking",
            Stage::Active => "active",
        }
    }
}

/// Why a candidate went.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It fails on windows that the incumbent judges.
    Errors,
    /// It sees many more anomalies than the incumbent on the same windows.
    AlarmRate,
    /// Its scores are not those its reference promises.
    ScoreDrift,
    /// It is too slow on this box.
    Latency,
    /// It takes too much memory.
    Memory,
    /// It cannot be loaded, or fails its golden cases.
    Unusable,
    /// The agent ended badly again and again since it came.
    CrashLoop,
    /// It cannot stand in for the incumbent: other windows, other channels.
    Unfit,
    /// Another candidate, or another configured bundle, took its place.
    Superseded,
    /// Somebody wanted it so.
    Operator,
}

impl Cause {
    /// The word used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Errors => "errors",
            Cause::AlarmRate => "alarm_rate",
            Cause::ScoreDrift => "score_drift",
            Cause::Latency => "latency",
            Cause::Memory => "memory",
            Cause::Unusable => "unusable",
            Cause::CrashLoop => "crash_loop",
            Cause::Unfit => "unfit",
            Cause::Superseded => "superseded",
            Cause::Operator => "operator",
        }
    }
}

/// What comes to a rollout from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// A candidate is here, verified and judged on this box; its model stands ready under its digest.
    Offer(Terms),
    /// What was measured of a candidate.
    Measured {
        /// The model.
        model: Name,
        /// Of the candidate.
        digest: Name,
        /// Since its stage began.
        measured: Measured,
    },
    /// A version is to go: a candidate, or the delivered one in force.
    Withdraw {
        /// The model.
        model: Name,
        /// Of the version.
        digest: Name,
        /// Why.
        cause: Cause,
        /// In words.
        why: String,
    },
    /// The candidate is to take its next step now.
    Promote {
        /// The model.
        model: Name,
        /// Who wants it.
        who: String,
    },
    /// A step before the candidate came to the engine, to be recorded.
    Step(Step),
}

/// A step of delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The model.
    pub model: Name,
    /// Its version.
    pub version: Name,
    /// `fetched`, `verified`, `selftest`, `refused`, `retired`.
    pub stage: Name,
    /// What was found, in words.
    pub reason: String,
    /// SHA-256 of its graph, hex; empty where that is not known.
    pub digest: Name,
}

/// A finding against a candidate: which, and in words.
pub type Trouble = (Cause, String);

/// What is known of a candidate and what was ordered for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// The model's name, which is its incumbent's too.
    pub model: Name,
    /// Its version.
    pub version: Name,
    /// SHA-256 of its graph, hex.
    pub digest: Name,
    /// Later versions have higher ones.
    pub sequence: u64,
    /// How long it is only compared.
    pub shadow: Duration,
    /// Globs over machines that use it first; empty: all of them.
    pub canary: Vec<String>,
    /// How long these do, and how long the incumbent is kept running afterwards.
    pub bake: Duration,
    /// The 99th percentile of a batch's time may be this, in milliseconds.
    pub p99_ms: Option<f64>,
    /// The process may use this much memory, in MiB.
    pub max_ram_mb: Option<u64>,
    /// Whether trouble sends it back; else it is only told.
    pub rolls_back: bool,
}

/// One window as one of the two saw it.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Seen {
    /// How often a healthy machine scores this high.
    pub p_value: f64,
    /// Whether it is beyond the limit.
    pub anomaly: bool,
}

/// The same windows through both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Windows given to both.
    pub windows: u64,
    /// Of these, judged by the incumbent but not by the candidate.
    pub errors: u64,
    /// Windows whose verdict is the candidate's.
    pub published: u64,
    /// Anomalies, of the candidate and of the incumbent.
    pub anomalies: [u64; 2],
    /// Windows on which they agree.
    pub agreed: u64,
    /// Anomalies that the budget allows.
    pub allowed: f64,
    /// P-values of the candidate and of the incumbent.
    pub p_values: [PValues; 2],
}

impl Comparison {
    fn add(&mut self, candidate: Option<Seen>, incumbent: Option<Seen>, allowed: f64, published: bool) {
        self.windows += 1;
        self.allowed += allowed;
        self.published += u64::from(published);
        self.errors += u64::from(candidate.is_none() && incumbent.is_some());
        for (i, seen) in [candidate, incumbent].into_iter().enumerate() {
            let Some(seen) = seen else { continue };
            self.anomalies[i] += u64::from(seen.anomaly);
            self.p_values[i].add(seen.p_value);
        }
        let same = candidate.zip(incumbent).is_some_and(|(a, b)| a.anomaly == b.anomaly);
        self.agreed += u64::from(same);
    }

    fn trouble(&self) -> Option<Trouble> {
        let n = self.windows.max(1) as f64;
        let [mine, theirs] = self.anomalies;
        if self.errors >= MIN_ERRORS && self.errors as f64 > MOST_ERRORS * n {
            return Some((Cause::Errors, format!("it failed on {} of {} windows", self.errors, self.windows)));
        }
        if mine >= MIN_ALARMS && mine as f64 > MOST_ALARMS * (theirs as f64 + self.allowed) {
            let what = format!("it calls {mine} of {} windows anomalies, the incumbent {theirs}", self.windows);
            return Some((Cause::AlarmRate, what));
        }
        let [mine, theirs] = &self.p_values;
        if mine.len() >= MIN_DRIFT_WINDOWS && mine.ks() > MOST_DRIFT && mine.ks() > theirs.ks() + MOST_EXTRA_DRIFT {
            let (mine, theirs) = (mine.ks(), theirs.ks());
            return Some((
                Cause::ScoreDrift,
                format!("its p-values are {mine:.2} from uniform, the incumbent's {theirs:.2}"),
            ));
        }
        None
    }
}

/// What was measured of a candidate since its stage began.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Batches run.
    pub runs: u64,
    /// Half of them took longer than this, in milliseconds.
    pub median_ms: f64,
    /// One in a hundred took longer than this, in milliseconds.
    pub p99_ms: f64,
    /// What the process uses now, in MiB.
    pub ram_mb: u64,
}

/// A candidate on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What was ordered.
    pub terms: Terms,
    /// How far it is.
    pub stage: Stage,
    /// Since when.
    pub since: Time,
    /// Since the stage began.
    pub now: Comparison,
    /// Since it came.
    pub whole: Comparison,
    /// The last measurement.
    pub measured: Measured,
    /// Trouble that was told but does not send it back.
    pub warned: Option<Cause>,
    /// What its last run that failed said.
    pub error: Option<String>,
}

impl Trial {
    /// In the shadow from now on.
    pub fn new(terms: Terms, now: Time) -> Trial {
        let (this, whole) = Default::default();
        let (measured, warned, error) = Default::default();
        Trial { terms, stage: Stage::Shadow, since: now, now: this, whole, measured, warned, error }
    }

    /// Notes what a run that failed said.
    pub fn failed(&mut self, why: &str) {
        self.error = Some(why.chars().take(MOST_ERROR_CHARS).collect());
    }

    /// Whether a machine's verdicts are the candidate's.
    pub fn publishes(&self, machine: &str) -> bool {
        match self.stage {
            Stage::Shadow => false,
            Stage::Canary | Stage::Baking => {
                let globs = &self.terms.canary;
                globs.is_empty() || globs.iter().any(|g| WildMatch::new(g).matches(machine))
            }
            Stage::Active => true,
        }
    }

    /// A window through both; `allowed` is how many anomalies the budget has for it.
    pub fn compare(&mut self, candidate: Option<Seen>, incumbent: Option<Seen>, allowed: f64, published: bool) {
        self.now.add(candidate, incumbent, allowed, published);
        self.whole.add(candidate, incumbent, allowed, published);
    }

    /// Takes a measurement.
    pub fn measure(&mut self, measured: Measured) {
        self.measured = measured;
    }

    /// What speaks against the candidate.
    pub fn trouble(&self) -> Option<Trouble> {
        let m = &self.measured;
        let slow = self.terms.p99_ms.and_then(|limit| {
            let how = match (m.runs >= MIN_RUNS && m.p99_ms > limit, m.runs >= MIN_SLOW_RUNS && m.median_ms > limit) {
                (_, true) => format!("half of {} runs took longer than {:.1} ms", m.runs, m.median_ms),
                (true, _) => format!("one in a hundred of {} runs took longer than {:.1} ms", m.runs, m.p99_ms),
                _ => return None,
            };
            Some((Cause::Latency, format!("{how}; compat.p99_ms is {limit}")))
        });
        let large = self.terms.max_ram_mb.filter(|limit| m.ram_mb > *limit).map(|limit| {
            (Cause::Memory, format!("the process uses {} MiB; compat.max_ram_mb is {limit}", m.ram_mb))
        });
        let found = slow.or(large).or_else(|| self.now.trouble());
        found.map(|(cause, what)| match &self.error {
            Some(said) if cause == Cause::Errors => (cause, format!("{what}: {said}")),
            _ => (cause, what),
        })
    }

    /// The next stage, when this one has done; `Some(None)` when the last has.
    pub fn next(&self, now: Time) -> Option<Option<Stage>> {
        let lasted = |wanted: Duration| now.since(self.since) >= wanted && self.now.windows >= MIN_WINDOWS;
        let heard = self.now.published >= MIN_PUBLISHED;
        match self.stage {
            Stage::Shadow if lasted(self.terms.shadow) => {
                Some(Some(if self.terms.canary.is_empty() { Stage::Baking } else { Stage::Canary }))
            }
            Stage::Canary if heard => Some(Some(Stage::Baking)),
            Stage::Baking if heard && lasted(self.terms.bake) => Some(Some(Stage::Active)),
            Stage::Active if heard && lasted(self.terms.bake) => Some(None),
            _ => None,
        }
    }

    /// Into a stage; what is compared and measured there starts anew.
    pub fn enter(&mut self, stage: Stage, now: Time) {
        (self.stage, self.since) = (stage, now);
        (self.now, self.measured, self.warned, self.error) = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn terms() -> Terms {
        Terms {
            model: "pump".into(),
            version: "2".into(),
            digest: "d".into(),
            sequence: 2,
            shadow: SECOND,
            canary: vec!["pump-1".into()],
            bake: SECOND,
            p99_ms: Some(20.0),
            max_ram_mb: Some(512),
            rolls_back: true,
        }
    }

    fn at(seconds: i64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn seen(p_value: f64, anomaly: bool) -> Option<Seen> {
        Some(Seen { p_value, anomaly })
    }

    /// P-values spread evenly, whatever their order.
    fn even(i: u64) -> f64 {
        (i * 7 % 100) as f64 / 100.0
    }

    #[test]
    fn a_good_candidate_takes_every_step_and_no_faster_than_ordered() {
        let mut trial = Trial::new(terms(), at(0));
        let mut stages = vec![trial.stage];
        let mut ended = None;
        for i in 0..400u64 {
            let now = Time(i as i64 * 50_000_000);
            let published = trial.publishes("pump-1");
            assert_eq!(published, trial.stage != Stage::Shadow);
            assert_eq!(trial.publishes("pump-2"), trial.stage == Stage::Active);
            trial.compare(seen(even(i), false), seen(even(i + 3), false), 1e-4, published);
            assert_eq!(trial.trouble(), None);
            match trial.next(now) {
                Some(Some(stage)) => {
                    assert!(stage == Stage::Baking || now.since(trial.since) >= SECOND);
                    trial.enter(stage, now);
                    stages.push(stage);
                }
                Some(None) => {
                    ended = Some(now);
                    break;
                }
                None => {}
            }
        }
        assert_eq!(stages, [Stage::Shadow, Stage::Canary, Stage::Baking, Stage::Active]);
        assert!(ended.is_some());
    }

    #[test]
    fn no_windows_no_step() {
        let trial = Trial::new(terms(), at(0));
        assert_eq!(trial.next(at(1_000_000)), None);
    }

    #[test]
    fn each_kind_of_trouble_is_found_and_named() {
        let run = |candidate: &dyn Fn(u64) -> Option<Seen>| {
            let mut trial = Trial::new(terms(), at(0));
            (0..200).for_each(|i| trial.compare(candidate(i), seen(even(i), i % 100 == 0), 1e-4, false));
            trial.trouble().map(|(cause, _)| cause)
        };
        assert_eq!(run(&|i| seen(even(i), i % 50 == 0)), None);
        assert_eq!(run(&|i| seen(even(i), false).filter(|_| i % 20 != 0)), Some(Cause::Errors));
        assert_eq!(run(&|i| seen(even(i), i % 10 == 0)), Some(Cause::AlarmRate));
        assert_eq!(run(&|_| seen(0.5, false)), Some(Cause::ScoreDrift));
        assert_eq!(run(&|_| seen(1.0, false)), Some(Cause::ScoreDrift));
        let measured = |runs, median_ms, p99_ms, ram_mb| {
            let mut trial = Trial::new(terms(), at(0));
            trial.measure(Measured { runs, median_ms, p99_ms, ram_mb });
            trial.trouble().map(|(cause, _)| cause)
        };
        assert_eq!(measured(99, 1.0, 21.0, 100), None);
        assert_eq!(measured(100, 1.0, 21.0, 100), Some(Cause::Latency));
        assert_eq!(measured(10, 21.0, 21.0, 100), Some(Cause::Latency));
        assert_eq!(measured(1000, 1.0, 19.0, 513), Some(Cause::Memory));
        assert_eq!(measured(1000, 1.0, 19.0, 512), None);
    }

    /// Where the plant itself has changed or is in trouble, the candidate is not to blame.
    #[test]
    fn what_the_incumbent_sees_too_is_no_trouble() {
        let mut trial = Trial::new(terms(), at(0));
        for _ in 0..200 {
            trial.compare(seen(0.001, true), seen(0.002, true), 1e-4, false);
            trial.compare(None, None, 1e-4, false);
        }
        assert_eq!(trial.trouble(), None);
        assert_eq!((trial.now.errors, trial.now.agreed), (0, 200));
    }
}
