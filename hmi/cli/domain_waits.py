"""Waiting for updates of domains to end, and whether they did what they were to.

Knows how a node tells of its updates; does not know what begins them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hmi.cli.domain_views import how_rolled_back, rolled_back
from hmi.cli.output import waiting
from hmi.cli.session import Session, is_quiet
from hmi.client import Client, Domain
from hmi.errors import DeadlineExceeded, FailedPrecondition

_POLL_S = 0.5


def wait_for_table(session: Session, client: Client, domain: Domain, timeout: float) -> Domain:
    """Wait for a new node's first table; returns the node with it.

    Raises:
        FailedPrecondition: It could not be made.
        DeadlineExceeded: As `_patience`.
    """
    with _patience(session, f"making the table of {domain.path}", timeout) as pause:
        while domain.is_updating or not domain.table_version:
            _check_committed(domain)
            pause()
            domain = client.get_domain(domain.base, domain.path)
    return domain


def wait_for_update(
    session: Session, client: Client, base: str, update_id: str, timeout: float
) -> None:
    """Wait until an update has ended, which all its nodes tell at once.

    Raises:
        FailedPrecondition: It was rolled back, or its end cannot be seen any more.
        DeadlineExceeded: As `_patience`.
    """
    with _patience(session, f"updating {base}", timeout) as pause:
        while True:
            nodes = [stats.domain for stats in client.list_domains(base)]
            for node in nodes:
                if node.last_update is not None and node.last_update.update_id == update_id:
                    _check_committed(node)
                    return
            if not any(node.is_updating for node in nodes):
                raise FailedPrecondition(
                    f"update {update_id} of {base} is over, and no domain tells how: they were "
                    "deleted, or updated again; see `hmi domains tree`"
                )
            pause()


def _check_committed(domain: Domain) -> None:
    """Refuse an update that did not change what it was to.

    Raises:
        FailedPrecondition: It was rolled back.
    """
    if ended := rolled_back(domain):
        raise FailedPrecondition(
            f"update {ended.update_id} of {how_rolled_back(domain.path, ended)}"
        )


@contextmanager
def _patience(session: Session, title: str, timeout: float) -> Iterator[Callable[[], None]]:
    """A pause between two looks, as long as there is time.

    Raises:
        DeadlineExceeded: There is none left; what was begun goes on.
    """
    end = time.monotonic() + timeout

    def pause() -> None:
        if time.monotonic() > end:
            raise DeadlineExceeded(
                f"{title}: not done after {timeout:g} s; it goes on by itself, see "
                "`hmi domains tree`; if it stays so, ask an admin whether an executor runs"
            )
        time.sleep(_POLL_S)

    with waiting(title, is_quiet=is_quiet(session)):
        yield pause
