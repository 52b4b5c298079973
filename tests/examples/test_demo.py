"""`make demo` as a newcomer runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo import PLANS, read_questions

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_it_trains_and_asks_every_tenants_model_and_says_how_many_are_right() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for head in ("text", "tenant/model version", "answer", "p", "latency"):
        assert re.search(rf"^ *(.* )?{re.escape(head)}( .*)?$", done.stdout, re.MULTILINE), head
    rows = re.findall(r" (\w+/\w+) v1 .* \d+ ms *$", done.stdout, re.MULTILINE)
    expected = [question.model for question in read_questions()]
    assert [row.partition("/")[2] for row in rows] == expected
    assert len(rows) == 15
    assert set(rows) == {f"{plan.tenant}/{plan.model}" for plan in PLANS}
    assert re.search(r"\d+ as a person would\s+answer", done.stdout)
