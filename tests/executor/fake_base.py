"""A deterministic base for tests of the engine and its service: no weights, adapters on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.common.errors import HmiError
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import ModelKey
from services.executor.models.attention import KeyValues
from services.executor.models.bypass import Bypass, NoBypass
from services.executor.models.segments import Segments


def key(name: str, base: str = "base") -> ModelKey:
    return ModelKey("acme", name, 1, f"digest-{name}", base)


class FakeBase:
    """Answers (sum of ids, number of second-text tokens, len(model name)); loads when told to."""

    def __init__(self) -> None:
        self.resident: set[ModelKey] = set()
        self.broken: dict[ModelKey, HmiError] = {}
        self.failing: dict[ModelKey, Exception] = {}  # raised by the heads of their batches
        self.num_more = 0  # zeros appended to each answer
        self.prefetched: list[ModelKey] = []
        self.wanted: list[ModelKey] = []
        self.num_pins = 0
        self.num_acquired = 0  # ever
        self.forgotten: list[ModelKey] = []
        self.is_closed = False
        self.pinned: frozenset[ModelKey] = frozenset()
        self.batches: list[int] = []
        self.entry_layers: Sequence[int] | None = None
        self.before_run: Callable[[], None] = lambda: None

    def prefetch(self, key: ModelKey) -> None:
        self.prefetched.append(key)

    def is_ready(self, key: ModelKey) -> bool:
        return key in self.resident

    def pin(self, keys: frozenset[ModelKey]) -> None:
        self.pinned = keys

    def forget(self, key: ModelKey) -> None:
        self.forgotten.append(key)

    def close(self) -> None:
        self.is_closed = True

    def resident_digests(self) -> frozenset[str]:
        return frozenset(key.digest for key in self.resident)

    def held_digests(self) -> frozenset[str]:
        return self.resident_digests()

    def acquire(self, key: ModelKey) -> ModelKey | None:
        if key in self.broken:
            raise self.broken[key]
        if key not in self.resident:
            self.wanted.append(key)
            return None
        self.num_pins += 1
        self.num_acquired += 1
        return key

    def release(self, slot: ModelKey) -> None:
        self.num_pins -= 1

    def bypass(self, slots: Sequence[ModelKey], segments: Segments) -> Bypass:
        return NoBypass()

    def embed(
        self,
        token_ids: Tensor,
        type_ids: Tensor | None,
        segments: Segments,
        position_offsets: Tensor | None = None,
    ) -> Tensor:
        self.batches.append(segments.num_rows)
        return torch.stack(
            [token_ids, torch.zeros_like(token_ids) if type_ids is None else type_ids], 1
        ).float()

    def run(
        self,
        hidden: Tensor,
        segments: Segments,
        *,
        layers: range,
        bypass: Bypass,
        entry_layers: Sequence[int] | None = None,
        kv: KeyValues | None = None,
    ) -> Tensor:
        self.before_run()
        self.entry_layers = entry_layers
        return hidden

    def heads(
        self, slots: Sequence[ModelKey], hidden: Tensor, segments: Segments
    ) -> Sequence[Tensor]:
        for slot in slots:
            if slot in self.failing:
                raise self.failing[slot]
        rows = torch.split(hidden, segments.lengths)
        return [
            torch.cat(
                [row.sum(0), torch.tensor([float(len(slot.model))]), torch.zeros(self.num_more)]
            )
            for row, slot in zip(rows, slots, strict=True)
        ]


class FakeHeads:
    def __init__(self, fake: FakeBase) -> None:
        self.run = fake.heads


def loaded(fake: FakeBase, digest: str = "base") -> LoadedBase:
    return LoadedBase(
        digest, "tokenizer", 2, 1000, 512, torch.device("cpu"), fake, fake, FakeHeads(fake)
    )
