//! Writing a fitted detector as an ONNX graph, so that it is run by the same path as any other.

use prost::Message;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto, type_proto,
};

use super::aspects::STILL;
use super::fit::{Fitted, PATIENCE, RECEDED};

/// A node of a graph.
pub(super) type Node = NodeProto;
/// A constant of a graph.
pub(super) type Constant = TensorProto;

/// ONNX opset: ReduceMean still takes its axes as an attribute.
const OPSET: i64 = 17;
/// ONNX data type FLOAT.
pub(super) const FLOAT: i32 = 1;
/// ONNX data type INT64.
const WHOLE: i32 = 7;

/// The graph: `window` `[N, steps, channels]`, `state_baseline` and `state_fault`
/// `[N, 2 × channels]`, `state_phase` `[N, 4]` (alarm, settling, fresh, patience) to `score` `[N]`,
/// `contributions` `[N, channels]` and the states after it: [`Fitted::step`], with 0 and 1 for no
/// and yes.
pub fn onnx(fitted: &Fitted) -> Vec<u8> {
    let (steps, n) = (fitted.steps as i64, fitted.mean.len() as i64);
    let (all, both, four) = ([n], [2 * n], [4]);
    let inputs =
        [("window", &[steps, n][..]), ("state_baseline", &both), ("state_fault", &both), ("state_phase", &four)];
    let outputs = [
        ("score", &[][..]),
        ("contributions", &all),
        ("state_baseline_next", &both),
        ("state_fault_next", &both),
        ("state_phase_next", &four),
    ];
    let nodes = [aspects(steps), distances(), phases(), states()].concat();
    model("adaptive_mahalanobis", nodes, constants(fitted), &inputs, &outputs)
}

/// A model of these nodes; inputs and outputs by name and shape without the batch axis, which is free.
pub(super) fn model(
    name: &str,
    nodes: Vec<Node>,
    constants: Vec<Constant>,
    inputs: &[(&str, &[i64])],
    outputs: &[(&str, &[i64])],
) -> Vec<u8> {
    let free = |(name, rest): &(&str, &[i64])| {
        value(name, &[&[None], &rest.iter().map(|d| Some(*d)).collect::<Vec<_>>()[..]].concat())
    };
    let graph = GraphProto {
        name: name.into(),
        node: nodes,
        initializer: constants,
        input: inputs.iter().map(free).collect(),
        output: outputs.iter().map(free).collect(),
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        producer_name: "andon".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

fn constants(fitted: &Fitted) -> Vec<TensorProto> {
    let n = fitted.mean.len();
    let scale: Vec<f64> = fitted.std.iter().map(|s| 1.0 / s).collect();
    // Restlessness does not wander.
    let slow: Vec<f64> = fitted.slow.iter().chain(&vec![false; n]).map(|s| f64::from(u8::from(*s))).collect();
    let relief: Vec<f64> = fitted.precision.iter().step_by(2 * n + 1).map(|p| 1.0 / p).collect();
    let scalar = |name: &str, value: f64| tensor(name, &[], &[value]);
    vec![
        tensor("mean", &[n], &fitted.mean),
        tensor("scale", &[n], &scale),
        tensor("slow", &[2 * n], &slow),
        tensor("rates", &[2 * n], &fitted.rates),
        tensor("precision", &[2 * n, 2 * n], &fitted.precision),
        tensor("relief", &[2 * n], &relief),
        scalar("still", STILL),
        whole("axis", 1),
        whole("first", 0),
        whole("second", 1),
        whole("last", fitted.steps as i64 - 1),
        whole("end", fitted.steps as i64),
        scalar("limit", fitted.limit),
        scalar("calm", fitted.calm()),
        scalar("held", fitted.held()),
        scalar("cleared", fitted.cleared()),
        scalar("most_patience", fitted.patience()),
        scalar("a_step", PATIENCE),
        // Patience comes in whole numbers: this is between the last that is left and none.
        scalar("none_left", -0.5),
        scalar("established", fitted.established()),
        scalar("receded", RECEDED),
        scalar("settling_rate", fitted.settling_rate),
        scalar("settling_steps", fitted.settling),
        scalar("fault_rate", 1.0 / fitted.steps as f64),
        scalar("zero", 0.0),
        scalar("half", 0.5),
        scalar("one", 1.0),
    ]
}

/// From the window to levels and restlessness.
fn aspects(steps: i64) -> Vec<NodeProto> {
    let over_rows = || vec![ints("axes", &[1]), int("keepdims", 0)];
    let moves = if steps > 1 {
        vec![
            node("Slice", &["scaled", "first", "last", "axis"], "earlier"),
            node("Slice", &["scaled", "second", "end", "axis"], "later"),
            node("Sub", &["later", "earlier"], "moves"),
            node("Abs", &["moves"], "moved"),
            op("ReduceMean", &["moved"], "restless", over_rows()),
        ]
    } else {
        // A single row stands still.
        vec![node("Sub", &["levels", "levels"], "restless")]
    };
    let begin = vec![
        node("Sub", &["window", "mean"], "centred"),
        node("Mul", &["centred", "scale"], "scaled"),
        op("ReduceMean", &["scaled"], "levels", over_rows()),
    ];
    let end = vec![
        node("Add", &["restless", "still"], "not_still"),
        node("Log", &["not_still"], "unrest"),
        op("Concat", &["levels", "unrest"], "aspects", vec![int("axis", 1)]),
    ];
    [begin, moves, end].concat()
}

/// From those to the distance from the baseline, and what is left of a fault.
fn distances() -> Vec<NodeProto> {
    let mean = || vec![ints("axes", &[1]), int("keepdims", 1)];
    let split = || vec![int("axis", 1)];
    vec![
        several("Split", &["state_phase"], &["alarm", "settling", "fresh", "patience"], split()),
        // At the start slow channels are taken as they are found.
        node("Mul", &["slow", "fresh"], "found"),
        node("Sub", &["aspects", "state_baseline"], "way"),
        node("Mul", &["found", "way"], "jump"),
        node("Add", &["state_baseline", "jump"], "baseline"),
        node("Sub", &["aspects", "baseline"], "off"),
        node("MatMul", &["off", "precision"], "pulled"),
        node("Mul", &["off", "pulled"], "parts"),
        several("Split", &["parts"], &["level_parts", "unrest_parts"], split()),
        op("ReduceMean", &["level_parts"], "level_squared", mean()),
        op("ReduceMean", &["unrest_parts"], "unrest_squared", mean()),
        node("Max", &["level_squared", "unrest_squared", "zero"], "squared"),
        node("Sqrt", &["squared"], "raw"),
        node("Greater", &["unrest_squared", "level_squared"], "is_unrest"),
        node("Mul", &["pulled", "pulled"], "pulled_squared"),
        node("Mul", &["pulled_squared", "relief"], "blame"),
        several("Split", &["blame"], &["level_blame", "unrest_blame"], split()),
        node("Where", &["is_unrest", "unrest_blame", "level_blame"], "contributions"),
        // Whether it is over the limit, and what is left of the fault along its own direction.
        node("Greater", &["raw", "limit"], "is_over"),
        op("Cast", &["is_over"], "over", float()),
        node("MatMul", &["state_fault", "precision"], "fault_pulled"),
        node("Mul", &["off", "fault_pulled"], "left_parts"),
        op("ReduceMean", &["left_parts"], "left", mean()),
        node("Mul", &["state_fault", "fault_pulled"], "fault_parts"),
        op("ReduceMean", &["fault_parts"], "fault_squared", mean()),
        node("Mul", &["fault_squared", "receded"], "least"),
        node("Greater", &["left", "least"], "is_present"),
        op("Cast", &["is_present"], "present", float()),
    ]
}

/// The alarm stays while there is patience, ends in settling, or begins.
fn phases() -> Vec<NodeProto> {
    vec![
        node("Greater", &["raw", "cleared"], "is_not_clear"),
        op("Cast", &["is_not_clear"], "not_clear", float()),
        node("Mul", &["not_clear", "present"], "seen"),
        node("Sub", &["one", "seen"], "unseen"),
        node("Add", &["patience", "one"], "patience_more"),
        node("Min", &["patience_more", "most_patience"], "patience_earned"),
        node("Mul", &["seen", "patience_earned"], "patience_seen"),
        node("Sub", &["patience", "a_step"], "patience_spent"),
        node("Mul", &["unseen", "patience_spent"], "patience_unseen"),
        node("Add", &["patience_seen", "patience_unseen"], "patience_now"),
        node("Greater", &["patience_now", "none_left"], "is_patient"),
        op("Cast", &["is_patient"], "patient", float()),
        node("Mul", &["alarm", "patient"], "stays"),
        node("Mul", &["stays", "patience_now"], "patience_next"),
        node("Sub", &["alarm", "stays"], "ends"),
        node("Greater", &["fault_squared", "established"], "is_established"),
        op("Cast", &["is_established"], "was_established", float()),
        node("Mul", &["ends", "was_established"], "ends_well"),
        node("Mul", &["ends_well", "settling_steps"], "settling_new"),
        node("Sub", &["one", "ends_well"], "goes_on"),
        node("Mul", &["goes_on", "settling"], "settling_on"),
        node("Add", &["settling_on", "settling_new"], "settling_now"),
        node("Greater", &["settling_now", "half"], "is_settling"),
        op("Cast", &["is_settling"], "would_settle", float()),
        node("Sub", &["one", "stays"], "not_stays"),
        node("Mul", &["would_settle", "not_stays"], "settles"),
        node("Sub", &["one", "alarm"], "was_well"),
        node("Sub", &["one", "settles"], "not_settles"),
        node("Mul", &["was_well", "not_settles"], "may_begin"),
        node("Mul", &["may_begin", "over"], "begins"),
        node("Add", &["stays", "begins"], "in_alarm"),
    ]
}

/// The states after it, and the score.
fn states() -> Vec<NodeProto> {
    let along = || vec![int("axis", 1)];
    vec![
        // The baseline rests, settles or follows.
        node("Mul", &["settles", "settling_rate"], "fast"),
        node("Mul", &["not_settles", "rates"], "ordinary"),
        node("Add", &["fast", "ordinary"], "rate"),
        node("Sub", &["one", "in_alarm"], "well"),
        node("Mul", &["rate", "well"], "rate_now"),
        node("Mul", &["rate_now", "off"], "move"),
        node("Add", &["baseline", "move"], "state_baseline_next"),
        // The fault so far.
        node("Sub", &["off", "state_fault"], "news"),
        node("Mul", &["seen", "fault_rate"], "fault_rate_now"),
        node("Mul", &["news", "fault_rate_now"], "some_news"),
        node("Add", &["state_fault", "some_news"], "fault_on"),
        node("Mul", &["stays", "fault_on"], "fault_stays"),
        node("Mul", &["begins", "off"], "fault_begins"),
        node("Add", &["fault_stays", "fault_begins"], "state_fault_next"),
        node("Sub", &["settling_now", "one"], "settling_less"),
        node("Mul", &["settles", "settling_less"], "settling_next"),
        node("Mul", &["fresh", "zero"], "not_fresh"),
        op("Concat", &["in_alarm", "settling_next", "not_fresh", "patience_next"], "state_phase_next", along()),
        // While settling nothing is flagged; in alarm everything is.
        node("Min", &["raw", "calm"], "calmed"),
        node("Mul", &["settles", "calmed"], "score_settling"),
        node("Max", &["raw", "held"], "raised"),
        node("Mul", &["in_alarm", "raised"], "score_alarm"),
        node("Sub", &["not_settles", "in_alarm"], "ordinarily"),
        node("Mul", &["ordinarily", "raw"], "score_else"),
        node("Add", &["score_settling", "score_alarm"], "score_special"),
        node("Add", &["score_special", "score_else"], "scores"),
        op("ReduceMean", &["scores"], "score", vec![ints("axes", &[1]), int("keepdims", 0)]),
    ]
}

/// The attribute of a cast to numbers.
fn float() -> Vec<AttributeProto> {
    vec![int("to", i64::from(FLOAT))]
}

pub(super) fn tensor(name: &str, dims: &[usize], values: &[f64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.iter().map(|d| *d as i64).collect(),
        data_type: FLOAT,
        float_data: values.iter().map(|v| *v as f32).collect(),
        ..TensorProto::default()
    }
}

/// A row of one whole number, as some operators want their sizes.
pub(super) fn whole(name: &str, value: i64) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![1],
        data_type: WHOLE,
        int64_data: vec![value],
        ..TensorProto::default()
    }
}

pub(super) fn node(kind: &str, input: &[&str], output: &str) -> NodeProto {
    op(kind, input, output, vec![])
}

pub(super) fn op(kind: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    several(kind, input, &[output], attribute)
}

pub(super) fn several(kind: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: kind.into(),
        name: format!("{kind}_{}", output.join("_")),
        input: input.iter().map(|i| (*i).into()).collect(),
        output: output.iter().map(|o| (*o).into()).collect(),
        attribute,
        ..NodeProto::default()
    }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let kind = attribute_proto::AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type: kind, ints: values.to_vec(), ..AttributeProto::default() }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    let kind = attribute_proto::AttributeType::Int as i32;
    AttributeProto { name: name.into(), r#type: kind, i: value, ..AttributeProto::default() }
}

/// A float tensor; `None` is the free batch size.
fn value(name: &str, shape: &[Option<i64>]) -> ValueInfoProto {
    let dim = shape.iter().map(|d| Dimension {
        value: Some(match d {
            Some(n) => dimension::Value::DimValue(*n),
            None => dimension::Value::DimParam("N".into()),
        }),
        ..Dimension::default()
    });
    let shape = TensorShapeProto { dim: dim.collect() };
    let kind = type_proto::Tensor { elem_type: FLOAT, shape: Some(shape) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(kind)), ..TypeProto::default() });
    ValueInfoProto { name: name.into(), r#type, ..ValueInfoProto::default() }
}
