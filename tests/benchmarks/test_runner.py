"""What `make bench` runs on a fresh checkout."""

import re
from pathlib import Path

from benchmarks.__main__ import names

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def test_a_benchmark_of_fetched_texts_runs_by_its_own_target_only() -> None:
    text = MAKEFILE.read_text(encoding="utf-8")
    of_texts = set(re.findall(r"^bench-(\w+): (?:bench-data|\$\(BENCH_TEXTS\)) ##", text, re.M))
    of_texts -= {"data"}  # the fetching itself
    assert {"accuracy", "trees", "drift"} <= of_texts
    assert set(names()) - set(names(with_texts=False)) == of_texts
    assert {"adapters", "fairness", "serving"} <= set(names(with_texts=False))
