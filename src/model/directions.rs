//! Directions in which the channels of a machine go together, by what its rows show: of rows there are
//! many where windows are too few to tell how their levels go together.

use super::spread::{dot, doubts};

/// Rotations are made until what is off the diagonal is below this share of the whole, squared.
const NEGLIGIBLE: f64 = 1e-20;
/// Each round at least squares what is left, once it is small; so many are never needed.
const ROUNDS: usize = 50;

/// As many directions as channels, at right angles to each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Directions {
    /// Unit vectors [n × n], one in each row.
    along: Vec<f64>,
    /// By how much strays along each are to be taken larger than they were seen.
    doubts: Vec<f64>,
}

impl Directions {
    /// Each channel by itself, and none doubted.
    pub fn apart(n: usize) -> Directions {
        Directions { along: identity(n), doubts: vec![1.0; n] }
    }

    /// The principal ones of rows scaled to a mean of 0 and a deviation of 1; `means` are of their
    /// windows of `steps`, a row apart, `independent` of which fit side by side.
    pub fn of(rows: &[Vec<f64>], means: &[Vec<f64>], steps: usize, independent: f64) -> Directions {
        let n = rows.first().map_or(0, Vec::len);
        let (along, variances) = principal(moments(rows, n), n);
        let deviations: Vec<f64> = variances.iter().map(|v| v.max(f64::EPSILON).sqrt()).collect();
        let turned = |m: &Vec<f64>| along.chunks(n).zip(&deviations).map(|(u, s)| dot(u, &m[..n]) / s).collect();
        let turned: Vec<Vec<f64>> = means.iter().map(turned).collect();
        Directions { doubts: doubts(&turned, n, steps, independent), along }
    }

    /// What a covariance [n × n] has along each, as a covariance that has nothing between them, and the
    /// same with each direction's doubt.
    pub fn parted(&self, covariance: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = self.doubts.len();
        let times = |u: &[f64]| -> Vec<f64> { covariance.chunks(n).map(|row| dot(row, u)).collect() };
        let variances: Vec<f64> = self.along.chunks(n).map(|u| dot(&times(u), u)).collect();
        let doubted: Vec<f64> = variances.iter().zip(&self.doubts).map(|(v, d)| v * d * d).collect();
        (self.covariance(&variances), self.covariance(&doubted))
    }

    /// The covariance that has these variances along them.
    fn covariance(&self, variances: &[f64]) -> Vec<f64> {
        let n = variances.len();
        let mut out = vec![0.0; n * n];
        for (u, variance) in self.along.chunks(n).zip(variances) {
            for (row, a) in out.chunks_mut(n).zip(u) {
                row.iter_mut().zip(u).for_each(|(o, b)| *o += variance * a * b);
            }
        }
        out
    }
}

/// Mean products of the vectors' values [n × n].
pub fn moments(vectors: &[Vec<f64>], n: usize) -> Vec<f64> {
    let count = vectors.len() as f64;
    let mut out = vec![0.0; n * n];
    for v in vectors {
        for (row, a) in out.chunks_mut(n).zip(v) {
            row.iter_mut().zip(v).for_each(|(o, b)| *o += a * b / count);
        }
    }
    out
}

/// The identity [n × n].
pub fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect()
}

/// Eigenvectors of a symmetric matrix, one in each row, and their eigenvalues, by Jacobi's rotations.
fn principal(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = identity(n);
    let whole = dot(&a, &a);
    for _ in 0..ROUNDS {
        let off: f64 = (0..n * n).filter(|i| i / n != i % n).map(|i| a[i] * a[i]).sum();
        if off <= NEGLIGIBLE * whole {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, n, (p, q));
            }
        }
    }
    (vectors, (0..n).map(|i| a[i * n + i]).collect())
}

/// Turns two axes so that nothing is left between them.
fn rotate(a: &mut [f64], vectors: &mut [f64], n: usize, (p, q): (usize, usize)) {
    let between = a[p * n + q];
    if between == 0.0 {
        return;
    }
    let twist = (a[q * n + q] - a[p * n + p]) / (2.0 * between);
    let tangent = 1.0f64.copysign(twist) / (twist.abs() + twist.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let turn = |x: f64, y: f64| (cosine * (x - tangent * y), cosine * (tangent * x + y));
    for k in 0..n {
        (a[k * n + p], a[k * n + q]) = turn(a[k * n + p], a[k * n + q]);
    }
    for k in 0..n {
        (a[p * n + k], a[q * n + k]) = turn(a[p * n + k], a[q * n + k]);
        (vectors[p * n + k], vectors[q * n + k]) = turn(vectors[p * n + k], vectors[q * n + k]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-8)
    }

    #[test]
    fn two_channels_that_go_together_have_a_direction_of_their_own() {
        let rows: Vec<Vec<f64>> = (0..600).map(|i| f64::from(i % 7) - 3.0).map(|v| vec![v, v]).collect();
        let found = Directions::of(&rows, &rows, 1, 600.0);
        let (apart, _) = found.parted(&[1.0, 0.9, 0.9, 1.0]);
        assert!(close(&apart, &[1.0, 0.9, 0.9, 1.0]), "it is what they do: {apart:?}");
        let (apart, _) = found.parted(&[1.0, 0.0, 0.0, 3.0]);
        assert!(close(&apart, &[2.0, 0.0, 0.0, 2.0]), "of what they do not do, what is along them: {apart:?}");
        let own = Directions::apart(2);
        assert_eq!(own.parted(&[1.0, 0.5, 0.5, 3.0]).0, [1.0, 0.0, 0.0, 3.0]);
        assert_eq!(own.parted(&[1.0, 0.5, 0.5, 3.0]).1, [1.0, 0.0, 0.0, 3.0]);
    }

    #[test]
    fn a_direction_seen_in_few_states_is_doubted_and_another_is_not() {
        // Both wander together, and differ by something that forgets at once.
        let mut rng = fastrand::Rng::with_seed(5);
        let rows: Vec<Vec<f64>> = (0..400)
            .map(|i| {
                let (both, own) = (f64::from(i) / 100.0 - 2.0, rng.f64() - 0.5);
                vec![both + own, both - own]
            })
            .collect();
        let means: Vec<Vec<f64>> =
            rows.windows(10).map(|w| (0..2).map(|c| w.iter().map(|r| r[c]).sum::<f64>() / 10.0).collect()).collect();
        let mut doubts = Directions::of(&rows, &means, 10, 40.0).doubts;
        doubts.sort_by(f64::total_cmp);
        assert!(doubts[0] < 1.1 && doubts[1] > 3.0, "{doubts:?}");
    }

    proptest! {
        #[test]
        fn eigenvectors_are_those(values in prop::collection::vec(-1.0..1.0f64, 25)) {
            let n = 5;
            let a: Vec<f64> = (0..n * n).map(|i| values[i] + values[i % n * n + i / n]).collect();
            let (vectors, variances) = principal(a.clone(), n);
            for (k, u) in vectors.chunks(n).enumerate() {
                let times: Vec<f64> = a.chunks(n).map(|row| dot(row, u)).collect();
                let scaled: Vec<f64> = u.iter().map(|v| v * variances[k]).collect();
                prop_assert!(close(&times, &scaled));
                for (l, w) in vectors.chunks(n).enumerate() {
                    prop_assert!((dot(u, w) - f64::from(u8::from(k == l))).abs() < 1e-9);
                }
            }
            let all = Directions { along: vectors, doubts: vec![1.0; n] };
            prop_assert!(close(&all.covariance(&variances), &a));
        }
    }
}
