"""The encoder beside its oracle, transformers: random checkpoints, ragged batches, differences.

Used by the encoder's tests and by the GPU benchmark, which repeats them on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder
from services.executor.models.segments import Segments

VOCAB = 97
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 66,
    "initializer_range": 0.1,
}
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "distilbert")


@dataclass(frozen=True)
class Rows:
    """A ragged batch: token and type ids of each row."""

    token_ids: list[list[int]]
    type_ids: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.token_ids]


def hf_config(architecture: str, **changes: object) -> transformers.PretrainedConfig:
    """A tiny configuration of the architecture, with three labels."""
    sizes: dict[str, object] = dict(_SIZES)
    if architecture == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
        sizes["dim"] = sizes.pop("hidden_size")
        sizes["n_layers"] = sizes.pop("num_hidden_layers")
        sizes["n_heads"] = sizes.pop("num_attention_heads")
    elif architecture != "bert":
        sizes |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return transformers.AutoConfig.for_model(architecture, **sizes, num_labels=3, **changes)


def write_checkpoint(
    directory: Path, architecture: str, *, seed: int = 0, max_shard_size: str = "5GB"
) -> transformers.PreTrainedModel:
    """Save a random classifier of the architecture and return it, ready to be asked."""
    torch.manual_seed(seed)
    config = hf_config(architecture)
    model = transformers.AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1: a mix-up would not show
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1 + ("norm" in name.lower()))
    model.eval().save_pretrained(directory, max_shard_size=max_shard_size)
    return model


def random_rows(
    lengths: Sequence[int], *, vocab: int = VOCAB, pairs: bool = True, seed: int = 1
) -> Rows:
    """Random tokens (ids from 5, above the special ones); second halves of type 1 for pairs."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(5, vocab, (n,), generator=generator).tolist() for n in lengths]
    types = [[0] * (n - n // 2) + [int(pairs)] * (n // 2) for n in lengths]
    return Rows(tokens, types)


def packed(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Tensor:
    """int64 `[tokens]`."""
    return torch.tensor([value for row in rows for value in row], device=device)


@torch.inference_mode()
def our_hidden(encoder: Encoder, rows: Rows) -> list[Tensor]:
    """`num_layers + 1` states `[tokens, hidden]`: the embeddings, then every layer's output."""
    segments = Segments(rows.lengths, encoder.device)
    token_ids = packed(rows.token_ids, encoder.device)
    hidden = encoder.embed(token_ids, packed(rows.type_ids, encoder.device), segments)
    states = [hidden]
    for layer in range(encoder.config.num_layers):
        hidden = encoder.run(hidden, segments, layers=range(layer, layer + 1), bypass=NoBypass())
        states.append(hidden)
    return states


def padded_inputs(rows: Rows, *, with_types: bool) -> dict[str, Tensor]:
    """What transformers takes: right-padded ids, with the padding masked out."""
    longest = max(rows.lengths)
    lengths = torch.tensor(rows.lengths)
    inputs = {
        "input_ids": torch.tensor([row + [1] * (longest - len(row)) for row in rows.token_ids]),
        "attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long(),
    }
    if with_types:
        types = [row + [0] * (longest - len(row)) for row in rows.type_ids]
        inputs["token_type_ids"] = torch.tensor(types)
    return inputs


@torch.inference_mode()
def their_hidden(model: transformers.PreTrainedModel, rows: Rows) -> list[Tensor]:
    """transformers' states of the same tokens, as `our_hidden`."""
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    inputs = padded_inputs(rows, with_types=has_types)
    mask = inputs["attention_mask"].bool()
    output = model(**inputs, output_hidden_states=True)
    return [state[mask] for state in output.hidden_states]


def their_logits(model: transformers.PreTrainedModel, rows: Rows) -> Tensor:
    """`[rows, labels]` from transformers."""
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    with torch.inference_mode():
        return model(**padded_inputs(rows, with_types=has_types)).logits


@torch.inference_mode()
def our_logits(
    encoder: Encoder, model: transformers.PreTrainedModel, rows: Rows, *, architecture: str
) -> Tensor:
    """`[rows, labels]` on the CPU: the model's own head on our hidden states."""
    segments = Segments(rows.lengths, encoder.device)
    first = our_hidden(encoder, rows)[-1][segments.first_tokens]
    if architecture == "bert":
        return model.classifier(encoder.pool(first).float().cpu())
    first = first.float().cpu()
    if architecture == "distilbert":
        return model.classifier(torch.relu(model.pre_classifier(first)))
    return model.classifier(first[:, None])


def max_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest absolute difference over all states."""
    pairs = zip(ours, theirs, strict=True)
    return max((a.float().cpu() - b.float()).abs().max().item() for a, b in pairs)
