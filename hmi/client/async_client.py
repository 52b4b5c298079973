"""The asynchronous client: every RPC of the public protos as a method.

Knows how a client is opened and closed; the calls are in `inference`, `tenants`, `models`,
`uploads` and `domains`.
"""

from __future__ import annotations

from types import TracebackType

import grpc

from hmi.client.domains import DomainCalls
from hmi.client.inference import InferenceCalls
from hmi.client.retry import RetryPolicy
from hmi.client.tenants import TenantCalls
from hmi.client.transport import Transport

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0


class AsyncClient(InferenceCalls, TenantCalls, DomainCalls):
    """A client for asyncio.

    ```
    async with AsyncClient("127.0.0.1:50051", key="hmi_…") as client:
        answers = await client.predict("news", ["Rates rise again."])
    ```

    Calls raise the errors of `hmi.errors`. What can be repeated safely is tried again when nobody
    could answer (UNAVAILABLE), with jittered back-off, and when a quota is used up, after the time
    the server states.

    Args:
        address: host:port of a gateway.
        key: An API key's secret.
        tenant: The tenant to act for; only an admin key may name one.
        timeout: Seconds a call may take, all its tries together, unless the call states its own;
            None for no end. Streams and uploads have no end of their own.
        retry: Bounds of retrying.
        credentials: TLS credentials; plaintext if None.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        key: str | None = None,
        tenant: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._transport = Transport.open(
            address,
            key=key,
            tenant=tenant,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            credentials=credentials,
        )

    def for_tenant(self, tenant: str) -> AsyncClient:
        """The same connection, acting for another tenant. Closing either closes both."""
        other = AsyncClient.__new__(AsyncClient)
        other._transport = self._transport.for_tenant(tenant)
        return other

    async def close(self) -> None:
        """Close the connection; calls under way end as cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
