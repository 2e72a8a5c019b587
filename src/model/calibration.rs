//! From scores to p-values, and from a false-alarm budget to a limit.
//!
//! Within the reference scores the p-value is the conformal (1 + #{reference ≥ s}) / (n + 1). Above
//! their upper tail a generalised Pareto distribution, fitted by probability-weighted moments
//! (Hosking & Wallis 1987), carries on, since a weekly budget asks for p-values that no reference
//! set is large enough to hold.

use std::time::Duration;

/// Share of the reference scores that makes up the tail.
const TAIL_SHARE: f64 = 0.05;
/// Fewer tail scores than this are not fitted; a small reference gives a larger share.
const MIN_TAIL: usize = 20;
/// The largest share of the reference that is taken for its tail.
const MAX_TAIL_SHARE: f64 = 0.2;
/// The shape expected before any score is seen, and how many tail scores that expectation is worth:
/// a shape fitted to a few scores would be chance.
const USUAL_SHAPE: (f64, f64) = (0.2, 50.0);
/// A tail is never taken to be lighter than this shape: an end that nothing lies beyond would be
/// more than the data can say.
const MIN_SHAPE: f64 = 0.05;
/// The heaviest shape taken.
const MAX_SHAPE: f64 = 0.5;
/// No p-value is below this.
const LEAST_P: f64 = 1e-12;

/// Reference scores, ready to be asked.
#[derive(Clone, Debug)]
pub struct Calibration {
    sorted: Vec<f64>,
    tail: Option<Tail>,
}

#[derive(Clone, Debug)]
struct Tail {
    start: f64,
    weight: f64,
    shape: f64,
    scale: f64,
}

impl Calibration {
    /// From the scores of healthy windows, in any order.
    pub fn new(mut scores: Vec<f64>) -> Calibration {
        scores.retain(|s| s.is_finite());
        scores.sort_by(f64::total_cmp);
        let tail = Tail::fit(&scores);
        Calibration { sorted: scores, tail }
    }

    /// How many reference scores there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none: then no p-value can be given and all are 1.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Whether a p-value this small rests on the fitted tail rather than on counted scores.
    pub fn extrapolates(&self, p: f64) -> bool {
        p < 1.0 / (self.sorted.len() as f64 + 1.0)
    }

    /// How often a healthy machine scores at least `score`, 1e-12..1.
    pub fn p_value(&self, score: f64) -> f64 {
        if self.sorted.is_empty() || score.is_nan() {
            return 1.0;
        }
        if let Some(tail) = self.tail.as_ref().filter(|t| score > t.start) {
            return tail.survival(score).max(LEAST_P);
        }
        let n = self.sorted.len() as f64;
        let at_least = n - self.sorted.partition_point(|s| *s < score) as f64;
        (1.0 + at_least) / (n + 1.0)
    }
}

impl Calibration {
    /// The least score whose p-value is `p` or below; very large where no score has such a one.
    pub fn score_at(&self, p: f64) -> f64 {
        let (mut low, mut high) = (0.0, self.sorted.last().copied().unwrap_or(1.0).max(1e-9));
        while self.p_value(high) > p {
            if high > 1e12 {
                return high;
            }
            (low, high) = (high, high * 2.0);
        }
        for _ in 0..64 {
            let middle = 0.5 * (low + high);
            if self.p_value(middle) > p { low = middle } else { high = middle }
        }
        high
    }
}

impl Tail {
    fn fit(sorted: &[f64]) -> Option<Tail> {
        let all = sorted.len() as f64;
        let count = ((all * TAIL_SHARE) as usize).max(MIN_TAIL.min((all * MAX_TAIL_SHARE) as usize));
        if count < MIN_TAIL {
            return None;
        }
        let start = sorted[sorted.len() - count - 1];
        let excess: Vec<f64> = sorted[sorted.len() - count..].iter().map(|s| s - start).collect();
        let n = excess.len() as f64;
        let mean = excess.iter().sum::<f64>() / n;
        let weigh = |(i, x): (usize, &f64)| x * (n - 1.0 - i as f64) / (n - 1.0);
        let moment = excess.iter().enumerate().map(weigh).sum::<f64>() / n;
        let spread = mean - 2.0 * moment;
        if mean <= 0.0 || spread <= 0.0 {
            return None;
        }
        let (usual, worth) = USUAL_SHAPE;
        let fitted = (2.0 - mean / spread).clamp(-1.0, 1.0);
        let shape = ((n * fitted + worth * usual) / (n + worth)).clamp(MIN_SHAPE, MAX_SHAPE);
        // With the shape held within bounds the scale still has to give the tail its mean.
        let scale = mean * (1.0 - shape);
        Some(Tail { start, weight: (n + 1.0) / (sorted.len() as f64 + 1.0), shape, scale })
    }

    fn survival(&self, score: f64) -> f64 {
        let x = (score - self.start) / self.scale;
        self.weight * (1.0 + self.shape * x).powf(-1.0 / self.shape)
    }
}

/// What a verdict is held against.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Limit {
    /// An anomaly when the p-value is at or below this.
    PValue(f64),
    /// An anomaly when the score is at or above this.
    Score(f64),
}

impl Limit {
    /// The p-value at which so many false alarms in `period` are to be expected from windows that
    /// overlap no more than a new one every `window`.
    pub fn from_budget(alarms: f64, period: Duration, window: Duration) -> Limit {
        let windows = (period.as_secs_f64() / window.as_secs_f64().max(1e-9)).max(1.0);
        Limit::PValue((alarms / windows).clamp(LEAST_P, 0.5))
    }

    /// As written into verdicts.
    pub fn threshold(&self) -> f64 {
        match self {
            Limit::PValue(p) => *p,
            Limit::Score(s) => *s,
        }
    }

    /// How near the limit a verdict is: 0 is nothing, 1 is at the limit, more is beyond. P-values
    /// are taken by their logarithm.
    pub fn strength(&self, score: f64, p_value: f64) -> f64 {
        match self {
            Limit::PValue(alpha) => p_value.max(LEAST_P).ln() / alpha.ln(),
            Limit::Score(limit) if *limit > 0.0 => score / limit,
            Limit::Score(limit) => 1.0 + score - limit,
        }
    }
}
