"""The local stack: knowledge store, gateway and executor as supervised processes on loopback.

Knows which process needs which setting, and when a prediction can be served; does not know how any
of them works. Nothing of `services` is imported here.

    DATA_DIR/admin.key    the admin key, mode 0600, made on first start
    DATA_DIR/address      host:port while the stack serves
    DATA_DIR/logs/*.log   what each process says
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from hmi.bases import DEFAULT_BASE, hminilm_files, minilm_directory
from hmi.client import Base, Client
from hmi.errors import HmiError, NotFound, Unauthenticated
from hmi.readiness import Readiness
from hmi.split_base import SplitBase
from hmi.supervisor import Child, ChildSpec, StackError

HOST = "127.0.0.1"
SPLIT_BASE = "hminilm"

_UPDATE_S = "600"  # unless the environment says otherwise
_START_S = 120.0
_GRACE_S = 10.0
_OF_ANOTHER_PROCESS = ("HMI_ADDRESS", "HMI_API_KEY", "HMI_TENANT", "HMI_ADMIN_KEY", "HMI_PORT")


class LocalStack:
    """A whole stack in a directory; also a context manager.

    ```
    with LocalStack(Path(".hmi"), port=0) as stack:
        client = hmi.Client(stack.address, key=stack.admin_key)
    ```

    Args:
        data_dir: Where everything durable lies; made if missing.
        port: The gateway's port on loopback; 0 takes a free one.
        device: auto, cpu or cuda, for the executor.
        env: Further environment by process name (`knowledge_store`, `gateway`, `executor`).
        with_split_base: Register hMiniLM too; filling its tables takes a core for a while.
        on_event: Told in a line when something changes unasked, such as a restart.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int = 50051,
        device: str = "auto",
        env: Mapping[str, Mapping[str, str]] | None = None,
        with_split_base: bool = True,
        on_event: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.admin_key = ""
        self.knowledge_address = ""
        self.service_token = secrets.token_urlsafe(32)
        self._port = port
        self._device = device
        self._env = env or {}
        self._with_split_base = with_split_base
        self._on_event = on_event
        self._children: dict[str, Child] = {}
        self._undo = ExitStack()
        self._is_stopping = False

    @property
    def address(self) -> str:
        """host:port of the gateway."""
        return f"{HOST}:{self._port}"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of those running, by name."""
        found = {name: child.pid for name, child in self._children.items()}
        return {name: pid for name, pid in found.items() if pid is not None}

    def start(self) -> None:
        """Start everything; return once a prediction can be served.

        Raises:
            StackError: Another stack uses the directory, the port is taken, or a process cannot
                start.
        """
        try:
            self._start()
        except Exception:
            self.stop()
            raise
        except BaseException:  # interrupted, before anything was served
            self.kill()
            raise

    def _start(self) -> None:
        self._make_data_dir()
        self._lock()
        self._port = _checked_port(self._port)
        self.admin_key = self._read_or_make_admin_key()
        self.knowledge_address = f"{HOST}:{_checked_port(0)}"
        deadline = time.monotonic() + _START_S
        for spec in self._specs():
            self._children[spec.name] = Child(spec, self._on_event)
        self._start_children(["knowledge_store"], deadline)
        self._start_children(["gateway", "executor"], deadline)
        base = self._register_base()
        waiting = Readiness(deadline, self._check_children)
        waiting.for_executor(self.knowledge_address, self.service_token, base.digest)
        waiting.for_gateway(self.address)
        self._start_split_base()
        address_file = self.data_dir / "address"
        address_file.write_text(self.address + "\n")
        self._undo.callback(address_file.unlink, missing_ok=True)

    def stop(self) -> None:
        """End the processes, those that are called last, so that calls under way can finish."""
        self._is_stopping = True
        for name in ("gateway", "executor", "knowledge_store"):
            if name in self._children:
                self._children[name].stop(_GRACE_S)
        self._undo.close()

    def kill(self) -> None:
        """End the processes at once; what was acknowledged is safe all the same."""
        self._is_stopping = True
        for child in self._children.values():
            child.stop(0.0)
        self._undo.close()

    def _make_data_dir(self) -> None:
        try:
            (self.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot use {self.data_dir}: {error.strerror}") from error

    def _lock(self) -> None:
        file: IO[str] = self._undo.enter_context((self.data_dir / "stack.lock").open("a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StackError(
                f"another stack (process {holder}) uses {self.data_dir}: "
                "stop it, or choose another --data-dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()

    def _read_or_make_admin_key(self) -> str:
        path = self.data_dir / "admin.key"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            key = f"hmi_admin_{secrets.token_urlsafe(32)}"
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as f:
            f.write(key + "\n")
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)  # whole or not at all: the store keeps only the key's hash
        return key

    def _specs(self) -> list[ChildSpec]:
        data_dir = str(self.data_dir)
        cache_dir = self.data_dir / "cache"
        settings: dict[str, dict[str, str]] = {
            "knowledge_store": {
                "HMI_PORT": self.knowledge_address.rpartition(":")[2],
                "HMI_DATA_DIR": data_dir,
                "HMI_ADMIN_KEY": self.admin_key,
                "HMI_DOMAIN_UPDATE_S": os.environ.get("HMI_DOMAIN_UPDATE_S", _UPDATE_S),
            },
            "gateway": {
                "HMI_PORT": str(self._port),
                "HMI_KNOWLEDGE_ADDRESS": self.knowledge_address,
                "HMI_CACHE_DIR": str(cache_dir / "gateway"),
            },
            "executor": {
                "HMI_PORT": "0",
                "HMI_KNOWLEDGE_ADDRESS": self.knowledge_address,
                "HMI_CACHE_DIR": str(cache_dir / "executor"),
                "HMI_BLOB_DIR": str(self.data_dir / "blobs"),
                "HMI_DEVICE": self._device,
            },
        }
        return [
            ChildSpec(
                name,
                f"services.{name}",
                {**self._common_env(), **of_service, **self._env.get(name, {})},
                self.data_dir / "logs" / f"{name}.log",
            )
            for name, of_service in settings.items()
        ]

    def _common_env(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k not in _OF_ANOTHER_PROCESS}
        checkout = str(Path(__file__).resolve().parent.parent)
        paths = [checkout, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "HMI_HOST": HOST,
            "HMI_METRICS_PORT": "0",
            "HMI_SERVICE_TOKEN": self.service_token,
            "HMI_PARENT_PID": str(os.getpid()),
        }

    def _start_children(self, names: list[str], deadline: float) -> None:
        """Start these at once; return when each is ready."""
        children = [self._children[name] for name in names]
        for child in children:
            child.start()
        for child in children:
            child.wait_ready(max(0.0, deadline - time.monotonic()))

    def _register_base(self) -> Base:
        with Client(self.address, key=self.admin_key) as client:
            try:
                return client.get_base(DEFAULT_BASE)
            except NotFound:
                self._on_event(f"registering base {DEFAULT_BASE}")
            except Unauthenticated as error:
                raise StackError(
                    f"the admin key in {self.data_dir / 'admin.key'} is unknown or revoked: "
                    "delete the file and start again"
                ) from error
            except HmiError as error:
                raise StackError(f"the gateway does not answer: {error}") from error
            try:
                return client.add_base(DEFAULT_BASE, minilm_directory(), timeout=_START_S)
            except HmiError as error:
                raise StackError(f"cannot register base {DEFAULT_BASE}: {error}") from error

    def _start_split_base(self) -> None:
        """Register the split MiniLM, if it comes along; nobody waits for its tables to fill."""
        files = hminilm_files() if self._with_split_base else ()
        if files:
            split = SplitBase(SPLIT_BASE, files, self._on_event, lambda: self._is_stopping)
            arguments = (self.address, self.admin_key)
            threading.Thread(target=split.register, args=arguments, daemon=True).start()

    def _check_children(self) -> None:
        for child in self._children.values():
            child.check()

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _checked_port(port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        StackError: Another process listens on it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no reason
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} cannot be used ({error.strerror}): choose another --port"
            ) from error
        chosen: int = probe.getsockname()[1]
        return chosen
