"""Becomes another program that the kernel kills when its parent ends.

Run as a script: `exec_with_parent.py PARENT_PID PROGRAM ARGUMENT…`. A process of its own, because
code between fork and exec is not safe in a process with threads. Knows Linux's prctl; does not
know the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the program."""
    parent, program = int(arguments[0]), arguments[1]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent ended before the program began")
    os.execv(program, arguments[1:])  # noqa: S606 (there is no shell to want)


if __name__ == "__main__":
    main(sys.argv[1:])
