"""The executor alone: items fed to its engine in this process, without gRPC, at saturation.

The bound that the path through gRPC is measured against; prints items a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer

from hmi.bases import minilm_directory
from services.executor.adapters import AdapterStore, BaseTensors
from services.executor.device import pick_device, pick_dtype, pick_limits, pick_workers
from services.executor.dispatch import Dispatcher
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Event, Item, ModelKey
from services.executor.heads import BatchHeads
from services.executor.models.encoder import load_base

WINDOW = 256
SECONDS = 4.0
WARMUP_S = 1.0


class Feeder:
    """Keeps a window of items in the engine; counts those answered."""

    def __init__(self, dispatcher: Dispatcher, keys: list[ModelKey], token_ids: np.ndarray) -> None:
        self._dispatcher = dispatcher
        self._keys = keys
        self._token_ids = token_ids
        self._answered = 0
        self._num_sent = 0
        self.num_answers = 0

    def feed(self, count: int) -> None:
        items = []
        for _ in range(count):
            self._num_sent += 1
            key = self._keys[self._num_sent % len(self._keys)]
            items.append((self._num_sent, Item(self._num_sent, key, self._token_ids)))
        self._dispatcher.submit(items, self)

    def post(self, item_id: int, event: Event) -> None:
        if event.error is not None:
            raise event.error
        self._answered += 1

    def flush(self) -> None:
        answered, self._answered = self._answered, 0
        self.num_answers += answered
        self.feed(answered)


def _load(directory: Path, versions: dict[str, bytes], wake: SimpleNamespace) -> LoadedBase:
    device = pick_device("auto")
    encoder = load_base(directory, dtype=pick_dtype("auto", device), device=device).for_inference()
    adapters = AdapterStore(
        encoder.config,
        dtype=encoder.dtype,
        device=device,
        device_bytes=256 << 20,
        host_bytes=1 << 30,
        read_blob=versions.__getitem__,
        base_tensor=BaseTensors(directory, encoder.config),
        on_change=lambda: wake.call(),
        name="minilm",
    )
    return LoadedBase(
        digest="base",
        tokenizer_digest="",
        num_layers=encoder.config.num_layers,
        vocab_size=encoder.config.vocab_size,
        max_tokens=encoder.config.max_tokens,
        device=device,
        encoder=encoder,
        adapters=adapters,
        heads=BatchHeads(adapters.arena, encoder.pool),
    )


async def rate(directory: Path, versions: dict[str, bytes], text: str) -> float:
    """Answers a second once warm."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    token_ids = np.array(tokenizer.encode(text).ids, np.int64)
    if len(token_ids) != 48:
        raise RuntimeError(f"{len(token_ids)} tokens, not 48")
    wake = SimpleNamespace(call=lambda: None)
    base = _load(directory, versions, wake)
    limits = pick_limits(0, 0, base.device)
    dispatcher = Dispatcher(
        {"base": base},
        limits,
        max_in_flight=1,
        num_workers=pick_workers(0, base.device),
        reach=lambda _point, _num: None,
        observe=lambda _part: None,
        on_failure=lambda: None,
    )
    wake.call = dispatcher.wake
    dispatcher.start()
    keys = [ModelKey("bench", f"m{i}", 1, digest, "base") for i, digest in enumerate(versions)]
    feeder = Feeder(dispatcher, keys, token_ids)
    feeder.feed(WINDOW)
    await asyncio.sleep(WARMUP_S)
    began, before = time.perf_counter(), feeder.num_answers
    await asyncio.sleep(SECONDS)
    answered = (feeder.num_answers - before) / (time.perf_counter() - began)
    await dispatcher.stop()
    return answered


def main() -> None:
    from benchmarks.serving import NUM_MODELS, TEXTS, blobs

    versions = {hashlib.sha256(blob).hexdigest(): blob for blob in blobs(NUM_MODELS)}
    print(asyncio.run(rate(minilm_directory(), versions, TEXTS[0])))


if __name__ == "__main__":
    main()
