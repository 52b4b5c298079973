"""Predictions as the protocol's output tensors.

Knows which tensors each task gives; does not know how a prediction came about.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hmi.admin.v1 import resources_pb2
from hmi.inference.v1 import inference_pb2
from hmi.oip.v1 import open_inference_pb2 as pb
from services.common.errors import InvalidArgument
from services.gateway.domain import Version

_LENGTH = struct.Struct("<I")

_NAMES: dict[resources_pb2.Task.ValueType, tuple[str, ...]] = {
    resources_pb2.TASK_SEQUENCE_CLASSIFICATION: ("scores", "label"),
    resources_pb2.TASK_MULTI_LABEL_CLASSIFICATION: ("scores", "label"),
    resources_pb2.TASK_REGRESSION: ("scores",),
    resources_pb2.TASK_TOKEN_CLASSIFICATION: ("entities",),
    resources_pb2.TASK_EMBEDDING: ("embedding",),
}


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor: FP32 `[batch, width]`, or BYTES `[batch]` if `strings` is set."""

    name: str
    rows: Sequence[Sequence[float]] = ()
    strings: Sequence[str] | None = None

    @property
    def datatype(self) -> str:
        return "FP32" if self.strings is None else "BYTES"

    @property
    def shape(self) -> list[int]:
        if self.strings is not None:
            return [len(self.strings)]
        return [len(self.rows), len(self.rows[0])]

    def raw(self) -> bytes:
        """Its elements as bytes."""
        if self.strings is None:
            values = [value for row in self.rows for value in row]
            return struct.pack(f"<{len(values)}f", *values)
        encoded = [text.encode() for text in self.strings]
        return b"".join(part for e in encoded for part in (_LENGTH.pack(len(e)), e))

    def contents(self) -> pb.InferTensorContents:
        """Its elements by type."""
        if self.strings is None:
            return pb.InferTensorContents(fp32_contents=[v for row in self.rows for v in row])
        return pb.InferTensorContents(bytes_contents=[text.encode() for text in self.strings])


def wanted(request: pb.ModelInferRequest, version: Version) -> list[str]:
    """Names of the outputs asked for; all if none is named.

    Raises:
        InvalidArgument: One that this model's task does not give.
    """
    names = _NAMES[version.task]
    for index, output in enumerate(request.outputs):
        if output.name not in names:
            raise InvalidArgument(f"outputs[{index}].name", f"must be one of {', '.join(names)}")
    return [output.name for output in request.outputs] or list(names)


def outputs(names: Sequence[str], predictions: Sequence[inference_pb2.Prediction]) -> list[Output]:
    """The named tensors of a batch."""
    return [_BUILD[name](predictions) for name in names]


def described(version: Version, hidden_size: int) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    """A model's output tensors; -1 is any size."""
    widths = {"scores": len(version.labels) or 1, "embedding": hidden_size}
    return [
        pb.ModelMetadataResponse.TensorMetadata(
            name=name,
            datatype="FP32" if name in widths else "BYTES",
            shape=[-1, widths[name]] if name in widths else [-1],
        )
        for name in _NAMES[version.task]
    ]


def _scores(predictions: Sequence[inference_pb2.Prediction]) -> Output:
    rows: list[Sequence[float]] = []
    for prediction in predictions:
        kind = prediction.WhichOneof("result")
        if kind == "classification":
            rows.append([score.score for score in prediction.classification.scores])
        elif kind == "multi_label":
            rows.append([score.score for score in prediction.multi_label.scores])
        else:
            rows.append(prediction.regression.values)
    return Output("scores", rows)


def _label(predictions: Sequence[inference_pb2.Prediction]) -> Output:
    strings = [
        json.dumps(list(prediction.multi_label.labels), ensure_ascii=False)
        if prediction.HasField("multi_label")
        else prediction.classification.label
        for prediction in predictions
    ]
    return Output("label", strings=strings)


def _embedding(predictions: Sequence[inference_pb2.Prediction]) -> Output:
    return Output("embedding", [prediction.embedding.values for prediction in predictions])


def _entities(predictions: Sequence[inference_pb2.Prediction]) -> Output:
    strings = []
    for prediction in predictions:
        spans = [
            {
                "label": span.label,
                "start": span.start,
                "end": span.end,
                "text": span.text,
                "score": span.score,
            }
            for span in prediction.token_tags.spans
        ]
        strings.append(json.dumps(spans, ensure_ascii=False))
    return Output("entities", strings=strings)


_BUILD = {"scores": _scores, "label": _label, "embedding": _embedding, "entities": _entities}
