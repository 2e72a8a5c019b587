//! The only place that knows tract: an ONNX graph bound to one batch size, optimised once, shared.
//! One size for all keeps answers bit for bit the same whatever a window is batched with.

use std::collections::BTreeMap;
use std::io::Cursor;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::unimpl::UnimplementedOp;
use tract_onnx::tract_hir::infer::Factoid;

use super::ModelError;
use super::bundle::{Golden, Manifest, TensorData};
use super::state;

/// Windows in a batch; a shorter one is padded. Batches above 32 gain nothing, and eight keep the
/// cost of a lonely window low.
const BATCH: usize = 8;

type Plan = Arc<TypedRunnableModel>;

/// A graph ready to run.
pub struct Session {
    plan: Plan,
    outputs: Vec<String>,
    /// For each of the graph's inputs: the window (`None`) or which state.
    inputs: Vec<Option<usize>>,
    states: Vec<state::Spec>,
    /// All states at the start, for padding and for golden cases that give none.
    initial: Vec<f32>,
    steps: usize,
    channels: usize,
    batch: usize,
}

/// What a run gave: each output flat, row-major, with the length of one window's part.
#[derive(Debug, Default)]
pub struct Outputs {
    parts: BTreeMap<String, (usize, Vec<f32>)>,
}

impl Outputs {
    /// The part of output `name` that belongs to window `i`.
    pub fn of(&self, name: &str, i: usize) -> Option<&[f32]> {
        let (len, all) = self.parts.get(name)?;
        all.get(i * len..(i + 1) * len)
    }
}

impl Outputs {
    /// Each output: its name, the length of one window's part, and the parts of the first `n` windows.
    pub fn parts(&self, n: usize) -> impl Iterator<Item = (&str, usize, &[f32])> {
        self.parts.iter().filter_map(move |(name, (len, all))| Some((name.as_str(), *len, all.get(..n * len)?)))
    }
}

impl Session {
    /// Builds the plan. Errors name what is missing.
    pub fn build(onnx: &[u8], manifest: &Manifest) -> Result<Session, ModelError> {
        Session::bound(onnx, manifest, BATCH)
    }

    /// The same for batches of another size, which is for measuring: the agent has but one, since an
    /// answer's last bits depend on it.
    pub fn bound(onnx: &[u8], manifest: &Manifest, batch: usize) -> Result<Session, ModelError> {
        let batch = batch.max(1);
        let mut graph = tract_onnx::onnx()
            .with_ignore_value_info(true)
            .model_for_read(&mut Cursor::new(onnx))
            .map_err(|e| graph_error("it is damaged or not ONNX", &e))?;
        refuse_unknown_operators(&graph)?;
        let names = |outlets: &[OutletId]| -> Vec<String> {
            let name = |o: &OutletId| graph.outlet_label(*o).unwrap_or(&graph.node(o.node).name).to_owned();
            outlets.iter().map(name).collect()
        };
        let outputs = names(graph.output_outlets().map_err(|e| graph_error("it has no outputs", &e))?);
        let inputs = names(graph.input_outlets().map_err(|e| graph_error("it has no inputs", &e))?);
        let (steps, channels) = (manifest.steps, manifest.channels.len());
        let inputs = bind_inputs(&mut graph, &inputs, manifest, batch)?;
        for i in 0..outputs.len() {
            graph.set_output_fact(i, InferenceFact::default()).map_err(|e| graph_error("its outputs", &e))?;
        }
        let plan = graph
            .into_optimized()
            .and_then(|m| m.into_runnable())
            .map_err(|e| graph_error(&format!("it does not fit a window of [{steps}, {channels}]"), &e))?;
        let states = manifest.states.clone();
        let initial = state::initial(&states);
        let session = Session { plan, outputs, inputs, states, initial, steps, channels, batch };
        session.check_outputs(manifest)?;
        Ok(session)
    }

    /// Windows in a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// All states at the start; empty for a model without.
    pub fn initial(&self) -> &[f32] {
        &self.initial
    }

    /// Runs up to [`Session::batch`] windows, each flat [steps × channels], each with its states
    /// one after the other.
    pub fn run(&self, windows: &[&[f32]], states: &[&[f32]]) -> Result<Outputs, ModelError> {
        let len = self.steps * self.channels;
        let fits = windows.iter().all(|w| w.len() == len) && states.iter().all(|s| s.len() == self.initial.len());
        if windows.len() > self.batch || states.len() != windows.len() || !fits {
            return Err(ModelError::Graph(format!("a batch of {} windows does not fit", windows.len())));
        }
        let run = || -> TractResult<Outputs> {
            // A fresh state each time: a reused one carries hidden state into the next window.
            let results = self.plan.run(self.tensors(windows, states)?)?;
            let mut parts = BTreeMap::new();
            for (name, value) in self.outputs.iter().zip(results) {
                let value = value.cast_to::<f32>()?.into_owned();
                let flat = value.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
                parts.insert(name.clone(), (flat.len() / self.batch, flat));
            }
            Ok(Outputs { parts })
        };
        run().map_err(|e| graph_error("a run failed", &e))
    }

    /// The states after window `i`, one after the other; `None` when they are not finite.
    pub fn next(&self, outputs: &Outputs, i: usize) -> Option<Vec<f32>> {
        let mut row = Vec::with_capacity(self.initial.len());
        for spec in &self.states {
            row.extend_from_slice(outputs.of(&spec.output, i)?);
        }
        row.iter().all(|v| v.is_finite()).then_some(row)
    }

    /// The graph's inputs, padded to a whole batch.
    fn tensors(&self, windows: &[&[f32]], states: &[&[f32]]) -> TractResult<TVec<TValue>> {
        let padding = self.batch - windows.len();
        let places: Vec<_> = state::places(&self.states).collect();
        let tensor = |input: &Option<usize>| -> TractResult<TValue> {
            let mut flat: Vec<f32> = Vec::new();
            let Some(state) = input else {
                windows.iter().for_each(|w| flat.extend_from_slice(w));
                flat.resize(self.batch * self.steps * self.channels, 0.0);
                return Ok(Tensor::from_shape(&[self.batch, self.steps, self.channels], &flat)?.into());
            };
            let (spec, place) = &places[*state];
            states.iter().for_each(|s| flat.extend_from_slice(&s[place.clone()]));
            (0..padding).for_each(|_| flat.extend_from_slice(&spec.initial));
            let shape: Vec<usize> = [self.batch].iter().chain(&spec.shape).copied().collect();
            Ok(Tensor::from_shape(&shape, &flat)?.into())
        };
        self.inputs.iter().map(tensor).collect()
    }

    /// Replays the golden cases; the first value that is off is an error.
    pub fn self_test(&self, cases: &[Golden]) -> Result<(), ModelError> {
        for (n, case) in cases.iter().enumerate() {
            self.replay(case, &mut |name, found, want| {
                let off = (f64::from(found) - f64::from(want)).abs();
                let allowed = case.atol + case.rtol * f64::from(want).abs();
                // Not `off > allowed`: what is not a number is off too.
                if off <= allowed { Ok(()) } else { Err(format!("output `{name}` gave {found} where {want} is right")) }
            })
            .map_err(|e| ModelError::Golden(format!("case {}: {e}", n + 1)))?;
        }
        Ok(())
    }

    /// Shows `each` every value that the golden cases ask for: the output's name, what it is here and
    /// what is right.
    pub fn replay(
        &self,
        case: &Golden,
        each: &mut dyn FnMut(&str, f32, f32) -> Result<(), String>,
    ) -> Result<(), String> {
        let input = case.request.inputs.iter().find(|t| t.name == "window").ok_or("has no input `window`")?;
        let flat = input.flat();
        let len = self.steps * self.channels;
        if flat.is_empty() || flat.len() % len != 0 {
            return Err(format!("its window has {} values, not a multiple of {len}", flat.len()));
        }
        let rows: Vec<&[f32]> = flat.chunks(len).collect();
        let states = self.golden_states(case, rows.len())?;
        let states: Vec<&[f32]> = states.iter().map(Vec::as_slice).collect();
        for (b, batch) in rows.chunks(self.batch).enumerate() {
            let got = self.run(batch, &states[b * self.batch..][..batch.len()]).map_err(|e| e.to_string())?;
            for expected in &case.response.outputs {
                compare(expected, &got, b * self.batch..b * self.batch + batch.len(), rows.len(), each)?;
            }
        }
        Ok(())
    }

    /// The states a case gives for each of its windows; those it does not give are at their start.
    fn golden_states(&self, case: &Golden, windows: usize) -> Result<Vec<Vec<f32>>, String> {
        let mut rows = vec![self.initial.clone(); windows];
        for (spec, place) in state::places(&self.states) {
            let Some(given) = case.request.inputs.iter().find(|t| t.name == spec.input) else { continue };
            let flat = given.flat();
            if flat.len() != windows * place.len() {
                let wanted = windows * place.len();
                return Err(format!("its `{}` has {} values, not {wanted}", spec.input, flat.len()));
            }
            for (row, part) in rows.iter_mut().zip(flat.chunks(place.len())) {
                row[place.clone()].copy_from_slice(part);
            }
        }
        Ok(rows)
    }

    fn check_outputs(&self, manifest: &Manifest) -> Result<(), ModelError> {
        let zeros = vec![0.0; self.steps * self.channels];
        let (steps, channels) = (self.steps, self.channels);
        let fit = |e| ModelError::Graph(format!("it does not fit a window of [{steps}, {channels}]: {e}"));
        let trial = self.run(&[&zeros], &[&self.initial]).map_err(fit)?;
        for spec in &self.states {
            let (wanted, found) = (spec.initial.len(), trial.of(&spec.output, 0).map(<[f32]>::len));
            if found != Some(wanted) {
                let found = found.map_or("is not there".into(), |n| format!("has {n} values for a window"));
                return Err(ModelError::Graph(format!("output `{}` {found}; it needs {wanted}", spec.output)));
            }
        }
        let needs = super::explain::needed_output(manifest.task);
        let Some(part) = trial.of(needs, 0) else {
            let message = format!("task needs an output `{needs}`, but it has {}", self.outputs.join(", "));
            return Err(ModelError::Graph(message));
        };
        super::explain::check_shape(manifest, part.len()).map_err(ModelError::Graph)
    }
}

/// Shows `each` the values of one output for the windows `range` of a case that has `total`.
fn compare(
    expected: &TensorData,
    got: &Outputs,
    range: std::ops::Range<usize>,
    total: usize,
    each: &mut dyn FnMut(&str, f32, f32) -> Result<(), String>,
) -> Result<(), String> {
    let want = expected.flat();
    let part = want.len() / total.max(1);
    for (i, window) in range.enumerate() {
        let name = &expected.name;
        let found = got.of(name, i).ok_or_else(|| format!("has no output `{name}`"))?;
        let want = &want[window * part..(window + 1) * part];
        if found.len() != want.len() {
            return Err(format!("output `{name}` has {} values, not {}", found.len(), want.len()));
        }
        found.iter().zip(want).try_for_each(|(f, w)| each(name, *f, *w))?;
    }
    Ok(())
}

fn refuse_unknown_operators(graph: &InferenceModel) -> Result<(), ModelError> {
    let unknown = graph.nodes().iter().filter(|n| n.op_is::<UnimplementedOp>());
    // tract keeps the operator's own name within "Unimplemented(NAME)".
    let bare = |name: &str| name.trim_start_matches("Unimplemented(").trim_end_matches(')').to_owned();
    let mut missing: Vec<String> = unknown.map(|n| bare(&n.op.name())).collect();
    missing.sort();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { Err(ModelError::Operators(missing.join(", "))) }
}

/// Binds every input to its whole shape, and says which of the manifest's states each one is. The
/// batch is bound before analysis: torch LSTMs fail with a symbolic one.
fn bind_inputs(
    graph: &mut InferenceModel,
    names: &[String],
    manifest: &Manifest,
    batch: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let (steps, channels) = (manifest.steps, manifest.channels.len());
    let mut kinds = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let state = manifest.states.iter().position(|s| s.input == *name);
        let shape: Vec<usize> = match state {
            Some(at) => manifest.states[at].shape.clone(),
            None if name == "window" => vec![steps, channels],
            None => {
                let known = manifest.inputs.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(ModelError::Graph(format!("its input `{name}` is not one of model.json's: {known}")));
            }
        };
        refuse_other_shape(graph, i, name, &shape)?;
        let shape: TVec<usize> = [batch].into_iter().chain(shape).collect();
        let fact = InferenceFact::dt_shape(f32::datum_type(), shape);
        graph.set_input_fact(i, fact).map_err(|e| graph_error("its input cannot be bound", &e))?;
        kinds.push(state);
    }
    let missing = manifest.inputs.iter().find(|t| !names.contains(&t.name));
    match missing {
        Some(t) => Err(ModelError::Graph(format!("it has no input `{}`, which model.json names", t.name))),
        None => Ok(kinds),
    }
}

/// Binding an input would override what the graph declares, and a graph may well compute something
/// on a shape it was not made for.
fn refuse_other_shape(graph: &InferenceModel, input: usize, name: &str, shape: &[usize]) -> Result<(), ModelError> {
    let declared = graph.input_fact(input).map_err(|e| graph_error("its input", &e))?;
    let rank = declared.shape.rank().concretize();
    let dims = declared.shape.dims().map(|d| d.concretize().and_then(|d| d.to_i64().ok()));
    let wanted = std::iter::once(None).chain(shape.iter().map(|d| Some(*d as i64)));
    let differs = |(is, wants): (Option<i64>, Option<i64>)| is.zip(wants).is_some_and(|(is, wants)| is != wants);
    if rank.is_some_and(|rank| rank != 1 + shape.len() as i64) || dims.zip(wanted).any(differs) {
        let is = &declared.shape;
        return Err(ModelError::Graph(format!("its input {name} is {is:?}, not of {shape:?} as model.json says")));
    }
    Ok(())
}

fn graph_error(what: &str, e: &TractError) -> ModelError {
    ModelError::Graph(format!("{what}: {e:#}"))
}
