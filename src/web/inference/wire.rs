//! Requests and answers of the Open Inference Protocol as bytes: JSON, and JSON followed by
//! little-endian tensors.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How long the JSON at the beginning of a binary body is.
pub const LENGTH_HEADER: &str = "inference-header-content-length";
/// Nested arrays deeper than a window's shape are nonsense.
const MAX_DEPTH: usize = 4;

/// A float32 tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape; the first is the number of windows.
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: Vec<f32>,
}

#[derive(Debug, Deserialize)]
struct Input {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Head {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Wanted>,
}

/// A request, taken apart.
#[derive(Debug)]
pub struct Request<'b> {
    head: Head,
    /// What follows the JSON.
    binary: &'b [u8],
}

impl<'b> Request<'b> {
    /// Reads a body; `head` is how long its JSON is where tensors follow.
    pub fn read(body: &'b [u8], head: Option<usize>) -> Result<Request<'b>, String> {
        let (text, binary) = body
            .split_at_checked(head.unwrap_or(body.len()))
            .ok_or_else(|| format!("{LENGTH_HEADER} is more than the body has"))?;
        let head =
            serde_json::from_slice(text).map_err(|e| format!("the request is not as the protocol has it: {e}"))?;
        Ok(Request { head, binary })
    }

    /// The one input `window`, checked against the model's metadata.
    pub fn window(&self, model: &Value, most: usize) -> Result<Tensor, String> {
        let [input] = self.head.inputs.as_slice() else {
            return Err(format!("{} inputs were given, the model has one: window", self.head.inputs.len()));
        };
        if input.name != "window" || input.datatype != "FP32" {
            return Err(format!("input {} of {} was given, the model has window of FP32", input.name, input.datatype));
        }
        let declared: Vec<i64> =
            model["inputs"][0]["shape"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        let fits = input.shape.len() == declared.len()
            && input.shape.iter().zip(&declared).all(|(given, wanted)| given == wanted || *wanted == -1);
        let shape: Option<Vec<usize>> = input.shape.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some(shape) = shape.filter(|_| fits) else {
            return Err(format!("window has shape {:?}, the model takes {declared:?}", input.shape));
        };
        let windows = shape.first().copied().unwrap_or(0);
        if windows == 0 || windows > most {
            return Err(format!("{windows} windows in a request; 1 to {most} are taken"));
        }
        let len = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n)).ok_or("the shape is too large")?;
        let data = self.data(input)?;
        if data.len() != len {
            return Err(format!("window has {} values, its shape says {len}", data.len()));
        }
        if data.iter().any(|v| !v.is_finite()) {
            return Err("window has values that are not finite".into());
        }
        Ok(Tensor { name: input.name.clone(), shape, data })
    }

    fn data(&self, input: &Input) -> Result<Vec<f32>, String> {
        match (&input.data, input.parameters.get("binary_data_size")) {
            (Some(data), None) => {
                let mut flat = Vec::new();
                flatten(data, 0, &mut flat)?;
                Ok(flat)
            }
            (None, Some(size)) => {
                let size = size.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| n % 4 == 0);
                let bytes = size.and_then(|n| self.binary.get(..n)).ok_or("binary_data_size does not fit the body")?;
                Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            _ => Err("an input has either data or binary_data_size".into()),
        }
    }

    /// The answer: how long its JSON is where tensors follow, and the body.
    pub fn answer(&self, model: &Value, outputs: Vec<Tensor>) -> Result<(Option<usize>, Vec<u8>), String> {
        let is_on = |parameters: &Map<String, Value>, key: &str| parameters.get(key).and_then(Value::as_bool);
        let all_binary = is_on(&self.head.parameters, "binary_data_output").unwrap_or(false);
        let (mut described, mut tail) = (Vec::new(), Vec::new());
        let wanted: Vec<(&str, bool)> = match self.head.outputs.as_slice() {
            [] => outputs.iter().map(|o| (o.name.as_str(), all_binary)).collect(),
            some => some
                .iter()
                .map(|w| (w.name.as_str(), is_on(&w.parameters, "binary_data").unwrap_or(all_binary)))
                .collect(),
        };
        for (name, binary) in wanted {
            let tensor = outputs.iter().find(|o| o.name == name);
            let tensor = tensor.ok_or_else(|| format!("the model has no output {name:?}"))?;
            let mut output = json!({"name": name, "datatype": "FP32", "shape": tensor.shape});
            if binary {
                output["parameters"] = json!({"binary_data_size": tensor.data.len() * 4});
                tail.extend(tensor.data.iter().flat_map(|v| v.to_le_bytes()));
            } else if tensor.data.iter().all(|v| v.is_finite()) {
                output["data"] = json!(tensor.data);
            } else {
                return Err(format!("output {name} has values that JSON cannot hold; ask for binary_data"));
            }
            described.push(output);
        }
        let mut head =
            json!({"model_name": model["name"], "model_version": model["versions"][0], "outputs": described});
        if let Some(id) = &self.head.id {
            head["id"] = json!(id);
        }
        let mut body = head.to_string().into_bytes();
        let length = (!tail.is_empty()).then_some(body.len());
        body.append(&mut tail);
        Ok((length, body))
    }
}

/// Numbers out of arrays nested as the shape is, or flat.
fn flatten(value: &Value, depth: usize, out: &mut Vec<f32>) -> Result<(), String> {
    match value {
        Value::Array(items) if depth < MAX_DEPTH => items.iter().try_for_each(|item| flatten(item, depth + 1, out)),
        Value::Number(n) => {
            out.push(n.as_f64().unwrap_or(f64::NAN) as f32);
            Ok(())
        }
        other => {
            Err(format!("data has {} where a number should be", other.to_string().chars().take(20).collect::<String>()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model() -> Value {
        json!({"name": "m", "versions": ["3"], "inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, 2, 1]}]})
    }

    fn window(body: &str) -> Result<Tensor, String> {
        Request::read(body.as_bytes(), None)?.window(&model(), 8)
    }

    #[test]
    fn windows_are_read_nested_and_flat() {
        for data in ["[[[1],[2]]]", "[1,2]"] {
            let body = format!(r#"{{"inputs":[{{"name":"window","shape":[1,2,1],"datatype":"FP32","data":{data}}}]}}"#);
            assert_eq!(window(&body).map(|w| w.data), Ok(vec![1.0, 2.0]));
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let body = |shape: &str, data: &str| {
            format!(r#"{{"inputs":[{{"name":"window","shape":{shape},"datatype":"FP32","data":{data}}}]}}"#)
        };
        for (body, reason) in [
            (body("[1,3,1]", "[1,2,3]"), "window has shape [1, 3, 1], the model takes [-1, 2, 1]"),
            (body("[1,2,1]", "[1]"), "window has 1 values, its shape says 2"),
            (body("[9,2,1]", "[1]"), "9 windows in a request; 1 to 8 are taken"),
            (body("[1,2,1]", "[1,\"x\"]"), "data has \"x\" where a number should be"),
            (body("[1,2,1]", "[1,1e39]"), "window has values that are not finite"),
            (body("[-1,2,1]", "[]"), "window has shape [-1, 2, 1], the model takes [-1, 2, 1]"),
            (r#"{"inputs":[]}"#.into(), "0 inputs were given, the model has one: window"),
        ] {
            assert_eq!(window(&body), Err(reason.to_owned()), "{body}");
        }
    }

    #[test]
    fn an_answer_has_the_id_and_what_was_asked_for() {
        let text = br#"{"id":"7","inputs":[],"outputs":[{"name":"b","parameters":{"binary_data":true}},{"name":"a"}]}"#;
        let request = Request::read(text, None).expect("a request");
        let tensor = |name: &str, v: f32| Tensor { name: name.into(), shape: vec![1], data: vec![v] };
        let (length, body) = request.answer(&model(), vec![tensor("a", 1.5), tensor("b", 2.5)]).expect("an answer");
        let (head, tail) = body.split_at(length.expect("binary"));
        assert_eq!(tail, 2.5_f32.to_le_bytes());
        let head: Value = serde_json::from_slice(head).expect("JSON");
        assert_eq!(
            head,
            json!({"model_name": "m", "model_version": "3", "id": "7", "outputs": [
                {"name": "b", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
                {"name": "a", "datatype": "FP32", "shape": [1], "data": [1.5]},
            ]})
        );
        let (length, body) = Request::read(br#"{"inputs":[]}"#, None)
            .expect("a request")
            .answer(&model(), vec![tensor("a", 1.0)])
            .expect("an answer");
        assert_eq!(
            (length, serde_json::from_slice::<Value>(&body).expect("JSON")["outputs"][0]["data"][0].as_f64()),
            (None, Some(1.0))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body: Vec<u8>, head in proptest::option::of(0_usize..300)) {
            if let Ok(request) = Request::read(&body, head) {
                let _ = request.window(&model(), 8);
            }
        }

        #[test]
        fn binary_windows_come_in_as_they_are(values in prop::collection::vec(-1e30_f32..1e30, 2..=2)) {
            let head = r#"{"inputs":[{"name":"window","shape":[1,2,1],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
            let mut body = head.as_bytes().to_vec();
            body.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let window = Request::read(&body, Some(head.len())).and_then(|r| r.window(&model(), 8));
            prop_assert_eq!(window.map(|w| w.data), Ok(values));
        }
    }
}
