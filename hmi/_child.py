"""Runs a module as a process that cannot outlive its parent: `python -m hmi._child PARENT_PID
MODULE`.

Knows Linux's parent-death signal; does not know any service. It is asked for here, after exec, and
not between fork and exec, where a parent with threads could deadlock.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int) -> None:
    """End this process with SIGKILL when its parent ends; at once if it has ended already.

    SIGKILL, because nobody is left to insist if a softer signal were not heeded; every service can
    be killed at any moment without loss.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        sys.exit("the parent has ended")


def main() -> None:
    """Run the module named on the command line as `__main__`."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        die_with_parent(parent_pid)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
