"""Blobs whose bytes differ from their name, set aside: `damaged/<sha256>`.

Knows files; does not know who needs them or how they are made anew. What is set aside is no blob
any more: it is not read, and who has the right bytes may write them. Every function blocks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.common.ids import check_sha256
from services.knowledge_store import metrics
from services.knowledge_store.uploads import sync_directory

logger = logging.getLogger(__name__)

_TRIED = ".tried"


@dataclass(frozen=True)
class DamagedBlob:
    """A blob that was set aside.

    Attributes:
        path: Its file, in which something is wrong.
        was_tried: The file's own content was of no use to make it anew.
    """

    sha256: str
    path: Path
    was_tried: bool


class DamagedBlobs:
    """All that were set aside.

    Args:
        directory: Where; made by `open`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> None:
        """Make the directory."""
        self._directory.mkdir(parents=True, exist_ok=True)

    def take(self, path: Path) -> bool:
        """Set a blob's file aside unless it is whole; whether it was."""
        sha256 = path.name
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return False  # whoever saw the damage read a file that was replaced since
            size_bytes = path.stat().st_size
            path.replace(self._directory / sha256)
        except FileNotFoundError:
            return False
        sync_directory(path.parent)
        sync_directory(self._directory)
        metrics.blobs.dec()
        metrics.blob_bytes.dec(size_bytes)
        metrics.blobs_damaged_total.inc()
        logger.error(
            "a blob is damaged; it was set aside",
            extra={"sha256": sha256, "kept_as": str(self._directory / sha256)},
        )
        return True

    def list(self) -> list[DamagedBlob]:
        """What is set aside."""
        return [
            DamagedBlob(path.name.removesuffix(_TRIED), path, path.name.endswith(_TRIED))
            for path in sorted(self._directory.iterdir())
        ]

    def give_up(self, sha256: str) -> None:
        """Note that a blob's own content is of no use; one that is forgotten stays so."""
        path = self._directory / check_sha256("sha256", sha256)
        with suppress(FileNotFoundError):
            path.replace(path.with_name(f"{sha256}{_TRIED}"))
        sync_directory(self._directory)

    def forget(self, digests: Collection[str]) -> None:
        """Delete what was set aside of these blobs."""
        for blob in self.list():
            if blob.sha256 in digests:
                blob.path.unlink(missing_ok=True)
