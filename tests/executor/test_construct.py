"""Distilling a local encoder: real files, a tiny base, a few steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from services.common import ngrams
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument
from services.common.local_encoder_format import FILE_NAME, Form, check_local_encoder
from services.common.ngram_counts import NgramCounts
from services.executor.construct import distill as distilling
from services.executor.construct.adapt import AdaptOptions, adapt
from services.executor.construct.distill import Schedule, State
from services.executor.construct.progress import Watcher
from services.executor.construct.run import ROOT_KEYS, DistillOptions, run, unsplit_digest
from services.executor.construct.shown import PAIRED, ROUND, Texts, drop_outer
from services.executor.construct.student import MERGE
from services.executor.construct.texts import Pieces, Tokens
from tests import tiny

SCHEDULE = Schedule(
    num_tokens=6000, batch_tokens=256, learning_rate=2e-3, warm_up_tokens=1000, seed=3
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> DistillOptions:
    directory = tmp_path_factory.mktemp("construct")
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(tiny.WORDS, rng.integers(5, 80))) for _ in range(60)]
    corpus = directory / "corpus.txt"
    corpus.write_text("\n\n".join(documents))
    base = tiny.write_base(directory / "base")
    return DistillOptions(base, 1, (corpus,), directory / "out", SCHEDULE, max_root_entries=50)


class Halt(Exception):
    """The power goes out."""


class HaltAt(Watcher):
    def __init__(self, step: int) -> None:
        self._step = step

    def learning(self, state: State, num_tokens: int) -> None:
        if state.step == self._step:
            raise Halt


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / FILE_NAME)


@pytest.fixture(scope="module")
def finished(options: DistillOptions) -> DistillOptions:
    run(options)
    return options


def test_learning_brings_the_student_closer_to_its_base(finished: DistillOptions) -> None:
    untaught = replace(finished, out=finished.out / "untaught", schedule=Schedule(num_tokens=0))
    before = run(untaught)["fidelity"]
    after = json.loads((finished.out / "report.json").read_text())["fidelity"]
    for view in ("trigram", "bigram", "unigram"):
        assert np.mean(after[view]["errors"]) < 0.9 * np.mean(before[view]["errors"])


def test_what_is_written_is_admissible_and_bound_to_its_base(finished: DistillOptions) -> None:
    config = BaseConfig.from_file(finished.base_dir / "config.json")
    blob = (finished.out / FILE_NAME).read_bytes()
    digest = unsplit_digest(finished.base_dir)
    file = check_local_encoder("encoder", blob, config, digest, 1 << 20)
    assert (file.split_layer, file.form) == (1, Form.CENTRE)
    with pytest.raises(InvalidArgument):
        check_local_encoder("encoder", blob, config, "0" * 64, 1 << 20)


def test_a_run_that_broke_off_ends_with_the_same_weights(
    finished: DistillOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "_CHECKPOINT_S", 0.0)
    broken = replace(finished, out=tmp_path)
    with pytest.raises(Halt):
        run(broken, HaltAt(5))
    steps: list[int] = []

    class Steps(Watcher):
        def learning(self, state: State, num_tokens: int) -> None:
            steps.append(state.step)

    run(broken, Steps())
    assert steps[0] == 6
    for name, tensor in tensors_of(finished.out).items():
        assert torch.equal(tensor, tensors_of(tmp_path)[name])


def test_a_longer_run_goes_on_from_where_a_shorter_one_slowed_down(
    finished: DistillOptions, tmp_path: Path
) -> None:
    shorter = replace(finished, out=tmp_path, schedule=replace(SCHEDULE, num_tokens=3000))
    run(shorter)
    longer = replace(finished, out=tmp_path)
    run(longer)
    for name, tensor in tensors_of(finished.out).items():
        assert torch.equal(tensor, tensors_of(tmp_path)[name])


def test_adapting_leaves_the_merging_as_it_was(finished: DistillOptions, tmp_path: Path) -> None:
    adapted = replace(finished, out=tmp_path, parent=finished.out / FILE_NAME)
    run(adapted)
    before, after = tensors_of(finished.out), tensors_of(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in MERGE)
    assert not torch.equal(before["layers.0.qkv.weight"], after["layers.0.qkv.weight"])
    assert not (tmp_path / ROOT_KEYS).exists()


def test_the_root_has_every_unigram_and_the_most_frequent_longer_ngrams(
    finished: DistillOptions,
) -> None:
    counts = NgramCounts.from_bytes((finished.out / ROOT_KEYS).read_bytes())
    orders = ngrams.order_of(counts.keys)
    assert (orders == 1).sum() == len(tiny.WORDS) + 4
    long_counts = counts.counts[orders > 1]
    assert len(long_counts) == 50
    assert long_counts.min() >= 2


def test_outer_slots_are_dropped_as_often_as_said_and_the_centre_never() -> None:
    slots = torch.ones(100_000, 3, dtype=torch.int64)
    dropped = drop_outer(slots, np.random.default_rng(0), 0.3)
    assert (dropped[:, 1] == 1).all()
    absent = (dropped == 0).float()
    assert absent[:, 0].mean().item() == pytest.approx(0.2, abs=0.01)
    assert absent[:, 2].mean().item() == pytest.approx(0.2, abs=0.01)
    assert (absent.sum(1) > 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_some_texts_are_shown_as_pairs_and_the_rest_is_filling() -> None:
    rows = [np.arange(10, 40) for _ in range(400)]
    rng = np.random.default_rng(0)
    texts = Texts.to_learn(rows, 7, torch.device("cpu"), rng)
    assert texts.num_tokens == 400 * 30
    assert texts.segments.num_tokens % ROUND == 0
    assert texts.type_ids is not None
    ids = texts.token_ids[: texts.num_tokens].view(400, 30)
    types = texts.type_ids[: texts.num_tokens].view(400, 30)
    is_pair = types.any(1)
    assert is_pair.float().mean().item() == pytest.approx(PAIRED, abs=0.05)
    assert (ids[~is_pair] == torch.arange(10, 40)).all()
    for one, kinds in zip(ids[is_pair], types[is_pair], strict=True):
        at = one.tolist().index(7)
        assert kinds.tolist() == [0] * (at + 1) + [1] * (29 - at)
    # What the student is asked for does not depend on what fills the batch up.
    assert not texts.type_ids[texts.num_tokens :].any()


def test_the_root_holds_what_begins_and_ends_a_text(
    options: DistillOptions, tmp_path: Path
) -> None:
    untaught = replace(options, out=tmp_path, schedule=Schedule(num_tokens=0))
    run(replace(untaught, max_root_entries=10_000))
    counts = NgramCounts.from_bytes((tmp_path / ROOT_KEYS).read_bytes())
    left, _, right = ngrams.unpack(counts.keys).T
    begins, ends = 2, 3  # [CLS] and [SEP] in a tiny base; a slot holds the id plus one
    assert (left == begins + 1).any()
    assert (right == ends + 1).any()


def test_a_checkpoint_of_another_form_is_not_continued(
    finished: DistillOptions, tmp_path: Path
) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    other = replace(finished, out=tmp_path / "out", form=Form.SUM)
    fresh = replace(other, out=tmp_path / "fresh")
    run(other)
    run(fresh)
    for name, tensor in tensors_of(fresh.out).items():
        assert torch.equal(tensor, tensors_of(other.out)[name])


def test_pieces_cover_documents_without_crossing_them() -> None:
    documents = np.array([0, 300, 340, 2000], dtype=np.int64)
    tokens = Tokens(np.arange(2000, dtype=np.uint32), documents, documents)
    pieces = Pieces.cut(tokens, 62, seed=1)
    ends = pieces.starts + pieces.lengths
    assert pieces.lengths.max() <= 62
    assert pieces.lengths.sum() > 1900
    for start, end in zip(pieces.starts, ends, strict=True):
        assert np.searchsorted(documents, start, "right") == np.searchsorted(documents, end, "left")
    batch = next(pieces.batches(256, seed=0))
    assert sum(len(row) for row in pieces.rows(batch, 1, 2)) <= 256


@pytest.mark.parametrize("content", [b"good\nbad \xff line\n", b"", b"\n\n"])
def test_a_corpus_that_is_no_text_is_refused(
    options: DistillOptions, tmp_path: Path, content: bytes
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(content)
    with pytest.raises(InvalidArgument) as refusal:
        run(replace(options, corpus=(corpus,), out=tmp_path / "out"))
    assert refusal.value.field == "corpus"


@pytest.mark.parametrize("num_words", [1, 10])
def test_a_corpus_of_less_than_two_pieces_is_refused(
    options: DistillOptions, tmp_path: Path, num_words: int
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(tiny.WORDS[:1] * num_words))
    with pytest.raises(InvalidArgument) as refusal:
        run(replace(options, corpus=(corpus,), out=tmp_path / "out"))
    assert refusal.value.field == "corpus"


@pytest.mark.parametrize("split", [0, tiny.LAYERS, -1])
def test_a_split_outside_the_base_is_refused(options: DistillOptions, split: int) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        run(replace(options, split=split))
    assert refusal.value.field == "split"


def test_a_domain_adapts_what_its_parent_has(finished: DistillOptions, tmp_path: Path) -> None:
    parent = finished.out / FILE_NAME
    options = AdaptOptions(finished.base_dir, parent, finished.corpus, tmp_path, num_tokens=4000)
    adapted = adapt(options)
    config = BaseConfig.from_file(finished.base_dir / "config.json")
    files = [
        check_local_encoder(
            "encoder", path.read_bytes(), config, unsplit_digest(finished.base_dir), 1 << 20
        )
        for path in (parent, adapted)
    ]
    assert files[0] == files[1]
    assert parent.read_bytes() != adapted.read_bytes()


def test_an_encoder_of_another_base_is_not_adapted(
    finished: DistillOptions, tmp_path: Path
) -> None:
    other = tiny.write_base(tmp_path / "other", seed=1)
    options = AdaptOptions(other, finished.out / FILE_NAME, finished.corpus, tmp_path / "out")
    with pytest.raises(InvalidArgument) as refusal:
        adapt(options)
    assert refusal.value.field == "base_dir"
