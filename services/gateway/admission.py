"""Whether a version's blob may be served, and what it is.

Knows the bases' configurations and runs the format's checks on a thread; does not know how the
bytes came.
"""

from __future__ import annotations

import asyncio
import hashlib
import json

from hmi.admin.v1 import model_pb2, resources_pb2
from services.common.adapter_format import AdmittedVersion, Limits, Task, admit
from services.common.base_config import BaseConfig
from services.common.errors import DataLoss, InvalidArgument
from services.common.knowledge import BlobCache
from services.gateway.domain import Base

_TASKS = {
    Task.SEQUENCE_CLASSIFICATION: resources_pb2.TASK_SEQUENCE_CLASSIFICATION,
    Task.MULTI_LABEL_CLASSIFICATION: resources_pb2.TASK_MULTI_LABEL_CLASSIFICATION,
    Task.REGRESSION: resources_pb2.TASK_REGRESSION,
    Task.TOKEN_CLASSIFICATION: resources_pb2.TASK_TOKEN_CLASSIFICATION,
    Task.EMBEDDING: resources_pb2.TASK_EMBEDDING,
}


class Admission:
    """Checks blobs against their bases.

    Args:
        cache: Where config.json files come from.
        max_bytes: Largest blob.
    """

    def __init__(self, cache: BlobCache, max_bytes: int) -> None:
        self._cache = cache
        self._limits = Limits(max_bytes=max_bytes)
        self._configs: dict[str, BaseConfig] = {}

    async def check(
        self, tenant: str, header: model_pb2.UploadHeader, blob: bytes, base: Base
    ) -> resources_pb2.Version:
        """The version that a blob is, without number and time.

        Raises:
            InvalidArgument: The digest differs, or the blob cannot be served on this base.
            Unavailable: The base's configuration cannot be read.
        """
        config = await self.config(base)
        split_layer = base.pb.split.layer  # 0 if it is not split
        admitted = await asyncio.to_thread(self._admit, header.sha256, blob, config, split_layer)
        return resources_pb2.Version(
            tenant=tenant,
            model=header.model,
            digest=header.sha256,
            size_bytes=len(blob),
            base=base.pb.name,
            base_digest=base.digest,
            task=_TASKS[admitted.task],
            labels=admitted.labels,
            adapter_type=str(admitted.adapter_type),
        )

    def _admit(
        self, sha256: str, blob: bytes, config: BaseConfig, split_layer: int
    ) -> AdmittedVersion:
        """Runs in a thread."""
        if hashlib.sha256(blob).hexdigest() != sha256:
            raise InvalidArgument("header.sha256", "the bytes have another digest")
        return admit(blob, config, limits=self._limits, split_layer=split_layer)

    async def config(self, base: Base) -> BaseConfig:
        """A base's sizes.

        Raises:
            DataLoss, NotFound, Unavailable: Its config.json cannot be read.
        """
        config = self._configs.get(base.digest)
        if config is None:
            digest = base.file_digest("config.json")
            if digest is None:
                raise DataLoss(f"base '{base.pb.name}' has no config.json")
            path = await self._cache.path(digest)
            config = BaseConfig.from_hf(json.loads(await asyncio.to_thread(path.read_bytes)))
            self._configs[base.digest] = config
        return config
