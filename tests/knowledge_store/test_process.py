"""The store as a process: its start, its end, its directory, what it imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.knowledge_store.embedded import EmbeddedValkey
from services.knowledge_store.embedded.valkey import socket_path
from services.knowledge_store.lock import locked_directory
from tests.knowledge_store.stores import (
    add_tenant,
    running,
    running_process,
    snapshot,
    start_process,
    until,
)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pid: int) -> None:
    await until(lambda: not is_alive(pid))


async def test_a_second_store_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with running_process(tmp_path) as store:
        second = await start_process(tmp_path)
        output, errors = await second.communicate()
        assert second.returncode not in (0, None)
        assert output == b""
        assert b"in use by another stack" in errors
        await add_tenant(store)


async def test_what_was_acknowledged_is_there_after_a_clean_restart(tmp_path: Path) -> None:
    async with running_process(tmp_path) as store:
        await add_tenant(store)
        before = await snapshot(store)
        os.kill(store.pid, signal.SIGTERM)
        await gone(store.pid)
    async with running_process(tmp_path) as store:
        after = await snapshot(store)
    assert (after.resources, after.revision) == (before.resources, before.revision)


async def test_valkey_ends_with_a_killed_store_and_the_directory_is_free(tmp_path: Path) -> None:
    async with running_process(tmp_path) as store:
        valkey = store.valkey_pid
        os.kill(store.pid, signal.SIGKILL)
        await gone(valkey)
    async with running_process(tmp_path) as store:
        assert (await snapshot(store)).revision == 0


async def test_valkey_ends_with_a_stopped_store(tmp_path: Path) -> None:
    async with running_process(tmp_path) as store:
        valkey = store.valkey_pid
        os.kill(store.pid, signal.SIGTERM)
        await gone(store.pid)
        assert not psutil.pid_exists(valkey)


async def test_a_store_stops_when_the_process_it_belongs_to_is_gone(tmp_path: Path) -> None:
    async with running_process(tmp_path, HMI_PARENT_PID=str(os.getppid())) as store:
        await gone(store.pid)


async def test_a_missing_service_token_is_one_line_and_a_failure(tmp_path: Path) -> None:
    process = await start_process(tmp_path, HMI_SERVICE_TOKEN="")
    output, errors = await process.communicate()
    assert process.returncode not in (0, None)
    assert output == b""
    assert len(errors.splitlines()) == 1
    assert b"HMI_SERVICE_TOKEN" in errors


async def test_a_redis_that_never_answers_ends_the_start(tmp_path: Path) -> None:
    process = await start_process(
        tmp_path, HMI_REDIS_URL="redis://127.0.0.1:1", HMI_STARTUP_TIMEOUT_S="0.3"
    )
    _, errors = await process.communicate()
    assert process.returncode not in (0, None)
    assert b"Redis does not answer" in errors


async def test_a_valkey_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    log = tmp_path / "valkey" / "appendonlydir"
    log.mkdir(parents=True)
    (log / "appendonly.aof.manifest").write_text("not a manifest\n")
    process = await start_process(tmp_path)
    _, errors = await process.communicate()
    assert process.returncode not in (0, None)
    assert b"Valkey ended at start" in errors


async def test_another_redis_is_used_if_one_is_named(tmp_path: Path) -> None:
    with locked_directory(tmp_path / "redis") as lock:
        async with EmbeddedValkey(tmp_path / "redis", lock=lock) as redis:
            async with running(tmp_path / "one", redis_url=redis.url) as store:
                await add_tenant(store)
                assert not (tmp_path / "one" / "valkey").exists()
            async with running(tmp_path / "two", redis_url=redis.url) as store:
                assert (await snapshot(store))["tenant"] == ["acme"]


@pytest.mark.parametrize("length", [10, 150])
async def test_a_data_directory_may_have_a_long_path(tmp_path: Path, length: int) -> None:
    data_dir = tmp_path / ("d" * length)
    socket = socket_path((data_dir / "valkey").resolve())
    assert len(os.fsencode(socket)) < 100
    async with running(data_dir) as store:
        await add_tenant(store)
        assert socket.exists()
    assert not socket.exists()


def test_the_store_imports_no_torch_and_no_other_service() -> None:
    program = (
        "import sys, services.knowledge_store.__main__\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers')"
        " or name.startswith(('services.gateway', 'services.executor'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
