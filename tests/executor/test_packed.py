"""Products whose rows must not depend on their company, at the sizes of a real base."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.common.base_config import Activation
from services.executor.models import packed
from services.executor.models.encoder import ACTIVATIONS
from services.executor.models.packed import RULE, Kind, PackedLinear, Product, pack
from services.executor.models.weights import Linear

DTYPES = [torch.float32, torch.bfloat16]
MOST_ROWS = 600


def cancelling(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Linear, Tensor]:
    """A map and `[MOST_ROWS, inputs]` whose images are rounding errors, all of them."""
    generator = torch.Generator().manual_seed(0)
    half = inputs // 2
    order = torch.randperm(2 * half, generator=generator)
    weight = torch.randn(outputs, half, generator=generator).to(dtype)
    x = torch.randn(MOST_ROWS, half, generator=generator).to(dtype)
    linear = Linear(torch.cat([weight, weight], 1)[:, order], torch.zeros(outputs, dtype=dtype))
    return linear, torch.cat([x, -x], 1)[:, order].contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("outputs", "inputs", "activation"),
    [
        (384, 1536, None),
        (1152, 384, None),
        (1536, 384, Activation.GELU),
        (12, 384, None),
        (32, 64, Activation.SILU),
    ],
)
def test_a_row_has_the_same_bits_in_any_company(
    dtype: torch.dtype, outputs: int, inputs: int, activation: Activation | None
) -> None:
    linear, x = cancelling(outputs, inputs, dtype)
    product = Product(linear, activation)
    expected = torch.cat([product(part) for part in torch.split(x, RULE)])

    @settings(max_examples=25, deadline=None, database=None, derandomize=True)
    @given(st.integers(1, MOST_ROWS), st.integers(0, 1 << 30))
    def check(num_rows: int, seed: int) -> None:
        order = torch.randperm(MOST_ROWS, generator=torch.Generator().manual_seed(seed))
        chosen = order[:num_rows]
        assert torch.equal(product(x[chosen]), expected[chosen])

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_the_linear_map(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(shape, generator=generator) for shape in ((96, 80), 96, (50, 80))
    )
    linear = Linear(weight.to(dtype), bias.to(dtype))
    expected = x.to(dtype).double() @ linear.weight.double().T + linear.bias.double()
    error = (Product(linear)(x.to(dtype)).double() - expected).abs().max()
    assert error < 300 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(Activation))
def test_an_activation_follows_the_product(dtype: torch.dtype, activation: Activation) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(shape, generator=generator) for shape in ((96, 80), 96, (50, 80))
    )
    linear = Linear(weight.to(dtype) / 9, bias.to(dtype))
    expected = ACTIVATIONS[activation](
        x.to(dtype).double() @ linear.weight.double().T + linear.bias
    )
    error = (Product(linear, activation)(x.to(dtype)).double() - expected).abs().max()
    assert error < 40 * torch.finfo(dtype).eps


def test_packing_changes_no_product_and_holds_its_weight_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((1536, 384), 1536, (70, 384))
    )
    linear = Linear(weight, bias)
    packed_map = pack(linear)
    assert packed_map.weight.shape == weight.shape
    torch.testing.assert_close(packed_map(x), linear(x))
    if isinstance(packed_map, PackedLinear):  # a processor that multiplies bfloat16
        assert packed_map.weight.is_mkldnn
    for other in (Linear(weight.float(), bias.float()), Linear(weight[:8], bias[:8])):
        assert pack(other) is other


def test_another_order_of_summation_is_seen_and_rows_go_by_the_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel that sums two halves where there are more than 100 rows."""
    asked = []

    def multiply(linear: Linear, x: Tensor) -> Tensor:
        asked.append(len(x))
        if len(x) <= 100:
            return x @ linear.weight.T + linear.bias
        return x[:, :32] @ linear.weight[:, :32].T + x[:, 32:] @ linear.weight[:, 32:].T

    monkeypatch.setattr(Linear, "__call__", multiply)
    packed._pieces.cache_clear()
    packed.sums_alike.cache_clear()
    try:
        kind = Kind(16, 64, torch.float32, is_packed=False, activation=None)
        assert packed.sums_alike(kind, 96, 1)
        assert not packed.sums_alike(kind, 128, 1)
        linear, x = cancelling(16, 64, torch.float32)
        product = Product(linear)
        alone = torch.cat([product(row[None]) for row in x[:250]])
        asked.clear()
        assert torch.equal(product(x[:250]), alone)
        assert set(asked[-4:]) == {RULE}
    finally:
        packed._pieces.cache_clear()
        packed.sums_alike.cache_clear()
