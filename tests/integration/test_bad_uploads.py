"""Uploads as no well-behaved client sends them are refused, and leave no version behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.pack import pack
from hmi.stack import LocalStack
from tests.integration.conftest import Account, Trained

Lora = Callable[..., Trained]


class _Raw:
    """Uploads as no well-behaved client sends them."""

    def __init__(self, stack: LocalStack, secret: str) -> None:
        self._channel = grpc.insecure_channel(stack.address)
        self._metadata = (("authorization", f"Bearer {secret}"),)
        self._stub = ModelServiceStub(self._channel)

    def upload(self, header: model_pb2.UploadHeader, chunks: list[bytes]) -> grpc.StatusCode:
        def messages() -> Iterator[model_pb2.UploadVersionRequest]:
            yield model_pb2.UploadVersionRequest(header=header)
            for chunk in chunks:
                yield model_pb2.UploadVersionRequest(chunk=chunk)

        try:
            self._stub.UploadVersion(messages(), metadata=self._metadata, timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def raw(stack: LocalStack, account: Account) -> Iterator[_Raw]:
    uploads = _Raw(stack, account.secret)
    yield uploads
    uploads.close()


def _header(blob: bytes, **other: Any) -> model_pb2.UploadHeader:
    known = {"sha256": hashlib.sha256(blob).hexdigest(), "size_bytes": len(blob)}
    return model_pb2.UploadHeader(model="m", base="minilm", **{**known, **other})


def test_wrong_digest_is_refused(account: Account, raw: _Raw, lora: Lora) -> None:
    blob = pack(lora(3).directory)
    header = _header(blob, sha256=hashlib.sha256(b"another").hexdigest())
    assert raw.upload(header, [blob]) is grpc.StatusCode.INVALID_ARGUMENT
    assert account.client.list_models() == []
    assert account.client.get_upload(header.sha256) == 0


def test_truncated_upload_can_be_resumed(account: Account, raw: _Raw, lora: Lora) -> None:
    blob = pack(lora(4).directory)
    half = len(blob) // 2
    assert raw.upload(_header(blob), [blob[:half]]) is grpc.StatusCode.DATA_LOSS
    assert account.client.list_models() == []
    held = account.client.get_upload(hashlib.sha256(blob).hexdigest())
    assert 0 <= held <= half
    seen: list[int] = []
    version = account.client.push_version("m", blob, progress=lambda sent, _: seen.append(sent))
    assert version.digest == hashlib.sha256(blob).hexdigest()
    assert account.client.predict("m", "text").provenance.digest == version.digest


def test_wrong_offset_is_a_failed_precondition(account: Account, raw: _Raw, lora: Lora) -> None:
    blob = pack(lora(5).directory)
    status = raw.upload(_header(blob, offset=17), [blob[17:]])
    assert status is grpc.StatusCode.FAILED_PRECONDITION


def test_too_large_is_refused_by_its_header(account: Account, raw: _Raw) -> None:
    header = _header(b"x", size_bytes=1 << 50)
    assert raw.upload(header, [b"x"]) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_more_bytes_than_announced_are_refused(account: Account, raw: _Raw, lora: Lora) -> None:
    blob = pack(lora(6).directory)
    status = raw.upload(_header(blob, size_bytes=100), [blob])
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert account.client.list_models() == []
