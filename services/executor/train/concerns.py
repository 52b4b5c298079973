"""What a user should know of the data before trusting what comes out of it.

Knows examples and where they stand in their file; does not know tokens or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.executor.train.data import Example, Examples
from services.executor.train.options import Task

_NUM_SHOWN = 5


def concerns(
    examples: Examples,
    train_part: Sequence[Example],
    held_out: Sequence[Example],
    truncated: Sequence[Example],
    *,
    max_tokens: int,
    served_tokens: int,
) -> tuple[str, ...]:
    """A sentence on each.

    Args:
        examples: Of the file.
        train_part: What is learnt from.
        held_out: What the metrics are of.
        truncated: Examples that were cut at `max_tokens`.
        served_tokens: The longest text that serving reads.
    """
    found = []
    if truncated:
        found.append(_about_length(truncated, max_tokens, served_tokens))
    if examples.task is not Task.REGRESSION:
        if unlearnt := _without(examples.labels, train_part):
            found.append(f"no text to learn from has the {unlearnt}: more examples are needed")
        if unjudged := _without(examples.labels, held_out):
            found.append(
                f"no held-out text has the {unjudged}: the metrics say nothing of that; more "
                "examples are needed"
            )
    return tuple(found)


def _about_length(truncated: Sequence[Example], max_tokens: int, served_tokens: int) -> str:
    what = "1 text has" if len(truncated) == 1 else f"{len(truncated)} texts have"
    return (
        f"{what} more than {max_tokens} tokens; training cuts what is beyond: "
        f"{_listed(example.where for example in truncated)}. Serving never cuts: it refuses a text "
        f"of more than {served_tokens} tokens, so shorten or split them"
    )


def _without(labels: Sequence[str], examples: Sequence[Example]) -> str:
    """The labels that no example has, with the noun; empty if there are none."""
    seen = {label for one in examples for label in one.labels}
    seen |= {span.label for one in examples for span in one.spans}
    missing = [repr(label) for label in labels if label not in seen]
    if not missing:
        return ""
    return f"{'label' if len(missing) == 1 else 'labels'} {_listed(missing)}"


def _listed(names: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:_NUM_SHOWN])
    return shown if len(every) <= _NUM_SHOWN else f"{shown} and {len(every) - _NUM_SHOWN} more"
