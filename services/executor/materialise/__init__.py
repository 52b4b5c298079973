"""Rows that the knowledge store's trees ask for: leased, computed, written, completed."""

from services.executor.materialise.worker import Worker

__all__ = ["Worker"]
