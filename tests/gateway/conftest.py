"""A real knowledge store (a process of its own), a gateway in this one, executors scripted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from hmi.admin.v1 import resources_pb2
from hmi.inference.v1.inference_pb2_grpc import InferenceServiceStub
from hmi.knowledge.v1 import knowledge_pb2
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.interceptor import RequestInterceptor
from services.common.knowledge import Blobs, open_channel
from services.common.server import serve
from services.gateway.app import App, open_app
from services.gateway.config import GatewaySettings
from tests.fakes import FakeExecutor

TOKEN = "service-token"
ADMIN = "hmi_admin_secret"
WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "paris", "anna", "smith"]
CONFIG = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 14, "max_position_embeddings": 64,
    "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip


def unique(prefix: str) -> str:
    """A name no other test uses: they share one store."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait for what happens in another task and has no event of its own."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def tokenizer_json() -> bytes:
    """A word-level tokenizer whose file asks for truncation and padding, as real ones do."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer.to_str().encode()


@dataclass
class Store:
    """A knowledge store process that can be killed and started again on its port."""

    directory: Path
    process: subprocess.Popen[str] | None = None
    address: str = ""
    port: int = 0

    def start(self) -> None:
        settings = {
            "HMI_DATA_DIR": str(self.directory),
            "HMI_SERVICE_TOKEN": TOKEN,
            "HMI_ADMIN_KEY": ADMIN,
            "HMI_PORT": str(self.port),
            "HMI_PARENT_PID": str(os.getpid()),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.knowledge_store"],
            env=os.environ | settings, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready: "), line
        self.address = line.split()[1]
        self.port = int(self.address.rpartition(":")[2])

    def stop(self, *, at_once: bool = False) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.kill() if at_once else self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for all tests; they use tenants of their own."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.start()
    yield store
    store.stop()


@dataclass
class Model:
    tenant: str
    name: str
    digest: str
    labels: list[str]


@dataclass
class Stack:
    """What a test talks to."""

    store: Store
    knowledge: Any
    blobs: Blobs
    settings: GatewaySettings
    app: App
    channel: grpc.aio.Channel
    address: str
    base_digest: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def inference(self) -> Any:
        return InferenceServiceStub(self.channel)

    def metadata(self, tenant: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.keys[tenant]}"),)

    @property
    def as_admin(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {ADMIN}"),)

    async def add_base(self, name: str) -> str:
        """A base of config and tokenizer; executors are scripted, so weights are a few bytes."""
        files, lines = [], []
        weights = f"weights of {name}".encode()
        for file, data in (
            ("config.json", json.dumps(CONFIG).encode()),
            ("model.safetensors", weights),
            ("tokenizer.json", tokenizer_json()),
        ):
            sha256 = await self.blobs.write(data)
            files.append(resources_pb2.BaseFile(name=file, sha256=sha256, size_bytes=len(data)))
            lines.append(f"{sha256}  {file}\n")
        digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        base = resources_pb2.Base(
            name=name, digest=digest, files=files, architecture="bert", hidden_size=32,
            num_layers=2, max_tokens=64, tokenizer_digest=files[-1].sha256,
        )  # fmt: skip
        await self.knowledge.PutBase(knowledge_pb2.PutBaseRequest(base=base))
        return digest

    async def add_tenant(self, name: str, *, weight: float = 1.0, **quota: Any) -> None:
        secret = f"hmi_{name}_secret"
        key = resources_pb2.ApiKey(
            key_id=f"key-{name}", tenant=name, role=resources_pb2.ROLE_TENANT
        )
        request = knowledge_pb2.PutTenantRequest(
            tenant=resources_pb2.Tenant(
                name=name, weight=weight, quota=resources_pb2.Quota(**quota)
            ),
            is_create=True,
            first_key=knowledge_pb2.Key(
                api_key=key, secret_sha256=hashlib.sha256(secret.encode()).digest()
            ),
        )
        await self.knowledge.PutTenant(request)
        self.keys[name] = secret
        await self.app.mirror.until(lambda: name in self.app.mirror.state.tenants)

    async def add_model(
        self,
        tenant: str,
        name: str,
        *,
        task: Any = resources_pb2.TASK_SEQUENCE_CLASSIFICATION,
        labels: tuple[str, ...] = ("a", "b", "c"),
        base: str = "tiny",
    ) -> Model:
        """A model with one more version. Its blob is a few bytes: nobody reads it here."""
        blob = f"{tenant} {name} {time.time_ns()}".encode()
        digest = await self.blobs.write(blob)
        version = resources_pb2.Version(
            tenant=tenant, model=name, digest=digest, size_bytes=len(blob), base=base,
            base_digest=self.base_digest, task=task, labels=labels, adapter_type="LORA",
        )  # fmt: skip
        request = knowledge_pb2.CreateVersionsRequest(
            versions=[knowledge_pb2.NewVersion(version=version)]
        )
        answer = (await self.knowledge.CreateVersions(request)).versions[0]
        assert answer.error_code == 0, answer.error_message
        number = answer.version.number
        mirror = self.app.mirror

        def is_seen() -> bool:
            model = mirror.state.models.get(tenant, {}).get(name)
            return model is not None and number in model.versions and model.pb is not None

        await mirror.until(is_seen)
        return Model(tenant, name, digest, list(labels))

    async def register(
        self, executor: FakeExecutor, *base_digests: str, lease: str | None = None
    ) -> None:
        """Make an executor known to the store and wait until the gateway is connected."""
        member = knowledge_pb2.Member(
            member_id=lease or f"executor-{executor.port}-{time.time_ns()}",
            kind=knowledge_pb2.MEMBER_KIND_EXECUTOR,
            address=executor.address,
            base_digests=base_digests or [self.base_digest],
        )
        await self.knowledge.Register(knowledge_pb2.RegisterRequest(member=member))
        await until(lambda: self.app.router.is_connected(executor.address))

    async def executor(self, **options: Any) -> FakeExecutor:
        executor = FakeExecutor(**options)
        await executor.start()
        self.exits.push_async_callback(executor.kill)
        await self.register(executor)
        return executor


@asynccontextmanager
async def open_stack(store: Store, cache: Path, **settings: Any) -> AsyncIterator[Stack]:
    chosen = GatewaySettings(
        knowledge_address=store.address, cache_dir=cache, service_token=TOKEN, drain_s=0.2,
        **settings,
    )  # fmt: skip
    async with AsyncExitStack() as exits:
        channel = await exits.enter_async_context(open_channel(store.address, TOKEN))
        knowledge = KnowledgeServiceStub(channel)
        app = await exits.enter_async_context(open_app(chosen, "gateway-test"))
        running = await exits.enter_async_context(
            serve(chosen, adders=app.adders, interceptors=[RequestInterceptor("gateway")])
        )
        front = await exits.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{running.port}")
        )
        stack = Stack(
            store, knowledge, Blobs(knowledge), chosen, app, front, f"127.0.0.1:{running.port}"
        )
        await exits.enter_async_context(stack.exits)
        stack.base_digest = await stack.add_base("tiny")
        yield stack


@pytest.fixture
async def stack(shared_store: Store, tmp_path: Path) -> AsyncIterator[Stack]:
    """A gateway without executors."""
    async with open_stack(shared_store, tmp_path / "cache") as opened:
        yield opened
