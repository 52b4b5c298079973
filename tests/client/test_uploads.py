"""Uploads go on where they broke, and are made once."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2, model_pb2_grpc, resources_pb2
from hmi.bases import Checkpoint, minilm_directory
from hmi.client import AsyncClient, Push
from hmi.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from services.common import errors as service_errors
from services.common.interceptor import RequestInterceptor
from tests.client.conftest import Serve

BLOB = bytes(range(256)) * 4096 * 3 + b"odd"


class _Store(model_pb2_grpc.ModelServiceServicer):
    """Keeps blobs in memory; breaks after some bytes as told."""

    def __init__(self) -> None:
        self.held: dict[str, bytearray] = {}
        self.made: dict[str, resources_pb2.Version] = {}
        self.break_after: list[int] = []
        self.refuse: service_errors.HmiError | None = None
        self.num_received = 0
        self.base_bytes = b""

    async def GetUpload(self, request: Any, context: Any) -> model_pb2.GetUploadResponse:
        held = self.held.get(request.sha256, b"")
        return model_pb2.GetUploadResponse(committed_bytes=len(held))

    def _version(self, header: model_pb2.UploadHeader) -> resources_pb2.Version:
        held = self.held[header.sha256]
        if hashlib.sha256(held).hexdigest() != header.sha256:
            raise service_errors.InvalidArgument("sha256", "differs")
        number = len(self.made) + 1
        version = resources_pb2.Version(model=header.model, number=number, digest=header.sha256)
        return self.made.setdefault(header.request_id, version)

    async def UploadVersion(
        self, requests: AsyncIterator[Any], context: Any
    ) -> model_pb2.UploadVersionResponse:
        header = (await anext(requests)).header
        if self.refuse is not None:
            raise self.refuse
        held = self.held.setdefault(header.sha256, bytearray())
        if header.offset != len(held):
            raise service_errors.FailedPrecondition("offset")
        left = self.break_after.pop(0) if self.break_after else len(BLOB) + 1
        async for request in requests:
            self.num_received += len(request.chunk)
            held += request.chunk
            left -= len(request.chunk)
            if left <= 0:
                raise service_errors.Unavailable("stopping")
        return model_pb2.UploadVersionResponse(version=self._version(header))

    async def UploadVersions(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[model_pb2.UploadVersionsResponse]:
        left = self.break_after.pop(0) if self.break_after else 1 << 30
        headers: list[model_pb2.UploadHeader] = []
        async for request in requests:
            if request.HasField("header"):
                headers.append(request.header)
                self.held[request.header.sha256] = bytearray()
                continue
            header = headers[-1]
            self.held[header.sha256] += request.chunk
            if len(self.held[header.sha256]) < header.size_bytes:
                continue
            left -= 1
            if left < 0:
                raise service_errors.Unavailable("stopping")
            response = model_pb2.UploadVersionsResponse(position=len(headers) - 1)
            if header.model == "bad":
                refused = service_errors.InvalidArgument("lora_A", "has a NaN")
                response.error.CopyFrom(refused.to_status())
            else:
                response.version.CopyFrom(self._version(header))
            yield response

    async def AddBase(
        self, requests: AsyncIterator[Any], context: Any
    ) -> model_pb2.AddBaseResponse:
        header = (await anext(requests)).header
        self.base_bytes = b"".join([request.chunk async for request in requests])
        return model_pb2.AddBaseResponse(
            base=resources_pb2.Base(name=header.name, files=header.files)
        )


@pytest.fixture
def store() -> _Store:
    return _Store()


@pytest.fixture
async def client(serve: Serve, store: _Store) -> AsyncClient:
    def add(server: grpc.aio.Server) -> None:
        model_pb2_grpc.add_ModelServiceServicer_to_server(store, server)

    return await serve(add, [RequestInterceptor("test")])


async def test_upload_arrives_whole_and_tells_its_progress(
    client: AsyncClient, store: _Store
) -> None:
    seen: list[tuple[int, int]] = []
    version = await client.push_version("m", BLOB, progress=lambda *step: seen.append(step))
    digest = hashlib.sha256(BLOB).hexdigest()
    assert version.digest == digest
    assert bytes(store.held[digest]) == BLOB
    assert seen[-1] == (len(BLOB), len(BLOB))
    assert seen == sorted(seen)


def test_base_and_domain_are_the_directorys_unless_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "hmi.json").write_text('{"base": "hminilm", "domain": "news"}')

    def pushed(source: Path | bytes, **given: str) -> tuple[str, str]:
        header = Push("m", source, **given).header(BLOB, "", 0)
        return header.base, header.domain

    assert pushed(tmp_path) == ("hminilm", "news")
    assert pushed(tmp_path, base="other", domain="") == ("other", "")
    assert pushed(BLOB) == ("minilm", "")


async def test_broken_upload_goes_on_where_it_broke(client: AsyncClient, store: _Store) -> None:
    store.break_after = [1 << 20, 1 << 20]
    version = await client.push_version("m", BLOB)
    assert version.digest == hashlib.sha256(BLOB).hexdigest()
    assert store.num_received == len(BLOB)  # nothing was sent twice


async def test_lost_answer_makes_no_second_version(client: AsyncClient, store: _Store) -> None:
    store.break_after = [len(BLOB)]
    assert (await client.push_version("m", BLOB)).number == 1
    assert (await client.push_version("m", BLOB)).number == 2  # asked for anew, made anew


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (service_errors.ResourceExhausted("too large"), ResourceExhausted),
        (service_errors.FailedPrecondition("base differs"), FailedPrecondition),
        (service_errors.InvalidArgument("size_bytes", "too large"), InvalidArgument),
    ],
)
async def test_refusal_before_the_last_byte_is_told_as_it_is(
    client: AsyncClient,
    store: _Store,
    refusal: service_errors.HmiError,
    expected: type[Exception],
) -> None:
    store.refuse = refusal
    with pytest.raises(expected):
        await client.push_version("m", BLOB * 4)


async def test_many_versions_each_have_an_outcome(client: AsyncClient, tmp_path: Path) -> None:
    pushes = [
        Push("a", b"blob a"),
        Push("bad", b"blob b"),
        Push("c", tmp_path),  # holds no adapter: refused here, before anything is sent
        Push("d", BLOB),
    ]
    outcomes = await client.push_versions(pushes)
    assert [outcome.position for outcome in outcomes] == [0, 1, 2, 3]
    assert outcomes[0].version is not None
    assert outcomes[0].version.model == "a"
    assert isinstance(outcomes[1].error, InvalidArgument)
    assert outcomes[1].error.field == "lora_A"
    assert isinstance(outcomes[2].error, InvalidArgument)
    assert outcomes[3].version is not None


async def test_broken_bulk_upload_makes_each_version_once(
    client: AsyncClient, store: _Store
) -> None:
    store.break_after = [3, 0, 5]
    pushes = [Push(f"m{n}", b"blob %d" % n) for n in range(20)]
    outcomes = await client.push_versions(pushes)
    models = [outcome.version.model for outcome in outcomes if outcome.version is not None]
    assert models == [f"m{n}" for n in range(20)]
    assert len(store.made) == 20


async def test_base_is_sent_as_announced(client: AsyncClient, store: _Store) -> None:
    directory = minilm_directory()
    base = await client.add_base("minilm", directory)
    begin = 0
    for file in base.files:
        content = store.base_bytes[begin : begin + file.size_bytes]
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert content == (directory / file.name).read_bytes()
        begin += file.size_bytes
    assert begin == len(store.base_bytes)


def test_digest_of_a_base_is_that_of_its_lines() -> None:
    checkpoint = Checkpoint.of(minilm_directory())
    lines = sorted(f"{file.sha256}  {file.path.name}\n" for file in checkpoint.files)
    assert checkpoint.digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_incomplete_base_is_refused_by_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidArgument) as caught:
        Checkpoint.of(tmp_path)
    assert caught.value.field == "tokenizer.json"
