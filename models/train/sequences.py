"""Writes the sequence models in tests/data/sequence: a GRU and an LSTM that forecast the next step, each
as a whole-window graph and as a streamed one that keeps its state, and a small transformer encoder.
They show that such graphs load, run and agree; their weights are seeded noise, nothing was trained.

To remake them: pip install -r models/train/requirements.txt, then python models/train/sequences.py."""

import hashlib
import json

import numpy as np
from onnx import helper

from common import OPSET, ROOT, Graph, session, tensor

WHERE = ROOT / "tests" / "data" / "sequence"
STEPS, CHANNELS, HIDDEN, HEADS, CASES = 64, 8, 64, 4, 3
MEAN = np.linspace(-20, 50, CHANNELS, dtype=np.float32)
STD = np.linspace(0.5, 8, CHANNELS, dtype=np.float32)


def weights(rng, *shape):
    return rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)


def draw(rng, count, steps):
    """Windows of wandering channels, in their own units, short enough to write down."""
    x = rng.normal(0, 0.4, (count, steps, CHANNELS)).cumsum(axis=1)
    return (MEAN + STD * np.tanh(x)).round(3).astype(np.float32)


def scaled(g, x):
    return g.op("Div", g.op("Sub", x, MEAN), STD)


class Gru:
    """ONNX's own GRU: gates in the order update, reset, new; the reset is applied after the product."""

    states = ("h",)

    def __init__(self, rng):
        self.w, self.r = weights(rng, 3 * HIDDEN, CHANNELS), weights(rng, 3 * HIDDEN, HIDDEN)
        self.b = weights(rng, 6 * HIDDEN)

    def whole(self, g, x):
        """The hidden state after all steps of `x` [steps, N, channels]."""
        inputs = [x, g.constant(self.w[None]), g.constant(self.r[None]), g.constant(self.b[None])]
        g.nodes.append(helper.make_node("GRU", inputs, ["", "last"], name="gru", hidden_size=HIDDEN, linear_before_reset=1))
        return g.reshape("last", [-1, HIDDEN])

    def step(self, g, x, old):
        """The states after one more step `x` [N, channels]."""
        h = old["h"]
        both = lambda v: (g.op("Slice", v, g.constant([0], np.int64), g.constant([2 * HIDDEN], np.int64), g.constant([1], np.int64)),
                          g.op("Slice", v, g.constant([2 * HIDDEN], np.int64), g.constant([3 * HIDDEN], np.int64), g.constant([1], np.int64)))
        x_gates, x_new = both(g.op("Add", g.op("MatMul", x, self.w.T), self.b[:3 * HIDDEN]))
        h_gates, h_new = both(g.op("Add", g.op("MatMul", h, self.r.T), self.b[3 * HIDDEN:]))
        gates = g.op("Sigmoid", g.op("Add", x_gates, h_gates))
        part = lambda a: g.op("Slice", gates, g.constant([a * HIDDEN], np.int64), g.constant([(a + 1) * HIDDEN], np.int64), g.constant([1], np.int64))
        update, reset = part(0), part(1)
        new = g.op("Tanh", g.op("Add", x_new, g.op("Mul", reset, h_new)))
        return {"h": g.op("Add", new, g.op("Mul", update, g.op("Sub", h, new)), name="state_h_next")}


class Lstm:
    """ONNX's own LSTM: gates in the order input, output, forget, cell."""

    states = ("h", "c")

    def __init__(self, rng):
        self.w, self.r = weights(rng, 4 * HIDDEN, CHANNELS), weights(rng, 4 * HIDDEN, HIDDEN)
        self.b = weights(rng, 8 * HIDDEN)

    def whole(self, g, x):
        inputs = [x, g.constant(self.w[None]), g.constant(self.r[None]), g.constant(self.b[None])]
        g.nodes.append(helper.make_node("LSTM", inputs, ["", "last"], name="lstm", hidden_size=HIDDEN))
        return g.reshape("last", [-1, HIDDEN])

    def step(self, g, x, old):
        # One product for input and hidden state together.
        both = g.op("Concat", x, old["h"], axis=1)
        joint = np.concatenate([self.w, self.r], axis=1).T
        gates = g.op("Add", g.op("MatMul", both, joint), self.b[:4 * HIDDEN] + self.b[4 * HIDDEN:])
        part = lambda v, a, b: g.op("Slice", v, g.constant([a * HIDDEN], np.int64), g.constant([b * HIDDEN], np.int64), g.constant([1], np.int64))
        opened = g.op("Sigmoid", part(gates, 0, 3))
        entering = g.op("Mul", part(opened, 0, 1), g.op("Tanh", part(gates, 3, 4)))
        c = g.op("Add", g.op("Mul", part(opened, 2, 3), old["c"]), entering, name="state_c_next")
        h = g.op("Mul", part(opened, 1, 2), g.op("Tanh", c), name="state_h_next")
        return {"h": h, "c": c}


def judge(g, head, h, x):
    """`score` and `contributions`: how far the step `x` [N, channels] is from what `h` forecast."""
    forecast = g.op("Add", g.op("MatMul", h, head[0]), head[1])
    off = g.op("Sub", x, forecast)
    parts = g.op("Mul", off, off)
    g.op("ReduceMean", parts, axes=[1], keepdims=0, name="score")
    total = g.op("Add", g.op("MatMul", parts, np.ones((CHANNELS, 1), np.float32)), np.float32(1e-9))
    g.op("Div", parts, total, name="contributions")


OUTPUTS = [("score", [-1]), ("contributions", [-1, CHANNELS])]


def whole(name, cell, head):
    """Forecasts a window's last step from those before it."""
    g = Graph()
    x = scaled(g, "window")
    axis = g.constant([1], np.int64)
    before = g.op("Slice", x, g.constant([0], np.int64), g.constant([STEPS - 1], np.int64), axis)
    last = g.reshape(g.op("Slice", x, g.constant([STEPS - 1], np.int64), g.constant([STEPS], np.int64), axis), [-1, CHANNELS])
    judge(g, head, cell.whole(g, g.op("Transpose", before, perm=[1, 0, 2])), last)
    return g.model(name, [("window", [-1, STEPS, CHANNELS])], OUTPUTS), STEPS, "score", OUTPUTS, []


def streamed(name, cell, head):
    """The same from a state that is kept: forecasts this step, then takes it in."""
    g = Graph()
    x = g.reshape(scaled(g, "window"), [-1, CHANNELS])
    judge(g, head, "state_h", x)
    cell.step(g, x, {s: f"state_{s}" for s in cell.states})
    states = [(f"state_{s}", [-1, HIDDEN]) for s in cell.states]
    outputs = OUTPUTS + [(n + "_next", shape) for n, shape in states]
    return g.model(name, [("window", [-1, 1, CHANNELS]), *states], outputs), 1, "score", outputs, states


def transformer(name, rng, width=32, layers=2):
    """An encoder (pre-norm, learnt positions) that rebuilds its window."""
    g = Graph()
    heads = lambda v: g.op("Transpose", g.reshape(v, [-1, STEPS, HEADS, width // HEADS]), perm=[0, 2, 1, 3])
    norm = lambda v: g.op("LayerNormalization", v, np.ones(width), np.zeros(width), axis=-1, epsilon=1e-5)
    dense = lambda v, a, b: g.op("Add", g.op("MatMul", v, weights(rng, b, a).T), 0.1 * weights(rng, b))
    x = g.op("Add", dense(scaled(g, "window"), CHANNELS, width), weights(rng, STEPS, width))
    for _ in range(layers):
        y = norm(x)
        q, k, v = (heads(dense(y, width, width)) for _ in range(3))
        weight = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        weight = g.op("Softmax", g.op("Mul", weight, np.float32((width // HEADS) ** -0.5)), axis=-1)
        seen = g.reshape(g.op("Transpose", g.op("MatMul", weight, v), perm=[0, 2, 1, 3]), [-1, STEPS, width])
        x = g.op("Add", x, dense(seen, width, width))
        x = g.op("Add", x, dense(g.op("Relu", dense(norm(x), width, 2 * width)), 2 * width, width))
    shape = [-1, STEPS, CHANNELS]
    g.op("Add", g.op("Mul", dense(norm(x), width, CHANNELS), STD), MEAN, name="reconstruction")
    outputs = [("reconstruction", shape)]
    return g.model(name, [("window", shape)], outputs), STEPS, "reconstruction", outputs, []


def cases(onnx_bytes, outputs, states, x):
    """Golden cases by onnxruntime; a streamed model goes through its windows with the state it has then."""
    run, made = session(onnx_bytes), []
    kept = {n: np.zeros((1, *shape[1:]), np.float32) for n, shape in states}
    for at, window in enumerate(x):
        inputs = {"window": window[None], **kept}
        answers = run.run([n for n, _ in outputs], inputs)
        made.append({
            "request": {"id": str(at), "inputs": [tensor(n, v) for n, v in inputs.items()]},
            "response": {"id": str(at), "outputs": [tensor(n, a) for (n, _), a in zip(outputs, answers)]},
            "rtol": 0, "atol": 1e-4,
        })
        kept = {n: dict(zip([o for o, _ in outputs], answers))[n + "_next"] for n in kept}
    return made


def write(name, made, x):
    onnx_bytes, steps, task, outputs, states = made
    bundle = WHERE / name
    bundle.mkdir(parents=True, exist_ok=True)
    golden = json.dumps(cases(onnx_bytes, outputs, states, x)) + "\n"
    (bundle / "model.onnx").write_bytes(onnx_bytes)
    (bundle / "golden.json").write_text(golden, "utf-8")
    described = lambda listed: [{"name": n, "datatype": "FP32", "shape": shape} for n, shape in listed]
    manifest = {
        "schema": "andon.model/v1", "name": name, "version": "1", "platform": "onnx_onnxv1", "task": task,
        "config": {"format": "onnx", "precision": "float32", "opset": OPSET},
        "inputs": described([("window", [-1, steps, CHANNELS]), *states]), "outputs": described(outputs),
        "window": {"steps": steps, "stride": 1, "rate_ms": 1000},
        "channels": [{"name": f"c{i}", "unit": "1", "mean": round(float(MEAN[i]), 6), "std": round(float(STD[i]), 6)}
                     for i in range(CHANNELS)],
        "digests": {f: hashlib.sha256((bundle / f).read_bytes()).hexdigest() for f in ("model.onnx", "golden.json")},
    }
    (bundle / "model.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    print(f"wrote {bundle.relative_to(ROOT)}: {len(onnx_bytes)} bytes of ONNX")


def main():
    for seed, (name, kind) in enumerate({"gru": Gru, "lstm": Lstm}.items(), 1):
        rng = np.random.default_rng(seed)
        cell, head = kind(rng), (weights(rng, CHANNELS, HIDDEN).T, weights(rng, CHANNELS))
        write(name, whole(name, cell, head), draw(rng, CASES, STEPS))
        write(f"{name}-streamed", streamed(f"{name}-streamed", cell, head), draw(rng, 1, 2 * CASES)[0][:, None])
    rng = np.random.default_rng(3)
    write("transformer", transformer("transformer", rng), draw(rng, CASES, STEPS))


if __name__ == "__main__":
    main()
