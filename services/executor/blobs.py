"""Blobs as files on this machine, by digest.

Knows the shared volume and the cache; does not know what blobs hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

from services.common.ids import check_sha256
from services.common.knowledge import BlobCache

logger = logging.getLogger(__name__)


class BlobFiles:
    """Where blobs lie: on the volume shared with the store, or else in a cache filled from it.

    Args:
        cache: What reads blobs from the store; verifies them as they enter.
        shared: The store's blob directory, if it is at hand.
    """

    def __init__(self, cache: BlobCache, shared: Path | None = None) -> None:
        self._cache = cache
        self._shared = shared
        self._verified: set[str] = set()
        self._discarded: set[str] = set()  # of the shared volume

    async def path(self, sha256: str) -> Path:
        """The file that holds a blob, its digest verified when this process began to use it.

        What is damaged on the volume is asked of the store, which so learns of it.

        Raises:
            InvalidArgument: `sha256` is none.
            NotFound: There is no such blob.
            Unavailable: The store cannot be reached.
            DataLoss: The bytes differ from the digest, in the store too.
        """
        check_sha256("sha256", sha256)
        if self._shared is not None and sha256 not in self._discarded:
            path = self._shared / sha256[:2] / sha256
            if sha256 in self._verified or await asyncio.to_thread(_is_whole, path, sha256):
                self._verified.add(sha256)
                return path
        return await self._cache.path(sha256)

    def discard(self, sha256: str) -> None:
        """The file that `path` gave holds something else by now: do not give it again."""
        if self._shared is not None:
            self._discarded.add(sha256)
        self._cache.discard(sha256)


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether the file is there and holds the blob."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    if digest != sha256:
        logger.warning("a blob on the shared volume is damaged", extra={"sha256": sha256})
    return digest == sha256
