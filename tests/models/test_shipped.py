"""What ships with the package: its size, and that its data card tells what its run reported."""

import json
from pathlib import Path
from typing import Any

import pytest

import models.hminilm

DIRECTORY = Path(models.hminilm.__file__).parent
MAX_BYTES = 16_000_000
ROWS = {"trigrams": "trigram", "left bigrams": "bigram", "unigrams": "unigram"}


def test_the_files_that_split_minilm_take_at_most_16_mb() -> None:
    files = [path for path in DIRECTORY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {"local_encoder.safetensors", "root_keys.safetensors"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_the_card_tells_the_tokens_and_steps_of_the_report() -> None:
    report, card = _report(), _card()
    schedule = report["schedule"]
    learnt, steps = report["learnt_tokens"] / 1e6, report["steps"]
    assert f"{learnt:.1f} million tokens in {steps:,} steps of {schedule['batch_tokens']:,}" in card
    rate = f"{schedule['learning_rate']:.0e}".replace("e-0", "e-")
    assert f"seed {schedule['seed']}, AdamW at {rate}" in card
    assert f"--split {report['split']} --tokens {schedule['num_tokens']} " in card
    hours, minutes = divmod(round(report["seconds"] / 60), 60)
    assert f"{hours} h {minutes} min" in card
    assert f"{report['corpus_tokens']:,} tokens" in card


@pytest.mark.parametrize(("row", "view"), ROWS.items())
def test_the_card_tells_the_errors_and_cosines_of_the_report(row: str, view: str) -> None:
    fidelity = _report()["fidelity"][view]
    errors = ", ".join(f"{error:.3f}" for error in fidelity["errors"])
    assert f"| {row} | {errors} | {fidelity['cosine']:.3f} |" in _card()


def _report() -> dict[str, Any]:
    return json.loads((DIRECTORY / "report.json").read_text())  # type: ignore[no-any-return]


def _card() -> str:
    return (DIRECTORY / "CARD.md").read_text(encoding="utf-8")
