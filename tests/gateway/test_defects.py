"""What one caller, or one defect of ours, may not do to everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tokenizers import Tokenizer

from hmi.admin.v1 import model_pb2, tenant_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from hmi.executor.v1 import executor_pb2
from hmi.inference.v1 import inference_pb2 as pb
from hmi.knowledge.v1 import knowledge_pb2
from services.common.errors import Unavailable
from services.gateway import tokenization
from services.gateway.domain import Text
from services.gateway.link import Link
from services.gateway.mirror import Mirror
from services.gateway.predictor import Predictor, Question
from services.gateway.store_calls import ask
from services.gateway.tokenization import Tokenization
from tests.fakes import fake_logits
from tests.gateway.blobs import lora_blob
from tests.gateway.conftest import Stack, tokenizer_json, unique, until
from tests.gateway.test_faults import used
from tests.gateway.test_predict import Served, expect, request, served, violation
from tests.gateway.test_uploads import bulk_parts, header

__all__ = ["served"]

SIXTY_DAYS_S = 60 * 86_400.0


async def test_a_deadline_of_months_is_cut_and_answered(served: Served) -> None:
    stack, tenant, executor = served
    call = stack.inference.Predict(
        request("topic", "cat"), metadata=stack.metadata(tenant), timeout=SIXTY_DAYS_S
    )
    assert len((await call).predictions) == 1
    assert executor.submits[0].timeout_ms <= 3_600_000


async def test_an_item_that_fits_no_message_fails_alone_and_leaks_no_credit(
    served: Served,
) -> None:
    stack, tenant, _ = served
    vars(stack.settings)["max_deadline_s"] = 1e9  # past the bound of the setting itself
    asks = [
        stack.inference.Predict(
            request("topic", "cat"), metadata=stack.metadata(tenant), timeout=timeout_s
        )
        for timeout_s in (SIXTY_DAYS_S, 20.0)
    ]
    await expect(grpc.StatusCode.INTERNAL, asks[0])
    assert len((await asks[1]).predictions) == 1
    [(link, _)] = [entry for entry in stack.app.router._links.values() if entry[0].is_up]
    await until(lambda: (link.credit, link.load) == (4096, 0))


async def test_a_link_that_fails_unexpectedly_connects_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, tenant, _ = served
    finish, failures = Link._finish, iter([ValueError("a defect")])

    def failing_once(self: Link, event: executor_pb2.Event) -> None:
        for failure in failures:
            raise failure
        finish(self, event)

    monkeypatch.setattr(Link, "_finish", failing_once)
    ask = stack.inference.Predict(
        request("topic", "cat"), metadata=stack.metadata(tenant), timeout=20
    )
    assert len((await ask).predictions) == 1


async def test_the_mirror_goes_on_after_an_unexpected_error(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, failures = Mirror.apply, iter([ValueError("a defect")])

    def failing_once(self: Mirror, response: knowledge_pb2.WatchResponse) -> None:
        for failure in failures:
            raise failure
        apply(self, response)

    monkeypatch.setattr(Mirror, "apply", failing_once)
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    assert next(failures, None) is None
    assert tenant in stack.app.mirror.state.tenants


async def test_a_call_that_fails_bills_nothing(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    await stack.add_model(tenant, "topic")

    def answer(submit: executor_pb2.Submit) -> np.ndarray:
        executor.num_answered += 1
        if executor.num_answered == 2:
            executor.gate.clear()
        return fake_logits(submit.key.digest, list(submit.token_ids), 3)

    executor = await stack.executor(answer=answer)
    call = stack.inference.Predict(
        request("topic", "cat", "dog", "mat"), metadata=stack.metadata(tenant), timeout=1.0
    )
    await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call)
    assert executor.num_answered >= 1
    usage = await used(stack, tenant)
    assert (usage.num_items, usage.num_tokens) == (0, 0)


async def test_a_defect_at_one_item_leaves_the_stream_open(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, tenant, _ = served
    answer = Predictor.answer

    async def failing(self: Predictor, question: Question) -> Any:
        if question.texts[0].text == "dog":
            raise ValueError("a defect")
        return await answer(self, question)

    monkeypatch.setattr(Predictor, "answer", failing)

    def items() -> Iterator[pb.StreamPredictRequest]:
        for number, text in enumerate(("dog", "cat")):
            inputs = pb.TextInput(text=text)
            yield pb.StreamPredictRequest(item_id=number, model="topic", input=inputs)

    call = stack.inference.StreamPredict(items(), metadata=stack.metadata(tenant))
    outcomes = {response.item_id: response async for response in call}
    assert outcomes[0].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert outcomes[1].HasField("prediction")


async def revoke(stack: Stack, tenant: str) -> None:
    await TenantServiceStub(stack.channel).RevokeApiKey(
        tenant_pb2.RevokeApiKeyRequest(key_id=f"key-{tenant}"), metadata=stack.as_admin
    )


async def test_a_revoked_key_uploads_nothing_more_through_an_open_stream(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    models: Any = ModelServiceStub(stack.channel)
    blobs = [lora_blob(seed) for seed in (700, 701)]
    single = models.UploadVersion(metadata=stack.metadata(tenant))
    await single.write(model_pb2.UploadVersionRequest(header=header(blobs[0], model="single")))
    bulk = models.UploadVersions(metadata=stack.metadata(tenant))
    for part in bulk_parts([(header(blobs[0], model="first"), blobs[0])]):
        await bulk.write(part)
    assert (await bulk.read()).version.model == "first"
    await bulk.write(model_pb2.UploadVersionsRequest(header=header(blobs[1], model="second")))
    await revoke(stack, tenant)
    await single.write(model_pb2.UploadVersionRequest(chunk=blobs[0]))
    await single.done_writing()
    await expect(grpc.StatusCode.UNAUTHENTICATED, single)
    await bulk.write(model_pb2.UploadVersionsRequest(chunk=blobs[1]))
    await expect(grpc.StatusCode.UNAUTHENTICATED, bulk.read())
    assert set(stack.app.mirror.state.models[tenant]) == {"first"}


async def test_a_name_of_many_bytes_is_not_found_like_any_other(served: Served) -> None:
    stack, tenant, _ = served
    for name in ("x" * 20_000, "é" * 20_000, "../up", ""):
        call = stack.inference.Predict(request(name, "cat"), metadata=stack.metadata(tenant))
        await expect(grpc.StatusCode.NOT_FOUND, call)


async def test_an_answer_of_too_many_scores_is_refused_at_the_door(stack: Stack) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant)
    labels = tuple(f"label-{i}" for i in range(1000))
    await stack.add_model(tenant, "wide", labels=labels)
    executor = await stack.executor()
    call = stack.inference.Predict(
        request("wide", *["cat"] * 401), metadata=stack.metadata(tenant), timeout=20
    )
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, call)
    assert violation(error) == "inputs"
    assert executor.submits == []


async def test_a_full_queue_costs_no_tokenization(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = unique("acme")
    await stack.add_tenant(tenant, max_queued_items=1)
    await stack.add_model(tenant, "topic")
    executor = await stack.executor(window=4)
    executor.gate.clear()
    running = []
    for num_queued in range(2):  # one fills the window, the next the queue
        call = stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant))
        running.append(asyncio.ensure_future(call))
        await until(
            lambda expected=num_queued: (
                len(executor.submits) == 1 and len(stack.app.router.queue) == expected
            )
        )

    async def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized")

    monkeypatch.setattr(Tokenization, "encode", encode)
    call = stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(tenant))
    await expect(grpc.StatusCode.RESOURCE_EXHAUSTED, call)
    executor.gate.set()
    await asyncio.gather(*running)


async def test_a_text_that_breaks_the_tokenizer_fails_its_own_job_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenization, "_input", input_of)
    tokenizer = tokenization.without_limits(Tokenizer.from_str(tokenizer_json().decode()))
    with ThreadPoolExecutor(1) as pool:
        batcher = tokenization._Batcher(tokenizer, pool, 1)
        jobs = [
            batcher.encode("acme", [Text(text, None, "text", "pair")], False)
            for text in ("the", "cat", "broken", "sat")
        ]
        answers: list[Any] = await asyncio.gather(*jobs, return_exceptions=True)
    assert [answer[0].ids for i, answer in enumerate(answers) if i != 2] == [
        [2, 4, 3], [2, 5, 3], [2, 6, 3],
    ]  # fmt: skip
    assert isinstance(answers[2], TypeError)


def input_of(text: Text) -> Any:
    return None if text.text == "broken" else text.text


async def test_a_silent_store_holds_nobody_forever() -> None:
    with pytest.raises(Unavailable) as caught:
        await ask(asyncio.Event().wait(), timeout_s=0.02)
    assert caught.value.reason == "STORE_SILENT"
