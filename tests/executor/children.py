"""Real services in processes of their own, for tests of the executor's side."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.knowledge import Blobs
from tests.executor.gateway import TOKEN

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub


class Child:
    """A service in a process of its own.

    Args:
        module: What `python -m` runs.
        settings: Its environment beside this process's.
    """

    def __init__(self, module: str, settings: Mapping[str, str]) -> None:
        self._module = module
        self._settings = dict(settings)
        self._process: Process | None = None
        self.address = ""

    async def start(self) -> None:
        """Run it until it says that it is ready."""
        await self.launch()
        assert self._process is not None
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        if not line.startswith("ready: "):
            raise AssertionError(f"{self._module} did not start: {await self.end()}")
        self.address = line.removeprefix("ready: ").strip()
        self._settings["HMI_PORT"] = self.address.rpartition(":")[2]  # the same after a restart

    async def launch(self) -> None:
        """Run it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            env={**os.environ, "HMI_SERVICE_TOKEN": TOKEN, **self._settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def stop(self) -> int:
        """Ask it to stop, if it runs; its exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        return (await self.end())[0]

    async def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        await self.end()

    async def end(self) -> tuple[int, str]:
        """Wait for its end; exit status and what it said on stderr."""
        assert self._process is not None
        _, stderr = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, stderr.decode()


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[Child]:
    """The child, from ready to stopped."""
    await child.start()
    try:
        yield child
    finally:
        await child.stop()


def store_child(directory: Path) -> Child:
    """A knowledge store that takes silent members for dead after 600 ms."""
    settings = {"HMI_DATA_DIR": str(directory), "HMI_LEASE_MS": "600"}
    return Child("services.knowledge_store", settings)


async def put_base(
    stub: KnowledgeServiceAsyncStub, name: str, files: Mapping[str, bytes], max_tokens: int = 512
) -> resources_pb2.Base:
    """Register a base of these files."""
    base = resources_pb2.Base(name=name, architecture="bert", hidden_size=32, num_layers=2)
    base.max_tokens = max_tokens
    for file, data in files.items():
        sha256 = await Blobs(stub).write(data)
        base.files.add(name=file, sha256=sha256, size_bytes=len(data))
        if file == "tokenizer.json":
            base.tokenizer_digest = sha256
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in base.files)
    base.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return (await stub.PutBase(pb.PutBaseRequest(base=base))).base


async def members(stub: KnowledgeServiceAsyncStub) -> dict[str, pb.Member]:
    """Who the store says is there, by id."""
    found: dict[str, pb.Member] = {}
    call = stub.Watch(pb.WatchRequest())
    async for response in call:
        for change in response.changes:
            if change.HasField("member"):
                found[change.member.member_id] = change.member
        if response.is_snapshot_end:
            break
    call.cancel()
    return found


async def until_members(
    stub: KnowledgeServiceAsyncStub, are_so: Callable[[dict[str, pb.Member]], bool]
) -> None:
    """Wait for the members to be so."""
    async with asyncio.timeout(30):
        while not are_so(await members(stub)):  # noqa: ASYNC110  they change in another process
            await asyncio.sleep(0.02)
