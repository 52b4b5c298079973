"""From a trained directory to an answer, through every process, as users see it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hmi.client import Classification, Client, Embedding, Item, Push, Quota, Role, Task, TokenTags
from hmi.errors import (
    AlreadyExists,
    FailedPrecondition,
    HmiError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from hmi.pack import pack
from hmi.stack import LocalStack
from tests.integration.conftest import Account, Trained

Lora = Callable[..., Trained]

TEXTS = ["Rates rise again.", "The keeper saved a late penalty and the match.", "Ähnlich — 数字 🙂"]
STALENESS_S = 5.0


def _scores(prediction: object) -> list[float]:
    assert isinstance(prediction, Classification)
    return [one.score for one in prediction.scores]


def test_answer_is_pefts_and_names_what_made_it(account: Account, lora: Lora) -> None:
    trained = lora(1)
    version = account.client.push_version("news", trained.directory)
    answers = account.client.predict("news", TEXTS)
    for text, prediction in zip(TEXTS, answers, strict=True):
        assert _scores(prediction) == pytest.approx(trained.scores(text, None).tolist(), abs=1e-4)
    source = answers.provenance
    assert source.digest == hashlib.sha256(pack(trained.directory)).hexdigest()
    assert (source.tenant, source.model, source.version) == (account.name, "news", 1)
    assert (source.base, source.base_digest) == ("minilm", version.base_digest)
    assert version.task is Task.SEQUENCE_CLASSIFICATION
    assert version.adapter_type == "LORA"


def test_pairs_are_answered_as_peft_does(account: Account, lora: Lora) -> None:
    trained = lora(1)
    account.client.push_version("pairs", trained.directory)
    answers = account.client.predict("pairs", ["A man eats."], pairs=["Somebody has a meal."])
    expected = trained.scores("A man eats.", "Somebody has a meal.").tolist()
    assert _scores(answers[0]) == pytest.approx(expected, abs=1e-4)


def test_thousand_texts_keep_their_order(account: Account, lora: Lora) -> None:
    account.client.push_version("many", lora(1).directory)
    texts = [f"word {'very ' * (n % 7)}{n}" for n in range(1000)]
    answers = account.client.predict("many", texts, timeout=50)
    sample = range(0, 1000, 83)
    for index in sample:
        alone = account.client.predict("many", texts[index])
        assert _scores(answers[index]) == pytest.approx(_scores(alone[0]), abs=1e-5)


def test_base_itself_embeds(account: Account, tmp_path: Path) -> None:
    note = {"task": "embedding", "pooling": "mean", "normalize": True}
    (tmp_path / "hmi.json").write_text(json.dumps(note))
    account.client.push_version("embed", tmp_path)
    near, nearer, far = account.client.predict(
        "embed", ["A cat sleeps.", "A kitten is napping.", "Interest rates were raised."]
    )
    vectors = []
    for prediction in (near, nearer, far):
        assert isinstance(prediction, Embedding)
        assert math.sqrt(sum(x * x for x in prediction.values)) == pytest.approx(1.0, abs=1e-3)
        vectors.append(prediction.values)
    close, distant = (sum(a * b for a, b in zip(vectors[0], v, strict=True)) for v in vectors[1:])
    assert close > distant + 0.2


def test_tags_are_spans_of_the_text(account: Account, tagger: Path) -> None:
    account.client.push_version("tags", tagger)
    text = "Zoë Müller met 🙂 Ada Lovelace in Paris."
    prediction = account.client.predict("tags", text)[0]
    assert isinstance(prediction, TokenTags)
    assert prediction.spans
    for span in prediction.spans:
        assert span.label == "PER"
        assert text[span.start : span.end] == span.text


def test_stream_mixes_models_and_reports_each_items_error(account: Account, lora: Lora) -> None:
    for seed in (1, 2):
        account.client.push_version(f"m{seed}", lora(seed).directory)
    items = [Item(f"m{1 + n % 3}", f"text {n}") for n in range(60)]  # m3 does not exist
    answers = {answer.index: answer for answer in account.client.stream(items)}
    assert sorted(answers) == list(range(60))
    for index, answer in answers.items():
        if index % 3 == 2:
            assert isinstance(answer.error, NotFound)
        else:
            expected = lora(1 + index % 3).scores(items[index].text, None).tolist()
            assert _scores(answer.unwrap()) == pytest.approx(expected, abs=1e-4)


def test_versions_activate_and_roll_back(account: Account, lora: Lora) -> None:
    client = account.client
    client.push_version("m", lora(1).directory)
    second = client.push_version("m", lora(2).directory, activate=False)
    assert second.number == 2
    assert client.predict("m", "text").provenance.version == 1
    assert client.predict("m", "text", version=2).provenance.digest == second.digest
    assert client.activate("m", 2).traffic == {2: 100}
    assert client.predict("m", "text").provenance.version == 2
    assert client.roll_back("m").traffic == {1: 100}
    assert client.predict("m", "text").provenance.version == 1
    assert [version.number for version in client.list_versions("m")] == [1, 2]
    assert client.get_model("m").last_version == 2


def test_traffic_is_split_by_percent(account: Account, lora: Lora) -> None:
    client = account.client
    for seed in (1, 2):
        client.push_version("m", lora(seed).directory)
    client.set_traffic("m", {1: 70, 2: 30})
    seen: Counter[int] = Counter()
    for answer in client.stream([Item("m", "text")] * 400):
        assert answer.provenance is not None
        seen[answer.provenance.version] += 1
    assert 220 <= seen[1] <= 340  # within six standard deviations of 280
    assert seen[1] + seen[2] == 400


def test_deleted_versions_and_models_are_gone(account: Account, lora: Lora) -> None:
    client = account.client
    for seed in (1, 2):
        client.push_version("m", lora(seed).directory)
    with pytest.raises(FailedPrecondition):
        client.delete_version("m", 2)
    client.delete_version("m", 1)
    with pytest.raises(NotFound):
        client.predict("m", "text", version=1)
    with pytest.raises(FailedPrecondition):
        client.roll_back("m")
    client.delete_model("m")
    with pytest.raises(NotFound):
        client.predict("m", "text")
    assert client.push_version("m", lora(1).directory).number == 3  # numbers are not used again


def test_model_without_traffic_says_so(account: Account, lora: Lora) -> None:
    account.client.push_version("m", lora(1).directory, activate=False)
    with pytest.raises(FailedPrecondition):
        account.client.predict("m", "text")


def test_another_tenants_model_is_not_found(
    account: Account, other: Account, lora: Lora, admin: Client
) -> None:
    account.client.push_version("m", lora(1).directory)
    for call in (
        lambda: other.client.predict("m", "text"),
        lambda: other.client.get_model("m"),
        lambda: other.client.list_versions("m"),
        lambda: other.client.delete_model("m"),
        lambda: other.client.set_pinned("m"),
    ):
        with pytest.raises(NotFound):
            call()
    assert other.client.list_models() == []
    as_owner = admin.for_tenant(account.name)
    assert as_owner.predict("m", "text").provenance.tenant == account.name


def test_one_name_is_two_tenants_two_models(account: Account, other: Account, lora: Lora) -> None:
    account.client.push_version("m", lora(1).directory)
    other.client.push_version("m", lora(2).directory)
    for owner, seed in ((account, 1), (other, 2)):
        answers = owner.client.predict("m", TEXTS)
        assert answers.provenance.tenant == owner.name
        for text, prediction in zip(TEXTS, answers, strict=True):
            expected = lora(seed).scores(text, None).tolist()
            assert _scores(prediction) == pytest.approx(expected, abs=1e-4)


def test_revoked_key_is_refused(account: Account, admin: Client, lora: Lora) -> None:
    account.client.push_version("m", lora(1).directory)
    admin.revoke_api_key(account.key_id)
    end = time.monotonic() + STALENESS_S
    while time.monotonic() < end:
        try:
            account.client.predict("m", "text")
        except Unauthenticated:
            break
    with pytest.raises(Unauthenticated):
        account.client.predict("m", "text")
    (key,) = admin.list_api_keys(account.name)
    assert key.revoke_time is not None


@pytest.mark.parametrize("key", [None, "hmi_unknown_secret", "nonsense"])
def test_unknown_keys_are_refused(stack: LocalStack, key: str | None) -> None:
    with Client(stack.address, key=key) as client:
        for call in (
            lambda: client.predict("m", "text"),
            lambda: client.list_models(),
            lambda: client.list_tenants(),
        ):
            with pytest.raises(Unauthenticated):
                call()


def test_tenants_key_does_not_administer(account: Account, other: Account) -> None:
    client = account.client
    for call in (
        lambda: client.create_tenant("mine"),
        lambda: client.list_tenants(),
        lambda: client.delete_tenant(other.name),
        lambda: client.create_api_key("", role=Role.ADMIN),
        lambda: client.delete_base("minilm"),
        lambda: client.for_tenant(other.name).list_models(),
    ):
        with pytest.raises(PermissionDenied):
            call()
    assert client.get_tenant(account.name).name == account.name
    with pytest.raises(HmiError) as caught:
        client.get_tenant(other.name)
    assert isinstance(caught.value, NotFound | PermissionDenied)


def test_tenants_are_made_changed_and_deleted(admin: Client, stack: LocalStack, lora: Lora) -> None:
    created = admin.create_tenant("short-lived", weight=2.0)
    assert created.key is not None
    with pytest.raises(AlreadyExists):
        admin.create_tenant("short-lived")
    quota = Quota(max_models=1)
    assert admin.update_tenant("short-lived", weight=3.0, quota=quota).weight == 3.0
    assert admin.get_tenant("short-lived").quota.max_models == 1
    assert "short-lived" in [tenant.name for tenant in admin.list_tenants()]
    with Client(stack.address, key=created.key.secret) as client:
        client.push_version("one", lora(1).directory)
        with pytest.raises(ResourceExhausted):
            client.push_version("two", lora(1).directory)
        admin.delete_tenant("short-lived")
        with pytest.raises(Unauthenticated):
            client.predict("one", "text")
    with pytest.raises(NotFound):
        admin.get_tenant("short-lived")


def test_usage_counts_what_was_answered(account: Account, lora: Lora) -> None:
    account.client.push_version("m", lora(1).directory)
    answers = account.client.predict("m", TEXTS)
    usage = account.client.get_usage(account.name)
    assert usage.num_items == len(TEXTS)
    assert usage.num_tokens == sum(prediction.num_tokens for prediction in answers)
    assert usage.num_queued == 0


def test_many_versions_in_one_upload(account: Account, lora: Lora) -> None:
    blob = pack(lora(1).directory)
    outcomes = account.client.push_versions([Push(f"m{n}", blob) for n in range(50)])
    assert [outcome.error for outcome in outcomes] == [None] * 50
    assert len(account.client.list_models()) == 50
    assert account.client.predict("m49", "text").provenance.version == 1


def test_pinned_model_stays_marked(account: Account, lora: Lora) -> None:
    account.client.push_version("m", lora(1).directory)
    assert account.client.set_pinned("m").pinned
    assert account.client.get_model("m").pinned
    assert not account.client.set_pinned("m", False).pinned


def test_bases_are_listed_with_their_digest(account: Account, admin: Client) -> None:
    (base,) = [base for base in account.client.list_bases() if base.name == "minilm"]
    assert (base.architecture, base.hidden_size, base.num_layers) == ("bert", 384, 6)
    assert admin.get_base("minilm") == base
