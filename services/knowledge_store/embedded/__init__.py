"""The Valkey a store runs itself when no Redis is named."""

from services.knowledge_store.embedded.valkey import EmbeddedValkey, ValkeyError

__all__ = ["EmbeddedValkey", "ValkeyError"]
