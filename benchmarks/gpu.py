"""What serving many adapters in one batch costs on a CUDA device, at BERT-base shapes.

Random weights, 64 distinct LoRA models (r = 8, query and value), a row of 48 tokens each, bfloat16,
device events, under eight minutes. Needs this checkout and the machine's torch and numpy; measures
other systems and repeats the encoder's parity tests where those and transformers are there. Without
a CUDA device it says so and leaves no figure.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import bare

bare.allow()

from benchmarks import gpu_rivals, report, workload  # noqa: E402 (what they import may be missing here)
from benchmarks.report import Goal, Report  # noqa: E402
from services.common.base_config import Activation, Architecture, BaseConfig  # noqa: E402
from services.executor.models.bypass import NoBypass  # noqa: E402
from services.executor.models.encoder import Encoder  # noqa: E402
from services.executor.models.segments import Segments  # noqa: E402
from services.executor.models.weights import (  # noqa: E402
    Embeddings,
    EncoderWeights,
    Layer,
    Linear,
    Norm,
)

NUM_MODELS, ROW_TOKENS = 64, 48
REPEATS = 31
BUDGET_S = 5 * 60
"""Leaves three minutes for what has begun by then."""
TOLERANCE = 1e-4
PARITY_TOLERANCE = 1e-5

BERT_BASE = BaseConfig(
    architecture=Architecture.BERT,
    hidden_size=768,
    intermediate_size=3072,
    num_layers=12,
    num_heads=12,
    vocab_size=30522,
    num_positions=512,
    type_vocab_size=2,
    pad_token_id=0,
    activation=Activation.GELU,
    norm_eps=1e-12,
)


def random_encoder(config: BaseConfig, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Weights as BERT is initialised (normal, 0.02), the same for every device and dtype."""
    chance = torch.Generator().manual_seed(0)
    hidden = config.hidden_size

    def matrix(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=chance) * 0.02).to(device, dtype)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(matrix(outputs, inputs), matrix(outputs))

    def norm() -> Norm:
        return Norm(1 + matrix(hidden), matrix(hidden), config.norm_eps)

    layers = tuple(
        Layer(
            qkv=linear(3 * hidden, hidden),
            attention_output=linear(hidden, hidden),
            attention_norm=norm(),
            ffn_input=linear(config.intermediate_size, hidden),
            ffn_output=linear(hidden, config.intermediate_size),
            ffn_norm=norm(),
        )
        for _ in range(config.num_layers)
    )
    embeddings = Embeddings(
        words=matrix(config.vocab_size, hidden),
        positions=matrix(config.num_positions, hidden),
        types=matrix(config.type_vocab_size, hidden),
        norm=norm(),
    )
    return Encoder(config, EncoderWeights(embeddings, layers, linear(hidden, hidden)))


def overhead(result: Report, ours: workload.Ours, until: float) -> None:
    """Adapters and heads against the bare base; the base twice, for the noise floor."""
    device = ours.encoder.device
    samples = report.alternate(
        {
            "models": workload.stopwatch(ours.logits, device),
            "base": workload.stopwatch(ours.base, device),
            "base again": workload.stopwatch(ours.base, device),
        },
        repeats=REPEATS,
        warmup=10,
        until=until,
    )
    models, base = samples["models"], samples["base"]
    rows_per_s = [len(ours.lengths) / seconds for seconds in models]
    result.add("batch with no adapter", report.median([1e3 * s for s in base]), "ms")
    result.add(
        f"batch with {len(ours.lengths)} models", report.median([1e3 * s for s in models]), "ms"
    )
    result.add("throughput", report.median(rows_per_s), "rows/s")
    result.add("models / no adapter", report.ratio(models, base), "", Goal("<=", 1.15))
    result.add("share of the no-adapter bound", report.ratio(base, models), "")
    result.add("A/A: base / base", report.ratio(samples["base again"], base), "")


def one_at_a_time(
    result: Report,
    ours: workload.Ours,
    adapters: list[workload.Lora],
    token_ids: Tensor,
    until: float,
) -> None:
    """A merged copy a tenant, all resident, asked one after the other.

    Stands for merged copies under onnxruntime, whose CUDA build such a machine seldom has.
    """
    device = ours.encoder.device
    copies = [workload.merged(ours.encoder, lora) for lora in adapters]
    rows = token_ids.to(device)
    layers = range(ours.encoder.config.num_layers)

    def batch() -> None:
        for copy, ids in zip(copies, rows, strict=True):
            segments = Segments([len(ids)], device)
            hidden = copy.embed(ids, None, segments)
            copy.run(hidden, segments, layers=layers, bypass=NoBypass())

    theirs = workload.stopwatch(batch, device)
    name = "merged copies, one at a time / ours"
    gpu_rivals.compare(result, name, theirs, ours, repeats=REPEATS // 2, until=until)
    result.note("merged copies are PyTorch's, all resident; not measured: under onnxruntime")


def parity(result: Report, device: torch.device) -> None:
    """The encoder against transformers on the CPU, ragged batches, every architecture.

    Raises:
        RuntimeError: A hidden state is off by more than 1e-5.
    """
    if not all(importlib.util.find_spec(name) for name in ("transformers", "safetensors")):
        result.note("not repeated: parity tests; transformers or safetensors is not installed here")
        return
    from services.executor.models.encoder import load_base
    from tests.executor import parity as oracle

    rows = oracle.random_rows([7, 1, 33, 12, 64])
    worst = 0.0
    for architecture in oracle.ARCHITECTURES:
        with tempfile.TemporaryDirectory() as scratch:
            model = oracle.write_checkpoint(Path(scratch), architecture)
            encoder = load_base(Path(scratch), dtype=torch.float32, device=device)
        theirs = torch.cat(oracle.their_hidden(model, rows))
        ours = torch.cat(oracle.our_hidden(encoder, rows))
        worst = max(worst, workload.check(architecture, ours, theirs, PARITY_TOLERANCE))
    result.add(
        "encoder - transformers, largest difference in float32",
        report.Estimate(worst, worst, worst),
        "",
        Goal("<=", PARITY_TOLERANCE),
    )


@torch.inference_mode()
def measure(
    result: Report,
    config: BaseConfig,
    num_models: int,
    device: torch.device,
    until: float = math.inf,
) -> None:
    """All figures for a batch of `num_models` rows on a device.

    Args:
        until: `time.monotonic()` seconds after which repeats are few and no other system begins.
    """
    parity(result, device)
    exact = random_encoder(config, torch.float32, device)
    adapters = [workload.Lora.random(config, seed) for seed in range(num_models)]
    chance = torch.Generator().manual_seed(0)
    token_ids = torch.randint(1, config.vocab_size, (num_models, ROW_TOKENS), generator=chance)
    expected = workload.oracle(exact, adapters, token_ids)
    outputs = workload.Ours(exact, adapters, token_ids).hidden().view_as(expected)
    workload.check("ours", outputs, expected, TOLERANCE)
    rounded = random_encoder(config, torch.bfloat16, device)
    ours = workload.Ours(rounded, adapters, token_ids)
    overhead(result, ours, until)
    one_at_a_time(result, ours, adapters, token_ids, until)
    batch = gpu_rivals.Batch(exact, adapters, token_ids, expected)
    gpu_rivals.measure(result, batch, ours, repeats=REPEATS // 2, until=until)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, so nothing was measured")
        return 0
    with Report("gpu") as result:
        until = time.monotonic() + BUDGET_S
        measure(result, BERT_BASE, NUM_MODELS, torch.device("cuda"), until)
    return 0


if __name__ == "__main__":
    sys.exit(main())
