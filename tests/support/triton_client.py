"""Triton's own client against the models that andon serves: lists, describes, infers. Prints what it got
as one JSON object. Arguments: host:port, the bundle's directory."""

import json
import pathlib
import sys

import numpy as np
import tritonclient.http as http

address, bundle = sys.argv[1], pathlib.Path(sys.argv[2])
client = http.InferenceServerClient(address)
name = json.loads((bundle / "model.json").read_text())["name"]
case = json.loads((bundle / "golden.json").read_text())[0]
sent = case["request"]["inputs"][0]
window = np.array(sent["data"], dtype=np.float32).reshape(sent["shape"])
wanted = {o["name"]: np.array(o["data"], dtype=np.float32).reshape(o["shape"]) for o in case["response"]["outputs"]}

worst = 0.0
for binary in (True, False):
    tensor = http.InferInput("window", list(window.shape), "FP32")
    tensor.set_data_from_numpy(window, binary_data=binary)
    outputs = [http.InferRequestedOutput(o, binary_data=binary) for o in wanted]
    result = client.infer(name, [tensor], outputs=outputs, request_id="case-1")
    assert result.get_response()["id"] == "case-1", result.get_response()
    for output, values in wanted.items():
        got = result.as_numpy(output)
        assert got.shape == values.shape, (output, got.shape, values.shape)
        worst = max(worst, float(np.max(np.abs(got - values))))

refused = None
try:
    client.load_model(name, config="{}")
except Exception as error:  # the client has several kinds
    refused = str(error)

print(json.dumps({
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "server": client.get_server_metadata()["name"],
    "model_ready": client.is_model_ready(name),
    "metadata": client.get_model_metadata(name),
    "index": client.get_model_repository_index(),
    "worst": worst,
    "refused": refused,
}))
