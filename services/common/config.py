"""Settings every service has.

Read from the environment (`HMI_PORT=50051`); each service adds its own in its `config.py`.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What any process of the suite can be told."""

    model_config = SettingsConfigDict(env_prefix="HMI_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Interface to serve on.")
    port: int = Field(0, ge=0, le=65535, description="Port to serve on; 0 takes any free one.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of Prometheus metrics; 0 any free one; unset none."
    )
    log_level: str = Field("INFO", description="Least severe level that is logged.")
    service_token: SecretStr = Field(
        SecretStr(""), description="Secret with which the services know each other."
    )
    allow_remote_plaintext: bool = Field(
        False, description="Serve without TLS on an interface other than loopback."
    )
    parent_pid: int | None = Field(
        None, description="Stop when this process is gone (set by the local stack)."
    )
    drain_s: float = Field(5.0, ge=0, description="How long calls may finish when stopping.")
