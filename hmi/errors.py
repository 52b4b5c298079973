"""What a call can raise, translated once from gRPC statuses and their google.rpc details.

Knows the wire's status codes; does not know any RPC, and does not decide what is retried.

    HmiError
    ├── the caller's to mend: InvalidArgument, Unauthenticated, PermissionDenied, NotFound,
    │                         AlreadyExists, FailedPrecondition, Cancelled
    ├── worth another try later: ResourceExhausted, Unavailable
    └── gone wrong on the way: DeadlineExceeded, DataLoss, Internal
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class HmiError(Exception):
    """A failed call.

    Attributes:
        message: One sentence: what is wrong and what to do.
        reason: UPPER_SNAKE_CASE constant for programs (google.rpc.ErrorInfo); empty if the server
            gave none.
        field: Path of the request's field that is wrong, such as `inputs[2].text`; None if no field
            is.
        retry_after: Seconds the server asks to wait before another try; None if it did not say.
        subject: What ran out, such as `tenant:acme/tokens_per_second`; None if nothing did.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str | None = None,
        retry_after: float | None = None,
        subject: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after
        self.subject = subject


class InvalidArgument(HmiError):
    """A field of the request is wrong; `field` names it."""


class Unauthenticated(HmiError):
    """The key is missing, unknown or revoked."""


class PermissionDenied(HmiError):
    """The key is good but may not do this."""


class NotFound(HmiError):
    """There is none, or none that this key may know of."""


class AlreadyExists(HmiError):
    """The name is taken."""


class FailedPrecondition(HmiError):
    """The request is well formed, but does not fit the present state."""


class Cancelled(HmiError):
    """The call was cancelled."""


class ResourceExhausted(HmiError):
    """A quota or a limit is used up; `subject` names it, `retry_after` says when to try again."""


class Unavailable(HmiError):
    """Nobody could answer just now."""


class DeadlineExceeded(HmiError):
    """The time given to the call was over before the answer came."""


class DataLoss(HmiError):
    """Bytes are missing or differ from their digest."""


class Internal(HmiError):
    """A defect of the service, or a status this client does not know."""


_CLASS_OF_CODE: dict[int, type[HmiError]] = {
    code.value[0]: cls
    for code, cls in {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
        grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
        grpc.StatusCode.ABORTED: FailedPrecondition,
        grpc.StatusCode.CANCELLED: Cancelled,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.DATA_LOSS: DataLoss,
    }.items()
}


@dataclass(slots=True)
class _Details:
    reason: str = ""
    field: str | None = None
    retry_after: float | None = None
    subject: str | None = None


def _read_details(packed: Iterable[Any]) -> _Details:
    found = _Details()
    for detail in packed:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            found.reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            if bad.field_violations:
                found.field = bad.field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            found.retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            quota = error_details_pb2.QuotaFailure()
            detail.Unpack(quota)
            if quota.violations:
                found.subject = quota.violations[0].subject
    return found


def from_status(status: status_pb2.Status) -> HmiError:
    """The error a google.rpc.Status stands for (an item of a stream, or a call's details)."""
    details = _read_details(status.details)
    cls = _CLASS_OF_CODE.get(status.code, Internal)
    return cls(
        status.message or cls.__name__,
        reason=details.reason,
        field=details.field,
        retry_after=details.retry_after,
        subject=details.subject,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> HmiError:
    """The error a failed call stands for; without google.rpc details, its code and text alone."""
    code: int = error.code().value[0]
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                break  # a proxy's garbage: the plain code below is still true
            if status.code == code:
                return from_status(status)
    return from_status(status_pb2.Status(code=code, message=error.details() or ""))
