"""The batch that the adapter benchmarks share: random distinct LoRA models, ours to run, an oracle.

Knows the executor's parts and transformers' arithmetic; does not know the other systems. Every
adapter differs from every other (B is not zero), and weights are made up here on purpose: speed
does not depend on them, and the oracle knows them.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.adapter_format import admit
from services.common.base_config import BaseConfig
from services.executor.adapters.arena import Arena
from services.executor.adapters.batch import BatchBypass
from services.executor.adapters.packing import pack
from services.executor.adapters.slots import Slot
from services.executor.heads.run import BatchHeads
from services.executor.models.bypass import Bypass, NoBypass
from services.executor.models.encoder import Encoder
from services.executor.models.segments import Segments
from services.executor.models.weights import EncoderWeights, Layer, Linear

Array = NDArray[np.float32]
RANK = 8
ALPHA = 16
TARGETS = ("query", "value")
PARTS = {"query": 0, "key": 1, "value": 2}
LABELS = ["no", "perhaps", "yes"]


@dataclass(frozen=True)
class Lora:
    """A random adapter with a classifier: tensors by their name inside the base."""

    tensors: dict[str, Array]
    classifier: Array

    @staticmethod
    def random(config: BaseConfig, seed: int) -> Lora:
        """Rank 8 on every query and value, strong enough that no two answers agree."""
        chance = np.random.default_rng(seed)
        hidden = config.hidden_size
        tensors = {}
        for layer in range(config.num_layers):
            for target in TARGETS:
                at = f"encoder.layer.{layer}.attention.self.{target}"
                a = chance.normal(0, hidden**-0.5, (RANK, hidden))
                b = chance.normal(0, 0.05, (hidden, RANK))
                tensors[f"{at}.lora_A.weight"] = a.astype(np.float32)
                tensors[f"{at}.lora_B.weight"] = b.astype(np.float32)
        classifier = chance.normal(0, 0.05, (len(LABELS), hidden)).astype(np.float32)
        return Lora(tensors, classifier)

    @property
    def config(self) -> dict[str, object]:
        """PEFT's adapter_config.json."""
        return {
            "peft_type": "LORA",
            "task_type": "FEATURE_EXTRACTION",
            "r": RANK,
            "lora_alpha": ALPHA,
            "target_modules": list(TARGETS),
            "base_model_name_or_path": "base",
            "inference_mode": True,
            "bias": "none",
        }

    def change(self, layer: int, target: str) -> Array:
        """What it adds to a weight: `[hidden, hidden]`."""
        at = f"encoder.layer.{layer}.attention.self.{target}"
        b, a = self.tensors[f"{at}.lora_B.weight"], self.tensors[f"{at}.lora_A.weight"]
        product: Array = (b @ a) * np.float32(ALPHA / RANK)
        return product

    def blob(self) -> bytes:
        """The version as the executor admits it, a classifier on the base's pooler."""
        prefix = "base_model.model."
        tensors = {f"{prefix}bert.{name}": array for name, array in self.tensors.items()}
        tensors[f"{prefix}classifier.weight"] = self.classifier
        tensors[f"{prefix}classifier.bias"] = np.zeros(len(LABELS), np.float32)
        meta = {
            "format": "peft",
            "adapter_config": self.config
            | {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
            "head_config": None,
            "task": "sequence_classification",
            "labels": LABELS,
            "pooling": None,
            "normalize": False,
        }
        return safetensors_bytes(tensors, {"hmi": json.dumps(meta, sort_keys=True)})

    def write(self, directory: Path) -> None:
        """Save as a PEFT directory of the base without a head."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        tensors = {f"base_model.model.{name}": array for name, array in self.tensors.items()}
        blob = safetensors_bytes(tensors, {"format": "pt"})
        (directory / "adapter_model.safetensors").write_bytes(blob)


def safetensors_bytes(tensors: dict[str, Array], metadata: dict[str, str]) -> bytes:
    """A safetensors container; written here because a bare GPU machine may lack the package."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, array in sorted(tensors.items()):
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(array).tobytes() for _, array in sorted(tensors.items()))
    return struct.pack("<Q", len(text)) + text + body


@dataclass(frozen=True)
class _Key:
    """What a slot is called; one a row here."""

    digest: str
    tenant: str = "bench"


class Ours:
    """The executor's compute path on one batch: packed rows, each with its own model.

    Args:
        adapters: Of each row.
        token_ids: int64 `[rows, len]`.
        lengths: Cuts the same tokens into other rows, as many; None leaves them.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapters: Sequence[Lora],
        token_ids: Tensor,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.encoder = encoder
        self.token_ids = token_ids.reshape(-1).to(encoder.device)
        self.lengths = list(lengths or [token_ids.shape[1]] * token_ids.shape[0])
        packed = [
            pack(admit(lora.blob(), encoder.config), encoder.config, dtype=encoder.dtype)
            for lora in adapters
        ]
        num_rows = sum(each.num_rows for each in packed) + 1
        self._arena = Arena(
            encoder.config.hidden_size,
            size_bytes=num_rows * encoder.config.hidden_size * encoder.dtype.itemsize,
            dtype=encoder.dtype,
            device=encoder.device,
        )
        self._slots = []
        for index, each in enumerate(packed):
            numbers = self._arena.take(each.num_rows)
            if numbers is None:
                raise RuntimeError("the arena is smaller than its adapters")
            self._arena.write(numbers, each.rows)
            self._slots.append(Slot(_Key(str(index)), each, numbers))
        self._heads = BatchHeads(self._arena, encoder.pool)

    def _run(self, segments: Segments, bypass: Bypass) -> Tensor:
        hidden = self.encoder.embed(self.token_ids, None, segments)
        layers = range(self.encoder.config.num_layers)
        return self.encoder.run(hidden, segments, layers=layers, bypass=bypass)

    def base(self) -> Tensor:
        """No adapter at all, `[tokens, hidden]`: the bound."""
        return self._run(Segments(self.lengths, self.encoder.device), NoBypass())

    def hidden(self) -> Tensor:
        """Every row its own adapter, `[tokens, hidden]`. Includes making the batch's bypass."""
        segments = Segments(self.lengths, self.encoder.device)
        return self._run(
            segments, BatchBypass(self._arena, self.encoder.config, self._slots, segments)
        )

    def logits(self) -> list[Tensor]:
        """Adapters and heads: a row's `[labels]`."""
        segments = Segments(self.lengths, self.encoder.device)
        bypass = BatchBypass(self._arena, self.encoder.config, self._slots, segments)
        return self._heads.run(self._slots, self._run(segments, bypass), segments)


def merged(encoder: Encoder, lora: Lora) -> Encoder:
    """One tenant's own copy of the base with the adapter's product added to its weights."""
    layers = []
    hidden = encoder.config.hidden_size
    for index, layer in enumerate(encoder.weights.layers):
        weight = layer.qkv.weight.float().clone()
        for target in TARGETS:
            rows = slice(PARTS[target] * hidden, (PARTS[target] + 1) * hidden)
            weight[rows] += torch.from_numpy(lora.change(index, target)).to(weight.device)
        layers.append(
            Layer(
                qkv=Linear(weight.to(encoder.dtype), layer.qkv.bias),
                attention_output=layer.attention_output,
                attention_norm=layer.attention_norm,
                ffn_input=layer.ffn_input,
                ffn_output=layer.ffn_output,
                ffn_norm=layer.ffn_norm,
            )
        )
    weights = EncoderWeights(encoder.weights.embeddings, tuple(layers), encoder.weights.pooler)
    return Encoder(encoder.config, weights)


def oracle(encoder: Encoder, adapters: Sequence[Lora], token_ids: Tensor) -> Tensor:
    """`[rows, len, hidden]`: each row alone through its own merged copy, float32."""
    rows = []
    for lora, ids in zip(adapters, token_ids, strict=True):
        copy = merged(encoder, lora)
        segments = Segments([len(ids)], encoder.device)
        hidden = copy.embed(ids.to(encoder.device), None, segments)
        layers = range(encoder.config.num_layers)
        rows.append(copy.run(hidden, segments, layers=layers, bypass=NoBypass()))
    return torch.stack(rows)


def stopwatch(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """What runs `work` once and returns its seconds: device events on CUDA, else wall clock."""

    def on_cpu() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def on_cuda() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return on_cuda if device.type == "cuda" else on_cpu


def check(name: str, ours: Tensor, expected: Tensor, tolerance: float) -> float:
    """The largest absolute difference.

    Raises:
        RuntimeError: It is above the tolerance: figures of wrong outputs are worth nothing.
    """
    difference = (ours.float().cpu() - expected.float().cpu()).abs().max().item()
    if not difference <= tolerance:
        raise RuntimeError(f"{name} is {difference:.2g} off its oracle, more than {tolerance:g}")
    return difference
