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
    ResourceExhausted,
    Unavailable,
)
from services.executor.adapters.packing import BaseTensor, Packed, pack

logger = logging.getLogger(__name__)


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
            HmiError: From `read_blob`, or from here: DataLoss (another digest), InvalidArgument
                (not admissible), FailedPrecondition (it reads a pooler that the checkpoint has
                not), ResourceExhausted (larger than the device), Unavailable (a failure of ours,
                logged).
        """
        try:
            return self._load(digest)
        except HmiError:
            raise
        except Exception as error:
            logger.exception("an adapter could not be loaded", extra={"digest": digest})
            raise Unavailable("the adapter could not be loaded") from error

    def _load(self, digest: str) -> Packed:
        blob = self.read_blob(digest)
        if hashlib.sha256(blob).hexdigest() != digest:
            raise DataLoss(f"the bytes of version {digest} differ from their digest")
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
