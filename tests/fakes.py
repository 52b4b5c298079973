"""Small deterministic stand-ins, each a real server on a real socket.

`FakeExecutor` speaks the executor's contract without a model: its logits are a function of the
version's digest and the token ids alone, so that a test can say what an answer must be.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc.aio
import numpy as np

from hmi.executor.v1 import executor_pb2 as pb
from hmi.executor.v1.executor_pb2_grpc import (
    ExecutorServiceServicer,
    add_ExecutorServiceServicer_to_server,
)
from services.common.errors import HmiError


def fake_logits(digest: str, token_ids: list[int], num_labels: int) -> np.ndarray:
    """float32 `[labels]`, the same for the same version and tokens."""
    seed = hashlib.sha256(f"{digest} {list(token_ids)}".encode()).digest()[:8]
    return np.random.default_rng(int.from_bytes(seed)).normal(size=num_labels).astype("<f4")


class FakeExecutor(ExecutorServiceServicer):
    """Answers each submit when `gate` is open, and gives its credit back.

    Args:
        window: Credit in tokens granted at the start.
        answer: Makes an item's tensor; `fake_logits` of three labels if None.

    Items of models in `cold` are parked: their credit comes back at once, they wait until `load`.
    """

    def __init__(
        self,
        window: int = 4096,
        answer: Callable[[pb.Submit], np.ndarray] | None = None,
        *,
        resident: Sequence[str] = (),
        cold: Iterable[str] = (),
    ) -> None:
        self._window = window
        self._answer = answer or (lambda s: fake_logits(s.key.digest, list(s.token_ids), 3))
        self.gate = asyncio.Event()
        self.gate.set()
        self.submits: list[pb.Submit] = []
        self.cancels: list[int] = []
        self.hints: list[str] = []
        self.hinted_tables: list[str] = []
        self.resident = list(resident)
        self.cold = set(cold)
        self._parked: list[tuple[asyncio.Queue[pb.Submit], pb.Submit]] = []
        self._loaded: asyncio.Queue[str] = asyncio.Queue()
        self.error: HmiError | None = None  # instead of answers
        self.port = 0
        self.num_answered = 0

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_ExecutorServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    def load(self, digest: str) -> None:
        """A cold model comes into device memory."""
        self.cold.discard(digest)
        self._loaded.put_nowait(digest)
        for accepted, submit in self._parked:
            accepted.put_nowait(submit)
        self._parked.clear()

    async def kill(self) -> None:
        """End at once; what is in flight is lost."""
        await self._server.stop(None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def Execute(self, requests: Any, _context: Any) -> AsyncIterator[pb.ExecuteResponse]:
        accepted: asyncio.Queue[pb.Submit] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, accepted))
        is_parked: set[int] = set()
        try:
            yield pb.ExecuteResponse(news=[pb.News(credit=pb.Credit(num_tokens=self._window))])
            while True:
                submit = await accepted.get()
                credit = pb.Credit(num_tokens=len(submit.token_ids))
                if submit.key.digest in self.cold:
                    self._parked.append((accepted, submit))
                    is_parked.add(submit.item_id)
                    yield pb.ExecuteResponse(news=[pb.News(credit=credit)])
                    continue
                await self.gate.wait()
                event = pb.Event(item_id=submit.item_id, is_final=True)
                if self.error is None:
                    values = self._answer(submit)
                    event.output.shape.extend(values.shape)
                    event.output.data = values.astype("<f4").tobytes()
                else:
                    event.error.CopyFrom(self.error.to_status())
                news = [pb.News(event=event)]
                if submit.item_id not in is_parked:
                    news.append(pb.News(credit=credit))
                yield pb.ExecuteResponse(news=news)
        finally:
            reader.cancel()

    async def _read(self, requests: Any, accepted: asyncio.Queue[pb.Submit]) -> None:
        async for request in requests:
            for command in request.commands:
                kind = command.WhichOneof("command")
                if kind == "submit":
                    self.submits.append(command.submit)
                    accepted.put_nowait(command.submit)
                elif kind == "cancel":
                    self.cancels.append(command.cancel.item_id)
                elif kind == "hint":
                    self.hints.append(command.hint.key.digest)
                    self.hinted_tables.append(command.hint.table_version)

    async def WatchStatus(
        self, _request: Any, _context: Any
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        yield pb.WatchStatusResponse(executor_id="fake", loaded_digests=self.resident)
        while True:
            yield pb.WatchStatusResponse(loaded_digests=[await self._loaded.get()])
