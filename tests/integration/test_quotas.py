"""A tenant's quota over two gateways and one store, all of them processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from hmi.client import Quota
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.integration.cluster import Cluster, Process, running
from tests.tiny import write_lora

pytestmark = pytest.mark.timeout(120)

BURST_S = 1.0
# Low enough that a machine with much else to do could serve several times as many.
RATE = 20.0
# What gateways may hold of it at a time (a tenth of a second each), and a request on its way.
SLICES = 2 * (RATE / 10 + 1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    env = {"HMI_QUOTA_BURST_S": str(BURST_S)}
    directory = tmp_path_factory.mktemp("cluster")
    with running(directory, num_executors=1, gateway_env=env) as cluster:
        yield cluster


def _new_tenant(cluster: Cluster, name: str, tmp_path: Path, **quota: float) -> str:
    """The key of a tenant with one model."""
    key = cluster.tenant(name, Quota(**quota))  # type: ignore[arg-type]
    cluster.push(key, "m", write_lora(tmp_path / "m", 1))
    return key


def _flood(gateway: Process, key: str, for_s: float) -> tuple[int, float, float]:
    """Asks as fast as it is answered: how many requests were admitted, the time it took, and the
    longest that one did. Refusals must be the quota's."""
    end = time.monotonic() + for_s
    metadata = (("authorization", f"Bearer {key}"),)
    request = pb.PredictRequest(model="m", inputs=[pb.TextInput(text="the cat")])
    num, longest_s, began = 0, 0.0, time.monotonic()
    with grpc.insecure_channel(gateway.address) as channel:
        predict = InferenceServiceStub(channel).Predict
        while (asked := time.monotonic()) < end:
            try:
                predict(request, timeout=20, metadata=metadata)
                num += 1
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                time.sleep(0.005)
            longest_s = max(longest_s, time.monotonic() - asked)
    return num, time.monotonic() - began, longest_s


def _flood_all(cluster: Cluster, key: str, for_s: float) -> tuple[list[int], float, float]:
    """Through every gateway at once: admitted by gateway, the time, and the longest request."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda gateway: _flood(gateway, key, for_s), cluster.gateways))
    return [one[0] for one in done], max(one[1] for one in done), max(one[2] for one in done)


def test_a_tenant_at_one_of_two_gateways_gets_its_whole_quota(
    cluster: Cluster, tmp_path: Path
) -> None:
    key = _new_tenant(cluster, "one", tmp_path, requests_per_second=RATE)
    num, took_s, _ = _flood(cluster.gateways[0], key, 2.0)
    assert num <= RATE * (took_s + BURST_S) + 1
    # With equal parts for both it would be half of that.
    assert num >= 0.7 * RATE * (2.0 + BURST_S)


def test_two_gateways_together_stay_within_the_quota(cluster: Cluster, tmp_path: Path) -> None:
    key = _new_tenant(cluster, "both", tmp_path, requests_per_second=RATE)
    admitted, took_s, _ = _flood_all(cluster, key, 2.0)
    assert sum(admitted) <= RATE * (took_s + BURST_S) + SLICES
    assert sum(admitted) >= 0.7 * RATE * (2.0 + BURST_S)
    assert min(admitted) > 0


def test_tokens_are_one_quota_over_two_gateways(cluster: Cluster, tmp_path: Path) -> None:
    tokens = 4  # of each text, with both special ones
    key = _new_tenant(cluster, "tokens", tmp_path, tokens_per_second=RATE * tokens)
    admitted, took_s, _ = _flood_all(cluster, key, 2.0)
    assert sum(admitted) <= RATE * (took_s + BURST_S) + SLICES
    assert sum(admitted) >= 0.7 * RATE * (2.0 + BURST_S)


def test_a_silent_store_leaves_each_gateway_its_share(cluster: Cluster, tmp_path: Path) -> None:
    """The store is connected and does not answer: known tenants are served all the same."""
    key = _new_tenant(cluster, "silent", tmp_path, requests_per_second=RATE)
    cluster.store.send(signal.SIGSTOP)
    try:
        admitted, took_s, longest_s = _flood_all(cluster, key, 3.0)
    finally:
        cluster.store.send(signal.SIGCONT)
    assert longest_s < 2.0  # one answer of the store is waited for, half a second
    for num in admitted:
        assert RATE / 2 * 2.0 <= num <= RATE / 2 * (took_s + BURST_S) + 1
    time.sleep(BURST_S + 1.5)  # the store is found again, and the budget full
    num, took_s, _ = _flood(cluster.gateways[1], key, 2.0)
    assert num >= 0.7 * RATE * (2.0 + BURST_S)
