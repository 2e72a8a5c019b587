"""Holds every bundle in models/ to its word, with onnxruntime as the oracle: digests, shapes, size,
and that each golden request gives its golden answer. Run: python tests/models.py [DIR]"""

import hashlib
import json
import math
import pathlib
import sys

import numpy as np
import onnxruntime

MAX_BYTES = 1 << 20
FILES = ("model.onnx", "model.json", "golden.json", "reference.json", "MODEL_CARD.md")


def tensors(listed):
    return {t["name"]: np.array(t["data"], np.float32).reshape(t["shape"]) for t in listed}


def fits(shape, declared):
    return len(shape) == len(declared) and all(d in (-1, s) for s, d in zip(shape, declared))


def check_files(bundle):
    for name in FILES:
        assert (bundle / name).is_file(), f"{name} is missing"
    total = sum(f.stat().st_size for f in bundle.iterdir())
    assert total < MAX_BYTES, f"{total} bytes, more than {MAX_BYTES}"


def check_digests(bundle, manifest):
    assert set(manifest["digests"]) >= {"model.onnx", "golden.json", "reference.json"}, "digests are missing"
    for name, digest in manifest["digests"].items():
        found = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        assert found == digest, f"{name}: digest is {found}, model.json says {digest}"


def check_manifest(bundle, manifest):
    assert manifest["schema"] == "andon.model/v1", manifest["schema"]
    assert manifest["name"] == bundle.name, manifest["name"]
    steps, channels = manifest["window"]["steps"], manifest["channels"]
    assert manifest["inputs"][0] == {"name": "window", "datatype": "FP32", "shape": [-1, steps, len(channels)]}
    outputs = {o["name"]: o["shape"] for o in manifest["outputs"]}
    for state in manifest["inputs"][1:]:
        assert outputs[state["name"] + "_next"] == state["shape"], f"no next of {state['name']}"
    for channel in channels:
        assert channel["std"] > 0 and channel["min"] <= channel["mean"] <= channel["max"], channel


def check_reference(bundle):
    scores = json.loads((bundle / "reference.json").read_text("utf-8"))["scores"]
    assert len(scores) >= 2000, f"only {len(scores)} reference scores"
    assert all(math.isfinite(s) for s in scores), "scores are not finite"


def check_graph(manifest, session):
    assert [i.name for i in session.get_inputs()] == [i["name"] for i in manifest["inputs"]]
    assert [o.name for o in session.get_outputs()] == [o["name"] for o in manifest["outputs"]]


def check_case(manifest, session, case):
    inputs, answers = tensors(case["request"]["inputs"]), tensors(case["response"]["outputs"])
    for declared in manifest["inputs"]:
        assert fits(inputs[declared["name"]].shape, declared["shape"]), f"shape of {declared['name']}"
    found = dict(zip(answers, session.run(list(answers), inputs)))
    assert set(answers) == {o["name"] for o in manifest["outputs"]}, "outputs differ from model.json"
    for declared in manifest["outputs"]:
        name = declared["name"]
        assert fits(answers[name].shape, declared["shape"]), f"shape of {name}"
        np.testing.assert_allclose(found[name], answers[name], rtol=case["rtol"], atol=case["atol"], err_msg=name)
    if "contributions" in found and "state" not in manifest:
        np.testing.assert_allclose(found["contributions"].sum(axis=1), 1, atol=1e-4, err_msg="contributions do not sum to 1")


def checks(bundle):
    """Yields (what, function) for one bundle."""
    manifest = json.loads((bundle / "model.json").read_text("utf-8"))
    options = onnxruntime.SessionOptions()
    # The extended level miscomputes some graphs with scaling inside.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
    golden = json.loads((bundle / "golden.json").read_text("utf-8"))
    yield "files", lambda: check_files(bundle)
    yield "digests", lambda: check_digests(bundle, manifest)
    yield "manifest", lambda: check_manifest(bundle, manifest)
    yield "reference", lambda: check_reference(bundle)
    yield "graph", lambda: check_graph(manifest, session)
    assert len(golden) >= 3, f"only {len(golden)} golden cases"
    for case in golden:
        yield f"golden {case['request']['id']}", lambda case=case: check_case(manifest, session, case)


def main():
    default = pathlib.Path(__file__).resolve().parents[1] / "models"
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    bundles = sorted(path.parent for path in root.glob("*/model.json"))
    passed, failed = 0, 0 if bundles else 1
    for bundle in bundles:
        try:
            for what, check in checks(bundle):
                try:
                    check()
                    passed += 1
                    print(f"ok    {bundle.name}: {what}")
                except Exception as error:  # any trouble with one case must not hide the others
                    failed += 1
                    print(f"FAIL  {bundle.name}: {what}: {error}")
        except Exception as error:
            failed += 1
            print(f"FAIL  {bundle.name}: {error}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
