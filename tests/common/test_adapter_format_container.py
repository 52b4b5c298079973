"""A container that lies is refused before anything is read by what it claims."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.adapter_format import Limits, admit
from services.common.adapter_format.container import open_container
from services.common.errors import HmiError, InvalidArgument
from tests.common.blobs import BASE, blob, raw

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [pickle.dumps({"a": 1}), pickle.dumps([1], protocol=2), zipped()],
    ids=["pickle", "old pickle", "zip"],  # not the bytes: a zip holds the time of day
)
def test_a_pickle_is_refused_and_never_read(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        admit(data, BASE)
    assert caught.value.reason == "PICKLE_REFUSED"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        b"\xff" * 64,
        raw(b"[]"),
        raw(b"{"),
        raw(b'{"a":1,"a":2}'),
        raw(b'{"a":NaN}'),
        raw(b'{"a":' + b"[" * 100_000),
        raw({"__metadata__": {"a": 1}}),
        raw({"a": F32}),
        raw({"a": F32}, b"12345"),
        raw({"a": {**F32, "data_offsets": [4, 0]}}, b"1234"),
        raw({"a": {**F32, "data_offsets": [-4, 0]}}, b"1234"),
        raw({"a": {**F32, "data_offsets": [0, 4.0]}}, b"1234"),
        raw({"a": {**F32, "shape": [True]}}, b"1234"),
        raw({"a": {**F32, "shape": [1 << 62, 1 << 62]}}, b"1234"),
        raw({"a": {**F32, "shape": [1] * 9}}, b"1234"),
        raw({"a": {**F32, "dtype": "I64"}}, b"1234"),
        raw({"a": {**F32, "more": 1}}, b"1234"),
        raw({"a": F32, "b": F32}, b"1234"),
        raw({"a": {**F32, "data_offsets": [4, 8]}}, b"12345678"),
        raw({"a" * 600: F32}, b"1234"),
    ],
    ids=range(22),
)
def test_a_header_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        open_container(data, Limits())


def test_no_description_means_no_version() -> None:
    with pytest.raises(InvalidArgument) as caught:
        admit(raw({"a": F32}, b"1234"), BASE)
    assert caught.value.field == "blob.__metadata__.hmi"


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 3), max_size=3),
        max_size=6,
    )
)
def test_what_the_library_writes_is_read_back(shapes: dict[str, list[int]]) -> None:
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    opened = open_container(safetensors.numpy.save(tensors), Limits())
    assert set(opened) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(opened.array(name), tensor)


@settings(max_examples=300)
@given(st.data())
def test_spoiled_bytes_are_admitted_whole_or_refused_by_field(data: Any) -> None:
    spoiled = bytearray(blob())
    for _ in range(data.draw(st.integers(1, 4))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 8))
    try:
        version = admit(bytes(spoiled[: len(spoiled) - cut]), BASE)
    except HmiError:
        return
    assert len(version.labels) == version.head.num_outputs
