//! The only place that knows tract: an ONNX graph bound to one batch size, optimised once, shared.
//! One size for all keeps answers bit for bit the same whatever a window is batched with.

use std::collections::BTreeMap;
use std::io::Cursor;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::unimpl::UnimplementedOp;
use tract_onnx::tract_hir::infer::Factoid;

use super::ModelError;
use super::bundle::{Golden, Manifest, TensorData};

/// Windows in a batch; a shorter one is padded. Batches above 32 gain nothing, and eight keep the
/// cost of a lonely window low.
const BATCH: usize = 8;

type Plan = Arc<TypedRunnableModel>;

/// A graph ready to run.
pub struct Session {
    plan: Plan,
    outputs: Vec<String>,
    steps: usize,
    channels: usize,
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

impl Session {
    /// Builds the plan. Errors name what is missing.
    pub fn build(onnx: &[u8], manifest: &Manifest) -> Result<Session, ModelError> {
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
        if inputs != ["window"] {
            let message = format!("its inputs are {}, but exactly one, `window`, is supported", inputs.join(", "));
            return Err(ModelError::Graph(message));
        }
        let (steps, channels) = (manifest.steps, manifest.channels.len());
        refuse_other_shape(&graph, steps, channels)?;
        // The batch is bound before analysis: torch LSTMs fail with a symbolic one.
        let fact = InferenceFact::dt_shape(f32::datum_type(), tvec!(BATCH, steps, channels));
        graph.set_input_fact(0, fact).map_err(|e| graph_error("its input cannot be bound", &e))?;
        for i in 0..outputs.len() {
            graph.set_output_fact(i, InferenceFact::default()).map_err(|e| graph_error("its outputs", &e))?;
        }
        let plan = graph
            .into_optimized()
            .and_then(|m| m.into_runnable())
            .map_err(|e| graph_error(&format!("it does not fit a window of [{steps}, {channels}]"), &e))?;
        let session = Session { plan, outputs, steps, channels };
        session.check_outputs(manifest)?;
        Ok(session)
    }

    /// Windows in a batch.
    pub fn batch(&self) -> usize {
        BATCH
    }

    /// Runs up to [`Session::batch`] windows, each flat [steps × channels].
    pub fn run(&self, windows: &[&[f32]]) -> Result<Outputs, ModelError> {
        let len = self.steps * self.channels;
        if windows.len() > BATCH || windows.iter().any(|w| w.len() != len) {
            return Err(ModelError::Graph(format!("a batch of {} windows does not fit", windows.len())));
        }
        let mut input = Vec::with_capacity(BATCH * len);
        windows.iter().for_each(|w| input.extend_from_slice(w));
        input.resize(BATCH * len, 0.0);
        let run = || -> TractResult<Outputs> {
            let tensor = Tensor::from_shape(&[BATCH, self.steps, self.channels], &input)?;
            // A fresh state each time: a reused one carries hidden state into the next window.
            let results = self.plan.run(tvec!(tensor.into()))?;
            let mut parts = BTreeMap::new();
            for (name, value) in self.outputs.iter().zip(results) {
                let value = value.cast_to::<f32>()?.into_owned();
                let flat = value.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
                parts.insert(name.clone(), (flat.len() / BATCH, flat));
            }
            Ok(Outputs { parts })
        };
        run().map_err(|e| graph_error("a run failed", &e))
    }

    /// Replays the golden cases.
    pub fn self_test(&self, cases: &[Golden]) -> Result<(), ModelError> {
        for (n, case) in cases.iter().enumerate() {
            self.replay(case).map_err(|e| ModelError::Golden(format!("case {}: {e}", n + 1)))?;
        }
        Ok(())
    }

    fn replay(&self, case: &Golden) -> Result<(), String> {
        let input = case.request.inputs.iter().find(|t| t.name == "window").ok_or("has no input `window`")?;
        let flat = input.flat();
        let len = self.steps * self.channels;
        if flat.is_empty() || flat.len() % len != 0 {
            return Err(format!("its window has {} values, not a multiple of {len}", flat.len()));
        }
        let rows: Vec<&[f32]> = flat.chunks(len).collect();
        for (b, batch) in rows.chunks(BATCH).enumerate() {
            let got = self.run(batch).map_err(|e| e.to_string())?;
            for expected in &case.response.outputs {
                self.compare(expected, &got, b * BATCH, batch.len(), rows.len(), case)?;
            }
        }
        Ok(())
    }

    fn compare(
        &self,
        expected: &TensorData,
        got: &Outputs,
        first: usize,
        n: usize,
        total: usize,
        case: &Golden,
    ) -> Result<(), String> {
        let want = expected.flat();
        let part = want.len() / total.max(1);
        for i in 0..n {
            let found = got.of(&expected.name, i).ok_or_else(|| format!("has no output `{}`", expected.name))?;
            let want = &want[(first + i) * part..(first + i + 1) * part];
            if found.len() != want.len() {
                return Err(format!("output `{}` has {} values, not {}", expected.name, found.len(), want.len()));
            }
            let off = |(f, w): (&f32, &f32)| {
                let (f, w) = (f64::from(*f), f64::from(*w));
                f.is_nan() || (f - w).abs() > case.atol + case.rtol * w.abs()
            };
            if let Some(at) = found.iter().zip(want).position(off) {
                return Err(format!("output `{}` gave {} where {} is right", expected.name, found[at], want[at]));
            }
        }
        Ok(())
    }

    fn check_outputs(&self, manifest: &Manifest) -> Result<(), ModelError> {
        let zeros = vec![0.0; self.steps * self.channels];
        let (steps, channels) = (self.steps, self.channels);
        let fit = |e| ModelError::Graph(format!("it does not fit a window of [{steps}, {channels}]: {e}"));
        let trial = self.run(&[&zeros]).map_err(fit)?;
        let needs = super::explain::needed_output(manifest.task);
        let Some(part) = trial.of(needs, 0) else {
            let message = format!("task needs an output `{needs}`, but it has {}", self.outputs.join(", "));
            return Err(ModelError::Graph(message));
        };
        super::explain::check_shape(manifest, part.len()).map_err(ModelError::Graph)
    }
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

/// Binding the input would override what the graph declares, and a graph may well compute something
/// on a window it was not made for.
fn refuse_other_shape(graph: &InferenceModel, steps: usize, channels: usize) -> Result<(), ModelError> {
    let declared = graph.input_fact(0).map_err(|e| graph_error("its input", &e))?;
    let rank = declared.shape.rank().concretize();
    let dims = declared.shape.dims().map(|d| d.concretize().and_then(|d| d.to_i64().ok()));
    let wanted = [None, Some(steps as i64), Some(channels as i64)];
    let differs = |(is, wants): (Option<i64>, Option<i64>)| is.zip(wants).is_some_and(|(is, wants)| is != wants);
    if rank.is_some_and(|rank| rank != 3) || dims.zip(wanted).any(differs) {
        let shape = &declared.shape;
        return Err(ModelError::Graph(format!("its input is {shape:?}, not a window of [{steps}, {channels}]")));
    }
    Ok(())
}

fn graph_error(what: &str, e: &TractError) -> ModelError {
    ModelError::Graph(format!("{what}: {e:#}"))
}
