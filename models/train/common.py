"""What the training scripts share: simulated data, a small dense network in numpy with Adam,
the anomaly score, judging against injected faults, and writing a bundle.

To remake a bundle: pip install -r models/train/requirements.txt, then python models/train/pump.py
(motor.py, press.py). Each takes two to four minutes on two cores, most of it training."""

import argparse
import datetime
import hashlib
import json
import pathlib
import subprocess

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, STRIDE, RATE_MS, OPSET = 32, 4, 100, 17
SECOND = 1000 // RATE_MS

# Seeds of the simulated factory: (seed, machines, seconds each). No seed serves two purposes.
# Many short runs rather than few long ones: units differ, and temperatures drift slowly.
TRAIN = [(seed, 24, 300) for seed in range(1, 9)]
REFERENCE = [(seed, 24, 300) for seed in range(101, 107)]
NORMAL = [(seed, 8, 1800) for seed in range(201, 207)]
FAULTY = [(seed, 8, 1200) for seed in range(301, 305)]
WEAR = [(seed, 8, 600) for seed in range(401, 405)]


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", type=pathlib.Path, default=ROOT / "target" / "simulated",
                        help="where simulated runs are kept between calls; delete it after changing the simulator")
    return parser.parse_args()


class Run:
    """One machine for one run: values [T, C] (NaN where nothing arrived) and the fault of each row."""

    def __init__(self, values, faults):
        self.values, self.faults = values, faults


def simulate(directory, kind, plan, faults=False):
    """Runs the simulator for each entry of `plan`; returns the signal names and a Run per machine."""
    directory.mkdir(parents=True, exist_ok=True)
    names, runs = [], []
    for seed, count, seconds in plan:
        path = directory / f"{kind}-{seed}-{count}-{seconds}{'-faults' if faults else ''}.csv"
        if not path.exists():
            command = ["cargo", "run", "--release", "--quiet", "--", "demo", "--csv", str(path), "--kind", kind,
                       "--count", str(count), "--seed", str(seed), "--seconds", str(seconds)]
            subprocess.run(command + ([] if faults else ["--no-faults"]), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        with open(path, encoding="utf-8") as file:
            names = file.readline().strip().split(",")[2:-2]
            rows = [line.rstrip("\n").split(",") for line in file]
        by_machine = {}
        for row in rows:
            by_machine.setdefault(row[1], []).append(row)
        for mine in by_machine.values():
            values = np.array([[cell or "nan" for cell in row[2:-2]] for row in mine], dtype=np.float32)
            runs.append(Run(values, [row[-1] for row in mine]))
    return names, runs


def windows(run, running, stride):
    """Windows [N, STEPS, C] that have every value and in which the machine runs all the time,
    and the row of the last step of each."""
    ends = np.arange(STEPS - 1, len(run.values), stride)
    rows = ends[:, None] + np.arange(1 - STEPS, 1)[None, :]
    column, above = running
    good = np.isfinite(run.values).all(axis=1) & (run.values[:, column] > above)
    keep = good[rows].all(axis=1)
    return run.values[rows[keep]], ends[keep]


def all_windows(runs, running, stride):
    return np.concatenate([windows(run, running, stride)[0] for run in runs])


# --- a dense network -------------------------------------------------------------------------

class Dense:
    """Dense layers with tanh between them (not after the last), trained with Adam on squared error."""

    def __init__(self, sizes, seed):
        rng = np.random.default_rng(seed)
        self.w = [rng.normal(0, 1 / np.sqrt(a), (a, b)).astype(np.float32) for a, b in zip(sizes, sizes[1:])]
        self.b = [np.zeros(b, np.float32) for b in sizes[1:]]

    def forward(self, x):
        layers = [x]
        for i, (w, b) in enumerate(zip(self.w, self.b)):
            x = x @ w + b
            if i + 1 < len(self.w):
                x = np.tanh(x)
            layers.append(x)
        return layers

    def __call__(self, x, batch=8192):
        return np.concatenate([self.forward(x[i:i + batch])[-1] for i in range(0, len(x), batch)])

    def fit(self, x, y, epochs, batch=256, rate=2e-3, seed=0, weight=None, noise=0.0):
        rng = np.random.default_rng(seed)
        weight = np.ones(y.shape[1], np.float32) if weight is None else weight.astype(np.float32)
        params = self.w + self.b
        m, v = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
        steps, t = epochs * (len(x) // batch), 0
        for epoch in range(epochs):
            order, total = rng.permutation(len(x)), 0.0
            for i in range(len(x) // batch):
                rows = order[i * batch:(i + 1) * batch]
                inputs = x[rows]
                if noise:
                    inputs = inputs + noise * rng.standard_normal(inputs.shape, dtype=np.float32)
                layers = self.forward(inputs)
                error = (layers[-1] - y[rows]) * weight
                total += float((error * (layers[-1] - y[rows])).mean())
                grad, gw, gb = error * (2 / batch), [], []
                for k in reversed(range(len(self.w))):
                    if k + 1 < len(self.w):
                        grad = grad * (1 - layers[k + 1] ** 2)
                    gw.insert(0, layers[k].T @ grad)
                    gb.insert(0, grad.sum(axis=0))
                    grad = grad @ self.w[k].T
                t += 1
                step = rate * 0.5 * (1 + np.cos(np.pi * t / steps)) + 1e-6
                for p, g, a, b in zip(params, gw + gb, m, v):
                    a += 0.1 * (g - a)
                    b += 0.001 * (g * g - b)
                    p -= step * (a / (1 - 0.9 ** t)) / (np.sqrt(b / (1 - 0.999 ** t)) + 1e-8)
        return total / (len(x) // batch)


# --- scores ----------------------------------------------------------------------------------

def reconstruction_scores(x, x_hat, std):
    """The score the agent computes of a reconstruction, and each channel's share in it."""
    errors = (((x.astype(np.float64) - x_hat) / std) ** 2).mean(axis=1)
    return errors.mean(axis=1), errors / errors.sum(axis=1, keepdims=True)


def tail_threshold(scores, p):
    """The score a healthy machine exceeds with probability `p`: a generalised Pareto tail fitted by
    probability-weighted moments to the highest 3 %."""
    scores = np.sort(scores)
    count = max(60, len(scores) * 3 // 100)
    start, excess = scores[-count - 1], scores[-count:] - scores[-count - 1]
    b0 = excess.mean()
    b1 = (excess * (1 - (np.arange(1, count + 1) - 0.35) / count)).mean()
    shape, scale = 2 - b0 / (b0 - 2 * b1), 2 * b0 * b1 / (b0 - 2 * b1)
    ratio = p * len(scores) / count
    if ratio >= 1:
        return float(np.quantile(scores, 1 - p))
    if abs(shape) < 1e-6:
        return float(start - scale * np.log(ratio))
    return float(start + scale / shape * (ratio ** -shape - 1))


def episodes(alarm_rows, apart=STEPS):
    """How many alarms these rows are when those less than a window apart count as one."""
    rows = np.sort(np.asarray(alarm_rows))
    return 0 if len(rows) == 0 else 1 + int((np.diff(rows) > apart).sum())


def judge(score, running, threshold, normal, faulty, process):
    """False alarms on healthy runs and detections on runs with faults, neither ever trained on."""
    alarms, scored, hours, worst = 0, 0, 0.0, 0.0
    flagged = 0
    for run in normal:
        x, ends = windows(run, running, STRIDE)
        s = score(x)
        worst = max(worst, float(s.max(initial=0)))
        alarms += episodes(ends[s > threshold])
        flagged += int((s > threshold).sum())
        scored += len(s)
        hours += len(run.values) / SECOND / 3600
    kinds, hit, missed, false = {}, 0, 0, 0
    for run in faulty:
        x, ends = windows(run, running, STRIDE)
        over = score(x) > threshold
        busy = np.array([fault != "" for fault in run.faults])
        touched = np.array([busy[max(0, end - STEPS + 1):end + 1].any() for end in ends], dtype=bool)
        false += int((over & ~touched).sum())
        for first, last, fault in events(run.faults):
            if fault not in process:
                continue
            inside = (ends >= first) & (ends <= last)
            hit += int((over & inside).sum())
            missed += int((~over & inside).sum())
            seen = ends[inside & over]
            delays = kinds.setdefault(fault, [])
            delays.append((seen[0] - first) / SECOND if len(seen) else None)
    recall, precision = hit / max(1, hit + missed), hit / max(1, hit + false + flagged)
    table = {
        kind: {"injected": len(delays), "detected": sum(d is not None for d in delays),
               "median_delay_s": float(np.median([d for d in delays if d is not None] or [np.nan]))}
        for kind, delays in sorted(kinds.items())
    }
    return {
        "windows": scored, "hours": round(hours, 2), "false_alarm_rate": flagged / max(1, scored),
        "false_alarms_per_hour": alarms / hours, "worst_normal_score": worst,
        "recall": round(recall, 4), "precision": round(precision, 4),
        "f1": round(2 * precision * recall / max(1e-9, precision + recall), 4), "faults": table,
    }


def events(faults):
    """(first row, last row, kind) of each stretch of one fault."""
    start = 0
    for i in range(1, len(faults) + 1):
        if i == len(faults) or faults[i] != faults[start]:
            if faults[start]:
                yield start, i - 1, faults[start]
            start = i


# --- the graph and the bundle ----------------------------------------------------------------

class Graph:
    """Collects the nodes and constants of an ONNX graph; every method returns an output's name."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value, kind=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def op(self, kind, *inputs, name=None, **attributes):
        inputs = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        name = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes))
        return name

    def reshape(self, x, shape, name=None):
        return self.op("Reshape", x, self.constant(shape, np.int64), name=name)

    def dense(self, net, x):
        for i, (w, b) in enumerate(zip(net.w, net.b)):
            x = self.op("Add", self.op("MatMul", x, w), b)
            if i + 1 < len(net.w):
                x = self.op("Tanh", x)
        return x

    def model(self, name, inputs, outputs):
        """`inputs` and `outputs` are (name, shape) with -1 for the batch."""
        info = lambda n, shape: helper.make_tensor_value_info(
            n, TensorProto.FLOAT, ["N" if d == -1 else d for d in shape])
        graph = helper.make_graph(self.nodes, name, [info(*i) for i in inputs], [info(*o) for o in outputs],
                                  initializer=self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="andon")
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def session(path_or_bytes):
    """onnxruntime as the oracle: its extended optimisations miscompute some scaled graphs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path_or_bytes, options, providers=["CPUExecutionProvider"])


def tensor(name, values):
    values = np.asarray(values, np.float32)
    return {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": [float(v) for v in values.ravel()]}


def golden(name, run, outputs, cases):
    """Request and answer pairs in Open Inference Protocol form. `cases` is [(id, windows)]."""
    made = []
    for case, x in cases:
        answers = run.run(outputs, {"window": x.astype(np.float32)})
        made.append({
            "request": {"id": case, "inputs": [tensor("window", x)]},
            "response": {"id": case, "model_name": name, "model_version": "1",
                         "outputs": [tensor(o, a) for o, a in zip(outputs, answers)]},
            "rtol": 1e-3, "atol": 1e-4,
        })
    return made


def write_bundle(name, onnx_bytes, outputs, task, signals, train, scores, judged, thresholds, running, cases, about):
    """Writes models/NAME. `signals` is [(name, unit)], `train` healthy windows, `scores` those of healthy
    windows that are held back; `about` has description, what, limits for the card."""
    bundle = ROOT / "models" / name
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "model.onnx").write_bytes(onnx_bytes)
    dump = lambda file, value, indent: (bundle / file).write_text(json.dumps(value, indent=indent) + "\n", "utf-8")
    dump("golden.json", golden(name, session(onnx_bytes), [o for o, _ in outputs], cases), None)
    flat = train.reshape(-1, train.shape[-1])
    bands = {n: {q: float(f"{np.quantile(flat[:, c], float(q[1:]) / 100):.6g}") for q in ("q01", "q05", "q50", "q95", "q99")}
             for c, (n, _) in enumerate(signals)}
    dump("reference.json", {"scores": [float(f"{s:.6g}") for s in np.sort(scores)], "channels": bands}, None)
    stats = channel_stats(train)
    manifest = {
        "schema": "andon.model/v1", "name": name, "version": "1", "platform": "onnx_onnxv1",
        "descriptor": {
            "createdAt": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "authors": ["andon"], "licenses": ["Apache-2.0"], "description": about["description"],
        },
        "config": {"format": "onnx", "precision": "float32", "opset": OPSET},
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, STEPS, len(signals)]}],
        "outputs": [{"name": n, "datatype": "FP32", "shape": shape} for n, shape in outputs],
        "task": task,
        "window": {"steps": STEPS, "stride": STRIDE, "rate_ms": RATE_MS},
        "channels": [{"name": n, "unit": unit, **{k: stats[k][c] for k in ("mean", "std", "min", "max")}}
                     for c, (n, unit) in enumerate(signals)],
        "calibration": {"method": "split-conformal", "alpha": 1e-5, "scores": "reference.json#/scores"},
        "metrics": {"dataset": "simulated plant, seeds " + seeds(NORMAL) + " healthy, " + seeds(FAULTY) + " with faults",
                    "p_value": 1e-5, **{k: v for k, v in judged[1e-5].items()}},
        "compat": {"agent": ">=0.1", "max_opset": OPSET, "max_ram_mb": 64, "p99_ms": 5},
        "sequence": 1,
        "digests": {f: hashlib.sha256((bundle / f).read_bytes()).hexdigest()
                    for f in ("model.onnx", "golden.json", "reference.json")},
        # What to check first, by channel and language; "*" is for all.
        "advice": json.loads((pathlib.Path(__file__).parent / "advice.json").read_text("utf-8")).get(name, {}),
    }
    dump("model.json", manifest, 1)
    (bundle / "MODEL_CARD.md").write_text(card(name, signals, len(scores), judged, thresholds, running, about), "utf-8")
    print(f"wrote models/{name}: {len(onnx_bytes)} bytes of ONNX, {len(scores)} reference scores")


def channel_stats(train):
    """The figures of each channel as they stand in model.json (and so in the score), in that rounding."""
    flat = train.reshape(-1, train.shape[-1]).astype(np.float64)
    round6 = lambda values: [float(f"{v:.6g}") for v in values]
    return {"mean": round6(flat.mean(axis=0)), "std": round6(flat.std(axis=0)),
            "min": round6(flat.min(axis=0)), "max": round6(flat.max(axis=0))}


def seeds(plan):
    return f"{plan[0][0]} to {plan[-1][0]}"


def card(name, signals, references, judged, thresholds, running, about):
    lines = [f"# {name}", "", about["description"], "", about["what"], "",
             "| channel | unit |", "|---|---|", *[f"| `{n}` | {u} |" for n, u in signals], "",
             f"Windows of {STEPS} steps at {RATE_MS} ms, a verdict every {STRIDE} steps. The machine counts as running while "
             f"`{running}`; windows with a step below that are not scored, here nor in the figures.", "",
             "## Figures", "",
             f"Trained on simulator seeds {seeds(TRAIN)}; {references} reference scores from seeds {seeds(REFERENCE)} "
             f"(healthy, non-overlapping windows); judged on seeds {seeds(NORMAL)} (healthy) and {seeds(FAULTY)} (with faults). "
             "The score limit for a p-value beyond the reference scores comes from a generalised Pareto tail fitted to them.", "",
             "| p-value limit | score limit | healthy hours | windows | false alarms per hour | windows flagged | highest healthy score |",
             "|---|---|---|---|---|---|---|"]
    for p, j in judged.items():
        lines.append(f"| {p:g} | {thresholds[p]:.4g} | {j['hours']:g} | {j['windows']} | {j['false_alarms_per_hour']:.3g} | "
                     f"{j['false_alarm_rate']:.2g} | {j['worst_normal_score']:.4g} |")
    lines += ["", "| p-value limit | fault | injected | detected | median delay, s | recall by window | precision by window |",
              "|---|---|---|---|---|---|---|"]
    for p, j in judged.items():
        for fault, f in j["faults"].items():
            lines.append(f"| {p:g} | {fault} | {f['injected']} | {f['detected']} | {f['median_delay_s']:.1f} | "
                         f"{j['recall']:.3f} | {j['precision']:.3f} |")
    lines += ["", "A fault counts as detected when a window that ends within it is flagged. Recall counts every window that "
              "ends within a fault, also the first, which is mostly healthy.", "", "## Limits", "", about["limits"],
              f"\nMade by `python models/train/{about['script']}`, which also wrote this card.", ""]
    return "\n".join(lines)


P_VALUES = (1e-4, 1e-5, 1e-6)


def judge_all(score, scores, running, normal, faulty, process):
    """Thresholds and figures for each p-value limit; prints the table."""
    thresholds = {p: tail_threshold(scores, p) for p in P_VALUES}
    judged = {p: judge(score, running, thresholds[p], normal, faulty, process) for p in P_VALUES}
    for p, j in judged.items():
        print(f"p {p:g}: limit {thresholds[p]:.4g} (median {np.median(scores):.4g}, worst healthy {j['worst_normal_score']:.4g}), "
              f"{j['false_alarms_per_hour']:.3g} false alarms/h over {j['hours']} h, recall {j['recall']}, precision {j['precision']}")
        for fault, f in j["faults"].items():
            print(f"    {fault}: {f['detected']} of {f['injected']}, median delay {f['median_delay_s']:.1f} s")
    return thresholds, judged


def example_cases(normal, faulty, running, process):
    """Golden inputs: a healthy window, one within each kind of process fault, and a batch of two."""
    x, _ = windows(normal[0], running, STEPS)
    cases, found = [("healthy", x[:1])], {}
    for run in faulty:
        w, ends = windows(run, running, STRIDE)
        for first, last, fault in events(run.faults):
            inside = w[(ends > first + STEPS) & (ends <= last)]
            if fault in process and fault not in found and len(inside):
                found[fault] = inside[-1:]
    cases += [(fault.replace("_", "-"), w) for fault, w in sorted(found.items())]
    return cases + [("batch", x[1:3])]
