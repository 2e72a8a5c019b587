//! Writing a fitted detector as an ONNX graph, so that it is run by the same path as any other.

use prost::Message;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto, type_proto,
};

use super::fit::Fitted;

/// ONNX opset: ReduceMean still takes its axes as an attribute.
const OPSET: i64 = 17;
/// ONNX data type FLOAT.
const FLOAT: i32 = 1;

/// The graph: `window` `[N, steps, channels]` to `score` `[N]` and `contributions` `[N, channels]`.
pub fn onnx(fitted: &Fitted) -> Vec<u8> {
    let n = fitted.mean.len();
    let scale: Vec<f64> = fitted.std.iter().map(|s| 1.0 / s).collect();
    let initializer = vec![
        tensor("mean", &[n], &fitted.mean),
        tensor("scale", &[n], &scale),
        tensor("centre", &[n], &fitted.centre),
        tensor("precision", &[n, n], &fitted.precision),
        tensor("zero", &[], &[0.0]),
    ];
    let node = vec![
        op("Sub", &["window", "mean"], "centred", vec![]),
        op("Mul", &["centred", "scale"], "scaled", vec![]),
        op("ReduceMean", &["scaled"], "means", vec![ints("axes", &[1]), int("keepdims", 0)]),
        op("Sub", &["means", "centre"], "off", vec![]),
        op("MatMul", &["off", "precision"], "pulled", vec![]),
        op("Mul", &["off", "pulled"], "parts", vec![]),
        op("ReduceMean", &["parts"], "squared", vec![ints("axes", &[1]), int("keepdims", 0)]),
        op("Max", &["squared", "zero"], "not_negative", vec![]),
        op("Sqrt", &["not_negative"], "score", vec![]),
        op("Relu", &["parts"], "contributions", vec![]),
    ];
    let (steps, channels) = (fitted.steps as i64, n as i64);
    let graph = GraphProto {
        name: "window_mean_mahalanobis".into(),
        node,
        initializer,
        input: vec![value("window", &[None, Some(steps), Some(channels)])],
        output: vec![value("score", &[None]), value("contributions", &[None, Some(channels)])],
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

fn tensor(name: &str, dims: &[usize], values: &[f64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.iter().map(|d| *d as i64).collect(),
        data_type: FLOAT,
        float_data: values.iter().map(|v| *v as f32).collect(),
        ..TensorProto::default()
    }
}

fn op(kind: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: kind.into(),
        name: format!("{kind}_{output}"),
        input: input.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let kind = attribute_proto::AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type: kind, ints: values.to_vec(), ..AttributeProto::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
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
