"""Executors and the store die under load; nothing is lost, answered or billed twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

from hmi.admin.v1 import tenant_pb2
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from hmi.executor.v1 import executor_pb2
from hmi.inference.v1 import inference_pb2 as pb
from services.common.errors import STOPPING, Unavailable
from tests.fakes import FakeExecutor, fake_logits
from tests.gateway.conftest import Stack, Store, open_stack, unique, until
from tests.gateway.test_predict import expect, request


async def used(stack: Stack, tenant: str) -> tenant_pb2.GetUsageResponse:
    return await TenantServiceStub(stack.channel).GetUsage(
        tenant_pb2.GetUsageRequest(tenant=tenant), metadata=stack.metadata(tenant)
    )


def answer_ten(executor: FakeExecutor, submit: executor_pb2.Submit) -> np.ndarray:
    """Ten answers, then none."""
    executor.num_answered += 1
    if executor.num_answered == 10:
        executor.gate.clear()
    return fake_logits(submit.key.digest, list(submit.token_ids), 3)


async def test_a_lost_executors_items_are_answered_once_by_another(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")
    doomed = await stack.executor(answer=lambda submit: answer_ten(doomed, submit))
    doomed.gate.clear()
    requests = [
        pb.StreamPredictRequest(item_id=i, model="topic", input=pb.TextInput(text="the cat"))
        for i in range(100)
    ]
    call = stack.inference.StreamPredict(iter(requests), metadata=stack.metadata(tenant))
    await until(lambda: len(doomed.submits) == 100)
    answered = []
    doomed.gate.set()
    async for response in call:
        answered.append(response.item_id)
        if len(answered) == 10:
            await doomed.kill()
            heir = await stack.executor()
    assert sorted(answered) == list(range(100))
    assert len(heir.submits) == 90
    again = {s.item_id for s in heir.submits}
    assert again < {s.item_id for s in doomed.submits}
    usage = await used(stack, tenant)
    assert (usage.num_items, usage.num_tokens, usage.num_errors) == (100, 400, 0)


async def test_a_call_that_ends_half_answered_is_not_billed_and_its_retry_once(
    shared_store: Store, tmp_path: Path
) -> None:
    async with open_stack(shared_store, tmp_path, max_attempts=1) as stack:
        tenant = unique("acme")
        await stack.add_tenant(tenant)
        await stack.add_model(tenant, "topic")
        doomed = await stack.executor(answer=lambda submit: answer_ten(doomed, submit))
        asked = request("topic", *["the cat"] * 100)
        call = asyncio.ensure_future(
            stack.inference.Predict(asked, metadata=stack.metadata(tenant))
        )
        await until(lambda: doomed.num_answered == 10)
        await doomed.kill()
        await expect(grpc.StatusCode.UNAVAILABLE, call)
        usage = await used(stack, tenant)
        assert (usage.num_items, usage.num_tokens) == (0, 0)
        await stack.executor()
        answer = await stack.inference.Predict(asked, metadata=stack.metadata(tenant))
        assert len(answer.predictions) == 100
        usage = await used(stack, tenant)
        assert (usage.num_items, usage.num_tokens) == (100, 400)


async def test_an_executor_that_stops_fails_nothing_that_another_can_run(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")
    stopping = await stack.executor()
    stopping.gate.clear()
    requests = [
        pb.StreamPredictRequest(item_id=i, model="topic", input=pb.TextInput(text="the cat"))
        for i in range(20)
    ]
    call = stack.inference.StreamPredict(iter(requests), metadata=stack.metadata(tenant))
    await until(lambda: len(stopping.submits) == 20)
    heir = await stack.executor()
    stopping.error = Unavailable("the executor is stopping", reason=STOPPING)
    stopping.gate.set()
    answers = [response async for response in call]
    assert sorted(answer.item_id for answer in answers) == list(range(20))
    assert not any(answer.HasField("error") for answer in answers)
    assert len(heir.submits) == 20
    usage = await used(stack, tenant)
    assert (usage.num_items, usage.num_tokens, usage.num_errors) == (20, 80, 0)


async def test_items_wait_for_the_same_executor_to_come_back(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")
    first = await stack.executor()
    first.gate.clear()
    call = asyncio.ensure_future(
        stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant))
    )
    await until(lambda: len(first.submits) == 1)
    await first.kill()
    second = FakeExecutor()
    await second.start(first.port)
    stack.exits.push_async_callback(second.kill)
    assert len((await call).predictions) == 1
    assert second.submits[0].item_id == first.submits[0].item_id


async def test_without_an_executor_calls_end_unavailable(
    shared_store: Store, tmp_path: Path
) -> None:
    async with open_stack(shared_store, tmp_path, executor_wait_s=0.1) as stack:
        base = unique("lonely")
        stack.base_digest = await stack.add_base(base)
        tenant = unique("acme")
        await stack.add_tenant(tenant)
        await stack.add_model(tenant, "topic", base=base)
        error = await expect(
            grpc.StatusCode.UNAVAILABLE,
            stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant)),
        )
        assert error.details()


async def test_what_waits_when_the_last_executor_is_lost_ends_unavailable(
    shared_store: Store, tmp_path: Path
) -> None:
    """Of bases that had nothing in flight, too."""
    async with open_stack(shared_store, tmp_path, executor_wait_s=0.1) as stack:
        tenant = unique("acme")
        await stack.add_tenant(tenant)
        digests = []
        for name in ("one", "two"):
            base = unique(name)
            stack.base_digest = await stack.add_base(base)
            digests.append(stack.base_digest)
            await stack.add_model(tenant, name, base=base)
        executor = FakeExecutor(window=4)
        executor.gate.clear()
        await executor.start()
        await stack.register(executor, *digests)
        metadata = stack.metadata(tenant)
        running = stack.inference.Predict(request("one", "cat sat"), metadata=metadata)
        await until(lambda: len(executor.submits) == 1)
        waiting = stack.inference.Predict(request("two", "cat sat"), metadata=metadata, timeout=20)
        await until(lambda: len(stack.app.router.queue) == 1)
        await executor.kill()
        await expect(grpc.StatusCode.UNAVAILABLE, waiting)
        await expect(grpc.StatusCode.UNAVAILABLE, running)


async def test_predictions_outlive_the_store_until_keys_are_too_old(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.start()
    try:
        async with open_stack(store, tmp_path / "cache", max_staleness_s=3.0) as stack:
            await stack.add_tenant("acme")
            await stack.add_model("acme", "topic")
            await stack.executor()
            ask = request("topic", "the cat")
            await stack.inference.Predict(ask, metadata=stack.metadata("acme"))
            killed_at = time.monotonic()
            store.stop(at_once=True)
            await stack.inference.Predict(ask, metadata=stack.metadata("acme"))
            await expect(
                grpc.StatusCode.UNAVAILABLE,
                TenantServiceStub(stack.channel).DeleteTenant(
                    tenant_pb2.DeleteTenantRequest(tenant="acme"), metadata=stack.as_admin
                ),
            )
            await until(lambda: stack.app.mirror.staleness_s > 3.0)
            assert time.monotonic() - killed_at < 10
            await expect(
                grpc.StatusCode.UNAVAILABLE,
                stack.inference.Predict(ask, metadata=stack.metadata("acme")),
            )
            store.start()
            await until(lambda: stack.app.mirror.staleness_s < 3.0)
            await stack.inference.Predict(ask, metadata=stack.metadata("acme"))
    finally:
        store.stop()
