"""Small real things for tests: a random base on disk, random adapters as PEFT saves them, oracles.

The oracle is transformers' own BERT with the LoRA product added to its weights, one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.func import functional_call
from transformers import BertConfig, BertModel

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "big", "small"]
WORDS += ["red", "blue", "news", "sport", "film", "team", "vote", "price", "song", "river"]
HIDDEN = 32
LAYERS = 2


def write_base(directory: Path, seed: int = 0) -> Path:
    """A random two-layer BERT with a word-level tokenizer, as a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).eval().save_pretrained(directory)
    return directory


def write_lora(
    directory: Path,
    seed: int,
    num_labels: int = 3,
    rank: int = 4,
    layers: Sequence[int] = range(LAYERS),
) -> Path:
    """A random LoRA on query and value with a classifier, as a PEFT directory. B is not zero."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        for target in ("query", "value"):
            name = f"base_model.model.bert.encoder.layer.{layer}.attention.self.{target}"
            tensors[f"{name}.lora_A.weight"] = random(rank, HIDDEN, scale=0.5)
            tensors[f"{name}.lora_B.weight"] = random(HIDDEN, rank, scale=0.5)
    tensors["base_model.model.classifier.weight"] = random(num_labels, HIDDEN, scale=0.4)
    tensors["base_model.model.classifier.bias"] = random(num_labels, scale=0.4)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["query", "value"],
        "layers_to_transform": list(layers),
        "modules_to_save": ["classifier"],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@dataclass(frozen=True)
class Oracle:
    """Answers of one-model-at-a-time transformers."""

    base: Path

    @cached_property
    def _model(self) -> BertModel:
        return BertModel.from_pretrained(self.base, attn_implementation="eager").eval()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.base / "tokenizer.json"))

    def probabilities(self, adapter: Path, texts: Sequence[str]) -> np.ndarray:
        """Softmax scores float32 `[texts, labels]` of a `write_lora` directory."""
        tensors = load_file(adapter / "adapter_model.safetensors")
        config = json.loads((adapter / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
        weights = self._model.state_dict()
        changed: dict[str, torch.Tensor] = {}
        for layer in range(LAYERS):
            for target in ("query", "value"):
                name = f"encoder.layer.{layer}.attention.self.{target}"
                lora = f"base_model.model.bert.{name}"
                product = tensors[f"{lora}.lora_B.weight"] @ tensors[f"{lora}.lora_A.weight"]
                changed[f"{name}.weight"] = weights[f"{name}.weight"] + scale * product
        with torch.inference_mode():
            rows = []
            for text in texts:
                ids = torch.tensor([self._tokenizer.encode(text).ids])
                pooled = functional_call(self._model, changed, (ids,)).pooler_output
                logits = torch.nn.functional.linear(
                    pooled,
                    tensors["base_model.model.classifier.weight"],
                    tensors["base_model.model.classifier.bias"],
                )
                rows.append(logits.softmax(-1)[0])
        return torch.stack(rows).numpy()
