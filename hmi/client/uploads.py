"""The client's calls that carry files: a base, a version, many versions.

Knows blobs, offsets and how an upload goes on after a broken connection; what a blob holds is
`hmi.pack`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.bases import CHUNK_BYTES, Checkpoint
from hmi.client.models import ModelCalls
from hmi.client.pushes import Push
from hmi.client.resources import Base, PushOutcome, Version
from hmi.client.retry import Deadline
from hmi.client.transport import Duplex
from hmi.errors import HmiError, Unavailable, from_rpc_error, from_status
from hmi.pack import FROM_DIRECTORY, PackOptions
from services.common.ending import Ending, write_all

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all) of one upload, or (answered, all) of many."""


class UploadCalls(ModelCalls):
    """Uploads: without a deadline unless one is given, for their length is the network's."""

    async def add_base(
        self,
        name: str,
        directory: Path | str,
        *,
        further_files: Sequence[Path] = (),
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Base:
        """Register a Hugging Face checkpoint as a base (admin). Again, it changes nothing.

        With `local_encoder.safetensors` and `root_keys.safetensors` among its files it is split.

        Args:
            name: 1 to 63 of a-z, 0-9 and '-', starting with a letter.
            directory: Where its files lie.
            further_files: Files of it that lie elsewhere.
            progress: Called with (bytes sent, bytes in all).

        Raises:
            InvalidArgument: A file is missing (`field` names it), or the architecture is not
                served.
            AlreadyExists: Another base has that name.
            ResourceExhausted: It is too large.
        """
        checkpoint = await asyncio.to_thread(Checkpoint.of, Path(directory), further_files)
        files = [
            resources_pb2.BaseFile(name=f.path.name, sha256=f.sha256, size_bytes=f.size_bytes)
            for f in checkpoint.files
        ]
        header = model_pb2.AddBaseHeader(name=name, files=files)

        def messages() -> AsyncIterator[model_pb2.AddBaseRequest]:
            return with_progress(
                model_pb2.AddBaseRequest(header=header),
                (model_pb2.AddBaseRequest(chunk=chunk) for chunk in checkpoint.chunks()),
                (0, checkpoint.size_bytes),
                progress,
            )

        deadline = Deadline(timeout)
        for attempt in itertools.count(1):
            try:
                response = await self._upload(self._models.AddBase, messages(), deadline)
                return Base.from_pb(response.base)
            except HmiError as error:
                await self._transport.pause(error, attempt, deadline)
        raise AssertionError("unreachable: the loop ends by returning or raising")

    async def push_version(
        self,
        model: str,
        source: Path | str | bytes,
        *,
        base: str | None = None,
        domain: str | None = None,
        follow: bool = False,
        activate: bool = True,
        options: PackOptions = FROM_DIRECTORY,
        request_id: str | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Version:
        """Upload a version of a model; the model is made if the tenant has none of that name.

        A broken connection is taken up where the store's bytes end, so an upload never begins
        again, and the version is made once.

        Args:
            model: The model's name.
            source: A trained directory (PEFT or AdapterHub), a packed blob's file, or its bytes.
            base: Name of the base it was trained on; None: the one that the directory names, or
                minilm.
            domain: Path of the domain whose tables it reads (split bases); empty: the root's;
                None: what the directory names, or the root's.
            follow: Read the domain's latest tables instead of those of today.
            activate: Send the model's traffic to it.
            options: What to state where the directory does not.
            request_id: Makes a repetition by the caller safe; one is made up if None.
            progress: Called with (bytes sent, bytes in all).

        Raises:
            InvalidArgument: The directory or the adapter is refused; `field` names the file, option
                or tensor.
            NotFound: There is no such base or domain.
            FailedPrecondition: The domain's first table is not there yet.
            ResourceExhausted: The blob is too large, or the tenant has its number of models.
        """
        request_id = request_id or uuid.uuid4().hex
        push = Push(model, source, base, activate, options, request_id, domain, follow)
        blob = await asyncio.to_thread(push.blob)
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(blob).hexdigest())
        deadline = Deadline(timeout)
        for attempt in itertools.count(1):
            offset = await self.get_upload(sha256, timeout=deadline.remaining())
            requests = with_progress(
                model_pb2.UploadVersionRequest(header=push.header(blob, sha256, offset)),
                (model_pb2.UploadVersionRequest(chunk=c) for c in chunks_of(blob, offset)),
                (offset, len(blob)),
                progress,
            )
            try:
                response = await self._upload(self._models.UploadVersion, requests, deadline)
                return Version.from_pb(response.version)
            except HmiError as error:
                await self._transport.pause(error, attempt, deadline)
        raise AssertionError("unreachable: the loop ends by returning or raising")

    async def push_versions(
        self,
        pushes: Iterable[Push],
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> list[PushOutcome]:
        """Upload many versions over one stream; the store commits them in groups.

        One version's error is its own outcome and leaves the others alone. After a broken
        connection those without an answer are sent again; their request ids keep them from being
        made twice.

        Args:
            pushes: The versions. Directories are packed as their turn comes.
            progress: Called with (answered, all).

        Returns:
            An outcome a push, in their order.

        Raises:
            HmiError: The stream itself failed, and not in a way that another try could mend.
        """
        waiting = dict(enumerate(pushes))
        num_pushes = len(waiting)
        outcomes: dict[int, PushOutcome] = {}
        deadline = Deadline(timeout)
        attempt = 0
        while waiting:
            num_before = len(outcomes)
            try:
                async for outcome in self._push_once(dict(waiting), deadline):
                    outcomes[outcome.position] = outcome
                    waiting.pop(outcome.position, None)
                    if progress is not None:
                        progress(len(outcomes), num_pushes)
                if waiting:
                    raise Unavailable(
                        "the gateway ended the stream with versions unanswered",
                        reason="STREAM_ENDED",
                    )
            except Unavailable as error:
                attempt = 1 if len(outcomes) > num_before else attempt + 1
                await self._transport.pause(error, attempt, deadline)
        return [outcomes[position] for position in range(num_pushes)]

    async def _push_once(
        self, pushes: dict[int, Push], deadline: Deadline
    ) -> AsyncIterator[PushOutcome]:
        sent: list[int] = []
        refused: list[PushOutcome] = []

        async def requests() -> AsyncIterator[model_pb2.UploadVersionsRequest]:
            for position, push in pushes.items():
                try:
                    blob = await asyncio.to_thread(push.blob)
                except HmiError as error:
                    refused.append(PushOutcome(position, None, error))
                    continue
                sent.append(position)
                header = push.header(blob, hashlib.sha256(blob).hexdigest(), 0)
                yield model_pb2.UploadVersionsRequest(header=header)
                for chunk in chunks_of(blob, 0):
                    yield model_pb2.UploadVersionsRequest(chunk=chunk)

        call = self._models.UploadVersions(
            timeout=deadline.remaining(), metadata=self._transport.metadata()
        )
        duplex = Duplex(call, requests())
        try:
            while (response := await duplex.read()) is not None:
                position = sent[response.position]
                if response.HasField("error"):
                    yield PushOutcome(position, None, from_status(response.error))
                else:
                    yield PushOutcome(position, Version.from_pb(response.version), None)
        finally:
            await duplex.close()
        for outcome in refused:
            yield outcome

    async def _upload(
        self, method: Callable[..., Any], requests: AsyncIterator[object], deadline: Deadline
    ) -> Any:
        call = method(timeout=deadline.remaining(), metadata=self._transport.metadata())
        ending = Ending(call)
        try:
            await write_all(call, requests)
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(await ending.meant(error)) from None
        finally:
            call.cancel()


def chunks_of(blob: bytes, offset: int) -> Iterator[bytes]:
    """A blob from an offset on, in pieces of at most 1 MiB."""
    for begin in range(offset, len(blob), CHUNK_BYTES):
        yield blob[begin : begin + CHUNK_BYTES]


async def with_progress(
    header: Any, messages: Iterable[Any], span: tuple[int, int], progress: Progress | None
) -> AsyncIterator[Any]:
    """A header, then chunks; progress counts from span[0] to span[1] as they are written."""
    num_sent, num_bytes = span
    yield header
    for message in messages:
        yield message
        num_sent += len(message.chunk)
        if progress is not None:
            progress(num_sent, num_bytes)
