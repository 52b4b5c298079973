"""Training whole: what is learnt, what is written, and that PEFT reads it back unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from hmi.pack import pack
from services.common.adapter_format import admit
from services.common.base_config import BaseConfig
from services.common.errors import FailedPrecondition, InvalidArgument
from services.executor.train import Adapter, Precision, TrainOptions, TrainReport
from services.executor.train.options import Epoch, Task
from services.executor.train.run import train
from tests.executor.training import WORDS, tiny_base, topics

ARCHITECTURES = ["bert", "roberta", "distilbert"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_base(root / name, name) for name in ARCHITECTURES}


def options(base_dir: Path, data: Path, **others: Any) -> TrainOptions:
    given = {
        "epochs": 15,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "out": data.parent / "out",
        **others,
    }
    return TrainOptions(data=data, base_dir=base_dir, base="tiny", **given)


def logits_after_reload(base_dir: Path, out: Path, text: str) -> Tensor:
    """PEFT's own way: a fresh base with a fresh head, then from_pretrained."""
    hmi = json.loads((out / "hmi.json").read_text())
    is_tagger = hmi["task"] == "token_classification"
    auto = (
        transformers.AutoModelForTokenClassification
        if is_tagger
        else transformers.AutoModelForSequenceClassification
    )
    torch.manual_seed(99)
    base = auto.from_pretrained(base_dir, num_labels=len(hmi["labels"]))
    model = peft.PeftModel.from_pretrained(base, out).eval()
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    tokenizer.no_padding()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokenizer.encode(text).ids])).logits[0]


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.num_steps = 0
        self.epochs: list[Epoch] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.calls.append("note")
        self.notes.append(text)

    def start(self, num_steps: int) -> None:
        self.calls.append("start")
        self.num_steps = num_steps

    def step(self, loss: float) -> None:
        self.calls.append("step")

    def epoch(self, done: Epoch) -> None:
        self.calls.append(f"epoch {done.number}")
        self.epochs.append(done)

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.mark.parametrize("adapter", list(Adapter))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_topics_are_learnt_and_peft_reloads_the_same_logits(
    bases: dict[str, Path],
    tmp_path: Path,
    architecture: str,
    adapter: Adapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Any] = []
    remember_model(monkeypatch, trained)
    base_dir = bases[architecture]
    rate = 1e-2 if adapter is Adapter.LORA else 3e-2
    data = topics(tmp_path / "d.csv")
    report = train(options(base_dir, data, adapter=adapter, learning_rate=rate))
    assert report.labels == ("food", "sport")
    assert (report.num_train, report.num_held_out) == (48, 12)
    assert report.metrics["accuracy"] >= 0.9
    text = "the coach is good soup"
    reloaded = logits_after_reload(base_dir, report.out, text)
    torch.testing.assert_close(reloaded, logits_of(trained[0], base_dir, text), rtol=0, atol=1e-6)


def remember_model(monkeypatch: pytest.MonkeyPatch, models: list[Any]) -> None:
    """Keeps the model that training held in memory when it wrote its directory."""
    wrap = peft.get_peft_model

    def wrap_and_keep(*args: Any, **kwargs: Any) -> Any:
        models.append(wrap(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr(peft, "get_peft_model", wrap_and_keep)


def logits_of(model: Any, base_dir: Path, text: str) -> Tensor:
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    tokenizer.no_padding()
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([tokenizer.encode(text).ids])).logits[0]


def test_the_directory_names_the_base_and_holds_adapter_and_head_only(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    report = train(options(bases["bert"], topics(tmp_path / "d.csv"), epochs=1))
    names = {"adapter_config.json", "adapter_model.safetensors", "hmi.json"}
    assert {path.name for path in report.out.iterdir()} == names
    config = json.loads((report.out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert (config["peft_type"], config["task_type"]) == ("LORA", "SEQ_CLS")
    assert json.loads((report.out / "hmi.json").read_text()) == {
        "task": "sequence_classification",
        "labels": ["food", "sport"],
        "pooling": None,
        "normalize": False,
        "base": "tiny",
    }
    tensors = safetensors.torch.load_file(report.out / "adapter_model.safetensors")
    kinds = {name.rpartition("layer.")[2].split(".", 1)[-1] for name in tensors}
    assert {kind for kind in kinds if "lora" in kind} == {
        f"attention.self.{target}.lora_{side}.weight"
        for target in ("query", "value")
        for side in "AB"
    }
    heads = {name.rpartition("base_model.model.")[2] for name in tensors if "layer" not in name}
    assert heads == {"classifier.weight", "classifier.bias"}


def test_a_pooler_that_the_base_lacks_is_trained_and_travels_with_the_head(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", "bert", with_pooler=False)
    report = train(options(base_dir, topics(tmp_path / "d.csv"), epochs=1))
    tensors = safetensors.torch.load_file(report.out / "adapter_model.safetensors")
    assert "base_model.model.bert.pooler.dense.weight" in tensors
    text = "the oven is bad"
    first, second = (logits_after_reload(base_dir, report.out, text) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    data = topics(tmp_path / "d.csv")
    outs = []
    state = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        train(options(bases["bert"], data, epochs=2, seed=seed, out=out))
        outs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outs[0] == outs[1]
    assert outs[0]["adapter_model.safetensors"] != outs[2]["adapter_model.safetensors"]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_spans_are_learnt(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = []
    for i in range(80):
        name, place = ("anna", "berg")[i % 2], ("oslo", "paris")[i // 2 % 2]
        text = (f"{name} is in {place}", f"{place} is good for {name}")[i % 3 == 0]
        spans = [
            {"start": text.index(word), "end": text.index(word) + len(word), "label": label}
            for word, label in ((name, "PER"), (place, "LOC"))
        ]
        rows.append(json.dumps({"text": text, "spans": spans}))
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(rows))
    report = train(options(bases["bert"], data))
    assert report.task is Task.TOKEN_CLASSIFICATION
    assert report.labels == ("LOC", "PER")
    assert report.metrics["span_f1"] >= 0.9
    hmi = json.loads((report.out / "hmi.json").read_text())
    assert hmi["labels"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    tags = logits_after_reload(bases["bert"], report.out, "anna is in oslo").argmax(-1).tolist()
    assert tags[1:-1] == [3, 0, 0, 1]


def test_several_labels_are_learnt(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = ["text,labels"]
    for i in range(90):
        has = (i % 3 > 0, i % 2 > 0)
        text = f"the {'soup' if has[0] else 'works'} is {'goal' if has[1] else 'acme'}"
        rows.append(
            f"{text},{'|'.join(x for x, y in zip(('food', 'sport'), has, strict=True) if y)}"
        )
    data = tmp_path / "d.csv"
    data.write_text("\n".join(rows))
    report = train(options(bases["bert"], data))
    assert report.task is Task.MULTI_LABEL_CLASSIFICATION
    assert report.metrics["macro_f1"] >= 0.9
    logits = logits_after_reload(bases["bert"], report.out, "the soup is goal")
    assert (logits > 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_numbers_far_from_zero_are_learnt_in_their_own_unit(
    bases: dict[str, Path], tmp_path: Path, architecture: str
) -> None:
    words = {"bad": 900.0, "works": 1000.0, "good": 1100.0}
    rows = ["text,value"]
    for i in range(90):
        word = list(words)[i % 3]
        rows.append(f"the {WORDS[i % 4]} is {word},{words[word]}")
    data = tmp_path / "d.csv"
    data.write_text("\n".join(rows))
    report = train(options(bases[architecture], data))
    assert report.metrics["rmse"] < 25  # always answering the mean gives 82
    logits = logits_after_reload(bases[architecture], report.out, "the salt is good")
    assert logits.shape == (1,)
    assert abs(logits.item() - 1100) < 60


def test_pairs_are_learnt_from_both_texts(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = ["text,text_pair,label"]
    for i in range(60):
        second = ("the goal is good", "the soup is good")[i % 2]
        rows.append(f"the {WORDS[i % 4]} works,{second},{('no', 'yes')[i % 2]}")
    data = tmp_path / "d.csv"
    data.write_text("\n".join(rows))
    report = train(options(bases["bert"], data))
    assert report.metrics["accuracy"] >= 0.9


def test_training_stops_early_keeps_the_best_epoch_and_finishes_the_bar(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "d.csv"
    # Labels that say nothing of the text: nothing to learn, so the held-out loss soon rises.
    data.write_text(
        "text,label\n" + "".join(f"the {WORDS[i % 22]},{i * 7 % 5 % 2}\n" for i in range(60))
    )
    recorder = Recorder()
    report = train(options(bases["bert"], data, epochs=50, patience=2), recorder)
    assert report.epochs < 50
    assert report.best_epoch == report.epochs - 2
    assert recorder.num_steps == 50 * 6
    assert recorder.calls[0] == "start"
    assert recorder.calls[-2:] == [f"epoch {report.epochs}", "finish"]
    assert recorder.calls.count("step") == report.epochs * 6
    assert {one.num_epochs for one in recorder.epochs} == {50}
    [*_, best] = [one for one in recorder.epochs if one.is_best]
    assert (best.number, best.metrics) == (report.best_epoch, report.metrics)
    assert best.held_out_loss == min(one.held_out_loss for one in recorder.epochs)


@pytest.mark.parametrize(("max_tokens", "read"), [(None, 63), (1000, 63), (32, 32)])
def test_longer_texts_than_are_read_are_cut_counted_and_named_before_training(
    bases: dict[str, Path], tmp_path: Path, max_tokens: int | None, read: int
) -> None:
    data = topics(tmp_path / "d.csv", 20)
    data.write_text(data.read_text() + "\n" + ("soup " * 100 + ",food\n") * 7)
    recorder = Recorder()
    report = train(options(bases["roberta"], data, epochs=1, max_tokens=max_tokens), recorder)
    assert (report.num_truncated, report.max_tokens) == (7, read)
    assert tuple(recorder.notes) == report.notes
    assert recorder.calls[:2] == ["note", "start"]
    [note] = report.notes
    assert f"7 texts have more than {read} tokens" in note
    assert "d.csv:22, d.csv:23, d.csv:24, d.csv:25, d.csv:26 and 2 more" in note
    assert "refuses a text of more than 63 tokens" in note


def test_labels_that_the_metrics_leave_out_are_named(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    data = topics(tmp_path / "d.csv", 20)
    data.write_text(data.read_text() + "\nthe league is good,rare\n")
    report = train(options(bases["bert"], data, epochs=1))
    [note] = report.notes
    assert note.startswith("no held-out text has the label 'rare'")


def test_bfloat16_learns_as_well(bases: dict[str, Path], tmp_path: Path) -> None:
    data = topics(tmp_path / "d.csv")
    report = train(options(bases["bert"], data, precision=Precision.BFLOAT16))
    assert report.metrics["accuracy"] >= 0.9


def test_a_report_is_json(bases: dict[str, Path], tmp_path: Path) -> None:
    report: TrainReport = train(options(bases["bert"], topics(tmp_path / "d.csv"), epochs=1))
    loaded = json.loads(json.dumps(report.to_json()))
    assert loaded["task"] == "sequence_classification"
    assert loaded["out"] == str(report.out)
    assert loaded["notes"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"epochs": 0}, "epochs"),
        ({"held_out": 0.6}, "held_out"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"device": "tpu"}, "device"),
        ({"domain": "News/Sport"}, "domain"),
        ({"target_modules": ("no_such_layer",)}, "target_modules"),
    ],
)
def test_a_wrong_option_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        train(options(bases["bert"], topics(tmp_path / "d.csv"), **change))
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_base_that_lacks_a_file_is_refused(tmp_path: Path, missing: str) -> None:
    base_dir = tiny_base(tmp_path / "base", "bert")
    (base_dir / missing).unlink()
    with pytest.raises((InvalidArgument, FailedPrecondition), match=missing):
        train(options(base_dir, topics(tmp_path / "d.csv")))


def test_a_base_of_another_architecture_or_without_its_weights_is_refused(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", "bert")
    weights = safetensors.torch.load_file(base_dir / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    safetensors.torch.save_file(kept, base_dir / "model.safetensors", metadata={"format": "pt"})
    data = topics(tmp_path / "d.csv")
    with pytest.raises(InvalidArgument, match="encoder"):
        train(options(base_dir, data))
    config = json.loads((base_dir / "config.json").read_text())
    (base_dir / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(InvalidArgument, match="gpt2"):
        train(options(base_dir, data))


@pytest.mark.parametrize("adapter", list(Adapter))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_training_writes_is_admitted_for_serving(
    bases: dict[str, Path], tmp_path: Path, architecture: str, adapter: Adapter
) -> None:
    base_dir = bases[architecture]
    data = topics(tmp_path / "d.csv")
    report = train(options(base_dir, data, adapter=adapter, epochs=1))
    config = BaseConfig.from_file(base_dir / "config.json")
    admitted = admit(pack(report.out), config)
    assert admitted.task.value == "sequence_classification"
    assert tuple(admitted.labels) == ("food", "sport")
    assert admitted.adapter_type.value.lower() == adapter.value
