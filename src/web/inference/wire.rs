//! Requests and answers of the Open Inference Protocol as bytes: JSON, and JSON followed by
//! little-endian tensors. What is parsed of a request takes at most some four bytes for each of its own.

use std::fmt;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metrics::printable;

/// How long the JSON at the beginning of a binary body is.
pub const LENGTH_HEADER: &str = "inference-header-content-length";
/// Nested arrays deeper than a window's shape are nonsense.
const MAX_DEPTH: usize = 4;
/// Inputs of a request: models here have one.
const MAX_INPUTS: usize = 4;
/// Dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;
/// Outputs that a request asks for by name.
pub const MAX_OUTPUTS: usize = 32;
/// The longest id of a request, in bytes: it is repeated in the answer.
const MAX_ID_BYTES: usize = 256;
/// Bytes of an answer. A request that would get more is refused.
pub const MAX_ANSWER_BYTES: usize = 48 << 20;
/// Bytes of a name that an error shows.
const MAX_SHOWN_BYTES: usize = 80;
/// The most that a value takes in a JSON answer.
const JSON_VALUE_BYTES: usize = 16;

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

/// A list of at most `N`.
#[derive(Debug)]
struct AtMost<T, const N: usize>(Vec<T>);

impl<T, const N: usize> Default for AtMost<T, N> {
    fn default() -> Self {
        AtMost(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const N: usize>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {N}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut out = Vec::new();
                while let Some(item) = items.next_element()? {
                    if out.len() == N {
                        return Err(A::Error::custom(format_args!("a list has more than {N} entries")));
                    }
                    out.push(item);
                }
                Ok(out)
            }
        }
        deserializer.deserialize_seq(List::<T, N>(std::marker::PhantomData)).map(AtMost)
    }
}

/// Numbers out of arrays nested as the shape is, or flat.
#[derive(Debug)]
struct Numbers(Vec<f32>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut out = Vec::new();
        deserializer.deserialize_any(Flatten { depth: 0, out: &mut out })?;
        Ok(Numbers(out))
    }
}

struct Flatten<'o> {
    depth: usize,
    out: &'o mut Vec<f32>,
}

impl<'de> serde::de::DeserializeSeed<'de> for Flatten<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flatten<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number in data")
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
        if self.depth == MAX_DEPTH {
            return Err(A::Error::custom(format_args!("data is nested deeper than {MAX_DEPTH}")));
        }
        let depth = self.depth + 1;
        while items.next_element_seed(Flatten { depth, out: &mut *self.out })?.is_some() {}
        Ok(())
    }
}

/// The parameters that are known. Others are skipped.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    /// Of a request: all outputs in binary.
    binary_data_output: Option<bool>,
    /// Of an output: this one in binary.
    binary_data: Option<bool>,
    /// Of an input: bytes behind the JSON.
    binary_data_size: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Input {
    name: String,
    shape: AtMost<i64, MAX_DIMENSIONS>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Numbers>,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Debug, Deserialize)]
struct Head {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: AtMost<Input, MAX_INPUTS>,
    #[serde(default)]
    outputs: AtMost<Wanted, MAX_OUTPUTS>,
}

#[derive(Serialize)]
struct Answer<'a> {
    model_name: &'a Value,
    model_version: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a [f32]>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
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
        let request = Request { head, binary };
        match &request.head.id {
            Some(id) if id.len() > MAX_ID_BYTES => Err(format!("the id has more than {MAX_ID_BYTES} bytes")),
            _ => Ok(request),
        }
    }

    /// Checks the outputs that are asked for, before anything is computed: each is one of the model's and is
    /// named once.
    pub fn check_outputs(&self, model: &Value) -> Result<(), String> {
        let declared = model["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (n, wanted) in self.head.outputs.0.iter().enumerate() {
            let name = printable(&wanted.name, MAX_SHOWN_BYTES);
            if !declared.iter().any(|output| output["name"] == wanted.name.as_str()) {
                return Err(format!("the model has no output \"{name}\""));
            }
            if self.head.outputs.0[..n].iter().any(|before| before.name == wanted.name) {
                return Err(format!("output \"{name}\" is asked for twice"));
            }
        }
        Ok(())
    }

    /// The one input `window`, checked against the model's metadata.
    pub fn window(&self, model: &Value, most: usize) -> Result<Tensor, String> {
        let [input] = self.head.inputs.0.as_slice() else {
            return Err(format!("{} inputs were given, the model has one: window", self.head.inputs.0.len()));
        };
        if input.name != "window" || input.datatype != "FP32" {
            let shown = |text: &str| printable(text, MAX_SHOWN_BYTES);
            let (name, datatype) = (shown(&input.name), shown(&input.datatype));
            return Err(format!("input {name} of {datatype} was given, the model has window of FP32"));
        }
        let declared: Vec<i64> =
            model["inputs"][0]["shape"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        let fits = input.shape.0.len() == declared.len()
            && input.shape.0.iter().zip(&declared).all(|(given, wanted)| given == wanted || *wanted == -1);
        let shape: Option<Vec<usize>> = input.shape.0.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some(shape) = shape.filter(|_| fits) else {
            return Err(format!("window has shape {:?}, the model takes {declared:?}", input.shape.0));
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
        match (&input.data, input.parameters.binary_data_size) {
            (Some(data), None) => Ok(data.0.clone()),
            (None, Some(size)) => {
                let bytes = self.binary.get(..size).filter(|_| size % 4 == 0);
                let bytes = bytes.ok_or("binary_data_size does not fit the body")?;
                Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            _ => Err("an input has either data or binary_data_size".into()),
        }
    }

    /// The answer: how long its JSON is where tensors follow, and the body.
    pub fn answer(&self, model: &Value, outputs: Vec<Tensor>) -> Result<(Option<usize>, Vec<u8>), String> {
        let all_binary = self.head.parameters.binary_data_output.unwrap_or(false);
        let wanted: Vec<(&str, bool)> = match self.head.outputs.0.as_slice() {
            [] => outputs.iter().map(|o| (o.name.as_str(), all_binary)).collect(),
            some => some.iter().map(|w| (w.name.as_str(), w.parameters.binary_data.unwrap_or(all_binary))).collect(),
        };
        let (mut described, mut tail, mut bytes) = (Vec::new(), Vec::new(), 0_usize);
        for (name, binary) in wanted {
            let tensor = outputs.iter().find(|o| o.name == name);
            let tensor = tensor.ok_or_else(|| format!("the model has no output {name:?}"))?;
            bytes += tensor.data.len() * if binary { 4 } else { JSON_VALUE_BYTES };
            if bytes > MAX_ANSWER_BYTES {
                return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes; ask for fewer windows"));
            }
            let mut output = Output { name, datatype: "FP32", shape: &tensor.shape, parameters: None, data: None };
            if binary {
                output.parameters = Some(BinarySize { binary_data_size: tensor.data.len() * 4 });
                tail.extend(tensor.data.iter().flat_map(|v| v.to_le_bytes()));
            } else if tensor.data.iter().all(|v| v.is_finite()) {
                output.data = Some(&tensor.data);
            } else {
                return Err(format!("output {name} has values that JSON cannot hold; ask for binary_data"));
            }
            described.push(output);
        }
        let (model_name, model_version) = (&model["name"], &model["versions"][0]);
        let head = Answer { model_name, model_version, id: self.head.id.as_deref(), outputs: described };
        let mut body = serde_json::to_vec(&head).map_err(|e| e.to_string())?;
        let length = (!tail.is_empty()).then_some(body.len());
        body.append(&mut tail);
        Ok((length, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

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
            (body("[1,2,1]", "[1,1e39]"), "window has values that are not finite"),
            (body("[-1,2,1]", "[]"), "window has shape [-1, 2, 1], the model takes [-1, 2, 1]"),
            (r#"{"inputs":[]}"#.into(), "0 inputs were given, the model has one: window"),
        ] {
            assert_eq!(window(&body), Err(reason.to_owned()), "{body}");
        }
    }

    #[test]
    fn what_would_multiply_is_refused() {
        let model = json!({"outputs": [{"name": "a"}, {"name": "b"}]});
        let check = |outputs: &str| {
            let body = format!(r#"{{"inputs":[],"outputs":[{outputs}]}}"#);
            Request::read(body.as_bytes(), None)?.check_outputs(&model)
        };
        let a = r#"{"name":"a"}"#;
        assert_eq!(check(r#"{"name":"a"},{"name":"b"}"#), Ok(()));
        assert_eq!(check(&format!("{a},{a}")), Err("output \"a\" is asked for twice".into()));
        assert_eq!(check(r#"{"name":"c\n"}"#), Err("the model has no output \"c\\n\"".into()));
        let many = vec![a; MAX_OUTPUTS + 1].join(",");
        assert!(check(&many).expect_err("refused").contains("more than 32 entries"));
        for data in ["[[[[[1]]]]]", "[1,\"x\"]", "[null]", "{}"] {
            let body = format!(r#"{{"inputs":[{{"name":"window","shape":[1,2,1],"datatype":"FP32","data":{data}}}]}}"#);
            assert!(window(&body).is_err(), "{data}");
        }
        let body = format!(r#"{{"id":"{}","inputs":[]}}"#, "x".repeat(300));
        assert!(Request::read(body.as_bytes(), None).is_err());
        let shape = "1,".repeat(1000);
        let body = format!(r#"{{"inputs":[{{"name":"window","shape":[{shape}1],"datatype":"FP32"}}]}}"#);
        assert!(Request::read(body.as_bytes(), None).is_err());
    }

    #[test]
    fn an_answer_that_is_too_large_is_refused() {
        let request = Request::read(br#"{"inputs":[]}"#, None).expect("a request");
        let data = vec![0.0; MAX_ANSWER_BYTES / JSON_VALUE_BYTES + 1];
        let refused = request.answer(&model(), vec![Tensor { name: "a".into(), shape: vec![1], data }]);
        assert!(refused.expect_err("refused").contains("fewer windows"));
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
