"""One channel to a gateway: credentials, deadlines, retries, and errors turned into `hmi.errors`.

Knows how calls are made; does not know any RPC.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterable, Awaitable, Callable
from enum import Enum
from typing import Any, TypeVar

import grpc
import grpc.aio

from hmi.client.retry import Deadline, RetryPolicy
from hmi.errors import HmiError, NotFound, Unavailable, from_rpc_error
from services.common.ending import Ending, write_all

Response = TypeVar("Response")

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "hmi-python"),
]


class Repeat(Enum):
    """What it does to send a request twice, when the first answer may have been lost."""

    SAFE = "safe"
    """The second does nothing more than the first, and answers the same."""
    UNSAFE = "unsafe"
    """The second might do it again: never retried."""


class Transport:
    """The way to a gateway, as one credential and for one tenant."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        address: str,
        key: str | None,
        tenant: str | None,
        timeout: float | None,
        retry: RetryPolicy,
    ) -> None:
        self.channel = channel
        self._address = address
        self.retry = retry
        self._key = key
        self._tenant = tenant
        self._timeout = timeout

    @classmethod
    def open(
        cls,
        address: str,
        *,
        key: str | None,
        tenant: str | None,
        timeout: float | None,
        retry: RetryPolicy,
        credentials: grpc.ChannelCredentials | None,
    ) -> Transport:
        """A transport over a channel of its own; nothing is sent yet."""
        if credentials is None:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        return cls(channel, address=address, key=key, tenant=tenant, timeout=timeout, retry=retry)

    def for_tenant(self, tenant: str) -> Transport:
        """The same channel and credential, acting for another tenant."""
        return Transport(
            self.channel,
            address=self._address,
            key=self._key,
            tenant=tenant,
            timeout=self._timeout,
            retry=self.retry,
        )

    def deadline(self, timeout: float | None) -> Deadline:
        """When a call that begins now must be over; the client's timeout if it has none."""
        return Deadline(self._timeout if timeout is None else timeout)

    def metadata(self) -> grpc.aio.Metadata:
        """Credential, tenant and a new request id."""
        pairs = [("x-request-id", uuid.uuid4().hex)]
        if self._key:
            pairs.append(("authorization", f"Bearer {self._key}"))
        if self._tenant:
            pairs.append(("x-hmi-tenant", self._tenant))
        return grpc.aio.Metadata(*pairs)

    async def unary(
        self,
        method: Callable[..., Awaitable[Response]],
        request: object,
        *,
        timeout: float | None = None,
        repeat: Repeat = Repeat.SAFE,
    ) -> Response:
        """The answer to one request.

        Raises:
            HmiError: The last try's error.
        """
        deadline = self.deadline(timeout)
        metadata = self.metadata()
        for attempt in itertools.count(1):
            try:
                return await method(request, timeout=deadline.remaining(), metadata=metadata)
            except grpc.aio.AioRpcError as raw:
                error = from_rpc_error(raw)
            if repeat is Repeat.UNSAFE:
                raise self._explained(error)
            await self.pause(error, attempt, deadline)
        raise AssertionError("unreachable: the loop ends by returning or raising")

    async def delete(
        self, method: Callable[..., Awaitable[object]], request: object, *, timeout: float | None
    ) -> None:
        """Delete something. NOT_FOUND after a try whose answer was lost means that try had done it.

        Raises:
            HmiError: The last try's error.
        """
        deadline = self.deadline(timeout)
        metadata = self.metadata()
        for attempt in itertools.count(1):
            try:
                await method(request, timeout=deadline.remaining(), metadata=metadata)
                return
            except grpc.aio.AioRpcError as raw:
                error = from_rpc_error(raw)
            if attempt > 1 and isinstance(error, NotFound):
                return
            await self.pause(error, attempt, deadline)

    async def pause(self, error: HmiError, attempt: int, deadline: Deadline) -> None:
        """Wait until the next try, or raise the error if there is none."""
        delay = self.retry.delay(error, attempt)
        if delay is None or not deadline.allows(delay):
            raise self._explained(error)
        await asyncio.sleep(delay)

    def _explained(self, error: HmiError) -> HmiError:
        """The error; where it is gRPC's own word for a dead line, one that a person can use."""
        if not isinstance(error, Unavailable) or error.reason:
            return error
        told = Unavailable(f"no gateway answers at {self._address}: is the stack up?")
        told.__cause__ = error
        return told

    async def close(self) -> None:
        """Close the channel; calls under way end as cancelled."""
        await self.channel.close()


class Duplex:
    """A bidirectional call whose requests are written while its responses are read.

    An error of the requests' own iterator ends the call and is raised by `read`.
    """

    def __init__(self, call: Any, requests: AsyncIterable[object]) -> None:
        self._call = call
        self._ending = Ending(call)
        self._writer = asyncio.create_task(write_all(call, requests))
        self._writer.add_done_callback(self._written)

    def _written(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and writer.exception() is not None:
            self._call.cancel()

    async def read(self) -> Any | None:
        """The next response; None after the last.

        Raises:
            HmiError: The call failed.
        """
        try:
            response = await self._call.read()
            return None if response is grpc.aio.EOF else response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(await self._ending.meant(error)) from None
        except asyncio.CancelledError:
            if self._writer.done() and not self._writer.cancelled():
                reason = self._writer.exception()
                if reason is not None:
                    raise reason from None
            raise

    async def close(self) -> None:
        """End the call and its writer."""
        self._call.cancel()
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
