"""Task knowledge in limited device memory, and its batched computation."""

from services.executor.adapters.base_tensors import BaseTensors
from services.executor.adapters.slots import Slot
from services.executor.adapters.store import AdapterStore

__all__ = ["AdapterStore", "BaseTensors", "Slot"]
