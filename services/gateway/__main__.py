"""`python -m services.gateway`: settings, then parts, then the server."""

from __future__ import annotations

import asyncio
import gc
import os
import uuid

from hmi.knowledge.v1 import knowledge_pb2
from services.common.interceptor import RequestInterceptor
from services.common.logs import configure_logging
from services.common.registration import Registration
from services.common.server import run, serve, stopped
from services.gateway.app import open_app
from services.gateway.config import GatewaySettings
from services.gateway.readiness import tell_readiness


async def main(settings: GatewaySettings) -> None:
    """Serve until told to stop."""
    member_id = f"gateway-{uuid.uuid4().hex[:12]}"
    async with (
        open_app(settings, member_id) as app,
        serve(settings, adders=app.adders, interceptors=[RequestInterceptor("gateway")]) as running,
    ):
        address = settings.advertise_address or f"{settings.host}:{running.port}"
        registration = Registration(
            app.knowledge, member_id=member_id, kind=knowledge_pb2.MEMBER_KIND_GATEWAY
        )
        # What the snapshot brought lives on: a collection need not walk it again and again.
        gc.collect()
        gc.freeze()
        telling = asyncio.create_task(tell_readiness(app.mirror, settings.max_staleness_s, running))
        async with registration.held(address):
            print(f"ready: {settings.host}:{running.port}", flush=True)
            try:
                await stopped(settings)
            finally:
                telling.cancel()


if __name__ == "__main__":
    # A batch's texts stay on its own thread: HMI_TOKENIZER_THREADS says how many there are.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    settings = GatewaySettings()
    configure_logging("gateway", settings.log_level)
    run(main(settings))
