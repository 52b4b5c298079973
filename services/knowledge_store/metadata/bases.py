"""Bases: which checkpoints there are.

Knows what a base may be; does not know what its files hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.bases import base_digest, check_file_name
from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.common.ids import check_name, check_sha256
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import BASES, versions_of_base
from services.knowledge_store.metadata.tenants import timestamp
from services.knowledge_store.metadata.transaction import Transaction

# sha256 in hex of blobs -> sizes of those that are complete; see BlobDirectory.sizes.
BlobSizes = Callable[[Iterable[str]], Awaitable[dict[str, int]]]

R = TypeVar("R")


class Trees(Protocol[R]):
    """What makes the trees of split bases; `R` is a root that is not added yet."""

    async def draft(self, base: rpb.Base) -> R: ...

    async def add(self, transaction: Transaction, base: rpb.Base, root: R) -> None: ...

    async def delete(self, transaction: Transaction, base_name: str) -> None: ...


class Bases:
    """Changes of bases.

    Args:
        trees: Makes the trees of split bases.
    """

    def __init__(self, database: Database, blob_sizes: BlobSizes, trees: Trees[Any]) -> None:
        self._database = database
        self._blob_sizes = blob_sizes
        self._trees = trees

    async def put(self, base: rpb.Base) -> rpb.Base:
        """Register a base, if it is split with the root of its tree; the same digest again is
        answered as it was.

        Raises:
            InvalidArgument: A field.
            AlreadyExists: The name has another digest, or the digest another name.
            FailedPrecondition: A blob is missing, or has another size.
        """
        _check_base(base)
        held = await self._database.change(lambda transaction: _same(transaction, base))
        if held is not None:
            return held
        root = await self._trees.draft(base) if base.HasField("split") else None

        async def put(transaction: Transaction) -> rpb.Base:
            held = await _same(transaction, base)
            if held is not None:
                return held
            # Under the transaction's lock, where no blob is collected.
            sizes = await self._blob_sizes(file.sha256 for file in base.files)
            for file in base.files:
                if sizes.get(file.sha256) != file.size_bytes:
                    raise FailedPrecondition(
                        f"there is no blob {file.sha256} of {file.size_bytes} bytes for "
                        f"{file.name}: write it first",
                        reason="BLOB_MISSING",
                    )
            added = rpb.Base()
            added.CopyFrom(base)
            added.create_time.CopyFrom(timestamp())
            transaction.put(BASES, added)
            if root is not None:
                await self._trees.add(transaction, added, root)
            return added

        return await self._database.change(put)

    async def delete(self, name: str) -> None:
        """Delete a base, with its tree if it is split.

        Raises:
            NotFound: The base.
            FailedPrecondition: Versions use it.
        """

        async def delete(transaction: Transaction) -> None:
            base = await transaction.get(BASES, name)
            if base is None:
                raise NotFound(f"there is no base {name}")
            if num_versions := await transaction.count(versions_of_base(name)):
                what = "1 version uses" if num_versions == 1 else f"{num_versions} versions use"
                raise FailedPrecondition(
                    f"{what} base {name}: delete their models first", reason="BASE_IN_USE"
                )
            if base.HasField("split"):
                await self._trees.delete(transaction, name)
            transaction.delete(BASES, base)

        await self._database.change(delete)


async def _same(transaction: Transaction, base: rpb.Base) -> rpb.Base | None:
    """The base, if it is there.

    Raises:
        AlreadyExists: Its name has another digest, or its digest another name: executors know a
            base by its digest, and count what they look up under the one name it has.
    """
    held = await transaction.get(BASES, base.name)
    if held is not None and held.digest != base.digest:
        raise AlreadyExists(f"base {base.name} exists with digest {held.digest}")
    if held is None:
        for other in await transaction.all(BASES):
            if other.digest == base.digest:
                raise AlreadyExists(f"base {other.name} has these files: use it by that name")
    return held


def _check_base(base: rpb.Base) -> None:
    check_name("base.name", base.name)
    if not base.files:
        raise InvalidArgument("base.files", "must not be empty")
    for position, file in enumerate(base.files):
        check_file_name(f"base.files[{position}].name", file.name)
        check_sha256(f"base.files[{position}].sha256", file.sha256)
    if len({file.name for file in base.files}) < len(base.files):
        raise InvalidArgument("base.files", "names must differ")
    if base.digest != base_digest(base.files):
        raise InvalidArgument("base.digest", "is not the digest of the files")
