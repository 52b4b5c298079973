"""Numbers to predictions, and token tags to spans."""

from __future__ import annotations

import numpy as np
import pytest

from hmi.admin.v1 import resources_pb2
from hmi.executor.v1 import executor_pb2
from services.common.errors import FailedPrecondition, Internal
from services.gateway.answers import prediction
from services.gateway.answers.spans import spans
from services.gateway.domain import Encoded, Version


def version(task: resources_pb2.Task.ValueType, *labels: str) -> Version:
    return Version.from_pb(resources_pb2.Version(task=task, labels=labels))


def tensor(values: object) -> executor_pb2.Tensor:
    array = np.asarray(values, dtype="<f4")
    return executor_pb2.Tensor(shape=array.shape, data=array.tobytes())


ENCODED = Encoded([1, 2, 3], 0)


def test_classification_is_a_softmax_even_of_large_logits() -> None:
    chosen = version(resources_pb2.TASK_SEQUENCE_CLASSIFICATION, "x", "y")
    answer = prediction(chosen, tensor([1000.0, 1001.0]), ENCODED, "")
    assert answer.classification.label == "y"
    assert answer.classification.score == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert answer.num_tokens == 3


def test_multi_label_takes_each_by_its_sigmoid() -> None:
    chosen = version(resources_pb2.TASK_MULTI_LABEL_CLASSIFICATION, "x", "y", "z")
    answer = prediction(chosen, tensor([-800.0, 0.0, 2.0]), ENCODED, "")
    assert list(answer.multi_label.labels) == ["y", "z"]
    scores = [entry.score for entry in answer.multi_label.scores]
    assert scores == pytest.approx([0.0, 0.5, 1 / (1 + np.exp(-2))], abs=1e-6)


def test_regression_and_embedding_are_the_values() -> None:
    regression = version(resources_pb2.TASK_REGRESSION)
    assert list(prediction(regression, tensor([0.5]), ENCODED, "").regression.values) == [0.5]
    embedding = version(resources_pb2.TASK_EMBEDDING)
    answer = prediction(embedding, tensor([0.25, -1.0]), ENCODED, "")
    assert list(answer.embedding.values) == [0.25, -1.0]


def test_a_tensor_of_the_wrong_size_is_our_fault() -> None:
    chosen = version(resources_pb2.TASK_SEQUENCE_CLASSIFICATION, "x", "y")
    with pytest.raises(Internal):
        prediction(chosen, tensor([1.0, 2.0, 3.0]), ENCODED, "")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "task", [resources_pb2.TASK_SEQUENCE_CLASSIFICATION, resources_pb2.TASK_EMBEDDING]
)
def test_numbers_that_overflowed_are_no_answer(
    task: resources_pb2.Task.ValueType, number: float
) -> None:
    """Weights may be finite and their products not: a label would be made up."""
    with pytest.raises(FailedPrecondition) as caught:
        prediction(version(task, "x", "y"), tensor([0.5, number]), ENCODED, "")
    assert caught.value.reason == "NOT_FINITE"


def tagged(tags: list[str], labels: list[str]) -> np.ndarray:
    """Probabilities `[tokens, labels]` of 0.8 for each token's tag."""
    rest = 0.2 / (len(labels) - 1)
    return np.array([[0.8 if label == tag else rest for label in labels] for tag in tags])


TEXT = "Ünal met Anna-Lena Smith in Paris"
# [CLS] Ü ##nal met Anna - Lena Smith in Paris [SEP]
WORDS = Encoded(
    list(range(11)),
    0,
    [None, 0, 0, 1, 2, 3, 4, 5, 6, 7, None],
    [(0, 0), (0, 1), (1, 4), (5, 8), (9, 13), (13, 14), (14, 18), (19, 24), (25, 27), (28, 33),
     (0, 0)],
)  # fmt: skip


def test_iob_tags_join_words_to_spans_in_code_points() -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    tags = ["O", "B-PER", "O", "O", "B-PER", "I-PER", "I-PER", "I-PER", "O", "B-LOC", "O"]
    found = spans(tagged(tags, labels), labels, WORDS, TEXT)
    assert [(s.label, s.text, s.start, s.end) for s in found] == [
        ("PER", "Ünal", 0, 4),
        ("PER", "Anna-Lena Smith", 9, 24),
        ("LOC", "Paris", 28, 33),
    ]
    assert found[1].score == pytest.approx(0.8)


def test_bioes_tags_close_spans() -> None:
    labels = ["O", "B-X", "I-X", "E-X", "S-X"]
    tags = ["O", "S-X", "O", "S-X", "B-X", "I-X", "E-X", "I-X", "O", "O", "O"]
    found = [s.text for s in spans(tagged(tags, labels), labels, WORDS, TEXT)]
    assert found == ["Ünal", "met", "Anna-Lena", "Smith"]


def test_another_label_begins_another_span() -> None:
    labels = ["O", "B-PER", "I-PER", "I-LOC"]
    tags = ["O", "O", "O", "O", "I-PER", "I-PER", "I-LOC", "O", "O", "O", "O"]
    found = spans(tagged(tags, labels), labels, WORDS, TEXT)
    assert [(s.label, s.text) for s in found] == [("PER", "Anna-"), ("LOC", "Lena")]


def test_plain_labels_make_a_span_a_word() -> None:
    labels = ["O", "NOUN", "VERB"]
    tags = ["O", "NOUN", "O", "VERB", "NOUN", "O", "NOUN", "NOUN", "O", "NOUN", "O"]
    found = [(s.label, s.text) for s in spans(tagged(tags, labels), labels, WORDS, TEXT)]
    assert found == [
        ("NOUN", "Ünal"), ("VERB", "met"), ("NOUN", "Anna"), ("NOUN", "Lena"),
        ("NOUN", "Smith"), ("NOUN", "Paris"),
    ]  # fmt: skip
