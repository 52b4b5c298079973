"""Texts to token ids, with each base's own tokenizer.

Knows the `tokenizers` library and threads; does not know models. Texts that wait while a thread is
busy are encoded together in its next batch, so that under load a thread switch is paid once for
many requests. Tenants take turns in filling it: one's thousands of texts are not before another's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from services.common.errors import InvalidArgument
from services.common.knowledge import BlobCache
from services.gateway.domain import Base, Encoded, Text

BATCH_TEXTS = 64


def check_texts(texts: Sequence[Text], max_chars: int, *, takes_pairs: bool) -> None:
    """What can be said of texts before they are tokenized.

    Raises:
        InvalidArgument: An empty text, one too long to be tokenized at all, a pair where there may
            be none.
    """
    for text in texts:
        if not text.text:
            raise InvalidArgument(text.field, "must not be empty")
        if len(text.text) > max_chars:
            raise _too_long(text.field, max_chars)
        if text.pair is None:
            continue
        if not takes_pairs:
            raise InvalidArgument(text.pair_field, "this model takes single texts")
        if not text.pair:
            raise InvalidArgument(text.pair_field, "must not be empty")
        if len(text.pair) > max_chars:
            raise _too_long(text.pair_field, max_chars)


def _too_long(field: str, max_chars: int) -> InvalidArgument:
    message = f"is longer than {max_chars} characters, more than the base reads"
    return InvalidArgument(field, message, reason="TEXT_TOO_LONG")


def check_lengths(texts: Sequence[Text], encoded: Sequence[Encoded], max_tokens: int) -> None:
    """That each text has tokens, no more than its base can read; nothing is ever cut off.

    Raises:
        InvalidArgument: naming the text, its length and the limit.
    """
    for text, tokens in zip(texts, encoded, strict=True):
        if not tokens.ids:  # a tokenizer without special tokens makes none of blanks
            raise InvalidArgument(text.field, "has no token for the base to read")
        if len(tokens.ids) > max_tokens:
            raise InvalidArgument(
                text.field,
                f"has {len(tokens.ids)} tokens, and the base reads at most {max_tokens}: "
                "shorten it, or split it",
                reason="TEXT_TOO_LONG",
            )


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json as a tokenizer that neither cuts nor pads."""
    return without_limits(Tokenizer.from_file(str(path)))


def without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with the file's truncation and padding turned off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass(slots=True, eq=False)
class _Job:
    texts: Sequence[Text]
    with_offsets: bool
    future: asyncio.Future[list[Encoded]]


class _Batcher:
    """One tokenizer's waiting texts."""

    def __init__(self, tokenizer: Tokenizer, pool: ThreadPoolExecutor, num_threads: int) -> None:
        self._tokenizer = tokenizer
        self._pool = pool
        self._num_free = num_threads
        self._is_planned = False
        self._waiting: dict[str, deque[_Job]] = {}  # by tenant, whose turn it is first
        self._alone: deque[_Job] = deque()

    def encode(
        self, tenant: str, texts: Sequence[Text], with_offsets: bool
    ) -> asyncio.Future[list[Encoded]]:
        future: asyncio.Future[list[Encoded]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(_Job(texts, with_offsets, future))
        # What comes in the same turn of the event loop goes to a thread together.
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._start)
        return future

    def _start(self) -> None:
        self._is_planned = False
        while self._num_free and (jobs := self._next_jobs()):
            self._num_free -= 1
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._pool, self._encode_jobs, jobs)
            work.add_done_callback(partial(self._finish, jobs))

    def _next_jobs(self) -> list[_Job]:
        """One that failed in a batch, or a batch; none if nothing waits."""
        while self._alone:
            if not (job := self._alone.popleft()).future.done():  # the caller may have gone
                return [job]
        jobs, num_texts = list[_Job](), 0
        while self._waiting and num_texts < BATCH_TEXTS:
            tenant = next(iter(self._waiting))
            waiting = self._waiting.pop(tenant)
            job = waiting.popleft()
            if waiting:
                self._waiting[tenant] = waiting  # behind the others
            if not job.future.done():
                jobs.append(job)
                num_texts += len(job.texts)
        return jobs

    def _encode_jobs(self, jobs: list[_Job]) -> list[list[Encoded]]:
        """Runs in a thread."""
        answers: list[list[Encoded]] = [[] for _ in jobs]
        for with_offsets in (False, True):
            chosen = [i for i, job in enumerate(jobs) if job.with_offsets is with_offsets]
            inputs = [_input(text) for i in chosen for text in jobs[i].texts]
            if not inputs:
                continue
            if with_offsets:
                encodings = iter(self._tokenizer.encode_batch(inputs))
            else:
                encodings = iter(self._tokenizer.encode_batch_fast(inputs))
            for i in chosen:
                answers[i] = [
                    _encoded(next(encodings), text.pair is not None, with_offsets)
                    for text in jobs[i].texts
                ]
        return answers

    def _finish(self, jobs: list[_Job], done: asyncio.Future[list[list[Encoded]]]) -> None:
        self._num_free += 1
        error = done.exception()
        if error is not None and len(jobs) > 1:
            # One job's text may be the cause: each tries again alone, ahead of the others.
            self._alone.extend(jobs)
        else:
            for position, job in enumerate(jobs):
                if job.future.done():
                    continue
                if error is not None:
                    job.future.set_exception(error)
                else:
                    job.future.set_result(done.result()[position])
        self._start()


def _input(text: Text) -> str | tuple[str, str]:
    return text.text if text.pair is None else (text.text, text.pair)


def _encoded(encoding: Encoding, is_pair: bool, with_offsets: bool) -> Encoded:
    num_first = 0
    if is_pair:
        type_ids = encoding.type_ids
        # A tokenizer without segments (RoBERTa's) marks all tokens 0: one segment.
        num_first = type_ids.index(1) if 1 in type_ids else 0
    if not with_offsets:
        return Encoded(encoding.ids, num_first)
    return Encoded(encoding.ids, num_first, encoding.word_ids, encoding.offsets)


class Tokenization:
    """The tokenizers of all bases.

    Args:
        cache: Where tokenizer.json files come from; they stay on disk, so that a known base
            outlives the store.
        num_threads: Threads that tokenize, shared by all bases.
    """

    def __init__(self, cache: BlobCache, num_threads: int) -> None:
        self._cache = cache
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._loading: dict[str, asyncio.Task[_Batcher]] = {}

    async def encode(
        self, base: Base, tenant: str, texts: Sequence[Text], *, with_offsets: bool
    ) -> list[Encoded]:
        """Tokenize texts, in their order.

        Raises:
            NotFound, Unavailable, DataLoss: The tokenizer cannot be read from the store.
        """
        task = self._loading.get(base.tokenizer_digest) or self.prefetch(base)
        batcher = task.result() if task.done() else await asyncio.shield(task)
        return await batcher.encode(tenant, texts, with_offsets)

    def prefetch(self, base: Base) -> asyncio.Task[_Batcher]:
        """Begin to load a base's tokenizer."""
        digest = base.tokenizer_digest
        task = self._loading.get(digest)
        if task is None:
            task = self._loading[digest] = asyncio.create_task(self._load(digest))
            task.add_done_callback(lambda done: self._forget_failed(digest, done))
        return task

    def keep(self, bases: Iterable[Base]) -> None:
        """Load these bases' tokenizers, and let go of all others."""
        wanted = {base.tokenizer_digest: base for base in bases}
        for digest in self._loading.keys() - wanted.keys():
            del self._loading[digest]  # who waits for it gets it all the same
        for base in wanted.values():
            self.prefetch(base)

    def close(self) -> None:
        """Stop the threads and what is loading."""
        for task in self._loading.values():
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _load(self, digest: str) -> _Batcher:
        path = await self._cache.path(digest)
        tokenizer = await asyncio.to_thread(load_tokenizer, path)
        return _Batcher(tokenizer, self._pool, self._num_threads)

    def _forget_failed(self, digest: str, task: asyncio.Task[_Batcher]) -> None:
        """A failed load is tried again by the next request."""
        if task.cancelled() or task.exception() is not None:
            self._loading.pop(digest, None)
