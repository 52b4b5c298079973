"""`python -m services.knowledge_store`: settings, store, ready, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.common.errors import Unavailable
from services.common.logs import configure_logging
from services.common.server import run, stopped
from services.knowledge_store.config import StoreSettings
from services.knowledge_store.embedded import ValkeyError
from services.knowledge_store.lock import DirectoryInUseError
from services.knowledge_store.store import running_store

logger = logging.getLogger(__name__)


async def main(settings: StoreSettings) -> None:
    """Serve until a signal comes or the parent is gone."""
    async with running_store(settings) as server:
        stopping = asyncio.create_task(stopped(settings))
        # Let it take over the signals first: whoever reads the line may send one at once.
        await asyncio.sleep(0)
        print(f"ready: {settings.host}:{server.port}", flush=True)
        await stopping


if __name__ == "__main__":
    store_settings = StoreSettings()
    configure_logging("knowledge_store", store_settings.log_level)
    try:
        run(main(store_settings))
    except (DirectoryInUseError, ValkeyError, Unavailable, OSError, ValueError) as error:
        logger.debug("start failed", exc_info=True)
        sys.exit(f"knowledge store: {error}")
