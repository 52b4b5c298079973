"""Uploads as they come: a header, then chunks of bytes.

Knows the `part` that every upload's messages have; does not know what the bytes are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from services.common.errors import InvalidArgument


async def header_of(messages: AsyncIterator[Any]) -> Any:
    """The first message's header.

    Raises:
        InvalidArgument: It has none.
    """
    first = await anext(messages, None)
    if first is None or not first.HasField("header"):
        raise InvalidArgument("part", "the first message must be a header")
    return first.header


async def chunks_of(messages: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The bytes of the messages after the first.

    Raises:
        InvalidArgument: Another header comes.
    """
    async for message in messages:
        if not message.HasField("chunk"):
            raise InvalidArgument("part", "only the first message may be a header")
        yield message.chunk
