"""Tells the health service whether this gateway can answer.

Knows how long keys are believed; does not know who asks. A gateway whose keys are too old answers
UNAVAILABLE to everything, so load balancers are to pass it by; it is alive all the same, and
restarting it would only lose what it knows.
"""

from __future__ import annotations

import asyncio
import logging

from services.common.server import RunningServer
from services.gateway.mirror import Mirror

logger = logging.getLogger(__name__)

_LOOK_S = 0.25


async def tell_readiness(mirror: Mirror, max_staleness_s: float, server: RunningServer) -> None:
    """Say SERVING while keys are believed and NOT_SERVING while they are not, forever."""
    is_ready = True
    while True:
        left_s = max_staleness_s - mirror.staleness_s
        if is_ready != (left_s >= 0):
            is_ready = not is_ready
            await server.set_serving(is_ready)
            if is_ready:
                logger.info("the knowledge store was heard: serving again")
            else:
                logger.error("keys are too old to be believed: not serving until the store is back")
        await asyncio.sleep(max(_LOOK_S, left_s))
