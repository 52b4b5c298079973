"""Puts a base on the device with all that its models need.

Joins encoder, adapters and heads; does not know which bases there are. Runs on threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from hmi.admin.v1 import resources_pb2
from services.common.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from services.executor.adapters import AdapterStore, BaseTensors
from services.executor.blobs import BlobFiles
from services.executor.config import ExecutorSettings
from services.executor.device import pick_device, pick_dtype
from services.executor.engine.interfaces import LoadedBase
from services.executor.heads import BatchHeads
from services.executor.models.encoder import load_base

READ_TIMEOUT_S = 30.0


class Loader:
    """Makes LoadedBases. Must be made on the event loop.

    Args:
        settings: Device, type and memory.
        files: Where versions' blobs come from.
        on_change: Called from any thread after an adapter's load has ended, well or not.
    """

    def __init__(
        self, settings: ExecutorSettings, files: BlobFiles, on_change: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._files = files
        self._on_change = on_change
        self._event_loop = asyncio.get_running_loop()
        self._device = pick_device(settings.device)
        self._dtype = pick_dtype(settings.dtype, self._device)

    def load(self, directory: Path, base: resources_pb2.Base) -> LoadedBase:
        """The base in a Hugging Face directory, on the device.

        Raises:
            InvalidArgument, FailedPrecondition: As `load_base`.
        """
        encoder = load_base(directory, dtype=self._dtype, device=self._device)
        adapters = AdapterStore(
            encoder.config,
            dtype=self._dtype,
            device=self._device,
            device_bytes=self._settings.device_adapter_bytes,
            host_bytes=self._settings.host_adapter_bytes,
            read_blob=self._read_blob,
            base_tensor=BaseTensors(directory, encoder.config),
            has_pooler=encoder.has_pooler,
            on_change=self._on_change,
            name=base.name,
        )
        return LoadedBase(
            digest=base.digest,
            tokenizer_digest=base.tokenizer_digest,
            num_layers=encoder.config.num_layers,
            vocab_size=encoder.config.vocab_size,
            max_tokens=encoder.config.max_tokens,
            device=self._device,
            encoder=encoder,
            adapters=adapters,
            heads=BatchHeads(adapters.arena, encoder.pool),
        )

    def _read_blob(self, sha256: str) -> bytes:
        """A version's blob. Called on loading threads; the files live on the event loop.

        Raises:
            FailedPrecondition: It is gone, or its bytes differ from its digest.
            Unavailable: It cannot be read now.
        """
        path = asyncio.run_coroutine_threadsafe(self._files.path(sha256), self._event_loop)
        try:
            return path.result(READ_TIMEOUT_S).read_bytes()
        except (NotFound, DataLoss) as error:
            raise FailedPrecondition(
                f"the blob of version {sha256} cannot be used: {error.message}", reason=error.reason
            ) from error
        except (TimeoutError, OSError) as error:
            raise Unavailable(f"the blob of version {sha256} cannot be read now") from error
