"""Many versions over one stream, committed in groups.

Knows the stream of headers and bytes; each upload's checks are `uploads`'. What arrives while one
group is committed is the next group, so a fast sender gets large groups and a slow one no delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hmi.admin.v1 import model_pb2, resources_pb2
from services.common.errors import DataLoss, DeadlineExceeded, HmiError, InvalidArgument
from services.gateway.budget import ByteBudget, Holding
from services.gateway.domain import Base
from services.gateway.streams import Pace, Progress
from services.gateway.uploads import CallerCheck, Checked, VersionUploads

GROUP_VERSIONS = 128
# What one call may have waiting for its commit, beside the upload that goes beyond it.
STAGED_BYTES = 64 << 20
Outcome = resources_pb2.Version | HmiError


@dataclass(slots=True, eq=False)
class _Arriving:
    """One upload of the stream. With an error, its further bytes are passed over."""

    position: int
    header: model_pb2.UploadHeader
    memory: Holding
    staged: Holding
    base: Base | None = None
    data: bytearray = field(default_factory=bytearray)
    error: HmiError | None = None

    @property
    def is_whole(self) -> bool:
        return self.error is None and len(self.data) == self.header.size_bytes

    async def add(self, chunk: bytes) -> None:
        if self.error is not None:
            return
        if len(self.data) + len(chunk) > self.header.size_bytes:
            self.fail(InvalidArgument("chunk", "more bytes than header.size_bytes"))
            return
        await self.staged.grow(len(chunk))
        await self.memory.grow(len(chunk))
        self.data += chunk

    def fail(self, error: HmiError) -> None:
        self.error = error
        self.release()

    def release(self) -> None:
        """Drop the bytes."""
        self.data.clear()
        self.staged.release()
        self.memory.release()


class BulkUpload:
    """One UploadVersions call.

    Args:
        check_caller: Asked at each header and before each commit.
        pace: How fast a begun upload must come, and how long an answer may wait to be taken.
    """

    def __init__(
        self, uploads: VersionUploads, tenant: str, check_caller: CallerCheck, pace: Pace
    ) -> None:
        self._uploads = uploads
        self._tenant = tenant
        self._check_caller = check_caller
        self._idle_s = pace.window_s
        self._progress = Progress(pace)
        self._arrived: asyncio.Queue[_Arriving | None] = asyncio.Queue(GROUP_VERSIONS)
        self._latest: _Arriving | None = None
        self._held: set[_Arriving] = set()
        self._staged = ByteBudget(STAGED_BYTES)

    async def run(
        self, parts: AsyncIterator[model_pb2.UploadVersionsRequest]
    ) -> AsyncGenerator[tuple[int, Outcome], None]:
        """Each upload's position and outcome.

        Raises:
            InvalidArgument: Bytes before the first header, or after an upload's last.
            DeadlineExceeded: A begun upload does not go on, or answers are not taken.
            Unauthenticated, Unavailable: `check_caller` said so; nothing more is committed.
        """
        reader = asyncio.create_task(self._read(parts))
        try:
            is_open = True
            while is_open:
                group = [await self._arrived.get()]
                while len(group) < GROUP_VERSIONS and not self._arrived.empty():
                    group.append(self._arrived.get_nowait())
                is_open = None not in group
                for outcome in await self._commit([entry for entry in group if entry]):
                    with self._patience(reader):
                        yield outcome
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            for entry in self._held:
                entry.release()

    @contextmanager
    def _patience(self, reader: asyncio.Task[None]) -> Iterator[None]:
        """While an answer is taken: others want the memory of a sender who never does."""
        is_over = False

        def give_up() -> None:
            nonlocal is_over
            is_over = True
            reader.cancel()
            for entry in self._held:
                entry.release()

        timer = asyncio.get_running_loop().call_later(self._idle_s, give_up)
        try:
            yield
        finally:
            timer.cancel()
        if is_over:
            raise DeadlineExceeded(f"no answer was taken for {self._idle_s} s", reason="IDLE")

    async def _read(self, parts: AsyncIterator[model_pb2.UploadVersionsRequest]) -> None:
        error: Exception | None = None
        try:
            await self._take_all(parts)
        except Exception as failure:
            error = failure
        await self._arrived.put(None)
        if error is not None:
            raise error

    async def _take_all(self, parts: AsyncIterator[model_pb2.UploadVersionsRequest]) -> None:
        position = 0
        while (part := await self._next(parts)) is not None:
            if part.HasField("header"):
                await self._hand_over_unfinished()
                self._latest = await self._begin(position, part.header)
                self._progress.restart()
                position += 1
            elif self._latest is not None:
                self._progress.add(len(part.chunk))
                await self._latest.add(part.chunk)
            elif position == 0:
                raise InvalidArgument("part", "the first message must be a header")
            else:
                raise InvalidArgument("chunk", "more bytes than header.size_bytes")
            if self._latest is not None and self._latest.is_whole:
                await self._arrived.put(self._latest)
                self._latest = None
        await self._hand_over_unfinished()

    async def _next(
        self, parts: AsyncIterator[model_pb2.UploadVersionsRequest]
    ) -> model_pb2.UploadVersionsRequest | None:
        """The next message; between two uploads the sender may take its time."""
        if self._latest is None:
            return await anext(parts, None)
        try:
            return await self._progress.next(parts)
        except DeadlineExceeded as error:
            named = f"upload {self._latest.position}, {self._latest.header.sha256}"
            raise DeadlineExceeded(
                f"{named}: {error.message}: send it and what follows again", reason=error.reason
            ) from None

    async def _begin(self, position: int, header: model_pb2.UploadHeader) -> _Arriving:
        self._check_caller()
        memory, staged = Holding(self._uploads.memory), Holding(self._staged)
        entry = _Arriving(position, header, memory, staged)
        self._held.add(entry)
        try:
            entry.base = self._uploads.check_header(self._tenant, header)
            if header.offset:
                raise InvalidArgument("header.offset", "must be 0 in a bulk upload")
        except HmiError as error:
            entry.fail(error)
        return entry

    async def _hand_over_unfinished(self) -> None:
        entry, self._latest = self._latest, None
        if entry is None:
            return
        if entry.error is None:
            entry.fail(
                DataLoss(
                    f"{len(entry.data)} of {entry.header.size_bytes} bytes came: send it again",
                    reason="UPLOAD_TRUNCATED",
                )
            )
        await self._arrived.put(entry)

    async def _commit(self, group: Sequence[_Arriving]) -> list[tuple[int, Outcome]]:
        """Check all, then commit those that passed together."""
        results = await asyncio.gather(*(self._checked(entry) for entry in group))
        passed = [result for result in results if isinstance(result, Checked)]
        committed: list[Outcome] = []
        if passed:
            self._check_caller()
            try:
                committed = await self._uploads.commit(passed)
            except HmiError as error:
                committed = [error] * len(passed)
        left = iter(committed)
        outcomes = []
        for entry, result in zip(group, results, strict=True):
            entry.release()
            self._held.discard(entry)
            outcome: Outcome = next(left) if isinstance(result, Checked) else result
            outcomes.append((entry.position, outcome))
        return outcomes

    async def _checked(self, entry: _Arriving) -> Checked | HmiError:
        if entry.error is not None or entry.base is None:
            return entry.error or DataLoss("the upload was not begun")
        try:
            return await self._uploads.checked(
                self._tenant, entry.header, bytes(entry.data), entry.base
            )
        except HmiError as error:
            return error
