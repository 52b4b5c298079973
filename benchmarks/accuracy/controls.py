"""Makes the encoders that hMiniLM is held against: `python -m benchmarks accuracy-controls`.

All see the same text in the same order, as many tokens each: both forms of local encoder, one that
sees single tokens only, and the base without its lower layers. Then the encoder that is judged is
adapted to each task's domain, on texts that no task uses. What was made before is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from benchmarks import datasets
from benchmarks.accuracy import dropping, tasks
from benchmarks.accuracy.__main__ import CONTROLS, ENCODER
from benchmarks.accuracy.subjects import CONTROLS as DESCRIPTION
from hmi.bases import minilm_directory
from services.common.local_encoder_format import FILE_NAME, Form
from services.executor.construct.adapt import AdaptOptions, adapt
from services.executor.construct.distill import Schedule, distill
from services.executor.construct.local_file import save_local
from services.executor.construct.run import unsplit_digest
from services.executor.construct.student import Student, start
from services.executor.construct.texts import Pieces, tokenize
from services.executor.device import pick_dtype
from services.executor.models.encoder import Encoder, load_base

_HELD_OUT = 256
KINDS = ("centre", "unigram", "dropped", "sum")


@dataclass(frozen=True, slots=True)
class Plan:
    """What all have in common."""

    out: Path
    corpus: tuple[Path, ...]
    split: int
    schedule: Schedule
    base: Encoder

    def teach(self, name: str) -> None:
        """Learn one control and write it."""
        directory = self.out / name
        directory.mkdir(parents=True, exist_ok=True)
        student = self._student(name)
        tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokens = tokenize(self.corpus, tokenizer, self.out / "tokens")
        pieces = Pieces.cut(tokens, self.base.config.max_tokens - 2, self.schedule.seed)
        learnt, held_out = pieces.split(min(_HELD_OUT, len(pieces) // 5 + 1), self.schedule.seed)
        first, last = tokenizer.encode("").ids
        special = (first, last)
        distill(
            student, special, learnt, held_out, self.schedule, subject=name, directory=directory
        )
        if isinstance(student, dropping.DroppedStudent):
            dropping.save(directory, student)
            return
        save_local(
            directory / FILE_NAME,
            student.tensors,
            split=self.split,
            form=student.form,
            unsplit_digest=unsplit_digest(minilm_directory()),
        )

    def adapt(self, name: str, parent: Path, num_tokens: int) -> None:
        """Adapt the encoder that is judged to a task's domain (stage 2)."""
        directory = self.out / f"adapted-{name}"
        directory.mkdir(parents=True, exist_ok=True)
        corpus = directory / "texts.txt"
        corpus.write_text(
            "".join(f"{_one_line(text)}\n\n" for text in tasks.texts_aside(name)), "utf-8"
        )
        adapt(
            AdaptOptions(
                minilm_directory(), parent / FILE_NAME, (corpus,), directory, num_tokens,
                seed=self.schedule.seed, device="cpu",
            )
        )  # fmt: skip

    def _student(self, name: str) -> Student:
        if name == "dropped":
            return dropping.DroppedStudent(self.base, self.split)
        kind = dropping.UnigramStudent if name == "unigram" else Student
        form = Form.SUM if name == "sum" else Form.CENTRE
        return kind(self.base, start(self.base, self.split), form)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accuracy-controls", description=__doc__
    )
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="each control's")
    parser.add_argument("--adapt-tokens", type=int, default=200_000, help="each adaptation's")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="what is adapted")
    parser.add_argument("--split", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CONTROLS)
    options = parser.parse_args()
    for file in options.corpus:
        if not file.is_file():
            parser.error(f"{file} is no file")
    cpu = torch.device("cpu")
    base = load_base(minilm_directory(), dtype=pick_dtype("auto", cpu), device=cpu)
    schedule = Schedule(
        options.tokens, warm_up_tokens=max(1, min(400_000, options.tokens // 10)),
        seed=options.seed,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(options.out, tuple(options.corpus), options.split, schedule, base)
    steps: dict[str, Callable[[], None]] = {name: _teaching(plan, name) for name in KINDS}
    if (options.encoder / FILE_NAME).is_file():
        for name in tasks.LIMITS:
            steps[f"adapted-{name}"] = _adapting(plan, name, options.encoder, options.adapt_tokens)
    else:
        print(f"{options.encoder / FILE_NAME} is missing: nothing is adapted", file=sys.stderr)
    _make(steps, plan, options.adapt_tokens)


def _teaching(plan: Plan, name: str) -> Callable[[], None]:
    return lambda: plan.teach(name)


def _adapting(plan: Plan, name: str, parent: Path, num_tokens: int) -> Callable[[], None]:
    return lambda: plan.adapt(name, parent, num_tokens)


def _make(steps: dict[str, Callable[[], None]], plan: Plan, adapt_tokens: int) -> None:
    """Each step, noting what is there as soon as it is."""
    description = {
        "num_tokens": plan.schedule.num_tokens,
        "adapt_tokens": adapt_tokens,
        "seed": plan.schedule.seed,
        "split": plan.split,
        "corpus": [file.name for file in plan.corpus],
        "encoders": [],
    }
    path = plan.out / DESCRIPTION
    made: list[str] = []
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        if {**before, "encoders": []} != description:
            sys.exit(f"{plan.out} holds controls of another plan: name another with --out")
        made = before["encoders"]
    for name, step in steps.items():
        if name in made:
            continue
        began = time.monotonic()
        try:
            step()
        except datasets.Missing as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
            continue
        made.append(name)
        path.write_text(json.dumps({**description, "encoders": made}, indent=1) + "\n", "utf-8")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
