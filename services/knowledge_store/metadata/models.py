"""Models: traffic, pins, deletion.

Knows what may be changed when; does not know RPCs or Redis.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.deletions import delete_model
from services.knowledge_store.metadata.kinds import MODELS, VERSIONS, model_name, version_name
from services.knowledge_store.metadata.transaction import Transaction

_ALL_PERCENT = 100


class Models:
    """Changes of models that exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_traffic(
        self, tenant: str, model: str, traffic: Sequence[rpb.TrafficTarget]
    ) -> rpb.Model:
        """Set the traffic; what it was becomes the previous one. The same again changes nothing.

        Raises:
            InvalidArgument: Percents do not add up to 100, or a version is named twice.
            NotFound: The model or a version.
        """
        _check_traffic(traffic)

        async def change(transaction: Transaction, held: rpb.Model) -> None:
            await _check_versions(transaction, held, traffic, NotFound)
            if list(held.traffic) != list(traffic):
                redirect(held, traffic)

        return await self._change(tenant, model, change)

    async def roll_back(self, tenant: str, model: str) -> rpb.Model:
        """Swap the traffic with the previous one.

        Raises:
            NotFound: The model.
            FailedPrecondition: There is none before, or its version was deleted.
        """

        async def change(transaction: Transaction, held: rpb.Model) -> None:
            previous = list(held.previous_traffic)
            if not previous:
                raise FailedPrecondition(
                    f"model {model} has no traffic to go back to", reason="NO_PREVIOUS_TRAFFIC"
                )
            await _check_versions(transaction, held, previous, FailedPrecondition)
            redirect(held, previous)

        return await self._change(tenant, model, change)

    async def set_pinned(self, tenant: str, model: str, *, is_pinned: bool) -> rpb.Model:
        """Pin or not.

        Raises:
            NotFound: The model.
        """

        async def change(_: Transaction, held: rpb.Model) -> None:
            held.pinned = is_pinned

        return await self._change(tenant, model, change)

    async def delete_version(self, tenant: str, model: str, number: int) -> None:
        """Delete a version.

        Raises:
            NotFound: The model or the version.
            FailedPrecondition: It gets traffic.
        """

        async def change(transaction: Transaction, held: rpb.Model) -> None:
            version = await transaction.get(VERSIONS, version_name(tenant, model, number))
            if version is None:
                raise _no_version(held, number)
            if any(target.version == number for target in held.traffic):
                raise FailedPrecondition(
                    f"version {number} of model {model} gets traffic: activate another first",
                    reason="VERSION_IN_USE",
                )
            transaction.delete(VERSIONS, version)

        await self._change(tenant, model, change)

    async def delete(self, tenant: str, model: str) -> None:
        """Delete a model and its versions, in as many changes as it takes.

        Raises:
            NotFound: The model.
        """

        async def delete(transaction: Transaction) -> bool:
            return await delete_model(transaction, await _existing(transaction, tenant, model))

        while not await self._database.change(delete):
            pass

    async def _change(
        self, tenant: str, model: str, edit: Callable[[Transaction, rpb.Model], Awaitable[None]]
    ) -> rpb.Model:
        """Let `edit` change a copy of the model in place; returns it."""

        async def change(transaction: Transaction) -> rpb.Model:
            held = await _existing(transaction, tenant, model)
            edited = rpb.Model()
            edited.CopyFrom(held)
            await edit(transaction, edited)
            if edited != held:
                transaction.put(MODELS, edited)
            return edited

        return await self._database.change(change)


def redirect(model: rpb.Model, traffic: Sequence[rpb.TrafficTarget]) -> None:
    """Send the model's requests to `traffic`, and remember where they went before."""
    before = list(model.traffic)
    after = list(traffic)
    del model.traffic[:], model.previous_traffic[:]
    model.traffic.extend(after)
    model.previous_traffic.extend(before)


async def _existing(transaction: Transaction, tenant: str, model: str) -> rpb.Model:
    held = await transaction.get(MODELS, model_name(tenant, model))
    if held is None:
        raise NotFound(f"there is no model {model}", reason="MODEL_NOT_FOUND")
    return held


async def _check_versions(
    transaction: Transaction,
    model: rpb.Model,
    traffic: Sequence[rpb.TrafficTarget],
    error: type[NotFound] | type[FailedPrecondition],
) -> None:
    for target in traffic:
        name = version_name(model.tenant, model.name, target.version)
        if await transaction.get(VERSIONS, name) is None:
            raise error(
                f"model {model.name} has no version {target.version}", reason="VERSION_NOT_FOUND"
            )


def _no_version(model: rpb.Model, number: int) -> NotFound:
    return NotFound(f"model {model.name} has no version {number}", reason="VERSION_NOT_FOUND")


def _check_traffic(traffic: Sequence[rpb.TrafficTarget]) -> None:
    if any(target.percent == 0 for target in traffic):
        raise InvalidArgument("traffic", "a percent must be 1 to 100")
    if sum(target.percent for target in traffic) != _ALL_PERCENT:
        raise InvalidArgument("traffic", "percents must add up to 100")
    if len({target.version for target in traffic}) < len(traffic):
        raise InvalidArgument("traffic", "a version may be named once")
