"""Changes that name new versions of tables; their manifests are written beside the transaction.

Knows how such a change is brought about; does not know what changes. A manifest takes two fsyncs,
and a transaction holds the lock that all changes wait for. So one that finds manifests missing is
left, they are written many at once, and it is tried again: a manifest's name follows from the table
numbers of its whole path, so what is found then was written for the tree as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.errors import Aborted
from services.knowledge_store.domains.key_blobs import KeyBlobs
from services.knowledge_store.domains.tables import ManifestsMissing
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.transaction import Transaction

T = TypeVar("T")

_TRIES = 5
_WRITES_AT_ONCE = 64


async def change_versions(
    database: Database, key_blobs: KeyBlobs, operation: Callable[[Transaction], Awaitable[T]]
) -> T:
    """`Database.change` of an operation that calls `Tree.name_versions`, and may be begun again.

    Raises:
        Aborted: The tree kept changing meanwhile.
        ResourceExhausted: The disk is full.
    """
    for _ in range(_TRIES):
        try:
            return await database.change(operation)
        except ManifestsMissing as missing:
            for start in range(0, len(missing.manifests), _WRITES_AT_ONCE):
                some = missing.manifests[start : start + _WRITES_AT_ONCE]
                await asyncio.gather(*map(key_blobs.write, some))
    raise Aborted("the domains keep changing: try again")
