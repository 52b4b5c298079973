"""A version's blob to a packed adapter, verified and admitted: disk tier to host tier.

Knows formats and the base; keeps nothing and does not know who asks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from services.common.adapter_format import Limits, Reads, admit
from services.common.base_config import BaseConfig
from services.common.errors import (
    DataLoss,
    FailedPrecondition,
    HmiError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.executor.adapters.packing import BaseTensor, Packed, pack

logger = logging.getLogger(__name__)


# Of reading a blob: what callers should hear as it is. Anything else is between the services.
_READ_ERRORS = (FailedPrecondition, NotFound, DataLoss, Unavailable)


class Refused(Exception):
    """A version that cannot be served here, however often it is tried.

    Attributes:
        error: Why.
    """

    def __init__(self, error: HmiError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads adapters of one base.

    Attributes:
        read_blob: Blocking; a blob's bytes by digest.
        base_tensor: Reads the base's own tensors, for versions that change biases or the pooler.
        max_rows: Rows the device has; a larger adapter can never be served.
        has_pooler: Whether the loaded checkpoint has the pooler that a head may read.
    """

    base: BaseConfig
    dtype: torch.dtype
    read_blob: Callable[[str], bytes]
    base_tensor: BaseTensor | None
    limits: Limits
    max_rows: int
    pin_memory: bool
    has_pooler: bool

    def load(self, digest: str) -> Packed:
        """The adapter in host memory.

        Raises:
            Refused: By InvalidArgument (not admissible), FailedPrecondition (it reads a pooler that
                the checkpoint has not) or ResourceExhausted (larger than the device).
            FailedPrecondition, NotFound, DataLoss, Unavailable: Its bytes cannot be had this time;
                a failure of ours is logged.
        """
        try:
            blob = self._read(digest)
            try:
                return self._packed(blob)
            except (InvalidArgument, FailedPrecondition, ResourceExhausted) as error:
                raise Refused(error) from error
        except (Refused, HmiError):
            raise
        except Exception as error:
            logger.exception("an adapter could not be loaded", extra={"digest": digest})
            raise Unavailable("the adapter could not be loaded") from error

    def _read(self, digest: str) -> bytes:
        try:
            blob = self.read_blob(digest)
        except _READ_ERRORS:
            raise
        except HmiError as error:
            logger.warning("a blob cannot be read", extra={"digest": digest, "error": repr(error)})
            raise Unavailable("the adapter's blob cannot be read now") from error
        if hashlib.sha256(blob).hexdigest() != digest:
            raise DataLoss(f"the bytes of version {digest} differ from their digest")
        return blob

    def _packed(self, blob: bytes) -> Packed:
        version = admit(blob, self.base, limits=self.limits)
        if version.head.reads is Reads.POOLED and not self.has_pooler:
            raise FailedPrecondition(
                "the head reads the base's pooler, and the base's checkpoint has none; save the "
                "pooler with the adapter (modules_to_save)",
                reason="NO_POOLER",
            )
        packed = pack(
            version,
            self.base,
            dtype=self.dtype,
            base_tensor=self.base_tensor,
            pin_memory=self.pin_memory,
        )
        if packed.num_rows > self.max_rows:
            raise ResourceExhausted(
                f"the adapter needs {packed.num_rows} rows of device memory, there are "
                f"{self.max_rows}",
                subject="device/adapter_bytes",
            )
        return packed
