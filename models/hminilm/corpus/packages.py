"""Downloads pinned packages with their registries' own clients and walks the files in them.

Does not know what the files mean; nothing of a package is run, installed or written out.
"""

import fnmatch
import gzip
import hashlib
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_MAX_FILE_BYTES = 256 * 2**20


class PackageError(Exception):
    """A package could not be had, or is not the one that was pinned."""


@dataclass(frozen=True, slots=True)
class Package:
    """One package of a registry ("debian", "npm" or "pypi"), pinned by version and digest."""

    registry: str
    name: str
    version: str
    sha256: str

    @property
    def _command(self) -> list[str]:
        match self.registry:
            case "debian":
                return ["apt-get", "download", f"{self.name}={self.version}"]
            case "npm":
                return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
            case "pypi":
                return ["pip", "download", "--quiet", "--no-deps", f"{self.name}=={self.version}"]
        raise PackageError(f"{self.name}: no such registry: {self.registry}")

    def download(self, folder: Path) -> Path:
        """The package's file in `folder`, fetched unless it is there already.

        Raises PackageError when its registry no longer has this version, or answers another file.
        """
        target = folder / f"{self.registry}-{self.name.replace('/', '-')}-{self.version}".replace(
            ":", "."
        )
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                result = subprocess.run(self._command, cwd=scratch, capture_output=True, text=True)
                files = list(Path(scratch).iterdir())
                if result.returncode != 0 or len(files) != 1:
                    raise PackageError(
                        f"{self.name} {self.version}: {result.stderr.strip()[-400:]}"
                    )
                self._verify(files[0])
                files[0].rename(target)
        return target

    def _verify(self, path: Path) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise PackageError(f"{self.name} {self.version}: sha256 {digest}, pinned {self.sha256}")


def walk(
    path: Path, patterns: Sequence[str], skip: Sequence[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """The regular files of a package whose name matches a pattern and none of `skip`.

    Yields (name, content) in the archive's order, gunzipped where needed; one file is held at a
    time. Files over 256 MiB are passed over. Raises PackageError when a package cannot be read.
    """
    for name, data in _files(path, patterns, skip):
        yield name, gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _files(path: Path, patterns: Sequence[str], skip: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    def wanted(name: str, size_bytes: int) -> bool:
        return (
            0 < size_bytes <= _MAX_FILE_BYTES
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)
        )

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if wanted(info.filename, info.file_size):
                    yield info.filename, archive.read(info)
        return
    with path.open("rb") as file:
        is_deb = file.read(8) == b"!<arch>\n"
    if not is_deb:
        with tarfile.open(path, "r|*") as tar:
            yield from _members(tar, wanted)
        return
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        yield from _members(tar, wanted)
    if process.returncode != 0:
        raise PackageError(f"{path.name}: dpkg-deb ended with {process.returncode}")


def _members(
    tar: tarfile.TarFile, wanted: Callable[[str, int], bool]
) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        name = member.name.removeprefix("./")
        if member.isfile() and wanted(name, member.size):
            content = tar.extractfile(member)
            if content is not None:
                yield name, content.read()
