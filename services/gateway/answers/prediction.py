"""Logits and vectors to `Prediction` messages.

Softmax and sigmoid are computed in float64 and rounded once, to float32. Knows nothing of tokens
but their number; tags are in `spans`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hmi.admin.v1 import resources_pb2
from hmi.executor.v1 import executor_pb2
from hmi.inference.v1 import inference_pb2 as pb
from services.common.errors import FailedPrecondition, Internal
from services.gateway.answers.spans import spans
from services.gateway.domain import Encoded, Version

Floats = npt.NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: Floats) -> Floats:
    """Probabilities element by element, without overflow (`1/(1+e^-x)` as `(1+tanh(x/2))/2`)."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def prediction(
    version: Version, tensor: executor_pb2.Tensor, encoded: Encoded, text: str
) -> pb.Prediction:
    """The answer to one input.

    Args:
        tensor: float32 logits `[labels]`, logits a token `[tokens, labels]`, or a vector
            `[hidden]`.

    Raises:
        Internal: The tensor does not have the shape that the version's task and labels ask for.
        FailedPrecondition: A number is not finite: no label or score can be told from it.
    """
    values = np.frombuffer(tensor.data, dtype="<f4")
    if not np.isfinite(values).all():
        raise FailedPrecondition(
            f"version {version.pb.number} of model '{version.pb.model}' overflows on an input: its "
            "weights are too large",
            reason="NOT_FINITE",
        )
    convert = _BY_TASK[version.task]
    answer = convert(version, values, encoded, text)
    answer.num_tokens = len(encoded.ids)
    return answer


def _check_size(values: npt.NDArray[np.float32], expected: int) -> None:
    if values.size != expected:
        raise Internal(f"the executor answered {values.size} numbers in place of {expected}")


def _scores(version: Version, probabilities: Floats) -> list[pb.LabelScore]:
    return [
        pb.LabelScore(label=label, score=score)
        for label, score in zip(version.labels, probabilities.tolist(), strict=True)
    ]


def _classification(
    version: Version, values: npt.NDArray[np.float32], _encoded: Encoded, _text: str
) -> pb.Prediction:
    _check_size(values, len(version.labels))
    probabilities = softmax(values.astype(np.float64))
    best = int(probabilities.argmax())
    scores = _scores(version, probabilities)
    chosen = pb.Classification(label=version.labels[best], score=scores[best].score, scores=scores)
    return pb.Prediction(classification=chosen)


def _multi_label(
    version: Version, values: npt.NDArray[np.float32], _encoded: Encoded, _text: str
) -> pb.Prediction:
    _check_size(values, len(version.labels))
    scores = _scores(version, sigmoid(values.astype(np.float64)))
    labels = [score.label for score in scores if score.score >= 0.5]
    return pb.Prediction(multi_label=pb.MultiLabel(labels=labels, scores=scores))


def _regression(
    _version: Version, values: npt.NDArray[np.float32], _encoded: Encoded, _text: str
) -> pb.Prediction:
    return pb.Prediction(regression=pb.Regression(values=values.tolist()))


def _token_tags(
    version: Version, values: npt.NDArray[np.float32], encoded: Encoded, text: str
) -> pb.Prediction:
    _check_size(values, len(encoded.ids) * len(version.labels))
    logits = values.astype(np.float64).reshape(len(encoded.ids), len(version.labels))
    probabilities = softmax(logits)
    return pb.Prediction(
        token_tags=pb.TokenTags(spans=spans(probabilities, version.labels, encoded, text))
    )


def _embedding(
    _version: Version, values: npt.NDArray[np.float32], _encoded: Encoded, _text: str
) -> pb.Prediction:
    return pb.Prediction(embedding=pb.Embedding(values=values.tolist()))


_Convert = Callable[[Version, npt.NDArray[np.float32], Encoded, str], pb.Prediction]

_BY_TASK: dict[resources_pb2.Task.ValueType, _Convert] = {
    resources_pb2.TASK_SEQUENCE_CLASSIFICATION: _classification,
    resources_pb2.TASK_MULTI_LABEL_CLASSIFICATION: _multi_label,
    resources_pb2.TASK_REGRESSION: _regression,
    resources_pb2.TASK_TOKEN_CLASSIFICATION: _token_tags,
    resources_pb2.TASK_EMBEDDING: _embedding,
}
