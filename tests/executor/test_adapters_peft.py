"""PEFT adapters of every kind served give PEFT's logits, alone and in one ragged batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.executor.tiny_tasks import (
    CONFIGS,
    expected,
    peft_blob,
    peft_model,
    save_base,
    stack,
    texts,
)

TOLERANCE = 1e-4
QKV = {
    "bert": ("query", "key", "value"),
    "roberta": ("query", "key", "value"),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
}
FFN = {
    "bert": ["intermediate.dense", "output.dense"],
    "roberta": ["intermediate.dense", "output.dense"],
    "distilbert": ["lin1", "lin2", "out_lin"],
}
HEAD = {
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
}


def configurations(architecture: str) -> list[tuple[str, int, peft.PeftConfig]]:
    """Task, labels and configuration of adapters that differ in all that can differ."""
    q, k, v = QKV[architecture]
    head = HEAD[architecture]
    stem = "transformer.layer" if architecture == "distilbert" else "encoder.layer"
    seq = {"task_type": "SEQ_CLS", "modules_to_save": head}
    lora = [
        {"r": 8, "target_modules": [q, v]},
        {"r": 2, "lora_alpha": 5, "target_modules": [q, k, v, *FFN[architecture]]},
        {"r": 4, "use_rslora": True, "target_modules": [k], "layers_to_transform": [0, 2]},
        {
            "r": 3, "target_modules": [q, v], "rank_pattern": {q: 6, f"{stem}.1.*{v}": 5},
            "alpha_pattern": {v: 32},
        },
        {"r": 4, "target_modules": rf".*{stem}\.[01]\..*({q}|{v})"},
        {"r": 4, "target_modules": "all-linear"},
        {"r": 4, "target_modules": [q, FFN[architecture][0]], "bias": "lora_only"},
        {"r": 4, "target_modules": [q, v], "bias": "all"},
    ]  # fmt: skip
    made: list[tuple[str, int, Any]] = [
        ("sequence_classification", 2 + i, peft.LoraConfig(**seq, **options))
        for i, options in enumerate(lora)
    ]
    feedforward = FFN[architecture][1:]
    made.append(
        (
            "sequence_classification",
            3,
            peft.IA3Config(
                **seq, target_modules=[k, v, *feedforward], feedforward_modules=feedforward
            ),
        )
    )
    made.append(
        (
            "token_classification",
            5,
            peft.LoraConfig(
                task_type="TOKEN_CLS", modules_to_save=["classifier"], target_modules=[q, v]
            ),
        )
    )
    return made


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_a_mixed_ragged_batch_equals_peft_one_at_a_time(architecture: str, tmp_path: Path) -> None:
    base = save_base(architecture, tmp_path / "base")
    lengths = [5, 17, 1, 9, 12, 3, 17, 8, 2, 6]
    with stack(base) as made:
        slots, wanted = [], []
        for i, (task, labels, config) in enumerate(configurations(architecture)):
            model = peft_model(base, task, config, labels=labels, seed=i)
            key = made.push(peft_blob(model, tmp_path / str(i), task, labels), f"m{i}")
            slots.append(made.acquire(key))
            wanted.append(expected(model, texts(lengths)[i]))
        mixed = made.run(slots, texts(lengths))
        for i, (slot, text) in enumerate(zip(slots, texts(lengths), strict=True)):
            (alone,) = made.run([slot], [text])
            torch.testing.assert_close(alone, wanted[i], atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(mixed[i], wanted[i], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_pooled_and_normalised(pooling: str, tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query"])
    model = peft_model(base, "embedding", config, labels=0, seed=3)
    text = texts([7])[0]
    hidden = expected(model, text)
    wanted = hidden.mean(0) if pooling == "mean" else hidden[0]
    with stack(base) as made:
        outputs = []
        for normalize in (False, True):
            blob = peft_blob(
                model, tmp_path / "a", "embedding", 0, pooling=pooling, normalize=normalize
            )
            outputs += made.run([made.acquire(made.push(blob))], [text])
    torch.testing.assert_close(outputs[0], wanted, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(outputs[1], wanted / wanted.norm(), atol=TOLERANCE, rtol=0)
