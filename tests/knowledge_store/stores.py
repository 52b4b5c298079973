"""Stores to test against, and what tests put into them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.bases import base_digest
from services.common.errors import HmiError, from_rpc_error
from services.common.knowledge import Blobs, open_channel
from services.knowledge_store.config import StoreSettings
from services.knowledge_store.store import running_store

TOKEN = "service-secret"
ADMIN_SECRET = "hmi_admin_secret"


@dataclass(frozen=True)
class Store:
    """A running store and the way to it."""

    stub: Any
    address: str
    data_dir: Path
    pid: int

    @property
    def blobs(self) -> Blobs:
        return Blobs(self.stub)

    @property
    def valkey_pid(self) -> int:
        """The process id of the store's Valkey."""
        for child in psutil.Process(self.pid).children():
            if str(self.data_dir) in " ".join(child.cmdline()):
                return child.pid
        raise AssertionError("the store has no Valkey")


def settings_of(data_dir: Path, **settings: Any) -> StoreSettings:
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "service_token": TOKEN,
        "admin_key": ADMIN_SECRET,
        "drain_s": 0.1,
        "redis_timeout_s": 1.0,
    }
    return StoreSettings(**values | settings)


@asynccontextmanager
async def running(data_dir: Path, **settings: Any) -> AsyncIterator[Store]:
    """A store in this process."""
    async with running_store(settings_of(data_dir, **settings)) as server:
        address = f"127.0.0.1:{server.port}"
        async with open_channel(address, TOKEN) as channel:
            yield Store(KnowledgeServiceStub(channel), address, data_dir, os.getpid())


@asynccontextmanager
async def running_process(data_dir: Path, **environment: str) -> AsyncIterator[Store]:
    """A store in a process of its own, killed at the end of the block if it is still there."""
    process = await start_process(data_dir, **environment)
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("ready: "), line
        address = line.removeprefix("ready: ").strip()
        async with open_channel(address, TOKEN) as channel:
            yield Store(KnowledgeServiceStub(channel), address, data_dir, process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def start_process(data_dir: Path, **environment: str) -> asyncio.subprocess.Process:
    given = {"HMI_DATA_DIR": str(data_dir), "HMI_SERVICE_TOKEN": TOKEN, "HMI_DRAIN_S": "0.1"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.knowledge_store", env=os.environ | given | environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def fails(call: Awaitable[Any], code: grpc.StatusCode) -> HmiError:
    """The error a call ends with, whose status must be `code`."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == code, caught.value.details()
    return from_rpc_error(caught.value)


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """The status a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return once `condition` holds."""
    async with asyncio.timeout(within_s):
        # Files and processes have no event to wait for.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def new_key(key_id: str, tenant: str = "", role: Any = rpb.ROLE_TENANT) -> pb.Key:
    api_key = rpb.ApiKey(key_id=key_id, tenant=tenant, role=role)
    return pb.Key(api_key=api_key, secret_sha256=secret_hash(f"secret of {key_id}"))


async def add_tenant(store: Store, name: str = "acme", **quota: Any) -> Any:
    tenant = rpb.Tenant(name=name, weight=1.0, quota=rpb.Quota(**quota))
    request = pb.PutTenantRequest(tenant=tenant, is_create=True, first_key=new_key(f"key-{name}"))
    return (await store.stub.PutTenant(request)).tenant


def base_of(files: dict[str, bytes], name: str = "minilm") -> rpb.Base:
    held = [
        rpb.BaseFile(name=file, sha256=sha256(data), size_bytes=len(data))
        for file, data in files.items()
    ]
    return rpb.Base(name=name, digest=base_digest(held), files=held, architecture="bert")


async def add_base(store: Store, name: str = "minilm") -> Any:
    files = {"config.json": f'{{"name": "{name}"}}'.encode(), "model.safetensors": b"weights"}
    for data in files.values():
        await store.blobs.write(data)
    return (await store.stub.PutBase(pb.PutBaseRequest(base=base_of(files, name)))).base


def new_version(
    base: rpb.Base, data: bytes, model: str = "topics", tenant: str = "acme", **fields: Any
) -> pb.NewVersion:
    version = rpb.Version(
        tenant=tenant, model=model, digest=sha256(data), size_bytes=len(data), base=base.name,
        base_digest=base.digest, task=rpb.TASK_SEQUENCE_CLASSIFICATION, labels=["a", "b"],
        adapter_type="LORA",
    )  # fmt: skip
    return pb.NewVersion(version=version, **fields)


async def create(store: Store, *versions: pb.NewVersion) -> list[pb.CreatedVersion]:
    response = await store.stub.CreateVersions(pb.CreateVersionsRequest(versions=versions))
    return list(response.versions)


async def push(
    store: Store, base: rpb.Base, data: bytes, model: str = "topics", **fields: Any
) -> rpb.Version:
    """Write a blob and add a version of it."""
    await store.blobs.write(data)
    (created,) = await create(store, new_version(base, data, model, **fields))
    assert created.error_code == 0, created.error_message
    return created.version


class View:
    """What a watcher knows: every resource by kind and name."""

    def __init__(self) -> None:
        self.revision = 0
        self.resources: dict[tuple[str, str], bytes] = {}
        self.num_snapshots = 0
        self._is_in_snapshot = False

    def apply(self, response: pb.WatchResponse) -> None:
        if response.is_snapshot and not self._is_in_snapshot:
            self.resources.clear()
            self.num_snapshots += 1
        self._is_in_snapshot = response.is_snapshot and not response.is_snapshot_end
        if not response.is_snapshot and response.changes:
            assert response.revision == self.revision + 1
        if not self._is_in_snapshot:
            self.revision = response.revision
        for change in response.changes:
            self._apply(change)

    def __getitem__(self, kind: str) -> list[str]:
        return sorted(name for of, name in self.resources if of == kind)

    def _apply(self, change: pb.Change) -> None:
        kind = change.WhichOneof("resource")
        assert kind is not None
        resource = getattr(change, kind)
        key = (kind, _NAMES[kind](resource))
        if change.is_deleted:
            del self.resources[key]
        else:
            self.resources[key] = resource.SerializeToString(deterministic=True)


_NAMES: dict[str, Callable[[Any], str]] = {
    "tenant": lambda tenant: tenant.name,
    "key": lambda key: key.api_key.key_id,
    "base": lambda base: base.name,
    "domain": lambda domain: f"{domain.base}/{domain.path}",
    "model": lambda model: f"{model.tenant}/{model.name}",
    "version": lambda version: f"{version.tenant}/{version.model}/{version.number}",
    "member": lambda member: member.member_id,
}


async def follow(
    store: Store, view: View, until: Callable[[View], bool], within_s: float = 20.0
) -> None:
    """Watch from where `view` is until `until` holds."""
    async with asyncio.timeout(within_s):
        call = store.stub.Watch(pb.WatchRequest(from_revision=view.revision))
        async for response in call:
            view.apply(response)
            if not view._is_in_snapshot and until(view):
                break
        call.cancel()


async def snapshot(store: Store) -> View:
    """A new watcher's snapshot."""
    view = View()
    await follow(store, view, lambda _: True)
    return view


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)
