"""Predict and StreamPredict through a real socket, the real store and a scripted executor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from hmi.admin.v1 import model_pb2, resources_pb2, tenant_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from hmi.executor.v1 import executor_pb2
from hmi.inference.v1 import inference_pb2 as pb
from services.common.errors import InvalidArgument, ResourceExhausted, from_rpc_error
from tests.fakes import FakeExecutor, fake_logits
from tests.gateway.conftest import Stack, unique, until


def request(model: str, *texts: str, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(
        model=model, inputs=[pb.TextInput(text=text) for text in texts], **fields
    )


async def test_one_text_is_answered_with_its_provenance(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    model = await stack.add_model(tenant, "topic")
    executor = await stack.executor()
    answer = await stack.inference.Predict(
        request("topic", "the cat sat"), metadata=stack.metadata(tenant)
    )
    logits = fake_logits(model.digest, [2, 4, 5, 6, 3], 3).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    classification = answer.predictions[0].classification
    assert [s.score for s in classification.scores] == pytest.approx(expected, abs=1e-6)
    assert classification.label == "abc"[int(expected.argmax())]
    assert answer.predictions[0].num_tokens == 5
    assert answer.provenance.digest == model.digest
    assert (answer.provenance.tenant, answer.provenance.version) == (tenant, 1)
    assert executor.submits[0].key.digest == model.digest


async def test_a_stream_answers_each_item_once(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")
    await stack.executor()
    requests = [
        pb.StreamPredictRequest(item_id=i, model="topic", input=pb.TextInput(text="the cat"))
        for i in range(200)
    ]
    call = stack.inference.StreamPredict(iter(requests), metadata=stack.metadata(tenant))
    answered = [response.item_id async for response in call]
    assert sorted(answered) == list(range(200))


async def expect(code: grpc.StatusCode, call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def violation(error: grpc.aio.AioRpcError) -> str:
    """Path of the field that was wrong."""
    failure = from_rpc_error(error)
    assert isinstance(failure, InvalidArgument)
    return failure.field


@pytest.fixture
async def served(stack: Stack) -> tuple[Stack, str, FakeExecutor]:
    """A tenant with a classifier, and an executor."""
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")
    return stack, tenant, await stack.executor()


Served = tuple[Stack, str, FakeExecutor]


async def test_a_thousand_texts_keep_their_order(served: Served) -> None:
    stack, tenant, executor = served
    texts = [f"{'the ' * (i % 20)}cat" for i in range(1000)]
    answer = await stack.inference.Predict(
        request("topic", *texts), metadata=stack.metadata(tenant)
    )
    assert [p.num_tokens for p in answer.predictions] == [i % 20 + 3 for i in range(1000)]
    assert len({s.item_id for s in executor.submits}) == 1000


async def test_text_pairs_mark_the_first_segment(served: Served) -> None:
    stack, tenant, executor = served
    pair = pb.PredictRequest(model="topic", inputs=[pb.TextInput(text="the cat", text_pair="sat")])
    await stack.inference.Predict(pair, metadata=stack.metadata(tenant))
    assert list(executor.submits[0].token_ids) == [2, 4, 5, 3, 6, 3]
    assert executor.submits[0].num_first_segment_tokens == 4


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request("topic"), "inputs"),
        (request("topic", "cat", ""), "inputs[1].text"),
        (request("topic", "cat", "cat " * 63), "inputs[1].text"),
        (request("topic", "x" * (32 * 64 + 1)), "inputs[0].text"),
        (request("topic", *["cat"] * 4097), "inputs"),
        (request("tags", "cat"), "inputs[0].text_pair"),
    ],
    ids=["no input", "empty", "too many tokens", "too long at all", "too many inputs", "pair"],
)
async def test_bad_input_is_refused_by_name(
    served: Served, bad: pb.PredictRequest, field: str
) -> None:
    stack, tenant, executor = served
    if bad.model == "tags":
        task = resources_pb2.TASK_TOKEN_CLASSIFICATION
        await stack.add_model(tenant, "tags", task=task, labels=("O", "X"))
        bad = pb.PredictRequest(model="tags", inputs=[pb.TextInput(text="a", text_pair="b")])
    call = stack.inference.Predict(bad, metadata=stack.metadata(tenant))
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, call)
    assert violation(error) == field
    assert executor.submits == []


async def test_models_of_others_and_unknown_ones_are_not_found_alike(served: Served) -> None:
    stack, tenant, _ = served
    stranger = unique("stranger")
    await stack.add_tenant(stranger)
    theirs = stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(stranger))
    unknown = stack.inference.Predict(request("no-such", "cat"), metadata=stack.metadata(tenant))
    versions = stack.inference.Predict(
        request("topic", "cat", version=7), metadata=stack.metadata(tenant)
    )
    for call in (theirs, unknown, versions):
        await expect(grpc.StatusCode.NOT_FOUND, call)


async def test_credentials_decide(served: Served) -> None:
    stack, tenant, _ = served
    ask = request("topic", "cat")
    unauthenticated, denied = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
    await expect(unauthenticated, stack.inference.Predict(ask))
    wrong = (("authorization", "Bearer hmi_wrong"),)
    await expect(unauthenticated, stack.inference.Predict(ask, metadata=wrong))
    for_other = (*stack.metadata(tenant), ("x-hmi-tenant", "another"))
    await expect(denied, stack.inference.Predict(ask, metadata=for_other))
    for_itself = (*stack.metadata(tenant), ("x-hmi-tenant", tenant))
    assert (await stack.inference.Predict(ask, metadata=for_itself)).provenance.tenant == tenant
    await expect(
        grpc.StatusCode.INVALID_ARGUMENT, stack.inference.Predict(ask, metadata=stack.as_admin)
    )
    acting = (*stack.as_admin, ("x-hmi-tenant", tenant))
    answer = await stack.inference.Predict(ask, metadata=acting)
    assert answer.provenance.tenant == tenant


async def test_a_revoked_key_ends_calls_and_open_streams(served: Served) -> None:
    stack, tenant, _ = served
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def items() -> AsyncIterator[pb.StreamPredictRequest]:
        while True:
            number = await queue.get()
            text = pb.TextInput(text="cat")
            yield pb.StreamPredictRequest(item_id=number, model="topic", input=text)

    call = stack.inference.StreamPredict(items(), metadata=stack.metadata(tenant))
    queue.put_nowait(1)
    assert (await call.read()).HasField("prediction")
    tenants = TenantServiceStub(stack.channel)
    await tenants.RevokeApiKey(
        tenant_pb2.RevokeApiKeyRequest(key_id=f"key-{tenant}"), metadata=stack.as_admin
    )
    queue.put_nowait(2)
    assert (await call.read()).error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    call.cancel()
    await expect(
        grpc.StatusCode.UNAUTHENTICATED,
        stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant)),
    )


async def test_an_item_id_in_flight_twice_ends_the_stream(served: Served) -> None:
    stack, tenant, executor = served
    executor.gate.clear()
    item = pb.StreamPredictRequest(item_id=1, model="topic", input=pb.TextInput(text="cat"))
    call = stack.inference.StreamPredict(iter([item, item]), metadata=stack.metadata(tenant))
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, call.read())
    assert violation(error) == "item_id"


async def test_an_error_of_one_item_leaves_the_stream_open(served: Served) -> None:
    stack, tenant, _ = served
    good = pb.StreamPredictRequest(item_id=1, model="topic", input=pb.TextInput(text="cat"))
    bad = pb.StreamPredictRequest(item_id=2, model="topic", input=pb.TextInput(text=""))
    other = pb.StreamPredictRequest(item_id=3, model="none", input=pb.TextInput(text="cat"))
    call = stack.inference.StreamPredict(iter([bad, other, good]), metadata=stack.metadata(tenant))
    outcomes = {r.item_id: r async for r in call}
    assert outcomes[1].HasField("prediction")
    assert outcomes[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert outcomes[3].error.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_traffic_split_is_exact_over_a_hundred_requests(served: Served) -> None:
    stack, tenant, _ = served
    await stack.add_model(tenant, "topic")
    split = [
        resources_pb2.TrafficTarget(version=1, percent=90),
        resources_pb2.TrafficTarget(version=2, percent=10),
    ]
    await ModelServiceStub(stack.channel).SetTraffic(
        model_pb2.SetTrafficRequest(model="topic", traffic=split), metadata=stack.metadata(tenant)
    )
    versions = []
    for _ in range(100):
        answer = await stack.inference.Predict(
            request("topic", "cat"), metadata=stack.metadata(tenant)
        )
        versions.append(answer.provenance.version)
    assert versions.count(2) == 10
    pinned = await stack.inference.Predict(
        request("topic", "cat", version=2), metadata=stack.metadata(tenant)
    )
    assert pinned.provenance.version == 2


async def test_items_leave_the_queue_only_against_credit_and_by_priority(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    model = await stack.add_model(tenant, "topic")
    executor = await stack.executor(window=4)  # one item of three tokens
    executor.gate.clear()

    async def ask(priority: int) -> None:
        await stack.inference.Predict(
            request("topic", "cat", priority=priority), metadata=stack.metadata(tenant)
        )

    first = asyncio.create_task(ask(0))
    await until(lambda: len(executor.submits) == 1)
    assert executor.hints == [model.digest]
    low = asyncio.create_task(ask(1))
    await until(lambda: len(stack.app.router.queue) == 1)
    high = asyncio.create_task(ask(2))
    await until(lambda: len(stack.app.router.queue) == 2)
    executor.gate.set()
    await high
    assert not low.done() or len(executor.submits) == 3
    await asyncio.gather(first, low)
    assert [s.item_id for s in executor.submits] == [1, 3, 2]


async def test_a_cancelled_call_leaves_the_queue_and_the_executor(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")
    executor = await stack.executor(window=4)
    executor.gate.clear()
    calls = [
        stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant))
        for _ in range(2)
    ]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await until(lambda: len(executor.submits) == 1 and len(stack.app.router.queue) == 1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: len(stack.app.router.queue) == 0 and len(executor.cancels) == 1)


async def test_a_deadline_ends_a_waiting_call(served: Served) -> None:
    stack, tenant, executor = served
    executor.gate.clear()
    call = stack.inference.Predict(
        request("topic", "cat"), metadata=stack.metadata(tenant), timeout=0.2
    )
    await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call)
    assert 0 < executor.submits[0].timeout_ms <= 200
    await until(lambda: len(executor.cancels) == 1)


async def test_a_request_of_more_tokens_than_its_quota_holds_is_refused_and_owes_little(
    stack: Stack,
) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant, tokens_per_second=500)
    await stack.add_model(tenant, "topic")
    await stack.executor()
    metadata = stack.metadata(tenant)
    texts = ["the cat sat on the mat"] * 1_000  # of eight tokens, in pieces of 256
    error = await expect(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        stack.inference.Predict(request("topic", *texts), metadata=metadata),
    )
    failure = from_rpc_error(error)
    assert isinstance(failure, ResourceExhausted)
    assert failure.reason == "REQUEST_TOO_LARGE"
    assert failure.subject == f"tenant:{tenant}/tokens_per_second"
    assert failure.retry_after_s is None
    answer = await stack.inference.Predict(request("topic", *texts[:100]), metadata=metadata)
    assert len(answer.predictions) == 100


async def test_quotas_and_full_queues_say_when_to_retry(stack: Stack) -> None:
    tenant = unique("small")
    await stack.add_tenant(tenant, requests_per_second=0.5, max_queued_items=1)
    await stack.add_model(tenant, "topic")
    executor = await stack.executor(window=4)
    executor.gate.clear()

    def ask() -> Any:
        return stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant))

    running = asyncio.ensure_future(ask())
    await until(lambda: len(executor.submits) == 1)
    error = await expect(grpc.StatusCode.RESOURCE_EXHAUSTED, ask())
    failure = from_rpc_error(error)
    assert isinstance(failure, ResourceExhausted)
    assert failure.subject == f"tenant:{tenant}/requests_per_second"
    assert failure.retry_after_s is not None
    executor.gate.set()
    await running


async def test_token_tags_come_back_as_spans_of_the_text(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    labels = ("O", "B-PER", "I-PER")
    task = resources_pb2.TASK_TOKEN_CLASSIFICATION
    await stack.add_model(tenant, "tags", task=task, labels=labels)

    def answer(submit: executor_pb2.Submit) -> np.ndarray:
        best = {12: 1, 13: 2}  # anna, smith
        return np.eye(3)[[best.get(token, 0) for token in submit.token_ids]] * 10

    await stack.executor(answer=answer)
    reply = await stack.inference.Predict(
        request("tags", "the  cat Anna Smith sat"), metadata=stack.metadata(tenant)
    )
    [span] = reply.predictions[0].token_tags.spans
    assert (span.label, span.start, span.end, span.text) == ("PER", 9, 19, "Anna Smith")
