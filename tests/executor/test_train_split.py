"""Training a tenant's adapter on a split base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

from hmi.pack import pack
from services.common import ngrams
from services.common.adapter_format import admit
from services.common.adapter_format.split import check_above_split
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument
from services.common.local_encoder_format import FILE_NAME, Form
from services.executor.construct.local_file import load_local, save_local
from services.executor.construct.student import start
from services.executor.miss_policy import MissPolicy
from services.executor.models.encoder import load_base
from services.executor.models.segments import Segments
from services.executor.train import Adapter, TrainOptions
from services.executor.train.looked_up import LookedUp, RowCache, look_up
from services.executor.train.run import train
from services.executor.train.tables import Tables, root_keys
from tests.executor.training import tiny_base, topics

CPU = torch.device("cpu")
ARCHITECTURES = ["bert", "roberta", "distilbert"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with a local encoder beside it."""
    directory = tiny_base(tmp_path_factory.mktemp(request.param), request.param)
    encoder = load_base(directory, dtype=torch.float32, device="cpu")
    tensors = start(encoder, 1)
    generator = torch.Generator().manual_seed(2)
    tensors["positions"] = torch.randn(tensors["positions"].shape, generator=generator)
    for form in Form:
        path = directory / form.value / FILE_NAME
        path.parent.mkdir()
        save_local(path, tensors, split=1, form=form, unsplit_digest="0" * 64)
    return directory


def train_on(base: Path, tmp_path: Path, *, learns: bool = True, **others: Any) -> TrainOptions:
    tmp_path.mkdir(exist_ok=True)
    options = TrainOptions(
        data=topics(tmp_path / "data.csv"),
        base_dir=base,
        base="tiny-split",
        out=tmp_path / "out",
        local_encoder=base / "centre" / FILE_NAME,
        batch_size=8,
        learning_rate=1e-2,
        **{"epochs": 15, **others},
    )
    report = train(options)
    if learns and base.name.startswith(
        "bert"
    ):  # the others' random bases are too small to learn from
        assert report.metrics["accuracy"] > 0.9
    return options


def test_an_adapter_is_learnt_on_the_layers_above_the_split_alone(
    base: Path, tmp_path: Path
) -> None:
    out = train_on(base, tmp_path, domain="news/sport").out
    assert json.loads((out / "hmi.json").read_text())["domain"] == "news/sport"
    names = safetensors.torch.load_file(out / "adapter_model.safetensors")
    adapted = {name.split("layer.")[1][0] for name in names if "lora_" in name}
    assert adapted == {"1"}


@pytest.mark.parametrize("adapter", list(Adapter))
def test_what_was_trained_is_admitted_on_the_split_base(
    base: Path, tmp_path: Path, adapter: Adapter, recwarn: pytest.WarningsRecorder
) -> None:
    options = train_on(base, tmp_path, adapter=adapter, learns=False)
    config = BaseConfig.from_file(base / "config.json")
    version = admit(pack(options.out), config)
    check_above_split(version, 1, config.num_layers)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    peft.PeftModel.from_pretrained(model, options.out)
    assert not [str(w.message) for w in recwarn if "missing adapter keys" in str(w.message)]


@pytest.mark.parametrize("form", list(Form))
def test_padded_rows_get_what_serving_gives_them(base: Path, form: Form) -> None:
    encoder = load_base(base, dtype=torch.float32, device="cpu")
    local = load_local(base / form.value / FILE_NAME, encoder)
    looked_up = LookedUp(local, encoder.config.pad_token_id, None).eval()
    ids = torch.tensor([[2, 9, 8, 7, 3], [2, 9, 3, 0, 0]])
    out = looked_up(input_ids=ids)
    for row, length in enumerate((5, 3)):
        text = ids[row, :length].numpy()
        keys = torch.from_numpy(ngrams.keys_of(text, [length]))
        segments = Segments([length], CPU)
        expected = local.merge(local.split_values(local.rows(keys), segments), None, segments)
        assert torch.allclose(out[row, :length], expected, atol=1e-6)
    assert (out[1, 3:] == 0).all()


def test_a_row_computed_before_is_the_same_row(base: Path) -> None:
    encoder = load_base(base, dtype=torch.float32, device="cpu")
    local = load_local(base / "centre" / FILE_NAME, encoder)
    cache = RowCache(local)
    first = ngrams.keys_of([5, 6, 7, 8], [4])
    second = ngrams.keys_of([8, 5, 6, 7, 5], [5])
    for keys in (first, second, first):
        assert torch.equal(cache.rows(keys), local.rows(torch.from_numpy(keys)))


def test_rows_stay_those_of_their_keys_as_more_come(base: Path) -> None:
    local = load_local(
        base / "centre" / FILE_NAME, load_base(base, dtype=torch.float32, device="cpu")
    )
    cache = RowCache(local)
    rng = np.random.default_rng(0)
    for length in (1, 40, 3, 200, 40):
        keys = ngrams.keys_of(rng.integers(4, 30, length), [length])
        assert torch.equal(cache.rows(keys), local.rows(torch.from_numpy(keys)))


def answered_with(tables: Tables, text: list[int], *, is_learning: bool) -> list[list[int]]:
    """By token: ids of the n-gram that answers, without what is absent."""
    keys = ngrams.keys_of(text, [len(text)])
    slots = ngrams.unpack(tables.answering(keys, is_learning=is_learning))
    return [[slot - 1 for slot in key if slot] for key in slots.tolist()]


def test_a_text_that_is_learnt_from_misses_what_no_other_holds() -> None:
    root = np.sort(ngrams.pack([6 + 1], [7 + 1], [8 + 1]))
    tables = Tables(root, [[5, 6, 7, 8], [5, 6, 9], [6, 5]])
    assert answered_with(tables, [5, 6, 7, 8], is_learning=True) == [[5, 6], [5, 6], [6, 7, 8], [8]]
    # The same text, if it is another that comes: all of it was counted.
    assert answered_with(tables, [5, 6, 7, 8], is_learning=False) == [
        [5, 6], [5, 6, 7], [6, 7, 8], [7, 8]
    ]  # fmt: skip
    assert answered_with(tables, [4, 7, 8, 3], is_learning=False) == [[4], [7, 8], [7, 8], [3]]


def test_only_under_backoff_do_texts_miss_rows(base: Path) -> None:
    encoder = load_base(base, dtype=torch.float32, device="cpu")
    local = load_local(base / "centre" / FILE_NAME, encoder)
    pad_id = encoder.config.pad_token_id
    ids = torch.randint(4, 30, (1, 40), generator=torch.Generator().manual_seed(0))
    tables = Tables(np.empty(0, np.int64), [ids[0].tolist()])
    compute, backoff = LookedUp(local, pad_id, None), LookedUp(local, pad_id, tables)
    whole = compute.eval()(ids)
    assert torch.equal(compute.train()(ids), whole)
    assert torch.equal(backoff.eval()(ids), whole)
    assert not torch.equal(backoff.train()(ids), whole)


def test_the_policy_is_that_of_the_run(base: Path, tmp_path: Path) -> None:
    outs = [
        train_on(base, tmp_path / policy, policy=policy, epochs=2, learns=False).out
        for policy in MissPolicy
    ]
    one, other = (safetensors.torch.load_file(out / "adapter_model.safetensors") for out in outs)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_file_that_lists_no_root_keys_is_refused(base: Path) -> None:
    with pytest.raises(InvalidArgument, match="root_keys"):
        root_keys(base / "model.safetensors")


def test_peft_reads_the_result_onto_a_split_model(base: Path, tmp_path: Path) -> None:
    options = train_on(base, tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    inner = model.get_submodule(model.base_model_prefix)
    assert options.local_encoder is not None
    assert look_up(inner, base, options.local_encoder, None, device=CPU) == 1
    loaded = peft.PeftModel.from_pretrained(model, options.out).eval()
    with torch.inference_mode():
        logits = loaded(input_ids=torch.tensor([[2, 9, 8, 7, 3]])).logits
    assert torch.isfinite(logits).all()


def test_a_file_that_is_no_local_encoder_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        look_up(
            transformers.AutoModel.from_pretrained(base),
            base,
            base / "model.safetensors",
            None,
            device=CPU,
        )
