//! Writing what was learnt as a bundle like any other: graph, manifest, golden cases, reference
//! scores and a card, with digests.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::bundle::sha256;
use super::fit::Fitted;
use super::graph;
use crate::types::Time;

/// Golden cases in a bundle.
const GOLDEN: usize = 3;

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
    let reference = pretty(&json!({ "scores": fitted.reference }));
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
            "description": "Distance of each window's mean from how healthy windows vary together",
        },
        "config": { "format": "onnx", "precision": "float32", "opset": 17 },
        "inputs": [{ "name": "window", "datatype": "FP32", "shape": [-1, fitted.steps, n] }],
        "outputs": [
            { "name": "score", "datatype": "FP32", "shape": [-1] },
            { "name": "contributions", "datatype": "FP32", "shape": [-1, n] },
        ],
        "task": "score",
        "window": { "steps": fitted.steps, "stride": 1, "rate_ms": about.rate.as_secs_f64() * 1e3 },
        "channels": about.channels.iter().enumerate().map(channel).collect::<Vec<_>>(),
        "calibration": { "method": "cross-conformal", "scores": "reference.json#/scores" },
        "metrics": about.metrics,
        "sequence": about.at.0 / 1_000_000_000,
        "digests": digests,
    })
}

fn golden(fitted: &Fitted, windows: &[Vec<f64>]) -> Value {
    let step = (windows.len() / GOLDEN).max(1);
    let case = |window: &Vec<f64>| {
        // As single precision, which is what the graph is given.
        let window: Vec<f32> = window.iter().map(|v| *v as f32).collect();
        let (score, shares) = fitted.score(&window.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        let n = shares.len();
        json!({
            "request": { "inputs": [{ "name": "window", "datatype": "FP32", "shape": [1, fitted.steps, n], "data": window }] },
            "response": { "model_name": "golden", "outputs": [
                { "name": "score", "datatype": "FP32", "shape": [1], "data": [score] },
                { "name": "contributions", "datatype": "FP32", "shape": [1, n], "data": shares },
            ] },
            "rtol": 1e-2, "atol": 1e-2,
        })
    };
    windows.iter().step_by(step).take(GOLDEN).map(case).collect()
}

fn card(about: &About, fitted: &Fitted) -> String {
    let seconds = about.rate.as_secs_f64() * fitted.steps as f64;
    let mut out = format!(
        "# {}\n\nLearnt on the gateway by `andon learn` from {} at {}.\n\n\
         The score is the distance of a window's mean ({} steps, {seconds} s) from the means of healthy windows, in \
         units of how these vary together (Mahalanobis, shrinkage 0.1), over {} channels. It sees levels and \
         relations between channels, not rhythms. {} reference scores come from cross-validation; they overlap, so \
         they are worth about {} independent windows.\n\n| channel | mean | deviation | least | greatest |\n|---|---|---|---|---|\n",
        about.name,
        about.source,
        about.at,
        fitted.steps,
        about.channels.len(),
        fitted.reference.len(),
        fitted.reference.len() / fitted.steps,
    );
    for (i, name) in about.channels.iter().enumerate() {
        let (low, high) = fitted.range[i];
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| {name} | {:.4} | {:.4} | {low:.4} | {high:.4} |", fitted.mean[i], fitted.std[i]);
    }
    let _ = writeln!(out, "\nOn the data held back: `{}`.", about.metrics);
    out
}
