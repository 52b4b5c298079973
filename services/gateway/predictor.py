"""A request's life: resolve the version, check, tokenize, queue, await, answer.

Knows the order of these steps; each step is another module's. Works in pieces, so that a large
request neither fills the queue nor holds back small ones; at most two pieces are under way, so that
executors do not run dry between them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hmi.admin.v1 import resources_pb2
from hmi.inference.v1 import inference_pb2 as pb
from services.common.errors import HmiError, InvalidArgument, NotFound
from services.gateway import metrics
from services.gateway.answers import prediction
from services.gateway.config import GatewaySettings
from services.gateway.domain import Base, Encoded, Item, Reply, Text, Version
from services.gateway.limits import Charge, Limits
from services.gateway.mirror import Mirror
from services.gateway.router import Router
from services.gateway.tokenization import Tokenization, check_lengths, check_texts
from services.gateway.usage import Usage

_PIECES_UNDER_WAY = 2
_SINGLE_TEXT_TASKS = (resources_pb2.TASK_TOKEN_CLASSIFICATION, resources_pb2.TASK_EMBEDDING)


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller asks.

    `version` 0 lets the traffic split choose; `timeout_s` None is the deployment's default.
    """

    tenant: str
    model: str
    version: int
    priority: int
    texts: Sequence[Text]
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A question whose tenant, version and base are known, and what its tokens are charged to."""

    question: Question
    tenant: resources_pb2.Tenant
    version: Version
    base: Base
    charge: Charge
    started: float
    deadline: float

    @property
    def with_offsets(self) -> bool:
        """Whether answers point back into the text."""
        return self.version.task == resources_pb2.TASK_TOKEN_CLASSIFICATION


class Predictor:
    """Answers questions."""

    def __init__(
        self,
        settings: GatewaySettings,
        mirror: Mirror,
        limits: Limits,
        tokenization: Tokenization,
        router: Router,
        usage: Usage,
    ) -> None:
        self._settings = settings
        self._mirror = mirror
        self._limits = limits
        self._tokenization = tokenization
        self._router = router
        self._usage = usage
        self._loop = asyncio.get_running_loop()
        self._tokenizing: Counter[str] = Counter()  # items on their way to the queue, by tenant
        self._num_tokenizing = 0

    async def answer(self, question: Question) -> tuple[Version, list[pb.Prediction]]:
        """Every text's prediction, in their order, with the one version that made them.

        Raises:
            InvalidArgument: No text, too many (for the labels, too), or one that is wrong; the
                field is named.
            NotFound, FailedPrecondition: No such model, or no version of it to use.
            ResourceExhausted, Unavailable, DeadlineExceeded: Quota, overload, time.
        """
        try:
            admitted = await self._admit(question)
        except HmiError:
            self._count_refused(question.tenant, len(question.texts))
            raise
        texts = question.texts
        size = self._piece_size(admitted.tenant)
        if len(texts) <= size:
            return admitted.version, await self._answer_piece(admitted, texts)
        pieces = [texts[start : start + size] for start in range(0, len(texts), size)]
        return admitted.version, await self._answer_pieces(admitted, pieces)

    def bill(self, tenant: str, predictions: Iterable[pb.Prediction]) -> None:
        """Count answers as they are given: what is never given is never billed."""
        self._usage.of(tenant).bill(predictions)

    async def _admit(self, question: Question) -> _Admitted:
        settings = self._settings
        started = time.perf_counter()
        tenant = self._mirror.state.tenants.get(question.tenant)
        if tenant is None:
            raise NotFound(f"there is no tenant '{question.tenant}'", reason="TENANT_NOT_FOUND")
        if not question.texts:
            raise InvalidArgument("inputs", "must hold at least one input")
        if len(question.texts) > settings.max_inputs:
            raise InvalidArgument("inputs", f"must hold at most {settings.max_inputs} inputs")
        version = self._mirror.version(question.tenant, question.model, question.version)
        base = self._mirror.base_of(version)
        takes_pairs = version.task not in _SINGLE_TEXT_TASKS
        max_chars = settings.max_chars_per_token * base.max_tokens
        check_texts(question.texts, max_chars, takes_pairs=takes_pairs)
        self._check_answer_size(question, version)
        wanted_s = question.timeout_s
        timeout_s = settings.default_deadline_s if wanted_s is None else wanted_s
        deadline = self._loop.time() + min(timeout_s, settings.max_deadline_s)
        charge = await self._limits.admit_request(tenant, base.max_tokens)
        return _Admitted(question, tenant, version, base, charge, started, deadline)

    def _check_answer_size(self, question: Question, version: Version) -> None:
        """Tags come as spans, of which a text has few; every other label has a score a text."""
        if version.task == resources_pb2.TASK_TOKEN_CLASSIFICATION or not version.labels:
            return
        most = max(1, self._settings.max_answer_scores // len(version.labels))
        if len(question.texts) > most:
            raise InvalidArgument(
                "inputs",
                f"must hold at most {most} inputs for a model of {len(version.labels)} labels",
            )

    async def _answer_pieces(
        self, admitted: _Admitted, pieces: list[Sequence[Text]]
    ) -> list[pb.Prediction]:
        under_way = asyncio.Semaphore(_PIECES_UNDER_WAY)

        async def answer(texts: Sequence[Text]) -> list[pb.Prediction]:
            async with under_way:
                return await self._answer_piece(admitted, texts)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(texts)) for texts in pieces]
        except ExceptionGroup as errors:
            # The first error ended the others; it is the call's.
            raise errors.exceptions[0] from None
        return [answer for task in tasks for answer in task.result()]

    async def _answer_piece(
        self, admitted: _Admitted, texts: Sequence[Text]
    ) -> list[pb.Prediction]:
        try:
            # What finds no room costs no tokenization; and what came back meanwhile counts too.
            self._check_room(admitted.tenant, len(texts))
            with self._room_kept(admitted.tenant.name, len(texts)):
                encoded = await self._tokenization.encode(
                    admitted.base,
                    admitted.question.tenant,
                    texts,
                    with_offsets=admitted.with_offsets,
                )
            check_lengths(texts, encoded, admitted.base.max_tokens)
            await admitted.charge.take(sum(len(tokens.ids) for tokens in encoded))
            self._check_room(admitted.tenant, len(texts))
        except HmiError:
            self._count_refused(admitted.question.tenant, len(texts))
            raise
        reply = Reply(len(texts))
        items = self._items(admitted, encoded, reply)
        self._router.submit(items)
        metrics.admission_seconds.observe(time.perf_counter() - admitted.started)
        try:
            tensors = await reply.future
        finally:
            self._router.cancel(items)
        version = admitted.version
        return [
            prediction(version, tensor, tokens, text.text)
            for tensor, tokens, text in zip(tensors, encoded, texts, strict=True)
        ]

    def _items(self, admitted: _Admitted, encoded: list[Encoded], reply: Reply) -> list[Item]:
        now = self._loop.time()
        weight = admitted.tenant.weight or 1.0
        return [
            Item(
                item_id=self._router.next_item_id(),
                version=admitted.version,
                tokenizer_digest=admitted.base.tokenizer_digest,
                encoded=tokens,
                weight=weight,
                priority=admitted.question.priority,
                deadline=admitted.deadline,
                queued_at=now,
                reply=reply,
                index=index,
            )
            for index, tokens in enumerate(encoded)
        ]

    def _piece_size(self, tenant: resources_pb2.Tenant) -> int:
        """All pieces under way must fit the tenant's part of the queue."""
        room = self._limits.max_queued_items(tenant) // _PIECES_UNDER_WAY
        return max(1, min(self._settings.piece_inputs, room))

    def _check_room(self, tenant: resources_pb2.Tenant, num_new: int) -> None:
        queue = self._router.queue
        num_waiting = queue.num_items(tenant.name) + self._tokenizing[tenant.name]
        num_waiting_of_all = len(queue) + self._num_tokenizing
        self._limits.check_room(tenant, num_new, num_waiting, num_waiting_of_all)

    @contextmanager
    def _room_kept(self, tenant: str, num_items: int) -> Iterator[None]:
        """Items that wait for the tokenizer wait: a flood must not pile up before the queue."""
        self._tokenizing[tenant] += num_items
        self._num_tokenizing += num_items
        try:
            yield
        finally:
            self._num_tokenizing -= num_items
            self._tokenizing[tenant] -= num_items
            if not self._tokenizing[tenant]:
                del self._tokenizing[tenant]

    def _count_refused(self, tenant: str, num_items: int) -> None:
        self._usage.of(tenant).num_errors += num_items
        metrics.refused.inc(num_items)
