"""A runtime for MLServer that serves one of our bundles through onnxruntime: `uri` in the model's settings
names its directory. Where the graph gives a score that is the answer, else how far its reconstruction is off,
in units of each channel's deviation."""

import json
import pathlib

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Bundle(MLModel):
    async def load(self) -> bool:
        bundle = pathlib.Path(self.settings.parameters.uri)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(bundle / "model.onnx", options)
        channels = json.loads((bundle / "model.json").read_text())["channels"]
        self.std = np.array([c["std"] for c in channels], np.float32)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        window = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        names = [o.name for o in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, {"window": window})))
        score = found.get("score")
        if score is None:
            score = np.mean(((found["reconstruction"] - window) / self.std) ** 2, axis=(1, 2))
        output = NumpyCodec.encode_output("score", score.astype(np.float32))
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[output])
