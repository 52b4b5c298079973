"""A version to upload, as the caller states it and as its directory does.

Knows what a push takes from a trained directory; does not know how bytes travel.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hmi.admin.v1 import model_pb2
from hmi.bases import DEFAULT_BASE
from hmi.pack import FROM_DIRECTORY, PackOptions, base_of, domain_of, pack


@dataclass(frozen=True, slots=True)
class Push:
    """One version to upload.

    `source` is a trained directory, a packed blob's file, or a packed blob's bytes.
    """

    model: str
    source: Path | str | bytes
    base: str | None = None
    """Name of the base it was trained on; None: the one that the directory names, or minilm."""
    activate: bool = True
    options: PackOptions = FROM_DIRECTORY
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Makes a repetition safe: the same id again is answered with the same version."""
    domain: str | None = None
    """Path of the domain whose tables it reads (split bases); empty: the root's; None: what the
    directory names, or the root's."""
    follow: bool = False
    """Read the domain's latest tables instead of those of today."""

    def blob(self) -> bytes:
        """The bytes to upload (blocking: files are read and packed)."""
        if isinstance(self.source, bytes):
            return self.source
        path = Path(self.source)
        return path.read_bytes() if path.is_file() else pack(path, self.options)

    def header(self, blob: bytes, sha256: str, offset: int) -> model_pb2.UploadHeader:
        """What is sent ahead of the blob's bytes from `offset` on (blocking, as `blob`).

        Args:
            sha256: The blob's digest, in hex.
        """
        return model_pb2.UploadHeader(
            model=self.model,
            base=self._stated(self.base, base_of) or DEFAULT_BASE,
            sha256=sha256,
            size_bytes=len(blob),
            offset=offset,
            no_activate=not self.activate,
            request_id=self.request_id,
            domain=self._stated(self.domain, domain_of) or "",
            follow=self.follow,
        )

    def _stated(self, given: str | None, of: Callable[[Path], str | None]) -> str | None:
        """What was given, else what a trained directory says of itself."""
        if given is not None or isinstance(self.source, bytes) or Path(self.source).is_file():
            return given
        return of(Path(self.source))
