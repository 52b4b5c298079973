"""The Open Inference Protocol: both encodings, every refusal, and Triton's own client."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from hmi.admin.v1 import resources_pb2
from hmi.executor.v1 import executor_pb2
from hmi.inference.v1 import inference_pb2
from hmi.oip.v1 import open_inference_pb2 as pb
from hmi.oip.v1.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.gateway.conftest import Stack, unique
from tests.gateway.test_predict import expect, request, violation

Tensor = pb.ModelInferRequest.InferInputTensor


def typed(*texts: bytes, shape: Sequence[int] | None = None, **fields: Any) -> Tensor:
    given: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": shape or [len(texts)]}
    contents = pb.InferTensorContents(bytes_contents=texts)
    return Tensor(**({"contents": contents} | given | fields))


def raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.fixture
async def tenant(stack: Stack) -> str:
    name = unique("acme")
    await stack.add_tenant(name)
    await stack.add_model(name, "topic")
    await stack.executor()
    return name


async def infer(stack: Stack, tenant: str, **fields: Any) -> pb.ModelInferResponse:
    stub = GRPCInferenceServiceStub(stack.channel)
    wanted = pb.ModelInferRequest(**({"model_name": "topic"} | fields))
    answer: pb.ModelInferResponse = await stub.ModelInfer(wanted, metadata=stack.metadata(tenant))
    return answer


async def test_typed_contents_are_answered_typed_and_raw_raw(stack: Stack, tenant: str) -> None:
    texts = (b"the cat", b"the dog ran")
    expected = await stack.inference.Predict(
        request("topic", *(t.decode() for t in texts)), metadata=stack.metadata(tenant)
    )
    scores = [[s.score for s in p.classification.scores] for p in expected.predictions]
    labels = [p.classification.label.encode() for p in expected.predictions]
    answer = await infer(stack, tenant, id="seven", inputs=[typed(*texts)])
    assert (answer.id, answer.model_name, answer.model_version) == ("seven", "topic", "1")
    assert answer.parameters["digest"].string_param == expected.provenance.digest
    by_name = {output.name: output for output in answer.outputs}
    assert list(by_name["scores"].shape) == [2, 3]
    assert list(by_name["scores"].contents.fp32_contents) == [v for row in scores for v in row]
    assert list(by_name["label"].contents.bytes_contents) == labels

    bare = typed(*texts, contents=None)
    in_bytes = await infer(stack, tenant, inputs=[bare], raw_input_contents=[raw(*texts)])
    values = np.frombuffer(in_bytes.raw_output_contents[0], "<f4").reshape(2, 3)
    assert values.tolist() == scores
    assert in_bytes.raw_output_contents[1] == raw(*labels)


async def test_pairs_and_chosen_outputs(stack: Stack, tenant: str) -> None:
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="label")
    pair = typed(b"the", b"cat", b"a", b"dog", shape=[2, 2])
    answer = await infer(stack, tenant, inputs=[pair], outputs=[wanted])
    assert [(o.name, list(o.shape)) for o in answer.outputs] == [("label", [2])]


async def test_embeddings_and_entities(stack: Stack) -> None:
    name = unique("acme")
    await stack.add_tenant(name)
    await stack.add_model(name, "embed", task=resources_pb2.TASK_EMBEDDING, labels=())
    tags = resources_pb2.TASK_TOKEN_CLASSIFICATION
    await stack.add_model(name, "tags", task=tags, labels=("O", "B-PER", "I-PER"))

    def answer(submit: executor_pb2.Submit) -> np.ndarray:
        if submit.key.model == "embed":
            return np.array([0.5, -0.25])
        best = {12: 1, 13: 2}
        return np.eye(3)[[best.get(token, 0) for token in submit.token_ids]] * 10

    await stack.executor(answer=answer)
    embedded = await infer(stack, name, model_name="embed", inputs=[typed(b"the cat")])
    assert list(embedded.outputs[0].contents.fp32_contents) == [0.5, -0.25]
    tagged = await infer(stack, name, model_name="tags", inputs=[typed(b"on Anna Smith")])
    [entity] = json.loads(tagged.outputs[0].contents.bytes_contents[0])
    assert (entity["label"], entity["start"], entity["end"]) == ("PER", 3, 13)


ONE = typed(b"cat")
BARE = typed(b"cat", contents=None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [typed(b"cat", name="ids")]}, "inputs[0].name"),
        ({"inputs": [typed(b"cat", datatype="INT64")]}, "inputs[0].datatype"),
        ({"inputs": [typed(b"cat", shape=[2])]}, "inputs[0].shape"),
        ({"inputs": [typed(b"cat", shape=[1, 3])]}, "inputs[0].shape"),
        ({"inputs": [typed(b"cat", shape=[-1])]}, "inputs[0].shape"),
        ({"inputs": [ONE], "raw_input_contents": [raw(b"cat")]}, "raw_input_contents"),
        ({"inputs": [BARE]}, "inputs[0].contents"),
        (
            {"inputs": [typed(contents=pb.InferTensorContents(int_contents=[1]), shape=[1])]},
            "inputs[0].contents",
        ),
        ({"inputs": [BARE], "raw_input_contents": [b"\x09\0\0\0cat"]}, "raw_input_contents[0]"),
        ({"inputs": [BARE], "raw_input_contents": [b"\x09\0"]}, "raw_input_contents[0]"),
        (
            {"inputs": [BARE], "raw_input_contents": [raw(b"\xff\xfe")]},
            "raw_input_contents[0][0]",
        ),
        (
            {"inputs": [typed(b"cat", b"\xff")]},
            "inputs[0].contents.bytes_contents[1]",
        ),
        ({"inputs": [typed(b"cat", b"")]}, "inputs[0].contents.bytes_contents[1]"),
        ({"inputs": [ONE], "model_version": "one"}, "model_version"),
        (
            {
                "inputs": [ONE],
                "outputs": [pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")],
            },
            "outputs[0].name",
        ),
        (
            {"inputs": [ONE], "parameters": {"priority": pb.InferParameter(string_param="x")}},
            "parameters[priority]",
        ),
    ],
)
async def test_bad_tensors_are_refused_by_name(
    stack: Stack, tenant: str, fields: dict[str, Any], field: str
) -> None:
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, infer(stack, tenant, **fields))
    assert violation(error) == field


async def test_servers_and_models_say_whether_they_are_ready(stack: Stack, tenant: str) -> None:
    stub = GRPCInferenceServiceStub(stack.channel)
    own = stack.metadata(tenant)
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "hmi"
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="topic"), metadata=own)).ready
    assert not (await stub.ModelReady(pb.ModelReadyRequest(name="none"), metadata=own)).ready
    described = await stub.ModelMetadata(pb.ModelMetadataRequest(name="topic"), metadata=own)
    assert [(t.name, t.datatype, list(t.shape)) for t in described.outputs] == [
        ("scores", "FP32", [-1, 3]),
        ("label", "BYTES", [-1]),
    ]
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), metadata=own)
    assert [(m.name, m.version, m.state) for m in index.models] == [("topic", "1", "READY")]
    await expect(grpc.StatusCode.UNAUTHENTICATED, stub.ModelReady(pb.ModelReadyRequest(name="x")))
    await expect(
        grpc.StatusCode.NOT_FOUND,
        stub.ModelMetadata(pb.ModelMetadataRequest(name="none"), metadata=own),
    )


# Its stubs and ours register the same message names: it runs in a process of its own.
TRITON = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
address, key = sys.argv[1:]
headers = {"authorization": f"Bearer {key}"}
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("topic", headers=headers)
assert not client.is_model_ready("none", headers=headers)
assert client.get_server_metadata().name == "hmi"
assert client.get_model_metadata("topic", headers=headers).versions == ["1"]
assert [m.name for m in client.get_model_repository_index(headers=headers).models] == ["topic"]
try:
    client.get_model_config("topic", headers=headers)
except triton.InferenceServerException as error:
    assert error.status() == "StatusCode.UNIMPLEMENTED" and "ModelMetadata" in error.message()
else:
    sys.exit("answered")
texts = np.array([b"the cat", "the dög ran".encode()], dtype=object)
tensor = triton.InferInput("text", [2], "BYTES")
tensor.set_data_from_numpy(texts)
result = client.infer("topic", [tensor], headers=headers)
print(json.dumps({
    "scores": result.as_numpy("scores").tolist(),
    "label": [label.decode() for label in result.as_numpy("label")],
    "version": result.get_response().model_version,
}))
"""


async def test_tritonclient_gets_the_same_scores(stack: Stack, tenant: str) -> None:
    expected: inference_pb2.PredictResponse = await stack.inference.Predict(
        request("topic", "the cat", "the dög ran"), metadata=stack.metadata(tenant)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TRITON, stack.address, stack.keys[tenant],
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    answer = json.loads(output)
    scores = [[s.score for s in p.classification.scores] for p in expected.predictions]
    assert answer["scores"] == scores
    assert answer["label"] == [p.classification.label for p in expected.predictions]
    assert answer["version"] == "1"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("ModelConfig", "ModelMetadata"),
        ("ModelStatistics", "metrics"),
        ("RepositoryModelLoad", "when it is asked"),
        ("NoSuchMethod", "Method not found"),
    ],
)
async def test_tritons_own_calls_are_refused_with_what_to_do_instead(
    stack: Stack, name: str, instead: str
) -> None:
    rpc: Any = stack.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
    error = await expect(grpc.StatusCode.UNIMPLEMENTED, rpc(b"\x0a\x05topic"))
    assert instead in (error.details() or "")


async def test_a_stream_of_tritons_is_refused_with_what_to_do_instead(stack: Stack) -> None:
    rpc: Any = stack.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    error = await expect(grpc.StatusCode.UNIMPLEMENTED, rpc(iter([b"\x0a\x05topic"])).read())
    assert "ModelInfer" in (error.details() or "")


async def test_a_server_whose_keys_are_too_old_is_live_and_not_ready(
    stack: Stack, tenant: str
) -> None:
    stub: Any = GRPCInferenceServiceStub(stack.channel)
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    mirror = stack.app.mirror
    mirror.heard_at = mirror._now() - stack.settings.max_staleness_s - 1
    ready = (await stub.ServerReady(pb.ServerReadyRequest())).ready
    live = (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (live, ready) == (True, False)
