"""Brings the store's bases into memory, at the start and whenever one is added.

Knows a base's files and what is loaded; does not know how a checkpoint is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from hmi.admin.v1 import resources_pb2
from services.common.errors import DataLoss, FailedPrecondition, HmiError, NotFound, Unavailable
from services.executor.blobs import BlobFiles
from services.executor.engine.interfaces import LoadedBase
from services.executor.follow import Follower
from services.executor.service import Executor

logger = logging.getLogger(__name__)

RETRY_S = 1.0

Load = Callable[[Path, resources_pb2.Base], LoadedBase]


class Bases:
    """The bases an executor serves, kept up with the store.

    Args:
        executor: Serves them.
        follower: Says which there are and which models are pinned.
        files: Where their files come from.
        directory: Where a base's files are laid out by name; created if missing.
        load: Reads a laid-out directory to the device. Runs on a thread.
        announce: Called after a base has been added.
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
        self._refused: dict[str, str] = {}  # why, by digest
        self._file_digests: set[str] = set()

    @property
    def held_blobs(self) -> frozenset[str]:
        """Digests of the files of bases loaded or being loaded."""
        return frozenset(self._file_digests)

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
            reasons = "; ".join(f"{base.name}: {self._refused[base.digest]}" for base in bases)
            raise FailedPrecondition(f"no base can be served: {reasons}")
        self._executor.pin(self._follower.view.pins)

    async def run(self) -> None:
        """Load what is added, pin what is pinned, drop what is deleted, for ever.

        A base that fails is refused alone.
        """
        while True:
            await self._follower.changed.wait()
            self._follower.changed.clear()
            view = self._follower.view
            for base in list(view.bases.values()):
                if base.digest not in self._refused:
                    await self._try_to_add(base)
            self._executor.pin(view.pins)
            for key in view.take_deleted():
                self._executor.forget(key)

    async def _try_to_add(self, base: resources_pb2.Base) -> None:
        """Add a base, or refuse it alone: any tenant's base may be broken in any way."""
        try:
            await self._add(base)
        except HmiError as error:
            self._refused[base.digest] = str(error)
            logger.error("a base cannot be served", extra={"base": base.name, "error": str(error)})
        except Exception as error:  # of the disk, the device or the checkpoint's reader
            self._refused[base.digest] = repr(error)
            logger.exception("a base cannot be served", extra={"base": base.name})

    async def _add(self, base: resources_pb2.Base) -> None:
        if base.digest in self._executor.bases:
            return
        logger.info("loading a base", extra={"base": base.name, "digest": base.digest})
        self._file_digests |= {file.sha256 for file in base.files}
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
                    f"its file {file.name}; register the base anew"
                ) from error
            except Unavailable:
                await asyncio.sleep(RETRY_S)


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
