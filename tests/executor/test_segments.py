"""Boundaries of packed rows."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.adapters.groups import RowGroup
from services.executor.models import segments as segments_module
from services.executor.models.attention import OwnRow, attend
from services.executor.models.segments import Segments

CPU = torch.device("cpu")
RAGGED = Segments([3, 1, 2], CPU)
UNIFORM = Segments([2, 2], CPU)
row_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=7)


def test_boundaries_of_ragged_rows() -> None:
    assert (RAGGED.num_rows, RAGGED.num_tokens, RAGGED.max_len) == (3, 6, 3)
    assert RAGGED.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert RAGGED.cu_seqlens.dtype == torch.int32
    assert RAGGED.row_of_token.tolist() == [0, 0, 0, 1, 2, 2]
    assert RAGGED.position_of_token.tolist() == [0, 1, 2, 0, 0, 1]
    assert RAGGED.first_tokens.tolist() == [0, 3, 4]


def test_mask_marks_existing_keys() -> None:
    mask = RAGGED.key_mask
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True] * 3, [True, False, False], [True, True, False]]


def test_uniform_rows_need_no_mask_and_no_copy() -> None:
    tokens = torch.arange(8.0).view(4, 2)
    padded = UNIFORM.pad(tokens)
    assert UNIFORM.key_mask is None
    assert padded.shape == (2, 2, 2)
    assert padded.data_ptr() == tokens.data_ptr()
    assert UNIFORM.unpad(padded).data_ptr() == tokens.data_ptr()


def test_gaps_are_zero() -> None:
    padded = RAGGED.pad(torch.ones(6, 4))
    assert padded.sum(2).tolist() == [[4, 4, 4], [4, 0, 0], [4, 4, 0]]


@given(row_lengths)
def test_padding_and_unpadding_returns_every_token(lengths: list[int]) -> None:
    segments = Segments(lengths, CPU)
    tokens = torch.randn(segments.num_tokens, 2, 3)
    padded = segments.pad(tokens)
    assert padded.shape == (len(lengths), max(lengths), 2, 3)
    assert torch.equal(segments.unpad(padded), tokens)
    start = 0
    for row, length in enumerate(lengths):
        assert torch.equal(padded[row, :length], tokens[start : start + length])
        start += length


@given(row_lengths, st.data())
def test_a_prefix_is_the_first_rows(lengths: list[int], data: st.DataObject) -> None:
    segments = Segments(lengths, CPU)
    num_rows = data.draw(st.integers(0, len(lengths)))
    prefix = segments.prefix(num_rows)
    assert prefix.lengths == lengths[:num_rows]
    assert torch.equal(prefix.row_of_token, segments.row_of_token[: prefix.num_tokens])


def test_a_prefix_of_all_rows_is_the_same_object() -> None:
    assert RAGGED.prefix(3) is RAGGED


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_indices_live_on_the_device() -> None:
    segments = Segments([3, 1], torch.device("cuda"))
    assert segments.padded_index.is_cuda
    assert segments.pad(torch.ones(4, 2, device="cuda")).is_cuda


very_different = st.lists(st.integers(1, 70), min_size=2, max_size=9).map(lambda few: [*few, 300])


def attended(qkv: torch.Tensor, segments: Segments) -> torch.Tensor:
    return attend(qkv, segments, num_heads=2, layer=0, key_values=OwnRow())


@settings(deadline=None, max_examples=25)
@given(very_different)
def test_rows_of_many_lengths_attend_as_if_all_were_padded(lengths: list[int]) -> None:
    segments = Segments(lengths, CPU)
    assert segments.is_ragged
    qkv = torch.randn(segments.num_tokens, 3 * 8)
    with patch.object(segments_module, "_RAGGED", float("inf")):
        expected = attended(qkv, Segments(lengths, CPU))
    assert torch.allclose(attended(qkv, segments), expected, atol=1e-5)


def test_nothing_of_one_row_reaches_another_of_its_length_group() -> None:
    segments = Segments([5, 7, 300], CPU)
    qkv = torch.randn(segments.num_tokens, 3 * 8)
    expected = attended(qkv, segments)
    qkv[:5] = float("nan")
    seen = attended(qkv, segments)
    assert seen[:5].isnan().all()
    assert torch.equal(seen[5:], expected[5:])


@given(very_different, st.data())
def test_pieces_of_rows_are_the_groups_tokens_in_order(
    lengths: list[int], data: st.DataObject
) -> None:
    has = [*data.draw(st.lists(st.booleans(), max_size=len(lengths) - 1)), *[True] * 2]
    has = has[: len(lengths)]
    group = RowGroup(Segments(lengths, CPU), has)
    member = [row for row, yes in enumerate(has) if yes]
    assert group.segments.num_tokens == sum(lengths[row] for row in member)
    row_of_piece_token = np.repeat(group.rows, group.segments.lengths)
    assert row_of_piece_token.tolist() == [row for row in member for _ in range(lengths[row])]


def test_long_rows_among_short_ones_are_cut_and_padded_little() -> None:
    segments = Segments([10] * 20 + [300], CPU)
    cut = RowGroup(segments, [True] * 21).segments
    assert cut.num_rows * cut.max_len < 2 * segments.num_tokens
