"""The shipped examples are what their README says, and the questions are not in them."""

from __future__ import annotations

import pytest

from examples.demo import HERE, PLANS, read_questions
from services.executor.train.data import read_examples
from services.executor.train.options import Task


@pytest.mark.parametrize(
    ("name", "task", "labels", "num_rows"),
    [
        (
            "topics.csv",
            Task.SEQUENCE_CLASSIFICATION,
            ("business", "food", "health", "sport", "technology"),
            200,
        ),
        ("sentiment.csv", Task.SEQUENCE_CLASSIFICATION, ("negative", "positive"), 120),
        (
            "entities.jsonl",
            Task.TOKEN_CLASSIFICATION,
            ("location", "organisation", "person"),
            138,
        ),
    ],
)
def test_a_file_holds_what_the_readme_says(
    name: str, task: Task, labels: tuple[str, ...], num_rows: int
) -> None:
    examples = read_examples(HERE / name)
    assert (examples.task, examples.labels, len(examples.items)) == (task, labels, num_rows)
    assert len({item.text for item in examples.items}) == num_rows


def test_questions_ask_known_models_about_new_texts() -> None:
    questions = read_questions()
    assert {question.model for question in questions} == {plan.model for plan in PLANS}
    seen = {item.text.rstrip(".") for plan in PLANS for item in read_examples(plan.data).items}
    assert not seen & {question.text for question in questions}
