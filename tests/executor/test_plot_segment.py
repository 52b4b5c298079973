"""Segments and manifests: written, read back, and refused when they are not what they say."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from services.common import array_blob
from services.common.errors import DataLoss, InvalidArgument
from services.executor.miss_policy import MissPolicy
from services.executor.plot import (
    Manifest,
    NodeRef,
    Segment,
    SegmentKind,
    SegmentRef,
    write_segments,
)
from tests.executor.plot_trees import BASE, ROW_SHAPE, Blobs, rows_of, sha

KIND = SegmentKind(BASE, sha("encoder"), "centre", 1)
KEYS = np.arange(1, 41, dtype=np.int64) << 21


def rows(keys: np.ndarray) -> np.ndarray:
    return rows_of(keys, 5)


def write(directory: Path, **options: object) -> list[SegmentRef]:
    written = write_segments(directory, KEYS, KIND, rows, row_shape=ROW_SHAPE, **options)
    return [segment.ref for segment in written]


def test_segments_follow_one_another_within_their_size_and_hold_every_row(tmp_path: Path) -> None:
    refs = write(tmp_path, max_bytes=4096 + 16 * 16, chunk_rows=3)
    assert [ref.num_entries for ref in refs] == [16, 16, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ref.sha256 for ref in refs)
    segments = [Segment.open(tmp_path / ref.sha256, ref, KIND) for ref in refs]
    assert np.concatenate([segment.keys for segment in segments]).tolist() == KEYS.tolist()
    values = np.concatenate([segment.values for segment in segments if segment.values is not None])
    assert (values == rows(KEYS)).all()
    for ref in refs:
        assert (tmp_path / ref.sha256).stat().st_size == ref.size_bytes <= 4096 + 16 * 16


def test_a_segment_is_safetensors_and_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    (ref,) = write(tmp_path)
    assert write(tmp_path, chunk_rows=7) == [ref]
    with safe_open(tmp_path / ref.sha256, "np") as file:
        assert file.get_tensor("keys").tolist() == KEYS.tolist()
        assert (file.get_tensor("values") == rows(KEYS)).all()
        assert json.loads(file.metadata()["hmi"])["format"] == "hmi.plot_segment/1"


def test_a_removal_holds_keys_only(tmp_path: Path) -> None:
    (written,) = write_segments(tmp_path, KEYS, KIND, None, row_shape=ROW_SHAPE)
    segment = Segment.open(written.path, written.ref, KIND)
    assert segment.ref.is_removal
    assert segment.values is None
    assert segment.keys.tolist() == KEYS.tolist()


def test_no_rows_are_no_segments(tmp_path: Path) -> None:
    assert not list(write_segments(tmp_path, KEYS[:0], KIND, rows, row_shape=ROW_SHAPE))


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        (KEYS[::-1], rows),
        (KEYS[[0, 0]], rows),
        (KEYS + 1, rows),  # bigrams
        (KEYS, lambda keys: np.full((len(keys), *ROW_SHAPE), np.nan, np.float16)),
        (KEYS, lambda keys: np.full((len(keys), *ROW_SHAPE), 1e6, np.float32)),  # beyond fp16
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_must_not_be_served_is_not_written(
    tmp_path: Path, keys: np.ndarray, made: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(InvalidArgument):
        list(write_segments(tmp_path, keys, KIND, made, row_shape=ROW_SHAPE))
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    def broken(keys: np.ndarray) -> np.ndarray:
        if keys[0] != KEYS[0]:
            raise OSError(28, "No space left on device")
        return rows(keys)

    with pytest.raises(OSError, match="No space"):
        list(write_segments(tmp_path, KEYS, KIND, broken, row_shape=ROW_SHAPE, chunk_rows=8))
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(data=st.data())
def test_a_file_changed_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("segments")
    (ref,) = write(directory)
    path = directory / ref.sha256
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(DataLoss):
        Segment.open(path, ref, KIND)


@pytest.mark.parametrize("size", [0, 1, 500, -1, 10_000])
def test_a_truncated_or_longer_file_is_refused(tmp_path: Path, size: int) -> None:
    (ref,) = write(tmp_path)
    path = tmp_path / ref.sha256
    os.truncate(path, size if size >= 0 else ref.size_bytes - 1)
    with pytest.raises(DataLoss):
        Segment.open(path, ref, KIND)


@pytest.mark.parametrize(
    "changed",
    [
        {"base_digest": sha("another")},
        {"encoder_sha256": sha("another")},
        {"form": "sum"},
        {"order": 2},
    ],
)
def test_a_foreign_segment_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    (ref,) = write(tmp_path)
    with pytest.raises(InvalidArgument):
        Segment.open(tmp_path / ref.sha256, ref, replace(KIND, **changed))


META = {
    "format": "hmi.plot_segment/1",
    "base_digest": BASE,
    "encoder_sha256": sha("encoder"),
    "form": "centre",
    "order": 1,
}
VALUES = rows(KEYS)


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": KEYS},
        {"keys": KEYS, "values": VALUES, "more": KEYS},
        {"keys": KEYS[::-1], "values": VALUES},
        {"keys": KEYS + 1, "values": VALUES},
        {"keys": KEYS[1:], "values": VALUES},
        {"keys": KEYS, "values": VALUES[1:]},
        {"keys": KEYS, "values": VALUES.astype(np.float32)},
        {"keys": KEYS, "values": VALUES[:, 0]},
        {"keys": KEYS.astype(np.float32), "values": VALUES},
    ],
)
def test_a_segment_whose_content_contradicts_it_is_refused_though_its_digest_is_right(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    blobs = Blobs(tmp_path)
    data = array_blob.to_bytes(arrays, META)
    ref = SegmentRef(blobs.put(data), 1, len(KEYS), len(data), is_removal=False)
    with pytest.raises(InvalidArgument):
        Segment.open(blobs.path(ref.sha256), ref, KIND)


SEGMENT = SegmentRef(sha("segment"), 3, 10, 100, is_removal=False)
MANIFEST = Manifest(
    BASE,
    MissPolicy.COMPUTE,
    (
        NodeRef("", 4, sha("encoder"), (SEGMENT, replace(SEGMENT, is_removal=True))),
        NodeRef("news", 0, sha("encoder"), ()),
        NodeRef("news/sport", 1, sha("adapted"), (SEGMENT,)),
    ),
)


def test_a_manifest_returns_from_its_canonical_bytes() -> None:
    blob = MANIFEST.to_bytes()
    assert Manifest.from_bytes(blob) == MANIFEST
    content = json.loads(blob)
    assert blob == json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert (content["format"], content["miss_policy"]) == ("hmi.plot_manifest/1", "compute")
    assert MANIFEST.path == "news/sport"
    assert MANIFEST.encoder_sha256 == sha("adapted")


def spoiled() -> dict[str, tuple[str, object]]:
    """By the field that must be named: what to put where."""
    node = json.loads(MANIFEST.to_bytes())["nodes"][0]
    return {
        "manifest": ("more", 1),
        "manifest.format": ("format", "hmi.plot_manifest/2"),
        "manifest.miss_policy": ("miss_policy", "guess"),
        "manifest.base_digest": ("base_digest", "x"),
        "manifest.nodes": ("nodes", []),
        "manifest.nodes[0].path": ("nodes", [{**node, "path": "news"}]),
        "manifest.nodes[1].path": ("nodes", [node, {**node, "path": "news/sport"}]),
        "manifest.nodes[0].table_number": ("nodes", [{**node, "table_number": -1}]),
        "manifest.nodes[0].encoder_sha256": ("nodes", [{**node, "encoder_sha256": 3}]),
        "manifest.nodes[0].segments": ("nodes", [{**node, "segments": {}}]),
        "manifest.nodes[0].segments[0]": ("nodes", [{**node, "segments": [3]}]),
        "manifest.nodes[0].segments[0].order": (
            "nodes", [{**node, "segments": [{**node["segments"][0], "order": 4}]}],
        ),
        "manifest.nodes[0].segments[0].is_removal": (
            "nodes", [{**node, "segments": [{**node["segments"][0], "is_removal": 0}]}],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("field", spoiled())
def test_a_manifest_with_a_defect_is_refused_by_its_field(field: str) -> None:
    name, value = spoiled()[field]
    content = {**json.loads(MANIFEST.to_bytes()), name: value}
    with pytest.raises(InvalidArgument) as caught:
        Manifest.from_bytes(json.dumps(content).encode())
    assert caught.value.field == field


@pytest.mark.parametrize("blob", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_no_manifest(blob: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Manifest.from_bytes(blob)


def test_rows_are_written_in_bounded_memory(tmp_path: Path) -> None:
    keys = np.arange(1, 20_001, dtype=np.int64) << 21
    chunk = np.ones((1000, 1, 400), np.float16)

    def make(keys: np.ndarray) -> np.ndarray:
        return chunk[: len(keys)]

    tracemalloc.start()
    (written,) = write_segments(tmp_path, keys, KIND, make, row_shape=(1, 400), chunk_rows=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written.ref.size_bytes > 16_000_000
    assert peak < 4_000_000
