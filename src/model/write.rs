//! Writing what was learnt as a bundle like any other: graph, manifest, golden cases, reference
//! scores and a card, with digests.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::bundle::sha256;
use super::fit::{Fitted, State};
use super::graph;
use crate::types::Time;

/// Golden cases of healthy windows in a bundle; as many again are of a made-up fault.
const GOLDEN: usize = 3;
/// The made-up fault: all channels off by so many deviations.
const FAULT: f64 = 8.0;

/// What a bundle says of itself beside the numbers.
#[derive(Clone, Debug)]
pub struct About {
    /// The model's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The channels' names, in order.
    pub channels: Vec<String>,
    /// The grid's step.
    pub rate: Duration,
    /// Where the data came from, for the card.
    pub source: String,
    /// When it was learnt.
    pub at: Time,
    /// Figures on data held back, for the card and the manifest.
    pub metrics: Value,
}

/// Writes the bundle into `dir`, which is made. `windows` are flat samples [steps × channels] for
/// the golden cases.
pub fn bundle(dir: &Path, about: &About, fitted: &Fitted, windows: &[Vec<f64>]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let onnx = graph::onnx(fitted);
    let golden = pretty(&golden(fitted, windows));
    let spread = about.channels.iter().zip(&fitted.spread).filter_map(|(name, bins)| Some((name, bins.as_ref()?)));
    let spread: BTreeMap<_, _> = spread.collect();
    let reference = pretty(&json!({ "scores": fitted.reference, "channels": spread }));
    let digests = json!({
        "model.onnx": sha256(&onnx), "golden.json": sha256(golden.as_bytes()), "reference.json": sha256(reference.as_bytes()),
    });
    fs::write(dir.join("model.onnx"), onnx)?;
    fs::write(dir.join("golden.json"), golden)?;
    fs::write(dir.join("reference.json"), reference)?;
    fs::write(dir.join("MODEL_CARD.md"), card(about, fitted))?;
    // Last: a bundle without its manifest is no bundle, so a crash leaves none half-written.
    fs::write(dir.join("model.json"), pretty(&manifest(about, fitted, digests)))
}

fn pretty(value: &Value) -> String {
    // A JSON value always prints.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn manifest(about: &About, fitted: &Fitted, digests: Value) -> Value {
    let n = about.channels.len();
    let start = fitted.start();
    let channel = |(i, name): (usize, &String)| {
        let (min, max) = fitted.range[i];
        json!({ "name": name, "unit": "", "mean": fitted.mean[i], "std": fitted.std[i], "min": min, "max": max })
    };
    json!({
        "schema": "andon.model/v1",
        "name": about.name,
        "version": about.version,
        "platform": "onnx_onnxv1",
        "descriptor": {
            "createdAt": about.at.to_string(),
            "authors": ["andon learn"],
            "description": "Distance of each window's mean from a baseline that follows the machine, by how healthy windows stray together",
        },
        "config": { "format": "onnx", "precision": "float32", "opset": 17 },
        "inputs": [
            { "name": "window", "datatype": "FP32", "shape": [-1, fitted.steps, n] },
            { "name": "state_baseline", "datatype": "FP32", "shape": [-1, n] },
            { "name": "state_fault", "datatype": "FP32", "shape": [-1, n] },
            { "name": "state_phase", "datatype": "FP32", "shape": [-1, 3] },
        ],
        "outputs": [
            { "name": "score", "datatype": "FP32", "shape": [-1] },
            { "name": "contributions", "datatype": "FP32", "shape": [-1, n] },
            { "name": "state_baseline_next", "datatype": "FP32", "shape": [-1, n] },
            { "name": "state_fault_next", "datatype": "FP32", "shape": [-1, n] },
            { "name": "state_phase_next", "datatype": "FP32", "shape": [-1, 3] },
        ],
        "state": {
            "baseline": { "initial": start.baseline.iter().map(|v| *v as f32).collect::<Vec<_>>() },
            "phase": { "initial": [start.alarm, start.settling, start.fresh] },
        },
        "task": "score",
        "window": { "steps": fitted.steps, "stride": 1, "rate_ms": about.rate.as_secs_f64() * 1e3 },
        "channels": about.channels.iter().enumerate().map(channel).collect::<Vec<_>>(),
        "calibration": { "method": "conformal", "scores": "reference.json#/scores", "optimism": fitted.optimism },
        "metrics": about.metrics,
        "sequence": about.at.0 / 1_000_000_000,
        "digests": digests,
    })
}

/// A course through the graph's states: healthy windows, a fault, and its end.
fn golden(fitted: &Fitted, windows: &[Vec<f64>]) -> Value {
    let step = (windows.len() / GOLDEN).max(1);
    let healthy: Vec<&Vec<f64>> = windows.iter().step_by(step).take(GOLDEN).collect();
    let n = fitted.mean.len();
    let off = |w: &Vec<f64>| -> Vec<f64> { w.iter().enumerate().map(|(i, v)| v + FAULT * fitted.std[i % n]).collect() };
    let faulty: Vec<Vec<f64>> = healthy.iter().take(2).map(|w| off(w)).collect();
    let course = healthy.iter().copied().chain(&faulty).chain(healthy.first().copied());
    let mut state = fitted.start();
    let mut cases = Vec::new();
    for window in course {
        // As single precision, which is what the graph is given.
        let window: Vec<f64> = window.iter().map(|v| f64::from(*v as f32)).collect();
        let stepped = fitted.step(&state, &fitted.mean_of(&window));
        let mut inputs =
            vec![json!({ "name": "window", "datatype": "FP32", "shape": [1, fitted.steps, n], "data": window })];
        inputs.extend(tensors(&state, ""));
        let mut outputs = vec![
            json!({ "name": "score", "datatype": "FP32", "shape": [1], "data": [stepped.score] }),
            json!({ "name": "contributions", "datatype": "FP32", "shape": [1, n], "data": stepped.parts }),
        ];
        outputs.extend(tensors(&stepped.next, "_next"));
        cases.push(json!({
            "request": { "id": cases.len().to_string(), "inputs": inputs },
            "response": { "model_name": "golden", "outputs": outputs },
            "rtol": 1e-2, "atol": 1e-2,
        }));
        state = stepped.next;
    }
    cases.into()
}

fn tensors(state: &State, suffix: &str) -> [Value; 3] {
    let tensor = |name: &str, data: &[f64]| json!({ "name": format!("state_{name}{suffix}"), "datatype": "FP32", "shape": [1, data.len()], "data": data });
    [
        tensor("baseline", &state.baseline),
        tensor("fault", &state.fault),
        tensor("phase", &[state.alarm, state.settling, state.fresh]),
    ]
}

fn card(about: &About, fitted: &Fitted) -> String {
    let seconds = about.rate.as_secs_f64() * fitted.steps as f64;
    let memory = |rate: f64| about.rate.as_secs_f64() / rate;
    let slowest = fitted.rates.iter().copied().fold(f64::MAX, f64::min);
    let mut out = format!(
        "# {}\n\nLearnt on the gateway by `andon learn` from {} at {}.\n\n\
         The score is the distance of a window's mean ({} steps, {seconds} s) from a baseline that follows the machine, \
         in units of how healthy means stray from it together (Mahalanobis, shrinkage 0.1), over {} channels. It sees \
         levels and relations between channels, not rhythms. The baseline forgets within {:.0} s (channels that wander: \
         half of that), since the data could not show what is normal over longer times: what goes wrong more slowly is \
         not seen. From a score of {:.3} on it rests, so a fault is not learnt; when less than {:.0} % of the fault is \
         left it takes up the new state for {:.0} s, in which nothing is flagged.\n\n\
         {} reference scores come from windows; they overlap, so they are worth about {} independent ones. They were \
         enlarged by {:.2}, because the fit had seen them, and completed by {} scores that normal data would give.\n\n\
         | channel | mean | deviation | least | greatest | wanders |\n|---|---|---|---|---|---|\n",
        about.name,
        about.source,
        about.at,
        fitted.steps,
        about.channels.len(),
        memory(slowest),
        fitted.limit,
        super::fit::RECEDED * 100.0,
        fitted.settling * about.rate.as_secs_f64(),
        fitted.windows,
        fitted.independent(),
        fitted.optimism,
        fitted.reference.len() - fitted.windows,
    );
    for (i, name) in about.channels.iter().enumerate() {
        let (low, high) = fitted.range[i];
        // Writing to a string cannot fail.
        let (mean, std, slow) = (fitted.mean[i], fitted.std[i], if fitted.slow[i] { "yes" } else { "" });
        let _ = writeln!(out, "| {name} | {mean:.4} | {std:.4} | {low:.4} | {high:.4} | {slow} |");
    }
    let _ = writeln!(out, "\nOn the data held back: `{}`.", about.metrics);
    out
}
