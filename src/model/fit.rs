//! Fitting a detector on the gateway: the mean of each window, held against how the means of
//! healthy windows vary together (Mahalanobis distance with shrinkage).

/// Share of the covariance that is drawn towards its diagonal: correlations that few rows suggest
/// are believed only so far.
const SHRINKAGE: f64 = 0.1;
/// Blocks of the cross-validation that gives the reference scores.
const FOLDS: usize = 5;
/// Fewer windows than this say too little of what is normal.
pub const MIN_WINDOWS: usize = 100;

/// Why nothing was learnt; `Display` is for a person.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Too few windows.
    #[error(
        "only {found} full windows of healthy running; at least {MIN_WINDOWS} are needed: give more data, or a shorter --window"
    )]
    TooLittle {
        /// How many there are.
        found: usize,
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
    /// Mean of the window means, in units of `std` around `mean`.
    pub centre: Vec<f64>,
    /// Inverse covariance of the window means [channels × channels], row-major.
    pub precision: Vec<f64>,
    /// Scores of windows that the fit they were scored by had not seen.
    pub reference: Vec<f64>,
}

/// Fits on stretches of healthy running.
pub fn fit(stretches: &[Stretch], names: &[String], steps: usize) -> Result<Fitted, FitError> {
    let windows: usize = stretches.iter().map(|s| (s.len() + 1).saturating_sub(steps)).sum();
    if windows < MIN_WINDOWS {
        return Err(FitError::TooLittle { found: windows });
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
    let means = window_means(stretches, steps, &mean, &std);
    let (centre, precision) = spread(&means, n).ok_or(FitError::Singular)?;
    let reference = cross_validate(&means, n, steps).ok_or(FitError::Singular)?;
    Ok(Fitted { steps, range: (0..n).map(bounds).collect(), mean, std, centre, precision, reference })
}

impl Fitted {
    /// The score of a window [steps × channels] and each channel's part in it, as the graph gives
    /// them: the written-out formula that the golden cases hold the graph against.
    pub fn score(&self, window: &[f64]) -> (f64, Vec<f64>) {
        let n = self.mean.len();
        let mut m = vec![0.0; n];
        for (i, v) in window.iter().enumerate() {
            m[i % n] += (v - self.mean[i % n]) / self.std[i % n] / self.steps as f64;
        }
        let parts = parts(&m, &self.centre, &self.precision);
        (distance(&parts), parts.iter().map(|p| p.max(0.0)).collect())
    }
}

/// Means of all windows, a step apart, scaled by channel.
fn window_means(stretches: &[Stretch], steps: usize, mean: &[f64], std: &[f64]) -> Vec<Vec<f64>> {
    let mut out = Vec::new();
    for stretch in stretches {
        for window in stretch.windows(steps) {
            let of = |c: usize| window.iter().map(|r| (r[c] - mean[c]) / std[c]).sum::<f64>() / steps as f64;
            out.push((0..mean.len()).map(of).collect());
        }
    }
    out
}

/// Centre and inverse of the shrunk covariance.
fn spread(means: &[Vec<f64>], n: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    let count = means.len() as f64;
    let centre: Vec<f64> = (0..n).map(|c| means.iter().map(|m| m[c]).sum::<f64>() / count).collect();
    let mut covariance = vec![0.0; n * n];
    for m in means {
        for i in 0..n {
            for j in 0..n {
                covariance[i * n + j] += (m[i] - centre[i]) * (m[j] - centre[j]) / count;
            }
        }
    }
    for i in 0..n {
        for j in 0..n {
            if i != j {
                covariance[i * n + j] *= 1.0 - SHRINKAGE;
            }
        }
        // A floor of a thousandth of the channel's own variance: no window mean is surer than that.
        covariance[i * n + i] += 1e-3;
    }
    Some((centre, invert(covariance, n)?))
}

/// Scores of each block's windows by a fit on the others, a window's length kept between them.
fn cross_validate(means: &[Vec<f64>], n: usize, steps: usize) -> Option<Vec<f64>> {
    let mut scores = Vec::with_capacity(means.len());
    for fold in 0..FOLDS {
        let (from, to) = (fold * means.len() / FOLDS, (fold + 1) * means.len() / FOLDS);
        let before = &means[..from.saturating_sub(steps)];
        let after = &means[(to + steps).min(means.len())..];
        let rest: Vec<Vec<f64>> = before.iter().chain(after).cloned().collect();
        let (centre, precision) = spread(if rest.len() > n { &rest } else { means }, n)?;
        scores.extend(means[from..to].iter().map(|m| distance(&parts(m, &centre, &precision))));
    }
    Some(scores)
}

/// Each channel's part in the squared distance; parts can be negative, their sum cannot.
fn parts(m: &[f64], centre: &[f64], precision: &[f64]) -> Vec<f64> {
    let n = m.len();
    let off: Vec<f64> = m.iter().zip(centre).map(|(a, b)| a - b).collect();
    let pulled = |i: usize| off.iter().enumerate().map(|(j, o)| precision[j * n + i] * o).sum::<f64>();
    (0..n).map(|i| off[i] * pulled(i)).collect()
}

fn distance(parts: &[f64]) -> f64 {
    (parts.iter().sum::<f64>().max(0.0) / parts.len() as f64).sqrt()
}

/// Inverse of a symmetric positive definite matrix by Gauss–Jordan with pivoting.
fn invert(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    let mut inverse = vec![0.0; n * n];
    (0..n).for_each(|i| inverse[i * n + i] = 1.0);
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

    #[test]
    fn what_breaks_a_relation_stands_out_though_each_value_is_normal() {
        let fitted = fit(&[healthy(600)], &names(), 10).expect("fitted");
        let normal: Vec<f64> = (0..10).flat_map(|_| [52.0, 10.8, 3.0]).collect();
        let broken: Vec<f64> = (0..10).flat_map(|_| [52.0, 9.2, 3.0]).collect();
        let top = fitted.reference.iter().copied().fold(0.0, f64::max);
        assert!(fitted.score(&normal).0 < top, "{} {top}", fitted.score(&normal).0);
        assert!(fitted.score(&broken).0 > 2.0 * top, "{} {top}", fitted.score(&broken).0);
    }

    #[test]
    fn the_channel_that_left_has_the_largest_share() {
        let fitted = fit(&[healthy(600)], &names(), 10).expect("fitted");
        let hot: Vec<f64> = (0..10).flat_map(|_| [50.0, 10.0, 9.0]).collect();
        let (_, shares) = fitted.score(&hot);
        assert!(shares[2] > 10.0 * shares[0].max(shares[1]), "{shares:?}");
    }

    #[test]
    fn what_cannot_be_learnt_is_refused() {
        assert_eq!(fit(&[healthy(100)], &names(), 10), Err(FitError::TooLittle { found: 91 }));
        let mut flat = healthy(300);
        flat.iter_mut().for_each(|r| r[1] = 4.0);
        assert_eq!(fit(&[flat], &names(), 10), Err(FitError::Constant("power".into())));
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
    }
}
