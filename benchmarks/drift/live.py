"""A running stack's domains under live traffic: who sends what, what came back, what it hit.

Knows the client alone: what is measured is what the services say of themselves. Does not know the
scenes that are played, nor whether an answer is right.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmi.client import Client, DomainChange, DomainStats, Embedding, Item, Lookups, Prediction
from hmi.corpus import count_corpus

PROBE = "probe"  # shares no counts: what it sends is looked up and leaves no trace
_PATIENCE_S = 300.0
_POLL_S = 0.05
_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer.

    Attributes:
        values: The text's vector, float32 `[hidden]`.
    """

    path: str
    text: str
    table_version: str
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hits:
    """How tokens were answered, as `hmi domains stats` counts them."""

    num_tokens: int
    num_trigram: int
    num_bigram: int

    @property
    def share(self) -> float:
        """Of the tokens, those answered by a trigram or bigram."""
        return (self.num_trigram + self.num_bigram) / self.num_tokens

    @property
    def trigram_share(self) -> float:
        """Of the tokens, those answered by a trigram."""
        return self.num_trigram / self.num_tokens

    @classmethod
    def between(cls, before: Lookups, after: Lookups) -> Hits:
        """What came in between."""
        return cls(
            after.num_tokens - before.num_tokens,
            after.num_trigram - before.num_trigram,
            after.num_bigram - before.num_bigram,
        )


@dataclass(frozen=True, slots=True)
class Updated:
    """An update that was committed.

    Attributes:
        num_bounded: Rows added and removed, without those added that a corpus holds: no bound
            concerns them.
        num_exempt: Those.
        num_before, num_wanted: Rows the node had, and should have in the end.
        seconds: From the call until the node was no longer updating.
    """

    num_bounded: int
    num_exempt: int
    num_before: int
    num_wanted: int
    seconds: float

    @property
    def share(self) -> float:
        """What the rule bounds, of the larger of the tables before and wanted."""
        return self.num_bounded / self._size

    @property
    def exempt_share(self) -> float:
        """What it does not bound, of the same."""
        return self.num_exempt / self._size

    @property
    def _size(self) -> int:
        return max(self.num_before, self.num_wanted, 1)


@dataclass
class Live:
    """Domains of one split base and tenants that send to them; every tenant has one model a
    domain, an embedding without an adapter, which follows the domain's tables.

    Attributes:
        admin: With the admin key.
        base: The split base's name.
        tokenizer_file: The base's tokenizer.json.
        answers: Kept, in the order of their coming.
        failures: What failed.
    """

    admin: Client
    base: str
    tokenizer_file: Path
    answers: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_answered: int = 0
    _num_sent: dict[str, int] = field(default_factory=dict)
    _models: set[tuple[str, str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_tenants(self, names: Sequence[str]) -> None:
        """Tenants whose counts may shape shared tables, and the probe, whose may not."""
        for name in names:
            self.admin.create_tenant(name, shares_counts=True)
        self.admin.create_tenant(PROBE)

    def add_domain(
        self, path: str, texts: Sequence[str], *, half_life_tokens: int, is_full: bool = False
    ) -> DomainStats:
        """A domain with a table made of a corpus, a text a line.

        Args:
            is_full: Its budget pays for the rows it has then, and for no more.
        """
        with tempfile.TemporaryDirectory() as directory:
            corpus = Path(directory) / "corpus.txt"
            corpus.write_text("\n".join(" ".join(text.split()) for text in texts), "utf-8")
            counts, _ = count_corpus([corpus], self.tokenizer_file)
        self.admin.create_domain(
            self.base, path, counts=counts.to_bytes(), half_life_tokens=half_life_tokens
        )
        self.until(lambda: self._is_settled(path))
        stats = self.stats(path)
        if is_full:
            self.admin.set_domain(self.base, path, byte_budget=self._row_bytes(stats))
        return stats

    def stats(self, path: str) -> DomainStats:
        """As `hmi domains stats` shows them."""
        nodes = self.admin.list_domains(self.base)
        return next(stats for stats in nodes if stats.domain.path == path)

    def send(self, tenant: str, path: str, texts: Sequence[str], *, is_kept: bool = True) -> int:
        """Texts of a tenant to a domain, over one stream; the tokens that were answered."""
        client, model = self.admin.for_tenant(tenant), self._model(tenant, path)
        num_tokens = 0
        for answer in client.stream([Item(model, text) for text in texts],
                                    max_in_flight=_IN_FLIGHT):  # fmt: skip
            if answer.error is not None:
                self.failures.append(f"{tenant} in {path}: {answer.error}")
                continue
            prediction = answer.unwrap()
            num_tokens += prediction.num_tokens
            assert answer.provenance is not None
            version = answer.provenance.table_version
            self._take(path, texts[answer.index], version, prediction, is_kept=is_kept)
        return num_tokens

    def send_all(self, path: str, texts: Mapping[str, Sequence[str]]) -> int:
        """Texts by tenant, one tenant after the other."""
        return sum(self.send(tenant, path, some) for tenant, some in texts.items())

    def hits(self, path: str, texts: Sequence[str]) -> Hits:
        """What texts hit now; they are not counted. Nobody else may send to the domain meanwhile.

        Raises:
            RuntimeError: No call is answered.
            TimeoutError: The executor's numbers do not come in.
        """
        before = self.settle(path)
        if not self.send(PROBE, path, texts):
            raise RuntimeError(f"no call is answered: {self.failures[-1:]}")
        return Hits.between(before, self.settle(path))

    def settle(self, path: str) -> Lookups:
        """A domain's lookups, once those of every answered token are among them."""
        self.until(lambda: self.stats(path).lookups.num_tokens >= self._num_sent.get(path, 0))
        return self.stats(path).lookups

    def update(self, path: str) -> Updated:
        """One update, as `hmi domains update PATH` does it."""
        before, began = sum(self.stats(path).num_entries), time.monotonic()
        changes: Sequence[DomainChange] = self.admin.update_domains(self.base, path).changes
        self.until(lambda: self._is_settled(path))
        seconds = time.monotonic() - began
        exempt = sum(change.num_exempt for change in changes)
        return Updated(
            sum(change.num_added + change.num_removed for change in changes) - exempt,
            exempt,
            before,
            sum(change.num_wanted for change in changes),
            seconds,
        )

    @contextmanager
    def watched(self, path: str, texts: Sequence[str]) -> Iterator[None]:
        """Ask one text after the other while the block lasts: calls meet whatever happens."""
        model, stop = self._model(PROBE, path), threading.Event()

        def ask() -> None:
            client = self.admin.for_tenant(PROBE)
            for text in cycle(texts):
                if stop.is_set():
                    return
                try:
                    got = client.predict(model, [text])
                except Exception as error:  # whatever it is, the report names it
                    self.failures.append(f"asked in {path}: {error}")
                    return
                self._take(path, text, got.provenance.table_version, got.predictions[0])

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def until(self, condition: Callable[[], bool], within_s: float = _PATIENCE_S) -> None:
        """Wait for what happens in another process.

        Raises:
            TimeoutError: It does not.
        """
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("the services did not come to it")
            time.sleep(_POLL_S)

    def _is_settled(self, path: str) -> bool:
        domain = self.admin.get_domain(self.base, path)
        return bool(domain.table_version) and not domain.is_updating

    def _row_bytes(self, stats: DomainStats) -> int:
        """Bytes of values that a node's rows take, as a budget counts them."""
        values = self.admin.get_base(self.base).hidden_size * 2
        return sum(stats.num_entries) * values

    def _model(self, tenant: str, path: str) -> str:
        model = path.replace("/", "-")
        if (tenant, path) not in self._models:
            with tempfile.TemporaryDirectory() as directory:
                (Path(directory) / "hmi.json").write_text(json.dumps({"task": "embedding"}))
                self.admin.for_tenant(tenant).push_version(
                    model, directory, base=self.base, domain=path, follow=True
                )
            self._models.add((tenant, path))
        return model

    def _take(
        self, path: str, text: str, version: str, prediction: Prediction, *, is_kept: bool = True
    ) -> None:
        assert isinstance(prediction, Embedding)
        with self._lock:
            self.num_answered += 1
            self._num_sent[path] = self._num_sent.get(path, 0) + prediction.num_tokens
            if is_kept:
                values = np.array(prediction.values, np.float32)
                self.answers.append(Answered(path, text, version, values))
