"""The GPU benchmark where there is no GPU, and where there is little else."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
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
    assert {"models / no adapter", "PEFT mixed batch / ours"} <= names
    assert not result.notes


def test_the_compute_path_imports_where_only_torch_and_numpy_are_installed() -> None:
    code = """
import sys
from importlib.abc import MetaPathFinder
HIDDEN = {"grpc", "google", "safetensors", "transformers", "peft"}
class Without(MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
from benchmarks import bare
bare.allow()
from benchmarks import gpu
from services.common.errors import InvalidArgument
assert type(sys.modules["grpc"]).__name__ == "_HollowModule"
print(InvalidArgument("field", "wrong").message)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "field: wrong", done.stderr
