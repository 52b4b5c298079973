"""The client of a gateway: `AsyncClient`, and `Client` for code without an event loop."""

from hmi.client.async_client import AsyncClient
from hmi.client.domain_resources import (
    Domain,
    DomainChange,
    DomainStats,
    DomainUpdate,
    EndedUpdate,
    Form,
    Lookups,
    MissPolicy,
    Split,
    UpdateOutcome,
)
from hmi.client.predictions import (
    Answer,
    Classification,
    Embedding,
    Item,
    LabelScore,
    MultiLabel,
    Prediction,
    Predictions,
    Provenance,
    Regression,
    Span,
    TokenTags,
)
from hmi.client.pushes import Push
from hmi.client.resources import (
    ApiKey,
    Base,
    BaseFile,
    CreatedKey,
    CreatedTenant,
    Model,
    PushOutcome,
    Quota,
    Role,
    Task,
    Tenant,
    Usage,
    Version,
)
from hmi.client.retry import RetryPolicy
from hmi.client.sync_client import Client
from hmi.pack import PackOptions

__all__ = [
    "Answer", "ApiKey", "AsyncClient", "Base", "BaseFile", "Classification", "Client",
    "CreatedKey", "CreatedTenant", "Domain", "DomainChange", "DomainStats", "DomainUpdate",
    "Embedding", "EndedUpdate", "Form", "Item", "LabelScore", "Lookups", "MissPolicy", "Model",
    "MultiLabel", "PackOptions", "Prediction", "Predictions", "Provenance", "Push", "PushOutcome",
    "Quota", "Regression", "RetryPolicy", "Role", "Span", "Split", "Task", "Tenant", "TokenTags",
    "UpdateOutcome", "Usage", "Version",
]  # fmt: skip
