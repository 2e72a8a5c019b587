//! The Open Inference Protocol (v2, REST) from the client's side: metadata read, requests written in JSON
//! or with binary tensors, answers read to one number. Pure; nothing that a server sends makes it panic.
//!
//! Source: kserve/open-inference-protocol `inference_rest.md`; Triton's extension `binary_tensor_data`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::types::{Ask, Outcome};

/// How long the JSON at the beginning of a binary body is.
pub const LENGTH_HEADER: &str = "inference-header-content-length";
/// Servers list the extension by this name; Triton leaves out the middle word.
const BINARY: [&str; 2] = ["binary_tensor_data", "binary_data"];
/// Nested arrays deeper than any shape are nonsense.
const MAX_DEPTH: usize = 8;

/// What a server says of itself and of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// Whether tensors may be sent as bytes.
    pub binary: bool,
    /// `None` where the server does not say what it takes.
    input: Option<Input>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

/// What does not fit or cannot be read: how asking ends, and why.
pub type Wrong = (Outcome, String);

/// Whether a server lists the extension for binary tensors in its metadata.
pub fn speaks_binary(server: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Server {
        #[serde(default)]
        extensions: Vec<String>,
    }
    serde_json::from_slice(server).is_ok_and(|s: Server| s.extensions.iter().any(|e| BINARY.contains(&e.as_str())))
}

/// Reads a model's metadata.
pub fn metadata(binary: bool, model: &[u8]) -> Result<Metadata, Wrong> {
    #[derive(Deserialize)]
    struct Model {
        #[serde(default)]
        inputs: Option<Vec<Input>>,
    }
    let model: Model =
        serde_json::from_slice(model).map_err(|e| (Outcome::Malformed, format!("its metadata cannot be read: {e}")))?;
    let mut inputs = model.inputs.unwrap_or_default();
    if inputs.len() > 1 {
        return Err((Outcome::Misfit, format!("the model has {} inputs, not one", inputs.len())));
    }
    Ok(Metadata { binary, input: inputs.pop() })
}

impl Metadata {
    /// How a window of this size is to be sent: name, datatype and shape of the input.
    pub fn input_for(&self, steps: usize, channels: usize) -> Result<(&str, &str, Vec<usize>), Wrong> {
        let Some(input) = &self.input else { return Ok(("window", "FP32", vec![1, steps, channels])) };
        if !matches!(input.datatype.as_str(), "FP32" | "FP64") {
            let what = format!("its input {:?} is of {:?}, not FP32 or FP64", input.name, input.datatype);
            return Err((Outcome::Misfit, what));
        }
        // With or without a place for the number of windows, as a matrix or flat.
        let shapes = [vec![1, steps, channels], vec![1, steps * channels], vec![steps, channels]];
        let fits = |shape: &Vec<usize>| {
            shape.len() == input.shape.len()
                && shape.iter().zip(&input.shape).all(|(n, wanted)| *wanted == -1 || i64::try_from(*n) == Ok(*wanted))
        };
        let Some(shape) = shapes.into_iter().find(fits) else {
            let what = format!("it takes {:?}, the window is [1, {steps}, {channels}]", input.shape);
            return Err((Outcome::Misfit, what));
        };
        Ok((&input.name, &input.datatype, shape))
    }
}

/// A request: its body, and how long its JSON is where tensors follow.
pub fn request(ask: &Ask, meta: &Metadata, output: Option<&str>) -> Result<(Vec<u8>, Option<usize>), Wrong> {
    if ask.window.len() != ask.steps * ask.channels {
        return Err((Outcome::Misfit, "the window is not of the size it says".into()));
    }
    // JSON has no word for it, and no model a use.
    if ask.window.iter().any(|v| !v.is_finite()) {
        return Err((Outcome::NotFinite, "the window has values that are not finite".into()));
    }
    let (name, datatype, shape) = meta.input_for(ask.steps, ask.channels)?;
    let mut input = json!({"name": name, "shape": shape, "datatype": datatype});
    let mut body = json!({"id": ask.id.to_string()});
    if let Some(output) = output {
        body["outputs"] = json!([{"name": output}]);
    }
    if !meta.binary {
        input["data"] = json!(&*ask.window);
        body["inputs"] = json!([input]);
        return Ok((body.to_string().into_bytes(), None));
    }
    let tail: Vec<u8> = match datatype {
        "FP64" => ask.window.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        _ => ask.window.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    input["parameters"] = json!({"binary_data_size": tail.len()});
    body["inputs"] = json!([input]);
    body["parameters"] = json!({"binary_data_output": true});
    let mut bytes = body.to_string().into_bytes();
    let head = bytes.len();
    bytes.extend(tail);
    Ok((bytes, Some(head)))
}

#[derive(Deserialize)]
struct Reply {
    id: Option<String>,
    model_version: Option<Value>,
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    parameters: Option<Map<String, Value>>,
    data: Option<Value>,
}

/// What a larger model gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Finite.
    pub score: f64,
    /// The version that answered.
    pub version: Option<String>,
}

/// Reads an answer to the one number that was asked for; `head` is how long its JSON is.
pub fn reply(body: &[u8], head: Option<usize>, ask: &Ask, output: Option<&str>) -> Result<Found, Wrong> {
    let split = body.split_at_checked(head.unwrap_or(body.len()));
    let (text, tail) = split.ok_or((Outcome::Malformed, format!("{LENGTH_HEADER} is more than the body has")))?;
    let reply: Reply = serde_json::from_slice(text).map_err(|e| unreadable(text, &e))?;
    if reply.id.as_ref().is_some_and(|id| *id != ask.id.to_string()) {
        return Err((Outcome::Misfit, "it answers another question".into()));
    }
    let (at, chosen) = choose(&reply.outputs, output)?;
    let many: Option<i64> = chosen.shape.iter().try_fold(1_i64, |all, n| all.checked_mul(*n));
    if many != Some(1) {
        let what = format!("output {:?} has the shape {:?}, not one value", chosen.name, chosen.shape);
        return Err((Outcome::Misfit, what));
    }
    let score = match &chosen.data {
        Some(data) => number(data, 0)?,
        None => from_bytes(&reply.outputs, at, tail)?,
    };
    if !score.is_finite() {
        return Err((Outcome::NotFinite, format!("output {:?} is {score}", chosen.name)));
    }
    let version = reply.model_version.and_then(|v| match v {
        Value::String(s) if !s.is_empty() => Some(s.chars().filter(|c| !c.is_control()).take(64).collect()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    });
    Ok(Found { score, version })
}

/// Python servers write NaN where JSON has no word for it.
fn unreadable(text: &[u8], e: &serde_json::Error) -> Wrong {
    let token = |word: &[u8]| text.windows(word.len()).any(|w| w == word);
    let outcome = if token(b"NaN") || token(b"Infinity") { Outcome::NotFinite } else { Outcome::Malformed };
    (outcome, format!("the answer cannot be read: {e}"))
}

fn choose<'o>(outputs: &'o [Output], wanted: Option<&str>) -> Result<(usize, &'o Output), Wrong> {
    let named = |name: &str| outputs.iter().enumerate().find(|(_, o)| o.name == name);
    let found = match (wanted, outputs) {
        (Some(name), _) => named(name),
        (None, [only]) => Some((0, only)),
        (None, _) => named("score"),
    };
    found.ok_or_else(|| {
        let there: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).take(8).collect();
        (Outcome::Misfit, format!("there is no output {:?}, only {there:?}: see `output`", wanted.unwrap_or("score")))
    })
}

/// The one number in arrays nested as the shape is, or flat.
fn number(data: &Value, depth: usize) -> Result<f64, Wrong> {
    match data {
        Value::Array(items) if items.len() == 1 && depth < MAX_DEPTH => number(&items[0], depth + 1),
        Value::Number(n) => Ok(n.as_f64().unwrap_or(f64::NAN)),
        Value::Bool(b) => Ok(f64::from(u8::from(*b))),
        // What some servers write for NaN.
        Value::Null => Ok(f64::NAN),
        _ => Err((Outcome::Misfit, "its data are not one number".into())),
    }
}

/// The one number of output `at` among the bytes behind the JSON, where tensors follow each other.
fn from_bytes(outputs: &[Output], at: usize, tail: &[u8]) -> Result<f64, Wrong> {
    let misfit = |what: &str| (Outcome::Misfit, what.to_owned());
    let size = |o: &Output| {
        let size = o.parameters.as_ref().and_then(|p| p.get("binary_data_size")).and_then(Value::as_u64);
        size.and_then(|n| usize::try_from(n).ok())
    };
    let before = outputs[..at].iter().filter_map(size).try_fold(0_usize, usize::checked_add);
    let len = size(&outputs[at]).ok_or_else(|| misfit("an output has neither data nor binary_data_size"))?;
    let end = before.and_then(|b| b.checked_add(len));
    let bytes = before.zip(end).and_then(|(b, e)| tail.get(b..e));
    let bytes = bytes.ok_or_else(|| misfit("binary_data_size does not fit the body"))?;
    let datatype = outputs[at].datatype.as_str();
    let value = match (datatype, bytes) {
        ("FP32", &[a, b, c, d]) => Some(f64::from(f32::from_le_bytes([a, b, c, d]))),
        ("FP64", b) => b.try_into().ok().map(f64::from_le_bytes),
        ("INT64", b) => b.try_into().ok().map(|b| i64::from_le_bytes(b) as f64),
        ("INT32", &[a, b, c, d]) => Some(f64::from(i32::from_le_bytes([a, b, c, d]))),
        ("BOOL" | "UINT8", &[b]) => Some(f64::from(b)),
        ("INT8", &[b]) => Some(f64::from(b as i8)),
        _ => None,
    };
    value.ok_or_else(|| misfit(&format!("{} bytes of {datatype:?} are not one number", bytes.len())))
}

#[cfg(test)]
mod tests;
