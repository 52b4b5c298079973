"""Versions and bases on their way in, with everything that can be wrong about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from hmi.admin.v1 import model_pb2 as pb
from hmi.admin.v1 import resources_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from services.common.errors import HmiError, InvalidArgument, from_rpc_error, from_status
from tests.gateway.blobs import lora_blob, sha256
from tests.gateway.conftest import CONFIG, Stack, tokenizer_json, unique
from tests.gateway.test_predict import expect, request, violation

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def header(blob: bytes, **fields: Any) -> pb.UploadHeader:
    given = {"model": "topic", "base": "tiny", "sha256": sha256(blob), "size_bytes": len(blob)}
    return pb.UploadHeader(**given | fields)


def upload(stack: Stack, tenant: str, head: pb.UploadHeader, data: bytes) -> Any:
    parts = [pb.UploadVersionRequest(header=head)]
    parts += [pb.UploadVersionRequest(chunk=data[i : i + 999]) for i in range(0, len(data), 999)]
    stub = ModelServiceStub(stack.channel)
    return stub.UploadVersion(iter(parts), metadata=stack.metadata(tenant))


async def held(stack: Stack, tenant: str, blob: bytes) -> int:
    stub = ModelServiceStub(stack.channel)
    answer = await stub.GetUpload(
        pb.GetUploadRequest(sha256=sha256(blob)), metadata=stack.metadata(tenant)
    )
    return int(answer.committed_bytes)


@pytest.fixture
async def tenant(stack: Stack) -> str:
    name = unique("acme")
    await stack.add_tenant(name)
    return name


async def test_an_uploaded_version_serves_at_once(stack: Stack, tenant: str) -> None:
    await stack.executor()
    blob = lora_blob(1)
    version = (await upload(stack, tenant, header(blob), blob)).version
    assert (version.number, version.digest) == (1, sha256(blob))
    assert (version.adapter_type, list(version.labels)) == ("LORA", ["x", "y", "z"])
    assert version.task == resources_pb2.TASK_SEQUENCE_CLASSIFICATION
    answer = await stack.inference.Predict(
        request("topic", "the cat"), metadata=stack.metadata(tenant)
    )
    assert answer.provenance.digest == sha256(blob)


async def test_a_repeated_request_id_makes_one_version(stack: Stack, tenant: str) -> None:
    blob = lora_blob(2)
    head = header(blob, request_id="once")
    first = (await upload(stack, tenant, head, blob)).version
    assert (await upload(stack, tenant, head, blob)).version == first


@pytest.mark.parametrize(
    ("blob", "fields", "field"),
    [
        (lora_blob(3, use_dora=True), {}, "adapter_config.use_dora"),
        (lora_blob(3, hidden=48), {}, f"tensors[{QUERY}.lora_A.weight].shape"),
        (lora_blob(3, labels=2), {}, "labels"),
        (lora_blob(3, with_nan=True), {}, "tensors[base_model.model.classifier.bias]"),
        (b"\x80\x04\x95pickle", {}, "blob"),
        (lora_blob(3), {"sha256": "0" * 64}, "header.sha256"),
        (lora_blob(3), {"sha256": "../../etc/passwd"}, "header.sha256"),
        (lora_blob(3), {"model": "../up"}, "header.model"),
        (lora_blob(3), {"size_bytes": 10}, "chunk"),
    ],
    ids=["option", "other base", "labels", "nan", "pickle", "digest", "path", "name", "more"],
)
async def test_bad_versions_are_refused_and_leave_nothing(
    stack: Stack, tenant: str, blob: bytes, fields: dict[str, Any], field: str
) -> None:
    error = await expect(
        grpc.StatusCode.INVALID_ARGUMENT, upload(stack, tenant, header(blob, **fields), blob)
    )
    assert violation(error) == field
    assert await held(stack, tenant, blob) == 0
    assert stack.app.mirror.state.models.get(tenant, {}) == {}


async def test_unknown_bases_and_too_large_uploads_are_refused(stack: Stack, tenant: str) -> None:
    blob = lora_blob(4)
    await expect(grpc.StatusCode.NOT_FOUND, upload(stack, tenant, header(blob, base="none"), blob))
    large = header(blob, size_bytes=1 << 40)
    await expect(grpc.StatusCode.RESOURCE_EXHAUSTED, upload(stack, tenant, large, blob))


async def test_a_truncated_upload_is_resumed_where_it_ended(stack: Stack, tenant: str) -> None:
    blob = lora_blob(5)
    await expect(
        grpc.StatusCode.DATA_LOSS, upload(stack, tenant, header(blob), blob[: len(blob) // 2])
    )
    offset = await held(stack, tenant, blob)
    assert offset == len(blob) // 2
    await expect(
        grpc.StatusCode.FAILED_PRECONDITION,
        upload(stack, tenant, header(blob, offset=offset - 1), blob[offset - 1 :]),
    )
    answer = await upload(stack, tenant, header(blob, offset=offset), blob[offset:])
    assert answer.version.digest == sha256(blob)


async def test_a_digest_is_no_proof_of_having_the_bytes(stack: Stack, tenant: str) -> None:
    thief = unique("thief")
    await stack.add_tenant(thief)
    blob = lora_blob(6)
    await upload(stack, tenant, header(blob), blob)
    assert await held(stack, tenant, blob) == len(blob)
    assert await held(stack, thief, blob) == 0
    named = header(blob, offset=len(blob))
    await expect(grpc.StatusCode.FAILED_PRECONDITION, upload(stack, thief, named, b""))
    own = (await upload(stack, tenant, named, b"")).version
    assert own.number == 2


async def test_a_broken_upload_is_its_tenants_alone(stack: Stack, tenant: str) -> None:
    thief = unique("thief")
    await stack.add_tenant(thief)
    blob = lora_blob(7)
    half = len(blob) // 2
    await expect(grpc.StatusCode.DATA_LOSS, upload(stack, tenant, header(blob), blob[:half]))
    assert await held(stack, thief, blob) == 0
    tail = header(blob, offset=half)
    await expect(grpc.StatusCode.FAILED_PRECONDITION, upload(stack, thief, tail, blob[half:]))
    await expect(grpc.StatusCode.DATA_LOSS, upload(stack, thief, header(blob), blob[:10]))
    assert await held(stack, tenant, blob) == half
    assert (await upload(stack, tenant, tail, blob[half:])).version.digest == sha256(blob)


def bulk_parts(uploads: list[tuple[pb.UploadHeader, bytes]]) -> Iterator[pb.UploadVersionsRequest]:
    for head, data in uploads:
        yield pb.UploadVersionsRequest(header=head)
        for start in range(0, len(data), 4096):
            yield pb.UploadVersionsRequest(chunk=data[start : start + 4096])


async def test_bulk_uploads_answer_each_by_its_position(stack: Stack, tenant: str) -> None:
    blobs = [lora_blob(100 + i) for i in range(30)]
    uploads = [(header(blob, model=f"m{i}"), blob) for i, blob in enumerate(blobs)]
    broken = lora_blob(999, with_nan=True)
    uploads[7] = (header(broken, model="m7"), broken)
    uploads[11] = (uploads[11][0], uploads[11][1][:-5])
    uploads[13] = (header(blobs[13], model="M13"), blobs[13])
    uploads[29] = (uploads[29][0], uploads[29][1][:-5])
    call = ModelServiceStub(stack.channel).UploadVersions(
        bulk_parts(uploads), metadata=stack.metadata(tenant)
    )
    answers = {answer.position: answer async for answer in call}
    assert sorted(answers) == list(range(30))
    errors = {p: from_status(a.error) for p, a in answers.items() if a.HasField("error")}
    assert {p: e.code.name for p, e in errors.items()} == {
        7: "INVALID_ARGUMENT", 11: "DATA_LOSS", 13: "INVALID_ARGUMENT", 29: "DATA_LOSS",
    }  # fmt: skip
    assert isinstance(errors[13], InvalidArgument)
    assert errors[13].field == "header.model"
    assert answers[3].version.digest == sha256(blobs[3])
    models = ModelServiceStub(stack.channel)
    names: list[str] = []
    token = ""
    while True:
        page = await models.ListModels(
            pb.ListModelsRequest(page_size=10, page_token=token), metadata=stack.metadata(tenant)
        )
        names += [model.name for model in page.models]
        if not (token := page.next_page_token):
            break
    assert names == sorted(f"m{i}" for i in range(30) if i not in (7, 11, 13, 29))


async def test_a_bulk_sender_may_wait_for_each_answer(stack: Stack, tenant: str) -> None:
    call = ModelServiceStub(stack.channel).UploadVersions(metadata=stack.metadata(tenant))
    for i in range(3):
        blob = lora_blob(200 + i)
        for part in bulk_parts([(header(blob, model=f"m{i}"), blob)]):
            await call.write(part)
        answer = await call.read()
        assert (answer.position, answer.version.model) == (i, f"m{i}")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


def base_files(**changes: bytes | None) -> dict[str, bytes]:
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": tokenizer_json(),
        "model.safetensors": b"weights" * 500_000,
    }
    for name, data in changes.items():
        key = name.replace("_", ".")
        if data is None:
            del files[key]
        else:
            files[key] = data
    return files


def add_base(stack: Stack, name: str, files: dict[str, bytes], *, cut: int = 0) -> Any:
    announced = [
        resources_pb2.BaseFile(name=n, sha256=sha256(d), size_bytes=len(d))
        for n, d in files.items()
    ]
    data = b"".join(files.values())
    data = data[: len(data) - cut]
    head = pb.AddBaseHeader(name=name, files=announced)
    parts = [pb.AddBaseRequest(header=head)]
    parts += [pb.AddBaseRequest(chunk=data[i : i + 700_001]) for i in range(0, len(data), 700_001)]
    return ModelServiceStub(stack.channel).AddBase(iter(parts), metadata=stack.as_admin)


async def test_a_base_is_described_by_its_own_files(stack: Stack) -> None:
    files = base_files()
    name = unique("base")
    base = (await add_base(stack, name, files)).base
    lines = sorted(f"{sha256(data)}  {name}\n" for name, data in files.items())
    assert base.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (base.architecture, base.hidden_size, base.max_tokens) == ("bert", 32, 64)
    assert (await add_base(stack, name, files)).base == base
    other = base_files(model_safetensors=b"other weights")
    await expect(grpc.StatusCode.ALREADY_EXISTS, add_base(stack, name, other))
    stub = ModelServiceStub(stack.channel)
    await stub.DeleteBase(pb.DeleteBaseRequest(name=name), metadata=stack.as_admin)
    gone = stub.GetBase(pb.GetBaseRequest(name=name), metadata=stack.as_admin)
    await expect(grpc.StatusCode.NOT_FOUND, gone)


@pytest.mark.parametrize(
    ("files", "field"),
    [
        (base_files(tokenizer_json=None), "header.files"),
        (base_files(config_json=b"{}"), "config.json.model_type"),
        (base_files(config_json=b"nonsense"), "config.json"),
        (
            base_files(config_json=json.dumps(CONFIG | {"model_type": "t5"}).encode()),
            "config.json.model_type",
        ),
        (base_files(tokenizer_json=b"{}"), "tokenizer.json"),
        (base_files(config_json=json.dumps(CONFIG | {"vocab_size": 9}).encode()), "tokenizer.json"),
        (base_files() | {"../evil": b"x"}, "header.files[3].name"),
    ],
    ids=["missing", "config", "json", "architecture", "tokenizer", "vocabulary", "path"],
)
async def test_bad_bases_are_refused_by_name(
    stack: Stack, files: dict[str, bytes], field: str
) -> None:
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, add_base(stack, unique("base"), files))
    assert violation(error) == field


async def test_a_truncated_base_is_data_loss_and_bases_are_the_admins(
    stack: Stack, tenant: str
) -> None:
    files = base_files(model_safetensors=unique("weights").encode() * 1000)
    await expect(grpc.StatusCode.DATA_LOSS, add_base(stack, unique("base"), files, cut=5))
    call = ModelServiceStub(stack.channel).AddBase(iter([]), metadata=stack.metadata(tenant))
    error = await expect(grpc.StatusCode.PERMISSION_DENIED, call)
    assert isinstance(from_rpc_error(error), HmiError)
