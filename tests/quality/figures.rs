//! The benchmarks' own definitions: pooled F1, false and missed alarms, and SKAB's variant of the
//! NAB score for change points (window to the right of each, 60 s). No point adjustment.

use std::path::Path;

/// Seconds after a change point in which its detection counts.
const WINDOW: f64 = 60.0;
/// Weight of a detection outside of all windows (NAB's standard profile).
const FALSE: f64 = -0.11;

/// Counts of rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    tp: f64,
    fp: f64,
    fn_: f64,
    tn: f64,
}

impl Figures {
    /// Of one recording.
    pub fn of(truth: &[bool], said: &[bool]) -> Figures {
        let mut f = Figures::default();
        for (t, s) in truth.iter().zip(said) {
            match (t, s) {
                (true, true) => f.tp += 1.0,
                (false, true) => f.fp += 1.0,
                (true, false) => f.fn_ += 1.0,
                (false, false) => f.tn += 1.0,
            }
        }
        f
    }

    /// Pools another's rows with these.
    pub fn add(&mut self, other: &Figures) {
        self.tp += other.tp;
        self.fp += other.fp;
        self.fn_ += other.fn_;
        self.tn += other.tn;
    }

    /// F1 over rows.
    pub fn f1(&self) -> f64 {
        self.tp / (self.tp + (self.fp + self.fn_) / 2.0).max(1e-12)
    }

    /// False alarms: percent of normal rows.
    pub fn far(&self) -> f64 {
        100.0 * self.fp / (self.fp + self.tn).max(1e-12)
    }

    /// Missed alarms: percent of anomalous rows.
    pub fn mar(&self) -> f64 {
        100.0 * self.fn_ / (self.fn_ + self.tp).max(1e-12)
    }

    /// F1 of what always alarms.
    pub fn f1_if_always(&self) -> f64 {
        let share = (self.tp + self.fn_) / (self.tp + self.fn_ + self.fp + self.tn);
        2.0 * share / (1.0 + share)
    }
}

/// NAB's score, standard profile, of where alarms begin or end against change points; 100 is
/// perfect, 0 is silence. Each recording is its times in seconds, change points and what was said.
pub fn changepoint_score<'a>(recordings: impl Iterator<Item = (&'a [f64], &'a [bool], &'a [bool])>) -> f64 {
    let (mut sum, mut points) = (0.0, 0.0);
    for (t, truth, said) in recordings {
        let turns = |i: &usize| said[*i] != (*i > 0 && said[*i - 1]);
        let hits: Vec<f64> = (0..t.len()).filter(turns).map(|i| t[i]).collect();
        let mut windows: Vec<(f64, f64)> = (0..t.len()).filter(|i| truth[*i]).map(|i| (t[i], t[i] + WINDOW)).collect();
        for i in 1..windows.len() {
            windows[i].0 = windows[i].0.max(windows[i - 1].1);
        }
        points += windows.len() as f64;
        let mut before = f64::MIN;
        for (start, end) in windows {
            sum += FALSE * hits.iter().filter(|h| **h > before && **h < start).count() as f64;
            sum += match hits.iter().find(|h| **h >= start && **h <= end) {
                None => -1.0,
                Some(hit) => {
                    let place = ((hit - start) / (end - start).max(1e-9) * 1000.0).floor().min(999.0) / 999.0;
                    let half = std::f64::consts::FRAC_PI_2;
                    let late = (-half + 2.0 * half * place).tanh() / half.tanh();
                    (1.0 - FALSE) / 2.0 * (1.0 - late) + FALSE
                }
            };
            before = end;
        }
        sum += FALSE * hits.iter().filter(|h| **h > before).count() as f64;
    }
    100.0 * (sum + points) / (2.0 * points)
}

/// A file of NAB: scores row by row, the rows learnt from, and the windows (first and last row) that
/// do not end among those.
pub struct Stream {
    pub name: String,
    pub scores: Vec<f64>,
    pub learnt: usize,
    pub windows: Vec<(usize, usize)>,
    /// Whether nothing could be learnt from it; then all scores are 0.
    pub refused: bool,
}

impl Stream {
    /// What flagging each row brings, NAB's standard profile, and its window. In a window only the
    /// most that a flagged row brings counts; -1 is what a window without one costs.
    fn weights(&self) -> Vec<(f64, Option<usize>)> {
        let sigmoid = |x: f64| if x > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * x).exp()) - 1.0 };
        let weight = |i: usize| {
            if let Some(k) = self.windows.iter().position(|(a, b)| (*a..=*b).contains(&i)) {
                let (a, b) = self.windows[k];
                let place = (b - i + 1) as f64 / (b - a + 1) as f64;
                return (sigmoid(-place) / sigmoid(-1.0), Some(k));
            }
            let last = self.windows.iter().rev().find(|(_, b)| *b < i);
            let late = last.map_or(f64::MAX, |(a, b)| (i - b) as f64 / (b - a).max(1) as f64);
            (-FALSE * sigmoid(late), None)
        };
        (0..self.scores.len()).map(weight).collect()
    }
}

/// NAB's score with the threshold that suits these files best, and that threshold: how the
/// published table is made. 100 is perfect, 0 is silence.
pub fn stream_score(streams: &[&Stream]) -> (f64, f64) {
    let mut rows = Vec::new();
    for (f, stream) in streams.iter().enumerate() {
        let weights = stream.weights().into_iter().zip(&stream.scores).skip(stream.learnt);
        rows.extend(weights.map(|((weight, window), score)| (*score, weight, window.map(|k| (f, k)))));
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let windows: usize = streams.iter().map(|s| s.windows.len()).sum();
    let mut found = std::collections::HashMap::new();
    let (mut sum, mut best) = (0.0, (0.0, f64::MAX));
    for same in rows.chunk_by(|a, b| a.0 == b.0) {
        for (_, weight, window) in same {
            let Some(window) = window else {
                sum += weight;
                continue;
            };
            let most: &mut f64 = found.entry(*window).or_insert(-1.0);
            sum += (weight - *most).max(0.0);
            *most = most.max(*weight);
        }
        if sum > best.0 {
            best = (sum, same[0].0);
        }
    }
    (100.0 * best.0 / (2.0 * windows as f64), best.1)
}

/// The same with a given threshold; `None` without windows.
pub fn stream_score_at(streams: &[&Stream], threshold: f64) -> Option<f64> {
    let (mut sum, mut windows) = (0.0, 0);
    for stream in streams {
        let mut found = vec![-1.0f64; stream.windows.len()];
        windows += found.len();
        for (i, (weight, window)) in stream.weights().into_iter().enumerate().skip(stream.learnt) {
            match window {
                _ if stream.scores[i] < threshold => {}
                None => sum += weight,
                Some(k) => found[k] = found[k].max(weight),
            }
        }
        sum += found.iter().map(|f| f + 1.0).sum::<f64>();
    }
    (windows > 0).then(|| 100.0 * sum / (2.0 * windows as f64))
}

/// Head and rows.
pub fn table(path: &Path, delimiter: u8) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_path(path).unwrap();
    let row = |r: &csv::StringRecord| r.iter().map(|f| f.trim().to_owned()).collect::<Vec<_>>();
    let head = row(reader.headers().unwrap());
    (head, reader.records().map(|r| row(&r.unwrap())).collect())
}

/// Seconds since some day of `2020-03-09 10:14:33`.
pub fn seconds(text: &str) -> f64 {
    let parts: Vec<f64> = text.split([' ', 'T', ':', '-']).map(|p| p.parse().unwrap()).collect();
    ((parts[2] * 24.0 + parts[3]) * 60.0 + parts[4]) * 60.0 + parts[5]
}

#[test]
fn the_figures_are_those_of_the_definitions() {
    let f = Figures::of(&[true, true, false, false, true], &[true, false, true, false, true]);
    assert!((f.f1() - 2.0 / 3.0).abs() < 1e-9 && (f.far() - 50.0).abs() < 1e-9);
    assert!((f.mar() - 100.0 / 3.0).abs() < 1e-9);
    let t: Vec<f64> = (0..200).map(f64::from).collect();
    let mut truth = [false; 200];
    truth[100] = true;
    let silent = changepoint_score([(&t[..], &truth[..], &[false; 200][..])].into_iter());
    assert_eq!(silent, 0.0);
    let said: Vec<bool> = (0..200).map(|i| i >= 100).collect();
    let perfect = changepoint_score([(&t[..], &truth[..], &said[..])].into_iter());
    assert!((perfect - 100.0).abs() < 1e-9, "{perfect}");
    assert!(seconds("2020-03-09 10:15:33") - seconds("2020-03-09 10:14:33") == 60.0);
}

#[test]
fn the_score_of_streams_is_that_of_the_definition() {
    let mut scores = vec![0.0; 100];
    for (row, score) in [(5, 9.0), (20, 3.0), (33, 5.0), (36, 7.0), (45, 4.0), (75, 2.0), (90, 6.0)] {
        scores[row] = score;
    }
    let stream =
        Stream { name: "made up".into(), scores, learnt: 15, windows: vec![(30, 39), (70, 79)], refused: false };
    // What a program written apart from this one makes of the same.
    let (score, threshold) = stream_score(&[&stream]);
    assert!((score - 87.300_122).abs() < 1e-5 && threshold == 2.0, "{score} {threshold}");
    assert!((stream_score_at(&[&stream], threshold).unwrap() - score).abs() < 1e-9);
    assert_eq!(stream_score_at(&[&stream], 10.0), Some(0.0));
}
