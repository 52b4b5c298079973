"""Version blobs for the tests' base: LoRA with a classifier, without torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from safetensors.numpy import save


def lora_blob(
    seed: int = 0,
    *,
    hidden: int = 32,
    labels: int = 3,
    layers: tuple[int, ...] = (0, 1),
    **changes: Any,
) -> bytes:
    """A packed PEFT LoRA on query and value of these layers. `changes` go into adapter_config."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        for target in ("query", "value"):
            name = f"base_model.model.bert.encoder.layer.{layer}.attention.self.{target}"
            tensors[f"{name}.lora_A.weight"] = rng.normal(size=(4, hidden)).astype("f4")
            tensors[f"{name}.lora_B.weight"] = rng.normal(size=(hidden, 4)).astype("f4")
    tensors["base_model.model.classifier.weight"] = rng.normal(size=(labels, hidden)).astype("f4")
    tensors["base_model.model.classifier.bias"] = rng.normal(size=labels).astype("f4")
    if changes.pop("with_nan", False):
        tensors["base_model.model.classifier.bias"][0] = np.nan
    config = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8,
        "target_modules": ["query", "value"], "layers_to_transform": list(layers),
        "modules_to_save": ["classifier"], "bias": "none",
        **changes,
    }  # fmt: skip
    meta = {
        "format": "peft", "adapter_config": config, "head_config": None,
        "task": "sequence_classification", "labels": ["x", "y", "z"], "pooling": "mean",
        "normalize": False,
    }  # fmt: skip
    return save(tensors, {"hmi": json.dumps(meta, sort_keys=True)})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
