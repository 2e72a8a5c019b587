//! What a learnt detector looks at in a window: the level of each channel, and how restless it is
//! from row to row. A level tells of wear and of broken relations; restlessness of what levels hide:
//! a sensor that hangs, a loop that hunts, a signal that has become rough.

/// Steps smaller than this share of a channel's deviation are as good as none, so that a sensor's
/// resolution is not taken for its behaviour.
pub(super) const STILL: f64 = 0.01;

/// Sums over a window, by channel.
struct Sums {
    levels: Vec<f64>,
    moves: Vec<f64>,
}

impl Sums {
    fn of<R: AsRef<[f64]>>(rows: &[R]) -> Sums {
        let n = rows.first().map_or(0, |r| r.as_ref().len());
        let mut sums = Sums { levels: vec![0.0; n], moves: vec![0.0; n] };
        for row in rows {
            sums.levels.iter_mut().zip(row.as_ref()).for_each(|(sum, v)| *sum += v);
        }
        for pair in rows.windows(2) {
            sums.moved(pair[0].as_ref(), pair[1].as_ref(), 1.0);
        }
        sums
    }

    /// Takes the step from one row to the next in, or out again.
    fn moved(&mut self, from: &[f64], to: &[f64], sign: f64) {
        let steps = from.iter().zip(to);
        self.moves.iter_mut().zip(steps).for_each(|(sum, (a, b))| *sum += sign * (b - a).abs());
    }

    /// From the window at the start of these rows to the one a row later.
    fn roll<R: AsRef<[f64]>>(&mut self, rows: &[R]) {
        let [first, second, .., last_but_one, last] = rows else { return *self = Sums::of(&rows[1..]) };
        let ends = first.as_ref().iter().zip(last.as_ref());
        self.levels.iter_mut().zip(ends).for_each(|(sum, (gone, new))| *sum += new - gone);
        self.moved(first.as_ref(), second.as_ref(), -1.0);
        self.moved(last_but_one.as_ref(), last.as_ref(), 1.0);
    }

    fn aspects(&self, steps: usize) -> Vec<f64> {
        let levels = self.levels.iter().map(|sum| sum / steps as f64);
        let moves = self.moves.iter().map(|sum| (sum.max(0.0) / (steps.max(2) - 1) as f64 + STILL).ln());
        levels.chain(moves).collect()
    }
}

/// Of a window of scaled rows [steps × n]: the `n` mean values, then the logarithms of the `n` mean
/// absolute differences from row to row (of one row: as if it stood still).
pub fn of<R: AsRef<[f64]>>(rows: &[R]) -> Vec<f64> {
    Sums::of(rows).aspects(rows.len())
}

/// Of all windows of so many scaled rows, a row apart.
pub fn of_windows(rows: &[Vec<f64>], steps: usize) -> Vec<Vec<f64>> {
    let mut sums = Sums { levels: Vec::new(), moves: Vec::new() };
    let mut out = Vec::with_capacity((rows.len() + 1).saturating_sub(steps));
    for (i, window) in rows.windows(steps).enumerate() {
        // Sums are made anew now and then: what is added and taken away again leaves something behind.
        if i.is_multiple_of(steps) {
            sums = Sums::of(window);
        } else {
            sums.roll(&rows[i - 1..i + steps]);
        }
        out.push(sums.aspects(steps));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_come_first_and_steps_are_told_by_their_logarithm() {
        let found = of(&[[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]]);
        assert_eq!(found, [2.0, 5.0, (1.5 + STILL).ln(), STILL.ln()]);
        assert_eq!(of(&[[7.0]]), [7.0, STILL.ln()]);
    }

    proptest! {
        /// Rolled from window to window they are those of each window by itself.
        #[test]
        fn rolling_changes_nothing(
            rows in prop::collection::vec(prop::collection::vec(-1e3..1e3f64, 2), 1..60),
            steps in 1..12usize,
        ) {
            let rolled = of_windows(&rows, steps);
            prop_assert_eq!(rolled.len(), (rows.len() + 1).saturating_sub(steps));
            for (window, rolled) in rows.windows(steps).zip(rolled) {
                prop_assert!(of(window).iter().zip(rolled).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
}
