"""The `hmi` command: a thin layer over `hmi.Client`, `hmi.stack` and local training."""

from hmi.cli.main import main

__all__ = ["main"]
