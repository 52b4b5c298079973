"""hmi.inference.v1.InferenceService: Predict and StreamPredict.

Knows the messages; the predictor knows the rest.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio

from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1.inference_pb2_grpc import InferenceServiceServicer
from services.common.errors import HmiError, Internal
from services.common.interceptor import request_id
from services.gateway.auth import Authenticator
from services.gateway.domain import Caller, Text
from services.gateway.predictor import Predictor, Question
from services.gateway.streams import ItemStream

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def text_from_pb(message: pb.TextInput, field: str) -> Text:
    """An input, and the path by which errors name it."""
    pair = message.text_pair if message.HasField("text_pair") else None
    return Text(message.text, pair, f"{field}.text", f"{field}.text_pair")


class InferenceServicer(InferenceServiceServicer):
    """Answers texts."""

    def __init__(self, auth: Authenticator, predictor: Predictor, stream_window: int) -> None:
        self._auth = auth
        self._predictor = predictor
        self._stream_window = stream_window

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        caller = self._auth.tenant_caller(context.invocation_metadata())
        texts = [text_from_pb(entry, f"inputs[{i}]") for i, entry in enumerate(request.inputs)]
        question = Question(
            tenant=caller.tenant,
            model=request.model,
            version=request.version,
            priority=request.priority,
            texts=texts,
            timeout_s=context.time_remaining(),
        )
        version, predictions = await self._predictor.answer(question)
        response = pb.PredictResponse(provenance=version.provenance, predictions=predictions)
        self._predictor.bill(caller.tenant, predictions)
        return response

    async def StreamPredict(
        self, request_iterator: AsyncIterator[pb.StreamPredictRequest], context: Context
    ) -> AsyncIterator[pb.StreamPredictResponse]:
        caller = self._auth.tenant_caller(context.invocation_metadata())

        async def answer(request: pb.StreamPredictRequest) -> pb.StreamPredictResponse:
            error: HmiError
            try:
                return await self._answer_item(caller, request, context.time_remaining())
            except HmiError as failure:
                error = failure
            except Exception:
                # One item's defect is its own: the stream's other items go on.
                logger.exception("an item of a stream failed unexpectedly")
                error = Internal(f"internal error, request id {request_id()}")
            return pb.StreamPredictResponse(item_id=request.item_id, error=error.to_status())

        stream = ItemStream(answer, self._stream_window)
        async with aclosing(stream.run(request_iterator)) as responses:
            async for response in responses:
                if response.HasField("prediction"):
                    self._predictor.bill(caller.tenant, [response.prediction])
                yield response

    async def _answer_item(
        self, caller: Caller, request: pb.StreamPredictRequest, timeout_s: float | None
    ) -> pb.StreamPredictResponse:
        self._auth.check_still_valid(caller)
        question = Question(
            tenant=caller.tenant,
            model=request.model,
            version=request.version,
            priority=request.priority,
            texts=[text_from_pb(request.input, "input")],
            timeout_s=timeout_s,
        )
        version, predictions = await self._predictor.answer(question)
        return pb.StreamPredictResponse(
            item_id=request.item_id, provenance=version.provenance, prediction=predictions[0]
        )
