"""A gateway's end of an Execute stream, for tests."""

from __future__ import annotations

import grpc.aio

from hmi.executor.v1 import executor_pb2 as pb
from hmi.executor.v1.executor_pb2_grpc import ExecutorServiceStub

TOKEN = "token"


class Gateway:
    """A gateway's end of a stream."""

    def __init__(self, channel: grpc.aio.Channel, name: str = "gateway") -> None:
        self.call = ExecutorServiceStub(channel).Execute()
        self.name = name
        self.credit = 0
        self.largest = 0  # message, in bytes
        self.events: dict[int, list[pb.Event]] = {}

    async def send(self, *commands: pb.Command) -> None:
        await self.call.write(pb.ExecuteRequest(commands=commands))

    async def hello(self) -> None:
        await self.send(pb.Command(hello=pb.Hello(gateway_id=self.name)))
        await self.read()

    async def submit(self, *submits: pb.Submit) -> None:
        await self.send(*(pb.Command(submit=submit) for submit in submits))

    async def read(self) -> bool:
        """Take one message; False at the stream's end."""
        try:
            response = await self.call.read()
        except grpc.aio.AioRpcError:
            return False
        if not isinstance(response, pb.ExecuteResponse):
            return False
        self.largest = max(self.largest, response.ByteSize())
        for news in response.news:
            self.credit += news.credit.num_tokens
            if news.HasField("event"):
                self.events.setdefault(news.event.item_id, []).append(news.event)
        return True

    async def answers(self, *item_ids: int) -> list[pb.Event]:
        """The one event of each item."""
        while not all(item_id in self.events for item_id in item_ids):
            assert await self.read()
        assert all(len(self.events[item_id]) == 1 for item_id in item_ids)
        return [self.events[item_id][0] for item_id in item_ids]
