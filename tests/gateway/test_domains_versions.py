"""Versions on split bases: which are taken, and which tables their answers come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from hmi.admin.v1 import domain_pb2, model_pb2
from hmi.admin.v1.domain_pb2_grpc import DomainServiceStub
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.knowledge.v1 import knowledge_pb2
from hmi.oip.v1 import open_inference_pb2 as oip
from hmi.oip.v1.open_inference_pb2_grpc import GRPCInferenceServiceStub
from hmi.pack import pack
from services.common.adapter_format import admit
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument, from_status
from tests.fakes import FakeExecutor
from tests.gateway.blobs import lora_blob
from tests.gateway.conftest import CONFIG, Stack, unique, until
from tests.gateway.split import SplitBase, add_base, add_split_base, materialise, split_files
from tests.gateway.test_domains import NEWS, Tree
from tests.gateway.test_predict import expect, request, violation
from tests.gateway.test_uploads import bulk_parts, header, upload

ABOVE = lora_blob(1, layers=(1,))


@pytest.fixture
async def tenant(stack: Stack) -> str:
    name = unique("acme")
    await stack.add_tenant(name)
    return name


@pytest.fixture
async def base(stack: Stack) -> SplitBase:
    return await add_split_base(stack)


async def executor_of(stack: Stack, base: SplitBase) -> FakeExecutor:
    """A scripted executor that serves a split base."""
    executor = FakeExecutor()
    await executor.start()
    stack.exits.push_async_callback(executor.kill)
    member = knowledge_pb2.Member(
        member_id=unique("executor"), kind=knowledge_pb2.MEMBER_KIND_EXECUTOR,
        address=executor.address, base_digests=[base.digest],
    )  # fmt: skip
    await stack.knowledge.Register(knowledge_pb2.RegisterRequest(member=member))
    await until(lambda: stack.app.router.is_connected(executor.address))
    return executor


async def new_table(stack: Stack, base: SplitBase, path: str) -> str:
    """Give a node other rows; its path's table version then."""
    domains = DomainServiceStub(stack.channel)
    change = domain_pb2.SetDomainRequest(base=base.name, path=path, alpha=1.0)
    await domains.SetDomain(change, metadata=stack.as_admin)
    update = domain_pb2.UpdateDomainsRequest(base=base.name, path=path)
    assert (await domains.UpdateDomains(update, metadata=stack.as_admin)).update_id
    await materialise(stack, base)
    return base.node(stack, path).table_version


async def add_news(stack: Stack, base: SplitBase) -> str:
    await Tree(stack, base, ("", "")).create("admin", "news", counts=NEWS, alpha=0.01)
    await materialise(stack, base)
    return base.node(stack, "news").table_version


async def predict(stack: Stack, tenant: str, model: str) -> Any:
    return await stack.inference.Predict(request(model, "the cat"), metadata=stack.metadata(tenant))


async def test_a_version_keeps_the_tables_it_was_pushed_with_unless_it_follows(
    stack: Stack, base: SplitBase, tenant: str
) -> None:
    executor = await executor_of(stack, base)
    before = await add_news(stack, base)
    for model, follow in (("still", False), ("moving", True)):
        head = header(ABOVE, model=model, base=base.name, domain="news", follow=follow)
        version = (await upload(stack, tenant, head, ABOVE)).version
        assert (version.domain, version.follow) == ("news", follow)
        assert version.table_version == before
        assert version.base_digest == base.digest
    for model in ("still", "moving"):
        assert (await predict(stack, tenant, model)).provenance.table_version == before
    after = await new_table(stack, base, "news")
    assert after != before
    assert (await predict(stack, tenant, "still")).provenance.table_version == before
    assert (await predict(stack, tenant, "moving")).provenance.table_version == after
    read = [(submit.key.model, submit.table_version) for submit in executor.submits]
    assert read == [("still", before), ("moving", before), ("still", before), ("moving", after)]
    assert executor.hinted_tables[-1] == after


async def test_a_version_without_a_domain_reads_the_roots_table(
    stack: Stack, base: SplitBase, tenant: str
) -> None:
    await executor_of(stack, base)
    head = header(ABOVE, base=base.name)
    version = (await upload(stack, tenant, head, ABOVE)).version
    root = base.node(stack).table_version
    assert (version.domain, version.table_version) == ("", root)
    infer = oip.ModelInferRequest(
        model_name="topic",
        inputs=[
            oip.ModelInferRequest.InferInputTensor(
                name="text", datatype="BYTES", shape=[1],
                contents=oip.InferTensorContents(bytes_contents=[b"the cat"]),
            )
        ],
    )  # fmt: skip
    stub = GRPCInferenceServiceStub(stack.channel)
    answer = await stub.ModelInfer(infer, metadata=stack.metadata(tenant))
    assert answer.parameters["table_version"].string_param == root


async def test_models_of_unsplit_bases_name_no_table(stack: Stack, tenant: str) -> None:
    await stack.add_model(tenant, "topic")
    executor = await stack.executor()
    assert (await predict(stack, tenant, "topic")).provenance.table_version == ""
    assert [submit.table_version for submit in executor.submits] == [""]


@pytest.mark.parametrize("fields", [{"domain": "news"}, {"follow": True}])
async def test_an_unsplit_base_has_no_domains(
    stack: Stack, tenant: str, fields: dict[str, Any]
) -> None:
    error = await expect(
        grpc.StatusCode.INVALID_ARGUMENT, upload(stack, tenant, header(ABOVE, **fields), ABOVE)
    )
    assert violation(error) == f"header.{next(iter(fields))}"


async def test_a_domain_must_be_there_and_seen_and_have_a_table(
    stack: Stack, base: SplitBase, tenant: str
) -> None:
    other = unique("bolt")
    await stack.add_tenant(other)
    tree = Tree(stack, base, (tenant, other))
    await tree.create(other, other)

    def push(domain: str) -> Any:
        return upload(stack, tenant, header(ABOVE, base=base.name, domain=domain), ABOVE)

    await expect(grpc.StatusCode.NOT_FOUND, push("news"))
    await expect(grpc.StatusCode.NOT_FOUND, push(other))
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, push("../news"))
    assert violation(error) == "header.domain"
    as_admin = (*stack.as_admin, ("x-hmi-tenant", tenant))
    head = header(ABOVE, base=base.name, domain=other)
    parts = [model_pb2.UploadVersionRequest(header=head)]
    parts += [model_pb2.UploadVersionRequest(chunk=ABOVE)]
    call = ModelServiceStub(stack.channel).UploadVersion(iter(parts), metadata=as_admin)
    await expect(grpc.StatusCode.NOT_FOUND, call)


async def test_nobody_pushes_before_the_first_table(stack: Stack, tenant: str) -> None:
    name = unique("split")
    await add_base(stack, name, split_files(name))
    error = await expect(
        grpc.StatusCode.FAILED_PRECONDITION,
        upload(stack, tenant, header(ABOVE, base=name), ABOVE),
    )
    assert "first table" in (error.details() or "")


async def test_a_domain_that_versions_read_stays(
    stack: Stack, base: SplitBase, tenant: str
) -> None:
    await add_news(stack, base)
    head = header(ABOVE, base=base.name, domain="news")
    await upload(stack, tenant, head, ABOVE)
    tree = Tree(stack, base, (tenant, ""))
    await expect(grpc.StatusCode.FAILED_PRECONDITION, tree.delete("admin", "news"))


async def test_an_adapter_below_the_split_is_refused_with_its_layers_and_what_to_do(
    stack: Stack, base: SplitBase, tenant: str
) -> None:
    both = lora_blob(2)
    error = await expect(
        grpc.StatusCode.INVALID_ARGUMENT, upload(stack, tenant, header(both, base=base.name), both)
    )
    assert violation(error) == "adapter_config.layers_to_transform"
    assert "changes layers 0," in (error.details() or "")
    assert "layers_to_transform=[1]" in (error.details() or "")


async def test_bulk_uploads_name_domains_too(stack: Stack, base: SplitBase, tenant: str) -> None:
    table = await add_news(stack, base)
    below = lora_blob(2)
    uploads = [
        (header(ABOVE, model="a", base=base.name, domain="news"), ABOVE),
        (header(ABOVE, model="b", base=base.name, domain="nowhere"), ABOVE),
        (header(below, model="c", base=base.name, domain="news"), below),
        (header(ABOVE, model="d", domain="news"), ABOVE),
    ]
    call = ModelServiceStub(stack.channel).UploadVersions(
        bulk_parts(uploads), metadata=stack.metadata(tenant)
    )
    answers = {answer.position: answer async for answer in call}
    assert answers[0].version.table_version == table
    codes = {p: from_status(answers[p].error).code.name for p in (1, 2, 3)}
    assert codes == {1: "NOT_FOUND", 2: "INVALID_ARGUMENT", 3: "INVALID_ARGUMENT"}


def test_what_changes_nothing_below_the_split_is_admitted() -> None:
    config = BaseConfig.from_hf(CONFIG)
    assert admit(ABOVE, config, split_layer=1).loras
    assert admit(lora_blob(2), config, split_layer=0).loras
    with pytest.raises(InvalidArgument) as caught:
        admit(lora_blob(2), config, split_layer=1)
    assert caught.value.reason == "BELOW_SPLIT"


def ia3_blob() -> bytes:
    name = "base_model.model.bert.encoder.layer.{}.attention.self.key.ia3_l"
    tensors = {name.format(layer): np.ones((32, 1), "f4") for layer in range(2)}
    config = {"peft_type": "IA3", "target_modules": ["key"], "feedforward_modules": []}
    meta = {"format": "peft", "adapter_config": config, "task": "embedding", "pooling": "mean"}
    return save(tensors, {"hmi": json.dumps(meta)})


HUB = Path(__file__).parents[1] / "executor/fixtures/adapterhub/bert"


@pytest.mark.parametrize(
    ("blob", "config", "field", "advice"),
    [
        (ia3_blob, CONFIG, "adapter_config.target_modules", "layers 1 to 1 alone"),
        (
            lambda: pack(HUB / "houlsby"),
            json.loads((HUB / "base/config.json").read_text()),
            "adapter_config.config.leave_out",
            "leave_out=[0]",
        ),
    ],
    ids=["ia3", "bottleneck"],
)
def test_each_kind_of_adapter_is_told_its_own_remedy(
    blob: Callable[[], bytes], config: dict[str, Any], field: str, advice: str
) -> None:
    base = BaseConfig.from_hf(config)
    assert admit(blob(), base).tensors
    with pytest.raises(InvalidArgument) as caught:
        admit(blob(), base, split_layer=1)
    assert caught.value.field == field
    assert advice in caught.value.description
