"""`hmi up`: the whole local stack in the foreground."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from hmi.cli.output import note, print_json
from hmi.cli.session import DEFAULT_DATA_DIR, DataDir, Json
from hmi.errors import InvalidArgument
from hmi.stack import LocalStack

DEVICES = ("auto", "cpu", "cuda")


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 50051,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Start the local stack, and stay.

    Prints `ready: HOST:PORT` once it serves.
    """
    if device not in DEVICES:
        raise InvalidArgument(f"--device is none of {', '.join(DEVICES)}", field="device")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    stack = LocalStack(Path(data_dir), port=port, device=device, on_event=note)
    try:
        stack.start()
        _announce(stack, as_json=as_json)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        _wind_down(stack)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _announce(stack: LocalStack, *, as_json: bool) -> None:
    if as_json:
        print_json({"ready": stack.address, "admin_key": stack.data_dir / "admin.key"})
    else:
        print(f"ready: {stack.address}")
    sys.stdout.flush()


def _wind_down(stack: LocalStack) -> None:
    """Let calls under way finish; a second interrupt ends everything at once."""
    try:
        note("stopping; once more ends it at once")
        stack.stop()
    except KeyboardInterrupt:
        stack.kill()
