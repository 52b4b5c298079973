"""Bases on their way in: files by digest, config and tokenizer understood before they count.

Knows a checkpoint's files; its weights are opaque bytes that go to the store as they come.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.base_config import BaseConfig
from services.common.bases import base_digest, check_file_name
from services.common.errors import AlreadyExists, DataLoss, InvalidArgument, ResourceExhausted
from services.common.ids import check_name, check_sha256
from services.common.knowledge import Blobs
from services.gateway.budget import ByteBudget, Holding
from services.gateway.mirror import Mirror
from services.gateway.splits import SPLIT_FILES, check_split_files, described_split
from services.gateway.store_calls import ask, write_blob

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

REQUIRED = ("config.json", "tokenizer.json", "model.safetensors")
_MAX_FILES = 32
_MAX_JSON_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20


def check_header(header: model_pb2.AddBaseHeader, max_bytes: int) -> None:
    """That the announced files can be a base.

    Raises:
        InvalidArgument: A name, a digest, or a file that is missing or there twice.
        ResourceExhausted: Too large.
    """
    check_name("header.name", header.name)
    if len(header.files) > _MAX_FILES:
        raise InvalidArgument("header.files", f"more than {_MAX_FILES} files")
    names = [file.name for file in header.files]
    for index, file in enumerate(header.files):
        field = f"header.files[{index}]"
        check_file_name(f"{field}.name", file.name)
        if names.index(file.name) != index:
            raise InvalidArgument(f"{field}.name", f"{file.name} is there twice")
        check_sha256(f"{field}.sha256", file.sha256)
        if not file.size_bytes:
            raise InvalidArgument(f"{field}.size_bytes", "must be at least 1")
        if file.name.endswith(".json") and file.size_bytes > _MAX_JSON_BYTES:
            raise ResourceExhausted(f"{file.name} is larger than {_MAX_JSON_BYTES} bytes")
    for name in REQUIRED:
        if name not in names:
            raise InvalidArgument("header.files", f"{name} is missing")
    if sum(file.size_bytes for file in header.files) > max_bytes:
        raise ResourceExhausted(f"a base may have at most {max_bytes} bytes")


class Pieces:
    """A stream of bytes whose pieces end where files do."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    async def take(self, size_bytes: int) -> AsyncIterator[bytes]:
        """The next `size_bytes`, in pieces of at most 1 MiB.

        Raises:
            DataLoss: The stream ends before.
        """
        left = size_bytes
        async for piece in self.up_to(size_bytes):
            left -= len(piece)
            yield piece
        if left:
            raise DataLoss(f"the stream ended {left} bytes early")

    async def up_to(self, size_bytes: int) -> AsyncIterator[bytes]:
        """The next `size_bytes`, or as many as come, in pieces of at most 1 MiB."""
        left = size_bytes
        while left:
            if not self._rest:
                try:
                    self._rest = await anext(self._chunks)
                except StopAsyncIteration:
                    return
            piece = self._rest[: min(left, _PIECE_BYTES)]
            self._rest = self._rest[len(piece) :]
            left -= len(piece)
            if piece:
                yield piece

    async def check_end(self) -> None:
        """Raise InvalidArgument if bytes follow."""
        async for chunk in self._chunks:
            self._rest += chunk
            break
        if self._rest:
            raise InvalidArgument("chunk", "more bytes than the files have")


class BaseUploads:
    """Takes bases.

    Args:
        max_bytes: Largest base.
        max_split_bytes: Largest file of those that make a base split.
        memory: What all uploads together may hold in memory.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        mirror: Mirror,
        max_bytes: int,
        max_split_bytes: int,
        memory: ByteBudget,
    ) -> None:
        self._stub = stub
        self._blobs = Blobs(stub)
        self._mirror = mirror
        self._max_bytes = max_bytes
        self._max_split_bytes = max_split_bytes
        self._memory = memory

    async def add(
        self, header: model_pb2.AddBaseHeader, chunks: AsyncIterator[bytes]
    ) -> resources_pb2.Base:
        """Register a base; one that is registered already is answered as it is.

        Raises:
            InvalidArgument: A file, its digest, the configuration, the tokenizer or the split.
            AlreadyExists: Another base has that name, or these files another name.
            ResourceExhausted: Too large.
            DataLoss: The bytes end early.
        """
        check_header(header, self._max_bytes)
        check_split_files(header.files, self._max_split_bytes)
        digest = base_digest(header.files)
        known = self._mirror.state.bases.get(header.name)
        if known is not None:
            if known.digest == digest:
                return known.pb
            raise AlreadyExists(f"another base is named '{header.name}'", reason="BASE_EXISTS")
        with self._memory.holding() as memory:
            base = await self._taken(header, digest, Pieces(chunks), memory)
        answer = (await ask(self._stub.PutBase(pb.PutBaseRequest(base=base)))).base
        await self._mirror.until(lambda: header.name in self._mirror.state.bases)
        return answer

    async def _taken(
        self, header: model_pb2.AddBaseHeader, digest: str, pieces: Pieces, memory: Holding
    ) -> resources_pb2.Base:
        """The base, once the store has every file."""
        held: dict[str, bytes] = {}
        for index, file in enumerate(header.files):
            if file.name.endswith(".json") or file.name in SPLIT_FILES:
                held[file.name] = await self._held_file(index, file, pieces, memory)
            else:
                await self._passed_file(file, pieces)
        await pieces.check_end()
        base = await asyncio.to_thread(_described, header, digest, held, self._max_split_bytes)
        await asyncio.gather(*(self._blobs.write(data) for data in held.values()))
        return base

    async def _held_file(
        self, index: int, file: resources_pb2.BaseFile, pieces: Pieces, memory: Holding
    ) -> bytes:
        data = bytearray()
        async for piece in pieces.take(file.size_bytes):
            await memory.grow(len(piece))
            data += piece
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise InvalidArgument(f"header.files[{index}].sha256", "the bytes have another digest")
        return bytes(data)

    async def _passed_file(self, file: resources_pb2.BaseFile, pieces: Pieces) -> None:
        """Pass a file on to the store, which checks its digest."""
        held = await ask(self._stub.StatBlob(pb.StatBlobRequest(sha256=file.sha256)))
        if held.is_complete:
            async for _ in pieces.take(file.size_bytes):
                continue
            return

        async def requests() -> AsyncIterator[pb.WriteBlobRequest]:
            yield pb.WriteBlobRequest(sha256=file.sha256, size_bytes=file.size_bytes)
            async for piece in pieces.take(file.size_bytes):
                yield pb.WriteBlobRequest(data=piece)

        await write_blob(self._stub, requests())


def _described(
    header: model_pb2.AddBaseHeader, digest: str, held: dict[str, bytes], max_split_bytes: int
) -> resources_pb2.Base:
    """The base, as its config, its tokenizer and what splits it say."""
    try:
        parsed = json.loads(held["config.json"])
    except ValueError as error:
        raise InvalidArgument("config.json", "is not JSON") from error
    if not isinstance(parsed, dict):
        raise InvalidArgument("config.json", "is not a JSON object")
    config = BaseConfig.from_hf(parsed)
    _check_tokenizer(held["tokenizer.json"], config.vocab_size)
    tokenizer = next(file for file in header.files if file.name == "tokenizer.json")
    return resources_pb2.Base(
        name=header.name,
        digest=digest,
        files=header.files,
        architecture=str(config.architecture),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        max_tokens=config.max_tokens,
        tokenizer_digest=tokenizer.sha256,
        split=described_split(header.files, held, config, max_split_bytes),
    )


def _check_tokenizer(data: bytes, vocab_size: int) -> None:
    """That a tokenizer.json can be read and makes no id the base lacks."""
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises bare Exception
        raise InvalidArgument("tokenizer.json", "cannot be read as a tokenizer") from error
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab_size:
        raise InvalidArgument(
            "tokenizer.json", f"makes id {highest}, and the base has {vocab_size} embeddings"
        )
