//! How healthy vectors stray together, and what few data leave unknown of that: covariance with
//! shrinkage, its inverse, and by how much each channel and all of them are to be doubted.

use super::directions::{Directions, identity, moments};

/// Share of the covariance that would be drawn towards its diagonal if there were no windows at
/// all: correlations are believed as far as there are windows to suggest them.
const SHRINKAGE: f64 = 0.1;
/// Of that, what is left where rows tell how channels go together.
const LEAST_DRAWN: f64 = 0.1;
/// Windows worth so many for each channel tell as much of how channels go together as rows do.
const ENOUGH: f64 = 0.8;
/// No mean is surer than this share of the channel's own variance over rows.
const FLOOR: f64 = 1e-3;
/// The most that scores are enlarged for what few windows leave unknown.
pub const MOST_OPTIMISM: f64 = 3.0;
/// The most that a channel's own strays are taken to be larger than they were seen.
const MOST_DOUBT: f64 = 4.0;
/// No channel is taken to keep more than this of its variance from one window to the next.
const MOST_KEPT: f64 = 0.99;
/// Windows a step apart say more of a covariance than those that do not overlap: so much more.
const OVERLAPPING: f64 = 1.5;

/// How vectors stray around zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Inverse covariance [n × n], row-major, scaled so that [`distance`] is about 1 for healthy vectors.
    pub precision: Vec<f64>,
    /// As how many channels it counts, where those that are doubted count in part.
    pub channels: f64,
    /// Of how many the windows had to tell how they go together.
    pub told: f64,
}

impl Spread {
    /// Of these vectors, each of `doubts.len()` values, from windows `independent` of which fit side
    /// by side, as far as those can tell; else of what goes along the directions. `None` where the
    /// channels are too entangled.
    pub fn of(strays: &[Vec<f64>], doubts: &[f64], independent: f64, directions: &Directions) -> Option<Spread> {
        let (n, worth) = (doubts.len(), OVERLAPPING * independent);
        let told = told(n, worth);
        let own = moments(strays, n);
        let (along, along_doubted) = directions.parted(&own);
        let at = |i: usize| doubts[i / n] * doubts[i % n];
        let drawn = SHRINKAGE * told.max(LEAST_DRAWN) * (n as f64 + 1.0) / (n as f64 + 1.0 + worth);
        let mixed = |i: usize, own: f64, along: f64| {
            let mixed = told * own + (1.0 - told) * along;
            if i / n == i % n { mixed } else { mixed * (1.0 - drawn) }
        };
        let floor = |i: usize| if i / n == i % n { FLOOR } else { 0.0 };
        let seen: Vec<f64> = (0..n * n).map(|i| mixed(i, own[i], along[i]) + floor(i)).collect();
        let doubted = (0..n * n).map(|i| mixed(i, own[i] * at(i), along_doubted[i]) + floor(i) * at(i)).collect();
        let inverse = invert(doubted, n)?;
        // Of vectors that stray as they were seen to, the mean squared distance.
        let channels = dot(&inverse, &seen);
        let precision = inverse.iter().map(|p| p * n as f64 / channels).collect();
        Some(Spread { precision, channels, told: 1.0 + (channels - 1.0) * told })
    }
}

/// How far windows worth so many can tell how `n` channels go together: from 1 where they are many
/// more than the channels to 0 where they are fewer.
fn told(n: usize, worth: f64) -> f64 {
    let few = ENOUGH * (n as f64 + 1.0) / worth;
    1.0 / (1.0 + few.powi(5))
}

/// By how much each channel's strays are to be taken larger than they were seen, at least 1. A
/// channel whose windows' means vary as much as its rows do, and stay where they are from one window
/// to the next, moves so slowly that the data holds few states of it, whatever the number of rows,
/// and where else it may go is not known. `means` are of windows of `steps` rows a row apart, scaled
/// by each channel's deviation over rows; `independent` is how many windows fit side by side.
pub fn doubts(means: &[Vec<f64>], channels: usize, steps: usize, independent: f64) -> Vec<f64> {
    (0..channels).map(|c| doubt(lasting(means, c, steps), independent)).collect()
}

/// How much of a channel's variance lasts over windows: what their means have of it, or what they
/// have in common with the next window's if that is less.
fn lasting(means: &[Vec<f64>], c: usize, steps: usize) -> f64 {
    let centre = average(means.iter().map(|m| m[c]));
    let share = average(means.iter().map(|m| (m[c] - centre).powi(2)));
    let next = means.get(steps..).unwrap_or_default();
    if next.is_empty() {
        return share;
    }
    let common = average(means.iter().zip(next).map(|(a, b)| (a[c] - centre) * (b[c] - centre)));
    share.min(common / share.max(f64::MIN_POSITIVE))
}

/// By how much strays are to be taken larger where so much of the variance lasts from one window to
/// the next.
fn doubt(lasting: f64, independent: f64) -> f64 {
    // Short data shows too little of it (Marriott and Pope 1954).
    let kept = (lasting + (1.0 + 3.0 * lasting) / independent).clamp(0.0, MOST_KEPT);
    let all = OVERLAPPING * independent;
    let worth = all * (1.0 - kept) / (1.0 + kept);
    (ratio(worth, 1.0) / ratio(all, 1.0)).sqrt().min(MOST_DOUBT)
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// By how much the distances of new windows exceed those of the windows fitted on, for as many
/// windows as the overlapping ones are worth in estimating a covariance.
pub fn optimism(windows: usize, channels: f64, steps: usize) -> f64 {
    let worth = OVERLAPPING * windows as f64 / steps as f64;
    ratio(worth, channels).sqrt().min(MOST_OPTIMISM)
}

/// Expected squared distances of new normal vectors to those of the `worth` fitted on (after Hotelling).
fn ratio(worth: f64, channels: f64) -> f64 {
    let left = worth - channels - 2.0;
    if left > 0.0 { (worth + 1.0) / left } else { f64::MAX }
}

/// Scores of so many normal windows, evenly spread over their probabilities: roots of chi-squared
/// quantiles over the number of channels (after Wilson and Hilferty).
pub fn expected_scores(count: usize, channels: f64) -> impl Iterator<Item = f64> {
    (0..count).map(move |i| {
        let z = normal_quantile((i as f64 + 0.5) / count as f64);
        let spread = 2.0 / (9.0 * channels);
        (1.0 - spread + z * spread.sqrt()).max(0.0).powf(1.5)
    })
}

/// Quantile of the normal distribution to some 5e-4 (Abramowitz and Stegun 26.2.23), `p` in 0..1.
fn normal_quantile(p: f64) -> f64 {
    let t = (-2.0 * p.min(1.0 - p).ln()).sqrt();
    let over = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let under = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    (t - over / under).copysign(p - 0.5)
}

/// A vector times a row-major matrix.
pub fn pulled(d: &[f64], precision: &[f64]) -> Vec<f64> {
    let n = d.len();
    (0..n).map(|i| d.iter().enumerate().map(|(j, o)| precision[j * n + i] * o).sum()).collect()
}

/// The inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Each channel's part in the squared distance; parts can be negative, their sum cannot.
pub fn parts(off: &[f64], precision: &[f64]) -> Vec<f64> {
    off.iter().zip(pulled(off, precision)).map(|(o, p)| o * p).collect()
}

/// The distance that has these parts.
pub fn distance(parts: &[f64]) -> f64 {
    (parts.iter().sum::<f64>().max(0.0) / parts.len() as f64).sqrt()
}

/// Inverse of a symmetric positive definite matrix by Gauss–Jordan with pivoting.
fn invert(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    let mut inverse = identity(n);
    for c in 0..n {
        let pivot = (c..n).max_by(|i, j| a[i * n + c].abs().total_cmp(&a[j * n + c].abs()))?;
        if a[pivot * n + c].abs() < 1e-12 {
            return None;
        }
        for k in 0..n {
            a.swap(c * n + k, pivot * n + k);
            inverse.swap(c * n + k, pivot * n + k);
        }
        let scale = 1.0 / a[c * n + c];
        for k in 0..n {
            a[c * n + k] *= scale;
            inverse[c * n + k] *= scale;
        }
        for r in (0..n).filter(|r| *r != c) {
            let factor = a[r * n + c];
            for k in 0..n {
                a[r * n + k] -= factor * a[c * n + k];
                inverse[r * n + k] -= factor * inverse[c * n + k];
            }
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_windows_make_scores_larger() {
        assert!(optimism(370, 8.0, 30) > 1.4 && optimism(370, 8.0, 30) < 1.6);
        assert!(optimism(1_000_000, 8.0, 30) < 1.001);
        assert_eq!(optimism(100, 64.0, 30), MOST_OPTIMISM);
    }

    #[test]
    fn a_channel_seen_in_few_states_is_doubted() {
        // Means of windows of 10: of a channel that does not move, one that forgets at once, one that
        // goes one way, and one that is put elsewhere every other window.
        let place = [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0];
        let means: Vec<Vec<f64>> = (0..400)
            .map(|i| {
                let part = i as f64 / 400.0;
                vec![0.0, if i % 2 == 0 { 0.2 } else { -0.2 }, 2.8 * (part - 0.5), place[i / 20 * 5 % 8]]
            })
            .collect();
        let few = doubts(&means, 4, 10, 13.0);
        assert!(few[0] >= 1.0 && few[1] < 1.2 && few[2] > 3.0, "{few:?}");
        let many = doubts(&means, 4, 10, 600.0);
        assert!(many[1] < 1.001 && many[2] < 1.1, "many windows leave little doubt: {many:?}");
        let some = doubts(&means, 4, 10, 100.0);
        assert!(some[3] < 1.1 && some[3] < some[2], "what changes places has shown its range: {some:?}");
        assert!(doubts(&means, 4, 10, 1.0).iter().all(|d| (1.0..=MOST_DOUBT).contains(d)), "nothing is known of one");
        assert_eq!(doubts(&means[..9], 4, 10, 1.0)[2], doubt(lasting(&means[..9], 2, 10), 1.0));
    }

    #[test]
    fn a_doubted_channel_counts_in_part() {
        let strays: Vec<Vec<f64>> =
            (0..100).map(|i| vec![if i % 2 == 0 { 1.0 } else { -1.0 }, if i % 4 < 2 { 1.0 } else { -1.0 }]).collect();
        let plain = Spread::of(&strays, &[1.0, 1.0], 100.0, &Directions::apart(2)).expect("regular");
        let doubted = Spread::of(&strays, &[1.0, 5.0], 100.0, &Directions::apart(2)).expect("regular");
        assert!((plain.channels - 2.0).abs() < 1e-9 && (doubted.channels - 1.04).abs() < 1e-9);
        let of = |spread: &Spread, v: [f64; 2]| distance(&parts(&v, &spread.precision));
        // Vectors as those seen are at a distance of 1 in both.
        assert!((of(&plain, [1.0, 1.0]) - 1.0).abs() < 1e-3 && (of(&doubted, [1.0, 1.0]) - 1.0).abs() < 1e-3);
        assert!(of(&doubted, [3.0, 0.0]) > of(&plain, [3.0, 0.0]), "the other one is seen more clearly");
        assert!(of(&doubted, [0.0, 3.0]) < 0.5 * of(&plain, [0.0, 3.0]));
    }

    #[test]
    fn correlations_are_believed_as_far_as_windows_suggest_them() {
        let strays: Vec<Vec<f64>> = (0..200)
            .map(|i| {
                let (both, own) = (f64::from(i % 21) / 10.0 - 1.0, f64::from(i % 2) / 50.0);
                vec![both + own, both - own]
            })
            .collect();
        let broken = |independent| {
            let spread = Spread::of(&strays, &[1.0, 1.0], independent, &Directions::apart(2)).expect("regular");
            distance(&parts(&[0.5, -0.5], &spread.precision))
        };
        assert!(broken(10.0) > 1.0 && broken(1000.0) > 2.0 * broken(10.0), "{} {}", broken(10.0), broken(1000.0));
    }

    #[test]
    fn few_windows_are_helped_by_what_rows_tell() {
        assert!(told(8, 20.0) > 0.99 && told(8, 1000.0) > 0.999_999);
        assert!(told(52, 20.0) < 0.05 && told(52, 0.0) == 0.0);
        // Two channels go together in each row; the two windows that there are cannot tell.
        let rows: Vec<Vec<f64>> = (0..700).map(|i| f64::from(i % 7) - 3.0).map(|v| vec![v, v]).collect();
        let together = Directions::of(&rows, &rows, 1, 700.0);
        let strays = vec![vec![1.0, 1.0], vec![-1.0, -1.0]];
        let broken = |directions| {
            let spread = Spread::of(&strays, &[1.0, 1.0], 1.0, directions).expect("regular");
            distance(&parts(&[0.5, -0.5], &spread.precision))
        };
        let (seen, unseen) = (broken(&together), broken(&Directions::apart(2)));
        assert!(seen > 3.0 && unseen < 1.0, "{seen} {unseen}");
    }

    #[test]
    fn expected_scores_are_those_of_tables() {
        assert!((normal_quantile(0.975) - 1.96).abs() < 1e-3 && (normal_quantile(0.01) + 2.326).abs() < 1e-3);
        // Chi-squared with 8 degrees of freedom exceeds 20.09 in one of a hundred cases.
        let scores: Vec<f64> = expected_scores(10_000, 8.0).collect();
        assert!((scores[9900].powi(2) * 8.0 - 20.09).abs() < 0.1, "{}", scores[9900].powi(2) * 8.0);
    }

    proptest! {
        #[test]
        fn the_inverse_is_one(values in prop::collection::vec(-1.0..1.0f64, 16)) {
            // A·Aᵀ + 1 is symmetric and positive definite.
            let n = 4;
            let product = |i: usize, j: usize| (0..n).map(|k| values[i * n + k] * values[j * n + k]).sum::<f64>();
            let a: Vec<f64> = (0..n * n).map(|x| product(x / n, x % n) + f64::from(u8::from(x / n == x % n))).collect();
            let inverse = invert(a.clone(), n).expect("regular");
            for i in 0..n {
                for j in 0..n {
                    let one: f64 = (0..n).map(|k| a[i * n + k] * inverse[k * n + j]).sum();
                    prop_assert!((one - f64::from(u8::from(i == j))).abs() < 1e-9);
                }
            }
        }

        /// More data never makes a channel more doubtful, and doubt has its bounds.
        #[test]
        fn doubt_falls_with_data(kept in -1.0..1.0f64, independent in 1.0..1000.0f64, more in 1.0..10.0f64) {
            let (few, many) = (doubt(kept, independent), doubt(kept, independent * more));
            prop_assert!((1.0..=MOST_DOUBT).contains(&few) && (1.0..=MOST_DOUBT).contains(&many));
            // Where nearly nothing is known at all, no channel can be told from the others.
            prop_assert!(independent < 4.0 || many <= few + 1e-9, "{few} {many}");
        }
    }
}
