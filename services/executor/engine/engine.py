"""Runs planned batches through a base: ids and table rows to tensors, layers, heads, events.

Knows tensors and devices; does not know where items come from or why these ones are in the batch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.errors import HmiError, Internal, Unavailable
from services.executor.engine.batching import Needs, Plan, Row
from services.executor.engine.filling import fill
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Event, Item
from services.executor.engine.tables import Retrieved, Source
from services.executor.models.segments import Segments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A batch's rows of one base, one after another, and what its tables gave for them."""

    base: LoadedBase
    rows: Sequence[Row]
    retrieved: Retrieved | None = None

    @property
    def items(self) -> list[Item]:
        return [row.item for row in self.rows]


Observe = Callable[[Part], None]


@dataclass(frozen=True, slots=True)
class InFlight:
    """A launched batch: its outputs, or why there are none. On CUDA it may still be computing."""

    plan: Plan
    parts: Sequence[Part] = ()
    outputs: Sequence[Tensor] = ()
    error: Exception | None = None


class Engine:
    """`step(plan) -> events` over the bases in device memory. Belongs to one thread.

    Args:
        bases: By digest. May grow between steps.
        observe: Told of each batch's parts that read tables, once they are answered; must not
            block.
    """

    def __init__(
        self, bases: Mapping[str, LoadedBase], observe: Observe = lambda _part: None
    ) -> None:
        self._bases = bases
        self._observe = observe

    def step(self, plan: Plan) -> list[Event]:
        """Run one batch; a final event for each row. A failure ends the culprit's items alone."""
        return self.collect(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: Plan) -> InFlight:
        """Start a batch. On CUDA this returns before it is computed, so that one batch's rows are
        looked up and copied while the one before it computes. On a CPU looking up takes a hundredth
        of the computing: nothing is gained by a thread of its own."""
        return self._start(plan)

    @torch.inference_mode()
    def collect(self, batch: InFlight) -> list[Event]:
        """Wait for a launched batch, release what it pinned and tell what came out."""
        try:
            return self._answers(batch)
        finally:
            for row in batch.plan.rows:
                self._bases[row.item.key.base_digest].release(row.pinned)
            for part in batch.parts:
                if part.retrieved is not None:
                    self._observe(part)

    def _start(self, plan: Plan) -> InFlight:
        plan = _in_order_of_entry(plan)
        try:
            parts = [self._retrieve(part) for part in self._parts(plan)]
            return InFlight(plan, parts, self._forward(parts))
        except Exception as error:
            return InFlight(plan, error=error)

    def _answers(self, batch: InFlight) -> list[Event]:
        """The rows' outputs. A batch that failed runs again model by model: one tenant's task
        knowledge must not fail another's items. Without memory that would not help."""
        plan, error = batch.plan, batch.error
        items = [row.item for row in plan.rows]
        if error is None:
            try:
                arrays = _to_host(batch.outputs)
                return [Event(item, array) for item, array in zip(items, arrays, strict=True)]
            except Exception as raised:
                error = raised
        parts = _by_model(plan)
        if len(parts) == 1 or isinstance(error, torch.OutOfMemoryError):
            told = _translate(error, plan)
            return [Event(item, error=told) for item in items]
        logger.warning("a batch failed and runs again model by model", exc_info=error)
        return [event for part in parts for event in self._answers(self._start(part))]

    def _parts(self, plan: Plan) -> Iterator[Part]:
        """The plan's rows base by base."""
        for digest, own in itertools.groupby(plan.rows, lambda row: row.item.key.base_digest):
            yield Part(self._bases[digest], list(own))

    def _retrieve(self, part: Part) -> Part:
        """The part with its rows' values, if its base is split."""
        if part.base.split is None:
            return part
        retrieved = part.base.split.tables.retrieve(
            _token_ids(part.items),
            [item.num_tokens for item in part.items],
            [Source(row.table, row.item.key.tenant) for row in part.rows],
        )
        return Part(part.base, part.rows, retrieved)

    def _forward(self, parts: Sequence[Part]) -> Sequence[Tensor]:
        base = parts[0].base  # they share encoder, adapters and heads
        items = [item for part in parts for item in part.items]
        slots = [row.slot for part in parts for row in part.rows]
        segments = Segments([item.num_tokens for item in items], base.device)
        entering = [_enter(part, segments if len(parts) == 1 else None) for part in parts]
        hidden, filled = fill(entering[0] if len(parts) == 1 else torch.cat(entering), segments)
        hidden = base.encoder.run(
            hidden,
            filled,
            layers=range(base.num_layers),
            bypass=base.adapters.bypass(slots, filled),
            entry_layers=_entry_layers(items, filled.num_rows),
        )
        return base.heads.run(slots, hidden[: segments.num_tokens], segments)


def _enter(part: Part, segments: Segments | None) -> Tensor:
    """`[tokens, hidden]`: what the part's rows are where they enter, embedded or looked up."""
    base, items = part.base, part.items
    segments = segments or Segments([item.num_tokens for item in items], base.device)
    types = _type_ids(items)
    type_ids = None if types is None else _to_device(types, base.device)
    offsets = _position_offsets(items, base.device)
    if base.split is None or part.retrieved is None:
        token_ids = _to_device(_token_ids(items), base.device)
        return base.encoder.embed(token_ids, type_ids, segments, offsets)
    merger = base.split.merger
    rows = merger.split_values(part.retrieved.values, segments)
    return merger.merge(rows, type_ids, segments, offsets)


def _in_order_of_entry(plan: Plan) -> Plan:
    """The plan with its rows as an encoder wants them: those that enter first come first."""
    if not any(row.item.entry_layer for row in plan.rows):
        return plan
    rows = sorted(plan.rows, key=lambda row: (row.item.entry_layer, row.item.key.base_digest))
    return Plan(plan.unsplit_digest, tuple(rows))


def _by_model(plan: Plan) -> list[Plan]:
    """The plan's rows in one plan a model and table version, in the order of the rows."""
    rows: dict[Needs, list[Row]] = {}
    for row in plan.rows:
        rows.setdefault((row.item.key, row.item.table_version), []).append(row)
    return [Plan(plan.unsplit_digest, tuple(own)) for own in rows.values()]


def _token_ids(items: Sequence[Item]) -> NDArray[np.int64]:
    """int64 `[tokens]` of the items one after another."""
    return np.concatenate([item.token_ids for item in items])


def _type_ids(items: Sequence[Item]) -> NDArray[np.int64] | None:
    """int64 `[tokens]`: 1 on the second text of a pair, otherwise 0. None if there is no pair."""
    firsts = np.fromiter((item.num_first_segment_tokens for item in items), np.int64, len(items))
    if not firsts.any():
        return None
    lengths = np.fromiter((item.num_tokens for item in items), np.int64, len(items))
    firsts = np.where(firsts == 0, lengths, firsts)
    ends = np.cumsum(lengths)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    return (position >= np.repeat(firsts, lengths)).astype(np.int64)


def _position_offsets(items: Sequence[Item], device: torch.device) -> Tensor | None:
    if not any(item.position_offset for item in items):
        return None
    return torch.tensor([item.position_offset for item in items], device=device)


def _entry_layers(items: Sequence[Item], num_rows: int) -> list[int] | None:
    """Each row's; a row beyond the items enters with the last of them."""
    layers = [item.entry_layer for item in items]
    return layers + layers[-1:] * (num_rows - len(items)) if any(layers) else None


def _to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """The array on the device; on CUDA through pinned memory, so that nothing waits."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _to_host(outputs: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """float32 arrays of the outputs, with one copy off the device for the whole batch."""
    if not outputs:
        return []
    if outputs[0].device.type == "cpu":
        return [output.float().numpy() for output in outputs]
    flat = torch.cat([output.reshape(-1) for output in outputs]).float().cpu().numpy()
    ends = np.cumsum([output.numel() for output in outputs])[:-1]
    parts: list[NDArray[Any]] = np.split(flat, ends)
    return [part.reshape(output.shape) for part, output in zip(parts, outputs, strict=True)]


def _translate(error: Exception, plan: Plan) -> HmiError:
    """What the batch's items are told; the log gets the whole of it."""
    if isinstance(error, HmiError):
        return error
    models = sorted({str(row.item.key) for row in plan.rows})
    logger.error("a batch failed", exc_info=error, extra={"models": models})
    if isinstance(error, torch.OutOfMemoryError):
        return Unavailable("the device is out of memory", reason="DEVICE_OUT_OF_MEMORY")
    return Internal("internal error while computing a batch")
