"""One base's adapters in three tiers: blobs by digest, packed in host memory, rows on the device.

Any registered adapter can be asked for; far fewer are resident. What is not resident loads on
threads of its own and delays only those who wait for it.

**Why a batch never sees a row change.** A batch refers to rows only through slots it has acquired.
Rows are written only between being taken off the free list and their slot becoming resident, that
is, before anybody can acquire it. Rows return to the free list only when their slot has no users;
who releases a slot has read the batch's outputs, so no kernel that reads the rows is still queued.
Row 0, which absent vectors point to, is never taken. A new version has another key, hence other
rows; an evicted or forgotten adapter's rows have no name any more.

Knows keys and digests; does not know tenants, batches or where blobs come from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from services.common.adapter_format import Limits
from services.common.base_config import BaseConfig
from services.common.errors import HmiError, Internal, Unavailable
from services.executor.adapters import metrics
from services.executor.adapters.arena import Arena, IntArray
from services.executor.adapters.batch import BatchBypass
from services.executor.adapters.device import DeviceTier
from services.executor.adapters.host import HostTier
from services.executor.adapters.loader import Loader, Refused
from services.executor.adapters.packing import BaseTensor, Packed
from services.executor.adapters.requests import Request, Requests
from services.executor.adapters.slots import Key, Slot
from services.executor.models.segments import Segments

logger = logging.getLogger(__name__)

_NUM_STAGING_THREADS = 4
_MAX_HINTED = 1024  # on their way in: each place that frees sorts them


class AdapterStore:
    """Loads, keeps and lends the adapters of one base. Methods may be called from any thread.

    Args:
        base: Sizes of the base.
        dtype: Compute dtype, which the rows have too.
        device_bytes: Device memory for adapters and heads.
        host_bytes: Host memory for packed adapters.
        read_blob: Blocking; a blob's bytes by digest. Its HmiErrors reach those who wait.
        base_tensor: Reads the base's tensors, for versions that change biases or the pooler.
        has_pooler: Whether the base's checkpoint has a pooler.
        on_change: Called from a loading thread after a load has ended, well or not.
        name: The base, in metrics.
    """

    def __init__(
        self,
        base: BaseConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_bytes: int,
        host_bytes: int,
        read_blob: Callable[[str], bytes],
        base_tensor: BaseTensor | None = None,
        has_pooler: bool = True,
        limits: Limits | None = None,
        on_change: Callable[[], None] | None = None,
        name: str = "",
    ) -> None:
        self.base = base
        self.arena = Arena(base.hidden_size, size_bytes=device_bytes, dtype=dtype, device=device)
        self._loader = Loader(
            base=base,
            dtype=dtype,
            read_blob=read_blob,
            base_tensor=base_tensor,
            limits=limits or Limits(),
            max_rows=self.arena.capacity,
            pin_memory=device.type == "cuda",
            has_pooler=has_pooler,
        )
        self._on_change = on_change or (lambda: None)
        self._name = name
        self._lock = threading.Condition()
        self._device = DeviceTier(self.arena)
        self._host = HostTier(host_bytes)
        self._requests = Requests(self._device.num_rows_of)
        self._is_closed = False
        self._stagers = ThreadPoolExecutor(_NUM_STAGING_THREADS, thread_name_prefix="adapter-read")
        self._committer = threading.Thread(
            target=self._commit_forever, name="adapter-load", daemon=True
        )
        self._committer.start()
        metrics.DEVICE_BYTES.labels(name, "adapters").set(self.arena.size_bytes)

    def close(self) -> None:
        """Stop loading. Adapters in use stay usable."""
        with self._lock:
            self._is_closed = True
            self._requests.clear()
            self._lock.notify_all()
        self._committer.join()
        self._stagers.shutdown(wait=True, cancel_futures=True)
        metrics.forget(self._name)

    def prefetch(self, key: Key) -> None:
        """Begin to load unless it is loaded or loading. Never blocks.

        A hint: where there is no room without evicting what is used more, it ends in host memory;
        where very many are on their way in, it is passed over.
        """
        with self._lock:
            if len(self._requests) < _MAX_HINTED:
                self._request(key, is_claimed=False)

    def is_ready(self, key: Key) -> bool:
        """Whether it is in device memory at this moment."""
        with self._lock:
            return key in self._device

    def acquire(self, key: Key) -> Slot | None:
        """Pin the adapter in device memory until `release`.

        None if it is not there yet; it is then loaded and kept, for a while, for who asks again.

        Raises:
            HmiError: It could not be loaded. If a later try may succeed: asking again after the
                error's retry_after_s, or after a while that grows to seconds, tries again.
        """
        with self._lock:
            if (slot := self._device.acquire(key)) is not None:
                return slot
            if (error := self._requests.tell(key)) is not None:
                raise error
            self._request(key, is_claimed=True)
            return None

    def release(self, slot: Slot) -> None:
        """End one `acquire`. On CUDA, the batch's outputs have been read by then."""
        with self._lock:
            self._device.release(slot)
            if not slot.num_users and self._requests:
                self._lock.notify_all()

    def bypass(self, slots: Sequence[Slot], segments: Segments) -> BatchBypass:
        """What the rows' adapters do inside the layers.

        Raises:
            Internal: A slot is not held, so its rows may be another adapter's.
        """
        if any(slot.num_users < 1 for slot in slots):
            raise Internal("a batch uses a slot that was released")
        return BatchBypass(self.arena, self.base, slots, segments)

    def pin(self, keys: Iterable[Key]) -> None:
        """Load these and keep them in device memory; those of the last call may leave.

        All of them get at most half of it; who comes later is served as if it were not pinned.
        """
        with self._lock:
            wanted = list(keys)
            self._device.pin(wanted)
            for key in wanted:
                self._request(key, is_claimed=False)  # nobody waits for it yet

    def forget(self, key: Key) -> None:
        """Drop a deleted version from the tiers; from the device once no batch uses it."""
        with self._lock:
            self._requests.forget(key)
            self._device.drop(key)
            if key.digest not in self._device.digests:
                self._host.drop(key.digest)
            self._observe()
            self._lock.notify_all()

    def resident_digests(self) -> frozenset[str]:
        """Versions in device memory."""
        with self._lock:
            return self._device.digests

    def held_digests(self) -> frozenset[str]:
        """Versions in any tier, or on their way in."""
        with self._lock:
            return self._device.digests | self._host.digests | self._requests.digests

    def _request(self, key: Key, *, is_claimed: bool) -> None:
        if self._is_closed or key in self._device:
            return
        if self._requests.add(key, is_claimed=is_claimed):
            self._stage_more()

    def _stage_more(self) -> None:
        """Bring into host memory what comes next."""
        for request in self._requests.to_stage():
            request.packed = self._host.get(request.key.digest)
            if request.packed is None:
                request.is_staging = True
                self._stagers.submit(self._stage, request)
            else:
                self._lock.notify_all()

    def _stage(self, request: Request) -> None:
        """Disk to host, on a staging thread."""
        packed: Packed | None = None
        failure: HmiError | Refused | None = None
        try:
            with metrics.LOAD_SECONDS.labels("host").time():
                packed = self._loader.load(request.key.digest)
        except (HmiError, Refused) as caught:
            failure = caught
        with self._lock:
            request.is_staging = False
            request.packed = packed
            if packed is not None:
                self._host.put(request.key.digest, packed)
            if isinstance(failure, Refused):
                self._requests.refuse(request, failure.error)
            elif failure is not None:
                self._requests.fail(request, failure)
            self._stage_more()
            self._lock.notify_all()
        if failure is not None:
            self._on_change()

    def _commit_forever(self) -> None:
        """Host to device, on the one thread that writes rows."""
        while True:
            with self._lock:
                placed = self._place_next()
                while placed is None and not self._is_closed:
                    # A claim that lapses makes room without a call, hence the timeout.
                    self._lock.wait(timeout=1.0 if self._requests else None)
                    placed = self._place_next()
                if placed is None:
                    return
            self._commit(*placed)
            self._on_change()

    def _commit(self, request: Request, packed: Packed, numbers: IntArray) -> None:
        """Write the rows that a request was given."""
        try:
            with metrics.LOAD_SECONDS.labels("device").time():
                self.arena.write(numbers, packed.rows)
        except Exception:  # of the device: this thread must live on for the others
            logger.exception("an adapter could not be written", extra={"key": str(request.key)})
            with self._lock:
                self.arena.give(numbers)
                self._requests.fail(request, Unavailable("the adapter could not be loaded"))
                self._stage_more()
            return
        with self._lock:
            self._publish(Slot(request.key, packed, numbers))

    def _publish(self, slot: Slot) -> None:
        request = self._requests.loaded(slot.key)
        # A version forgotten meanwhile comes in unclaimed: it leaves first.
        self._device.put(slot, is_claimed=request is not None and request.is_claimed)
        self._stage_more()
        self._observe()

    def _place_next(self) -> tuple[Request, Packed, IntArray] | None:
        """The next staged adapter with rows for it, or None if none is staged or fits now.

        Who does not fit waits and others go by; who is passed too often blocks them for a while.
        """
        blocked: list[Request] = []
        for request, packed in self._requests.staged():
            num_rows = packed.num_rows
            is_hint = not request.is_claimed and not self._device.takes_pin(request.key, num_rows)
            numbers = self._device.make_room(num_rows, request.taker, is_hint=is_hint)
            if numbers is not None:
                for other in blocked:
                    other.num_passed += 1
                return request, packed, numbers
            if not request.is_claimed:
                self._requests.take(request.key)  # a hint: host memory is near enough
                self._stage_more()
                continue
            if not self._device.can_ever_hold(num_rows):
                self._requests.give_up(request)
                self._stage_more()
                self._on_change()
                continue
            blocked.append(request)
            if request.blocks(time.monotonic()):
                return None
        return None

    def _observe(self) -> None:
        num_used, num_rows = len(self._device), max(self._device.num_rows_used, 1)
        metrics.SLOTS_USED.labels(self._name).set(num_used)
        metrics.SLOTS_TOTAL.labels(self._name).set(self.arena.capacity * num_used // num_rows)
