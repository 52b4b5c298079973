"""How good predictions are. Knows predictions and truths, not the model that made them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.executor.train.data import Span


def classification(
    predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """accuracy and macro_f1 of `[examples, labels]` indicators (one-hot for single labels).

    Accuracy is the share of examples with every label right. macro_f1 is the mean of the labels'
    F1 = 2 TP / (2 TP + FP + FN), over the labels that are true or predicted somewhere.
    """
    hits = (predicted & true).sum(0)
    either = predicted.sum(0) + true.sum(0)
    seen = either > 0
    f1 = 2 * hits[seen] / either[seen]
    return {
        "accuracy": float((predicted == true).all(1).mean()),
        "macro_f1": float(f1.mean()) if seen.any() else 1.0,
    }


def span_f1(
    predicted: Sequence[Sequence[Span]], true: Sequence[Sequence[Span]]
) -> dict[str, float]:
    """span_f1, precision and recall over all texts; a span counts if label and both ends agree."""
    hits = sum(len(set(p) & set(t)) for p, t in zip(predicted, true, strict=True))
    num_predicted = sum(map(len, predicted))
    num_true = sum(map(len, true))
    total = num_predicted + num_true
    return {
        "span_f1": 2 * hits / total if total else 1.0,
        "precision": hits / num_predicted if num_predicted else 1.0,
        "recall": hits / num_true if num_true else 1.0,
    }


def rmse(predicted: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> dict[str, float]:
    """Root mean squared error, in the unit of the values."""
    return {"rmse": math.sqrt(float(np.square(predicted - true).mean()))}
