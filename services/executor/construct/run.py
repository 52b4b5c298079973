"""`hmi distill` and stage 2 as functions: options in, files and a report out.

Knows the order of steps and the files of a run; does not know how learning works.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from hmi.admin.v1.resources_pb2 import BaseFile
from services.common import ngrams
from services.common.bases import base_digest
from services.common.errors import InvalidArgument
from services.common.local_encoder_format import FILE_NAME, Form
from services.common.ngram_counts import NgramCounter, NgramCounts
from services.common.sorted_keys import heaviest_first, values_of
from services.executor.construct.distill import Outcome, Schedule, distill
from services.executor.construct.local_file import read_local, save_local
from services.executor.construct.progress import Watcher
from services.executor.construct.student import Student, start
from services.executor.construct.texts import Pieces, Tokens, tokenize
from services.executor.device import asked_device, pick_dtype
from services.executor.models.encoder import Encoder, load_base

ROOT_KEYS = "root_keys.safetensors"
REPORT = "report.json"
_HELD_OUT = 256
_BASE_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """What to learn from what.

    Attributes:
        base_dir: The unsplit checkpoint.
        split: Layers below this one become local: 1 to the base's number of layers.
        corpus: UTF-8 files, one paragraph a line, an empty line between documents.
        out: Directory for the results; a run that broke off there goes on.
        schedule: How long and how fast.
        form: What a table's value holds.
        max_root_entries: Bigrams and trigrams in the root's key list.
        parent: A local encoder to adapt to the corpus (stage 2); None learns from the base.
        device: auto, cpu or cuda.
    """

    base_dir: Path
    split: int
    corpus: tuple[Path, ...]
    out: Path
    schedule: Schedule
    form: Form = Form.CENTRE
    max_root_entries: int = 280_000
    parent: Path | None = None
    device: str = "auto"


_QUIET = Watcher()


def run(options: DistillOptions, watcher: Watcher = _QUIET) -> dict[str, Any]:
    """Distil (or adapt) a local encoder; the report, as `out`/report.json holds it.

    Raises:
        InvalidArgument: An option, a file of the corpus, or the base.
        FailedPrecondition: The base's directory holds no weights.
    """
    device = asked_device(options.device)
    base = load_base(options.base_dir, dtype=pick_dtype("auto", device), device=device)
    _check(options, base)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(options.base_dir)
    tokens = _read(options, tokenizer, watcher)
    schedule = options.schedule
    pieces = Pieces.cut(tokens, base.config.max_tokens - 2, schedule.seed)
    if len(pieces) < 2:
        raise InvalidArgument("corpus", "is too short: there must be text to learn and to judge by")
    learnt, held_out = pieces.split(min(_HELD_OUT, len(pieces) // 5 + 1), schedule.seed)
    student, special = _student(options, base), _special_tokens(tokenizer)
    outcome = distill(
        student,
        special,
        learnt,
        held_out,
        schedule,
        subject=_subject(options),
        directory=options.out,
        on_step=lambda state: watcher.learning(state, schedule.num_tokens),
    )
    save_local(
        options.out / FILE_NAME,
        student.tensors,
        split=options.split,
        form=options.form,
        unsplit_digest=unsplit_digest(options.base_dir),
    )
    if options.parent is None:
        counts = root_keys(tokens, special, options, base.config.vocab_size)
        _replace(options.out / ROOT_KEYS, counts.to_bytes())
    report = _report(options, tokens, outcome)
    _replace(options.out / REPORT, json.dumps(report, indent=1).encode())
    return report


def unsplit_digest(directory: Path) -> str:
    """The digest that a checkpoint's directory has as a base of its own."""
    files = [directory / name for name in _BASE_FILES if (directory / name).is_file()]
    return base_digest(
        BaseFile(name=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
    )


def root_keys(
    tokens: Tokens, special: tuple[int, int], options: DistillOptions, vocab_size: int
) -> NgramCounts:
    """Every unigram, and the corpus's most frequent longer n-grams; ties are broken by key.

    Args:
        special: What begins and ends a text: n-grams hold them as other tokens.
    """
    counter = NgramCounter()
    for ids, lengths in tokens.texts(*special):
        counter.add(ids, lengths)
    digest = hashlib.sha256((options.base_dir / "tokenizer.json").read_bytes()).hexdigest()
    counts = counter.counts(digest)
    is_long = ngrams.order_of(counts.keys) > 1
    long_keys = counts.keys[is_long]
    falling = heaviest_first(long_keys, counts.counts[is_long])
    unigrams = ngrams.pack(0, np.arange(1, vocab_size + 1), 0)
    keys = np.union1d(unigrams, long_keys[falling[: options.max_root_entries]])
    how_often = values_of(counts.keys, counts.counts, keys)
    return NgramCounts(keys, how_often, counts.num_tokens, digest)


def _subject(options: DistillOptions) -> str:
    """What is learnt from what, for a checkpoint to be told by."""
    begun_as = "the base"
    if options.parent is not None:
        begun_as = f"encoder {hashlib.sha256(options.parent.read_bytes()).hexdigest()}"
    digest = unsplit_digest(options.base_dir)
    return f"{options.form.value} below {options.split} of {digest}, begun as {begun_as}"


def _student(options: DistillOptions, base: Encoder) -> Student:
    if options.parent is None:
        return Student(base, start(base, options.split), options.form)
    tensors, _ = read_local(options.parent)
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    return Student(base, wide, options.form, is_adapting=True)


def _check(options: DistillOptions, base: Encoder) -> None:
    if not 1 <= options.split < base.config.num_layers:
        raise InvalidArgument("split", f"must be 1 to {base.config.num_layers - 1} for this base")
    if not options.corpus:
        raise InvalidArgument("corpus", "name at least one text file")
    for file in options.corpus:
        if not file.is_file():
            raise InvalidArgument("corpus", f"{file} is no file")


def _read(options: DistillOptions, tokenizer: Tokenizer, watcher: Watcher) -> Tokens:
    total = sum(file.stat().st_size for file in options.corpus)
    done = 0

    def on_bytes(num: int) -> None:
        nonlocal done
        done += num
        watcher.reading(done, total)

    return tokenize(options.corpus, tokenizer, options.out / "tokens", on_bytes)


def _tokenizer(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """What the tokenizer puts before and after a text."""
    ids = tokenizer.encode("a").ids
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    if len(ids) != len(bare) + 2 or ids[1:-1] != bare:
        raise InvalidArgument("base_dir", "its tokenizer must put one token before and after")
    return ids[0], ids[-1]


def _report(options: DistillOptions, tokens: Tokens, outcome: Outcome) -> dict[str, Any]:
    state = outcome.state
    return {
        "split": options.split,
        "form": options.form.value,
        "schedule": asdict(options.schedule),
        "corpus_tokens": tokens.num_tokens,
        "learnt_tokens": state.num_tokens,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "threads": torch.get_num_threads(),
        "fidelity": {name: asdict(value) for name, value in outcome.fidelity.items()},
    }


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
