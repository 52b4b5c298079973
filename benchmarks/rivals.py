"""Other systems as subjects of a benchmark: their environments, their processes, their samples.

Knows how to start a worker and ask it for a sample; what it runs is in `rival_worker`.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

ENVIRONMENTS = Path(__file__).parent / ".venvs"
_WORKER = Path(__file__).parent / "rival_worker.py"


class Unavailable(Exception):
    """The system could not be installed or did not start; the message says why."""


@dataclass(frozen=True)
class System:
    """Another system.

    Attributes:
        name: Its function in `rival_worker`.
        title: In the report.
        requirements: Pinned, beyond this project's own packages. Empty: it runs among those.
        options: For pip.
    """

    name: str
    title: str
    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


SYSTEMS = (
    System("peft", "PEFT mixed batch"),
    System(
        "adapterhub",
        "AdapterHub BatchSplit",
        ("adapters==1.3.0", "transformers==4.57.6", "huggingface-hub<1", "tokenizers<=0.23,>=0.22"),
    ),
    # Without its dependencies: it wants triton, which a CPU has no use for.
    System("polylora", "polylora", ("polylora==0.1.1",), ("--no-deps",)),
    System(
        "merged_onnx",
        "merged copies, onnxruntime, LRU of 8",
        ("onnxruntime==1.27.0", "onnx==1.20.1"),
    ),
)


def python_for(system: System) -> Path:
    """The interpreter that has the system; makes its virtual environment the first time.

    The environment sees this one's packages behind its own, so that torch is not installed again.

    Raises:
        Unavailable: pip failed.
    """
    if not system.requirements:
        return Path(sys.executable)
    directory = ENVIRONMENTS / system.name
    python = directory / "bin" / "python"
    stamp = directory / "requirements"
    wanted = "\n".join((*system.options, *system.requirements))
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {', '.join(system.requirements)} …", flush=True)
    venv.create(directory, with_pip=True, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / "lib" / version / "site-packages"
    (packages / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, *system.options, *system.requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unavailable(f"{system.title}: pip: {done.stderr.strip()[-400:]}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


class Rival:
    """A worker process; a context manager that ends it.

    Args:
        directory: As `rival_worker` describes.

    Raises:
        Unavailable: It did not become ready.
    """

    def __init__(self, system: System, directory: Path) -> None:
        self.system = system
        self._stack = ExitStack()
        self._log = self._stack.enter_context((directory / f"{system.name}.log").open("w+"))
        self._process = subprocess.Popen(
            # -P: the worker's own folder has an `adapters` too, and it is not AdapterHub's.
            [python_for(system), "-P", _WORKER, system.name, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        if self._read() != "ready":
            self.close()
            raise Unavailable(f"{system.title}: it ended before it was ready: {self._error}")

    def sample(self) -> float:
        """Seconds of one batch."""
        print("go", file=_open(self._process.stdin), flush=True)
        return float(self._read())

    def _read(self) -> str:
        return _open(self._process.stdout).readline().strip()

    def close(self) -> None:
        """Let the process end."""
        _open(self._process.stdin).close()
        self._process.wait()
        _open(self._process.stdout).close()
        self._log.seek(0)
        self._error = self._log.read().strip()[-400:]
        self._stack.close()

    def __enter__(self) -> Rival:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("the worker was started without pipes")
    return pipe
