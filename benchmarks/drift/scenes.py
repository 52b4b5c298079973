"""The two scenes: traffic that moves from one subject to another, and one tenant that floods.

Knows what is sent when; does not know texts' source, nor how it is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.drift.live import Hits, Live, Updated

TENANTS = tuple(f"sender-{number}" for number in range(10))
FLOOD = "flood"
TIMES = 20

Round = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Subject:
    """Texts of one subject: those that are sent or counted, and those held out."""

    sent: Sequence[str]
    held_out: Sequence[str]


@dataclass(frozen=True, slots=True)
class Pace:
    """How traffic comes.

    Attributes:
        half_life_tokens: Of the domains' counts.
        round_tokens: About as many tokens, of all tenants together, lie between two updates.
        num_rounds: Rounds.
        probe_every: Rounds from one look at the held-out texts to the next.
        updates_a_round: Updates after each round; one but in a short trial.
    """

    half_life_tokens: int
    round_tokens: int
    num_rounds: int
    probe_every: int = 1
    updates_a_round: int = 1


@dataclass
class Move:
    """How a domain came after its traffic.

    Attributes:
        before: Held-out hits as the move begins.
        after: By rounds done.
        anew: What a table built of the new traffic hits.
        updates: What each did.
        tokens: Sent in each round.
    """

    before: Hits
    anew: Hits
    after: dict[int, Hits] = field(default_factory=dict)
    updates: list[Updated] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def lost(self, hits: Hits) -> float:
        """Points of hit rate behind the table built anew."""
        return 100 * (self.anew.share - hits.share)


def rounds(texts: Sequence[str], num_tokens: int, tokens_a_word: float = 1.3) -> Iterator[Round]:
    """Texts dealt to the tenants in turn, about so many tokens a round; the last may be short."""
    dealt: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
    size = 0.0
    for number, text in enumerate(texts):
        dealt[TENANTS[number % len(TENANTS)]].append(text)
        size += tokens_a_word * len(text.split()) + 2
        if size >= num_tokens:
            yield dealt
            dealt, size = {tenant: [] for tenant in TENANTS}, 0.0
    if size:
        yield dealt


def drift(live: Live, old: Subject, new: Subject, pace: Pace) -> Move:
    """A domain of the old subject is sent the new one, with an update after each round.

    While an update is planned, materialised and swapped in, calls go on.
    """
    live.add_domain("moving", old.sent, half_life_tokens=pace.half_life_tokens)
    planned = list(rounds(new.sent, pace.round_tokens))[: pace.num_rounds]
    everything = [text for round_ in planned for some in round_.values() for text in some]
    live.add_domain("anew", everything, half_life_tokens=pace.half_life_tokens)
    move = Move(live.hits("moving", new.held_out), live.hits("anew", new.held_out))
    for number, round_ in enumerate(planned, start=1):
        move.tokens.append(live.send_all("moving", round_))
        live.settle("moving")
        with live.watched("moving", new.held_out):
            move.updates += [live.update("moving") for _ in range(pace.updates_a_round)]
        if number % pace.probe_every == 0 or number == len(planned):
            move.after[number] = live.hits("moving", new.held_out)
    return move


@dataclass(frozen=True, slots=True)
class Flooded:
    """What the others' held-out texts hit, without the flood and with it, and how much was sent."""

    quiet: Hits
    flooded: Hits
    num_flood_tokens: int
    num_other_tokens: int


def flood(live: Live, subject: Subject, other: Sequence[str], pace: Pace) -> Flooded:
    """Two domains of one subject at their budget; to the second one more tenant sends another
    subject, twenty times what all the others send together.

    Tables are updated after each round.
    """
    half = len(subject.sent) // 2
    for path in ("quiet", "flooded"):
        live.add_domain(
            path, subject.sent[:half], half_life_tokens=pace.half_life_tokens, is_full=True
        )
    flooding = _endless(other)
    num_others = num_flood = 0
    for round_ in list(rounds(subject.sent[half:], pace.round_tokens))[: pace.num_rounds]:
        live.send_all("quiet", round_)
        num_sent = live.send_all("flooded", round_)
        num_others += num_sent
        num_round = 0
        while num_round < TIMES * num_sent:
            some = [next(flooding) for _ in range(256)]
            num_round += live.send(FLOOD, "flooded", some, is_kept=False)
        num_flood += num_round
        for path in ("quiet", "flooded"):
            live.settle(path)
            with live.watched(path, subject.held_out):
                live.update(path)
    quiet, flooded = (live.hits(path, subject.held_out) for path in ("quiet", "flooded"))
    return Flooded(quiet, flooded, num_flood, num_others)


def tenants() -> list[str]:
    """Who sends, but for the probe."""
    return [*TENANTS, FLOOD]


def _endless(texts: Sequence[str]) -> Iterator[str]:
    while True:
        yield from texts
