"""`hmi distill` as somebody at a terminal meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmi.cli.main import run
from tests.tiny import WORDS, write_base

NUM_LINES, LINE_WORDS = 60, 10
WRITTEN = ("local_encoder.safetensors", "report.json", "root_keys.safetensors")


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Two files of `NUM_LINES` lines together."""
    lines = [
        " ".join(WORDS[(row * 7 + place * (row + 1)) % len(WORDS)] for place in range(LINE_WORDS))
        for row in range(NUM_LINES)
    ]
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path, half in zip(paths, (lines[:40], lines[40:]), strict=True):
        path.write_text("\n".join(half))
    return [str(path) for path in paths]


def arguments(base_dir: Path, corpus: list[str], out: Path, *further: str) -> list[str]:
    options = ["--base-dir", str(base_dir), "--split", "1", "--out", str(out), "--tokens", "2000"]
    options += ["--batch-tokens", "256", "--warm-up-tokens", "500", "--root-entries", "40"]
    return ["distill", *options, "--corpus", *corpus, *further]


def test_the_report_as_json_counts_every_file_of_the_corpus(
    base_dir: Path, corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(arguments(base_dir, corpus, out, "--json", "--form", "sum")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["split"], report["form"]) == (1, "sum")
    assert report["corpus_tokens"] == NUM_LINES * LINE_WORDS
    assert report["schedule"]["num_tokens"] == 2000
    assert report["learnt_tokens"] >= 2000
    assert all((out / name).is_file() for name in WRITTEN)


def test_progress_and_a_result_are_told_and_a_run_that_is_over_learns_nothing_again(
    base_dir: Path, corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(arguments(base_dir, corpus, out)) == 0
    first = capsys.readouterr()
    assert first.out == ""
    *steps, result = first.err.splitlines()
    assert steps
    assert all(" of 2,000 tokens, loss " in line for line in steps)
    assert result.startswith(f"{out}: 2,")
    assert "pooled cosine to the base: " in result
    written = {name: (out / name).read_bytes() for name in WRITTEN}
    assert run(arguments(base_dir, corpus, out)) == 0
    again = capsys.readouterr().err.splitlines()
    assert again == [result]
    assert {name: (out / name).read_bytes() for name in WRITTEN} == written


def test_a_run_goes_on_where_a_shorter_one_ended(
    base_dir: Path, corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(arguments(base_dir, corpus, out, "--tokens", "1000", "--json")) == 0
    num_before = json.loads(capsys.readouterr().out)["learnt_tokens"]
    assert run(arguments(base_dir, corpus, out)) == 0
    first, *_ = capsys.readouterr().err.splitlines()
    assert not first.startswith("step 1:")
    assert f": {num_before:,} of 2,000 tokens, " in first
    assert json.loads((out / "report.json").read_text())["learnt_tokens"] >= 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "error: token counts and the learning rate must be positive"),
        (["--form", "mean"], "error: --form is neither centre nor sum"),
        (["--split", "2"], "error: --split: must be 1 to 1 for this base"),
        (["--device", "abacus"], "error: --device: 'abacus' is none of auto, cpu, cuda"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    base_dir: Path,
    corpus: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert run(arguments(base_dir, corpus, out, *options)) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"), [(b"caf\xe9 au lait\n", "bad.txt"), (b"\n\n", "there is no text")]
)
def test_a_corpus_that_cannot_be_read_is_one_line(
    base_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(content)
    assert run(arguments(base_dir, [str(bad)], tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --corpus: ")
    assert message in error
    assert error.count("\n") == 1
    assert not any((tmp_path / "out" / name).exists() for name in WRITTEN)
