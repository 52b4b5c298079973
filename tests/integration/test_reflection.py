"""A tool that has no protos, such as grpcurl, finds every service and makes the README's call."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from hmi.inference.v1 import inference_pb2
from hmi.knowledge.v1 import knowledge_pb2
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from hmi.stack import LocalStack
from services.common.knowledge import open_channel
from tests.integration.conftest import Account, Trained

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def contracts() -> Iterator[str]:
    """The full name of every service in the protos."""
    for path in (ROOT / "protos").rglob("*.proto"):
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^package (\S+);", text, re.MULTILINE)
        assert package
        for name in re.findall(r"^service (\w+)", text, re.MULTILINE):
            yield f"{package[1]}.{name}"


def listed(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        return set(ProtoReflectionDescriptorDatabase(channel).get_services())


async def executor_address(stack: LocalStack) -> str:
    """Where the stack's executor serves, as it told the store."""
    async with open_channel(stack.knowledge_address, stack.service_token) as channel:
        async for response in KnowledgeServiceStub(channel).Watch(knowledge_pb2.WatchRequest()):
            for change in response.changes:
                if change.member.kind == knowledge_pb2.MEMBER_KIND_EXECUTOR:
                    return change.member.address
    raise AssertionError("no executor is registered")


def test_each_process_lists_the_services_it_has(stack: LocalStack) -> None:
    executor = asyncio.run(executor_address(stack))
    store = listed(stack.knowledge_address)
    assert store == EVERYWHERE | {"hmi.knowledge.v1.KnowledgeService"}
    assert listed(executor) == EVERYWHERE | {"hmi.executor.v1.ExecutorService"}
    public = {name for name in contracts() if not name.startswith(("hmi.knowledge", "hmi.exec"))}
    assert {"hmi.inference.v1.InferenceService", "inference.GRPCInferenceService"} <= public
    assert listed(stack.address) == EVERYWHERE | public


@pytest.fixture(scope="module")
def command() -> list[str]:
    """The README's grpcurl command, word by word."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^grpcurl .*?Predict$", readme, re.MULTILINE | re.DOTALL)
    assert found
    words = re.findall(r"'[^']*'|\"[^\"]*\"|\S+", found[0].replace("\\\n", " "))
    return [word.strip("'\"") for word in words]


def asked(command: list[str]) -> str:
    return command[command.index("-d") + 1]


def test_the_readmes_request_is_one(command: list[str]) -> None:
    request = json_format.Parse(asked(command), inference_pb2.PredictRequest())
    assert request.model == "news"
    assert [given.text for given in request.inputs] == ["The central bank raised its rate again."]


@pytest.fixture
def expected(account: Account, lora: Callable[..., Trained], command: list[str]) -> str:
    """The label that the client gets for the README's text."""
    account.client.push_version("news", lora(3).directory)
    text = json.loads(asked(command))["inputs"][0]["text"]
    [prediction] = account.client.predict("news", [text])
    return prediction.label


def test_the_readmes_call_is_answered_by_reflection_alone(
    stack: LocalStack, account: Account, command: list[str], expected: str
) -> None:
    service, _, method = command[-1].partition("/")
    with grpc.insecure_channel(stack.address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        described = pool.FindServiceByName(service).FindMethodByName(method)
        request_type = message_factory.GetMessageClass(described.input_type)
        response_type = message_factory.GetMessageClass(described.output_type)
        call = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        key = (("authorization", f"Bearer {account.secret}"),)
        response: Any = call(json_format.Parse(asked(command), request_type()), metadata=key)
    assert label_in(json.loads(json_format.MessageToJson(response))) == expected


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
def test_the_readmes_command_runs(
    stack: LocalStack, account: Account, command: list[str], expected: str
) -> None:
    words = [word.replace("$HMI_API_KEY", account.secret) for word in command]
    words[words.index("127.0.0.1:50051")] = stack.address
    result = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
    assert label_in(json.loads(result.stdout)) == expected


def label_in(response: dict[str, Any]) -> str:
    """The label of the answer's only prediction."""
    [prediction] = response["predictions"]
    label: str = prediction["classification"]["label"]
    return label
