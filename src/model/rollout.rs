//! A new version of a model beside the one in force: run on the same windows, compared, let in step by
//! step, or sent back. Pure: time, latency and memory come in from outside.

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::drift::PValues;
use crate::types::{FailurePolicy, Measured, Release, Rollout, Stage, Time};

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

/// What speaks against a candidate.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It fails on windows that the incumbent judges.
    Errors,
    /// It sees many more anomalies than the incumbent on the same windows.
    AlarmRate,
    /// Its scores are not those its reference promises.
    ScoreDrift,
    /// It is too slow on this box.
    Latency,
    /// The process takes too much memory with it.
    Memory,
}

/// A finding against a candidate: which, and in words.
pub type Trouble = (Cause, String);

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

/// What a bundle promises of itself (`compat` in its manifest).
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The 99th percentile of a batch's time, in milliseconds.
    pub p99_ms: Option<f64>,
    /// By how much the process may grow with it, in MiB.
    pub max_ram_mb: Option<f64>,
}

/// A candidate on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Which it is.
    pub release: Release,
    /// How it is taken into use.
    pub rollout: Rollout,
    /// What the bundle promises.
    pub limits: Limits,
    /// How far it is: shadow, canary or baking.
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
    pub fn new(release: Release, rollout: Rollout, limits: Limits, now: Time) -> Trial {
        let (this, whole, measured, warned, error) = Default::default();
        let (stage, since) = (Stage::Shadow, now);
        Trial { release, rollout, limits, stage, since, now: this, whole, measured, warned, error }
    }

    /// Notes what a run that failed said.
    pub fn failed(&mut self, why: &str) {
        self.error = Some(why.chars().take(MOST_ERROR_CHARS).collect());
    }

    /// Whether a machine's verdicts are the candidate's.
    pub fn publishes(&self, machine: &str) -> bool {
        match self.stage {
            Stage::Canary => self.rollout.canary.iter().any(|g| WildMatch::new(g).matches(machine)),
            Stage::Baking => true,
            _ => false,
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
        let slow = self.limits.p99_ms.and_then(|limit| {
            let how = match (m.runs >= MIN_RUNS && m.p99_ms > limit, m.runs >= MIN_SLOW_RUNS && m.median_ms > limit) {
                (_, true) => format!("half of {} runs took longer than {:.1} ms", m.runs, m.median_ms),
                (true, _) => format!("one in a hundred of {} runs took longer than {:.1} ms", m.runs, m.p99_ms),
                _ => return None,
            };
            Some((Cause::Latency, format!("{how}; compat.p99_ms is {limit}")))
        });
        let large = self.limits.max_ram_mb.filter(|limit| m.grown_mb > *limit).map(|limit| {
            (Cause::Memory, format!("the process has grown by {:.0} MiB; compat.max_ram_mb is {limit}", m.grown_mb))
        });
        let found = slow.or(large).or_else(|| self.now.trouble());
        found.map(|(cause, what)| match &self.error {
            Some(said) if cause == Cause::Errors => (cause, format!("{what}: {said}")),
            _ => (cause, what),
        })
    }

    /// Whether trouble sends it back; else it is only told.
    pub fn rolls_back(&self) -> bool {
        self.rollout.failure_policy == FailurePolicy::Rollback
    }

    /// The stage after this one.
    pub fn following(&self) -> Stage {
        match self.stage {
            Stage::Shadow if !self.rollout.canary.is_empty() => Stage::Canary,
            Stage::Shadow | Stage::Canary => Stage::Baking,
            _ => Stage::Active,
        }
    }

    /// The next stage, when this one has lasted long enough and has been seen enough of.
    pub fn next(&self, now: Time) -> Option<Stage> {
        let lasts = if self.stage == Stage::Shadow { self.rollout.shadow } else { self.rollout.bake };
        let heard = self.stage == Stage::Shadow || self.now.published >= MIN_PUBLISHED;
        let done = now.since(self.since) >= lasts && self.now.windows >= MIN_WINDOWS && heard;
        done.then(|| self.following())
    }

    /// Into a stage; what is compared and measured there starts anew.
    pub fn enter(&mut self, stage: Stage, now: Time) {
        (self.stage, self.since) = (stage, now);
        (self.now, self.measured, self.warned, self.error) = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn trial() -> Trial {
        let release = Release { model: "pump".into(), version: "2".into(), sequence: 2, digest: "d".into() };
        let rollout = Rollout { shadow: SECOND, canary: vec!["pump-1".into()], bake: SECOND, ..Rollout::default() };
        Trial::new(release, rollout, Limits { p99_ms: Some(20.0), max_ram_mb: Some(512.0) }, at(0))
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
        let mut trial = trial();
        let mut stages = vec![trial.stage];
        for i in 0..400u64 {
            let now = Time(i as i64 * 50_000_000);
            let published = trial.publishes("pump-1");
            assert_eq!(published, trial.stage != Stage::Shadow);
            assert_eq!(trial.publishes("pump-2"), trial.stage == Stage::Baking);
            trial.compare(seen(even(i), false), seen(even(i + 3), false), 1e-4, published);
            assert_eq!(trial.trouble(), None);
            let Some(stage) = trial.next(now) else { continue };
            assert!(now.since(trial.since) >= SECOND);
            trial.enter(stage, now);
            stages.push(stage);
            if stage == Stage::Active {
                break;
            }
        }
        assert_eq!(stages, [Stage::Shadow, Stage::Canary, Stage::Baking, Stage::Active]);
    }

    #[test]
    fn no_windows_no_step_and_no_canary_no_stage_for_it() {
        let mut trial = trial();
        assert_eq!(trial.next(at(1_000_000)), None);
        assert_eq!(trial.following(), Stage::Canary);
        trial.rollout.canary.clear();
        assert_eq!(trial.following(), Stage::Baking);
    }

    #[test]
    fn each_kind_of_trouble_is_found_and_named() {
        let run = |candidate: &dyn Fn(u64) -> Option<Seen>| {
            let mut trial = trial();
            (0..200).for_each(|i| trial.compare(candidate(i), seen(even(i), i % 100 == 0), 1e-4, false));
            trial.trouble().map(|(cause, _)| cause)
        };
        assert_eq!(run(&|i| seen(even(i), i % 50 == 0)), None);
        assert_eq!(run(&|i| seen(even(i), false).filter(|_| i % 20 != 0)), Some(Cause::Errors));
        assert_eq!(run(&|i| seen(even(i), i % 10 == 0)), Some(Cause::AlarmRate));
        assert_eq!(run(&|_| seen(0.5, false)), Some(Cause::ScoreDrift));
        assert_eq!(run(&|_| seen(1.0, false)), Some(Cause::ScoreDrift));
        let measured = |runs, median_ms, p99_ms, grown_mb| {
            let mut trial = trial();
            trial.measure(Measured { runs, median_ms, p99_ms, grown_mb });
            trial.trouble().map(|(cause, _)| cause)
        };
        assert_eq!(measured(99, 1.0, 21.0, 100.0), None);
        assert_eq!(measured(100, 1.0, 21.0, 100.0), Some(Cause::Latency));
        assert_eq!(measured(10, 21.0, 21.0, 100.0), Some(Cause::Latency));
        assert_eq!(measured(1000, 1.0, 19.0, 513.0), Some(Cause::Memory));
        assert_eq!(measured(1000, 1.0, 19.0, 512.0), None);
    }

    /// Where the plant itself has changed or is in trouble, the candidate is not to blame.
    #[test]
    fn what_the_incumbent_sees_too_is_no_trouble() {
        let mut trial = trial();
        for _ in 0..200 {
            trial.compare(seen(0.001, true), seen(0.002, true), 1e-4, false);
            trial.compare(None, None, 1e-4, false);
        }
        assert_eq!(trial.trouble(), None);
        assert_eq!((trial.now.errors, trial.now.agreed), (0, 200));
    }
}
