"""The cost of a batch does not grow with its tenants, and rows never mix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from services.common.errors import Internal
from services.executor.models.segments import Segments
from tests.executor.test_adapters_hub import FIXTURES, hub_blob
from tests.executor.tiny_tasks import (
    HIDDEN,
    LAYERS,
    Key,
    Stack,
    make_blob,
    peft_blob,
    peft_model,
    save_base,
    stack,
    texts,
)

PRODUCTS = re.compile("mm|matmul|linear")
"""Every multiplication, by any path: a laid-out bfloat16 base runs mkldnn::_linear_pointwise."""
HUB = FIXTURES / "bert"
HUB_WORDS = 36
STEM = "base_model.model.bert.encoder.layer"


def lora_blob(
    seed: int,
    *,
    rank: int = 4,
    targets: Sequence[str] = ("query", "value"),
    changed: Mapping[str, torch.Tensor] | None = None,
    task: str = "sequence_classification",
) -> bytes:
    """A random classifier with three labels, but for the tensors changed."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    tensors = {
        "base_model.model.classifier.weight": random(3, HIDDEN),
        "base_model.model.classifier.bias": random(3),
    }
    for layer in range(LAYERS):
        for target in targets:
            stem = f"{STEM}.{layer}.attention.self.{target}"
            tensors[f"{stem}.lora_A.weight"] = random(rank, HIDDEN)
            tensors[f"{stem}.lora_B.weight"] = random(HIDDEN, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(targets)}
    return make_blob(
        {**tensors, **(changed or {})},
        adapter_config=config,
        task=task,
        labels=["a", "b", "c"],
        pooling="",
    )


def num_products(made: Stack, keys: Sequence[Key], rows: Sequence[Sequence[int]]) -> int:
    """Multiplications that were called for; what torch makes of one of them is not counted apart.

    In float32 it runs a small strided baddbmm_ matrix by matrix, in bfloat16 it does not.
    """
    return sum(is_called(event) for event in products(made, keys, rows))


def num_operations(made: Stack, keys: Sequence[Key], rows: Sequence[Sequence[int]]) -> int:
    """As `num_products`, and those inside others."""
    return len(products(made, keys, rows))


def products(
    made: Stack, keys: Sequence[Key], rows: Sequence[Sequence[int]]
) -> list[FunctionEvent]:
    """Of one batch."""
    slots = [made.acquire(key) for key in keys]
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        made.run(slots, rows)
    return [event for event in trace.events() or () if PRODUCTS.search(event.name)]


def is_called(event: FunctionEvent) -> bool:
    """It lies in no other product."""
    parent = event.cpu_parent
    while parent is not None and not PRODUCTS.search(parent.name):
        parent = parent.cpu_parent
    return parent is None


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base("bert", tmp_path / "base")


@pytest.mark.parametrize("lengths", [[6] * 32, [3 + i % 7 for i in range(32)]])
def test_one_tenant_and_32_need_the_same_number_of_products(base: Path, lengths: list[int]) -> None:
    rows = texts(lengths)
    with stack(base) as made:
        keys = [made.push(lora_blob(i, rank=1 + i % 8), f"m{i}") for i in range(32)]
        one = num_products(made, keys[:1] * 32, rows)
        assert num_products(made, keys, rows) == one
        assert one > 0


@pytest.mark.parametrize("lengths", [[6] * 32, [3 + i % 7 for i in range(32)]])
def test_nor_does_torch_make_more_of_them_in_bfloat16(base: Path, lengths: list[int]) -> None:
    """The base laid out as it is served."""
    rows = texts(lengths)
    with stack(base, dtype=torch.bfloat16, for_inference=True) as made:
        keys = [made.push(lora_blob(i, rank=1 + i % 8), f"m{i}") for i in range(32)]
        one = num_operations(made, keys[:1] * 32, rows)
        assert num_operations(made, keys, rows) == one
        assert one > 0


def mixed_blob(seed: int, directory: Path) -> bytes:
    """A random LoRA of some rank, IA3 or bottleneck adapter, in turn."""
    task = "sequence_classification"
    if seed % 3 == 2:
        blob = hub_blob(HUB / "pfeiffer", "classification")
        chance = torch.Generator().manual_seed(seed)
        tensors = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=chance)
            for name, tensor in safetensors.torch.load(blob).items()
        }
        metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
        return safetensors.torch.save(tensors, metadata)
    seq = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    config: peft.PeftConfig = (
        peft.LoraConfig(r=1 + seed % 8, target_modules=["query", "value"], **seq)
        if seed % 3 == 0
        else peft.IA3Config(
            target_modules=["key", "output.dense"], feedforward_modules=["output.dense"], **seq
        )
    )
    model = peft_model(HUB / "base", task, config, labels=3, seed=seed)
    return peft_blob(model, directory / str(seed), task, 3)


@pytest.mark.parametrize("lengths", [[6] * 33, [3 + i % 7 for i in range(33)]])
def test_adapters_of_every_kind_need_the_same_number_of_products_in_bfloat16(
    tmp_path: Path, lengths: list[int]
) -> None:
    """Three models take turns, then each row has its own."""
    rows = [[4 + token % HUB_WORDS for token in row] for row in texts(lengths)]
    with stack(HUB / "base", dtype=torch.bfloat16, for_inference=True) as made:
        keys = [made.push(mixed_blob(i, tmp_path), f"m{i}") for i in range(33)]
        assert len({key.digest for key in keys}) == 33
        three = num_operations(made, keys[:3] * 11, rows)
        assert num_operations(made, keys, rows) == three
        assert three > num_operations(made, keys[:1] * 33, rows)


def test_rows_without_an_adapter_cost_no_adapter_product(base: Path) -> None:
    rows = texts([6] * 8)
    with stack(base) as made:
        bare = made.push(make_blob({}, format="none"), "bare")
        adapted = made.push(lora_blob(0), "lora")
        without = num_products(made, [bare] * 8, rows)
        with_one = num_products(made, [bare] * 7 + [adapted], rows)
        # A of query and value in one product, B in two; the pooler and the head in one each.
        assert with_one == without + 3 * LAYERS + 2


def test_different_adapters_give_answers_far_apart(base: Path) -> None:
    (text,) = texts([9])
    with stack(base) as made:
        slots = [made.acquire(made.push(lora_blob(i), f"m{i}")) for i in range(16)]
        answers = torch.stack(made.run(slots, [text] * 16))
    distances = (answers[:, None] - answers[None]).abs().amax(-1) + torch.eye(16)
    assert distances.min() > 1e-2


def test_rows_of_many_lengths_answer_as_each_does_alone(base: Path) -> None:
    lengths = [2, 3, 22, 5, 2, 9, 20, 3, 2, 2, 2, 2]
    rows = texts(lengths)
    assert Segments(lengths, torch.device("cpu")).is_ragged
    with stack(base) as made:
        tasks = ["sequence_classification", "token_classification"]
        blobs = [lora_blob(i, task=tasks[i % 2]) for i in range(len(rows))]
        slots = [made.acquire(made.push(blob, f"m{i}")) for i, blob in enumerate(blobs)]
        together = made.run(slots, rows)
        for slot, row, answer in zip(slots, rows, together, strict=True):
            torch.testing.assert_close(made.run([slot], [row])[0], answer, atol=1e-5, rtol=0)


def test_a_released_slot_cannot_compute(base: Path) -> None:
    with stack(base) as made:
        slot = made.acquire(made.push(lora_blob(0)))
        made.store.release(slot)
        with pytest.raises(Internal):
            made.run([slot], texts([4]))


def test_rows_that_enter_later_keep_their_own_adapters(base: Path) -> None:
    rows = texts([5, 7, 4])
    segments = Segments([5, 7, 4], torch.device("cpu"))
    hidden = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(1))
    with stack(base) as made, torch.inference_mode():
        slots = [made.acquire(made.push(lora_blob(i), f"m{i}")) for i in range(3)]
        entries = [0, 1, 2]
        layers = range(LAYERS)
        mixed = made.encoder.run(
            hidden.clone(),
            segments,
            layers=layers,
            bypass=made.store.bypass(slots, segments),
            entry_layers=entries,
        )
        start = 0
        for slot, row, entry in zip(slots, rows, entries, strict=True):
            own = Segments([len(row)], torch.device("cpu"))
            alone = made.encoder.run(
                hidden[start : start + len(row)].clone(),
                own,
                layers=range(entry, LAYERS),
                bypass=made.store.bypass([slot], own),
            )
            torch.testing.assert_close(mixed[start : start + len(row)], alone, atol=1e-5, rtol=0)
            start += len(row)
