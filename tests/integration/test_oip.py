"""Triton's own client gets the same answers, and the same refusals, as hmi's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmi.client import Classification, Predictions
from hmi.stack import LocalStack
from tests.integration.conftest import Account, Trained

TEXTS = ["Rates rise again.", "Ähnlich — 数字 🙂", "The keeper saved a late penalty."]
PAIRS = [["A man eats.", "Somebody has a meal."], ["It rains.", "The sun shines."]]

INVALID = (
    "invalid utf-8",
    "wrong shape",
    "shape and contents differ",
    "wrong datatype",
    "both kinds of contents",
    "truncated raw",
    "wrong name",
    "no input",
    "empty text",
    "version is no number",
)


@pytest.fixture
def triton(stack: LocalStack, account: Account, lora: Callable[..., Trained]) -> dict[str, Any]:
    """What tritonclient got for texts and pairs of one model."""
    account.client.push_version("news", lora(1).directory)
    asked = {
        "address": stack.address,
        "key": account.secret,
        "model": "news",
        "texts": TEXTS,
        "pairs": PAIRS,
    }
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("oip_process.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def _check_same(theirs: dict[str, Any], ours: Predictions) -> None:
    for index, prediction in enumerate(ours):
        assert isinstance(prediction, Classification)
        scores = [one.score for one in prediction.scores]
        assert theirs["scores"][index] == pytest.approx(scores, abs=1e-6)
        assert theirs["label"][index] == prediction.label
    assert theirs["version"] == "1"


def test_tritonclient_agrees_with_hmis_client(triton: dict[str, Any], account: Account) -> None:
    _check_same(triton["single"], account.client.predict("news", TEXTS))
    firsts, seconds = zip(*PAIRS, strict=True)
    _check_same(triton["pairs"], account.client.predict("news", firsts, pairs=seconds))
    assert triton["single"]["id"] == "r1"

    about = triton["about"]
    assert about["live"]
    assert about["ready"]
    assert about["model_ready"]
    assert not about["none_ready"]
    assert about["server"] == "hmi"
    assert ["text", "BYTES"] in about["inputs"]
    assert ["scores", "FP32"] in about["outputs"]
    assert about["index"] == ["news"]

    statuses = triton["statuses"]
    assert {name: statuses[name] for name in INVALID} == dict.fromkeys(INVALID, "INVALID_ARGUMENT")
    assert statuses["unknown model"] == "NOT_FOUND"
    assert statuses["no key"] == "UNAUTHENTICATED"
    assert statuses["good"] == "OK"
