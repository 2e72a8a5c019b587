"""Trains and judges models/turbofan-rul: the cycles a turbofan has left, with an interval, from running
means that the model keeps as its state. Needs NASA's C-MAPSS files; everything that is chosen is chosen
by cross-validation over training engines, and the test engines are looked at once, at the end.

To remake the bundle: pip install -r models/train/requirements.txt, then
OMP_NUM_THREADS=1 python models/train/turbofan.py --data DIR (some ten minutes on one core)."""

import argparse
import datetime
import hashlib
import json
import pathlib

import numpy as np

from common import OPSET, ROOT, Dense, Graph, session, tensor

NAME = "turbofan-rul"
# Column in NASA's files (the first sensor is 5), name, unit; the other sensors never move at sea level.
SENSORS = [(6, "T24", "degR"), (7, "T30", "degR"), (8, "T50", "degR"), (11, "P30", "psia"), (12, "Nf", "rpm"),
           (13, "Nc", "rpm"), (15, "Ps30", "psia"), (16, "phi", "pps/psi"), (17, "NRf", "rpm"), (18, "NRc", "rpm"),
           (19, "BPR", "1"), (21, "htBleed", "1"), (24, "W31", "lbm/s"), (25, "W32", "lbm/s")]
CHANNELS = len(SENSORS)
# The published protocol: more than this counts as this.
CAP = 125
# Running means over about so many cycles, and the mean of the engine's first cycles.
MEMORIES, FIRST = (4, 12, 30), 15
AGE = 200.0
SIZES, EPOCHS, BATCH, RATE, NOISE = (64, 32), 12, 256, 2e-3, 0.03
# Nets in one model, whose answers are averaged; models of other seeds, to tell luck from worth.
NETS, SEEDS, FOLDS = 3, 5, 3
# Engines at other altitudes teach too, by every third of their cycles.
THIN = 3
# The interval holds the truth in so many of a hundred cases, on engines not learnt from.
COVERED, KNOTS = 90, np.array([0, 15, 30, 50, 75, 100, 125], float)


# --- data ------------------------------------------------------------------------------------

def load(path):
    """One array [cycles, columns] for each engine."""
    table = np.loadtxt(path)
    return [table[table[:, 0] == unit] for unit in np.unique(table[:, 0])]


def sensors(engine):
    return engine[:, [column for column, _, _ in SENSORS]]


def condition(engine):
    """Altitude and speed of each cycle, as a number that is the same for the same flight condition."""
    return (np.round(engine[:, 2] / 10) * 100 + np.round(engine[:, 3] * 4)).astype(int)


def scales(engines):
    """Mean and deviation of every sensor, by flight condition."""
    rows = np.concatenate(engines)
    kind, values = condition(rows), sensors(rows)
    return {k: (values[kind == k].mean(axis=0), values[kind == k].std(axis=0)) for k in np.unique(kind)}


def scaled(engine, by):
    kind = condition(engine)
    mean, std = (np.array([by[k][i] for k in kind]) for i in (0, 1))
    return (sensors(engine) - mean) / std


def features(x):
    """[cycles, features] of an engine's scaled sensors [cycles, channels]; each row knows only what was."""
    count = np.arange(1, len(x) + 1)
    parts = []
    for memory in MEMORIES:
        keep, total, weight, rows = np.exp(-1 / memory), np.zeros(CHANNELS), 0.0, []
        for row in x:
            total, weight = keep * total + (1 - keep) * row, keep * weight + 1 - keep
            rows.append(total / weight)
        parts.append(np.array(rows))
    sums = np.cumsum(x[:FIRST], axis=0)
    early = np.minimum(count, FIRST)
    parts.append(np.array([sums[min(n, len(sums)) - 1] / n for n in early]))
    return np.concatenate([*parts, count[:, None] / AGE, early[:, None] / FIRST], axis=1).astype(np.float32)


def left(engine):
    """Cycles left after each cycle of an engine that ran until it failed."""
    return np.arange(len(engine) - 1, -1, -1.0)


# --- training --------------------------------------------------------------------------------

class Ensemble:
    """Nets that saw the same engines in another order, averaged."""

    def __init__(self, engines, seed):
        x = np.concatenate([f for f, _ in engines])
        y = (np.minimum(np.concatenate([r for _, r in engines]), CAP) / CAP).astype(np.float32)[:, None]
        self.mean, self.std = x.mean(axis=0), x.std(axis=0) + 1e-6
        self.nets = []
        for net in range(NETS):
            dense = Dense([x.shape[1], *SIZES, 1], seed=100 * seed + net)
            dense.fit((x - self.mean) / self.std, y, EPOCHS, batch=BATCH, rate=RATE, noise=NOISE, seed=100 * seed + net)
            self.nets.append(dense)

    def __call__(self, x):
        z = (x - self.mean) / self.std
        return np.clip(np.mean([net(z)[:, 0] for net in self.nets], axis=0) * CAP, 0, CAP)


def thinned(engines):
    return [(f[::THIN], r[::THIN]) for f, r in engines]


def cross_validate(own, other, seed):
    """What engines not learnt from are said to have left, and what they have: late enough and with as
    little left as test engines."""
    folds = {k: np.random.default_rng(0).permutation(len(e)) % FOLDS for k, e in own.items()}
    said, true, healthy = {k: [] for k in own}, {k: [] for k in own}, []
    for fold in range(FOLDS):
        learnt = [e for k in own for e, f in zip(own[k], folds[k]) if f != fold]
        model = Ensemble(learnt + other, seed)
        for k in own:
            for (x, r), f in zip(own[k], folds[k]):
                if f == fold:
                    use = (r >= 6) & (r <= 145) & (np.arange(len(r)) >= 30)
                    answer = model(x)
                    said[k].append(answer[use])
                    true[k].append(r[use])
                    healthy.append(answer[(r > CAP) & (np.arange(len(r)) >= 10)])
    flat = lambda d: {k: np.concatenate(v) for k, v in d.items()}
    return flat(said), flat(true), np.concatenate(healthy)


def figures(said, true):
    """RMSE and PHM08 score per 100 engines, both capped and not."""
    score = lambda d: float(np.where(d < 0, np.exp(-d / 13) - 1, np.exp(d / 10) - 1).sum() * 100 / len(d))
    out = {}
    for name, off in (("capped", said - np.minimum(true, CAP)), ("uncapped", said - true)):
        out[name] = (round(float(np.sqrt((off ** 2).mean())), 2), round(score(off), 1))
    return out


def interval(said, true):
    """How far below and above the median the interval reaches, at each knot of the median."""
    off, reach = np.minimum(true, CAP) - said, []
    for knot in KNOTS:
        near = off[np.argsort(np.abs(said - knot))[:max(300, len(off) // 12)]]
        # A little wider than counted: the test engine is one more.
        reach.append(np.quantile(near, [(50 - COVERED / 2) / 100, (50 + COVERED / 2) / 100]))
    low, high = np.array(reach).T
    return np.minimum(low, 0), np.maximum(high, 0)


# --- the graph -------------------------------------------------------------------------------

def bent(g, x, values):
    """A line through `values` at the knots, of `x` [N, 1] within them."""
    slopes = np.diff(values) / np.diff(KNOTS)
    turns = np.diff(slopes, prepend=0).astype(np.float32)
    parts = g.op("Relu", g.op("Sub", x, KNOTS[:-1].astype(np.float32)[None]))
    return g.op("Add", g.op("MatMul", parts, turns[:, None]), np.float32(values[0]))


def limited(g, x, low, high):
    return g.op("Min", g.op("Max", x, np.float32(low)), np.float32(high))


def build(model, by, low, high):
    """window [N, 1, channels] and the states to rul [N, 3] and the states after it."""
    g, m = Graph(), len(MEMORIES)
    (mean, std), = by.values()
    x = g.op("Div", g.op("Sub", g.reshape("window", [-1, CHANNELS]), mean.astype(np.float32)), std.astype(np.float32))
    count = g.op("Add", "state_count", np.float32(1), name="state_count_next")
    keep = np.exp(-1 / np.array(MEMORIES)).astype(np.float32)
    weight = g.op("Add", g.op("Mul", "state_weight", keep), 1 - keep, name="state_weight_next")
    # Each mean moves by its own rate; a 0/1 product spreads rates over channels, and channels over means.
    rates = g.op("MatMul", g.op("Div", 1 - keep, weight), np.kron(np.eye(m), np.ones((1, CHANNELS))))
    wide = g.op("MatMul", x, np.tile(np.eye(CHANNELS), (1, m)))
    means = g.op("Add", "state_means", g.op("Mul", rates, g.op("Sub", wide, "state_means")), name="state_means_next")
    young = limited(g, g.op("Sub", np.float32(FIRST + 1), count), 0, 1)
    rate = g.op("Div", young, count)
    first = g.op("Add", "state_first", g.op("Mul", rate, g.op("Sub", x, "state_first")), name="state_first_next")
    early = g.op("Div", g.op("Min", count, np.float32(FIRST)), np.float32(FIRST))
    z = g.op("Concat", means, first, g.op("Div", count, np.float32(AGE)), early, axis=1)
    z = g.op("Div", g.op("Sub", z, model.mean.astype(np.float32)), model.std.astype(np.float32))
    answers = g.op("Concat", *[g.dense(net, z) for net in model.nets], axis=1)
    median = limited(g, g.op("MatMul", answers, np.full((NETS, 1), CAP / NETS)), 0, CAP)
    reach = [limited(g, g.op("Add", median, bent(g, median, v)), 0, CAP) for v in (low, high)]
    g.op("Concat", reach[0], median, reach[1], axis=1, name="rul")
    states = [("state_means", [-1, m * CHANNELS]), ("state_first", [-1, CHANNELS]), ("state_weight", [-1, m]), ("state_count", [-1, 1])]
    inputs = [("window", [-1, 1, CHANNELS]), *states]
    outputs = [("rul", [-1, 3]), *[(n + "_next", shape) for n, shape in states]]
    return g.model(NAME, inputs, outputs), inputs, outputs


def through(run, inputs, engine):
    """What the graph says after each cycle [cycles, 3], and requests and answers on the way."""
    names = [o.name for o in run.get_outputs()]
    kept = {n: np.zeros((1, *shape[1:]), np.float32) for n, shape in inputs[1:]}
    said, course = [], []
    for row in sensors(engine).astype(np.float32):
        asked = {"window": row[None, None], **kept}
        answer = dict(zip(names, run.run(names, asked)))
        course.append((asked, answer))
        said.append(answer["rul"][0])
        kept = {n: answer[n + "_next"] for n in kept}
    return np.array(said), course


# --- the bundle ------------------------------------------------------------------------------

def golden(run, inputs, engine):
    _, course = through(run, inputs, engine)
    tensors = lambda named: [tensor(n, v) for n, v in named.items()]
    return [{
        "request": {"id": f"cycle-{at + 1}", "inputs": tensors(course[at][0])},
        "response": {"id": f"cycle-{at + 1}", "model_name": NAME, "model_version": "1", "outputs": tensors(course[at][1])},
        "rtol": 1e-3, "atol": 1e-3,
    } for at in sorted({0, 1, FIRST, len(course) // 2, len(course) - 1})]


def write(onnx_bytes, inputs, outputs, engines, healthy, cases, metrics, card):
    bundle = ROOT / "models" / NAME
    bundle.mkdir(parents=True, exist_ok=True)
    dump = lambda file, value, indent: (bundle / file).write_text(json.dumps(value, indent=indent) + "\n", "utf-8")
    short = lambda v: float(f"{v:.6g}")
    values = sensors(np.concatenate(engines))
    (bundle / "model.onnx").write_bytes(onnx_bytes)
    dump("golden.json", cases, None)
    scores = np.sort(1 - healthy / CAP)
    dump("reference.json", {"scores": [short(s) for s in scores[:: max(1, len(scores) // 4000)]]}, None)
    described = lambda listed: [{"name": n, "datatype": "FP32", "shape": shape} for n, shape in listed]
    dump("model.json", {
        "schema": "andon.model/v1", "name": NAME, "version": "1", "platform": "onnx_onnxv1",
        "descriptor": {
            "createdAt": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "authors": ["andon"], "licenses": ["Apache-2.0"],
            "description": "Cycles that a turbofan at sea level has left, with an interval.",
        },
        "config": {"format": "onnx", "precision": "float32", "opset": OPSET},
        "inputs": described(inputs), "outputs": described(outputs), "task": "rul", "rul_cap": CAP,
        "window": {"steps": 1, "stride": 1, "rate_ms": 1000},
        "channels": [{"name": name, "unit": unit, "mean": short(values[:, c].mean()), "std": short(values[:, c].std()),
                      "min": short(values[:, c].min()), "max": short(values[:, c].max())}
                     for c, (_, name, unit) in enumerate(SENSORS)],
        "metrics": metrics,
        "compat": {"agent": ">=0.1", "max_opset": OPSET},
        "sequence": 1,
        "digests": {f: hashlib.sha256((bundle / f).read_bytes()).hexdigest()
                    for f in ("model.onnx", "golden.json", "reference.json")},
    }, 1)
    (bundle / "MODEL_CARD.md").write_text(card, "utf-8")
    print(f"wrote models/{NAME}: {len(onnx_bytes)} bytes of ONNX")


def card(validated, tested, median, spread):
    rows = [f"| {k} | {figure['capped'][0]} / {figure['capped'][1]} | {figure['uncapped'][0]} / {figure['uncapped'][1]} |"
            for k, figure in validated.items()]
    ours = []
    for k, t in tested.items():
        f, s = t["figures"], t["seeds"]
        ours.append(f"| {k} | {f['capped'][0]} / {f['capped'][1]} | {f['uncapped'][0]} / {f['uncapped'][1]} | "
                    f"{s['rmse']} / {s['score']} | {t['covered']:.0f} % | {t['width']:.0f} |")
    return "\n".join([
        f"# {NAME}", "", "Cycles that a turbofan at sea level has left, with an interval.", "",
        "C-MAPSS is a simulator: these are no real engines, and a model for your machines has to be trained on runs of them "
        "until failure. It shows what a model of remaining life looks like here, and how well it can do.", "",
        f"Each cycle is one step. The model keeps running means of its {CHANNELS} sensors over about "
        f"{', '.join(map(str, MEMORIES))} cycles, the mean of the engine's first {FIRST}, and its age; {NETS} small networks "
        f"({'-'.join(map(str, [len(MEMORIES) * CHANNELS + CHANNELS + 2, *SIZES, 1]))}, tanh) make of them the cycles left, up to "
        f"{CAP}, and their mean is the median. The interval was counted on engines left out of training, by how many cycles were "
        "said to be left.", "",
        "| channel | unit |", "|---|---|", *[f"| `{n}` | {u} |" for _, n, u in SENSORS], "",
        "## Figures", "",
        f"RMSE in cycles / PHM08 score (per 100 engines). Capped: more than {CAP} cycles count as {CAP}, as is usual for these "
        "sets. Trained on the training engines of all four sets (FD002 and FD004 scaled by flight condition, every "
        f"{THIN}rd cycle). Test engines: the last cycle of each. This model is the one of {SEEDS} seeds that is the median in "
        "cross-validation; the column of seeds has the median of all of them.", "",
        "| test engines | capped | uncapped | median of seeds, capped | within the 90 % interval | its width, cycles |",
        "|---|---|---|---|---|---|", *ours, "",
        f"Cross-validation over training engines, all cycles with 6 to 145 left ({FOLDS} folds), by which all was chosen:", "",
        "| training engines | capped | uncapped |", "|---|---|---|", *rows, "",
        f"Capped RMSE of the seeds in cross-validation: {', '.join(f'{s:.2f}' for s in spread)}; this is seed {median}.", "",
        "## Limits", "",
        "Sea level only, and the two ways of failing in the data. The first 15 cycles of an engine have to be healthy: they are "
        "what it is compared with. An engine whose record begins late is judged badly. Above 125 the answer says no more than "
        "\"long\".",
        "\nMade by `python models/train/turbofan.py`, which also wrote this card. Data: A. Saxena and K. Goebel, Turbofan Engine "
        "Degradation Simulation Data Set, NASA Prognostics Data Repository.", ""])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / ".." / "shared" / "data" / "cmapss")
    parser.add_argument("--try", dest="trial", action="store_true", help="cross-validate one seed only; write nothing")
    arguments = parser.parse_args()
    data = arguments.data
    engines = {k: load(data / f"train_{k}.txt") for k in ("FD001", "FD002", "FD003", "FD004")}
    # One scale for both sea-level sets: that is what the graph has.
    by = {"sea": scales(engines["FD001"] + engines["FD003"]), "high": scales(engines["FD002"] + engines["FD004"])}
    made = lambda k, scale: [(features(scaled(e, by[scale])), left(e)) for e in engines[k]]
    own = {k: made(k, "sea") for k in ("FD001", "FD003")}
    other = thinned(made("FD002", "high") + made("FD004", "high"))

    validated = []
    for seed in range(1, 2 if arguments.trial else SEEDS + 1):
        said, true, healthy = cross_validate(own, other, seed)
        every = figures(np.concatenate([*said.values()]), np.concatenate([*true.values()]))
        validated.append((every["capped"][0], seed, said, true, healthy))
        print(f"seed {seed}: cross-validated {every}", {k: figures(said[k], true[k]) for k in own}, flush=True)
    if arguments.trial:
        return
    _, median, said, true, healthy = sorted(validated, key=lambda v: v[0])[SEEDS // 2]
    pooled = np.concatenate([*said.values()]), np.concatenate([*true.values()])
    low, high = interval(*pooled)
    # All seeds are judged on the test engines, and the one chosen before is shipped.
    tests = {k: (load(data / f"test_{k}.txt"), np.loadtxt(data / f"RUL_{k}.txt")) for k in own}
    everything = [e for k in own for e in own[k]] + other
    judged = {k: [] for k in own}
    for seed in range(1, SEEDS + 1):
        model = Ensemble(everything, seed)
        for k, (units, truth) in tests.items():
            answer = np.array([model(features(scaled(e, by["sea"]))[-1:])[0] for e in units])
            judged[k].append(figures(answer, truth)["capped"])
        if seed == median:
            onnx_bytes, inputs, outputs = build(model, by["sea"], low, high)
        print(f"seed {seed}: test engines", {k: v[-1] for k, v in judged.items()}, flush=True)
    run, tested = session(onnx_bytes), {}
    for k, (units, truth) in tests.items():
        answers = np.array([through(run, inputs, e)[0][-1] for e in units])
        inside = (np.minimum(truth, CAP) >= answers[:, 0] - 1e-3) & (np.minimum(truth, CAP) <= answers[:, 2] + 1e-3)
        tested[k] = {
            "figures": figures(answers[:, 1], truth),
            "seeds": {"rmse": round(float(np.median([r for r, _ in judged[k]])), 2),
                      "score": round(float(np.median([s for _, s in judged[k]])), 1)},
            "covered": 100 * float(inside.mean()), "width": float(np.median(answers[:, 2] - answers[:, 0])),
        }
        print(k, tested[k], flush=True)
    metrics = {"dataset": "C-MAPSS (simulated), last cycle of each test engine", **tested}
    write(onnx_bytes, inputs, outputs, engines["FD001"] + engines["FD003"], healthy,
          golden(run, inputs, tests["FD001"][0][0]), metrics,
          card({k: figures(said[k], true[k]) for k in own}, tested, median, [v[0] for v in validated]))


if __name__ == "__main__":
    main()
