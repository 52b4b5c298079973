"""What happens around every RPC: a request id, errors as statuses, a count, and the service token.

Knows the four kinds of RPC; does not know any service.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from services.common import metrics
from services.common.drain import drain
from services.common.errors import HmiError, Internal, Unauthenticated
from services.common.logs import request_id_var

logger = logging.getLogger(__name__)

_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

# The four kinds share no useful type: grpc's own stubs describe the synchronous handlers only.
Handler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
Context = grpc.aio.ServicerContext[Any, Any]


def request_id() -> str:
    """The current request's id, or an empty string outside one."""
    return request_id_var.get()


async def _abort(context: Context, error: HmiError) -> None:
    """End the call with the error's status and details. Always raises."""
    status = rpc_status.to_status(error.to_status())
    await context.abort(status.code, status.details, status.trailing_metadata)


class RequestInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call a request id, turns HmiError into its status, and counts.

    An error that is no HmiError is logged with the request id and answered "internal error": its
    text may hold what the caller must not see.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        given_id = str(metadata.get("x-request-id", ""))
        wrap = _Wrapper(self._service, method, given_id, is_streamed=handler.request_streaming)
        serializers = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                wrap.unary(handler.unary_unary), *serializers
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                wrap.unary(handler.stream_unary), *serializers
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                wrap.stream(handler.unary_stream), *serializers
            )
        return grpc.stream_stream_rpc_method_handler(
            wrap.stream(handler.stream_stream), *serializers
        )


class _Wrapper:
    """One call's surroundings, the same for unary and streamed responses."""

    def __init__(self, service: str, method: str, given_id: str, *, is_streamed: bool) -> None:
        self._service = service
        self._method = method
        self._given_id = given_id
        self._is_streamed = is_streamed

    def unary(
        self, call: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def run(request: Any, context: Context) -> Any:
            started = self._begin()
            try:
                response = await call(request, context)
            except BaseException as error:
                await self._fail(error, request, context, started)
                raise
            self._count("OK", started)
            await self._drain(request)
            return response

        return run

    def stream(
        self, call: Callable[[Any, Context], AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def run(request: Any, context: Context) -> AsyncIterator[Any]:
            started = self._begin()
            try:
                async for response in call(request, context):
                    yield response
            except BaseException as error:
                await self._fail(error, request, context, started)
                raise
            self._count("OK", started)
            await self._drain(request)

        return run

    def _begin(self) -> float:
        request_id_var.set(self._given_id[:128] or uuid.uuid4().hex)
        return time.perf_counter()

    async def _drain(self, request: Any) -> None:
        """Let the caller come to rest before its status is sent; a single request has been read."""
        if self._is_streamed:
            await drain(request)

    async def _fail(
        self, error: BaseException, request: Any, context: Context, started: float
    ) -> None:
        if isinstance(error, HmiError):
            self._count(error.code.name, started)
            await self._drain(request)
            await _abort(context, error)
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._count("CANCELLED", started)
            return
        if isinstance(error, grpc.aio.AbortError):
            code = context.code()
            self._count(getattr(code, "name", str(code)), started)
            return
        self._count("INTERNAL", started)
        logger.error("unexpected error", exc_info=error, extra={"method": self._method})
        await self._drain(request)
        await _abort(context, Internal(f"internal error, request id {request_id()}"))

    def _count(self, code: str, started: float) -> None:
        metrics.requests_total.labels(self._service, self._method, code).inc()
        seconds = time.perf_counter() - started
        metrics.request_seconds.labels(self._service, self._method).observe(seconds)


class ServiceTokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the service token, but for health and reflection.

    Put it after RequestInterceptor, which answers its error.
    """

    def __init__(self, token: str) -> None:
        if not token:
            raise ValueError("HMI_SERVICE_TOKEN must be set: services know each other by it")
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_SERVICES):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        given = metadata.get("authorization", "")
        given_bytes = given if isinstance(given, bytes) else given.encode()
        if hmac.compare_digest(given_bytes, self._expected):
            return handler
        return _refusing(handler)


def _refusing(handler: Handler) -> Handler:
    """A handler of the same kind that answers UNAUTHENTICATED."""
    error = Unauthenticated(
        "this service answers only the suite's own services: send the service token",
        reason="NO_SERVICE_TOKEN",
    )

    async def refuse_unary(_request: Any, _context: Context) -> Any:
        raise error

    async def refuse_stream(_request: Any, _context: Context) -> AsyncIterator[Any]:
        raise error
        yield

    serializers = (handler.request_deserializer, handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(refuse_unary, *serializers)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(refuse_unary, *serializers)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(refuse_stream, *serializers)
    return grpc.stream_stream_rpc_method_handler(refuse_stream, *serializers)
