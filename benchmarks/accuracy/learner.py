"""A tenant's adapter and head, trained and asked.

Knows layers at and above the split, and labels; does not know what lies below. The same budget for
whatever is compared: LoRA (Hu et al., 2021) of rank 8 on query and value of each layer, alpha 16,
and one linear map, on the mean over a text's tokens or on each token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.accuracy.inputs import Inputs
from benchmarks.accuracy.tasks import IGNORED, Task
from services.common.ngrams import IntArray
from services.executor.construct.judge import mean_pool
from services.executor.models.bypass import NoBypass, Norm, Site
from services.executor.models.encoder import Encoder
from services.executor.models.segments import Segments

RANK, ALPHA = 8, 16
_TOKENS_OF_SIZE = 64
_WINDOW = 16  # batches whose texts are sorted by length together


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to learn; the same for all rows of a task."""

    num_epochs: int
    learning_rate: float = 2e-3
    head_rate: float = 5e-3
    batch_texts: int = 32
    warm_up: float = 0.1
    weight_decay: float = 0.01


RECIPES = {"topics": Recipe(2), "sentiment": Recipe(2), "tags": Recipe(3)}


class Lora(nn.Module):
    """Low-rank terms on query and value, as PEFT begins them: A random, B zero."""

    def __init__(self, layers: range, hidden: int, chance: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)
        self._first = layers.start
        inner = torch.empty(len(layers), 2 * RANK, hidden)
        self.inner = nn.Parameter(inner.uniform_(-bound, bound, generator=chance))
        self.outer = nn.Parameter(torch.zeros(len(layers), 2, hidden, RANK))

    def prefix(self, num_rows: int) -> Lora:
        return self

    def scale_input(self, layer: int, site: Site, x: Tensor) -> Tensor:
        return x

    def add(self, layer: int, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """Query and value of `[tokens, 3 hidden]` with their terms."""
        if site is not Site.ATTENTION_INPUT:
            return y
        place = layer - self._first
        query, key, value = y.chunk(3, dim=1)
        low = F.linear(x, self.inner[place].to(x.dtype)) * (ALPHA / RANK)
        outer = self.outer[place].to(x.dtype)
        query = query + F.linear(low[:, :RANK], outer[0])
        value = value + F.linear(low[:, RANK:], outer[1])
        return torch.cat([query, key, value], dim=1)

    def close(self, layer: int, site: Site, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        return norm(y + residual)


class Model(nn.Module):
    """Adapter and head on the layers from `split` on."""

    def __init__(self, upper: Encoder, split: int, task: Task, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self._upper = upper
        self._layers = range(split, upper.config.num_layers)
        self._is_by_token = task.is_by_token
        hidden = upper.config.hidden_size
        self.lora = Lora(self._layers, hidden, chance)
        self.head = nn.Linear(hidden, task.num_labels)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.02, generator=chance)
            self.head.bias.zero_()

    def forward(self, hidden: Tensor, segments: Segments) -> Tensor:
        """float32 logits `[texts, labels]`, or `[tokens, labels]`."""
        hidden = self._upper.run(hidden, segments, layers=self._layers, bypass=self.lora)
        pooled = hidden.float() if self._is_by_token else mean_pool(hidden, segments)
        logits: Tensor = self.head(pooled)
        return logits


class Dealer:
    """A task's texts in batches."""

    def __init__(self, task: Task) -> None:
        self._lengths = task.lengths
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._labels = task.labels
        self.is_by_token = task.is_by_token

    def shuffled(
        self, texts: IntArray, size: int, chance: np.random.Generator
    ) -> Iterator[IntArray]:
        """Places of texts, batch after batch, texts of like length together."""
        order = chance.permutation(texts)
        batches = []
        for begin in range(0, len(order), size * _WINDOW):
            window = order[begin : begin + size * _WINDOW]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches += [window[at : at + size] for at in range(0, len(window), size)]
        for number in chance.permutation(len(batches)):
            yield batches[number]

    def ordered(self, texts: IntArray, size: int) -> Iterator[IntArray]:
        """All texts, the shortest first."""
        order = texts[np.argsort(self._lengths[texts], kind="stable")]
        for begin in range(0, len(order), size):
            yield order[begin : begin + size]

    def tokens(self, texts: IntArray) -> IntArray:
        """Places of the texts' tokens among all the task's."""
        spans = [np.arange(self._starts[t], self._starts[t] + self._lengths[t]) for t in texts]
        return np.concatenate(spans)

    def segments(self, texts: IntArray) -> Segments:
        return Segments(self._lengths[texts].tolist(), torch.device("cpu"))

    def labels(self, texts: IntArray) -> Tensor:
        """`[texts]`, or `[tokens]` for a task by token."""
        return torch.from_numpy(np.concatenate([self._labels[text] for text in texts]))


View = IntArray | None
"""What every token of a task is seen as, `[tokens]`: which of its n-grams answers."""


def train(
    model: Model,
    inputs: Inputs,
    dealer: Dealer,
    texts: IntArray,
    recipe: Recipe,
    view: View,
    seed: int,
) -> None:
    """Learn from texts."""
    num_steps = recipe.num_epochs * math.ceil(len(texts) / recipe.batch_texts)
    optimizer = torch.optim.AdamW(
        [
            {"params": model.lora.parameters(), "lr": recipe.learning_rate},
            {"params": model.head.parameters(), "lr": recipe.head_rate},
        ],
        weight_decay=recipe.weight_decay,
    )
    warm_up = max(1, int(recipe.warm_up * num_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.0, 1 - step / num_steps))
    )
    chance = np.random.default_rng(seed)
    for _ in range(recipe.num_epochs):
        for batch in dealer.shuffled(texts, recipe.batch_texts, chance):
            # The fused attention is the faster one forwards, but several times slower backwards.
            with sdpa_kernel(SDPBackend.MATH):
                logits = _logits(model, inputs, dealer, batch, view)
            loss = F.cross_entropy(logits, dealer.labels(batch), ignore_index=IGNORED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def score(
    model: Model, inputs: Inputs, dealer: Dealer, texts: IntArray, view: View, size: int = 64
) -> dict[int, tuple[int, int]]:
    """By text: how many of its labels are right, and how many it has."""
    scores: dict[int, tuple[int, int]] = {}
    for batch in dealer.ordered(texts, size):
        found = _logits(model, inputs, dealer, batch, view).argmax(1)
        wanted = dealer.labels(batch)
        segments = dealer.segments(batch)
        owner = segments.row_of_token if len(wanted) != len(batch) else torch.arange(len(batch))
        is_asked = wanted != IGNORED
        right = torch.bincount(owner[is_asked & (found == wanted)], minlength=len(batch))
        asked = torch.bincount(owner[is_asked], minlength=len(batch))
        pairs = zip(batch.tolist(), right.tolist(), asked.tolist(), strict=True)
        scores |= {text: (hits, num) for text, hits, num in pairs}
    return scores


def _logits(model: Model, inputs: Inputs, dealer: Dealer, batch: IntArray, view: View) -> Tensor:
    """Float32 `[texts, labels]`, or `[tokens, labels]`.

    One more row fills the batch up to a multiple of 64 tokens, and is dropped again: a matrix
    product of a new size is compiled before it is computed, which takes as long as training.
    """
    tokens, segments = dealer.tokens(batch), dealer.segments(batch)
    num_logits = len(tokens) if dealer.is_by_token else len(batch)
    if num_filling := -len(tokens) % _TOKENS_OF_SIZE:
        tokens = np.concatenate([tokens, np.full(num_filling, tokens[0])])
        segments = Segments([*segments.lengths, num_filling], segments.device)
    seen = None if view is None else view[tokens]
    hidden = inputs.take(torch.from_numpy(tokens), segments, seen)
    logits: Tensor = model(hidden, segments)
    return logits[:num_logits]


@torch.no_grad()
def embed(
    upper: Encoder, split: int, inputs: Inputs, dealer: Dealer, texts: IntArray, view: View
) -> Tensor:
    """Sentence embeddings without any adapter: float32 `[texts, hidden]` of length 1."""
    layers = range(split, upper.config.num_layers)
    vectors = torch.empty(len(texts), upper.config.hidden_size)
    place_of = {int(text): place for place, text in enumerate(texts)}
    for batch in dealer.ordered(texts, 64):
        tokens, segments = dealer.tokens(batch), dealer.segments(batch)
        hidden = inputs.take(
            torch.from_numpy(tokens), segments, None if view is None else view[tokens]
        )
        hidden = upper.run(hidden, segments, layers=layers, bypass=NoBypass())
        places = [place_of[int(text)] for text in batch]
        vectors[places] = F.normalize(mean_pool(hidden, segments), dim=1)
    return vectors
