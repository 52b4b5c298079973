"""Keeps in memory the bases that the store has: loads what is added, lets go of what is deleted.

Knows a base's files and what is loaded; does not know how a checkpoint is read.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hmi.admin.v1 import resources_pb2
from services.common.errors import (
    DataLoss,
    FailedPrecondition,
    HmiError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.executor.blobs import BlobFiles
from services.executor.engine.interfaces import LoadedBase
from services.executor.follow import Follower, View
from services.executor.service import Executor

logger = logging.getLogger(__name__)

RETRY_S = 1.0
RETRY_MAX_S = 60.0

Load = Callable[[Path, resources_pb2.Base], LoadedBase]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a base is not served, and until when, in seconds of the event loop's clock."""

    reason: str
    delay_s: float
    due_at: float

    @property
    def is_final(self) -> bool:
        return self.due_at == math.inf


class Bases:
    """The bases an executor serves, kept up with the store.

    Args:
        executor: Serves them.
        follower: Says which there are and which models are pinned.
        files: Where their files come from.
        directory: Where a base's files are laid out by name; created if missing.
        load: Reads a laid-out directory to the device. Runs on a thread.
        announce: Called after a base has been added or removed.
    """

    def __init__(
        self,
        executor: Executor,
        follower: Follower,
        files: BlobFiles,
        *,
        directory: Path,
        load: Load,
        announce: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._follower = follower
        self._files = files
        self._directory = directory
        self._load = load
        self._announce = announce
        self._refused: dict[str, _Refusal] = {}  # by digest
        self._files_of: dict[str, frozenset[str]] = {}  # digests of a base's files, by its own

    @property
    def held_blobs(self) -> frozenset[str]:
        """Digests of the files of bases loaded or being loaded."""
        return frozenset().union(*self._files_of.values())

    async def start(self) -> None:
        """Load the bases the store has; waits for the store, not for a first base.

        Raises:
            FailedPrecondition: There are bases and none can be served.
        """
        await self._follower.changed.wait()
        bases = list(self._follower.view.bases.values())
        for base in bases:
            await self._try_to_add(base)
        if bases and not self._executor.bases:
            refused = self._refused
            reasons = "; ".join(f"{base.name}: {refused[base.digest].reason}" for base in bases)
            raise FailedPrecondition(f"no base can be served: {reasons}")
        self._executor.pin(self._follower.view.pins)

    async def run(self) -> None:
        """Load what is added, pin what is pinned, drop what is deleted, for ever.

        A base that fails is refused alone, and tried again after a while.
        """
        while True:
            try:
                async with asyncio.timeout_at(self._due_at()):
                    await self._follower.changed.wait()
            except TimeoutError:
                pass  # a base is due
            self._follower.changed.clear()
            await self._keep_up(self._follower.view)

    def _due_at(self) -> float | None:
        """When there is something to do without news, in seconds of the event loop's clock."""
        now = asyncio.get_running_loop().time()
        times = [refusal.due_at for refusal in self._refused.values() if not refusal.is_final]
        if self._executor.bases.keys() - self._follower.view.base_digests:
            times.append(now + RETRY_S)
        return min(times, default=None)

    async def _keep_up(self, view: View) -> None:
        # First, for what comes may need the memory.
        for digest in self._files_of.keys() - view.base_digests:
            await self._let_go(digest)
        now = asyncio.get_running_loop().time()
        for base in list(view.bases.values()):
            refusal = self._refused.get(base.digest)
            if refusal is None or refusal.due_at <= now:
                await self._try_to_add(base)
        self._executor.pin(view.pins)
        for key in view.take_deleted():
            self._executor.forget(key)
        for swap in view.take_swaps():
            named = view.bases.get(swap.base)
            if named is not None:
                self._executor.swap_tables(named.digest, swap.old_version, swap.new_version)

    async def _let_go(self, digest: str) -> None:
        """Unload a deleted base, unless items still use it: their models went just before it."""
        self._refused.pop(digest, None)
        if digest in self._executor.bases:
            if not await self._executor.remove(digest):
                return
            self._announce()
            logger.info("a deleted base is unloaded", extra={"digest": digest})
        del self._files_of[digest]
        await asyncio.to_thread(shutil.rmtree, self._directory / digest, ignore_errors=True)

    async def _try_to_add(self, base: resources_pb2.Base) -> None:
        """Add a base, or refuse it alone: any tenant's base may be broken in any way."""
        try:
            await self._add(base)
        except HmiError as error:
            # What a base's bytes are never changes: what cannot be read now never can.
            self._refuse(base, str(error), is_final=isinstance(error, InvalidArgument))
            logger.error("a base cannot be served", extra={"base": base.name, "error": str(error)})
        except Exception as error:  # of the disk, the device or the checkpoint's reader
            self._refuse(base, repr(error), is_final=False)
            logger.exception("a base cannot be served", extra={"base": base.name})
        else:
            self._refused.pop(base.digest, None)

    def _refuse(self, base: resources_pb2.Base, reason: str, *, is_final: bool) -> None:
        before = self._refused.get(base.digest)
        delay_s = RETRY_S if before is None else min(RETRY_MAX_S, 2 * before.delay_s)
        due_at = math.inf if is_final else asyncio.get_running_loop().time() + delay_s
        self._refused[base.digest] = _Refusal(reason, delay_s, due_at)

    async def _add(self, base: resources_pb2.Base) -> None:
        if base.digest in self._executor.bases:
            return
        logger.info("loading a base", extra={"base": base.name, "digest": base.digest})
        self._files_of[base.digest] = frozenset(file.sha256 for file in base.files)
        directory = await self._lay_out(base)
        loaded = await asyncio.to_thread(self._load, directory, base)
        self._executor.add(loaded)
        self._announce()
        logger.info("serving a base", extra={"base": base.name, "digest": base.digest})

    async def _lay_out(self, base: resources_pb2.Base) -> Path:
        """A directory that holds the base's files under their names."""
        directory = self._directory / base.digest
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        for file in base.files:
            if Path(file.name).name != file.name or file.name.startswith("."):
                raise DataLoss(f"base {base.name} names a file {file.name!r}")
            source = await self._fetch(base, file)
            await asyncio.to_thread(_link, directory / file.name, source)
        return directory

    async def _fetch(self, base: resources_pb2.Base, file: resources_pb2.BaseFile) -> Path:
        """The file's blob; waits while the store is away."""
        while True:
            try:
                return await self._files.path(file.sha256)
            except NotFound as error:
                raise FailedPrecondition(
                    f"base {base.name} cannot be served: the store has no blob {file.sha256} of "
                    f"its file {file.name}: register the base anew"
                ) from error
            except Unavailable:
                await asyncio.sleep(RETRY_S)


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
