"""`hmi domains …` against a scripted gateway: what is asked, what is shown, how it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grpc
import pytest
import torch
from grpc_status import rpc_status

from hmi.admin.v1 import (
    domain_pb2,
    domain_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    resources_pb2,
    tenant_pb2,
    tenant_pb2_grpc,
)
from hmi.cli.domain_views import saved_bytes
from hmi.cli.main import run, spread
from hmi.client.domain_resources import DomainStats
from services.common.errors import AlreadyExists, HmiError, NotFound
from services.common.local_encoder_format import Form
from services.common.ngram_counts import NgramCounts
from services.executor.construct.local_file import save_local
from services.executor.construct.run import unsplit_digest
from services.executor.construct.student import start
from services.executor.models.encoder import load_base
from tests.executor.training import tiny_base
from tests.gateway.blobs import lora_blob, sha256
from tests.gateway.conftest import tokenizer_json

MIB = 1 << 20
PATHS = ("", "news", "news/sport", "reviews")


def stats(path: str) -> domain_pb2.DomainStats:
    depth = len(path.split("/")) if path else 0
    one = domain_pb2.DomainStats(
        num_entries=[1000 if not path else 0, 20, 30], size_bytes=MIB, num_versions=2,
        flat_bytes=(depth + 1) * MIB, version_bytes=300_000, counted_tokens=1234.5,
    )  # fmt: skip
    one.domain.CopyFrom(node(path))
    one.lookups.MergeFrom(
        domain_pb2.Lookups(num_tokens=100, num_trigram=40, num_bigram=50, num_unigram=10)
    )
    one.commit_time.GetCurrentTime()
    return one


def node(path: str, **fields: Any) -> resources_pb2.Domain:
    return resources_pb2.Domain(
        base="split", path=path, table_version="ab" * 32, miss_policy="MISS_POLICY_BACKOFF",
        tenant="acme" if path == "reviews" else "", **fields,
    )  # fmt: skip


class _Gateway(
    domain_pb2_grpc.DomainServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    tenant_pb2_grpc.TenantServiceServicer,
):
    """A tree of four nodes; what is created takes two looks until it has its table."""

    def __init__(self) -> None:
        self.created: list[tuple[domain_pb2.CreateDomainHeader, bytes]] = []
        self.set: list[domain_pb2.SetDomainRequest] = []
        self.updates: list[domain_pb2.UpdateDomainsRequest] = []
        self.uploads: list[model_pb2.UploadHeader] = []
        self.looks = 0
        self.encoder_sha256 = ""
        self.change = domain_pb2.DomainChange(
            path="news", order=3, num_added=12, num_promoted=3, num_removed=4, num_deferred=5,
            num_entries=38, coverage_before=0.25, coverage_after=0.5,
        )  # fmt: skip
        self.made = {path: stats(path) for path in PATHS}
        self.ended = resources_pb2.EndedUpdate(outcome=resources_pb2.UPDATE_OUTCOME_COMMITTED)

    def GetBase(self, request: Any, context: Any) -> model_pb2.GetBaseResponse:
        base = resources_pb2.Base(name=request.name, tokenizer_digest=sha256(tokenizer_json()))
        if request.name == "split":
            base.split.layer = 1
        return model_pb2.GetBaseResponse(base=base)

    def ListBases(self, request: Any, context: Any) -> model_pb2.ListBasesResponse:
        split = resources_pb2.Base(name="split", split=resources_pb2.Split(layer=1))
        return model_pb2.ListBasesResponse(bases=[resources_pb2.Base(name="plain"), split])

    def UploadVersion(self, requests: Any, context: Any) -> model_pb2.UploadVersionResponse:
        self.uploads.append(next(requests).header)
        for _ in requests:
            pass
        version = resources_pb2.Version(tenant="acme", number=1, digest="ab" * 32, labels=["x"])
        return model_pb2.UploadVersionResponse(version=version)

    def GetUpload(self, request: Any, context: Any) -> model_pb2.GetUploadResponse:
        return model_pb2.GetUploadResponse()

    def CreateDomain(self, requests: Any, context: Any) -> domain_pb2.CreateDomainResponse:
        header = next(requests).header
        path = header.domain.path
        if path in self.made:
            refuse(context, AlreadyExists(f"base 'split' has a domain '{path}' already"))
        if path.rpartition("/")[0] not in self.made:
            refuse(context, NotFound(f"there is no domain '{path.rpartition('/')[0]}'"))
        alpha = header.domain.alpha
        made = resources_pb2.Domain(base="split", path=path, alpha=alpha, is_updating=True)
        if not header.is_dry_run:
            self.created.append((header, b"".join(request.chunk for request in requests)))
            self.made[path] = domain_pb2.DomainStats(domain=made)
        return domain_pb2.CreateDomainResponse(domain=made)

    def GetDomain(self, request: Any, context: Any) -> domain_pb2.GetDomainResponse:
        if request.path in PATHS:
            held = node(request.path, encoder_sha256=self.encoder_sha256)
            return domain_pb2.GetDomainResponse(domain=held)
        if request.path not in self.made:
            refuse(context, NotFound(f"there is no domain '{request.path}'"))
        self.looks += 1
        return domain_pb2.GetDomainResponse(domain=node(request.path, is_updating=self.looks < 2))

    def ListDomains(self, request: Any, context: Any) -> domain_pb2.ListDomainsResponse:
        nodes = list(self.made.values())
        # Another update goes on all the time; the one asked for takes two looks.
        nodes[3].domain.is_updating = True
        if self.updates:
            self.looks += 1
            nodes[1].domain.is_updating = self.looks < 2
            if self.looks >= 2:
                nodes[1].domain.last_update.CopyFrom(self.ended)
        return domain_pb2.ListDomainsResponse(nodes=nodes)

    def SetDomain(self, request: Any, context: Any) -> domain_pb2.SetDomainResponse:
        self.set.append(request)
        return domain_pb2.SetDomainResponse(domain=node(request.path))

    def UpdateDomains(self, request: Any, context: Any) -> domain_pb2.UpdateDomainsResponse:
        self.updates.append(request)
        self.ended.update_id = "" if request.is_dry_run else "u1"
        is_begun = self.change.num_added and not request.is_dry_run
        return domain_pb2.UpdateDomainsResponse(
            update_id="u1" if is_begun else "", changes=[self.change]
        )

    def ListTenants(self, request: Any, context: Any) -> tenant_pb2.ListTenantsResponse:
        acme = resources_pb2.Tenant(name="acme", shares_counts=True)
        return tenant_pb2.ListTenantsResponse(tenants=[acme, resources_pb2.Tenant(name="beta")])

    def RollBackDomain(self, request: Any, context: Any) -> domain_pb2.RollBackDomainResponse:
        return domain_pb2.RollBackDomainResponse(domain=node(request.path))

    def DeleteDomain(self, request: Any, context: Any) -> domain_pb2.DeleteDomainResponse:
        return domain_pb2.DeleteDomainResponse()


def refuse(context: Any, error: HmiError) -> None:
    """End the call as the gateway does."""
    context.abort_with_status(rpc_status.to_status(error.to_status()))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Gateway]:
    servicer = _Gateway()
    server = grpc.server(ThreadPoolExecutor(4))
    domain_pb2_grpc.add_DomainServiceServicer_to_server(servicer, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    tenant_pb2_grpc.add_TenantServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("HMI_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("HMI_API_KEY", "secret")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("hmi.cli.domain_waits._POLL_S", 0.01)
    yield servicer
    server.stop(None)


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "tokenizer.json").write_bytes(tokenizer_json())
    return directory


def test_a_corpus_becomes_a_domain_and_its_table_is_waited_for(
    gateway: _Gateway, base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("the cat sat\n")
    files[1].write_text("the dog ran\nthe cat\n")
    arguments = ["domains", "create", "news/politics", "--base", "split", "--base-dir",
                 str(base_dir), "--alpha", "0.4", "--budget", "64M", "--policy", "compute",
                 "--json", "--corpus", *map(str, files)]  # fmt: skip
    assert run(arguments) == 0
    [(header, data)] = gateway.created
    assert (header.domain.path, header.domain.alpha) == ("news/politics", 0.4)
    assert header.domain.byte_budget == 64 * MIB
    assert header.domain.miss_policy == resources_pb2.MISS_POLICY_COMPUTE
    assert header.counts_sha256 == sha256(data)
    counts = NgramCounts.from_bytes(data)
    assert counts.num_tokens == 5 + 5 + 4
    assert json.loads(capsys.readouterr().out)["is_updating"] is False
    assert gateway.looks == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "news/sport"], "already"),
        (["create", "nowhere/sport"], "no domain 'nowhere'"),
        (["create", "/"], "the root comes with its base"),
        (["create", ""], "PATH is empty"),
        (["delete", ""], "PATH is empty"),
        (["create", "x", "--base", "plain"], "not split"),
        (["create", "x", "--corpus", "missing.txt"], "missing.txt is no file"),
        (["create", "x", "--budget", "much"], "no size"),
        (["create", "x", "--policy", "guess"], "backoff or compute"),
        (["create", "x", "--adapt"], "needs a --corpus"),
        (["create", "x", "--adapt", "--corpus", __file__], "--parent-encoder"),
        (["create", "x", "--parent-encoder", __file__], "--parent-encoder is for --adapt"),
        (["create", "x", "--adapt-out", "here"], "--adapt-out is for --adapt"),
        (["stats", "nowhere"], "no domain 'nowhere'"),
        (["set", "news", "--alpha", "1.5"], "--alpha"),
    ],
)
def test_mistakes_end_with_one_line(
    gateway: _Gateway, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["domains", *arguments]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert gateway.created == []


def test_a_corpus_that_no_encoder_can_learn_from_is_named_as_it_was_typed(
    gateway: _Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_dir = tiny_base(tmp_path / "base", "bert")
    base = load_base(base_dir, dtype=torch.float32, device="cpu")
    encoder = tmp_path / "local_encoder.safetensors"
    digest = unsplit_digest(base_dir)
    save_local(encoder, start(base, 1), split=1, form=Form.CENTRE, unsplit_digest=digest)
    gateway.encoder_sha256 = sha256(encoder.read_bytes())
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(b"the cat \xff")
    arguments = ["domains", "create", "x", "--adapt", "--base-dir", str(base_dir),
                 "--parent-encoder", str(encoder), "--corpus", str(corpus)]  # fmt: skip
    assert run(arguments) == 1
    assert "--corpus: a.txt is not UTF-8 at byte 8" in capsys.readouterr().err
    assert gateway.created == []


def test_another_bases_tokenizer_is_refused_before_anything_is_counted(
    gateway: _Gateway, base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base_dir / "tokenizer.json").write_text("{}")
    corpus = tmp_path / "a.txt"
    corpus.write_text("the cat")
    arguments = ["domains", "create", "x", "--base-dir", str(base_dir), "--corpus", str(corpus)]
    assert run(arguments) == 1
    assert "not the tokenizer of base split" in capsys.readouterr().err


def test_the_tree_shows_rows_bytes_hits_and_savings(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["domains", "tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["/", "1000", "20", "30"]
    assert lines[3].startswith("    sport")
    assert "40% / 50% / 10% / 0%" in lines[3]
    assert "3.0 MiB" in lines[3]
    assert "(private)" in lines[4]
    assert "8.0 MiB" in lines[5]  # flat tables: 1 + 2 + 3 + 2 MiB
    assert lines[5].split()[:3] == ["total", "1000", "80"]
    assert run(["domains", "tree", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["saved_bytes"] == (0 + 1 + 2 + 1) * MIB
    assert tree["nodes"][2]["hit_rates"]["bigram"] == 0.5
    assert [one["domain"]["path"] for one in tree["nodes"]] == list(PATHS)


def test_only_flat_tables_that_models_would_read_are_saved() -> None:
    root, news, sport, reviews = (DomainStats.from_pb(stats(path)) for path in PATHS)
    unread = [replace(one, num_versions=0) for one in (root, news)]
    # Two flat tables, of three nodes and of two, instead of four nodes of 1 MiB.
    assert saved_bytes([*unread, sport, reviews]) == (3 + 2 - 4) * MIB
    assert saved_bytes([unread[0], replace(reviews, flat_bytes=2 * MIB)]) == 0
    assert saved_bytes(unread) == saved_bytes([]) == 0


def test_the_tree_is_drawn_as_a_picture(
    gateway: _Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "tree.svg"
    assert run(["domains", "tree", "--svg", str(picture)]) == 0
    root = ElementTree.parse(picture).getroot()
    space = "{http://www.w3.org/2000/svg}"
    names = [one.text for one in root.iter(f"{space}text") if one.get("class") == "name"]
    assert names == ["/", "news", "sport", "reviews · acme"]
    cards = [one for one in root.iter(f"{space}rect") if "card" in one.get("class", "")]
    boxes = [(float(one.get("x", 0)), float(one.get("y", 0))) for one in cards]
    assert len(set(boxes)) == 4
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert all(x + 236 <= width and y + 84 <= height for x, y in boxes)
    assert len(list(root.iter(f"{space}path"))) == 3


def test_stats_say_what_a_model_takes(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["domains", "stats", "news"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["news", "news/sport"]
    assert "146.5 KiB" in lines[1]  # 300,000 bytes over two versions
    assert run(["domains", "stats", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_an_update_is_shown_before_it_is_made(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["domains", "update", "news", "--dry-run"]) == 0
    assert "25.0% → 50.0%" in capsys.readouterr().out
    assert [one.is_dry_run for one in gateway.updates] == [True]
    assert run(["domains", "update"]) == 0
    assert [one.is_dry_run for one in gateway.updates] == [True, True, False]
    assert [one.path for one in gateway.updates] == ["news", "", ""]


def test_an_update_that_is_rolled_back_fails_and_says_why(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.ended.outcome = resources_pb2.UPDATE_OUTCOME_ROLLED_BACK
    gateway.ended.reason = "nobody worked on it"
    gateway.ended.end_time.FromJsonString("2026-02-03T04:05:06Z")
    assert run(["domains", "update"]) == 1
    said = "domain news was rolled back at 2026-02-03 04:05:06 UTC: nobody worked on it"
    error = capsys.readouterr().err
    assert f"update u1 of {said}" in error
    assert "committed" not in error
    for look in ("tree", "stats"):
        assert run(["domains", look]) == 0
        assert f"the last update of {said}" in capsys.readouterr().err


def test_set_sends_what_was_given_alone(gateway: _Gateway) -> None:
    assert run(["domains", "set", "/", "--freeze", "--budget", "1G"]) == 0
    [request] = gateway.set
    assert (request.path, request.is_frozen, request.byte_budget) == ("", True, 1 << 30)
    assert not request.HasField("alpha")
    assert not request.HasField("miss_policy")
    assert run(["domains", "rollback", "news"]) == 0
    assert run(["domains", "delete", "news/sport"]) == 0


def test_a_push_names_domain_and_follow(gateway: _Gateway, tmp_path: Path) -> None:
    blob = tmp_path / "adapter"
    blob.write_bytes(lora_blob())
    arguments = ["models", "push", str(blob), "--name", "topic", "--tenant", "acme"]
    assert run([*arguments, "--base", "split", "--domain", "news/sport", "--follow"]) == 0
    assert run([*arguments, "--base", "split", "--domain", "/"]) == 0
    assert [(one.domain, one.follow) for one in gateway.uploads] == [
        ("news/sport", True), ("", False),
    ]  # fmt: skip


def test_a_list_of_files_may_follow_its_option() -> None:
    given = ["domains", "create", "p", "--corpus", "a", "b", "c", "--alpha", "1", "--corpus", "d"]
    assert spread(given) == [
        "domains", "create", "p", "--corpus", "a", "--corpus", "b", "--corpus", "c",
        "--alpha", "1", "--corpus", "d",
    ]  # fmt: skip
    assert spread(["predict", "--model", "m", "a", "b"]) == ["predict", "--model", "m", "a", "b"]


class _Tenants(tenant_pb2_grpc.TenantServiceServicer):
    def __init__(self) -> None:
        self.tenant = resources_pb2.Tenant(name="acme", weight=3.0, shares_counts=True)
        self.tenant.quota.max_models = 7

    def GetTenant(self, request: Any, context: Any) -> tenant_pb2.GetTenantResponse:
        return tenant_pb2.GetTenantResponse(tenant=self.tenant)

    def UpdateTenant(self, request: Any, context: Any) -> tenant_pb2.UpdateTenantResponse:
        self.tenant = request.tenant
        return tenant_pb2.UpdateTenantResponse(tenant=self.tenant)


def test_a_tenant_opts_in_to_sharing_its_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    servicer = _Tenants()
    server = grpc.server(ThreadPoolExecutor(2))
    tenant_pb2_grpc.add_TenantServiceServicer_to_server(servicer, server)
    monkeypatch.setenv("HMI_ADDRESS", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    monkeypatch.setenv("HMI_API_KEY", "secret")
    server.start()
    assert run(["tenants", "set", "acme", "--weight", "2"]) == 0
    assert (servicer.tenant.weight, servicer.tenant.shares_counts) == (2.0, True)
    assert run(["tenants", "set", "acme", "--no-shares-counts", "--max-models", "9"]) == 0
    assert (servicer.tenant.weight, servicer.tenant.shares_counts) == (2.0, False)
    assert servicer.tenant.quota.max_models == 9
    server.stop(None)


def test_a_bad_path_is_refused_before_a_corpus_is_counted(
    gateway: _Gateway, base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(b"\xff\xfe is no text: counting it would say so")
    rest = ["--base", "split", "--base-dir", str(base_dir), "--corpus", str(corpus)]
    for path, message in (("news/sport", "already"), ("nowhere/x", "no domain 'nowhere'")):
        assert run(["domains", "create", path, *rest]) == 1
        assert message in capsys.readouterr().err
    assert gateway.created == []


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (None, [], "without --corpus"),
        ("the cat sat\n", [], "came twice"),
        ("the cat sat\n", ["--alpha", "1"], "have one already"),
        ("the cat sat\nthe cat sat\n", [], "have one already"),
    ],
)
def test_a_domain_without_rows_says_why(
    gateway: _Gateway, base_dir: Path, tmp_path: Path, text: str | None, options: list[str],
    said: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if text is not None:
        corpus = tmp_path / "a.txt"
        corpus.write_text(text)
        options = [
            *options,
            "--base",
            "split",
            "--base-dir",
            str(base_dir),
            "--corpus",
            str(corpus),
        ]
    assert run(["domains", "create", "faq", *options]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("no row")
    assert said in last


def test_what_a_tenant_may_not_see_is_no_zero(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    for hidden in ("counted_tokens", "lookups", "num_versions", "version_bytes"):
        gateway.made["news"].ClearField(hidden)
    assert run(["domains", "stats", "news", "--json"]) == 0
    [news, sport] = json.loads(capsys.readouterr().out)
    assert news["counted_tokens"] is news["lookups"] is news["num_versions"] is None
    assert sport["num_versions"] == 2
    assert run(["domains", "stats", "news"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[5:8] == ["-", "-", "-"]
    assert run(["domains", "tree"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].split()[-2:] == ["-", "-"]
    assert "saved" not in captured.err


def test_an_update_says_why_nodes_stay_as_they_are(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.change = domain_pb2.DomainChange(
        path="news", order=3, num_entries=30, num_withheld=7, num_over_budget=9, num_deferred=11
    )
    gateway.made["news/sport"].domain.table_version = ""
    gateway.made["reviews"].counted_tokens = 0
    assert run(["domains", "update"]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = dict(line.split(" stays as it is: ") for line in lines if " stays as it is: " in line)
    assert list(told) == ["/", "news", "news/sport", "reviews"]
    assert "no row that it or a domain above lacks" in told["/"]
    [sharing] = [line for line in lines if "--shares-counts" in line]
    assert ": 1 do (" in sharing
    for num in ("9 rows wanted are beyond its budget", "11 rows wait", "7 n-grams were sent by"):
        assert num in told["news"]
    assert told["news/sport"] == "its first table is not made yet"
    assert told["reviews"] == "nothing is counted for it"
    assert run(["domains", "update", "news", "--dry-run", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["unchanged"]) == ["news", "news/sport"]


def test_a_row_is_one_line_wherever_no_terminal_folds_it(
    gateway: _Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run(["domains", "stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(PATHS)
    assert all("abababababab" in line for line in lines[1:])
    assert len({line.index("abababababab") for line in lines[1:]}) == 1
