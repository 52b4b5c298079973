"""The split base that a local stack brings along: registered, and followed until its root is full.

Knows a gateway's client and what to tell people; does not know processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi.bases import minilm_directory
from hmi.client import Client, RetryPolicy
from hmi.errors import HmiError, Unavailable

_REGISTER_S = 120.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class SplitBase:
    """The base to register.

    Attributes:
        name: Its name.
        files: What it has beside MiniLM's files.
        tell: Takes a line for people.
        is_stopping: Whether the stack is, so that nothing is to be told nor waited for.
    """

    name: str
    files: Sequence[Path]
    tell: Callable[[str], None]
    is_stopping: Callable[[], bool]

    def register(self, address: str, key: str) -> None:
        """Register it, if it is not, and tell until when its models have to wait."""
        never = RetryPolicy(max_attempts=1)  # a stack that is stopping must not be waited for
        with Client(address, key=key, retry=never) as client:
            try:
                client.add_base(
                    self.name, minilm_directory(), further_files=self.files, timeout=_REGISTER_S
                )
                self.follow_root(client)
            except HmiError as error:
                if not self.is_stopping():
                    self.tell(f"base {self.name} is not ready: {error}")

    def follow_root(self, client: Client) -> None:
        """Tell, if its root table is not there, when it is; return then, or as the stack stops."""
        began = time.monotonic()
        is_told = False
        while not self._has_table(client):
            if self.is_stopping():
                return
            if not is_told:
                self.tell(
                    f"filling the root table of base {self.name}, which takes a minute or more: "
                    "its models and domains wait until then"
                )
                is_told = True
            time.sleep(_POLL_S)
        if is_told:
            self.tell(f"base {self.name} is ready, after {time.monotonic() - began:.0f} s")

    def _has_table(self, client: Client) -> bool:
        try:
            return bool(client.get_domain(self.name, "").table_version)
        except Unavailable:
            return False  # the gateway starts anew, which the stack tells itself
