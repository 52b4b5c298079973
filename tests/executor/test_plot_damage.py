"""Tables that are damaged, foreign or incomplete: fetched anew once, else refused, never served."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.common.local_encoder_format import FILE_NAME, Form
from services.executor.construct.local_file import read_local, save_local
from services.executor.miss_policy import MissPolicy
from services.executor.plot import HotTier, Manifest, TableLoader, TableStore
from tests.executor.plot_stores import CPU, ENCODER, opened, refusal, root, wait_for
from tests.executor.plot_trees import (
    TABLE_BASE,
    Blobs,
    FakeEncoder,
    Part,
    sha,
    unigrams,
    write_version,
)


class Refetching(Blobs):
    """Has damaged copies at first; whole ones once they were discarded."""

    def __init__(self, directory: Path, source: Path, num_damaged: int) -> None:
        super().__init__(directory)
        self.source = source
        self.num_damaged = num_damaged
        self.num_fetches = 0

    def path(self, sha256: str) -> Path:
        path = self.directory / sha256
        if not path.exists():
            data = bytearray((self.source / sha256).read_bytes())
            self.num_fetches += 1
            if self.num_fetches <= self.num_damaged:
                data[-1] ^= 1
            path.write_bytes(data)
        return path

    def discard(self, sha256: str) -> None:
        super().discard(sha256)
        (self.directory / sha256).unlink(missing_ok=True)


def copies(tmp_path: Path, num_damaged: int) -> tuple[str, Refetching]:
    (tmp_path / "source").mkdir()
    (tmp_path / "cache").mkdir()
    version = write_version(Blobs(tmp_path / "source"), [root()])
    return version, Refetching(tmp_path / "cache", tmp_path / "source", num_damaged)


def test_a_damaged_blob_is_fetched_anew_once(tmp_path: Path) -> None:
    version, blobs = copies(tmp_path, num_damaged=1)
    with opened(blobs) as store:
        table = wait_for(store, version)
        assert table.find(np.array([1 << 21])).results.tolist() == [1]
    assert blobs.discarded == [version]


def test_what_stays_damaged_is_refused_and_never_served(tmp_path: Path) -> None:
    version, blobs = copies(tmp_path, num_damaged=1000)
    manifest = blobs.source / version
    (blobs.directory / version).write_bytes(manifest.read_bytes())
    (segment,) = Manifest.from_bytes(manifest.read_bytes()).segments
    with opened(blobs) as store:
        error = refusal(store, version)
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "BLOB_DAMAGED"
        told = f"segment {segment.sha256} of the root domain cannot be read"
        assert error.message.startswith(told)
        assert "hmi domains update" in error.message
        assert blobs.discarded == [segment.sha256]
        assert not store.is_ready(version)
        assert str(refusal(store, version)) == str(error)  # nobody hammers the store meanwhile
        assert blobs.num_fetches == 2


def test_tables_that_cannot_answer_are_refused(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    lacking = write_version(blobs, [(ENCODER, [unigrams(), Part(frozenset([3 << 21]), None)])])
    good = Manifest.from_bytes(blobs.path(write_version(blobs, [root()])).read_bytes())
    foreign = blobs.put(Manifest(sha("other"), MissPolicy.BACKOFF, good.nodes).to_bytes())
    garbage = blobs.put(b"{}")
    with opened(blobs) as store:
        for version, error, reason in (
            (lacking, FailedPrecondition, "UNIGRAMS_MISSING"),
            (foreign, FailedPrecondition, "TABLE_OF_ANOTHER_BASE"),
            (garbage, InvalidArgument, "INVALID_ARGUMENT"),
        ):
            refused = refusal(store, version)
            assert (type(refused), refused.reason) == (error, reason)
            assert version not in store.held_blobs()


def test_a_failure_told_again_and_again_gathers_nothing(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    garbage = blobs.put(b"{}")
    with opened(blobs) as store:
        errors = [refusal(store, garbage) for _ in range(50)]
    assert len({id(error) for error in errors}) == 50
    lengths = [len(traceback.extract_tb(error.__traceback__)) for error in errors]
    assert lengths == lengths[:1] * 50
    assert {str(error) for error in errors} == {str(errors[0])}
    assert all(error.__cause__ is None for error in errors)


def test_wrong_blobs_are_tried_again_after_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs(tmp_path)
    version = write_version(blobs, [root()])

    class Wrong(Blobs):
        is_wrong = True

        def path(self, sha256: str) -> Path:
            if self.is_wrong:
                raise InvalidArgument("blob", "is wrong")
            return super().path(sha256)

    wrong = Wrong(tmp_path)
    with opened(wrong) as store:
        assert isinstance(refusal(store, version), InvalidArgument)
        wrong.is_wrong = False
        assert isinstance(refusal(store, version), InvalidArgument)
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
        assert wait_for(store, version).version == version


def test_an_encoder_that_cannot_be_read_now_is_tried_again_soon(tmp_path: Path) -> None:
    encoder = tmp_path / FILE_NAME

    def load(_: str) -> FakeEncoder:
        read_local(encoder)
        return FakeEncoder(3)

    blobs = Blobs(tmp_path)
    version = write_version(blobs, [(ENCODER, [])], MissPolicy.COMPUTE)
    store = TableStore(
        TableLoader(TABLE_BASE, blobs, load), host_bytes=1 << 20, tier=HotTier(0, CPU)
    )
    try:
        assert isinstance(refusal(store, version), Unavailable)  # evicted, say
        tensors = {"gate.bias": torch.zeros(1)}
        save_local(encoder, tensors, split=1, form=Form.CENTRE, unsplit_digest=sha("base"))
        time.sleep(0.6)
        assert wait_for(store, version).version == version
    finally:
        store.close()
