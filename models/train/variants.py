"""Tries half precision and 8-bit variants of every shipped bundle in andon itself, beside the original:
time, memory, size, and how far the answers move from the golden ones. Writes nothing.

Run: pip install -r models/train/requirements.txt, then python models/train/variants.py ANDON"""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from common import ROOT


class Windows(CalibrationDataReader):
    """The golden requests: what 8-bit ranges are taken from."""

    def __init__(self, bundle):
        cases = json.loads((bundle / "golden.json").read_text("utf-8"))
        read = lambda t: np.array(t["data"], np.float32).reshape(t["shape"])
        self.all = iter([{t["name"]: read(t) for t in case["request"]["inputs"]} for case in cases])

    def get_next(self):
        return next(self.all, None)


def original(bundle, path):
    shutil.copy(bundle / "model.onnx", path)


def half(bundle, path):
    """All weights and operations in 16 bits; inputs and outputs stay as they are."""
    onnx.save(convert_float_to_float16(onnx.load(bundle / "model.onnx"), keep_io_types=True), path)


def int8_dynamic(bundle, path):
    """Weights of products in 8 bits, activations scaled at each run."""
    quantize_dynamic(bundle / "model.onnx", path)


def int8_static(bundle, path):
    """Weights and activations of products in 8 bits with fixed scales (QDQ)."""
    quantize_static(bundle / "model.onnx", path, Windows(bundle), quant_format=QuantFormat.QDQ, op_types_to_quantize=["MatMul", "Conv"])


def measured(andon, bundle, make, place):
    """The bench's figures of a variant, or why there are none."""
    variant = place / "variant"
    shutil.copytree(bundle, variant)
    try:
        make(bundle, variant / "model.onnx")
    except Exception as error:  # the tools refuse some graphs
        return None, f"cannot be made: {str(error).splitlines()[0]}"
    manifest = json.loads((variant / "model.json").read_text("utf-8"))
    manifest["digests"]["model.onnx"] = hashlib.sha256((variant / "model.onnx").read_bytes()).hexdigest()
    (variant / "model.json").write_text(json.dumps(manifest), "utf-8")
    done = subprocess.run([andon, "model", "bench", "--json", "--time", "500ms", variant], capture_output=True, text=True)
    return (json.loads(done.stdout), None) if done.returncode == 0 else (None, done.stderr.strip().removeprefix("andon: ")[:110])


def main():
    andon = sys.argv[1]
    print(f"{'bundle':<16} {'variant':<13} {'onnx KiB':>8} {'1, µs':>9} {'by 32, µs':>9} {'memory KiB':>10} {'off by':>9} of what is allowed")
    for bundle in sorted(path.parent for path in (ROOT / "models").glob("*/model.json")):
        for make in (original, half, int8_dynamic, int8_static):
            with tempfile.TemporaryDirectory() as place:
                found, why = measured(andon, bundle, make, pathlib.Path(place))
            if why:
                print(f"{bundle.name:<16} {make.__name__:<13} {why}", flush=True)
                continue
            one, many = found["latency"][2], found["latency"][3]
            # JSON has no word for an answer that is not a number.
            off, part = (float("nan") if found["golden"][key] is None else found["golden"][key] for key in ("largest", "of_tolerance"))
            print(f"{bundle.name:<16} {make.__name__:<13} {found['onnx_bytes'] / 1024:>8.1f} {one['p50_us']:>9.1f} "
                  f"{many['per_window_us']:>9.2f} {found['memory_bytes'] / 1024:>10.0f} {off:>9.1e} {part:>9.2g}", flush=True)


if __name__ == "__main__":
    main()
