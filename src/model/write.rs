//! Writing what was learnt as a bundle like any other: graph, manifest, golden cases, reference
//! scores and a card, with digests.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::bundle::sha256;
use super::course::Course;
use super::fit::Fitted;
use super::learnt::{Kept, Learnt};
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
    /// Those that were recorded and left out, since they do not change.
    pub left_out: Vec<String>,
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
pub fn bundle(dir: &Path, about: &About, learnt: &Learnt, windows: &[Vec<f64>]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let onnx = learnt.onnx();
    let common = learnt.common();
    let golden = pretty(&golden(learnt, windows));
    let spread = about.channels.iter().zip(common.spread).filter_map(|(name, bins)| Some((name, bins.as_ref()?)));
    let spread: BTreeMap<_, _> = spread.collect();
    let reference = pretty(&json!({ "scores": common.reference, "channels": spread }));
    let digests = json!({
        "model.onnx": sha256(&onnx), "golden.json": sha256(golden.as_bytes()), "reference.json": sha256(reference.as_bytes()),
    });
    fs::write(dir.join("model.onnx"), onnx)?;
    fs::write(dir.join("golden.json"), golden)?;
    fs::write(dir.join("reference.json"), reference)?;
    fs::write(dir.join("MODEL_CARD.md"), card(about, learnt))?;
    // Last: a bundle without its manifest is no bundle, so a crash leaves none half-written.
    fs::write(dir.join("model.json"), pretty(&manifest(about, learnt, digests)))
}

fn pretty(value: &Value) -> String {
    // A JSON value always prints.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn manifest(about: &About, learnt: &Learnt, digests: Value) -> Value {
    let (n, common, start) = (about.channels.len(), learnt.common(), learnt.start());
    let channel = |(i, name): (usize, &String)| {
        let (min, max) = common.range[i];
        json!({ "name": name, "unit": "", "mean": common.mean[i], "std": common.std[i], "min": min, "max": max })
    };
    let tensor = |name: String, rest: &[usize]| {
        let shape: Vec<i64> = std::iter::once(-1).chain(rest.iter().map(|d| *d as i64)).collect();
        json!({ "name": name, "datatype": "FP32", "shape": shape })
    };
    let states = |after: &str| -> Vec<Value> {
        start.iter().map(|s| tensor(format!("state_{}{after}", s.name), &s.shape)).collect()
    };
    let inputs = [vec![tensor("window".into(), &[common.steps, n])], states("")].concat();
    let own = vec![tensor("score".into(), &[]), tensor("contributions".into(), &[n])];
    let outputs = [own, states("_next")].concat();
    // A state that begins with zeros needs no entry.
    let begun = start.iter().filter(|s| s.values.iter().any(|v| *v != 0.0));
    let initial = |s: &Kept| json!({ "initial": s.values.iter().map(|v| *v as f32).collect::<Vec<_>>() });
    let states: BTreeMap<&str, Value> = begun.map(|s| (s.name, initial(s))).collect();
    json!({
        "schema": "andon.model/v1",
        "name": about.name,
        "version": about.version,
        "platform": "onnx_onnxv1",
        "descriptor": {
            "createdAt": about.at.to_string(),
            "authors": ["andon learn"],
            "description": description(learnt),
        },
        "config": { "format": "onnx", "precision": "float32", "opset": 17 },
        "inputs": inputs,
        "outputs": outputs,
        "state": states,
        "task": "score",
        "window": { "steps": common.steps, "stride": 1, "rate_ms": about.rate.as_secs_f64() * 1e3 },
        "channels": about.channels.iter().enumerate().map(channel).collect::<Vec<_>>(),
        "calibration": { "method": "conformal", "scores": "reference.json#/scores", "optimism": common.optimism },
        "metrics": about.metrics,
        "sequence": about.at.0 / 1_000_000_000,
        "digests": digests,
    })
}

fn description(learnt: &Learnt) -> &'static str {
    match learnt {
        Learnt::Baseline(_) => {
            "Distance of each window's levels and restlessness from a baseline that follows the machine, by how healthy windows stray together"
        }
        Learnt::Course(_) => {
            "How rare the value and its course over the window are, by distance from the windows learnt from"
        }
    }
}

/// A course through the graph's states: healthy windows, a fault, and its end.
fn golden(learnt: &Learnt, windows: &[Vec<f64>]) -> Value {
    let common = learnt.common();
    let n = common.mean.len();
    // As single precision, which is what the graph is given.
    let single = |w: &Vec<f64>| -> Vec<f64> { w.iter().map(|v| f64::from(*v as f32)).collect() };
    let off = |w: &Vec<f64>| -> Vec<f64> {
        single(&w.iter().enumerate().map(|(i, v)| v + FAULT * common.std[i % n]).collect())
    };
    let plain = |w: &Vec<f64>| !learnt.borders(w) && !learnt.borders(&off(w));
    let able: Vec<Vec<f64>> = windows.iter().map(single).filter(plain).collect();
    let healthy: Vec<Vec<f64>> = able.iter().step_by((able.len() / GOLDEN).max(1)).take(GOLDEN).cloned().collect();
    let faulty: Vec<Vec<f64>> = healthy.iter().take(2).map(off).collect();
    let course = healthy.iter().chain(&faulty).chain(healthy.first());
    let mut states = learnt.start();
    let mut cases = Vec::new();
    for window in course {
        let stepped = learnt.step(&states, window);
        let mut inputs =
            vec![json!({ "name": "window", "datatype": "FP32", "shape": [1, common.steps, n], "data": window })];
        inputs.extend(tensors(&states, ""));
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
        states = stepped.next;
    }
    cases.into()
}

fn tensors<'a>(states: &'a [Kept], suffix: &'a str) -> impl Iterator<Item = Value> + 'a {
    states.iter().map(move |s| {
        let shape: Vec<usize> = std::iter::once(1).chain(s.shape.iter().copied()).collect();
        json!({ "name": format!("state_{}{suffix}", s.name), "datatype": "FP32", "shape": shape, "data": s.values })
    })
}

fn card(about: &About, learnt: &Learnt) -> String {
    let mut out = match learnt {
        Learnt::Baseline(fitted) => baseline_card(about, fitted),
        Learnt::Course(course) => course_card(about, course),
    };
    let common = learnt.common();
    out += "| channel | mean | deviation | least | greatest | wanders | doubted |\n|---|---|---|---|---|---|---|\n";
    for (i, name) in about.channels.iter().enumerate() {
        let (low, high) = common.range[i];
        let (slow, doubted) = match learnt {
            Learnt::Baseline(f) => (if f.slow[i] { "yes" } else { "" }, format!("{:.1}", f.doubts[i])),
            Learnt::Course(_) => ("", String::new()),
        };
        let (mean, std) = (common.mean[i], common.std[i]);
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| {name} | {mean:.4} | {std:.4} | {low:.4} | {high:.4} | {slow} | {doubted} |");
    }
    if !about.left_out.is_empty() {
        let _ = writeln!(
            out,
            "\nLeft out, since they do not change in the first four fifths of the data: {}.",
            about.left_out.join(", ")
        );
    }
    let _ = writeln!(out, "\nOn the data held back: `{}`.", about.metrics);
    out
}

fn course_card(about: &About, course: &Course) -> String {
    format!(
        "# {}\n\nLearnt on the gateway by `andon learn` from {} at {}.\n\n\
         The score says how rare the newest value's distance from the usual level and the window's distance from the \
         windows learnt from that are most like it ({} steps, {} s) are together, as minus the decimal logarithms of \
         their ranks among what the machine has shown lately. Above a score of {:.3} it is in alarm, and stays so until \
         a window is like the healthy ones again.\n\n\
         {} reference scores come from windows that overlap; they are worth about {} independent ones.\n\n",
        about.name,
        about.source,
        about.at,
        course.steps,
        about.rate.as_secs_f64() * course.steps as f64,
        course.limit,
        course.reference.len(),
        course.windows / course.steps,
    )
}

fn baseline_card(about: &About, fitted: &Fitted) -> String {
    let seconds = about.rate.as_secs_f64() * fitted.steps as f64;
    let memory = |rate: f64| about.rate.as_secs_f64() / rate;
    let slowest = fitted.rates.iter().copied().fold(f64::MAX, f64::min);
    format!(
        "# {}\n\nLearnt on the gateway by `andon learn` from {} at {}.\n\n\
         Of each window ({} steps, {seconds} s) two things are held against a baseline that follows the machine, in \
         units of how healthy windows stray from it together (Mahalanobis, with shrinkage), over {} channels: the \
         levels, and how restless each channel is (the logarithm of its mean step from row to row). The score is the \
         larger of both distances; contributions say by how much it would shrink if a channel were where the others \
         would have it. A channel that moves slowly, so that the data holds few states of it, is doubted: its level has \
         to move that many times as far. Where there are more channels than windows to tell how their levels go together, \
         rows tell. Slower rhythms are not seen. The baseline forgets within {:.0} s (channels \
         that wander: half of that), since the data could not show what is normal over longer times: what goes wrong \
         more slowly is not seen. From a score of {:.3} on it rests, so a fault is not learnt. The alarm ends when for a \
         tenth of the time it had lasted, at most a window's length, the score was below {:.3} or less than {:.0} % of the \
         fault was left; after a clear fault the baseline then takes up the new state for {:.0} s, in which nothing is flagged.\n\n\
         {} reference scores come from windows; they overlap, so they are worth about {} independent ones. Each window \
         was judged by a fit on windows far from it; scores of levels are {:.2} times those of the fit on all. They \
         were completed by {} scores that normal data would give.\n\n",
        about.name,
        about.source,
        about.at,
        fitted.steps,
        about.channels.len(),
        memory(slowest),
        fitted.limit,
        fitted.cleared(),
        super::fit::RECEDED * 100.0,
        fitted.settling * about.rate.as_secs_f64(),
        fitted.windows,
        fitted.independent(),
        fitted.optimism,
        fitted.reference.len() - fitted.windows,
    )
}
