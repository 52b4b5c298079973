"""`python -m services.gateway`: settings, then parts, then the server."""

from __future__ import annotations

import asyncio
import gc
import uuid

from hmi.knowledge.v1 import knowledge_pb2
from services.common.interceptor import RequestInterceptor
from services.common.logs import configure_logging
from services.common.server import run, serve, stopped
from services.gateway.app import open_app
from services.gateway.config import GatewaySettings
from services.gateway.watch import stay_registered


async def main(settings: GatewaySettings) -> None:
    """Serve until told to stop."""
    member_id = f"gateway-{uuid.uuid4().hex[:12]}"
    async with (
        open_app(settings, member_id) as app,
        serve(settings, adders=app.adders, interceptors=[RequestInterceptor("gateway")]) as running,
    ):
        address = settings.advertise_address or f"{settings.host}:{running.port}"
        member = knowledge_pb2.Member(
            member_id=member_id, kind=knowledge_pb2.MEMBER_KIND_GATEWAY, address=address
        )
        lease = asyncio.create_task(stay_registered(app.knowledge, member))
        # What the snapshot brought lives on: a collection need not walk it again and again.
        gc.collect()
        gc.freeze()
        print(f"ready: {settings.host}:{running.port}", flush=True)
        try:
            await stopped(settings)
        finally:
            lease.cancel()
            await asyncio.gather(lease, return_exceptions=True)


if __name__ == "__main__":
    settings = GatewaySettings()
    configure_logging("gateway", settings.log_level)
    run(main(settings))
