"""Holds every bundle in models/ to its word, with onnxruntime as the oracle: digests, shapes, size,
and that each golden request gives its golden answer. The sequence models in tests/data/sequence have to
give the same step by step as over a whole window. Run: python tests/models.py [DIR]

python tests/models.py --bench ANDON prints each bundle in tract (`ANDON model bench`) beside onnxruntime."""

import hashlib
import json
import math
import pathlib
import subprocess
import sys
import time

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


def check_digests(bundle, manifest, files=("model.onnx", "golden.json", "reference.json")):
    assert set(manifest["digests"]) >= set(files), "digests are missing"
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


def check_reference(bundle, manifest):
    scores = json.loads((bundle / "reference.json").read_text("utf-8"))["scores"]
    # A class is told with a limit on the score; the others promise a budget of false alarms.
    assert len(scores) >= 2000 or manifest["task"] == "class", f"only {len(scores)} reference scores"
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


def load(bundle):
    """Its manifest, and a session of one thread."""
    options = onnxruntime.SessionOptions()
    # The extended level miscomputes some graphs with scaling inside.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return json.loads((bundle / "model.json").read_text("utf-8")), session


def check_streamed(whole, streamed):
    """A step at a time from a fresh state has to end where the whole window does."""
    (manifest, run), (_, step) = load(whole), load(streamed)
    states = {i.name: np.zeros((1, *i.shape[1:]), np.float32) for i in step.get_inputs() if i.name != "window"}
    names = [o.name for o in step.get_outputs()]
    for window in noise(manifest, 20):
        kept = states
        for row in window:
            answer = dict(zip(names, step.run(names, {"window": row[None, None], **kept})))
            kept = {name: answer[name + "_next"] for name in states}
        found = run.run(["score", "contributions"], {"window": window[None]})
        for name, value in zip(("score", "contributions"), found):
            np.testing.assert_allclose(answer[name], value, rtol=0, atol=1e-4, err_msg=name)


def noise(manifest, count):
    """Windows like those of training."""
    mean, std = (np.array([c[k] for c in manifest["channels"]]) for k in ("mean", "std"))
    shape = (count, manifest["window"]["steps"], len(mean))
    return (mean + std * np.random.default_rng(7).uniform(-1.5, 1.5, shape)).astype(np.float32)


def sequence_checks(root):
    """Yields (what, function) for the sequence models."""
    for bundle in sorted(path.parent for path in root.glob("*/model.json")):
        manifest, session = load(bundle)
        yield f"{bundle.name}: digests", lambda b=bundle, m=manifest: check_digests(b, m, ("model.onnx", "golden.json"))
        yield f"{bundle.name}: graph", lambda m=manifest, s=session: check_graph(m, s)
        for case in json.loads((bundle / "golden.json").read_text("utf-8")):
            what = f"{bundle.name}: golden {case['request']['id']}"
            yield what, lambda m=manifest, s=session, c=case: check_case(m, s, c)
        if bundle.name.endswith("-streamed"):
            whole = bundle.with_name(bundle.name.removesuffix("-streamed"))
            yield f"{bundle.name}: as {whole.name}", lambda w=whole, b=bundle: check_streamed(w, b)


def checks(bundle):
    """Yields (what, function) for one bundle."""
    manifest, session = load(bundle)
    golden = json.loads((bundle / "golden.json").read_text("utf-8"))
    yield "files", lambda: check_files(bundle)
    yield "digests", lambda: check_digests(bundle, manifest)
    yield "manifest", lambda: check_manifest(bundle, manifest)
    yield "reference", lambda: check_reference(bundle, manifest)
    yield "graph", lambda: check_graph(manifest, session)
    assert len(golden) >= 3, f"only {len(golden)} golden cases"
    for case in golden:
        yield f"golden {case['request']['id']}", lambda case=case: check_case(manifest, session, case)


def resident():
    """Resident memory of this process in bytes, without what is mapped from files."""
    line = next(l for l in open("/proc/self/status", encoding="ascii") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def bench_onnxruntime(bundle):
    """Median and p99 in µs of one window and of 32, and the memory a session takes."""
    before = resident()
    manifest, session = load(bundle)
    states = {i.name: i.shape[1:] for i in session.get_inputs() if i.name != "window"}
    figures = {}
    for count in (1, 32):
        inputs = {"window": noise(manifest, count)}
        inputs |= {name: np.zeros((count, *shape), np.float32) for name, shape in states.items()}
        taken, started = [], time.perf_counter()
        while len(taken) < 200 or time.perf_counter() - started < 0.5:
            one = time.perf_counter()
            session.run(None, inputs)
            taken.append((time.perf_counter() - one) * 1e6)
        figures[count] = [float(np.quantile(taken[20:], q)) for q in (0.5, 0.99)]
    return {"latency": figures, "memory_bytes": resident() - before}


def bench(andon):
    """The table; each bundle in a process of its own, in tract and at once in onnxruntime."""
    print("µs on one core: p50/p99 of one window, and p50 by window of 32 at once; memory in KiB")
    print(f"{'bundle':<16} {'onnx KiB':>8} | {'tract 1':>14} {'of 32':>7} {'agent 1':>8} {'of 8':>7} {'memory':>7} "
          f"| {'ort 1':>14} {'of 32':>7} {'memory':>7} | {'off by':>7}")
    bundles = [*sorted((ROOT / "models").glob("*/model.json")), *sorted(SEQUENCE.glob("*/model.json"))]
    one, many = {}, {}
    for bundle in (path.parent for path in bundles):
        say = lambda *command: json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ours = say(andon, "model", "bench", "--json", "--time", "500ms", str(bundle))
        theirs = say(sys.executable, __file__, "--onnxruntime", str(bundle))
        agent1, agent8, tract1, tract32 = ours["latency"]
        ort1, ort32 = theirs["latency"]["1"], theirs["latency"]["32"]
        one[bundle.name], many[bundle.name] = (tract1["p50_us"], ort1[0]), (tract32["per_window_us"], ort32[0] / 32)
        print(f"{bundle.name:<16} {ours['onnx_bytes'] / 1024:>8.1f} | {tract1['p50_us']:>6.1f}/{tract1['p99_us']:<7.1f} "
              f"{tract32['per_window_us']:>7.2f} {agent1['p50_us']:>8.1f} {agent8['per_window_us']:>7.2f} "
              f"{ours['memory_bytes'] / 1024:>7.0f} | {ort1[0]:>6.1f}/{ort1[1]:<7.1f} {ort32[0] / 32:>7.2f} "
              f"{theirs['memory_bytes'] / 1024:>7.0f} | {ours['golden']['largest']:>7.0e}", flush=True)
    for name in (n for n in one if n.endswith("-streamed")):
        whole = name.removesuffix("-streamed")
        print(f"a step of {name} in tract against a whole window of {whole} in onnxruntime: "
              f"{one[name][0] / one[whole][1]:.3f} for one machine, {many[name][0] / many[whole][1]:.3f} by machine for 32")


ROOT = pathlib.Path(__file__).resolve().parents[1]
SEQUENCE = ROOT / "tests" / "data" / "sequence"


def main():
    if sys.argv[1:2] == ["--bench"]:
        return bench(sys.argv[2])
    if sys.argv[1:2] == ["--onnxruntime"]:
        return print(json.dumps(bench_onnxruntime(pathlib.Path(sys.argv[2]))))
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "models"
    bundles = sorted(path.parent for path in root.glob("*/model.json"))
    passed, failed = 0, 0 if bundles else 1
    for what, check in sequence_checks(SEQUENCE):
        try:
            check()
            passed += 1
            print(f"ok    {what}")
        except Exception as error:  # as below
            failed += 1
            print(f"FAIL  {what}: {error}")
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
