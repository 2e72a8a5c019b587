//! How far from healthy a vector is: a distance, with the scores that healthy vectors have which it
//! was not fitted on, and those that normal data would give where there are few.

use super::directions::Directions;
use super::spread::{Spread, distance, expected_scores, optimism, parts};

/// Into so many parts the healthy vectors are cut: each is judged by a fit on the others.
const FOLDS: usize = 5;
/// With fewer independent windows than this the scores are completed to as many by what normal
/// data would give: the highest of a few healthy scores say little of how high such scores go.
const ENOUGH_WINDOWS: usize = 100;

/// A distance and what it is for healthy vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Gauge {
    /// Inverse covariance [n × n], row-major.
    pub precision: Vec<f64>,
    /// A score for each vector, as new ones would have.
    pub seen: Vec<f64>,
    /// Scores that normal data would give, ascending.
    pub expected: Vec<f64>,
    /// How much larger scores of new healthy vectors are to be expected than of those fitted on.
    pub optimism: f64,
}

impl Gauge {
    /// Of the vectors of windows of `steps` rows that are a row apart, `independent` of which fit
    /// side by side; `None` where the channels are too entangled.
    pub fn of(
        strays: &[Vec<f64>],
        doubts: &[f64],
        steps: usize,
        independent: f64,
        directions: &Directions,
    ) -> Option<Gauge> {
        let fit = |strays: &[Vec<f64>], independent| Spread::of(strays, doubts, independent, directions);
        let spread = fit(strays, independent)?;
        let score = |d: &Vec<f64>| distance(&parts(d, &spread.precision));
        let fitted: Vec<f64> = strays.iter().map(score).collect();
        let unseen = unseen(strays, steps, independent, fit).unwrap_or_else(|| fitted.clone());
        let grown = (squares(&unseen) / squares(&fitted).max(f64::MIN_POSITIVE)).sqrt().max(1.0);
        let optimism = optimism(strays.len(), spread.told, steps).max(grown);
        let missing = ENOUGH_WINDOWS.saturating_sub(strays.len() / steps);
        Some(Gauge {
            precision: spread.precision,
            seen: unseen.iter().map(|s| s * optimism / grown).collect(),
            expected: expected_scores(missing * steps, spread.channels).map(|s| s * optimism).collect(),
            optimism,
        })
    }

    /// All scores, of vectors and expected.
    pub fn scores(&self) -> Vec<f64> {
        [&self.seen[..], &self.expected].concat()
    }

    /// The scores of the larger of this one and another whose scores are taken so many times.
    pub fn or(&self, other: &Gauge, times: f64) -> Vec<f64> {
        let others = |scores: &[f64]| scores.iter().map(|s| s * times).collect::<Vec<_>>();
        let seen = self.seen.iter().zip(others(&other.seen)).map(|(a, b)| a.max(b));
        seen.chain(larger(&self.expected, &others(&other.expected))).collect()
    }
}

/// The score of each vector by a fit on those far from it; `None` where too few are.
fn unseen(
    strays: &[Vec<f64>],
    steps: usize,
    independent: f64,
    fit: impl Fn(&[Vec<f64>], f64) -> Option<Spread>,
) -> Option<Vec<f64>> {
    let all = strays.len();
    let mut scores = Vec::with_capacity(all);
    for fold in 0..FOLDS {
        let (from, to) = (all * fold / FOLDS, all * (fold + 1) / FOLDS);
        // Neither do they share rows with it.
        let others = [&strays[..from.saturating_sub(steps)], &strays[(to + steps).min(all)..]].concat();
        if 2 * others.len() < all {
            return None;
        }
        let share = (FOLDS - 1) as f64 / FOLDS as f64;
        let spread = fit(&others, independent * share)?;
        scores.extend(strays[from..to].iter().map(|d| distance(&parts(d, &spread.precision))));
    }
    Some(scores)
}

fn squares(scores: &[f64]) -> f64 {
    scores.iter().map(|s| s * s).sum::<f64>() / scores.len().max(1) as f64
}

/// As many evenly probable values of the larger of two that know nothing of each other, each given
/// by as many evenly probable values, ascending.
fn larger(a: &[f64], b: &[f64]) -> Vec<f64> {
    let count = a.len() as f64;
    let mut all = [a, b].concat();
    all.sort_by(f64::total_cmp);
    let below = |of: &[f64], s: f64| of.partition_point(|v| *v <= s) as f64 / count;
    let mut at = 0;
    let value = |i: usize| {
        let probability = (i as f64 + 0.5) / count;
        while at + 1 < all.len() && below(a, all[at]) * below(b, all[at]) < probability {
            at += 1;
        }
        all[at]
    };
    (0..a.len()).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u64) -> Vec<Vec<f64>> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut one = move || (0..6).map(|_| rng.f64() - 0.5).sum::<f64>();
        (0..count).map(|_| vec![one(), one(), one()]).collect()
    }

    fn of(strays: &[Vec<f64>], steps: usize, independent: f64) -> Option<Gauge> {
        Gauge::of(strays, &[1.0; 3], steps, independent, &Directions::apart(3))
    }

    #[test]
    fn what_was_not_seen_before_raises_the_scores() {
        let alike = of(&noise(1000, 1), 1, 1000.0).expect("regular");
        assert!(alike.optimism < 1.1, "{}", alike.optimism);
        let mut odd = noise(1000, 1);
        // A fifth of the data has a state that the rest does not know.
        odd[800..].iter_mut().for_each(|v| v[0] += 10.0);
        let told = of(&odd, 1, 1000.0).expect("regular");
        let top = |y: &Gauge| y.seen.iter().copied().fold(0.0, f64::max);
        assert!(told.optimism > 1.5 && top(&told) > 2.0 * top(&alike), "{} {}", told.optimism, top(&told));
    }

    #[test]
    fn few_windows_are_completed_and_too_few_are_not_cut() {
        let few = of(&noise(200, 2), 10, 20.0).expect("regular");
        assert_eq!((few.seen.len(), few.expected.len()), (200, 800));
        // Each window has rows in common with nearly all.
        let fit = |strays: &[Vec<f64>], n| Spread::of(strays, &[1.0; 3], n, &Directions::apart(3));
        assert_eq!(unseen(&noise(100, 2), 50, 3.0, fit), None);
        assert!(of(&noise(100, 2), 50, 3.0).is_some_and(|y| y.optimism > 1.0));
    }

    #[test]
    fn the_larger_of_two_is_rarely_small() {
        let even: Vec<f64> = (0..1000).map(f64::from).collect();
        let both = larger(&even, &even);
        // Its distribution is the square of theirs.
        for (i, value) in both.iter().enumerate() {
            assert!((value - 1000.0 * ((i as f64 + 0.5) / 1000.0).sqrt()).abs() < 2.0, "{i}: {value}");
        }
        assert_eq!(larger(&even, &vec![0.0; 1000]), even, "what is always less changes nothing");
        assert!(larger(&[], &[]).is_empty());
    }
}
