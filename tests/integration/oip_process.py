"""Speaks the Open Inference Protocol through tritonclient, in a process of its own.

tritonclient's stubs and the gateway's register the same message names, so no process can hold both.
Reads one JSON object {"address", "key", "model", "texts", "pairs"} on stdin; writes one on stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


def infer(asked: dict[str, Any], texts: np.ndarray, headers: dict[str, str]) -> dict[str, Any]:
    """Scores and labels of a batch, by the client library."""
    client = triton.InferenceServerClient(asked["address"])
    given = triton.InferInput("text", list(texts.shape), "BYTES")
    given.set_data_from_numpy(texts)
    result = client.infer(asked["model"], [given], headers=headers, request_id="r1")
    return {
        "scores": result.as_numpy("scores").tolist(),
        "label": [label.decode() for label in result.as_numpy("label").tolist()],
        "version": result.get_response().model_version,
        "id": result.get_response().id,
    }


def describe(asked: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """What the server says of itself and of the model."""
    client = triton.InferenceServerClient(asked["address"])
    metadata = client.get_model_metadata(asked["model"], headers=headers, as_json=True)
    index = client.get_model_repository_index(headers=headers, as_json=True)
    return {
        "live": client.is_server_live(headers=headers),
        "ready": client.is_server_ready(headers=headers),
        "model_ready": client.is_model_ready(asked["model"], headers=headers),
        "none_ready": is_ready(client, "none", headers),
        "server": client.get_server_metadata(headers=headers, as_json=True)["name"],
        "inputs": [(one["name"], one["datatype"]) for one in metadata["inputs"]],
        "outputs": [(one["name"], one["datatype"]) for one in metadata["outputs"]],
        "index": [one["name"] for one in index.get("models", [])],
    }


def is_ready(client: triton.InferenceServerClient, model: str, headers: dict[str, str]) -> bool:
    """Whether a model is ready; an unknown one may be an answer or an error."""
    try:
        return bool(client.is_model_ready(model, headers=headers))
    except InferenceServerException:
        return False


def _request(model: str, datatype: str, shape: list[int]) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="text", datatype=datatype, shape=shape)
    return request


def bad_requests(model: str) -> dict[str, service_pb2.ModelInferRequest]:
    """Requests that are wrong, each in one way."""
    requests: dict[str, service_pb2.ModelInferRequest] = {}
    requests["invalid utf-8"] = _request(model, "BYTES", [1])
    requests["invalid utf-8"].inputs[0].contents.bytes_contents.append(b"\xff\xfe")
    requests["wrong shape"] = _request(model, "BYTES", [1, 3])
    requests["wrong shape"].inputs[0].contents.bytes_contents.extend([b"a", b"b", b"c"])
    requests["shape and contents differ"] = _request(model, "BYTES", [3])
    requests["shape and contents differ"].inputs[0].contents.bytes_contents.append(b"a")
    requests["wrong datatype"] = _request(model, "INT32", [1])
    requests["wrong datatype"].inputs[0].contents.int_contents.append(1)
    both = requests["both kinds of contents"] = _request(model, "BYTES", [1])
    both.inputs[0].contents.bytes_contents.append(b"a")
    both.raw_input_contents.append(b"\x01\x00\x00\x00a")
    requests["truncated raw"] = _request(model, "BYTES", [1])
    requests["truncated raw"].raw_input_contents.append(b"\xff\x00\x00\x00a")
    requests["wrong name"] = _request(model, "BYTES", [1])
    requests["wrong name"].inputs[0].name = "texts"
    requests["wrong name"].inputs[0].contents.bytes_contents.append(b"a")
    requests["no input"] = service_pb2.ModelInferRequest(model_name=model)
    requests["empty text"] = _request(model, "BYTES", [1])
    requests["empty text"].inputs[0].contents.bytes_contents.append(b"")
    unknown = requests["unknown model"] = _request("none", "BYTES", [1])
    unknown.inputs[0].contents.bytes_contents.append(b"a")
    version = requests["version is no number"] = _request(model, "BYTES", [1])
    version.model_version = "latest"
    version.inputs[0].contents.bytes_contents.append(b"a")
    return requests


def statuses(asked: dict[str, Any]) -> dict[str, str]:
    """The status of every wrong request, and of one without a key."""
    found: dict[str, str] = {}
    with grpc.insecure_channel(asked["address"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {asked['key']}"),)
        for name, request in bad_requests(asked["model"]).items():
            found[name] = _status(stub, request, metadata)
        good = _request(asked["model"], "BYTES", [1])
        good.inputs[0].contents.bytes_contents.append(b"a")
        found["no key"] = _status(stub, good, ())
        found["good"] = _status(stub, good, metadata)
    return found


def _status(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
    request: service_pb2.ModelInferRequest,
    metadata: tuple[tuple[str, str], ...],
) -> str:
    try:
        stub.ModelInfer(request, metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def main() -> None:
    """Do it all for what stdin asks."""
    asked = json.load(sys.stdin)
    headers = {"authorization": f"Bearer {asked['key']}"}
    texts = np.array([text.encode() for text in asked["texts"]], dtype=np.object_)
    pairs = np.array([[t.encode() for t in pair] for pair in asked["pairs"]], dtype=np.object_)
    answer = {
        "single": infer(asked, texts, headers),
        "pairs": infer(asked, pairs, headers),
        "about": describe(asked, headers),
        "statuses": statuses(asked),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
