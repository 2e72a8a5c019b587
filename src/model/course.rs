//! A detector for a machine with one channel, where there is no relation to hold: how far the value
//! is from its usual level, and how unlike every window learnt from the present window is. Each is
//! judged by its rank among what the machine has shown lately, so the score means the same anywhere.
//!
//! [`Course::step`] is the written-out formula; [`Course::onnx`] writes the same as ONNX, and the
//! golden cases hold one against the other.

use super::calibration::{Calibration, Limit};
use super::drift::Bins;
use super::fit::{FitError, MOST_LIMIT, Stretch, constant};
use super::graph;

/// At most so many windows are kept to compare with, evenly spaced: they are part of the graph.
const KEPT: usize = 500;
/// A window is as strange as its mean distance from so many of those that are most like it.
const NEAREST: usize = 40;
/// Of fewer windows at most this share are the nearest.
const NEAREST_SHARE: usize = 4;
/// So many windows are ranked in learning, evenly spaced, and so many the ranks remember afterwards:
/// what comes once in so many is the rarest that can be told.
const RANKED: usize = 5000;
/// What is ranked: the distance from the usual level and from the nearest windows.
const RANKS: usize = 2;
/// Bins of the ranks, the least edge and the ratio of each edge to the one before, in deviations: a
/// thousandth to some four thousand, a tenth apart.
const BINS: usize = 160;
const LEAST_EDGE: f64 = 1e-3;
const EDGE_RATIO: f64 = 1.1;
/// Fewer windows than this say too little; one channel needs fewer than many that go together.
const MIN_WINDOWS: usize = 60;
/// With fewer windows than this for each step of a window some would have none that they do not overlap.
const MIN_LENGTHS: usize = 2;
/// In alarm a window is like the healthy ones again when this share of them were stranger.
const USUAL: f64 = 0.01;
/// While in alarm scores are held so much above the limit, except those that are news.
const HELD: f64 = 1.001;
/// News is what scores higher than all of late: after so many windows 1/e is left of a score.
const NEWS_MEMORY: f64 = 500.0;

/// What was learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// Rows in a window.
    pub steps: usize,
    /// Of the channel, over all rows.
    pub mean: Vec<f64>,
    /// Of the channel, over all rows, above zero.
    pub std: Vec<f64>,
    /// Least and greatest value.
    pub range: Vec<(f64, f64)>,
    /// How the values were spread, to tell later whether they still are.
    pub spread: Vec<Option<Bins>>,
    /// Windows to compare with, scaled.
    kept: Vec<Vec<f64>>,
    nearest: usize,
    /// Bins by what is ranked: how many healthy windows fell there.
    counts: Vec<f64>,
    /// A window closer to the nearest than this is like the healthy ones.
    usual: f64,
    /// The score from which on it is in alarm.
    pub limit: f64,
    /// Scores of the healthy windows, each against the others that it does not overlap.
    pub reference: Vec<f64>,
    /// Windows learnt from.
    pub windows: usize,
}

/// What is kept from window to window.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// As `Course::counts`, of what came lately.
    pub counts: Vec<f64>,
    /// 1 while in alarm.
    pub alarm: f64,
    /// The highest score, which fades.
    pub peak: f64,
}

/// Fits on stretches of healthy running, of one channel each.
pub fn fit(stretches: &[Stretch], name: &str, steps: usize, limit: &Limit) -> Result<Course, FitError> {
    let windows: usize = stretches.iter().map(|s| (s.len() + 1).saturating_sub(steps)).sum();
    let needed = MIN_WINDOWS.max(MIN_LENGTHS * steps);
    if windows < needed {
        return Err(FitError::TooLittle { found: windows, needed });
    }
    let rows: Vec<f64> = stretches.iter().flatten().map(|r| r[0]).collect();
    let mean = rows.iter().sum::<f64>() / rows.len() as f64;
    let std = (rows.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / rows.len() as f64).sqrt();
    let constant = constant(stretches, &[name.to_owned()]);
    if !constant.is_empty() {
        return Err(FitError::Constant(constant));
    }
    let (all, starts) = scaled_windows(stretches, steps, mean, std);
    let spaced = |most: usize| (0..all.len()).step_by(all.len().div_ceil(most));
    let kept: Vec<usize> = spaced(KEPT).collect();
    let nearest = NEAREST.min(kept.len() / NEAREST_SHARE);
    let found = spaced(RANKED).map(|i| {
        let apart = kept.iter().filter(|k| starts[**k].abs_diff(starts[i]) >= steps);
        [all[i].last().map_or(0.0, |v| v.abs()), strangeness(&all[i], apart.map(|k| &all[*k]), nearest)]
    });
    let found: Vec<[f64; RANKS]> = found.collect();
    let mut counts = vec![0.0; RANKS * BINS];
    for (rank, value) in found.iter().flat_map(|f| f.iter().enumerate()) {
        counts[rank * BINS + bin(*value)] += 1.0;
    }
    // Each window is counted among the others, so there is none to add for it.
    let own = |f: &[f64; RANKS]| rarity(&counts, f, 0.0);
    let reference: Vec<f64> = found.iter().map(own).collect();
    let mut strange: Vec<f64> = found.iter().map(|f| f[1]).collect();
    strange.sort_by(f64::total_cmp);
    let usual = strange[((1.0 - USUAL) * strange.len() as f64) as usize];
    let least = |(l, h): (f64, f64), v: &f64| (l.min(*v), h.max(*v));
    Ok(Course {
        steps,
        range: vec![rows.iter().fold((f64::MAX, f64::MIN), least)],
        spread: vec![Bins::learn(rows)],
        mean: vec![mean],
        std: vec![std],
        kept: kept.into_iter().map(|i| all[i].clone()).collect(),
        nearest,
        counts,
        usual,
        limit: match limit {
            Limit::PValue(p) => Calibration::new(reference.clone()).score_at(*p),
            Limit::Score(s) => *s,
        }
        .clamp(0.0, MOST_LIMIT),
        reference,
        windows,
    })
}

impl Course {
    /// The state at the start.
    pub fn start(&self) -> State {
        State { counts: self.counts.clone(), alarm: 0.0, peak: 0.0 }
    }

    /// What the graph does with a window; the score and what is kept.
    pub fn step(&self, state: &State, window: &[f64]) -> (f64, State) {
        let found = self.found(window);
        let score = rarity(&state.counts, &found, 1.0);
        let in_alarm = score > self.limit || (state.alarm > 0.5 && found[1] > self.usual);
        let mut counts: Vec<f64> = state.counts.iter().map(|c| c * (1.0 - 1.0 / RANKED as f64)).collect();
        found.iter().enumerate().for_each(|(rank, value)| counts[rank * BINS + bin(*value)] += 1.0);
        let faded = state.peak * (1.0 - 1.0 / NEWS_MEMORY);
        let held = HELD * self.limit;
        let shown = match () {
            () if !in_alarm => score,
            () if score > faded => score.max(held),
            () => held,
        };
        (shown, State { counts, alarm: f64::from(u8::from(in_alarm)), peak: score.max(faded) })
    }

    /// Whether single precision could put a window into another bin than double precision does.
    pub fn borders(&self, window: &[f64]) -> bool {
        self.found(window).iter().any(|v| bin(v * (1.0 - 1e-4)) != bin(v * (1.0 + 1e-4)))
    }

    fn found(&self, window: &[f64]) -> [f64; RANKS] {
        let scaled: Vec<f64> = window.iter().map(|v| (v - self.mean[0]) / self.std[0]).collect();
        let level = scaled.last().map_or(0.0, |v| v.abs());
        [level, strangeness(&scaled, self.kept.iter(), self.nearest)]
    }

    /// The shapes of the states by name, without the batch axis.
    pub fn shapes() -> [(&'static str, Vec<usize>); 3] {
        [("counts", vec![RANKS, BINS]), ("alarm", vec![1]), ("peak", vec![1])]
    }
}

/// Windows of all stretches, a step apart, and where each begins.
fn scaled_windows(stretches: &[Stretch], steps: usize, mean: f64, std: f64) -> (Vec<Vec<f64>>, Vec<usize>) {
    let (mut windows, mut starts, mut before) = (Vec::new(), Vec::new(), 0);
    for stretch in stretches {
        for (i, window) in stretch.windows(steps).enumerate() {
            windows.push(window.iter().map(|r| (r[0] - mean) / std).collect());
            starts.push(before + i);
        }
        before += stretch.len();
    }
    (windows, starts)
}

/// Mean distance from the nearest of the windows kept, as a root mean square over steps.
fn strangeness<'a>(window: &[f64], kept: impl Iterator<Item = &'a Vec<f64>>, nearest: usize) -> f64 {
    let square = |k: &Vec<f64>| k.iter().zip(window).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let mut distances: Vec<f64> = kept.map(|k| (square(k) / window.len() as f64).sqrt()).collect();
    distances.sort_by(f64::total_cmp);
    let count = nearest.min(distances.len()).max(1);
    distances.iter().take(count).sum::<f64>() / count as f64
}

fn edge(bin: usize) -> f64 {
    LEAST_EDGE * EDGE_RATIO.powi(i32::try_from(bin).unwrap_or(i32::MAX))
}

/// Bin `i` is from edge `i - 1` to below edge `i`; the first has no lower and the last no upper one.
fn bin(value: f64) -> usize {
    (0..BINS - 1).find(|b| value < edge(*b)).unwrap_or(BINS - 1)
}

/// Minus the decimal logarithms of how rare as much is, summed. `new` is 1 for a window that is not
/// among those counted.
fn rarity(counts: &[f64], found: &[f64; RANKS], new: f64) -> f64 {
    let of = |(rank, value): (usize, &f64)| {
        let row = &counts[rank * BINS..(rank + 1) * BINS];
        let at_least = row[bin(*value)..].iter().sum::<f64>() + new;
        -(at_least / (row.iter().sum::<f64>() + new)).log10()
    };
    found.iter().enumerate().map(of).sum()
}

impl Course {
    /// The graph: `window` `[N, steps, 1]`, `state_counts` `[N, ranks, bins]`, `state_alarm` and
    /// `state_peak` `[N, 1]` to `score` `[N]`, `contributions` `[N, 1]` and the states after it:
    /// [`Course::step`].
    pub fn onnx(&self) -> Vec<u8> {
        let (steps, n, counts) = (self.steps as i64, 1, [RANKS as i64, BINS as i64]);
        let inputs =
            [("window", &[steps, n][..]), ("state_counts", &counts), ("state_alarm", &[1]), ("state_peak", &[1])];
        let outputs = [
            ("score", &[][..]),
            ("contributions", &[1]),
            ("state_counts_next", &counts),
            ("state_alarm_next", &[1]),
            ("state_peak_next", &[1]),
        ];
        graph::model("novelty", nodes(), self.constants(), &inputs, &outputs)
    }

    fn constants(&self) -> Vec<graph::Constant> {
        let (steps, bins, kept) = (self.steps, BINS as f64, self.kept.len());
        let mut last = vec![0.0; steps];
        // Taken by a mean over the steps.
        last[steps - 1] = steps as f64;
        let turned: Vec<f64> = (0..steps).flat_map(|s| self.kept.iter().map(move |k| k[s])).collect();
        let upper: Vec<f64> = (0..BINS).map(|b| if b + 1 < BINS { edge(b) } else { f64::from(f32::MAX) }).collect();
        let lower: Vec<f64> = (0..BINS).map(|b| if b > 0 { edge(b - 1) } else { -1.0 }).collect();
        let scalar = |name: &str, value: f64| graph::tensor(name, &[], &[value]);
        vec![
            graph::tensor("mean", &[1], &self.mean),
            graph::tensor("scale", &[1], &[1.0 / self.std[0]]),
            graph::tensor("last", &[steps, 1], &last),
            graph::tensor("kept", &[steps, kept], &turned),
            graph::whole("nearest", self.nearest as i64),
            graph::tensor("upper", &[BINS], &upper),
            graph::tensor("lower", &[BINS], &lower),
            // Sums over bins are taken as means.
            scalar("new", 1.0 / bins),
            scalar("memory", 1.0 - 1.0 / RANKED as f64),
            // The mean over the ranks of natural logarithms, to the sum of decimal ones.
            scalar("to_score", -(RANKS as f64) / std::f64::consts::LN_10),
            scalar("limit", self.limit),
            scalar("held", HELD * self.limit),
            scalar("usual", self.usual),
            scalar("fade", 1.0 - 1.0 / NEWS_MEMORY),
            scalar("one", 1.0),
        ]
    }
}

fn nodes() -> Vec<graph::Node> {
    use graph::{int, ints, node, op, several};
    let mean = |axis: i64, keep: i64| vec![ints("axes", &[axis]), int("keepdims", keep)];
    let float = || vec![int("to", i64::from(graph::FLOAT))];
    vec![
        node("Sub", &["window", "mean"], "centred"),
        node("Mul", &["centred", "scale"], "scaled"),
        // How far from the usual level the newest value is [N, 1, 1].
        node("Mul", &["scaled", "last"], "newest"),
        op("ReduceMean", &["newest"], "off", mean(1, 1)),
        node("Abs", &["off"], "level"),
        // How far from the nearest windows this one is [N, 1, 1].
        node("Sub", &["scaled", "kept"], "apart"),
        node("Mul", &["apart", "apart"], "apart_squared"),
        op("ReduceMean", &["apart_squared"], "distances_squared", mean(1, 1)),
        node("Sqrt", &["distances_squared"], "distances"),
        several("TopK", &["distances", "nearest"], &["least", "which"], vec![int("axis", 2), int("largest", 0)]),
        op("ReduceMean", &["least"], "strange", mean(2, 1)),
        op("Concat", &["level", "strange"], "found", vec![int("axis", 1)]),
        // How many were at least as far [N, ranks, 1].
        node("Greater", &["upper", "found"], "is_at_least"),
        op("Cast", &["is_at_least"], "at_least", float()),
        node("Greater", &["lower", "found"], "is_above"),
        op("Cast", &["is_above"], "above", float()),
        node("Sub", &["at_least", "above"], "own"),
        node("Mul", &["at_least", "state_counts"], "counted"),
        op("ReduceMean", &["counted"], "rare", mean(2, 1)),
        op("ReduceMean", &["state_counts"], "all", mean(2, 1)),
        node("Add", &["rare", "new"], "rare_new"),
        node("Add", &["all", "new"], "all_new"),
        node("Div", &["rare_new", "all_new"], "p"),
        node("Log", &["p"], "log_p"),
        op("ReduceMean", &["log_p"], "mean_log_p", mean(1, 0)),
        node("Mul", &["mean_log_p", "to_score"], "raw"),
        node("Mul", &["state_counts", "memory"], "remembered"),
        node("Add", &["remembered", "own"], "state_counts_next"),
        // The alarm begins above the limit and stays until a window is like the healthy ones.
        node("Greater", &["raw", "limit"], "is_over"),
        op("Cast", &["is_over"], "over", float()),
        op("ReduceMean", &["strange"], "strange_one", mean(1, 0)),
        node("Greater", &["strange_one", "usual"], "is_unlike"),
        op("Cast", &["is_unlike"], "unlike", float()),
        node("Mul", &["state_alarm", "unlike"], "stays"),
        node("Max", &["over", "stays"], "state_alarm_next"),
        // In alarm the score is held just above the limit, unless it is news.
        node("Mul", &["state_peak", "fade"], "faded"),
        node("Max", &["raw", "faded"], "state_peak_next"),
        node("Greater", &["raw", "faded"], "is_news"),
        op("Cast", &["is_news"], "news", float()),
        node("Sub", &["one", "news"], "no_news"),
        node("Sub", &["held", "raw"], "to_held"),
        node("Relu", &["to_held"], "up"),
        node("Sub", &["to_held", "up"], "down"),
        node("Mul", &["no_news", "down"], "down_now"),
        node("Add", &["up", "down_now"], "way"),
        node("Mul", &["state_alarm_next", "way"], "moved"),
        node("Add", &["raw", "moved"], "contributions"),
        op("ReduceMean", &["contributions"], "score", mean(1, 0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wave of 50 rows with some noise.
    fn healthy(n: usize) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(11);
        (0..n).map(|i| 20.0 + 3.0 * (i as f64 / 50.0 * std::f64::consts::TAU).sin() + 0.3 * rng.f64()).collect()
    }

    fn fitted(n: usize) -> Course {
        let rows = healthy(n).into_iter().map(|v| vec![v]).collect();
        fit(&[rows], "level", 10, &Limit::PValue(1e-3)).expect("fitted")
    }

    /// The scores of a course, after `n` healthy rows.
    fn scores(course: &Course, values: &[f64]) -> Vec<f64> {
        let mut state = course.start();
        let mut step = |w: &[f64]| {
            let (score, next) = course.step(&state, w);
            state = next;
            score
        };
        values.windows(course.steps).map(&mut step).collect()
    }

    #[test]
    fn what_has_the_usual_values_in_another_course_stands_out() {
        let course = fitted(1000);
        let mut values = healthy(1400);
        // Held still at a value that is passed twice in each wave.
        values[1200..1230].fill(20.5);
        let found = scores(&course, &values);
        let before = found[..1190].iter().filter(|s| **s > course.limit).count();
        assert!(before <= 12, "{before} false alarms");
        assert!(found[1200..1221].iter().any(|s| *s > course.limit), "{:?}", &found[1195..1225]);
    }

    #[test]
    fn an_alarm_lasts_as_long_as_what_raised_it() {
        let course = fitted(400);
        let mut values = healthy(4_000);
        values[1000..3_500].iter_mut().for_each(|v| *v += 9.0);
        let found = scores(&course, &values);
        assert!(found[1001..3_490].iter().all(|s| *s > course.limit), "not learnt however long it lasts");
        let loud = found[1100..3_490].iter().filter(|s| **s > 1.1 * course.limit).count();
        assert!(loud < 240, "it is news now and then, not {loud} times");
        let late = found[3_510..].iter().filter(|s| **s > course.limit).count();
        assert!(late < 10, "over when it is over, not {late} windows later");
    }

    #[test]
    fn healthy_windows_are_as_rare_as_they_are() {
        let course = fitted(1000);
        let mut own = course.reference.clone();
        own.sort_by(f64::total_cmp);
        assert!(own[0] < 0.4 && own[own.len() / 2] < 1.5, "{} {}", own[0], own[own.len() / 2]);
        assert!(course.reference.iter().all(|s| *s <= 2.0 * (1000f64).log10()));
    }

    #[test]
    fn what_cannot_be_learnt_is_refused() {
        let fit = |rows: Vec<f64>| {
            fit(&[rows.into_iter().map(|v| vec![v]).collect()], "level", 30, &Limit::PValue(1e-3)).map(|_| ())
        };
        assert_eq!(fit(healthy(88)), Err(FitError::TooLittle { found: 59, needed: 60 }));
        assert_eq!(fit(vec![4.0; 300]), Err(FitError::Constant(vec!["level".into()])));
        assert_eq!(fit(healthy(89)), Ok(()));
    }

    #[test]
    fn every_value_has_its_bin() {
        let at = [0.0, 0.0009, 0.001, 1.0, 1e30, f64::NAN].map(bin);
        assert_eq!((at[0], at[1], at[2], at[4], at[5]), (0, 0, 1, BINS - 1, BINS - 1));
        assert!(edge(at[3] - 1) <= 1.0 && edge(at[3]) > 1.0);
    }
}
