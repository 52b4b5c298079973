"""Scratch directories: gone with their block, and with the next process's if theirs was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.executor.scratch import scratch_directory


def test_a_directory_goes_with_its_block_whatever_happens(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_directory(tmp_path / "work") as directory:
            (directory / "file").write_bytes(b"data")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list((tmp_path / "work").iterdir())


def test_what_a_killed_process_left_is_deleted_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    left = tmp_path / "scratch-left"
    left.mkdir()
    (left / "file").write_bytes(b"data")
    with scratch_directory(tmp_path) as first, scratch_directory(tmp_path) as second:
        assert not left.exists()
        assert first.exists()
        assert first != second
