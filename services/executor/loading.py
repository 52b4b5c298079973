"""Puts a base on the device with all that its models need.

Joins encoder, adapters, heads and tables; does not know which bases there are. Runs on threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmi.admin.v1 import resources_pb2
from services.common.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.common.local_encoder_format import FILE_NAME as LOCAL_ENCODER
from services.executor.adapters import AdapterStore, BaseTensors
from services.executor.adapters.sharing import SharedStore
from services.executor.blobs import BlobFiles
from services.executor.config import ExecutorSettings
from services.executor.construct.local_file import load_local
from services.executor.device import dtype_name, pick_device, pick_dtype
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.tables import LoadedSplit
from services.executor.failpoints import Reach, off
from services.executor.heads import BatchHeads
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.local_encoder import LocalEncoder
from services.executor.plot import HotTier, Retriever, RowCaches, TableBase, TableLoader, TableStore
from services.executor.tables import SplitTables

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 30.0
_TENANTS_SHARE = 8  # of the memory for computed rows


class BlobReader:
    """Blobs for loading threads; the files live on the event loop. Implements `TableBlobs`.

    Must be made on the event loop.
    """

    def __init__(self, files: BlobFiles) -> None:
        self._files = files
        self._event_loop = asyncio.get_running_loop()

    def path(self, sha256: str) -> Path:
        """The file that holds a blob.

        Raises:
            FailedPrecondition: The blob is gone, or its bytes differ from its digest.
            Unavailable: It cannot be read now.
        """
        path = asyncio.run_coroutine_threadsafe(self._files.path(sha256), self._event_loop)
        try:
            return path.result(READ_TIMEOUT_S)
        except (NotFound, DataLoss) as error:
            raise FailedPrecondition(
                f"blob {sha256} cannot be used: {error.message}", reason=error.reason
            ) from error
        except (TimeoutError, CancelledError, OSError) as error:
            raise Unavailable(f"blob {sha256} cannot be read now") from error

    def read(self, sha256: str) -> bytes:
        """A blob's bytes. A file that is gone or damaged is fetched anew, once; what has another
        digest even then is the caller's to refuse. Raises as `path`.
        """
        data = self._read(sha256)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            logger.warning("fetching a damaged blob anew", extra={"sha256": sha256})
            self.discard(sha256)
            data = self._read(sha256)
        if data is None:
            raise Unavailable(f"blob {sha256} cannot be read now")
        return data

    def _read(self, sha256: str) -> bytes | None:
        """What the file holds; None if it is gone."""
        try:
            return self.path(sha256).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"blob {sha256} cannot be read now") from error

    def discard(self, sha256: str) -> None:
        """The file holds something else: `path` shall not return it again."""
        self._event_loop.call_soon_threadsafe(self._files.discard, sha256)


@dataclass(frozen=True, slots=True)
class _Upper:
    """What bases of one unsplit digest share.

    Attributes:
        directories: Those bases' own, by digest. Each has the whole checkpoint.
    """

    encoder: Encoder
    adapters: SharedStore
    heads: BatchHeads
    directories: dict[str, Path]


class Loader:
    """Makes LoadedBases. Must be made on the event loop, and called on one thread at a time.

    Args:
        settings: Device, type and memory.
        files: Where versions' and tables' blobs come from.
        on_change: Called from any thread after a load has ended, well or not.
        reach: Called at the failpoints.
    """

    def __init__(
        self,
        settings: ExecutorSettings,
        files: BlobFiles,
        on_change: Callable[[], None],
        reach: Reach = off,
    ) -> None:
        self._settings = settings
        self._blobs = BlobReader(files)
        self._on_change = on_change
        self._reach = reach
        self._device = pick_device(settings.device)
        self._dtype = pick_dtype(settings.dtype, self._device)
        self._uppers: dict[str, _Upper] = {}  # by unsplit digest

    def load(self, directory: Path, base: resources_pb2.Base) -> LoadedBase:
        """The base in a Hugging Face directory, on the device.

        Raises:
            InvalidArgument, FailedPrecondition: As `load_base`, or its local encoder is not what
                the base says.
        """
        unsplit_digest = base.split.unsplit_digest or base.digest
        upper = self._uppers.get(unsplit_digest)
        encoder = (
            load_base(directory, dtype=self._dtype, device=self._device).for_inference()
            if upper is None
            else upper.encoder
        )
        split = self._split(directory, base, encoder) if base.HasField("split") else None
        if upper is None:
            upper = self._uppers[unsplit_digest] = self._upper(encoder, unsplit_digest, base.name)
        upper.directories[base.digest] = directory
        return LoadedBase(
            digest=base.digest,
            tokenizer_digest=base.tokenizer_digest,
            num_layers=encoder.config.num_layers,
            vocab_size=encoder.config.vocab_size,
            max_tokens=encoder.config.max_tokens,
            device=self._device,
            encoder=encoder,
            adapters=upper.adapters.share(
                split_layer=base.split.layer,
                on_close=lambda: upper.directories.pop(base.digest),
            ),
            heads=upper.heads,
            name=base.name,
            split=split,
        )

    def _upper(self, encoder: Encoder, unsplit_digest: str, name: str) -> _Upper:
        directories: dict[str, Path] = {}

        def tensor(name: str) -> NDArray[np.float32]:
            """A tensor of the checkpoint of whichever base is still there."""
            return BaseTensors(next(iter(directories.values())), encoder.config)(name)

        store = AdapterStore(
            encoder.config,
            dtype=self._dtype,
            device=self._device,
            device_bytes=self._settings.device_adapter_bytes,
            host_bytes=self._settings.host_adapter_bytes,
            read_blob=self._blobs.read,
            base_tensor=tensor,
            has_pooler=encoder.has_pooler,
            on_change=self._on_change,
            name=name,
        )
        adapters = SharedStore(store, on_close=lambda: self._uppers.pop(unsplit_digest))
        return _Upper(encoder, adapters, BatchHeads(store.arena, encoder.pool), directories)

    def _split(self, directory: Path, base: resources_pb2.Base, encoder: Encoder) -> LoadedSplit:
        local = load_local(directory / LOCAL_ENCODER, encoder)
        if local.split != base.split.layer:
            raise InvalidArgument(
                LOCAL_ENCODER, f"has {local.split} layers; the base is split at {base.split.layer}"
            )
        row_shape = (local.num_slots, local.hidden_size)

        def load_encoder(sha256: str) -> LocalEncoder:
            if sha256 == base.split.encoder_sha256:
                return local
            return load_local(self._blobs.path(sha256), encoder)

        loader = TableLoader(
            TableBase(
                digest=base.digest,
                form=local.form.value,
                row_shape=row_shape,
                vocab_size=encoder.config.vocab_size,
                dtype=dtype_name(local.dtype),
            ),
            self._blobs,
            load_encoder,
        )
        settings = self._settings
        store = TableStore(
            loader,
            host_bytes=settings.host_table_bytes,
            tier=HotTier(settings.hot_table_bytes, self._device),
            on_change=self._on_change,
            name=base.name,
            reach=self._reach,
        )
        caches = RowCaches(
            row_shape,
            total_bytes=settings.computed_row_bytes,
            tenant_bytes=settings.computed_row_bytes // _TENANTS_SHARE,
        )
        tables = SplitTables(store, Retriever(row_shape, self._device, caches))
        return LoadedSplit(base.split.layer, base.split.unsplit_digest, tables, local, load_encoder)
