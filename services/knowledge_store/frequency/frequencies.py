"""All streams of n-grams: one sketch for each base, domain and tenant, and how lookups ended.

Knows half-lives, repeats and bounds; does not know what tables are made of it, or who may share.

Time is counted in tokens: a domain's clock goes on with the tokens its tenants send, and a count
loses half its weight in one half-life of them. A tenant that sends more than all the others
together moves the clock by as much as they do, so that a flood does not wash out what they sent.

A path may be deleted and made anew. Counts are of the node that was born when they came, and of no
other: they go when another takes its path, and what still comes for the old one is not counted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add

from services.common.sorted_keys import FloatArray, IntArray
from services.knowledge_store.frequency.sketch import Sketch

_MAX_EPOCHS = 4_096
_NO_LOOKUPS = (0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Stream:
    """Names a sketch."""

    base: str
    path: str
    tenant: str


@dataclass(frozen=True)
class Observation:
    """What one tenant sent to one domain since the message before.

    Attributes:
        stream: Base, path and tenant.
        keys: int64 `[n]`, distinct or not.
        counts: float64 `[n]`, positive.
        num_tokens: Tokens in all.
        half_life_tokens: The domain's.
        lookups: Tokens looked up, then answered by trigram, bigram, unigram and computation.
        is_counted: Whether n-grams are kept: not those that may shape no table.
        born: Which domain of that path it is: when it was made, nanoseconds.
    """

    stream: Stream
    keys: IntArray
    counts: FloatArray
    num_tokens: int
    half_life_tokens: float
    lookups: Sequence[int]
    is_counted: bool = True
    born: int = 0


@dataclass
class State:
    """What a snapshot holds. Sketches are replaced, never changed.

    Attributes:
        sketches: By stream, with the clock each was decayed to last.
        clocks: By base and path: tokens so far.
        seen: By executor and epoch: the last sequence, the longest unheard of first.
        births: By base and path: which domain's counts these are.
    """

    sketches: dict[Stream, tuple[Sketch, float]] = field(default_factory=dict)
    clocks: dict[tuple[str, str], float] = field(default_factory=dict)
    seen: OrderedDict[tuple[str, int], int] = field(default_factory=OrderedDict)
    births: dict[tuple[str, str], int] = field(default_factory=dict)


class Frequencies:
    """The counts. Any thread may call.

    Args:
        max_keys: N-grams that one stream names.
        max_total_keys: N-grams of all streams together; beyond it the largest are cut.
    """

    def __init__(self, *, max_keys: int, max_total_keys: int, state: State | None = None) -> None:
        self._max_keys = max_keys
        self._max_total_keys = max_total_keys
        self._state = state or State()
        self._lookups: dict[tuple[str, str], tuple[int, ...]] = {}
        # Decayed tokens of each domain's streams together; what is missing is added up again.
        self._masses: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self.num_changes = 0

    def observe(
        self, executor_id: str, epoch: int, sequence: int, observations: Iterable[Observation]
    ) -> bool:
        """Add an executor's message, unless it was added before; returns whether it was added."""
        with self._lock:
            seen = self._state.seen
            if sequence <= seen.get((executor_id, epoch), 0):
                return False
            seen[executor_id, epoch] = sequence
            seen.move_to_end((executor_id, epoch))
            while len(seen) > _MAX_EPOCHS:
                seen.popitem(last=False)
            for observation in observations:
                self._add(observation)
            self._bound()
            self.num_changes += 1
            return True

    def sketches(self, base: str, half_lives: Mapping[str, float]) -> dict[Stream, Sketch]:
        """A base's sketches, decayed to their domain's clock. `half_lives` is by path."""
        with self._lock:
            held = {
                stream: (sketch, self._passed(stream, clock))
                for stream, (sketch, clock) in self._state.sketches.items()
                if stream.base == base and stream.path in half_lives
            }
        # Sketches never change: nobody waits for what is done to all their keys.
        return {
            stream: sketch.decayed(decay(passed, half_lives[stream.path]))
            for stream, (sketch, passed) in held.items()
        }

    def tokens(self, base: str, half_lives: Mapping[str, float]) -> dict[str, float]:
        """Decayed tokens of a base's domains' own traffic, by path like `half_lives`."""
        with self._lock:
            total = dict.fromkeys(half_lives, 0.0)
            for stream in self._state.sketches:
                if stream.base == base and stream.path in total:
                    total[stream.path] += self._tokens(stream, half_lives[stream.path])
            return total

    def clock(self, base: str, path: str) -> float:
        """Tokens that moved a domain's clock so far. Waits for nobody."""
        return self._state.clocks.get((base, path), 0.0)

    def lookups(self, base: str, path: str) -> list[int]:
        """How a domain's lookups ended since the process began, as Observation has them. Waits for
        nobody."""
        return list(self._lookups.get((base, path), _NO_LOOKUPS))

    def streams(self) -> list[Stream]:
        """The streams that something is kept of."""
        with self._lock:
            return list(self._state.sketches)

    def domains(self) -> set[tuple[str, str]]:
        """Base and path of the domains that something is kept of."""
        with self._lock:
            return {*self._state.births, *self._state.clocks}

    def renew(self, base: str, path: str, born: int, clock: float = 0.0) -> None:
        """Hold counts for this domain from now on: those of another of its path are forgotten.

        Args:
            clock: What its clock showed already, if that is more: counts may have been lost.
        """
        domain = (base, path)
        with self._lock:
            held = self._state.births.get(domain)
            if held not in (None, born):
                self._forget(domain)
            if held != born or self._state.clocks.get(domain, 0.0) < clock:
                self._state.births[domain] = born
                self._state.clocks[domain] = max(clock, self._state.clocks.get(domain, 0.0))
                self._masses.pop(domain, None)
                self.num_changes += 1

    def drop(self, streams: Iterable[Stream]) -> None:
        """Forget streams."""
        with self._lock:
            for stream in streams:
                if self._state.sketches.pop(stream, None) is not None:
                    self._masses.pop((stream.base, stream.path), None)
                    self.num_changes += 1

    def forget(self, base: str, path: str) -> None:
        """Forget one domain's counts: it is gone."""
        with self._lock:
            self._forget((base, path))

    def snapshot(self) -> State:
        """What is held now, to be written down."""
        with self._lock:
            held = self._state
            return replace(
                held,
                sketches=dict(held.sketches), clocks=dict(held.clocks), seen=held.seen.copy(),
                births=dict(held.births),
            )  # fmt: skip

    def _forget(self, domain: tuple[str, str]) -> None:
        for stream in [s for s in self._state.sketches if (s.base, s.path) == domain]:
            del self._state.sketches[stream]
        self._state.clocks.pop(domain, None)
        self._state.births.pop(domain, None)
        self._masses.pop(domain, None)
        self._lookups.pop(domain, None)
        self.num_changes += 1

    def _add(self, observation: Observation) -> None:
        stream = observation.stream
        domain = (stream.base, stream.path)
        if self._state.births.setdefault(domain, observation.born) != observation.born:
            return
        before = self._lookups.get(domain, _NO_LOOKUPS)
        self._lookups[domain] = tuple(map(add, before, observation.lookups))
        if not observation.is_counted:
            return
        self._advance(observation)
        sketch = self._decayed(stream, observation.half_life_tokens)
        added = sketch.added(
            observation.keys, observation.counts, observation.num_tokens, self._max_keys
        )
        self._state.sketches[stream] = (added, self._state.clocks[domain])

    def _advance(self, observation: Observation) -> None:
        """Move the domain's clock."""
        stream, half_life = observation.stream, observation.half_life_tokens
        domain = (stream.base, stream.path)
        if domain not in self._masses:
            self._masses[domain] = sum(
                self._tokens(other, half_life)
                for other in self._state.sketches
                if (other.base, other.path) == domain
            )
        own = self._tokens(stream, half_life)
        others = max(0.0, self._masses[domain] - own)
        own += observation.num_tokens
        passed = observation.num_tokens * (min(1.0, others / own) if others and own else 1.0)
        self._state.clocks[domain] = self._state.clocks.get(domain, 0.0) + passed
        self._masses[domain] *= decay(passed, half_life)
        self._masses[domain] += observation.num_tokens

    def _tokens(self, stream: Stream, half_life_tokens: float) -> float:
        """A stream's decayed tokens."""
        sketch, clock = self._state.sketches.get(stream, (Sketch(), 0.0))
        return sketch.num_tokens * decay(self._passed(stream, clock), half_life_tokens)

    def _decayed(self, stream: Stream, half_life_tokens: float) -> Sketch:
        sketch, clock = self._state.sketches.get(stream, (Sketch(), 0.0))
        return sketch.decayed(decay(self._passed(stream, clock), half_life_tokens))

    def _passed(self, stream: Stream, clock: float) -> float:
        """Tokens since a domain's clock showed `clock`."""
        return self._state.clocks.get((stream.base, stream.path), 0.0) - clock

    def _bound(self) -> None:
        """Cut the largest sketches to their share until all of them fit."""
        sketches = self._state.sketches
        num_keys = sum(len(sketch.keys) for sketch, _ in sketches.values())
        if num_keys <= self._max_total_keys:
            return
        for stream in sorted(sketches, key=lambda stream: -len(sketches[stream][0].keys)):
            sketch, clock = sketches[stream]
            cut = sketch.cut(max(1, len(sketch.keys) // 2))
            sketches[stream] = (cut, clock)
            num_keys -= len(sketch.keys) - len(cut.keys)
            if num_keys <= self._max_total_keys:
                return


def decay(num_tokens: float, half_life_tokens: float) -> float:
    """The weight of a count that is `num_tokens` old; one ahead of its clock, which lost tokens in
    a crash, weighs all it did."""
    return float(0.5 ** (max(0.0, num_tokens) / half_life_tokens))
