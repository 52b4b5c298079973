"""Batches of a round number of tokens: the filling changes no answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from services.executor.engine.filling import fill
from services.executor.models.segments import Segments
from tests.executor.test_adapters_batching import lora_blob
from tests.executor.tiny_tasks import Stack, save_base, stack, texts

CPU = torch.device("cpu")


def batch(lengths: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Segments]:
    return torch.ones(sum(lengths), 4, dtype=dtype), Segments(lengths, CPU)


@pytest.mark.parametrize(
    ("lengths", "filled"),
    [
        ([1], [1, 15]),
        ([16], [16]),
        ([60, 61], [60, 61, 7]),
        ([60, 70], [60, 70, 30]),
        ([7, 7], [7, 7]),
    ],
)
def test_a_bfloat16_batch_is_filled_up_with_a_row_of_zeros(
    lengths: list[int], filled: list[int]
) -> None:
    hidden, segments = fill(*batch(lengths, torch.bfloat16))
    assert segments.lengths == filled
    assert hidden.shape == (sum(filled), 4)
    assert hidden[: sum(lengths)].eq(1).all()
    assert hidden[sum(lengths) :].eq(0).all()


def test_a_float32_batch_is_left_as_it_is() -> None:
    given = batch([5], torch.float32)
    assert fill(*given) == given


@torch.inference_mode()
def run(made: Stack, lengths: list[int], filling: int) -> list[Tensor]:
    """Each row's hidden states, each with an adapter of its own, in a batch filled as `fill`
    does it: in float32, in which a difference would show."""
    slots = [
        made.acquire(made.push(lora_blob(i, rank=1 + i % 3), f"m{i}")) for i in range(len(lengths))
    ]
    ids = torch.tensor([token for text in texts(lengths) for token in text])
    hidden = made.encoder.embed(ids, None, Segments(lengths, CPU))
    segments = Segments(lengths + [filling] * (filling > 0), CPU)
    hidden = made.encoder.run(
        F.pad(hidden, (0, 0, 0, filling)),
        segments,
        layers=range(made.base.num_layers),
        bypass=made.store.bypass(slots, segments),
    )
    return list(hidden[: sum(lengths)].split(lengths))


@pytest.mark.parametrize("lengths", [[7, 7, 7], [3, 5, 40, 2, 9, 4, 4]])
def test_rows_answer_alike_in_a_filled_batch(tmp_path: Path, lengths: list[int]) -> None:
    with stack(save_base("bert", tmp_path / "base")) as made:
        plain = run(made, lengths, 0)
        filled = run(made, lengths, 11)
    for one, other in zip(plain, filled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
