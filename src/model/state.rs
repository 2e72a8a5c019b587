//! What a model keeps from one window to the next: graph inputs `state_NAME` fed from the outputs
//! `state_NAME_next`. Kept per machine by the engine as one flat row; here is how it is laid out.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::bundle::Tensor;

/// The most values that all states of one machine may have together: each machine's are part of
/// every snapshot.
const MAX_VALUES: usize = 1 << 16;
/// What the names of state inputs begin with.
const PREFIX: &str = "state_";
/// What is added to them to name the output.
const NEXT: &str = "_next";

/// A state's entry under `state` in `model.json`; without one it starts at zero and is never held.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Values at the start, row-major without the batch axis.
    #[serde(default)]
    initial: Option<Vec<f32>>,
    /// When it is held still, beyond the times in which nothing is scored.
    #[serde(default)]
    hold: Hold,
}

/// When a state does not follow the model.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// It always follows.
    #[default]
    Never,
    /// It rests while the machine is in alarm or the verdict is an anomaly: a baseline must not
    /// learn the fault.
    Anomaly,
}

/// One state.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The graph's input.
    pub input: String,
    /// The graph's output.
    pub output: String,
    /// Its shape without the batch axis.
    pub shape: Vec<usize>,
    /// Values at the start, as many as the shape holds.
    pub initial: Vec<f32>,
    /// When it is held still.
    pub hold: Hold,
}

/// The states that a manifest names, in the order of its inputs. `Err` says what is wrong.
pub fn read(inputs: &[Tensor], outputs: &[Tensor], written: &BTreeMap<String, Written>) -> Result<Vec<Spec>, String> {
    let mut specs = Vec::new();
    for tensor in inputs.iter().filter(|t| t.name != "window") {
        specs.push(spec(tensor, outputs, written)?);
    }
    let named = |name: &String| specs.iter().any(|s| s.input[PREFIX.len()..] == **name);
    if let Some(unknown) = written.keys().find(|name| !named(name)) {
        return Err(format!("`state` names {unknown:?}, but `inputs` has no `{PREFIX}{unknown}`"));
    }
    let values: usize = specs.iter().map(|s| s.initial.len()).sum();
    if values > MAX_VALUES {
        return Err(format!("its states have {values} values together; {MAX_VALUES} are the most"));
    }
    Ok(specs)
}

fn spec(tensor: &Tensor, outputs: &[Tensor], written: &BTreeMap<String, Written>) -> Result<Spec, String> {
    let input = &tensor.name;
    let Some(name) = input.strip_prefix(PREFIX) else {
        return Err(format!(
            "input `{input}` is not known: there are `window` and states, whose names begin with `{PREFIX}`"
        ));
    };
    let sizes = tensor.shape.get(1..).unwrap_or_default().iter();
    let shape: Option<Vec<usize>> = sizes.map(|d| usize::try_from(*d).ok().filter(|d| *d > 0)).collect();
    let batched = tensor.shape.first() == Some(&-1);
    let Some(shape) = shape.filter(|_| batched) else {
        return Err(format!("input `{input}` has shape {:?}; it has to be [-1, …] with fixed sizes", tensor.shape));
    };
    let values = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_VALUES);
    let Some(values) = values else {
        return Err(format!("input `{input}` has shape {shape:?}, more than {MAX_VALUES} values"));
    };
    let output = format!("{input}{NEXT}");
    match outputs.iter().find(|t| t.name == output) {
        None => return Err(format!("`outputs` has no `{output}` for the input `{input}`")),
        Some(t) if t.shape != tensor.shape => {
            return Err(format!("output `{output}` has shape {:?}, its input {:?}", t.shape, tensor.shape));
        }
        Some(_) => {}
    }
    let written = written.get(name).cloned().unwrap_or_default();
    let initial = written.initial.unwrap_or_else(|| vec![0.0; values]);
    if initial.len() != values || initial.iter().any(|v| !v.is_finite()) {
        let found = initial.len();
        return Err(format!("`state.{name}.initial` has {found} values; it has to have {values}, all finite"));
    }
    Ok(Spec { input: input.clone(), output, shape, initial, hold: written.hold })
}

/// All states at the start, one after the other.
pub fn initial(specs: &[Spec]) -> Vec<f32> {
    specs.iter().flat_map(|s| s.initial.iter().copied()).collect()
}

/// Each state's place in the flat row.
pub fn places(specs: &[Spec]) -> impl Iterator<Item = (&Spec, std::ops::Range<usize>)> {
    specs.iter().scan(0, |at, s| {
        let from = *at;
        *at += s.initial.len();
        Some((s, from..*at))
    })
}

/// The row that follows `old` when the model gave `next`: what is held keeps its old values.
pub fn follow(specs: &[Spec], old: &mut Vec<f32>, next: Vec<f32>, in_alarm: bool) {
    if old.len() != next.len() || !in_alarm {
        *old = next;
        return;
    }
    for (_, place) in places(specs).filter(|(s, _)| s.hold == Hold::Never) {
        old[place.clone()].copy_from_slice(&next[place]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[i64]) -> Tensor {
        Tensor { name: name.into(), datatype: "FP32".into(), shape: shape.to_vec() }
    }

    fn written(text: &str) -> BTreeMap<String, Written> {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn states_are_laid_out_one_after_the_other() {
        let inputs = [tensor("state_h", &[-1, 2, 3]), tensor("window", &[-1, 1, 4]), tensor("state_base", &[-1, 2])];
        let outputs = [tensor("state_base_next", &[-1, 2]), tensor("state_h_next", &[-1, 2, 3])];
        let specs =
            read(&inputs, &outputs, &written(r#"{"base": {"initial": [1, 2], "hold": "anomaly"}}"#)).expect("good");
        assert_eq!(initial(&specs), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        let mut row = initial(&specs);
        follow(&specs, &mut row, vec![9.0; 8], true);
        assert_eq!(row, [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0], "the baseline rests while in alarm");
        follow(&specs, &mut row, vec![7.0; 8], false);
        assert_eq!(row, [7.0; 8]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        let refused = |inputs: &[Tensor], outputs: &[Tensor], text: &str| {
            read(inputs, outputs, &written(text)).expect_err("refused")
        };
        let h = tensor("state_h", &[-1, 2]);
        let next = tensor("state_h_next", &[-1, 2]);
        assert!(refused(&[tensor("noise", &[-1, 2])], &[], "{}").contains("`noise` is not known"));
        assert!(refused(&[tensor("state_h", &[1, 2])], std::slice::from_ref(&next), "{}").contains("[-1, …]"));
        assert!(refused(&[tensor("state_h", &[-1, -1])], std::slice::from_ref(&next), "{}").contains("fixed sizes"));
        assert!(
            refused(&[tensor("state_h", &[-1, i64::MAX, 4])], std::slice::from_ref(&next), "{}").contains("more than")
        );
        assert!(refused(std::slice::from_ref(&h), &[], "{}").contains("no `state_h_next`"));
        assert!(refused(std::slice::from_ref(&h), &[tensor("state_h_next", &[-1, 3])], "{}").contains("its input"));
        assert!(
            refused(std::slice::from_ref(&h), std::slice::from_ref(&next), r#"{"h": {"initial": [1]}}"#)
                .contains("has to have 2")
        );
        assert!(refused(&[h], &[next], r#"{"b": {}}"#).contains("no `state_b`"));
    }
}
