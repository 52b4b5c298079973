"""Writes the AdapterHub fixtures: tiny bases, adapters and heads with the logits `adapters` gives.

`adapters` wants an older transformers than ours, so this runs in an environment of its own:

    python3 -m venv /tmp/hub && /tmp/hub/bin/pip install adapters==1.3.0 'transformers<4.58'
    /tmp/hub/bin/python tests/oracles/adapterhub.py tests/executor/fixtures/adapterhub
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import adapters
import adapters.loading
import safetensors.torch
import torch
import transformers
from adapters import AutoAdapterModel, DoubleSeqBnConfig, SeqBnConfig

_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 40, "max_position_embeddings": 24,
}  # fmt: skip
BASES = {
    "bert": transformers.BertConfig(**_SIZES),
    "roberta": transformers.RobertaConfig(**_SIZES),
    "distilbert": transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=40, max_position_embeddings=24
    ),
}  # fmt: skip

# Adapter, head: (type, labels, options).
CASES: dict[str, tuple[Any, tuple[str, int, dict[str, Any]]]] = {
    "pfeiffer": (SeqBnConfig(reduction_factor=4), ("classification", 3, {})),
    "houlsby": (
        DoubleSeqBnConfig(reduction_factor={"0": 2, "default": 8}),
        ("classification", 2, {"layers": 1}),
    ),
    "norms": (
        DoubleSeqBnConfig(
            reduction_factor=4, ln_before=True, ln_after=True, non_linearity="gelu",
            adapter_residual_before_ln=True, leave_out=[0],
        ),
        ("tagging", 5, {"layers": 2}),
    ),
    "channel": (
        SeqBnConfig(
            reduction_factor=16, scaling="channel", residual_before_ln=False, non_linearity="tanh"
        ),
        ("multilabel", 4, {"layers": 3, "activation_function": "gelu"}),
    ),
    "learned": (
        SeqBnConfig(
            reduction_factor=0.5, scaling="learned", residual_before_ln="post_add",
            original_ln_after=False, ln_after=True, mh_adapter=True, non_linearity="gelu_new",
        ),
        ("classification", 1, {"layers": 2}),
    ),
    "constant": (
        DoubleSeqBnConfig(reduction_factor=2, scaling=2.5, non_linearity="leakyrelu"),
        ("tagging", 2, {}),
    ),
}  # fmt: skip


def save_unshared(tensors: dict[str, torch.Tensor], path: str, **options: Any) -> None:
    """safetensors takes no tensor under two names, which the norm before a bottleneck has."""
    safetensors.torch.save_file({k: v.clone() for k, v in tensors.items()}, path, **options)


def randomise(parameters: Any, size: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * size)


def add_head(model: Any, name: str, kind: str, labels: int, options: dict[str, Any]) -> None:
    if kind == "tagging":
        model.add_tagging_head(name, num_labels=labels, **options)
    else:
        multilabel = kind == "multilabel"
        model.add_classification_head(name, num_labels=labels, multilabel=multilabel, **options)


def write(architecture: str, directory: Path) -> None:
    torch.manual_seed(11)
    base = transformers.AutoModel.from_config(BASES[architecture])
    randomise(base.parameters(), 0.1)
    base.save_pretrained(directory / "base")
    model = AutoAdapterModel.from_pretrained(str(directory / "base"))
    answers = {}
    for seed, (name, (config, (kind, labels, options))) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        if kind == "classification" and labels == 2 and architecture == "bert":
            options = {**options, "use_pooler": True}
        model.add_adapter(name, config=config)
        add_head(model, name, kind, labels, options)
        model.train_adapter(name)
        randomise((p for p in model.parameters() if p.requires_grad), 0.3)
        model.eval()
        model.active_head = name
        ids = torch.randint(4, 40, (5 + 2 * seed,))
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        model.save_adapter(str(directory / name), name, use_safetensors=True)
        answers[name] = {"kind": kind, "token_ids": ids.tolist(), "logits": logits.tolist()}
    (directory / "answers.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    adapters.loading.save_file = save_unshared
    for name in BASES:
        shutil.rmtree(Path(sys.argv[1]) / name, ignore_errors=True)
        write(name, Path(sys.argv[1]) / name)
