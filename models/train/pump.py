"""Trains and judges models/pump-anomaly: an autoencoder of one moment of a pump, averaged over the window."""

import numpy as np

from common import *

SIGNALS = [("speed", "rpm"), ("valve_position", "%"), ("flow", "m3/h"), ("suction_pressure", "bar"),
           ("discharge_pressure", "bar"), ("motor_current", "A"), ("fluid_temperature", "degC"),
           ("vibration_rms", "mm/s")]
RUNNING, RUNNING_TEXT = (0, 1600.0), "speed > 1600"
PROCESS = ("cavitation", "blocked_valve")
# Four numbers make a moment: speed, valve, temperature and the level of the tank.
LAYERS = [8, 32, 16, 4, 16, 32, 8]


def main():
    csv = arguments().csv
    names, train = simulate(csv, "pump", TRAIN)
    assert names == [name for name, _ in SIGNALS], names
    x = all_windows(train, RUNNING, 6)
    stats = channel_stats(x)
    mean, std = np.array(stats["mean"], np.float32), np.array(stats["std"], np.float32)
    z = (x - mean) / std
    # Duty changes are rare; without more weight their moments are reconstructed badly.
    moving = np.abs(z[:, -1, :2] - z[:, 0, :2]).max(axis=1) > 0.7
    moments = np.concatenate([z[moving][:, ::2].reshape(-1, 8), z[:, ::6].reshape(-1, 8)])
    net = Dense(LAYERS, seed=1)
    print(f"{len(x)} windows, {len(moments)} moments, loss {net.fit(moments, moments, 10, batch=512, rate=4e-3):.5f}")

    graph = Graph()
    scaled = graph.op("Div", graph.op("Sub", "window", mean), std)
    graph.op("Add", graph.op("Mul", graph.dense(net, scaled), std), mean, name="reconstruction")
    shape = [-1, STEPS, len(SIGNALS)]
    model = graph.model("pump-anomaly", [("window", shape)], [("reconstruction", shape)])

    run = session(model)
    score = lambda w: reconstruction_scores(w, run.run(None, {"window": w})[0], np.array(stats["std"]))[0]
    scores = score(all_windows(simulate(csv, "pump", REFERENCE)[1], RUNNING, STEPS))
    normal, faulty = simulate(csv, "pump", NORMAL)[1], simulate(csv, "pump", FAULTY, True)[1]
    thresholds, judged = judge_all(score, scores, RUNNING, normal, faulty, PROCESS)
    write_bundle(
        "pump-anomaly", model, [("reconstruction", shape)], "reconstruction", SIGNALS, x, scores, judged, thresholds,
        RUNNING_TEXT, example_cases(normal, faulty, RUNNING, PROCESS), {
            "script": "pump.py",
            "description": "Tells when a pump no longer behaves as speed, valve, temperature and suction say it should.",
            "what": "An autoencoder (8-32-16-4-16-32-8, tanh) rebuilds each moment of the window from four numbers. The "
                    "score is the squared difference in units of each channel's standard deviation, averaged over steps and "
                    "channels; a channel's share is its part of that sum. Since it judges moments and averages them, it says "
                    "nothing of rhythm or of a value that merely stopped changing.",
            "limits": "Trained and judged on simulated pumps only, which differ by about 1 % from unit to unit. For a real "
                      "pump, learn from its own healthy data. Faults were at 0.7 to 1.0 of full severity.",
        })


if __name__ == "__main__":
    main()
