"""The local encoder against the base's own layers on texts of three tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.common import ngrams
from services.common.local_encoder_format import Form
from services.executor.construct.student import start
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.local_encoder import LARGEST_TILE, TILE, LocalEncoder
from services.executor.models.segments import Segments
from tests import tiny

SPLIT = 1
NUM_WORDS = len(tiny.WORDS) + 4
CPU = torch.device("cpu")
Make = Callable[..., tuple[Encoder, LocalEncoder]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    directory = tiny.write_base(tmp_path_factory.mktemp("base"))

    def make(form: Form, dtype: torch.dtype = torch.float32) -> tuple[Encoder, LocalEncoder]:
        base = load_base(directory, dtype=dtype, device="cpu")
        generator = torch.Generator().manual_seed(1)
        tensors = start(base, SPLIT)
        for name in ("gate.weight", "gate.bias", "positions", "types"):
            tensors[name] = torch.randn(tensors[name].shape, generator=generator)
        return base, LocalEncoder.of(base, tensors, form)

    return make


def random_slots(num: int, seed: int = 0) -> Tensor:
    """`[num, 3]` n-grams; a third of the outer slots are absent."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(1, NUM_WORDS + 1, (num, 3))
    slots[:, [0, 2]] *= rng.random((num, 2)) > 1 / 3
    return torch.from_numpy(slots)


def oracle(base: Encoder, local: LocalEncoder, slots: Tensor) -> Tensor:
    """Each n-gram's present tokens run as a text of their own, from the position of the first."""
    out = torch.zeros(3, base.config.hidden_size)
    present = slots.nonzero()[:, 0]
    segments = Segments([len(present)], CPU)
    hidden = base.embed(slots[present] - 1, None, segments, present[:1])
    hidden = base.run(hidden, segments, layers=range(SPLIT), bypass=NoBypass())
    out[present] = hidden * torch.sigmoid(local.weights.gate(hidden))
    return out if local.form is Form.SUM else out[1:2]


@pytest.mark.parametrize("form", list(Form))
def test_rows_are_the_lower_layers_outputs_on_a_text_of_the_present_tokens(
    make: Make, form: Form
) -> None:
    base, local = make(form)
    slots = random_slots(40)
    keys = torch.from_numpy(ngrams.pack(*slots.numpy().T))
    expected = torch.stack([oracle(base, local, row) for row in slots])
    assert (local.rows(keys).float() - expected).abs().max() < 4e-3  # half a unit of fp16 at 8


@pytest.mark.parametrize("form", list(Form))
def test_rows_in_bfloat16_are_near_those_of_the_simple_way_in_float32(
    make: Make, form: Form
) -> None:
    exact, fast = make(form)[1], make(form, torch.bfloat16)[1]
    slots = random_slots(70)
    rows = fast.rows(torch.from_numpy(ngrams.pack(*slots.numpy().T))).float()
    expected = exact.outputs(slots)
    assert (rows - expected).norm() < 0.02 * expected.norm()
    assert (rows - expected).abs().max() < 0.1  # eight units of bfloat16 at 4


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num", [1, 2, 31, 32, 65, LARGEST_TILE - 1, LARGEST_TILE + 33, 450])
def test_a_row_has_the_same_bits_in_any_company(
    make: Make, form: Form, dtype: torch.dtype, num: int
) -> None:
    _, local = make(form, dtype)
    keys = torch.from_numpy(ngrams.pack(*random_slots(500).numpy().T))
    in_small_tiles = torch.cat([local.rows(some) for some in torch.split(keys, 20)])
    chosen = torch.randperm(len(keys), generator=torch.Generator().manual_seed(num))[:num]
    assert torch.equal(local.rows(keys[chosen]), in_small_tiles[chosen])


@pytest.mark.parametrize("form", list(Form))
def test_other_devices_take_the_simple_way_in_tiles_of_one_size(
    make: Make, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, local = make(form)
    keys = torch.from_numpy(ngrams.pack(*random_slots(2 * TILE + 3).numpy().T))
    fast = local.rows(keys)
    sizes = []

    def outputs(slots: Tensor) -> Tensor:
        sizes.append(len(slots))
        return LocalEncoder.outputs(local, slots)

    monkeypatch.setattr(local, "_layers", None)  # as on CUDA
    monkeypatch.setattr(local, "outputs", outputs)
    assert (local.rows(keys).float() - fast.float()).abs().max() < 4e-3
    assert sizes == [TILE] * 3


def test_no_keys_have_no_rows(make: Make) -> None:
    _, local = make(Form.SUM)
    assert local.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 3, tiny.HIDDEN)


def test_the_sum_form_adds_what_neighbours_see_of_a_token_inside_its_own_text(make: Make) -> None:
    _, local = make(Form.SUM)
    lengths = [1, 2, 5]
    segments = Segments(lengths, CPU)
    values = torch.randn(sum(lengths), 3, tiny.HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(sum(lengths), tiny.HIDDEN)
    first = 0
    for length in lengths:
        for i in range(length):
            expected[first + i] = values[first + i, 1]
            if i + 1 < length:
                expected[first + i] += values[first + i + 1, 0]
            if i:
                expected[first + i] += values[first + i - 1, 2]
        first += length
    assert torch.allclose(local.split_values(values, segments), expected, atol=1e-6)


def test_merging_adds_where_a_token_stands_and_in_which_text(make: Make) -> None:
    _, local = make(Form.CENTRE)
    segments = Segments([3, 2], CPU)
    rows = torch.randn(5, tiny.HIDDEN, generator=torch.Generator().manual_seed(0))
    type_ids = torch.tensor([0, 1, 1, 0, 0])
    offsets = torch.tensor([0, 7])
    weights = local.weights
    assert weights.types is not None
    places = weights.positions[[0, 1, 2, 7, 8]]
    expected = weights.norm(rows + places + weights.types[type_ids])
    assert torch.allclose(local.merge(rows, type_ids, segments, offsets), expected, atol=1e-6)


def test_gradients_reach_every_parameter_and_nothing_of_the_base(tmp_path: Path) -> None:
    base = load_base(tiny.write_base(tmp_path), dtype=torch.float32, device="cpu")
    tensors = {name: value.requires_grad_() for name, value in start(base, SPLIT).items()}
    local = LocalEncoder.of(base, tensors, Form.CENTRE)
    segments = Segments([4], CPU)
    hidden = local.merge(local.outputs(random_slots(4))[:, 0], None, segments)
    hidden = base.run(hidden, segments, layers=range(SPLIT, 2), bypass=NoBypass())
    hidden.square().sum().backward()
    assert all(value.grad is not None for value in tensors.values())
    assert base.weights.embeddings.words.grad is None
