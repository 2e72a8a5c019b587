//! From a graph's outputs to a score and each channel's share in it, by task.

use super::bundle::{Manifest, Task};
use super::session::Outputs;
use crate::types::{Name, Rul};

/// What the outputs say of one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Higher is stranger.
    pub score: f64,
    /// By channel; they sum to 1.
    pub shares: Vec<f64>,
    /// The model's own health index, 0..1.
    pub health: Option<f64>,
    /// Remaining useful life.
    pub rul: Option<Rul>,
    /// The class found.
    pub class: Option<Name>,
}

/// The output a task cannot do without.
pub fn needed_output(task: Task) -> &'static str {
    match task {
        Task::Reconstruction => "reconstruction",
        Task::Score => "score",
        Task::Rul => "rul",
        Task::Class => "class",
    }
}

/// Whether that output has the right number of values for one window.
pub fn check_shape(manifest: &Manifest, len: usize) -> Result<(), String> {
    let whole = manifest.steps * manifest.channels.len();
    let (fits, wanted) = match manifest.task {
        Task::Reconstruction => (len == whole, format!("{whole}: [N, steps, channels]")),
        Task::Score => (len == 1, "1: [N]".into()),
        Task::Rul => (len == 1 || len == 3, "1 or 3: [N, 1] or [N, 3]".into()),
        Task::Class => {
            (len >= 2 && (manifest.classes.is_empty() || manifest.classes.len() == len), "one for each class".into())
        }
    };
    let name = needed_output(manifest.task);
    if fits { Ok(()) } else { Err(format!("output `{name}` gives {len} values for a window; it has to give {wanted}")) }
}

/// Reads window `i` of a batch; `None` when the outputs are not finite or not there.
pub fn read(manifest: &Manifest, window: &[f32], outputs: &Outputs, i: usize) -> Option<Found> {
    let main = outputs.of(needed_output(manifest.task), i)?;
    if main.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let health = outputs.of("health", i).and_then(|h| h.first().copied()).map(f64::from).filter(|h| h.is_finite());
    let mut found =
        Found { score: 0.0, shares: Vec::new(), health: health.map(|h| h.clamp(0.0, 1.0)), rul: None, class: None };
    match manifest.task {
        Task::Reconstruction => {
            let errors = reconstruction_errors(manifest, window, main);
            found.score = errors.iter().sum::<f64>() / errors.len() as f64;
            found.shares = shares(errors);
        }
        Task::Score => {
            found.score = f64::from(main[0]);
            found.shares = shares(given_contributions(outputs, i).unwrap_or_else(|| deviations(manifest, window)));
        }
        Task::Rul => {
            let rul = interval(main);
            found.score = (1.0 - rul.median / manifest.rul_cap).clamp(0.0, 1.0);
            found.health = found.health.or(Some(1.0 - found.score));
            found.rul = Some(rul);
            found.shares = shares(deviations(manifest, window));
        }
        Task::Class => {
            let (best, _) = main.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
            found.score = 1.0 - probability_of_first(main);
            found.class = Some(manifest.classes.get(best).cloned().unwrap_or_else(|| best.to_string()).into());
            found.shares = shares(deviations(manifest, window));
        }
    }
    found.score.is_finite().then_some(found)
}

/// Mean squared error of each channel in units of its training deviation.
fn reconstruction_errors(manifest: &Manifest, window: &[f32], reconstruction: &[f32]) -> Vec<f64> {
    let n = manifest.channels.len();
    let mut errors = vec![0.0; n];
    for (at, (x, y)) in window.iter().zip(reconstruction).enumerate() {
        let z = f64::from(x - y) / manifest.channels[at % n].std;
        errors[at % n] += z * z;
    }
    errors.iter().map(|e| e / manifest.steps as f64).collect()
}

/// Mean squared distance of each channel from its training mean: what can be said of any model.
fn deviations(manifest: &Manifest, window: &[f32]) -> Vec<f64> {
    let means: Vec<f32> = manifest.channels.iter().map(|c| c.mean as f32).collect();
    let baseline: Vec<f32> = (0..manifest.steps).flat_map(|_| means.iter().copied()).collect();
    reconstruction_errors(manifest, window, &baseline)
}

fn given_contributions(outputs: &Outputs, i: usize) -> Option<Vec<f64>> {
    let given = outputs.of("contributions", i)?;
    given.iter().all(|v| v.is_finite()).then(|| given.iter().map(|v| f64::from(v.abs())).collect())
}

/// Scales to a sum of 1; without any evidence every channel has the same share.
fn shares(parts: Vec<f64>) -> Vec<f64> {
    let sum: f64 = parts.iter().sum();
    let n = parts.len() as f64;
    parts.into_iter().map(|p| if sum > 0.0 && sum.is_finite() { p / sum } else { 1.0 / n }).collect()
}

fn interval(out: &[f32]) -> Rul {
    let v = |i: usize| f64::from(out[i]).max(0.0);
    match out.len() {
        3 => Rul { low: v(0).min(v(1)), median: v(1), high: v(2).max(v(1)) },
        _ => Rul { low: v(0), median: v(0), high: v(0) },
    }
}

/// The first class's probability; outputs that are no probabilities go through a softmax.
fn probability_of_first(out: &[f32]) -> f64 {
    let sum: f64 = out.iter().map(|v| f64::from(*v)).sum();
    if out.iter().all(|v| (0.0..=1.0).contains(v)) && (sum - 1.0).abs() < 1e-3 {
        return f64::from(out[0]);
    }
    let top = out.iter().copied().fold(f32::MIN, f32::max);
    let exp = |v: &f32| f64::from(v - top).exp();
    exp(&out[0]) / out.iter().map(exp).sum::<f64>()
}
