"""What a node may be called and set to.

Knows fields and bounds; does not know which nodes there are.
"""

from __future__ import annotations

import math

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as pb
from services.common.errors import InvalidArgument
from services.common.ids import check_name, check_path, check_sha256

_POLICIES = (rpb.MISS_POLICY_UNSPECIFIED, rpb.MISS_POLICY_BACKOFF, rpb.MISS_POLICY_COMPUTE)
_MAX_NUMBER = 1 << 53


def check_new(wanted: rpb.Domain, counts_sha256: str) -> None:
    """Refuse a node that cannot be, naming the field: InvalidArgument."""
    check_name("domain.base", wanted.base)
    check_path("domain.path", wanted.path)
    if wanted.tenant:
        check_name("domain.tenant", wanted.tenant)
    if wanted.encoder_sha256:
        check_sha256("domain.encoder_sha256", wanted.encoder_sha256)
    if counts_sha256:
        check_sha256("counts_sha256", counts_sha256)
    check_settings("domain.", wanted)


def check_settings(prefix: str, given: rpb.Domain | pb.SetDomainRequest) -> None:
    """Refuse settings out of their bounds, naming the field after `prefix`: InvalidArgument."""
    if given.miss_policy not in _POLICIES:
        raise InvalidArgument(f"{prefix}miss_policy", "must be back-off or compute")
    if not (math.isfinite(given.alpha) and 0 <= given.alpha <= 1):
        raise InvalidArgument(f"{prefix}alpha", "must be a share from 0 to 1; 0 is the default")
    for name in ("byte_budget", "half_life_tokens"):
        if getattr(given, name) > _MAX_NUMBER:
            raise InvalidArgument(f"{prefix}{name}", f"must be at most {_MAX_NUMBER}")


def check_budget(field: str, node: rpb.Domain, most: int) -> None:
    """Refuse a tenant's node that may take more than `most` bytes of values: InvalidArgument."""
    if node.tenant and node.byte_budget > most:
        raise InvalidArgument(field, f"a tenant's domain may have {most} bytes at most")


def check_counts(node: rpb.Domain, size: int, most: int) -> None:
    """Refuse a tenant's counts of more than `most` bytes, of `size` bytes: InvalidArgument."""
    if node.tenant and size > most:
        raise InvalidArgument(
            "counts",
            f"of a tenant's domain may take {most} bytes, not {size}: leave out the rarest",
        )
