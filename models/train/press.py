"""Trains and judges models/press-anomaly: an autoencoder of the shape of a press cycle."""

import numpy as np

from common import *

SIGNALS = [("position", "mm"), ("force", "kN"), ("oil_pressure", "bar"), ("motor_current", "A"),
           ("oil_temperature", "degC")]
RUNNING, RUNNING_TEXT = (3, 12.0), "motor_current > 12"
PROCESS = ("oil_leak",)
# Phase, recipe, stiffness, how long it held and waited, temperature.
LAYERS = [STEPS * 5, 192, 64, 12, 64, 192, STEPS * 5]


def main():
    csv = arguments().csv
    names, train = simulate(csv, "press", TRAIN)
    assert names == [name for name, _ in SIGNALS], names
    x = all_windows(train, RUNNING, 4)
    stats = channel_stats(x)
    mean, std = np.array(stats["mean"], np.float32), np.array(stats["std"], np.float32)
    z = ((x - mean) / std).reshape(len(x), -1)
    net = Dense(LAYERS, seed=1)
    print(f"{len(x)} windows, loss {net.fit(z, z, 6, batch=256, rate=2e-3):.5f}")
    # What is rare in healthy running (a start, a stop, a very warm day) must be learnt as well as the rest,
    # or it makes the tail of the scores, and with it every limit, far too high.
    errors = ((net(z) - z) ** 2).mean(axis=1)
    rare = z[errors > np.quantile(errors, 0.96)]
    more = np.concatenate([z, *[rare] * 8])
    print(f"again with {len(rare)} rare windows, loss {net.fit(more, more, 8, batch=256, rate=2e-3):.5f}")

    graph = Graph()
    scaled = graph.op("Div", graph.op("Sub", "window", mean), std)
    rebuilt = graph.dense(net, graph.reshape(scaled, [-1, STEPS * len(SIGNALS)]))
    rebuilt = graph.reshape(rebuilt, [-1, STEPS, len(SIGNALS)])
    graph.op("Add", graph.op("Mul", rebuilt, std), mean, name="reconstruction")
    shape = [-1, STEPS, len(SIGNALS)]
    model = graph.model("press-anomaly", [("window", shape)], [("reconstruction", shape)])

    run = session(model)
    score = lambda w: reconstruction_scores(w, run.run(None, {"window": w})[0], np.array(stats["std"]))[0]
    scores = score(all_windows(simulate(csv, "press", REFERENCE)[1], RUNNING, STEPS))
    normal, faulty = simulate(csv, "press", NORMAL)[1], simulate(csv, "press", FAULTY, True)[1]
    thresholds, judged = judge_all(score, scores, RUNNING, normal, faulty, PROCESS)
    write_bundle(
        "press-anomaly", model, [("reconstruction", shape)], "reconstruction", SIGNALS, x, scores, judged, thresholds,
        RUNNING_TEXT, example_cases(normal, faulty, RUNNING, PROCESS), {
            "script": "press.py",
            "description": "Tells when the cycle of a hydraulic press no longer has the shape it should.",
            "what": "An autoencoder (160-192-64-12-64-192-160, tanh) rebuilds the whole window, most of one cycle, from twelve "
                    "numbers. The score is the squared difference in units of each channel's standard deviation, averaged "
                    "over steps and channels; a channel's share is its part of that sum.",
            "limits": "Trained and judged on simulated presses only, with three recipes. A new recipe on a real press is "
                      "an anomaly until learnt. Faults were at 0.7 to 1.0 of full severity.",
        })


if __name__ == "__main__":
    main()
