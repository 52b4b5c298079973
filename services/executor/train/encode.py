"""Examples as token ids with targets, and batches of them.

Uses the base's own tokenizer.json as the gateway does, so that training sees what serving will see.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from services.common.errors import InvalidArgument
from services.executor.train.data import Example, Examples
from services.executor.train.options import Task
from services.executor.train.spans import Offset, tag_names, tags_of

IGNORED = -100
"""Target of tokens that count for nothing (cross_entropy's ignore_index)."""
_BATCHES_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class Encoded:
    """One example as the model takes it."""

    example: Example
    token_ids: list[int]
    type_ids: list[int]
    offsets: list[Offset]
    """Characters of each token; empty for special tokens."""
    words: list[int | None]
    """Which word each token is a piece of; None for special tokens."""
    target: int | float | list[int] | list[float]
    """Class, value, one tag a token, or one indicator a label."""
    is_truncated: bool


def load_tokenizer(base_dir: Path, max_tokens: int) -> Tokenizer:
    """The base's tokenizer, cutting at `max_tokens` and padding nothing.

    Raises:
        InvalidArgument: no tokenizer.json, or not one that `tokenizers` reads.
    """
    path = base_dir / "tokenizer.json"
    if not path.is_file():
        raise InvalidArgument("base", f"{base_dir} holds no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise InvalidArgument("base", f"tokenizer.json cannot be read: {error}") from error
    # Some bases ship with padding and a short truncation set in the file.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def encode(examples: Examples, tokenizer: Tokenizer) -> dict[Example, Encoded]:
    """Every example as tokens and target.

    Raises:
        InvalidArgument: two spans meet within one token.
    """
    inputs = [
        item.text if item.text_pair is None else (item.text, item.text_pair)
        for item in examples.items
    ]
    encodings = tokenizer.encode_batch(inputs)
    return {
        item: Encoded(
            example=item,
            token_ids=encoding.ids,
            type_ids=encoding.type_ids,
            offsets=_offsets(encoding),
            words=encoding.word_ids,
            target=_target(examples, item, encoding),
            is_truncated=bool(encoding.overflowing),
        )
        for item, encoding in zip(examples.items, encodings, strict=True)
    }


def _offsets(encoding: Any) -> list[Offset]:
    """Offsets, with special tokens (which some tokenizers place at 0) made empty."""
    masked = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [(0, 0) if is_special else offset for offset, is_special in masked]


def _target(
    examples: Examples, item: Example, encoding: Any
) -> int | float | list[int] | list[float]:
    match examples.task:
        case Task.REGRESSION:
            return item.value
        case Task.MULTI_LABEL_CLASSIFICATION:
            return [float(label in item.labels) for label in examples.labels]
        case Task.SEQUENCE_CLASSIFICATION:
            return examples.labels.index(item.labels[0])
        case Task.TOKEN_CLASSIFICATION:
            index = {tag: i for i, tag in enumerate(tag_names(examples.labels))}
            tags = tags_of(item.text, item.spans, _offsets(encoding), where=item.where)
            masked = zip(tags, encoding.special_tokens_mask, strict=True)
            return [IGNORED if is_special else index[tag] for tag, is_special in masked]


@dataclass(frozen=True)
class Batch:
    """Padded examples. Integer tensors `[batch, seq]`, seq the longest example's tokens."""

    items: list[Encoded]
    inputs: dict[str, Tensor]
    """input_ids, attention_mask and, if the base has token types, token_type_ids."""
    targets: Tensor
    """[batch] int64 or float32, [batch, seq] int64 tags, or [batch, labels] float32."""


def collate(
    items: list[Encoded], *, task: Task, pad_id: int, with_types: bool, device: torch.device
) -> Batch:
    """The examples as one batch on `device`."""
    longest = max(len(item.token_ids) for item in items)

    def padded(rows: Sequence[list[int]], value: int) -> Tensor:
        filled = [row + [value] * (longest - len(row)) for row in rows]
        return torch.tensor(filled, device=device)

    inputs = {
        "input_ids": padded([item.token_ids for item in items], pad_id),
        "attention_mask": padded([[1] * len(item.token_ids) for item in items], 0),
    }
    if with_types:
        inputs["token_type_ids"] = padded([item.type_ids for item in items], 0)
    targets: Any = [item.target for item in items]
    if task is Task.TOKEN_CLASSIFICATION:
        return Batch(items, inputs, padded(targets, IGNORED))
    is_class = task is Task.SEQUENCE_CLASSIFICATION
    dtype = torch.int64 if is_class else torch.float32
    return Batch(items, inputs, torch.tensor(targets, dtype=dtype, device=device))


def shuffled(items: list[Encoded], batch_size: int, rng: random.Random) -> list[list[Encoded]]:
    """Batches of similar length in random order: little padding, yet a new mix each epoch."""
    items = rng.sample(items, len(items))
    pool = batch_size * _BATCHES_SORTED_TOGETHER
    batches: list[list[Encoded]] = []
    for start in range(0, len(items), pool):
        near = sorted(items[start : start + pool], key=lambda item: len(item.token_ids))
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    rng.shuffle(batches)
    return batches


def by_length(items: list[Encoded], batch_size: int) -> list[list[Encoded]]:
    """Batches of similar length, always the same: for evaluation."""
    ordered = sorted(items, key=lambda item: len(item.token_ids))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
