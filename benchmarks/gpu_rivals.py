"""Other systems' mixed batches on the device that the GPU benchmark measures on.

Takes those that this Python has; says in a note which are missing or broke, for it does not know
how to install anything.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks import report, workload
from benchmarks.report import Goal, Report
from services.executor.models.encoder import Encoder
from services.executor.models.weights import Linear, Norm

if TYPE_CHECKING:
    from benchmarks.rival_worker import Inputs

TOLERANCE = 1e-4
HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """Another system.

    Attributes:
        name: Its function in `rival_worker`.
        title: In the report.
        packages: What it imports beyond torch.
        goal: Of its time over ours.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    goal: Goal | None = None


SYSTEMS = (
    System("peft", "PEFT mixed batch", ("peft",), Goal(">=", 2.0)),
    System("adapterhub", "AdapterHub BatchSplit", ("adapters",)),
    System("polylora", "polylora", ("polylora",)),
)


@dataclass(frozen=True)
class Batch:
    """What every system computes.

    Attributes:
        exact: The base in float32, on the device.
        adapters: Of each row.
        token_ids: int64 `[rows, len]`.
        expected: float32 `[rows, len, hidden]`.
    """

    exact: Encoder
    adapters: Sequence[workload.Lora]
    token_ids: Tensor
    expected: Tensor


def measure(
    result: Report, batch: Batch, ours: workload.Ours, *, repeats: int, until: float
) -> None:
    """Every system's batch over ours, their outputs checked in float32, timed in bfloat16.

    Args:
        until: `time.monotonic()` seconds after which no system begins.
    """
    for system in SYSTEMS:
        missing = [
            name
            for name in ("transformers", "safetensors", *system.packages)
            if not is_installed(name)
        ]
        if missing:
            result.note(f"not measured: {system.title}; not installed: {', '.join(missing)}")
        elif time.monotonic() > until:
            result.note(f"not measured: {system.title}; the time was up")
        else:
            try:
                theirs = _prepared(system, batch)
                name = f"{system.title} / ours"
                compare(result, name, theirs, ours, system.goal, repeats=repeats, until=until)
            except Exception as error:  # others' code on versions we do not choose: say so, go on
                result.note(f"not measured: {system.title}; {type(error).__name__}: {error}")


def is_installed(name: str) -> bool:
    """Whether a package is there: one of this folder's modules, run as a script, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and Path(spec.origin or "/").parent != HERE


def _prepared(system: System, batch: Batch) -> Callable[[], float]:
    """What runs a system's batch once and returns its seconds.

    Raises:
        RuntimeError: Its outputs are off.
    """
    from benchmarks import rival_worker

    device = batch.exact.device
    with tempfile.TemporaryDirectory() as scratch:
        inputs = _inputs(batch, Path(scratch))
        model, run = rival_worker.SYSTEMS[system.name](inputs)
    if model is None:
        raise RuntimeError("it has no module to move to the device")
    model.to(device)
    workload.check(system.title, run(), batch.expected, TOLERANCE)
    model.to(torch.bfloat16)
    return workload.stopwatch(run, device)


def _inputs(batch: Batch, directory: Path) -> Inputs:
    """What `rival_worker` builds a system from, with the encoder's own weights."""
    from benchmarks.rival_worker import Inputs

    class DeviceInputs(Inputs):
        def __init__(self) -> None:
            self.directory = directory
            self.base = directory / "base"
            self.token_ids = batch.token_ids.to(batch.exact.device)
            self.names = [f"m{row}" for row in range(len(batch.adapters))]
            self.adapters = [directory / str(row) for row in range(len(batch.adapters))]

        def model(self) -> torch.nn.Module:
            return bert_of(batch.exact)

    inputs = DeviceInputs()
    for lora, path in zip(batch.adapters, inputs.adapters, strict=True):
        lora.write(path)
    return inputs


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


def compare(
    result: Report,
    name: str,
    theirs: Callable[[], float],
    ours: workload.Ours,
    goal: Goal | None = None,
    *,
    repeats: int,
    until: float = math.inf,
) -> None:
    """Another way's batch over ours, alternating."""
    mine = workload.stopwatch(ours.hidden, ours.encoder.device)
    subjects = {"theirs": theirs, "ours": mine}
    samples = report.alternate(subjects, repeats=repeats, warmup=3, until=until)
    result.add(name, report.ratio(samples["theirs"], samples["ours"]), "", goal)
