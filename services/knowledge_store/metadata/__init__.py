"""Tenants, keys, bases, models, versions and members, in Redis."""

from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.transaction import Transaction

__all__ = ["Database", "Transaction"]
