"""Tables that are damaged, foreign or incomplete: fetched anew once, else refused, never served."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from services.common.errors import FailedPrecondition, InvalidArgument
from services.executor.plot import Manifest, MissPolicy
from tests.executor.plot_stores import ENCODER, opened, refusal, root, wait_for
from tests.executor.plot_trees import Blobs, Part, sha, unigrams, write_version


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
        assert error.message.startswith(f"segment {segment.sha256} of domain '' cannot be read")
        assert "hmi domains update" in error.message
        assert blobs.discarded == [segment.sha256]
        assert not store.is_ready(version)
        assert refusal(store, version) is error  # nobody hammers the store meanwhile
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
