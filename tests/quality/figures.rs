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
