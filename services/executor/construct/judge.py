"""How close a local encoder comes to its base on text it was not taught with.

Knows states and pooled features; does not know tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from services.executor.construct.shown import Texts
from services.executor.construct.student import Student, relative_error, teacher_states
from services.executor.construct.texts import Pieces
from services.executor.models.local_encoder import LEFT, RIGHT
from services.executor.models.segments import Segments

_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Against the unsplit base, over held-out texts.

    Attributes:
        errors: Relative squared error of the state at the split and of each global layer's output.
        cosine: Mean cosine of the mean-pooled last states.
    """

    errors: list[float]
    cosine: float


@torch.no_grad()
def judge(student: Student, held_out: Pieces, special: tuple[int, int]) -> dict[str, Fidelity]:
    """Fidelity with whole n-grams, without right neighbours, and with the centre alone."""
    seen: dict[str, list[tuple[list[Tensor], Tensor]]] = {}
    order = np.argsort(held_out.lengths, kind="stable")
    sizes = np.cumsum(held_out.lengths[order] + 2) // _BATCH_TOKENS
    for indices in np.split(order, np.flatnonzero(np.diff(sizes)) + 1):
        texts = Texts.of(held_out.rows(indices, *special), student.device)
        targets = teacher_states(student.base, texts, student.split)
        for name, slots in _views(texts.slots).items():
            states = student.states(texts, slots)
            errors = [relative_error(*pair) for pair in zip(states, targets, strict=True)]
            cosines = F.cosine_similarity(
                mean_pool(states[-1], texts.segments), mean_pool(targets[-1], texts.segments)
            )
            seen.setdefault(name, []).append((errors, cosines))
    return {name: _fidelity(batches) for name, batches in seen.items()}


def mean_pool(hidden: Tensor, segments: Segments) -> Tensor:
    """Each text's mean over its tokens: `[tokens, hidden]` to float32 `[rows, hidden]`."""
    lengths = torch.tensor(segments.lengths, device=hidden.device)
    sums = hidden.new_zeros(segments.num_rows, hidden.shape[1], dtype=torch.float32)
    sums.index_add_(0, segments.row_of_token, hidden.float())
    return sums / lengths[:, None]


def _views(slots: Tensor) -> dict[str, Tensor]:
    without_right = slots.clone()
    without_right[:, RIGHT] = 0
    centre = without_right.clone()
    centre[:, LEFT] = 0
    return {"trigram": slots, "bigram": without_right, "unigram": centre}


def _fidelity(batches: list[tuple[list[Tensor], Tensor]]) -> Fidelity:
    errors = torch.stack([torch.stack(errors) for errors, _ in batches]).mean(0)
    return Fidelity(errors.tolist(), torch.cat([cosines for _, cosines in batches]).mean().item())
