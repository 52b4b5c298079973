"""Predict and StreamPredict through a real socket, the real store and a scripted executor."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from hmi.inference.v1 import inference_pb2 as pb
from tests.fakes import fake_logits
from tests.gateway.conftest import Stack


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


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
