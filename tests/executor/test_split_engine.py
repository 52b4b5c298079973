"""Split and unsplit models on one copy of the upper layers, against the local encoder alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.common import ngrams
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.local_encoder_format import Form
from services.executor.engine.engine import Part
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Item
from services.executor.miss_policy import MissPolicy
from services.executor.models.bypass import NoBypass
from services.executor.models.segments import Segments
from services.executor.plot.manifest import Manifest
from tests.executor.split_world import (
    CPU,
    SPLIT,
    VOCAB,
    World,
    keys_of,
    random_texts,
    split_world,
    write_local,
)

TEXTS = random_texts(6)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with split_world(tmp_path) as world:
        yield world


class HiddenHeads:
    """Answers each row's hidden states, `[tokens, hidden]`."""

    def run(self, slots: Sequence[object], hidden: Tensor, segments: Segments) -> Sequence[Tensor]:
        return torch.split(hidden, segments.lengths)


def own_output(world: World, ids: Sequence[int], num_first: int = 0) -> np.ndarray:
    """What the local encoder and the layers above it make of a text, without tables."""
    local = world.local()
    assert world.oracle_base is not None
    segments = Segments([len(ids)], CPU)
    keys = torch.from_numpy(ngrams.keys_of(ids, [len(ids)]))
    types = torch.tensor([int(0 < num_first <= place) for place in range(len(ids))])
    with torch.inference_mode():
        rows = local.split_values(local.rows(keys), segments)
        hidden = local.merge(rows, types, segments)
        return world.oracle_base.run(
            hidden, segments, layers=range(SPLIT, 2), bypass=NoBypass()
        ).numpy()


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("policy", list(MissPolicy))
async def test_with_every_n_gram_in_the_table_hidden_states_are_the_local_encoders(
    tmp_path: Path, form: Form, policy: MissPolicy
) -> None:
    async with split_world(tmp_path, form) as world:
        loaded = await world.load("hminilm")
        world.bases[loaded.digest] = replace(loaded, heads=HiddenHeads())
        version = world.tables(keys_of(TEXTS), policy)
        digest = world.adapter(0, is_null=True)
        firsts = [0, 3, 0, 1, 2, 0]
        items = [
            world.item(ids, digest, version, first)
            for ids, first in zip(TEXTS, firsts, strict=True)
        ]
        for ids, first, got in zip(TEXTS, firsts, await world.answers(*items), strict=True):
            np.testing.assert_allclose(got, own_output(world, ids, first), atol=2e-5)


@pytest.mark.parametrize("form", list(Form))
async def test_under_compute_answers_do_not_depend_on_what_tables_hold(
    tmp_path: Path, form: Form
) -> None:
    async with split_world(tmp_path, form) as world:
        await world.load("hminilm")
        every = keys_of(TEXTS)
        digest = world.adapter(1)
        answers = []
        for held in (every, every[::3], every[:0]):
            version = world.tables(held, MissPolicy.COMPUTE)
            answers.append(await world.answers(*(world.item(t, digest, version) for t in TEXTS)))
        for full, partial, empty in zip(*answers, strict=True):
            np.testing.assert_allclose(partial, full, atol=1e-5)
            np.testing.assert_allclose(empty, full, atol=1e-5)


async def test_a_mixed_batch_equals_each_alone(world: World) -> None:
    await world.load("minilm")
    await world.load("hminilm")
    backoff = world.tables(keys_of(TEXTS[:3]))
    compute = world.tables(keys_of(TEXTS[3:]), MissPolicy.COMPUTE)
    on_top, on_all = world.adapter(1), world.adapter(2, layers=(0, 1))
    items: list[Item] = []
    for ids in TEXTS:
        items.append(world.item(ids, on_all))
        items.append(world.item(ids, on_top, backoff))
        items.append(world.item(ids, on_top, compute, num_first=2))
    plans, events = await world.plans(items)
    assert not events
    assert [len(plan.rows) for plan in plans] == [len(items)]
    for row in plans[0].rows:
        world.bases[row.item.key.base_digest].release(row.pinned)
    together = await world.answers(*items)
    for item, expected in zip(items, together, strict=True):
        [alone] = await world.answers(item)
        np.testing.assert_allclose(alone, expected, atol=1e-5)


async def test_bases_of_one_unsplit_digest_share_layers_and_adapters(world: World) -> None:
    split, unsplit = await world.load("hminilm"), await world.load("minilm")
    assert split.encoder is unsplit.encoder
    assert split.heads is unsplit.heads
    assert split.unsplit_digest == unsplit.unsplit_digest == unsplit.digest
    digest = world.adapter(1)
    item = world.item(TEXTS[0], digest)
    await world.answers(item)
    assert digest in split.adapters.resident_digests()


async def test_what_one_base_shares_outlives_it(world: World) -> None:
    split, unsplit = await world.load("hminilm"), await world.load("minilm")
    item = world.item(TEXTS[0], world.adapter(1))
    [before] = await world.answers(item)
    del world.bases[split.digest]
    await asyncio.to_thread(split.close)
    other = world.item(TEXTS[0], world.adapter(2))
    [again], [after] = await world.answers(item), await world.answers(other)
    np.testing.assert_array_equal(before, again)
    assert np.isfinite(after).all()
    assert (await world.load("minilm")).encoder is unsplit.encoder


async def test_pins_of_bases_that_share_a_store_add_up(world: World) -> None:
    split, unsplit = await world.load("hminilm"), await world.load("minilm")
    version = world.tables(keys_of(TEXTS))
    one, other = (
        world.item(TEXTS[0], world.adapter(1)),
        world.item([2, 3], world.adapter(2), version),
    )
    unsplit.adapters.pin(frozenset({one.key}))
    split.adapters.pin(frozenset({other.key}))
    wanted = {one.key.digest, other.key.digest}
    async with asyncio.timeout(10):
        while not wanted <= unsplit.adapters.resident_digests():  # noqa: ASYNC110  loads on threads
            await asyncio.sleep(0.01)


async def test_under_backoff_nothing_below_the_split_runs(world: World) -> None:
    loaded = await world.load("hminilm")
    version = world.tables(keys_of(TEXTS[:2]))
    items = [world.item(ids, world.adapter(1), version) for ids in TEXTS]
    before = await world.answers(*items)
    poison(loaded)
    after = await world.answers(*items)
    for first, second in zip(before, after, strict=True):
        assert np.isfinite(second).all()
        np.testing.assert_array_equal(first, second)


async def test_what_would_run_below_the_split_shows_in_a_poisoned_answer(world: World) -> None:
    loaded = await world.load("hminilm")
    version = world.tables(keys_of(TEXTS[:2]), MissPolicy.COMPUTE)
    items = [world.item(ids, world.adapter(1), version) for ids in TEXTS]
    poison(loaded)
    is_finite = [np.isfinite(output).all() for output in await world.answers(*items)]
    assert is_finite == [True, True, False, False, False, False]


def poison(loaded: LoadedBase) -> None:
    """NaN in the embeddings and in every layer below the split, the base's and the local ones."""
    weights = loaded.encoder.weights  # type: ignore[attr-defined]
    embeddings = weights.embeddings
    for tensor in (embeddings.words, embeddings.positions, embeddings.types):
        tensor.fill_(torch.nan)
    assert loaded.split is not None
    local = loaded.split.merger.weights.layers  # type: ignore[attr-defined]
    for layer in (*weights.layers[:SPLIT], *local):
        for linear in (layer.qkv, layer.attention_output, layer.ffn_input, layer.ffn_output):
            linear.weight.fill_(torch.nan)


async def test_each_row_of_a_batch_reads_the_tables_it_names(world: World) -> None:
    await world.load("hminilm")
    few, many = world.tables(keys_of(TEXTS[:1])), world.tables(keys_of(TEXTS))
    digest = world.adapter(1)
    alone = [
        (await world.answers(world.item(TEXTS[4], digest, version)))[0] for version in (few, many)
    ]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    items = [world.item(TEXTS[4], digest, version) for version in (few, many, few)]
    got = await world.answers(*items)
    for output, expected in zip(got, (alone[0], alone[1], alone[0]), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


async def test_tables_that_cannot_be_used_fail_their_items_only(world: World) -> None:
    await world.load("hminilm")
    good = world.tables(keys_of(TEXTS))
    foreign = world.put(Manifest("ab" * 32, MissPolicy.BACKOFF, (world.segments(keys_of(TEXTS)),)))
    no_unigrams = world.put(
        Manifest(
            world.protos["hminilm"].digest,
            MissPolicy.BACKOFF,
            (world.segments(keys_of([[2, 5, 3]])),),
        )
    )
    no_manifest = world.store.put(b"no manifest")
    digest = world.adapter(1)
    versions = ["cd" * 32, foreign, no_unigrams, no_manifest, good]
    items = [world.item(TEXTS[0], digest, version) for version in versions]
    plans, events = await world.plans(items)
    errors = {event.item.id: type(event.error) for event in events}
    assert [errors.get(item.id) for item in items] == [
        FailedPrecondition,
        FailedPrecondition,
        FailedPrecondition,
        InvalidArgument,
        None,
    ]
    assert [row.item.id for plan in plans for row in plan.rows] == [items[4].id]
    for plan in plans:
        for row in plan.rows:
            world.bases[row.item.key.base_digest].release(row.pinned)


async def test_an_adapter_of_layers_that_are_looked_up_is_refused_there_alone(
    world: World,
) -> None:
    await world.load("minilm")
    await world.load("hminilm")
    digest = world.adapter(1, layers=(0, 1))
    version = world.tables(keys_of(TEXTS))
    [event] = (await world.plans([world.item(TEXTS[0], digest, version)]))[1]
    assert isinstance(event.error, InvalidArgument)
    [answer] = await world.answers(world.item(TEXTS[0], digest))
    assert np.isfinite(answer).all()


async def test_a_local_encoder_of_another_split_refuses_the_base(world: World) -> None:
    world.protos["hminilm"].split.layer = 2
    with pytest.raises(InvalidArgument):
        await world.load("hminilm")


async def test_what_was_looked_up_is_observed_once_answered(world: World) -> None:
    parts: list[Part] = []
    world.observe = parts.append
    await world.load("minilm")
    await world.load("hminilm")
    version = world.tables(keys_of(TEXTS[:1])[:0])
    split, unsplit = world.adapter(1), world.adapter(2)
    await world.answers(
        world.item(TEXTS[0], unsplit),
        world.item(TEXTS[1], split, version),
        world.item(TEXTS[2], split, version),
    )
    [part] = parts
    assert [row.item.table_version for row in part.rows] == [version, version]
    assert part.base.name == "hminilm"
    assert part.retrieved is not None
    assert part.retrieved.results.tolist() == [1] * (len(TEXTS[1]) + len(TEXTS[2]))


async def test_rows_of_a_domains_own_encoder_mix_with_the_roots(world: World) -> None:
    await world.load("hminilm")
    directory = world.directory / "hminilm"
    world.local()
    assert world.oracle_base is not None
    write_local(directory / "news.safetensors", world.oracle_base, Form.CENTRE, 9, "00" * 32)
    unigrams = ngrams.pack(np.zeros(VOCAB), np.arange(VOCAB) + 1, np.zeros(VOCAB))
    root = world.segments(unigrams)
    news = replace(world.segments(keys_of(TEXTS), "news.safetensors"), path="news")
    digest = world.adapter(1)
    answers = []
    for policy in MissPolicy:
        manifest = Manifest(world.protos["hminilm"].digest, policy, (root, news))
        item = world.item(TEXTS[0], digest, world.put(manifest))
        answers += await world.answers(item)
    # Every n-gram is the domain's own: nothing is missing, nothing is computed.
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    [root_alone] = await world.answers(world.item(TEXTS[0], digest, world.tables(keys_of(TEXTS))))
    assert np.abs(answers[0] - root_alone).max() > 1e-3
