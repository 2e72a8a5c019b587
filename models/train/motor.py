"""Trains and judges models/motor-health: how far a motor is from what its speed and load explain,
and how worn its bearing looks."""

import numpy as np

from common import *

SIGNALS = [("speed", "rpm"), ("load", "%"), ("motor_current", "A"), ("vibration_rms", "mm/s"),
           ("vibration_kurtosis", "1"), ("bearing_band", "g"), ("bearing_temperature", "degC")]
RUNNING, RUNNING_TEXT = (0, 750.0), "speed > 750"
PROCESS = ("bearing_wear", "imbalance")
# Vibration figures are off by a share of themselves, the others by an amount.
RELATIVE = np.array([0, 1, 0, 1, 0], np.float32)
CONTEXT_LIMIT = 3.0


def symptoms(x, net, mean, std):
    """Per window: mean difference [N, 5] of the five effects from what speed and load explain."""
    context = (x[..., :2] - mean[:2]) / std[:2]
    expected = net(context.reshape(-1, 2), 65536).reshape(*x.shape[:2], 5) * std[2:] + mean[2:]
    unit = (1 - RELATIVE) + RELATIVE * expected
    return ((x[..., 2:] - expected) / unit).mean(axis=1)


def fit_wear(csv, net, mean, std):
    """Weights [5] that turn symptoms into wear, 0 to 1, by least squares on runs in which it grows;
    an imbalance counts as no wear."""
    rows, wear = [], []
    for run in simulate(csv, "motor", WEAR, True)[1]:
        x, ends = windows(run, RUNNING, STRIDE)
        r = symptoms(x, net, mean, std)
        quiet = np.array([not any(run.faults[e - STEPS + 1:e + 1]) for e in ends], dtype=bool)
        rows.append(r[quiet])
        wear.append(np.zeros(int(quiet.sum())))
        for first, last, fault in events(run.faults):
            inside = (ends - STEPS + 1 >= first) & (ends <= last)
            if fault in PROCESS and inside.any():
                rows.append(r[inside])
                middle = (ends[inside] - STEPS / 2 - first) / (last - first)
                # The simulator's law of growth at its mean severity.
                wear.append(0.85 * (0.2 + 0.8 * middle) if fault == "bearing_wear" else np.zeros(int(inside.sum())))
    rows, wear = np.concatenate(rows), np.concatenate(wear)
    # Heat comes late and goes late: it would call a repaired bearing worn.
    use = np.array([0, 1, 1, 1, 0], dtype=bool)
    weights = np.zeros(5)
    weights[use] = np.linalg.lstsq(rows[:, use], wear, rcond=None)[0]
    print("wear weights", weights.round(3), "rms error", np.sqrt(((rows @ weights - wear) ** 2).mean()).round(4))
    return weights


def build(net, mean, std, whiten, sigma, wear_weights, wear_zero):
    """The graph: symptoms, their Mahalanobis distance, each channel's share, and health."""
    g = Graph()
    context = g.op("Slice", "window", g.constant([0], np.int64), g.constant([2], np.int64), g.constant([2], np.int64))
    effects = g.op("Slice", "window", g.constant([2], np.int64), g.constant([7], np.int64), g.constant([2], np.int64))
    scaled = g.op("Div", g.op("Sub", context, mean[:2]), std[:2])
    expected = g.op("Add", g.op("Mul", g.dense(net, scaled), std[2:]), mean[2:])
    unit = g.op("Add", g.op("Mul", expected, RELATIVE), 1 - RELATIVE)
    off = g.op("ReduceMean", g.op("Div", g.op("Sub", effects, expected), unit), axes=[1], keepdims=0)
    white = g.op("MatMul", off, whiten)
    distance = g.op("ReduceMean", g.op("Mul", white, white), axes=[1], keepdims=0)
    # Speed and load explain the others; they count themselves only where no healthy motor was seen.
    middle = g.op("ReduceMean", scaled, axes=[1], keepdims=0)
    beyond = g.op("Add", g.op("Relu", g.op("Sub", middle, np.float32(CONTEXT_LIMIT))),
                  g.op("Relu", g.op("Sub", g.op("Mul", middle, np.float32(-1)), np.float32(CONTEXT_LIMIT))))
    beyond = g.op("Mul", beyond, np.float32(3))
    beyond = g.op("Mul", beyond, beyond)
    g.op("Add", distance, g.op("ReduceMean", beyond, axes=[1], keepdims=0), name="score")
    single = g.op("Div", off, sigma)
    parts = g.op("Concat", beyond, g.op("Mul", single, single), axis=1)
    parts = g.op("Add", parts, np.float32(1e-6))
    g.op("Div", parts, g.op("MatMul", parts, np.ones((7, 1), np.float32)), name="contributions")
    wear = g.op("Sub", g.op("MatMul", off, wear_weights.reshape(5, 1)), np.float32(wear_zero))
    clipped = g.op("Sub", g.op("Relu", wear), g.op("Relu", g.op("Sub", wear, np.float32(1))))
    g.reshape(g.op("Sub", np.float32(1), clipped), [-1], name="health")
    return g.model("motor-health", [("window", [-1, STEPS, 7])],
                   [("score", [-1]), ("contributions", [-1, 7]), ("health", [-1])])


def judge_health(run, faulty, normal):
    """Health on healthy runs, at the end of a bearing fault and at the end of an imbalance."""
    health = lambda w: run.run(["health"], {"window": w})[0]
    figures = {"healthy": np.concatenate([health(windows(r, RUNNING, STEPS)[0]) for r in normal])}
    for r in faulty:
        x, ends = windows(r, RUNNING, STRIDE)
        for first, last, fault in events(r.faults):
            last_windows = x[(ends > last - STRIDE) & (ends <= last)]
            if fault in PROCESS and len(last_windows):
                figures[fault] = np.append(figures.get(fault, []), health(last_windows))
    return {k: (round(float(np.median(v)), 3), round(float(v.min()), 3), round(float(v.max()), 3)) for k, v in figures.items()}


def main():
    csv = arguments().csv
    names, train = simulate(csv, "motor", TRAIN)
    assert names == [name for name, _ in SIGNALS], names
    x = all_windows(train, RUNNING, 6)
    stats = channel_stats(x)
    mean, std = np.array(stats["mean"], np.float32), np.array(stats["std"], np.float32)
    z = ((x - mean) / std)[:, ::6].reshape(-1, 7)
    net = Dense([2, 16, 16, 5], seed=1)
    print(f"{len(x)} windows, loss {net.fit(z[:, :2], z[:, 2:], 6, batch=512, rate=4e-3):.5f}")

    r = symptoms(x, net, mean, std)
    values, vectors = np.linalg.eigh(np.cov(r.T))
    whiten = (vectors / np.sqrt(values)).astype(np.float32)
    wear_weights = fit_wear(csv, net, mean, std)
    healthy_wear = r @ wear_weights
    # Unit-to-unit differences are not wear: health starts to fall beyond what 99 % of healthy windows show.
    wear_zero = float(np.quantile(healthy_wear, 0.99))
    model = build(net, mean, std, whiten, r.std(axis=0).astype(np.float32), wear_weights.astype(np.float32), wear_zero)

    run = session(model)
    score = lambda w: run.run(["score"], {"window": w})[0].astype(np.float64) if len(w) else np.zeros(0)
    scores = score(all_windows(simulate(csv, "motor", REFERENCE)[1], RUNNING, STEPS))
    normal, faulty = simulate(csv, "motor", NORMAL)[1], simulate(csv, "motor", FAULTY, True)[1]
    thresholds, judged = judge_all(score, scores, RUNNING, normal, faulty, PROCESS)
    health = judge_health(run, faulty, normal)
    print("health (median, least, most):", health)
    told = "; ".join(f"{k.replace('_', ' ')}: median {m}, {a} to {b}" for k, (m, a, b) in health.items())
    write_bundle(
        "motor-health", model, [("score", [-1]), ("contributions", [-1, 7]), ("health", [-1])], "score", SIGNALS, x, scores,
        judged, thresholds, RUNNING_TEXT, example_cases(normal, faulty, RUNNING, PROCESS), {
            "script": "motor.py",
            "description": "Tells when a motor's current, vibration or bearing temperature is not what its speed and load "
                           "explain, and how healthy its bearing is.",
            "what": "A small network (2-16-16-5, tanh) says what current, vibration, kurtosis, bearing band and bearing "
                    "temperature go with speed and load at each step. `score` is the Mahalanobis distance of the window's mean "
                    "differences, divided by five, plus a part for a speed or load no healthy motor had. `contributions` are "
                    "each channel's own squared difference as a share. `health` falls from 1 to 0 as vibration, kurtosis and "
                    f"bearing band show wear; an imbalance alone is not wear. On unseen runs: {told} (at the fault's last window).",
            "limits": "Trained and judged on simulated motors only, whose vibration differs by about 5 % from unit to unit. "
                      "Health 0 is the simulator's fully worn bearing, no standard's limit. Wear here takes seconds to grow; a "
                      "real bearing takes weeks. Faults were at 0.7 to 1.0 of full severity.",
        })


if __name__ == "__main__":
    main()
