//! Fitting a detector on the gateway: the aspects of each window are held against a baseline that
//! follows the machine, in units of how healthy ones stray from it (Mahalanobis distance with
//! shrinkage). While in alarm the baseline rests; when the fault is over it takes up the new state.
//!
//! [`Fitted::step`] is the written-out formula; `graph.rs` writes the same as ONNX, and the golden
//! cases hold one against the other.

use super::aspects;
use super::calibration::{Calibration, Limit};
use super::directions::Directions;
use super::drift::Bins;
use super::gauge::Gauge;
use super::spread::{distance, dot, doubts, parts, pulled};

/// Fewer windows than this say too little of what is normal.
pub const MIN_WINDOWS: usize = 100;
/// A channel whose value a good while ago still tells this much of the present one (correlation) is
/// slow: its level wanders, and only its recent course can be judged.
const SLOW: f64 = 0.6;
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
/// The share of the false-alarm budget that is for levels; the rest is for restlessness.
const FOR_LEVELS: f64 = 0.8;
/// The p-value at which both are made alike where the operator gives a score for a limit.
const USUAL_P: f64 = 1e-4;

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
    /// These channels never change.
    #[error("{}", never_change(.0))]
    Constant(Vec<String>),
    /// The numbers do not allow it.
    #[error("the channels are too entangled to be told apart; leave out those that are computed from others")]
    Singular,
}

fn never_change(channels: &[String]) -> String {
    let (named, ignored) = (channels.join(", "), channels.join(","));
    match channels {
        [_] => format!(
            "channel {named} never changes in the data: leave it out (--ignore {ignored}), or give data in which it does"
        ),
        _ => format!(
            "channels {named} never change in the data: leave them out (--ignore {ignored}), or give data in which they do"
        ),
    }
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
    /// Mean of the windows' aspects [2 × channels], of rows in units of `std` around `mean`: where the
    /// baseline starts.
    pub centre: Vec<f64>,
    /// Which channels wander.
    pub slow: Vec<bool>,
    /// Share of the difference that the baseline makes up in a step, by aspect [2 × channels].
    pub rates: Vec<f64>,
    /// The same while settling.
    pub settling_rate: f64,
    /// Steps that settling takes.
    pub settling: f64,
    /// By how much the strays of each channel's level are taken larger than they were seen: 1 is not
    /// at all.
    pub doubts: Vec<f64>,
    /// Inverse covariance of the aspects around the baseline [2 × channels, squared], row-major;
    /// between levels and restlessness it is zero.
    pub precision: Vec<f64>,
    /// The score from which on the baseline rests.
    pub limit: f64,
    /// Scores of healthy windows as if each were new, and those that normal data would give.
    pub reference: Vec<f64>,
    /// How many of them come from windows.
    pub windows: usize,
    /// How much larger scores of new healthy windows are to be expected than of those learnt from.
    pub optimism: f64,
}

/// What the detector keeps from window to window.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Where the window's aspects are expected [2 × channels].
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
    /// How far each channel is to be blamed for it, none negative.
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
    let constant = constant(stretches, names);
    if !constant.is_empty() {
        return Err(FitError::Constant(constant));
    }
    let n = names.len();
    let rows: Vec<&Vec<f64>> = stretches.iter().flatten().collect();
    let column = |c: usize| rows.iter().map(move |r| r[c]);
    // As the graph will have it: a counter's deviation is small beside what single precision leaves of its mean.
    let single = |v: f64| f64::from(v as f32);
    let mean: Vec<f64> = (0..n).map(|c| single(column(c).sum::<f64>() / rows.len() as f64)).collect();
    let variance = |c: usize| column(c).map(|v| (v - mean[c]).powi(2)).sum::<f64>() / rows.len() as f64;
    let std: Vec<f64> = (0..n).map(|c| variance(c).sqrt()).collect();
    let bounds = |c: usize| column(c).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let lag = (2 * steps).max((WHILE * rows.len() as f64) as usize);
    let slow: Vec<bool> = (0..n).map(|c| autocorrelation(stretches, c, mean[c], lag) > SLOW).collect();
    let memory = (MEMORY * windows as f64).max(LEAST_MEMORY * steps as f64);
    let relative: Vec<Stretch> = stretches.iter().map(|s| scaled(s, &mean, &std)).collect();
    let seen: Vec<Vec<f64>> = relative.iter().flat_map(|s| aspects::of_windows(s, steps)).collect();
    let (count, independent) = (seen.len() as f64, rows.len() as f64 / steps as f64);
    let mut fitted = Fitted {
        steps,
        range: (0..n).map(bounds).collect(),
        spread: (0..n).map(|c| Bins::learn(column(c).collect())).collect(),
        centre: (0..2 * n).map(|a| seen.iter().map(|s| s[a]).sum::<f64>() / count).collect(),
        rates: (0..2 * n).map(|a| if slow.get(a) == Some(&true) { 2.0 / memory } else { 1.0 / memory }).collect(),
        settling_rate: (1.0 / (SETTLING_MEMORY * steps as f64)).min(1.0),
        settling: (SETTLING * steps as f64).ceil(),
        slow,
        mean,
        std,
        doubts: doubts(&seen, n, steps, independent),
        precision: Vec::new(),
        limit: f64::MAX,
        reference: Vec::new(),
        windows,
        optimism: 1.0,
    };
    let strays = fitted.strays(&seen);
    let together = Directions::of(&relative.concat(), &seen, steps, independent);
    let part = |from: usize| strays.iter().map(|s| s[from..from + n].to_vec()).collect::<Vec<_>>();
    let levels = Gauge::of(&part(0), &fitted.doubts, steps, independent, &together).ok_or(FitError::Singular)?;
    let unrest =
        Gauge::of(&part(n), &vec![1.0; n], steps, independent, &Directions::apart(n)).ok_or(FitError::Singular)?;
    let p = if let Limit::PValue(p) = limit { *p } else { USUAL_P };
    // Healthy vectors are about 1 from the baseline; a limit below that would be no limit.
    let at = |gauge: &Gauge, share: f64| Calibration::new(gauge.scores()).score_at(p * share).max(1.0);
    let times = at(&levels, FOR_LEVELS) / at(&unrest, 1.0 - FOR_LEVELS);
    fitted.precision = beside(&levels.precision, &unrest.precision, times * times, n);
    fitted.optimism = levels.optimism;
    fitted.reference = levels.or(&unrest, times);
    fitted.limit = match limit {
        Limit::PValue(p) => Calibration::new(fitted.reference.clone()).score_at(*p),
        Limit::Score(s) => *s,
    }
    .clamp(0.0, MOST_LIMIT);
    Ok(fitted)
}

/// The channels that have one value throughout.
pub fn constant(stretches: &[Stretch], names: &[String]) -> Vec<String> {
    let count = stretches.iter().map(Vec::len).sum::<usize>() as f64;
    let still = |c: usize| {
        let column = || stretches.iter().flatten().map(|row| row[c]);
        let mean = column().sum::<f64>() / count;
        let std = (column().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
        std <= 1e-12 * (1.0 + mean.abs())
    };
    names.iter().enumerate().filter(|(c, _)| still(*c)).map(|(_, name)| name.clone()).collect()
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

    /// The aspects of a window [steps × channels].
    pub fn aspects_of(&self, window: &[f64]) -> Vec<f64> {
        let rows: Stretch = window.chunks(self.mean.len()).map(<[f64]>::to_vec).collect();
        aspects::of(&scaled(&rows, &self.mean, &self.std))
    }

    /// What the graph does with a window of these aspects.
    pub fn step(&self, state: &State, seen: &[f64]) -> Stepped {
        let n = seen.len();
        let baseline: Vec<f64> = self.expected(state, seen);
        let off: Vec<f64> = seen.iter().zip(&baseline).map(|(s, b)| s - b).collect();
        let parts = parts(&off, &self.precision);
        let (levels, unrest) = parts.split_at(n / 2);
        let (levels, unrest) = (distance(levels), distance(unrest));
        let raw = levels.max(unrest);
        let pulled_fault = pulled(&state.fault, &self.precision);
        let present = dot(&off, &pulled_fault) > RECEDED * dot(&state.fault, &pulled_fault);
        let (over, was) = (raw > self.limit, state.alarm > 0.5);
        let seen = raw > self.cleared() && present;
        let patience = if seen { (state.patience + 1.0).min(self.patience()) } else { state.patience - PATIENCE };
        let stays = was && patience >= 0.0;
        let fault_squared = dot(&state.fault, &pulled_fault) / n as f64;
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
        Stepped { score, parts: self.blame(&off, unrest > levels), strange: over && !settles, next }
    }

    /// By how much the squared distance of levels, or of restlessness, would shrink if a channel were
    /// where the others would have it (reconstruction-based contributions, Alcala and Qin 2009): the
    /// largest for the channel that went its own way, whatever the load; the parts of the distance
    /// itself are not.
    fn blame(&self, off: &[f64], restless: bool) -> Vec<f64> {
        let (all, n) = (off.len(), off.len() / 2);
        let pulled = pulled(off, &self.precision);
        let from = if restless { n } else { 0 };
        (from..from + n).map(|a| pulled[a] * pulled[a] / self.precision[a * all + a]).collect()
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

    /// The mean over all aspects of a fault's parts from which on it is well enough known: those of
    /// one kind have half the weight in it.
    pub fn established(&self) -> f64 {
        (ESTABLISHED * self.limit).powi(2) / 2.0
    }

    fn expected(&self, state: &State, seen: &[f64]) -> Vec<f64> {
        let found = |a: usize| self.slow.get(a) == Some(&true) && state.fresh > 0.5;
        (0..seen.len()).map(|a| if found(a) { seen[a] } else { state.baseline[a] }).collect()
    }

    /// How far the aspects of each window are from a baseline that never rests.
    fn strays(&self, seen: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut state = self.start();
        let mut out = Vec::with_capacity(seen.len());
        for s in seen {
            state.baseline = self.expected(&state, s);
            state.fresh = 0.0;
            let off: Vec<f64> = s.iter().zip(&state.baseline).map(|(s, b)| s - b).collect();
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

/// Rows by each channel's deviation around its mean.
fn scaled(rows: &[Vec<f64>], mean: &[f64], std: &[f64]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().zip(mean.iter().zip(std)).map(|(v, (m, s))| (v - m) / s).collect()).collect()
}

/// Two matrices [n × n] as blocks of one [2n × 2n], the second so many times.
fn beside(first: &[f64], second: &[f64], times: f64, n: usize) -> Vec<f64> {
    let value = |i: usize| match (i / (2 * n), i % (2 * n)) {
        (row, column) if row < n && column < n => first[row * n + column],
        (row, column) if row >= n && column >= n => second[(row - n) * n + column - n] * times,
        _ => 0.0,
    };
    (0..4 * n * n).map(value).collect()
}

#[cfg(test)]
mod tests;
