"""What inference takes and gives back, as frozen values.

Protobuf stops here: `from_pb` reads the wire's messages, `to_pb` writes them; nothing else of the
client sees one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hmi.client.messages import build
from hmi.errors import HmiError, Internal
from hmi.inference.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Provenance:
    """What produced an answer."""

    tenant: str
    model: str
    version: int
    digest: str
    """sha256 of the version's blob, in hex."""
    base: str
    base_digest: str
    table_version: str
    """Version of the domain's tables; empty for a model without a domain."""

    @classmethod
    def from_pb(cls, message: pb.Provenance) -> Provenance:
        return cls(
            tenant=message.tenant,
            model=message.model,
            version=message.version,
            digest=message.digest,
            base=message.base,
            base_digest=message.base_digest,
            table_version=message.table_version,
        )


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its probability, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Span:
    """A tagged piece of a text: its `text[start:end]`, counted in Unicode code points."""

    label: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer to one input; which subclass it is depends on the model's task."""

    num_tokens: int
    """Tokens of the input, special tokens included: what is billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification(Prediction):
    """One label of several."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]
    """Every label with its softmax probability, in the model's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabel(Prediction):
    """Any number of labels."""

    labels: tuple[str, ...]
    """Those with a probability of at least one half."""
    scores: tuple[LabelScore, ...]
    """Every label with its sigmoid probability, in the model's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression(Prediction):
    """One number or several, in the head's order."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTags(Prediction):
    """Tagged spans, in the order of the text."""

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding(Prediction):
    """A text's vector, `[hidden_size]`."""

    values: tuple[float, ...]


def _scores(messages: object) -> tuple[LabelScore, ...]:
    return tuple(LabelScore(m.label, m.score) for m in messages)  # type: ignore[attr-defined]


def prediction_from_pb(message: pb.Prediction) -> Prediction:
    """The prediction a message holds.

    Raises:
        Internal: The message holds none of the results this client knows.
    """
    num_tokens = message.num_tokens
    match message.WhichOneof("result"):
        case "classification":
            one = message.classification
            return Classification(
                label=one.label, score=one.score, scores=_scores(one.scores), num_tokens=num_tokens
            )
        case "multi_label":
            many = message.multi_label
            return MultiLabel(
                labels=tuple(many.labels), scores=_scores(many.scores), num_tokens=num_tokens
            )
        case "regression":
            return Regression(values=tuple(message.regression.values), num_tokens=num_tokens)
        case "token_tags":
            spans = tuple(
                Span(s.label, s.start, s.end, s.text, s.score) for s in message.token_tags.spans
            )
            return TokenTags(spans=spans, num_tokens=num_tokens)
        case "embedding":
            return Embedding(values=tuple(message.embedding.values), num_tokens=num_tokens)
    raise Internal("the answer holds a result this client does not know: install a newer hmi")


@dataclass(frozen=True, slots=True)
class Predictions:
    """One prediction an input, in the order of the inputs, and what produced them."""

    provenance: Provenance
    predictions: tuple[Prediction, ...]

    @classmethod
    def from_pb(cls, message: pb.PredictResponse) -> Predictions:
        return cls(
            Provenance.from_pb(message.provenance),
            tuple(prediction_from_pb(one) for one in message.predictions),
        )

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def __getitem__(self, index: int) -> Prediction:
        return self.predictions[index]


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a stream."""

    model: str
    text: str
    pair: str | None = None
    """The second text of a pair."""
    version: int = 0
    """0 lets the model's traffic split choose."""
    priority: int = 0
    """Within the tenant, higher goes first."""

    def to_pb(self, item_id: int) -> pb.StreamPredictRequest:
        return build(
            pb.StreamPredictRequest,
            item_id=item_id,
            model=self.model,
            input=text_input(self.text, self.pair),
            version=self.version,
            priority=self.priority,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A stream's answer to one item: a prediction, or the error that stands in for it."""

    index: int
    """The item's position in the stream, from 0."""
    item: Item
    prediction: Prediction | None
    provenance: Provenance | None
    error: HmiError | None

    def unwrap(self) -> Prediction:
        """The prediction.

        Raises:
            HmiError: The item's own error.
        """
        if self.error is not None:
            raise self.error
        if self.prediction is None:
            raise Internal("the answer holds neither a prediction nor an error")
        return self.prediction


def text_input(text: str, pair: str | None) -> pb.TextInput:
    """One input as the wire has it."""
    if pair is None:
        return build(pb.TextInput, text=text)
    return build(pb.TextInput, text=text, text_pair=pair)
