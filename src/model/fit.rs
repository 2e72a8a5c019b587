//! Fitting a detector on the gateway: the mean of each window is held against a baseline that
//! follows the machine, in units of how healthy means stray from it (Mahalanobis distance with
//! shrinkage). While in alarm the baseline rests; when the fault is over it takes up the new state.
//!
//! [`Fitted::step`] is the written-out formula; `graph.rs` writes the same as ONNX, and the golden
//! cases hold one against the other.

use super::calibration::{Calibration, Limit};
use super::drift::Bins;
use super::spread::{Spread, distance, dot, doubts, expected_scores, optimism, parts, pulled};

/// Fewer windows than this say too little of what is normal.
pub const MIN_WINDOWS: usize = 100;
/// A channel whose value a good while ago still tells this much of the present one (correlation) is
/// slow: its level wanders, and only its recent course can be judged.
const SLOW: f64 = 0.5;
/// A good while, as a share of the rows learnt from: what changes more often than that has shown
/// its range. It is at least two windows.
const WHILE: f64 = 0.15;
/// How long the baseline remembers, as a share of the windows learnt from: over longer times the
/// data could not show what is normal. Slow channels remember half as long.
const MEMORY: f64 = 0.4;
/// The baseline remembers at least so many windows' lengths.
const LEAST_MEMORY: f64 = 5.0;
/// A fault is over when what is left of it, seen along its own direction, is below this share.
pub const RECEDED: f64 = 0.2;
/// A fault that has been this many times the limit is known well enough to tell when it is over; a
/// lesser one simply ends when the score is below the limit.
const ESTABLISHED: f64 = 1.2;
/// After that the baseline takes up the present state for so many windows' lengths, and nothing is
/// flagged meanwhile.
const SETTLING: f64 = 4.0 / 3.0;
/// How fast it does so: its memory then, in windows' lengths.
const SETTLING_MEMORY: f64 = 2.0 / 3.0;
/// An alarm that was raised goes on above this share of the limit, so that a fault near the limit is
/// one alarm and not many.
const DEADBAND: f64 = 0.85;
/// An alarm goes on for a step without the fault for each so many in which it was seen, at most for
/// the length of a window: what lasted long is not over at the first good sign, what was short is.
pub(super) const PATIENCE: f64 = 10.0;
/// While in alarm scores are at least so much above the limit, whether the fault is seen or not.
const HELD: f64 = 1.001;
/// No limit is above this, so that its square is a number in single precision.
pub(super) const MOST_LIMIT: f64 = 1e15;
/// With fewer independent windows than this the reference is completed to as many by what normal
/// data would give: the highest of a few healthy scores say little of how high such scores go.
const ENOUGH_WINDOWS: usize = 100;

/// Why nothing was learnt; `Display` is for a person.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Too few windows.
    #[error(
        "only {found} full windows of healthy running; at least {needed} are needed: give more data, or a shorter --window"
    )]
    TooLittle {
        /// How many there are.
        found: usize,
        /// How many there have to be.
        needed: usize,
    },
    /// A channel never changes.
    #[error("channel {0} never changes in the data: leave it out, or give data in which it does")]
    Constant(String),
    /// The numbers do not allow it.
    #[error("the channels are too entangled to be told apart; leave out those that are computed from others")]
    Singular,
}

/// Rows [n × channels] of one unbroken stretch.
pub type Stretch = Vec<Vec<f64>>;

/// What was learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Rows in a window.
    pub steps: usize,
    /// Of each channel, over all rows.
    pub mean: Vec<f64>,
    /// Of each channel, over all rows, above zero.
    pub std: Vec<f64>,
    /// Least and greatest value of each channel.
    pub range: Vec<(f64, f64)>,
    /// How each channel was spread, to tell later whether it still is.
    pub spread: Vec<Option<Bins>>,
    /// Mean of the window means, in units of `std` around `mean`: where the baseline starts.
    pub centre: Vec<f64>,
    /// Which channels wander.
    pub slow: Vec<bool>,
    /// Share of the difference that the baseline makes up in a step, by channel.
    pub rates: Vec<f64>,
    /// The same while settling.
    pub settling_rate: f64,
    /// Steps that settling takes.
    pub settling: f64,
    /// By how much each channel's strays are taken larger than they were seen: 1 is not at all.
    pub doubts: Vec<f64>,
    /// Inverse covariance of the window means around the baseline [channels × channels], row-major.
    pub precision: Vec<f64>,
    /// The score from which on the baseline rests.
    pub limit: f64,
    /// Scores of the healthy windows, enlarged by `optimism`, and those that normal data would give.
    pub reference: Vec<f64>,
    /// How many of them come from windows.
    pub windows: usize,
    /// How much larger scores of new healthy windows are to be expected than of those learnt from.
    pub optimism: f64,
}

/// What the detector keeps from window to window.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Where the window's mean is expected, in scaled units.
    pub baseline: Vec<f64>,
    /// The mean difference since the alarm began; zeros without one.
    pub fault: Vec<f64>,
    /// 1 while in alarm.
    pub alarm: f64,
    /// Steps of settling that are left.
    pub settling: f64,
    /// 1 until the first window: then slow channels are taken as they are found.
    pub fresh: f64,
    /// While in alarm: for how long it goes on without the fault, in steps times [`PATIENCE`].
    pub patience: f64,
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Stepped {
    /// The score.
    pub score: f64,
    /// Each channel's part in it, none negative.
    pub parts: Vec<f64>,
    /// Whether this very window is over the limit, and not only flagged because one before was.
    pub strange: bool,
    /// What is kept.
    pub next: State,
}

/// Fits on stretches of healthy running; the baseline will rest where a score reaches `limit`.
pub fn fit(stretches: &[Stretch], names: &[String], steps: usize, limit: &Limit) -> Result<Fitted, FitError> {
    let windows: usize = stretches.iter().map(|s| (s.len() + 1).saturating_sub(steps)).sum();
    if windows < MIN_WINDOWS {
        return Err(FitError::TooLittle { found: windows, needed: MIN_WINDOWS });
    }
    let n = names.len();
    let rows: Vec<&Vec<f64>> = stretches.iter().flatten().collect();
    let column = |c: usize| rows.iter().map(move |r| r[c]);
    let mean: Vec<f64> = (0..n).map(|c| column(c).sum::<f64>() / rows.len() as f64).collect();
    let variance = |c: usize| column(c).map(|v| (v - mean[c]).powi(2)).sum::<f64>() / rows.len() as f64;
    let std: Vec<f64> = (0..n).map(|c| variance(c).sqrt()).collect();
    let moves = |c: &usize| std[*c] > 1e-12 * (1.0 + mean[*c].abs());
    if let Some(c) = (0..n).find(|c| !moves(c)) {
        return Err(FitError::Constant(names[c].clone()));
    }
    let bounds = |c: usize| column(c).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let lag = (2 * steps).max((WHILE * rows.len() as f64) as usize);
    let slow: Vec<bool> = (0..n).map(|c| autocorrelation(stretches, c, mean[c], lag) > SLOW).collect();
    let memory = (MEMORY * windows as f64).max(LEAST_MEMORY * steps as f64);
    let means = window_means(stretches, steps, &mean, &std);
    let count = means.len() as f64;
    let mut fitted = Fitted {
        steps,
        range: (0..n).map(bounds).collect(),
        spread: (0..n).map(|c| Bins::learn(stretches.iter().flatten().map(|row| row[c]).collect())).collect(),
        centre: (0..n).map(|c| means.iter().map(|m| m[c]).sum::<f64>() / count).collect(),
        rates: slow.iter().map(|slow| if *slow { 2.0 / memory } else { 1.0 / memory }).collect(),
        settling_rate: (1.0 / (SETTLING_MEMORY * steps as f64)).min(1.0),
        settling: (SETTLING * steps as f64).ceil(),
        slow,
        mean,
        std,
        doubts: doubts(&means, rows.len() as f64 / steps as f64),
        precision: Vec::new(),
        limit: f64::MAX,
        reference: Vec::new(),
        windows,
        optimism: 1.0,
    };
    let strays = fitted.strays(&means);
    let spread = Spread::of(&strays, &fitted.doubts).ok_or(FitError::Singular)?;
    fitted.optimism = optimism(windows, spread.channels, steps);
    fitted.precision = spread.precision;
    let score = |d: &Vec<f64>| distance(&parts(d, &fitted.precision)) * fitted.optimism;
    fitted.reference = strays.iter().map(score).collect();
    let missing = ENOUGH_WINDOWS.saturating_sub(fitted.independent());
    fitted.reference.extend(expected_scores(missing * steps, spread.channels).map(|s| s * fitted.optimism));
    fitted.limit = match limit {
        Limit::PValue(p) => Calibration::new(fitted.reference.clone()).score_at(*p),
        Limit::Score(s) => *s,
    }
    .clamp(0.0, MOST_LIMIT);
    Ok(fitted)
}

impl Fitted {
    /// The state at the start.
    pub fn start(&self) -> State {
        let fault = vec![0.0; self.centre.len()];
        State { baseline: self.centre.clone(), fault, alarm: 0.0, settling: 0.0, fresh: 1.0, patience: 0.0 }
    }

    /// Independent windows that the reference is worth: neighbours overlap.
    pub fn independent(&self) -> usize {
        self.windows / self.steps
    }

    /// The mean of a window [steps × channels] in scaled units.
    pub fn mean_of(&self, window: &[f64]) -> Vec<f64> {
        let n = self.mean.len();
        let mut m = vec![0.0; n];
        for (i, v) in window.iter().enumerate() {
            m[i % n] += (v - self.mean[i % n]) / self.std[i % n] / self.steps as f64;
        }
        m
    }

    /// What the graph does with a window whose mean is `m`.
    pub fn step(&self, state: &State, m: &[f64]) -> Stepped {
        let baseline: Vec<f64> = self.expected(state, m);
        let off: Vec<f64> = m.iter().zip(&baseline).map(|(m, b)| m - b).collect();
        let parts = parts(&off, &self.precision);
        let raw = distance(&parts);
        let pulled_fault = pulled(&state.fault, &self.precision);
        let present = dot(&off, &pulled_fault) > RECEDED * dot(&state.fault, &pulled_fault);
        let (over, was) = (raw > self.limit, state.alarm > 0.5);
        let seen = raw > self.cleared() && present;
        let patience = if seen { (state.patience + 1.0).min(self.patience()) } else { state.patience - PATIENCE };
        let stays = was && patience >= 0.0;
        let fault_squared = dot(&state.fault, &pulled_fault) / off.len() as f64;
        let ends_well = was && !stays && fault_squared > self.established();
        let settling = if ends_well { self.settling } else { state.settling };
        let settles = !stays && settling > 0.5;
        let begins = !was && !settles && over;
        let in_alarm = stays || begins;
        let rate = |c: usize| match () {
            () if in_alarm => 0.0,
            () if settles => self.settling_rate,
            () => self.rates[c],
        };
        let pull = 1.0 / self.steps as f64;
        let fault = |c: usize| match () {
            () if begins => off[c],
            () if stays && seen => state.fault[c] + pull * (off[c] - state.fault[c]),
            () if stays => state.fault[c],
            () => 0.0,
        };
        let n = off.len();
        let next = State {
            baseline: (0..n).map(|c| baseline[c] + rate(c) * off[c]).collect(),
            fault: (0..n).map(fault).collect(),
            alarm: f64::from(u8::from(in_alarm)),
            settling: if settles { settling - 1.0 } else { 0.0 },
            fresh: 0.0,
            patience: if stays { patience } else { 0.0 },
        };
        let score = match () {
            () if settles => raw.min(self.calm()),
            () if in_alarm => raw.max(self.held()),
            () => raw,
        };
        Stepped { score, parts: parts.iter().map(|p| p.max(0.0)).collect(), strange: over && !settles, next }
    }

    /// The score above which an alarm that was raised goes on.
    pub fn cleared(&self) -> f64 {
        DEADBAND * self.limit
    }

    /// The most patience there is.
    pub fn patience(&self) -> f64 {
        PATIENCE * self.steps as f64
    }

    /// What scores are held below while settling.
    pub fn calm(&self) -> f64 {
        0.5 * self.limit
    }

    /// What scores are held above while in alarm.
    pub fn held(&self) -> f64 {
        HELD * self.limit
    }

    /// The squared distance from which on a fault is well enough known.
    pub fn established(&self) -> f64 {
        (ESTABLISHED * self.limit).powi(2)
    }

    fn expected(&self, state: &State, m: &[f64]) -> Vec<f64> {
        let found = |c: usize| self.slow[c] && state.fresh > 0.5;
        (0..m.len()).map(|c| if found(c) { m[c] } else { state.baseline[c] }).collect()
    }

    /// How far each mean is from a baseline that never rests.
    fn strays(&self, means: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut state = self.start();
        let mut out = Vec::with_capacity(means.len());
        for m in means {
            state.baseline = self.expected(&state, m);
            state.fresh = 0.0;
            let off: Vec<f64> = m.iter().zip(&state.baseline).map(|(m, b)| m - b).collect();
            off.iter().zip(&self.rates).zip(&mut state.baseline).for_each(|((o, r), b)| *b += r * o);
            out.push(off);
        }
        out
    }
}

/// How much a channel's value tells of the one `lag` steps later.
fn autocorrelation(stretches: &[Stretch], c: usize, mean: f64, lag: usize) -> f64 {
    let (mut with, mut own, mut pairs, mut all) = (0.0, 0.0, 0.0f64, 0.0f64);
    for stretch in stretches {
        own += stretch.iter().map(|r| (r[c] - mean).powi(2)).sum::<f64>();
        all += stretch.len() as f64;
        let later = stretch.iter().skip(lag);
        with += stretch.iter().zip(later).map(|(a, b)| (a[c] - mean) * (b[c] - mean)).sum::<f64>();
        pairs += stretch.len().saturating_sub(lag) as f64;
    }
    (with / pairs.max(1.0)) / (own / all.max(1.0)).max(f64::MIN_POSITIVE)
}

/// Means of all windows, a step apart, scaled by channel.
fn window_means(stretches: &[Stretch], steps: usize, mean: &[f64], std: &[f64]) -> Vec<Vec<f64>> {
    let n = mean.len();
    let mut out = Vec::new();
    for stretch in stretches {
        let scaled = |r: &Vec<f64>, c: usize| (r[c] - mean[c]) / std[c] / steps as f64;
        let mut sum = vec![0.0; n];
        for (i, row) in stretch.iter().enumerate() {
            for (c, sum) in sum.iter_mut().enumerate() {
                let gone = if i >= steps { scaled(&stretch[i - steps], c) } else { 0.0 };
                *sum += scaled(row, c) - gone;
            }
            if i + 1 >= steps {
                out.push(sum.clone());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two channels that go together, and one of its own.
    fn healthy(n: usize) -> Stretch {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut noise = move || (0..6).map(|_| rng.f64() - 0.5).sum::<f64>();
        let row = |_| {
            let a = noise();
            vec![50.0 + 5.0 * a, 10.0 + 2.0 * a + 0.1 * noise(), 3.0 + noise()]
        };
        (0..n).map(row).collect()
    }

    fn names() -> Vec<String> {
        ["flow", "power", "temp"].map(String::from).to_vec()
    }

    fn fitted(n: usize) -> Fitted {
        fit(&[healthy(n)], &names(), 10, &Limit::PValue(1e-4)).expect("fitted")
    }

    fn constant(row: [f64; 3]) -> Vec<f64> {
        (0..10).flat_map(|_| row).collect()
    }

    fn of(fitted: &Fitted, row: [f64; 3]) -> Stepped {
        fitted.step(&fitted.start(), &fitted.mean_of(&constant(row)))
    }

    #[test]
    fn what_breaks_a_relation_stands_out_though_each_value_is_normal() {
        let fitted = fitted(600);
        let (normal, broken) = (of(&fitted, [52.0, 10.8, 3.0]), of(&fitted, [52.0, 9.2, 3.0]));
        assert!(normal.score < fitted.limit, "{} {}", normal.score, fitted.limit);
        assert!(broken.score > fitted.limit, "{} {}", broken.score, fitted.limit);
    }

    #[test]
    fn the_channel_that_left_has_the_largest_share() {
        let shares = of(&fitted(600), [50.0, 10.0, 9.0]).parts;
        assert!(shares[2] > 10.0 * shares[0].max(shares[1]), "{shares:?}");
    }

    #[test]
    fn the_baseline_rests_in_alarm_and_settles_when_the_fault_recedes() {
        let fitted = fitted(600);
        let well = fitted.mean_of(&constant([50.0, 10.0, 3.0]));
        let ill = fitted.mean_of(&constant([50.0, 10.0, 9.0]));
        let after = fitted.mean_of(&constant([50.0, 10.0, 3.4]));
        let mut state = fitted.start();
        let mut run = |m: &[f64], n: usize| {
            let mut last = None;
            for _ in 0..n {
                let stepped = fitted.step(&state, m);
                state = stepped.next.clone();
                last = Some(stepped);
            }
            last.expect("stepped")
        };
        let calm = run(&well, 50);
        assert!(calm.score < fitted.limit && calm.next.alarm == 0.0);
        run(&ill, 5);
        let brief = run(&after, 1);
        assert_eq!(brief.next.alarm, 0.0, "what was short is over at once");
        let calm = run(&well, 50);
        assert!(calm.score < fitted.limit && calm.next.alarm == 0.0);
        let late = run(&ill, 5000);
        assert_eq!(late.next.alarm, 1.0, "a fault is not learnt however long it lasts");
        assert_eq!(late.next.baseline, calm.next.baseline);
        let held = run(&after, fitted.steps);
        assert_eq!(held.next.alarm, 1.0, "a window without the fault has not passed yet");
        assert!(held.score > fitted.limit && !held.strange && held.next.fault == late.next.fault);
        let over = run(&after, 1);
        assert_eq!(over.next.alarm, 0.0, "what is left is small beside what was");
        assert!(over.score < fitted.limit);
        let settled = run(&after, 60);
        assert!(settled.score < 0.5 * fitted.limit, "{} {}", settled.score, fitted.limit);
    }

    #[test]
    fn a_channel_that_wanders_is_judged_by_its_recent_course() {
        let mut rows = healthy(600);
        // As a temperature does over a day: half a wave in all.
        let part = std::f64::consts::PI / rows.len() as f64;
        rows.iter_mut().enumerate().for_each(|(i, r)| r[2] += 5.0 * (part * i as f64).cos());
        let fitted = fit(&[rows], &names(), 10, &Limit::PValue(1e-4)).expect("fitted");
        assert_eq!(fitted.slow, [false, false, true]);
        let elsewhere = of(&fitted, [50.0, 10.0, 3.0 + 10.0 * fitted.std[2]]);
        assert!(elsewhere.score < fitted.limit, "at the start it is taken as it is found");
    }

    #[test]
    fn what_cannot_be_learnt_is_refused() {
        let fit = |rows: Stretch| fit(&[rows], &names(), 10, &Limit::PValue(1e-4));
        assert_eq!(fit(healthy(100)), Err(FitError::TooLittle { found: 91, needed: MIN_WINDOWS }));
        let mut flat = healthy(300);
        flat.iter_mut().for_each(|r| r[1] = 4.0);
        assert_eq!(fit(flat), Err(FitError::Constant("power".into())));
    }

    proptest! {
        /// Whatever the machine did, a step is flagged exactly while in alarm, and an alarm ends within
        /// a window's length of the fault.
        #[test]
        fn an_alarm_is_flagged_and_ends(stages in prop::collection::vec((0.0..12.0f64, 1..150usize), 1..6)) {
            let fitted = fitted(600);
            let mut state = fitted.start();
            let mut run = |temp: f64, steps: usize| -> Result<State, TestCaseError> {
                let mean = fitted.mean_of(&constant([50.0, 10.0, 3.0 + temp]));
                for _ in 0..steps {
                    let stepped = fitted.step(&state, &mean);
                    prop_assert_eq!(stepped.score > fitted.limit, stepped.next.alarm > 0.5);
                    prop_assert!((0.0..=fitted.patience()).contains(&stepped.next.patience));
                    state = stepped.next;
                }
                Ok(state.clone())
            };
            for (temp, steps) in stages {
                let before = run(temp, steps)?;
                if before.alarm > 0.5 {
                    // Back to where it came from.
                    let back = before.baseline[2] * fitted.std[2] + fitted.mean[2] - 3.0;
                    prop_assert_eq!(run(back, fitted.steps + 1)?.alarm, 0.0);
                }
            }
        }
    }
}
