"""Version blobs made without torch: a small BERT's LoRA, to be spoiled one way at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import safetensors.numpy

from services.common.base_config import BaseConfig

HIDDEN, INNER, LAYERS = 16, 32, 2
BASE = BaseConfig.from_hf(
    {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 20,
    }
)
LORA_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["query", "value"],
}
STEM = "base_model.model.bert.encoder.layer"
QUERY_A = f"{STEM}.1.attention.self.query.lora_A.weight"
CLASSIFIER = "base_model.model.classifier.weight"


def lora_tensors(dtype: type = np.float32) -> dict[str, Any]:
    """Query and value of every layer, and a classifier with three labels."""
    random = np.random.default_rng(0)
    tensors = {
        CLASSIFIER: random.normal(size=(3, HIDDEN)).astype(dtype),
        "base_model.model.classifier.bias": random.normal(size=3).astype(dtype),
    }
    for layer in range(LAYERS):
        for part in ("query", "value"):
            stem = f"{STEM}.{layer}.attention.self.{part}"
            tensors[f"{stem}.lora_A.weight"] = random.normal(size=(4, HIDDEN)).astype(dtype)
            tensors[f"{stem}.lora_B.weight"] = random.normal(size=(HIDDEN, 4)).astype(dtype)
    return tensors


def blob(tensors: dict[str, Any] | None = None, **meta: Any) -> bytes:
    """A blob of these tensors (a good LoRA's), its metadata changed as given."""
    values = {
        "format": "peft",
        "adapter_config": LORA_CONFIG,
        "head_config": None,
        "task": "sequence_classification",
        "labels": ["a", "b", "c"],
        "pooling": "",
        "normalize": False,
        **meta,
    }
    tensors = lora_tensors() if tensors is None else tensors
    return safetensors.numpy.save(tensors, {"hmi": json.dumps(values)})


def raw(header: object, data: bytes = b"") -> bytes:
    """A container with exactly this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
