"""AdapterHub's bottleneck adapters and heads give the logits of `adapters`, alone and mixed.

The fixtures are written by tests/oracles/adapterhub.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch

from tests.executor.tiny_tasks import Key, Stack, make_blob, peft_blob, peft_model, stack

FIXTURES = Path(__file__).parent / "fixtures" / "adapterhub"
TOLERANCE = 1e-4
TASKS = {
    "classification": "sequence_classification",
    "multilabel": "multi_label_classification",
    "tagging": "token_classification",
}


def hub_blob(directory: Path, kind: str) -> bytes:
    """What `models push` makes of an AdapterHub directory."""
    tensors = safetensors.torch.load_file(directory / "adapter.safetensors")
    tensors |= safetensors.torch.load_file(directory / "model_head.safetensors")
    head = json.loads((directory / "head_config.json").read_text())
    return make_blob(
        tensors,
        format="adapterhub",
        adapter_config=json.loads((directory / "adapter_config.json").read_text()),
        head_config=head,
        task=TASKS[kind],
        labels=[f"L{i}" for i in range(head["config"]["num_labels"])],
    )


def answers(architecture: str) -> dict[str, Any]:
    return json.loads((FIXTURES / architecture / "answers.json").read_text())


def push_all(made: Stack, architecture: str) -> list[Key]:
    return [
        made.push(hub_blob(FIXTURES / architecture / name, case["kind"]), name)
        for name, case in answers(architecture).items()
    ]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_a_mixed_ragged_batch_equals_adapterhub_one_at_a_time(architecture: str) -> None:
    cases = list(answers(architecture).values())
    with stack(FIXTURES / architecture / "base") as made:
        slots = [made.acquire(key) for key in push_all(made, architecture)]
        texts = [case["token_ids"] for case in cases]
        mixed = made.run(slots, texts)
        for slot, text, case, out in zip(slots, texts, cases, mixed, strict=True):
            wanted = torch.tensor(case["logits"])
            (alone,) = made.run([slot], [text])
            torch.testing.assert_close(alone, wanted, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(out, wanted, atol=TOLERANCE, rtol=0)


def test_lora_ia3_bottleneck_and_the_bare_base_share_a_batch(tmp_path: Path) -> None:
    directory = FIXTURES / "bert" / "base"
    seq = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    configs = [
        peft.LoraConfig(r=4, target_modules=["query", "value"], **seq),
        peft.IA3Config(
            target_modules=["key", "output.dense"], feedforward_modules=["output.dense"], **seq
        ),
    ]
    with stack(directory) as made:
        keys = push_all(made, "bert")
        for i, config in enumerate(configs):
            model = peft_model(directory, "sequence_classification", config, labels=3, seed=i)
            blob = peft_blob(model, tmp_path / str(i), "sequence_classification", 3)
            keys.insert(2 * i, made.push(blob, f"peft{i}"))
        keys.append(made.push(make_blob({}, format="none"), "bare"))
        slots = [made.acquire(key) for key in keys]
        texts = [list(range(4, 9 + i)) for i in range(len(slots))]
        for out, slot, text in zip(made.run(slots, texts), slots, texts, strict=True):
            torch.testing.assert_close(out, made.run([slot], [text])[0], atol=1e-5, rtol=0)
