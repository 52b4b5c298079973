"""The GPU benchmark where there is no GPU, and where there is little else."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, report
from benchmarks.report import Report

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_leaves_no_figure(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py"],
        env={"PYTHONPATH": str(ROOT), "HMI_BENCH_OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no CUDA device" in done.stdout
    assert not list(tmp_path.iterdir())


def test_its_code_runs_on_the_cpu_with_outputs_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny layers in place of BERT-base: every line but the device events."""
    tiny = dataclasses.replace(
        gpu.BERT_BASE,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        vocab_size=50,
        num_positions=64,
    )
    monkeypatch.setattr(gpu, "REPEATS", 14)
    result = Report("gpu")
    gpu.measure(result, tiny, 3, torch.device("cpu"))
    names = {figure.name for figure in result.figures}
    assert {
        "models / no adapter",
        "merged copies, one at a time / ours",
        "PEFT mixed batch / ours",
        "encoder - transformers, largest difference in float32",
    } <= names
    assert not [note for note in result.notes if "PEFT" in note or "parity" in note]


def test_where_only_torch_and_numpy_are_installed_it_measures_and_says_what_is_missing() -> None:
    code = """
import dataclasses, sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
there, todo = set(), ["torch", "numpy"]
while todo:
    one = todo.pop().lower().replace("_", "-")
    if one in there:
        continue
    there.add(one)
    try:
        needed = [Requirement(line) for line in requires(one) or []]
    except Exception:
        continue
    todo += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
hidden = {
    name
    for name, owners in packages_distributions().items()
    if not there & {owner.lower().replace("_", "-") for owner in owners}
} - {"hmi", "services", "benchmarks", "tests"}
assert {"grpc", "google", "safetensors", "regex", "prometheus_client", "peft"} <= hidden
class Without(MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)
for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
    del sys.modules[name]
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
from benchmarks import gpu
from benchmarks.report import Report
assert type(sys.modules["grpc"]).__name__ == "_HollowModule"
tiny = dataclasses.replace(
    gpu.BERT_BASE, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, vocab_size=50,
    num_positions=64,
)
gpu.REPEATS = 14
result = Report("gpu")
gpu.measure(result, tiny, 3, torch.device("cpu"))
assert not {name.partition(".")[0] for name in sys.modules} & {"transformers", "peft", "numba"}
print(*(figure.name for figure in result.figures), *result.notes, sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert {"models / no adapter", "merged copies, one at a time / ours"} <= set(said)
    for missing in ("parity", "PEFT mixed batch", "AdapterHub BatchSplit", "polylora"):
        assert any(line.startswith("not ") and missing in line for line in said), missing


def test_once_its_time_is_up_repeats_are_few_and_no_other_system_begins() -> None:
    counts = report.alternate({"a": lambda: 1.0}, repeats=1000, until=0.0)
    assert len(counts["a"]) == report.MIN_REPEATS
