//! A model bundle on disk: manifest, graph, golden cases, reference scores, with digests checked.
//! Tensor shapes are Open Inference Protocol metadata; the rest follows DESIGN's `andon.model/v1`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use super::ModelError;
use super::compat::Compat;
use super::contents::{self, Contents, MAX_MANIFEST};
use super::drift::Spread;
use super::manifest_limits::{self, Texts};
use super::state;
use crate::settings::plain_period;
use crate::types::Time;

/// The largest file of a bundle that is read at all.
pub(super) const MAX_FILE: u64 = 256 << 20;
/// Dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;
/// The largest window a model may ask for: steps × channels.
const MAX_WINDOW: usize = 1 << 22;

/// What a model is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Output `reconstruction` `[N, steps, channels]`.
    Reconstruction,
    /// Output `score` `[N]`, optional `contributions` `[N, channels]` and `health` `[N]`.
    Score,
    /// Output `rul` `[N, 1]` or `[N, 3]` (low, median, high).
    Rul,
    /// Output `class` `[N, k]`.
    Class,
}

/// A tensor as the Open Inference Protocol describes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Tensor {
    /// Its name in the graph.
    pub name: String,
    /// `FP32` and so on.
    pub datatype: String,
    /// -1 where the size is free.
    pub shape: Vec<i64>,
}

/// A channel as it was seen in training.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Channel {
    /// Its name; the signal of that name is bound to it unless the config says otherwise.
    pub name: String,
    /// Its unit.
    #[serde(default)]
    pub unit: String,
    /// Mean in training.
    #[serde(default)]
    pub mean: f64,
    /// Standard deviation in training, above zero.
    #[serde(default = "one")]
    pub std: f64,
    /// Least value in training.
    #[serde(default)]
    pub min: Option<f64>,
    /// Greatest value in training.
    #[serde(default)]
    pub max: Option<f64>,
}

impl Channel {
    /// Where it is while the machine is healthy: least and greatest in training, else three deviations
    /// about the mean. `None` where that says nothing.
    pub fn normal(&self) -> Option<[f64; 2]> {
        let low = self.min.unwrap_or(self.mean - 3.0 * self.std);
        let high = self.max.unwrap_or(self.mean + 3.0 * self.std);
        (low < high).then_some([low, high])
    }
}

fn one() -> f64 {
    1.0
}

/// How windows are cut.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct WindowSpec {
    steps: Option<usize>,
    stride: Option<usize>,
    rate_ms: Option<f64>,
}

/// `model.json` as written. Keys that are not known here are other people's business.
#[derive(Clone, Debug, Deserialize)]
struct Written {
    schema: String,
    name: String,
    version: String,
    task: Task,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    channels: Vec<Channel>,
    #[serde(default)]
    window: WindowSpec,
    stride: Option<usize>,
    sample_rate_hz: Option<f64>,
    #[serde(default)]
    classes: Vec<String>,
    rul_cap: Option<f64>,
    #[serde(default)]
    state: BTreeMap<String, state::Written>,
    #[serde(default)]
    digests: BTreeMap<String, String>,
    #[serde(default)]
    advice: Advice,
    #[serde(default)]
    compat: Compat,
    sequence: Option<u64>,
    expires: Option<String>,
}

/// What to check first: by channel or class (`*` is for all), then by language (`en`, `zh`).
pub type Advice = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// `model.json`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The model's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub task: Task,
    /// Graph inputs.
    pub inputs: Vec<Tensor>,
    /// Graph outputs.
    pub outputs: Vec<Tensor>,
    /// Channels, in the order of the window's last axis.
    pub channels: Vec<Channel>,
    /// Rows in a window.
    pub steps: usize,
    /// Steps from one window to the next.
    pub stride: usize,
    /// The grid's step.
    pub rate: Duration,
    /// Names of the classes; the first is the healthy one.
    pub classes: Vec<String>,
    /// Remaining life at which a machine counts as fully healthy.
    pub rul_cap: f64,
    /// What is kept from window to window; empty for most models.
    pub states: Vec<state::Spec>,
    /// SHA-256 in hex by file name; all were checked when the bundle was read.
    pub digests: BTreeMap<String, String>,
    /// What to check first when the model raises an alarm.
    pub advice: Advice,
    /// What it asks of the agent.
    pub compat: Compat,
    /// Rises from version to version; delivered bundles have to have it.
    pub sequence: Option<u64>,
    /// When it may no longer be taken into use.
    pub expires: Option<Time>,
}

/// One golden case: an Open Inference Protocol request and the answer it has to get.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Golden {
    /// What is asked.
    pub request: GoldenRequest,
    /// What has to come back.
    pub response: GoldenResponse,
    /// Relative tolerance.
    #[serde(default = "default_rtol")]
    pub rtol: f64,
    /// Absolute tolerance.
    #[serde(default = "default_atol")]
    pub atol: f64,
}

fn default_rtol() -> f64 {
    1e-3
}

fn default_atol() -> f64 {
    1e-5
}

/// See [`Golden`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GoldenRequest {
    /// Input tensors.
    pub inputs: Vec<TensorData>,
}

/// See [`Golden`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GoldenResponse {
    /// Output tensors.
    pub outputs: Vec<TensorData>,
}

/// A tensor with its values, flat or nested, row-major.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TensorData {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    data: Flat,
}

impl TensorData {
    /// The values in row-major order.
    pub fn flat(&self) -> Vec<f32> {
        self.data.0.clone()
    }
}

/// Numbers out of nested lists, row-major: four bytes for each.
#[derive(Clone, Debug, Default, PartialEq)]
struct Flat(Vec<f32>);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut out = Vec::new();
        FlatVisitor { depth: 0, out: &mut out }.deserialize(deserializer)?;
        Ok(Flat(out))
    }
}

struct FlatVisitor<'o> {
    depth: usize,
    out: &'o mut Vec<f32>,
}

impl<'de> DeserializeSeed<'de> for FlatVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FlatVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.out.push(value as f32);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.out.push(value as f32);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.out.push(value as f32);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if self.depth == MAX_DIMENSIONS {
            return Err(A::Error::custom(format_args!("data is nested deeper than {MAX_DIMENSIONS}")));
        }
        let depth = self.depth + 1;
        while items.next_element_seed(FlatVisitor { depth, out: &mut *self.out })?.is_some() {}
        Ok(())
    }
}

/// `reference.json`: scores of healthy windows that the model had not seen.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Reference {
    /// In any order.
    #[serde(default)]
    pub scores: Vec<f64>,
    /// How each channel was spread in the data that the model was made from, by its name.
    #[serde(default)]
    pub channels: BTreeMap<String, Spread>,
}

/// All of a bundle, read and checked.
pub struct Bundle {
    /// `model.json`.
    pub manifest: Manifest,
    /// `model.onnx`.
    pub onnx: Vec<u8>,
    /// SHA-256 of `model.onnx`, hex.
    pub digest: String,
    /// `golden.json`.
    pub golden: Vec<Golden>,
    /// `reference.json`.
    pub reference: Reference,
}

impl Bundle {
    /// Reads a bundle's directory. Digests are checked for every file the manifest names.
    pub fn read(dir: &Path) -> Result<Bundle, ModelError> {
        Bundle::from_contents(Contents::read(dir)?)
    }

    /// The same out of what has been read.
    ///
    /// # Errors
    /// The first thing that is not as it should be.
    pub fn from_contents(mut contents: Contents) -> Result<Bundle, ModelError> {
        let dir = contents.dir().to_path_buf();
        let missing = |name: &str| ModelError::Read {
            path: dir.join(name).display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let text = contents.get("model.json").ok_or_else(|| missing("model.json"))?;
        let manifest = Manifest::parse(&dir.join("model.json"), text)?;
        for (file, expected) in &manifest.digests {
            check_digest(&contents, file, expected)?;
        }
        let digest = contents.digest("model.onnx")?;
        let onnx = contents.take("model.onnx").ok_or_else(|| missing("model.onnx"))?;
        let golden = optional(&contents, "golden.json")?.unwrap_or_default();
        let reference: Reference = optional(&contents, "reference.json")?.unwrap_or_default();
        if let Some(bad) = reference.scores.iter().find(|s| !s.is_finite()) {
            return Err(invalid(&dir.join("reference.json"), format!("{bad} is not a score")));
        }
        for (name, spread) in &reference.channels {
            spread.bins().map_err(|e| invalid(&dir.join("reference.json"), format!("channel {name:?}: {e}")))?;
        }
        Ok(Bundle { manifest, onnx, digest, golden, reference })
    }
}

impl Manifest {
    /// Reads only `model.json` of a bundle's directory, at most [`MAX_MANIFEST`] of it. Digests are not checked.
    ///
    /// # Errors
    /// When it cannot be read or is not what it should be.
    pub fn read(dir: &Path) -> Result<Manifest, ModelError> {
        let path = dir.join("model.json");
        Manifest::parse(&path, &contents::file(&path, MAX_MANIFEST)?)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Manifest, ModelError> {
        let w: Written = json(path, text)?;
        manifest_limits::check(Texts {
            name: &w.name,
            version: &w.version,
            channels: &w.channels,
            classes: &w.classes,
            tensors: &mut w.inputs.iter().chain(&w.outputs),
            advice: &w.advice,
        })
        .map_err(|m| invalid(path, m))?;
        let bad = |message: String| Err(invalid(path, message));
        if w.schema != "andon.model/v1" {
            return bad(format!("schema {:?} is not known; this version reads \"andon.model/v1\"", w.schema));
        }
        if w.name.is_empty() || w.channels.is_empty() {
            return bad("`name` and `channels` must not be empty".into());
        }
        let Some(input) = w.inputs.iter().find(|t| t.name == "window") else {
            return bad("`inputs` has no tensor named `window`".into());
        };
        let [_, steps, channels] = input.shape[..] else {
            return bad(format!("input `window` has shape {:?}; it has to be [-1, steps, channels]", input.shape));
        };
        if channels != w.channels.len() as i64 {
            return bad(format!("input `window` has {channels} channels but `channels` names {}", w.channels.len()));
        }
        let steps = w.window.steps.or(usize::try_from(steps).ok()).unwrap_or(0);
        if steps == 0 || steps.saturating_mul(w.channels.len()) > MAX_WINDOW {
            return bad(format!("a window of {steps} steps cannot be used"));
        }
        if let Some(c) = w.channels.iter().find(|c| !(c.std > 0.0 && c.std.is_finite() && c.mean.is_finite())) {
            return bad(format!("channel {:?} needs a finite `mean` and a `std` above 0", c.name));
        }
        let seconds = w.window.rate_ms.map(|ms| ms / 1e3).or(w.sample_rate_hz.map(|hz| 1.0 / hz)).unwrap_or(1.0);
        if !(1e-6..=1e6).contains(&seconds) {
            return bad(format!("a step of {seconds} s cannot be used; check `window.rate_ms` or `sample_rate_hz`"));
        }
        let states = state::read(&w.inputs, &w.outputs, &w.state).map_err(|m| invalid(path, m))?;
        let expires = w.expires.as_deref().map(str::parse).transpose();
        let expires = expires.map_err(|e: String| invalid(path, format!("`expires`: {e}")))?;
        Ok(Manifest {
            compat: w.compat,
            sequence: w.sequence,
            expires,
            states,
            stride: w.window.stride.or(w.stride).unwrap_or(1).max(1),
            rate: plain_period(Duration::from_secs_f64(seconds)),
            name: w.name,
            version: w.version,
            task: w.task,
            inputs: w.inputs,
            outputs: w.outputs,
            channels: w.channels,
            steps,
            classes: w.classes,
            rul_cap: w.rul_cap.filter(|c| *c > 0.0 && c.is_finite()).unwrap_or(125.0),
            digests: w.digests,
            advice: w.advice,
        })
    }

    /// What to check first when these channels or classes speak loudest: by language, in their order,
    /// then what holds for all.
    pub fn advice_for(&self, topics: &[&str]) -> BTreeMap<String, Vec<String>> {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for texts in topics.iter().chain(&["*"]).filter_map(|t| self.advice.get(*t)) {
            for (language, lines) in texts {
                out.entry(language.clone()).or_default().extend(lines.iter().cloned());
            }
        }
        out
    }
}

/// SHA-256, hex.
pub fn sha256(data: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, data);
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn check_digest(contents: &Contents, file: &str, expected: &str) -> Result<(), ModelError> {
    let plain = !file.is_empty() && !file.contains(['/', '\\']) && file != "..";
    if !plain {
        return Err(invalid(
            &contents.dir().join("model.json"),
            format!("`digests` names {file:?}, which is not a plain file name"),
        ));
    }
    let found = contents.digest(file)?;
    let expected = expected.trim_start_matches("sha256:").to_ascii_lowercase();
    if found == expected { Ok(()) } else { Err(ModelError::Digest { file: file.to_owned(), found, expected }) }
}

fn optional<T: DeserializeOwned>(contents: &Contents, name: &str) -> Result<Option<T>, ModelError> {
    contents.get(name).map(|text| json(&contents.dir().join(name), text)).transpose()
}

fn json<T: DeserializeOwned>(path: &Path, data: &[u8]) -> Result<T, ModelError> {
    serde_json::from_slice(data).map_err(|e| invalid(path, e.to_string()))
}

fn invalid(path: &Path, message: String) -> ModelError {
    ModelError::Manifest { path: path.display().to_string(), message }
}
