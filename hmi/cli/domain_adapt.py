"""Stage 2 for `hmi domains create --adapt`: the domain's own local encoder, learnt on this machine.

Knows where the parent's encoder may lie; learning itself is `services.executor.construct`'s, and
torch is loaded only when it begins.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hmi.bases import SPLIT, hminilm_files, minilm_directory
from hmi.cli.output import note
from hmi.cli.session import Session, is_quiet
from hmi.cli.wording import of_a_local_run
from hmi.client import Domain
from hmi.errors import InvalidArgument
from services.common.ids import domain_label

_ENCODER = SPLIT[0]


def encoder_of(parent: Domain, base_dir: Path | None, given: Path | None) -> Path:
    """The file of the encoder that a domain's parent uses.

    Args:
        base_dir: The split base's directory; MiniLM's and what comes with this package if None.
        given: What the user named.

    Raises:
        InvalidArgument: None is known, or it is not the parent's.
    """
    known = [path for path in hminilm_files() if path.name == _ENCODER]
    if base_dir is not None:
        known = [base_dir / _ENCODER]
    for path in [given] if given is not None else known:
        if path.is_file() and _sha256(path) == parent.encoder_sha256:
            return path
    raise InvalidArgument(
        f"--adapt continues the encoder of {domain_label(parent.path)}, "
        f"{parent.encoder_sha256[:12]}…: give its file with --parent-encoder",
        field="parent_encoder",
    )


def adapted(
    session: Session,
    files: Sequence[Path],
    parent: Path,
    *,
    base_dir: Path | None,
    out: Path | None,
    num_tokens: int,
) -> bytes:
    """The bytes of an encoder that continues `parent` on a corpus.

    Args:
        out: Where the run and its result are kept, so that a broken run goes on; None keeps
            nothing.

    Raises:
        HmiError: The run's own; an `InvalidArgument` names its field.
    """
    from services.common.errors import HmiError as ServiceError
    from services.executor.construct.adapt import AdaptOptions, adapt
    from services.executor.construct.progress import Bar, Lines, Watcher

    with ExitStack() as stack:
        directory = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hmi-")))
        watcher = Watcher()
        if not session.as_json:
            watcher = Lines(note) if is_quiet(session) or not os.isatty(2) else Bar()
        options = AdaptOptions(
            base_dir=base_dir or minilm_directory(),
            parent=parent,
            corpus=tuple(files),
            out=directory,
            num_tokens=num_tokens,
        )
        try:
            with watcher:
                return adapt(options, watcher).read_bytes()
        except ServiceError as error:
            raise of_a_local_run(error) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
