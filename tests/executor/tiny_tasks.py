"""Tiny random bases and PEFT models on them, with answers by `transformers` and PEFT."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
import transformers
from torch import Tensor

from services.common.base_config import BaseConfig
from services.executor.adapters import AdapterStore, BaseTensors, Slot
from services.executor.heads import BatchHeads
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.segments import Segments

transformers.logging.set_verbosity_error()

HIDDEN, INNER, LAYERS, WORDS = 32, 64, 3, 99

_SIZES = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": INNER, "vocab_size": WORDS, "max_position_embeddings": 40,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": transformers.BertConfig(**_SIZES),
    "roberta": transformers.RobertaConfig(**_SIZES),
    "distilbert": transformers.DistilBertConfig(
        dim=HIDDEN, n_layers=LAYERS, n_heads=2, hidden_dim=INNER, vocab_size=WORDS,
        max_position_embeddings=40,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """As the engine's."""

    model: str
    version: int
    digest: str
    tenant: str = "acme"


def save_base(architecture: str, directory: Path) -> Path:
    """A random checkpoint with biases and norms away from their initial zeros and ones."""
    torch.manual_seed(7)
    model = transformers.AutoModel.from_config(CONFIGS[architecture])
    randomise(model.parameters(), 0.1)
    model.save_pretrained(directory)
    return directory


def randomise(parameters: Iterator[Tensor], size: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * size)


def peft_model(base: Path, task: str, config: peft.PeftConfig, *, labels: int, seed: int) -> Any:
    """A PEFT model on a saved base, every trained number random."""
    torch.manual_seed(seed)
    auto = {
        "sequence_classification": transformers.AutoModelForSequenceClassification,
        "token_classification": transformers.AutoModelForTokenClassification,
        "embedding": transformers.AutoModel,
    }[task]
    options = {} if task == "embedding" else {"num_labels": labels}
    model = peft.get_peft_model(auto.from_pretrained(base, **options), config)
    randomise((p for p in model.parameters() if p.requires_grad), 0.3)
    return model.eval()


def peft_blob(model: Any, directory: Path, task: str, labels: int, **meta: Any) -> bytes:
    """What `models push` makes of the saved model."""
    model.save_pretrained(directory)
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(directory / "adapter_model.safetensors")
    names = [f"L{i}" for i in range(labels)]
    return make_blob(tensors, adapter_config=config, task=task, labels=names, **meta)


def make_blob(tensors: dict[str, Tensor], **meta: Any) -> bytes:
    """A blob with these metadata over the defaults."""
    values = {
        "format": "peft", "adapter_config": None, "head_config": None, "task": "embedding",
        "labels": [], "pooling": "mean", "normalize": False, **meta,
    }  # fmt: skip
    return safetensors.torch.save(tensors, {"hmi": json.dumps(values, sort_keys=True)})


def expected(model: Any, token_ids: Sequence[int]) -> Tensor:
    """One text's logits (or last hidden states) by PEFT."""
    with torch.no_grad():
        out = model(torch.tensor([token_ids]))
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0]


class Stack:
    """A base, a store over blobs in a dictionary, and heads: the executor without its engine."""

    def __init__(self, directory: Path, *, device_bytes: int = 32 << 20, **options: Any) -> None:
        dtype = options.pop("dtype", torch.float32)
        self.encoder: Encoder = load_base(directory, dtype=dtype, device="cpu")
        if options.pop("for_inference", False):
            self.encoder = self.encoder.for_inference()
        self.base: BaseConfig = self.encoder.config
        self.blobs: dict[str, bytes] = {}
        self.store = AdapterStore(
            self.base,
            dtype=dtype,
            device=torch.device("cpu"),
            device_bytes=device_bytes,
            host_bytes=options.pop("host_bytes", 32 << 20),
            read_blob=options.pop("read_blob", self.blobs.__getitem__),
            base_tensor=BaseTensors(directory, self.base),
            has_pooler=self.encoder.has_pooler,
            **options,
        )
        self.heads = BatchHeads(self.store.arena, self.encoder.pool)

    def push(self, blob: bytes, model: str = "m", version: int = 1) -> Key:
        digest = hashlib.sha256(blob).hexdigest()
        self.blobs[digest] = blob
        return Key(model, version, digest)

    def acquire(self, key: Key) -> Slot:
        """Waits until it is resident."""
        while (slot := self.store.acquire(key)) is None:
            pass
        return slot

    def run(self, slots: Sequence[Slot], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """One mixed batch."""
        segments = Segments([len(text) for text in texts], torch.device("cpu"))
        ids = torch.tensor([token for text in texts for token in text])
        with torch.inference_mode():
            hidden = self.encoder.embed(ids, None, segments)
            hidden = self.encoder.run(
                hidden,
                segments,
                layers=range(self.base.num_layers),
                bypass=self.store.bypass(slots, segments),
            )
            return [out.clone() for out in self.heads.run(slots, hidden, segments)]


@contextmanager
def stack(directory: Path, **options: Any) -> Iterator[Stack]:
    made = Stack(directory, **options)
    try:
        yield made
    finally:
        made.store.close()


def texts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, WORDS, (n,), generator=generator).tolist() for n in lengths]
