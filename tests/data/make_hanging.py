"""Writes the bundle tests/data/hanging: a model of one number that takes minutes to say anything, by
multiplying a large matrix with itself over and over. It stands in for a stage that hangs. Needs the
packages pinned in models/train/requirements.txt. The same inputs give the same bytes."""

import hashlib
import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent / "hanging"
SIDE, TIMES = 4096, 80


def graph():
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", 1, 1])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    ints = lambda name, *v: numpy_helper.from_array(np.array(v, np.int64), name)
    constants = [ints("all", 0, 1, 2), ints("inner", 1, 2), ints("column", 1, SIDE, 1), ints("row", 1, 1, SIDE),
                 numpy_helper.from_array(np.array([1e-30], np.float32), "tiny")]
    one = lambda: helper.make_tensor("value", TensorProto.FLOAT, [1], [1e-3])
    nodes = [
        helper.make_node("ReduceSum", ["window", "all"], ["sum"], keepdims=1),
        helper.make_node("ConstantOfShape", ["column"], ["c"], value=one()),
        helper.make_node("ConstantOfShape", ["row"], ["r"], value=one()),
        helper.make_node("Mul", ["sum", "c"], ["left"]),
        helper.make_node("Mul", ["sum", "r"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["m0"]),
        *[helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(TIMES)],
        helper.make_node("ReduceSum", [f"m{TIMES}", "all"], ["end"], keepdims=0),
        helper.make_node("Mul", ["end", "tiny"], ["little"]),
        helper.make_node("ReduceSum", ["window", "inner"], ["own"], keepdims=0),
        helper.make_node("Add", ["own", "little"], ["score"]),
    ]
    made = helper.make_graph(nodes, "hanging", [window], [score], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="andon-tests")
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def main():
    HERE.mkdir(exist_ok=True)
    files = {"model.onnx": graph(), "reference.json": json.dumps({"scores": [n / 100 for n in range(1, 1001)]}).encode() + b"\n"}
    manifest = {
        "schema": "andon.model/v1", "name": "hanging", "version": "1", "platform": "onnx_onnxv1",
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, 1, 1]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1]}],
        "task": "score",
        "window": {"steps": 1, "stride": 1, "rate_ms": 100},
        "channels": [{"name": "count", "unit": "1", "mean": 0.0, "std": 1.0}],
        "digests": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    for name, data in files.items():
        (HERE / name).write_bytes(data)
    (HERE / "model.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
