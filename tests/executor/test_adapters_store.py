"""The store: any registered adapter comes on demand, none is ever another's, faults stay small."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers

from services.common.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    HmiError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from services.executor.adapters import failures, store
from services.executor.adapters.arena import IntArray
from tests.executor.test_adapters_batching import STEM, lora_blob
from tests.executor.tiny_tasks import (
    CONFIGS,
    HIDDEN,
    LAYERS,
    Key,
    Stack,
    make_blob,
    save_base,
    stack,
    texts,
)

ROWS_EACH = LAYERS * 2 * (4 + 4) + 3 + 1  # A and B of query and value, head and its bias
ROW_BYTES = 4 * HIDDEN


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def room_for(count: int) -> int:
    """device_bytes for so many adapters, and the row of zeros."""
    return (count * ROWS_EACH + 1) * ROW_BYTES


def wait_until_ready(made: Stack, key: Key) -> None:
    while not made.store.is_ready(key):
        time.sleep(0.001)


def test_registered_may_far_exceed_resident_under_concurrent_use(base: Path) -> None:
    (text,) = texts([6])
    with stack(base, device_bytes=room_for(8), host_bytes=200_000) as made:
        keys = [made.push(lora_blob(i), f"m{i}") for i in range(40)]
        wanted = {}
        for key in keys:
            slot = made.acquire(key)
            wanted[key] = made.run([slot], [text])[0]
            made.store.release(slot)
        failures: list[str] = []

        def use(seed: int) -> None:
            chooser = random.Random(seed)
            for _ in range(25):
                batch = chooser.sample(keys, chooser.randint(1, 2))
                made.store.prefetch(chooser.choice(keys))
                if chooser.random() < 0.2:
                    made.store.forget(chooser.choice(keys))
                held = [made.acquire(key) for key in batch]
                for key, out in zip(batch, made.run(held, [text] * len(held)), strict=True):
                    if not torch.allclose(out, wanted[key], atol=1e-5):
                        failures.append(f"{key.model} got another's answer")
                for slot in held:
                    made.store.release(slot)

        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(made.store.resident_digests()) <= 8


def test_an_adapter_in_use_is_not_evicted_and_others_wait_for_room(base: Path) -> None:
    with stack(base, device_bytes=room_for(2)) as made:
        keys = [made.push(lora_blob(i), f"m{i}") for i in range(3)]
        first, second = (made.acquire(key) for key in keys[:2])
        assert made.store.acquire(keys[2]) is None
        time.sleep(0.1)
        assert made.store.acquire(keys[2]) is None
        assert made.store.is_ready(keys[0])
        made.store.release(second)
        assert made.acquire(keys[2]).key == keys[2]
        assert made.store.is_ready(keys[0])
        assert not made.store.is_ready(keys[1])
        made.store.release(first)


def test_the_one_used_often_stays_when_one_must_go(base: Path) -> None:
    with stack(base, device_bytes=room_for(2)) as made:
        often, seldom, new = (made.push(lora_blob(i), f"m{i}") for i in range(3))
        for _ in range(5):
            made.store.release(made.acquire(often))
        made.store.release(made.acquire(seldom))
        made.store.release(made.acquire(new))
        assert made.store.is_ready(often)
        assert not made.store.is_ready(seldom)


def test_a_hint_does_not_evict_what_is_used(base: Path) -> None:
    with stack(base, device_bytes=room_for(1)) as made:
        used, hinted = (made.push(lora_blob(i), f"m{i}") for i in range(2))
        for _ in range(3):
            made.store.release(made.acquire(used))
        made.store.prefetch(hinted)
        while hinted.digest not in made.store.held_digests():
            time.sleep(0.001)
        time.sleep(0.1)
        assert made.store.is_ready(used)
        made.store.release(made.acquire(hinted))


def test_a_pinned_adapter_stays_and_leaves_when_unpinned(base: Path) -> None:
    with stack(base, device_bytes=room_for(2)) as made:
        pinned, *others = (made.push(lora_blob(i), f"m{i}") for i in range(4))
        made.store.pin(frozenset({pinned}))
        wait_until_ready(made, pinned)
        for key in others:
            made.store.release(made.acquire(key))
        assert made.store.is_ready(pinned)
        made.store.pin(frozenset())
        for _ in range(2):
            for key in others:
                made.store.release(made.acquire(key))
        while made.store.is_ready(pinned):  # until the claim of the pin has lapsed
            for key in others:
                made.store.release(made.acquire(key))


def test_pins_leave_half_of_the_device_to_others(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stack(base, device_bytes=room_for(4)) as made:
        pins = [made.push(lora_blob(i), f"pinned{i}") for i in range(8)]
        others = [made.push(lora_blob(i + 8), f"m{i}") for i in range(8)]
        made.store.pin(pins)
        for key in pins:
            made.store.release(made.acquire(key))
        for _ in range(3):
            for key in others:
                made.store.release(made.acquire(key))
        assert sum(made.store.is_ready(key) for key in pins) == 2
        assert "a pin is ignored" in caplog.text


def test_an_adapter_that_pins_leave_no_room_for_is_refused_and_blocks_nobody(base: Path) -> None:
    with stack(base, device_bytes=room_for(4)) as made:
        pins = [made.push(lora_blob(i), f"pinned{i}") for i in range(2)]
        made.store.pin(pins)
        for key in pins:
            wait_until_ready(made, key)
        large = made.push(lora_blob(9, rank=10), "large")
        with pytest.raises(Unavailable, match="pinned"):
            made.acquire(large)
        made.store.release(made.acquire(made.push(lora_blob(2), "small")))
        made.store.pin(())
        assert made.acquire(large)


def test_a_claim_without_room_does_not_stop_later_loads_for_ever(base: Path) -> None:
    with stack(base, device_bytes=room_for(3)) as made:
        held = made.acquire(made.push(lora_blob(0), "held"))
        large = made.push(lora_blob(1, rank=10), "large")
        assert made.store.acquire(large) is None
        for i in range(40):  # more than may go by without a rest
            made.store.release(made.acquire(made.push(lora_blob(i + 2), f"m{i}")))
        assert not made.store.is_ready(large)
        made.store.release(held)
        assert made.acquire(large)


def test_an_adapter_larger_than_the_device_is_refused_alone(base: Path) -> None:
    with stack(base, device_bytes=room_for(1)) as made:
        small = made.push(lora_blob(0), "small")
        large = made.push(lora_blob(1, rank=32), "large")
        with pytest.raises(ResourceExhausted):
            made.acquire(large)
        assert made.acquire(small)


def test_a_head_on_a_pooler_that_the_checkpoint_lacks_is_refused_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(CONFIGS["bert"], add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    with stack(tmp_path) as made:
        with pytest.raises(FailedPrecondition, match="pooler"):
            made.acquire(made.push(lora_blob(0), "reads the pooler"))
        assert made.acquire(made.push(make_blob({}, format="none"), "reads tokens"))


def test_a_transient_error_is_told_until_the_load_is_tried_again(base: Path) -> None:
    blobs: dict[str, bytes] = {}
    errors = [Unavailable("the store is away"), OSError("disk")]
    reads: list[str] = []

    def read(digest: str) -> bytes:
        reads.append(digest)
        if errors:
            raise errors.pop(0)
        return blobs[digest]

    with stack(base, read_blob=read) as made:
        key = made.push(lora_blob(0))
        blobs.update(made.blobs)
        for num_reads in (1, 2):
            for _ in range(3):
                with pytest.raises(Unavailable) as caught:
                    made.acquire(key)
                assert len(reads) == num_reads
            time.sleep(caught.value.retry_after_s or 0.0)
        assert made.acquire(key)


def test_a_version_that_can_never_be_served_is_read_once_and_always_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(CONFIGS["bert"], add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    blob = lora_blob(0)
    reads: list[str] = []

    def read(digest: str) -> bytes:
        reads.append(digest)
        return blob

    with stack(tmp_path, read_blob=read) as made:
        key = made.push(blob, "reads the pooler")
        for _ in range(3):
            with pytest.raises(FailedPrecondition) as caught:
                made.acquire(key)
            assert caught.value.reason == "NO_POOLER"
    assert len(reads) == 1


@pytest.mark.parametrize("error", [ResourceExhausted("disk"), DeadlineExceeded("late")])
def test_a_blob_that_cannot_be_read_now_is_unavailable_and_tried_again(
    base: Path, error: HmiError
) -> None:
    """Only a version's own faults are for good, whatever error its bytes fail to come with."""
    blobs: dict[str, bytes] = {}
    errors = [error]

    def read(digest: str) -> bytes:
        if errors:
            raise errors.pop()
        return blobs[digest]

    with stack(base, read_blob=read) as made:
        key = made.push(lora_blob(0))
        blobs.update(made.blobs)
        with pytest.raises(Unavailable) as caught:
            made.acquire(key)
        time.sleep(caught.value.retry_after_s or 0.0)
        assert made.acquire(key)


def test_failing_loads_leave_the_threads_to_others(base: Path) -> None:
    """They take as long as others, have the least in memory, and are asked for again and again."""
    blobs: dict[str, bytes] = {}
    reading: list[str] = []
    most_bad = 0

    def read(digest: str) -> bytes:
        nonlocal most_bad
        reading.append(digest)
        most_bad = max(most_bad, sum(one not in blobs for one in reading))
        time.sleep(0.02)
        reading.remove(digest)
        if digest not in blobs:
            raise Unavailable("away")
        return blobs[digest]

    with stack(base, read_blob=read) as made:
        good = [made.push(lora_blob(i), f"m{i}") for i in range(10)]
        blobs.update(made.blobs)
        bad = [Key("m", number, f"{number:064x}", "failing") for number in range(400)]
        with pytest.raises(Unavailable):
            made.acquire(bad[0])
        most_bad = 0
        for key in bad:
            with contextlib.suppress(Unavailable):
                made.store.acquire(key)
        began = time.monotonic()
        for key in good:
            made.store.release(made.acquire(key))
        assert time.monotonic() - began < 2.0  # 400 on four threads take two seconds and more
        assert most_bad == 1


def test_an_old_error_is_not_told_to_who_asks_later(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for what a hint or a pin could not load."""
    blobs: dict[str, bytes] = {}
    failed = threading.Event()

    def read(digest: str) -> bytes:
        if not failed.is_set():
            failed.set()
            raise Unavailable("the store is away")
        return blobs[digest]

    monkeypatch.setattr(failures, "_ERROR_S", 0.0)
    monkeypatch.setattr(failures, "_BACKOFF_MIN_S", 0.0)
    with stack(base, read_blob=read) as made:
        key = made.push(lora_blob(0))
        blobs.update(made.blobs)
        made.store.prefetch(key)
        assert failed.wait(10)
        while made.store.held_digests():
            time.sleep(0.001)
        made.store.pin([key])  # tries again by itself
        wait_until_ready(made, key)


def test_hints_that_wait_are_bounded_and_stop_no_claim(base: Path) -> None:
    blobs: dict[str, bytes] = {}
    go_on = threading.Event()

    def read(digest: str) -> bytes:
        assert go_on.wait(20)
        return blobs[digest]

    with stack(base, read_blob=read) as made:
        key = made.push(lora_blob(0))
        blobs.update(made.blobs)
        for number in range(2_000):
            made.store.prefetch(Key("m", number, f"{number:064x}", "flood"))
        assert len(made.store.held_digests()) == store._MAX_HINTED
        assert made.store.acquire(key) is None
        assert key.digest in made.store.held_digests()
        with made.store._lock:
            made.store._requests.clear()
        go_on.set()


def test_an_inadmissible_version_is_read_once(base: Path) -> None:
    reads: list[str] = []

    def read(digest: str) -> bytes:
        reads.append(digest)
        return b"not safetensors"

    with stack(base, read_blob=read) as made:
        key = made.push(b"not safetensors")
        for _ in range(3):
            with pytest.raises(InvalidArgument):
                made.acquire(key)
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("changed", "dtype"),
    [
        ({"base_model.model.classifier.bias": torch.full((3,), 3.4e38)}, torch.bfloat16),
        ({f"{STEM}.0.attention.self.query.lora_B.weight": torch.full((HIDDEN, 4), 3e38)},
         torch.float32),
    ],
)  # fmt: skip
def test_numbers_that_overflow_on_the_way_to_the_device_are_refused(
    base: Path, changed: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    with stack(base, dtype=dtype) as made:
        with pytest.raises(InvalidArgument, match="not finite"):
            made.acquire(made.push(lora_blob(0, changed=changed)))
        assert made.acquire(made.push(lora_blob(0), "as it was"))


def test_an_adapter_that_the_device_fails_to_take_comes_later_and_others_come_too(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack(base, device_bytes=room_for(2)) as made:
        write, errors = made.store.arena.write, [torch.OutOfMemoryError("the device is full")]

        def write_or_fail(numbers: IntArray, rows: torch.Tensor) -> None:
            if errors:
                raise errors.pop()
            write(numbers, rows)

        monkeypatch.setattr(made.store.arena, "write", write_or_fail)
        first, second = made.push(lora_blob(0)), made.push(lora_blob(1), "other")
        with pytest.raises(Unavailable, match="could not be loaded") as caught:
            made.acquire(first)
        time.sleep(caught.value.retry_after_s or 0.0)
        held = [made.acquire(second)]
        held.append(made.acquire(first))  # both fit: the failure has kept no rows
        assert made.store.resident_digests() == {first.digest, second.digest}
        for slot in held:
            made.store.release(slot)


def test_bytes_of_another_digest_are_not_served(base: Path) -> None:
    with stack(base, read_blob=lambda digest: lora_blob(1)) as made:
        key = made.push(lora_blob(0))
        with pytest.raises(DataLoss):
            made.acquire(key)


def test_a_slow_load_delays_nobody_else(base: Path) -> None:
    blobs: dict[str, bytes] = {}
    may_go = threading.Event()
    slow_digest = ""

    def read(digest: str) -> bytes:
        if digest == slow_digest:
            may_go.wait(30)
        return blobs[digest]

    with stack(base, read_blob=read) as made:
        slow, fast = made.push(lora_blob(0), "slow"), made.push(lora_blob(1), "fast")
        slow_digest = slow.digest
        blobs.update(made.blobs)
        made.store.prefetch(slow)
        assert made.acquire(fast)
        assert not made.store.is_ready(slow)
        may_go.set()
        assert made.acquire(slow)


def test_every_waiter_is_woken_when_a_load_ends(base: Path) -> None:
    woken = threading.Semaphore(0)
    with stack(base, on_change=woken.release) as made:
        made.store.prefetch(made.push(lora_blob(0)))
        assert woken.acquire(timeout=30)
        made.store.prefetch(made.push(b"no blob", "bad"))
        assert woken.acquire(timeout=30)


def test_a_forgotten_version_leaves_every_tier(base: Path) -> None:
    with stack(base) as made:
        key = made.push(lora_blob(0))
        made.store.release(made.acquire(key))
        made.store.forget(key)
        assert not made.store.is_ready(key)
        assert made.store.held_digests() == frozenset()


def test_released_more_often_than_acquired_is_a_defect(base: Path) -> None:
    with stack(base) as made:
        slot = made.acquire(made.push(lora_blob(0)))
        made.store.release(slot)
        with pytest.raises(ValueError, match="more often"):
            made.store.release(slot)
