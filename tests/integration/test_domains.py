"""Domains through a whole stack: a split base, a corpus by the command line, models, answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

from hmi.cli.main import run
from hmi.client import Classification, Client, Domain, Predictions
from hmi.errors import FailedPrecondition, InvalidArgument, NotFound
from hmi.stack import LocalStack
from services.common import ngrams
from services.common.bases import base_digest
from services.common.ngram_counts import NgramCounts
from services.executor.construct.local_file import load_local
from services.executor.models.encoder import load_base
from services.executor.train.looked_up import LookedUp, Passed
from tests.gateway.blobs import sha256
from tests.gateway.split import encoder_blob, pb_files
from tests.integration.cluster import until
from tests.integration.conftest import Account
from tests.tiny import write_base, write_lora

BASE = "tiny-split"
ANIMALS = ("the cat sat", "a dog ran", "the big cat ran", "a small dog sat")
PAPERS = ("news of the vote", "team price", "a price on news", "the team vote")
ENDS = ("on the mat", "under a house", "on a river", "under the red house", "on the song")
TEXTS = ["the cat sat on the mat", "a big red house", "team news under a vote", "river song"]


@dataclass(frozen=True, slots=True)
class Split:
    """A split base that is registered, its directory, and the command line of its stack."""

    directory: Path
    admin: Client
    arguments: tuple[str, ...]

    def node(self, path: str = "") -> Domain:
        return self.admin.get_domain(BASE, path)

    def hmi(self, *arguments: str) -> int:
        return run([*arguments, *self.arguments])

    def create(self, path: str, *options: str) -> Domain:
        status = self.hmi(
            "domains", "create", path, "--base", BASE, "--base-dir", str(self.directory), *options
        )
        assert status == 0
        return self.node(path)


@pytest.fixture(scope="module")
def split(stack: LocalStack, admin: Client, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """A tiny BERT of two layers, the lower looked up; the executor makes its root's table."""
    directory = write_base(tmp_path_factory.mktemp("split") / "base")
    names = ("config.json", "model.safetensors", "tokenizer.json")
    files = {name: (directory / name).read_bytes() for name in names}
    encoder = encoder_blob(base_digest(pb_files(files)))
    (directory / "local_encoder.safetensors").write_bytes(encoder)
    keys = ngrams.pack([3], [5], [7])
    counts = NgramCounts(keys, np.array([5]), 100, sha256(files["tokenizer.json"]))
    (directory / "root_keys.safetensors").write_bytes(counts.to_bytes())
    made = Split(directory, admin, ("--data-dir", str(stack.data_dir)))
    assert made.hmi("bases", "add", BASE, str(directory)) == 0
    until(lambda: bool(made.node().table_version))
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(TEXTS * 3))
    return path


@pytest.fixture(scope="module")
def above(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the layer above the split."""
    return write_lora(tmp_path_factory.mktemp("lora"), seed=1, layers=(1,))


def scores(predictions: Predictions) -> np.ndarray:
    """`[texts, labels]`."""
    rows = []
    for one in predictions:
        assert isinstance(one, Classification)
        rows.append([label.score for label in one.scores])
    return np.array(rows)


def push(account: Account, above: Path, model: str, domain: str, *, follow: bool = False) -> Any:
    return account.client.push_version(model, above, base=BASE, domain=domain, follow=follow)


def test_a_corpus_becomes_a_table_that_answers_name(
    split: Split, account: Account, corpus: Path, above: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = split.create("news", "--corpus", str(corpus), "--alpha", "1.0")
    assert node.table_version not in ("", split.node().table_version)
    assert split.hmi("domains", "tree", "--base", BASE, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    entries = {one["domain"]["path"]: one["num_entries"] for one in tree["nodes"]}
    assert entries[""][0] == 26  # every token of the vocabulary
    assert min(entries["news"][1:]) > 0
    version = push(account, above, "topic", "news")
    assert version.table_version == node.table_version
    answers = account.client.predict("topic", TEXTS)
    assert answers.provenance.table_version == node.table_version
    assert np.isfinite(scores(answers)).all()
    with pytest.raises(FailedPrecondition):
        split.admin.delete_domain(BASE, "news")


def test_answers_by_computed_rows_do_not_depend_on_the_tables(
    split: Split, account: Account, corpus: Path, above: Path
) -> None:
    empty = split.create("bare", "--policy", "compute")
    full = split.create("full", "--policy", "compute", "--corpus", str(corpus), "--alpha", "1.0")
    backed_off = split.create("backed-off")
    found = {}
    for node in (empty, full, backed_off):
        push(account, above, node.path, node.path)
        answers = account.client.predict(node.path, TEXTS)
        assert answers.provenance.table_version == node.table_version
        found[node.path] = scores(answers)
    assert found["bare"] == pytest.approx(found["full"], abs=1e-3)
    assert np.abs(found["backed-off"] - found["full"]).max() > 1e-2


def test_a_version_that_follows_reads_the_new_table_and_the_other_stays(
    split: Split, account: Account, corpus: Path, above: Path
) -> None:
    before = split.create("moving", "--corpus", str(corpus), "--alpha", "0.1")
    push(account, above, "still", "moving")
    push(account, above, "led", "moving", follow=True)
    first = {name: account.client.predict(name, TEXTS) for name in ("still", "led")}
    assert scores(first["still"]) == pytest.approx(scores(first["led"]), abs=1e-6)
    assert split.hmi("domains", "set", "moving", "--base", BASE, "--alpha", "1.0") == 0
    assert split.hmi("domains", "update", "moving", "--base", BASE) == 0
    after = split.node("moving")
    assert after.table_version != before.table_version
    second = {name: account.client.predict(name, TEXTS) for name in ("still", "led")}
    assert second["still"].provenance.table_version == before.table_version
    assert second["led"].provenance.table_version == after.table_version
    assert scores(second["still"]) == pytest.approx(scores(first["still"]), abs=1e-6)
    assert np.abs(scores(second["led"]) - scores(first["led"])).max() > 1e-5
    assert split.hmi("domains", "rollback", "moving", "--base", BASE) == 0
    until(lambda: not split.node("moving").is_updating)
    third = scores(account.client.predict("led", TEXTS))
    assert third == pytest.approx(scores(first["led"]), abs=1e-6)


def test_a_private_domain_is_nobody_elses(
    split: Split, account: Account, other: Account, corpus: Path, above: Path
) -> None:
    path = account.name
    made = split.create(path, "--corpus", str(corpus), "--tenant", account.name)
    assert made.tenant == account.name
    push(account, above, "mine", path)
    with pytest.raises(NotFound):
        push(other, above, "theirs", path)
    with pytest.raises(NotFound):
        other.client.get_domain(BASE, path)
    assert path not in [stats.domain.path for stats in other.client.list_domains(BASE)]
    assert {stats.lookups for stats in account.client.list_domains(BASE)} == {None}


def test_an_adapter_below_the_split_is_told_what_to_do(
    split: Split, account: Account, tmp_path: Path
) -> None:
    both = write_lora(tmp_path, seed=2)
    with pytest.raises(InvalidArgument) as caught:
        push(account, both, "topic", "")
    assert caught.value.field == "adapter_config.layers_to_transform"
    assert "layers_to_transform=[1]" in caught.value.message


def test_a_domain_may_learn_an_encoder_of_its_own(
    split: Split, account: Account, corpus: Path, above: Path, tmp_path: Path
) -> None:
    root = split.node()
    options = ("--adapt", "--adapt-tokens", "2000", "--adapt-out", str(tmp_path / "run"))
    node = split.create("adapted", "--corpus", str(corpus), "--alpha", "1.0", *options)
    assert node.encoder_sha256 != root.encoder_sha256
    encoder = tmp_path / "run" / "local_encoder.safetensors"
    assert node.encoder_sha256 == sha256(encoder.read_bytes())
    push(account, above, "own", "adapted")
    answers = account.client.predict("own", TEXTS)
    assert answers.provenance.table_version == node.table_version
    assert np.isfinite(scores(answers)).all()


def test_a_model_trained_for_a_domain_answers_there_as_it_was_trained(
    split: Split, account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{start} {end}" for start in ANIMALS + PAPERS for end in ENDS]
    labels = ["animal"] * (len(texts) // 2) + ["paper"] * (len(texts) // 2)
    (tmp_path / "corpus.txt").write_text("\n".join(texts * 2))
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    node = split.create("trained", "--corpus", str(tmp_path / "corpus.txt"), "--alpha", "1.0")
    out = tmp_path / "out"
    base = ["--base", BASE, "--base-dir", str(split.directory), "--domain", "trained"]
    fit = ["--epochs", "15", "--batch-size", "8", "--learning-rate", "1e-2", "--device", "cpu"]
    capsys.readouterr()
    command = ["train", str(tmp_path / "data.csv"), *base, *fit, "--out", str(out), "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["num_train"] == 32
    version = account.client.push_version("desk", out)  # hmi.json says for what
    assert (version.base, version.domain) == (BASE, "trained")
    assert version.table_version == node.table_version
    answers = account.client.predict("desk", texts)
    assert answers.provenance.table_version == node.table_version
    expected = trained_scores(split.directory, out, texts)
    assert np.ptp(expected, axis=0).min() > 1e-2
    assert scores(answers) == pytest.approx(expected, abs=1e-4)
    learnt = json.loads((out / "hmi.json").read_text())["labels"]
    assert sorted(learnt) == ["animal", "paper"]
    assert [one.label for one in answers if isinstance(one, Classification)] == [
        learnt[best] for best in expected.argmax(1)
    ]
    account.client.push_version("elsewhere", out, domain="")
    assert np.abs(scores(account.client.predict("elsewhere", texts)) - expected).max() > 1e-3


def trained_scores(base_dir: Path, adapter: Path, texts: list[str]) -> np.ndarray:
    """What PEFT makes of looked-up rows, none of them missing: `[texts, labels]`, labels in order
    of `hmi.json`."""
    base = load_base(base_dir, dtype=torch.float32, device="cpu")
    local = load_local(base_dir / "local_encoder.safetensors", base)
    bert = BertForSequenceClassification.from_pretrained(base_dir, num_labels=2)
    model = PeftModel.from_pretrained(bert, adapter).eval()
    bert.bert.embeddings = LookedUp(local, base.config.pad_token_id, None)  # type: ignore[assignment]
    bert.bert.encoder.layer[0] = Passed()
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    with torch.inference_mode():
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
        return torch.cat([model(input_ids=one).logits.softmax(-1) for one in ids]).numpy()


@pytest.mark.timeout(180)  # 180,522 rows are computed first, beside whatever else runs
def test_the_split_minilm_that_comes_along_answers_much_as_minilm_does(tmp_path: Path) -> None:
    directory = tmp_path / "embedding"
    directory.mkdir()
    (directory / "hmi.json").write_text(json.dumps({"task": "embedding"}))
    with (
        LocalStack(tmp_path / "data", port=0, device="cpu") as stack,
        Client(stack.address, key=stack.admin_key) as admin,
    ):
        until(lambda: "hminilm" in [base.name for base in admin.list_bases()])
        split, plain = admin.get_base("hminilm"), admin.get_base("minilm")
        assert split.split is not None
        assert split.split.unsplit_digest == plain.digest
        created = admin.create_tenant("acme")
        assert created.key is not None
        until(lambda: bool(admin.get_domain("hminilm", "").table_version), within_s=150)
        with Client(stack.address, key=created.key.secret) as acme:
            text = "The minister said that the talks would go on in the new year."
            vectors = []
            for base in ("minilm", "hminilm"):
                acme.push_version(base, directory, base=base)
                answer = acme.predict(base, [text])
                assert bool(answer.provenance.table_version) == (base == "hminilm")
                vectors.append(np.array(answer.predictions[0].values))
    assert vectors[0] @ vectors[1] > 0.8
