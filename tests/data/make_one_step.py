"""Writes the bundle tests/data/one-step: a window of one step and one channel, whose score is the
value itself, so that a verdict tells which message it is about. Needs the packages pinned in
models/train/requirements.txt. The same inputs give the same bytes."""

import hashlib
import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent / "one-step"


def graph():
    """score[n] = window[n, 0, 0]"""
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", 1, 1])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    node = helper.make_node("ReduceSum", ["window", "axes"], ["score"], keepdims=0)
    made = helper.make_graph([node], "one-step", [window], [score], [axes])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="andon-tests")
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def tensor(name, shape, data):
    return {"name": name, "datatype": "FP32", "shape": shape, "data": data}


def main():
    HERE.mkdir(exist_ok=True)
    onnx_bytes = graph()
    values = [0.0, 1.0, -2.5, 4_000.0, 1_004_000.0]
    golden = [{"request": {"inputs": [tensor("window", [5, 1, 1], values)]},
               "response": {"outputs": [tensor("score", [5], values)]}}]
    files = {
        "model.onnx": onnx_bytes,
        "golden.json": json.dumps(golden, indent=1).encode() + b"\n",
        "reference.json": json.dumps({"scores": [n / 100 for n in range(1, 1001)]}).encode() + b"\n",
    }
    manifest = {
        "schema": "andon.model/v1", "name": "one-step", "version": "1", "platform": "onnx_onnxv1",
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
