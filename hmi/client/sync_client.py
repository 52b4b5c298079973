"""The blocking client: the asynchronous one, run on a thread of its own.

Knows how to wait; every call, its signature and its docstring are `AsyncClient`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc

from hmi.client.async_client import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, AsyncClient
from hmi.client.bridge import LoopThread, pulled
from hmi.client.predictions import Answer, Item
from hmi.client.retry import RetryPolicy

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._thread.run(method(client._client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class Client:
    """A client for code without an event loop; safe to share between threads.

    ```
    with Client("127.0.0.1:50051", key="hmi_…") as client:
        answers = client.predict("news", ["Rates rise again."])
    ```

    Arguments and errors are those of `AsyncClient`.
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
        self._thread = LoopThread()

        async def make() -> AsyncClient:  # a channel belongs to the loop it was made on
            return AsyncClient(
                address,
                key=key,
                tenant=tenant,
                timeout=timeout,
                retry=retry,
                credentials=credentials,
            )

        self._client = self._thread.run(make())

    def for_tenant(self, tenant: str) -> Client:
        """The same connection, acting for another tenant. Closing either closes both."""
        other = Client.__new__(Client)
        other._thread = self._thread
        other._client = self._client.for_tenant(tenant)
        return other

    predict = _blocking(AsyncClient.predict)

    def stream(
        self, items: Iterable[Item], *, max_in_flight: int = 256, timeout: float | None = None
    ) -> Iterator[Answer]:
        """As `AsyncClient.stream`; `items` may block, it is read on another thread."""
        answers = self._client.stream(pulled(items), max_in_flight=max_in_flight, timeout=timeout)
        return self._thread.iterate(answers)

    create_tenant = _blocking(AsyncClient.create_tenant)
    get_tenant = _blocking(AsyncClient.get_tenant)
    list_tenants = _blocking(AsyncClient.list_tenants)
    update_tenant = _blocking(AsyncClient.update_tenant)
    delete_tenant = _blocking(AsyncClient.delete_tenant)
    create_api_key = _blocking(AsyncClient.create_api_key)
    list_api_keys = _blocking(AsyncClient.list_api_keys)
    revoke_api_key = _blocking(AsyncClient.revoke_api_key)
    get_usage = _blocking(AsyncClient.get_usage)

    add_base = _blocking(AsyncClient.add_base)
    list_bases = _blocking(AsyncClient.list_bases)
    get_base = _blocking(AsyncClient.get_base)
    delete_base = _blocking(AsyncClient.delete_base)

    get_upload = _blocking(AsyncClient.get_upload)
    push_version = _blocking(AsyncClient.push_version)
    push_versions = _blocking(AsyncClient.push_versions)

    list_models = _blocking(AsyncClient.list_models)
    get_model = _blocking(AsyncClient.get_model)
    list_versions = _blocking(AsyncClient.list_versions)
    activate = _blocking(AsyncClient.activate)
    set_traffic = _blocking(AsyncClient.set_traffic)
    roll_back = _blocking(AsyncClient.roll_back)
    set_pinned = _blocking(AsyncClient.set_pinned)
    delete_version = _blocking(AsyncClient.delete_version)
    delete_model = _blocking(AsyncClient.delete_model)

    create_domain = _blocking(AsyncClient.create_domain)
    get_domain = _blocking(AsyncClient.get_domain)
    list_domains = _blocking(AsyncClient.list_domains)
    set_domain = _blocking(AsyncClient.set_domain)
    delete_domain = _blocking(AsyncClient.delete_domain)
    update_domains = _blocking(AsyncClient.update_domains)
    roll_back_domain = _blocking(AsyncClient.roll_back_domain)

    def close(self) -> None:
        """Close the connection and end the thread. A second time does nothing."""
        if self._thread.is_running:
            self._thread.run(self._client.close())
            self._thread.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
