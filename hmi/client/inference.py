"""The client's inference calls: one request, or a stream of items.

Knows `hmi.inference.v1`; does not know how calls are retried.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING

from hmi.client.messages import build
from hmi.client.predictions import Answer, Item, Predictions, text_input
from hmi.client.retry import Deadline
from hmi.client.streaming import PredictStream
from hmi.client.transport import Transport
from hmi.errors import Internal, InvalidArgument
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from hmi.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub


class InferenceCalls:
    """Predictions."""

    _transport: Transport

    @property
    def _inference(self) -> InferenceServiceAsyncStub:
        return InferenceServiceStub(self._transport.channel)

    async def predict(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        pairs: str | Sequence[str] | None = None,
        version: int = 0,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Predictions:
        """Answer texts with one version of one model.

        Args:
            model: The model's name.
            texts: A text, or up to 4,096.
            pairs: The second texts of text pairs, one a text.
            version: 0 lets the model's traffic split choose.
            priority: Within the tenant, higher goes first.
            timeout: Seconds for all tries together; the client's by default.

        Raises:
            InvalidArgument: No text, an empty or over-long one; `field` names it, such as
                `inputs[2].text`.
            NotFound: The tenant has no such model or version.
            FailedPrecondition: The model has no active version, or its weights cannot be loaded.
            ResourceExhausted: A quota is used up, and waiting as told did not help.
            Unavailable: No executor is reachable.
        """
        texts = [texts] if isinstance(texts, str) else texts
        pairs = [pairs] if isinstance(pairs, str) else pairs
        if pairs is not None and len(pairs) != len(texts):
            raise InvalidArgument(
                f"pairs: {len(pairs)} for {len(texts)} texts", field="pairs", reason="PAIR_COUNT"
            )
        seconds: Sequence[str | None] = pairs if pairs is not None else [None] * len(texts)
        request = build(
            pb.PredictRequest,
            model=model,
            inputs=[text_input(text, pair) for text, pair in zip(texts, seconds, strict=True)],
            version=version,
            priority=priority,
        )
        response = await self._transport.unary(self._inference.Predict, request, timeout=timeout)
        answers = Predictions.from_pb(response)
        if len(answers) != len(texts):
            raise Internal(f"{len(answers)} predictions for {len(texts)} texts")
        return answers

    async def stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        max_in_flight: int = 256,
        timeout: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Answer a stream of independent items, each exactly once, in the order they finish.

        An item's error comes as its answer and leaves the others alone. A broken connection is
        taken up again with the items that were not answered.

        Args:
            items: Read as fast as answers are taken; a plain iterable must not block.
            max_in_flight: Most items sent and not yet taken.
            timeout: Seconds for the whole stream; without end by default.

        Raises:
            HmiError: The stream itself failed; what was answered stands.
        """
        stream = PredictStream(
            self._transport,
            self._inference,
            items,
            max_in_flight=max_in_flight,
            deadline=Deadline(timeout),
        )
        async for answer in stream.answers():
            yield answer
