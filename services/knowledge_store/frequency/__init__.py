"""How often each n-gram came lately: what executors counted, decayed, bounded and durable."""

from services.knowledge_store.frequency.frequencies import Frequencies, Observation, Stream

__all__ = ["Frequencies", "Observation", "Stream"]
