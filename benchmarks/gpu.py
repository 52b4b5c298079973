"""What serving many adapters in one batch costs on a CUDA device, at BERT-base shapes.

Random weights, 64 distinct LoRA models (r = 8, query and value), a row of 48 tokens each, bfloat16,
device events. Needs this checkout and the machine's torch; measures PEFT's mixed batch and repeats
the encoder's parity tests if transformers and peft are there. Without a CUDA device it says so and
leaves no figure.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import bare

bare.allow()

from benchmarks import report, workload  # noqa: E402 (what they import may be missing here)
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


def bert_of(encoder: Encoder) -> torch.nn.Module:
    """transformers' BertModel with the encoder's weights, float32 on its device."""
    from transformers import BertConfig, BertModel

    weights = encoder.weights
    state = {
        "embeddings.word_embeddings.weight": weights.embeddings.words,
        "embeddings.position_embeddings.weight": weights.embeddings.positions,
        "embeddings.token_type_embeddings.weight": weights.embeddings.types,
    }

    def put(name: str, part: Linear | Norm) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = part.weight, part.bias

    put("embeddings.LayerNorm", weights.embeddings.norm)
    for index, layer in enumerate(weights.layers):
        at = f"encoder.layer.{index}."
        heads = zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), heads, strict=True):
            put(f"{at}attention.self.{name}", Linear(weight, bias))
        put(f"{at}attention.output.dense", layer.attention_output)
        put(f"{at}attention.output.LayerNorm", layer.attention_norm)
        put(f"{at}intermediate.dense", layer.ffn_input)
        put(f"{at}output.dense", layer.ffn_output)
        put(f"{at}output.LayerNorm", layer.ffn_norm)
    config = encoder.config
    model = BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.num_positions,
        ),
        add_pooling_layer=False,
    )
    model.load_state_dict(state)
    return model.eval().to(encoder.device)


def overhead(result: Report, ours: workload.Ours) -> None:
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
    result: Report, ours: workload.Ours, adapters: list[workload.Lora], token_ids: Tensor
) -> None:
    """A merged copy a tenant, all resident, asked one after the other."""
    device = ours.encoder.device
    copies = [workload.merged(ours.encoder, lora) for lora in adapters]
    rows = token_ids.to(device)
    layers = range(ours.encoder.config.num_layers)

    def batch() -> None:
        for copy, ids in zip(copies, rows, strict=True):
            segments = Segments([len(ids)], device)
            hidden = copy.embed(ids, None, segments)
            copy.run(hidden, segments, layers=layers, bypass=NoBypass())

    compare(result, "merged copies, one at a time / ours", workload.stopwatch(batch, device), ours)


def peft_mixed(
    result: Report,
    exact: Encoder,
    ours: workload.Ours,
    adapters: list[workload.Lora],
    token_ids: Tensor,
    expected: Tensor,
) -> None:
    """PEFT's mixed batch (`adapter_names`), hidden states only on both sides."""
    if not all(importlib.util.find_spec(name) for name in ("transformers", "peft")):
        result.note("not measured: PEFT mixed batch; transformers or peft is not installed here")
        return
    from peft import PeftModel

    names = [f"m{row}" for row in range(len(adapters))]
    with tempfile.TemporaryDirectory() as scratch:
        for name, lora in zip(names, adapters, strict=True):
            lora.write(Path(scratch) / name)
        first, *others = names
        model = PeftModel.from_pretrained(bert_of(exact), Path(scratch) / first, adapter_name=first)
        for name in others:
            model.load_adapter(Path(scratch) / name, adapter_name=name)
    model.eval()
    ids = token_ids.to(exact.device)

    def batch() -> Tensor:
        hidden: Tensor = model(input_ids=ids, adapter_names=names).last_hidden_state
        return hidden

    workload.check("PEFT mixed batch", batch(), expected, TOLERANCE)
    model.to(torch.bfloat16)
    theirs = workload.stopwatch(batch, exact.device)
    compare(result, "PEFT mixed batch / ours", theirs, ours, Goal(">=", 2.0))


def compare(
    result: Report,
    name: str,
    theirs: Callable[[], float],
    ours: workload.Ours,
    goal: Goal | None = None,
) -> None:
    """Another way's batch over ours, alternating."""
    mine = workload.stopwatch(ours.hidden, ours.encoder.device)
    samples = report.alternate({"theirs": theirs, "ours": mine}, repeats=REPEATS // 2, warmup=3)
    result.add(name, report.ratio(samples["theirs"], samples["ours"]), "", goal)


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
def measure(result: Report, config: BaseConfig, num_models: int, device: torch.device) -> None:
    """All figures for a batch of `num_models` rows on a device."""
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
    overhead(result, ours)
    one_at_a_time(result, ours, adapters, token_ids)
    peft_mixed(result, exact, ours, adapters, token_ids, expected)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, so nothing was measured")
        return 0
    with Report("gpu") as result:
        measure(result, BERT_BASE, NUM_MODELS, torch.device("cuda"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
