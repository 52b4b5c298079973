"""Store and executors die at every named step of an update, while tenants ask: each answer is what
its provenance says, the update ends, nothing that was acknowledged is lost, no segment is left."""

from __future__ import annotations

import hashlib
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from hmi.errors import FailedPrecondition, ResourceExhausted
from services.executor.failpoints import POINTS as EXECUTOR_POINTS
from services.knowledge_store.failpoints import POINTS as STORE_POINTS
from tests.integration.cluster import Process, until
from tests.integration.domain_stack import (
    BASE,
    COMPUTING,
    DOMAIN_OF,
    FOLLOWING,
    MODELS,
    Stack,
    grown,
)
from tests.integration.table_load import DAMAGED
from tests.integration.table_oracle import is_segment, segments_of

pytestmark = pytest.mark.timeout(150)  # processes start anew in each step, on a machine in use

UPDATE_POINTS = EXECUTOR_POINTS[EXECUTOR_POINTS.index("work_leased") :]
STEPS = [("knowledge_store", point) for point in STORE_POINTS]
STEPS += [("executor", point) for point in UPDATE_POINTS]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with grown(tmp_path_factory.mktemp("faults"), STORE_POINTS, UPDATE_POINTS) as stack:
        yield stack


@pytest.mark.parametrize(("service", "point"), STEPS, ids=[point for _, point in STEPS])
def test_killed_at_a_step_of_an_update_under_load_it_ends_committed_and_all_answers_are_right(
    stack: Stack, service: str, point: str
) -> None:
    before = stack.settle()
    for name, path in FOLLOWING.items():
        until(partial(stack.load.has_answered, name, before[path].table_version), 30)
    lives = {process: process.pid for process in stack.processes(service)}
    stack.switch(point).touch()
    pushing = threading.Thread(target=stack.push, args=(stack.num_updates,))
    pushing.start()
    stack.update()
    until(lambda: not stack.switch(point).exists(), 60)
    until(lambda: any(process.pid not in (None, pid) for process, pid in lives.items()))
    for process in lives:
        process.child.wait_ready(60)
    after = stack.settle()
    pushing.join()
    for path in DOMAIN_OF.values():
        assert after[path].table_number == before[path].table_number + 1
        assert after[path].table_version != before[path].table_version
    now = {name: stack.following(name, after[path]) for name, path in FOLLOWING.items()}
    stack.load.check()
    for name, path in FOLLOWING.items():
        assert before[path].table_version in stack.load.versions_seen[name]
        # Computed rows are the same in whatever table.
        could_be_told_apart = stack.load.differs(now[name], before[path].table_version)
        assert could_be_told_apart == (path != COMPUTING)


def test_a_segment_damaged_on_the_stores_disk_is_never_served_and_comes_back(stack: Stack) -> None:
    """After the steps: tables that versions pin need segments of long ago."""
    pinned = stack.tenants["acme"].list_versions("still")[0].table_version
    damaged = sorted(segments_of(stack.blob(pinned)))[0]
    path = stack.directory / "data" / "blobs" / damaged[:2] / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x10]))
    stack.cluster.executors[0].send(signal.SIGKILL)
    shutil.rmtree(stack.directory / "cache-executor-0" / "blobs")
    until(lambda: path.read_bytes() == whole if path.exists() else False, 60, every_s=0.1)
    until(lambda: _is_answered(stack, "acme", "still"), every_s=0.5)
    until(lambda: stack.cluster.store.metric("hmi_domain_repairs_total") == 1)
    assert not list((stack.directory / "data" / "damaged").iterdir())
    assert {error.reason for error in stack.load.refusals} <= {DAMAGED}
    stack.load.check()


def _is_answered(stack: Stack, tenant: str, model: str) -> bool:
    with suppress(FailedPrecondition):
        stack.tenants[tenant].predict(model, "the cat", timeout=30)
        stack.load.num_answers[tenant] += 1
        return True
    return False


def _disk_of(process: Process, *, is_full: bool) -> None:
    """No file of the process may grow beyond a byte, or any may again."""
    assert process.pid is not None
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 if is_full else most, most))


def _versions(stack: Stack) -> dict[str, str]:
    return {path: stack.domains()[path].table_version for path in DOMAIN_OF.values()}


def test_an_update_that_the_stores_full_disk_cannot_hold_is_refused(stack: Stack) -> None:
    stack.settle()
    before = _versions(stack)
    _disk_of(stack.cluster.store, is_full=True)
    with pytest.raises(ResourceExhausted, match="disk"):
        stack.update()
    assert _versions(stack) == before
    assert not any(node.is_updating for node in stack.domains().values())
    _disk_of(stack.cluster.store, is_full=False)
    stack.load.check()


def test_rows_that_an_executors_full_disk_cannot_hold_are_computed_once_there_is_room(
    stack: Stack,
) -> None:
    stack.settle()
    before = _versions(stack)
    for executor in stack.cluster.executors:
        _disk_of(executor, is_full=True)
    stack.update()
    failures = "hmi_work_failures_total"
    until(lambda: any(each.metric(failures) for each in stack.cluster.executors), 60)
    assert _versions(stack) == before
    for executor in stack.cluster.executors:
        _disk_of(executor, is_full=False)
    stack.settle()
    assert not set(_versions(stack).values()) & set(before.values())
    stack.load.check()


def test_in_the_end_nothing_acknowledged_is_lost(stack: Stack) -> None:
    """After the steps: it stops the load."""
    stack.load.stop()
    stack.load.check()
    num_seen = {name: len(seen) for name, seen in stack.load.versions_seen.items()}
    for pinned, following in MODELS.values():
        assert num_seen[pinned] == 1
        assert num_seen[following] > len(STEPS)
    versions = {v.number: v for v in stack.tenants["acme"].list_versions("pushed")}
    assert len(stack.pushed) == len(STEPS)
    assert {v.number: v for v in stack.pushed} == versions
    for tenant, num_answers in stack.load.num_answers.items():
        # More where a text of a call was answered while another's table could not be read.
        assert stack.tenants[tenant].get_usage(tenant).num_items >= num_answers
    domains = stack.domains()
    assert {path: domains[path].alpha for path in DOMAIN_OF.values()} == stack.alphas()


def test_an_update_that_no_executor_works_on_is_rolled_back_and_the_next_is_committed(
    stack: Stack,
) -> None:
    """After the load: without executors nobody is answered."""
    before = stack.settle()
    environment = stack.cluster.store.child.spec.env
    assert isinstance(environment, dict)
    environment["HMI_DOMAIN_UPDATE_TIMEOUT_S"] = "1"
    for executor in stack.cluster.executors:
        executor.send(signal.SIGSTOP)
    stack.update()
    assert any(node.is_updating for node in stack.domains().values())
    stack.cluster.store.send(signal.SIGKILL)
    until(lambda: stack.cluster.store.metric("hmi_domain_updates_total") == 1, every_s=0.1)
    after = stack.settle()
    assert {path: node.table_version for path, node in after.items()} == {
        path: node.table_version for path, node in before.items()
    }
    for executor in stack.cluster.executors:
        executor.send(signal.SIGCONT)
    for name, path in FOLLOWING.items():
        stack.following(name, before[path])
    assert stack.admin.update_domains(BASE).update_id
    assert stack.settle()[COMPUTING].table_version != before[COMPUTING].table_version


def test_in_the_end_no_segment_is_left_that_nothing_names(stack: Stack) -> None:
    """Placed last: it ends the executors, whose leases hold tables they have loaded."""
    for executor in stack.cluster.executors:
        executor.kill_for_good()
    named = _named_segments(stack)
    # As of an executor that died after it had written one.
    orphan = stack.write_blob(stack.blob(min(named))[:-2] + b"\x00\x3c")
    assert orphan not in named
    blobs = stack.directory / "data" / "blobs"

    def held() -> set[str]:
        found = set()
        for path in blobs.glob("*/*"):
            with suppress(FileNotFoundError):  # collected meanwhile
                data = path.read_bytes()
                assert hashlib.sha256(data).hexdigest() == path.name
                found |= {path.name} if is_segment(data) else set()
        return found

    until(lambda: held() == named, every_s=0.2)


def _named_segments(stack: Stack) -> set[str]:
    """Of every domain's rows now and before its last commit, and of versions that pin a table."""
    manifests = {node.table_version for node in stack.settle().values()}
    for client in stack.tenants.values():
        for model in client.list_models():
            pinned = [v for v in client.list_versions(model.name) if not v.follow]
            manifests |= {version.table_version for version in pinned}
    for path in stack.domains():
        with suppress(FailedPrecondition):  # it never had other rows
            stack.admin.roll_back_domain(BASE, path)
        manifests |= {node.table_version for node in stack.domains().values()}
    return {sha256 for name in manifests for sha256 in segments_of(stack.blob(name))}
