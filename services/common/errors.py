"""The error tree of every service: what went wrong, whose fault it is, what to do.

Knows google.rpc details; does not know any servicer. The interceptor turns these into statuses.

    HmiError
    ├── the caller's fault: InvalidArgument, Unauthenticated, PermissionDenied, NotFound,
    │                       AlreadyExists, FailedPrecondition, Aborted, ResourceExhausted,
    │                       Cancelled
    └── ours or the moment's: Unavailable, DeadlineExceeded, DataLoss, Internal
"""

from __future__ import annotations

from typing import ClassVar, Self

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "hmi"

# A status travels in trailing metadata, of which a call has 8 KiB by default; text that a caller
# sent comes back in up to three places.
_MAX_TEXT_BYTES = 512


def _cut(text: str) -> str:
    """At most `_MAX_TEXT_BYTES` of UTF-8, cut between characters."""
    data = text.encode("utf-8", "replace")
    if len(data) <= _MAX_TEXT_BYTES:
        return data.decode()
    return data[: _MAX_TEXT_BYTES - 3].decode("utf-8", "ignore") + "…"


class HmiError(Exception):
    """An error with a gRPC status.

    Args:
        message: One sentence for the caller: what is wrong and what to do.
        reason: UPPER_SNAKE_CASE constant for programs (google.rpc.ErrorInfo.reason); the class's
            default if None.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason

    def fresh(self) -> Self:
        """The same error without traceback or cause: one that is kept and raised again and again
        would gather the frames of everybody it was raised to, and keep what they held."""
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy

    def details(self) -> list[error_details_pb2.ErrorInfo | object]:
        """The google.rpc detail messages, ErrorInfo first."""
        return [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)]

    def to_status(self) -> status_pb2.Status:
        """This error as google.rpc.Status, its texts cut to what a call's metadata can carry."""
        packed = []
        for detail in self.details():
            any_message = any_pb2.Any()
            any_message.Pack(detail)  # type: ignore[arg-type]
            packed.append(any_message)
        return status_pb2.Status(
            code=self.code.value[0], message=_cut(self.message), details=packed
        )


class InvalidArgument(HmiError):
    """A field of the request is wrong. `field` is its path, such as `inputs[2].text`."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, message: str, *, reason: str | None = None) -> None:
        super().__init__(f"{field}: {message}", reason=reason)
        self.field = field
        self.description = message

    def details(self) -> list[error_details_pb2.ErrorInfo | object]:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(self.field), description=_cut(self.description)
        )
        return [*super().details(), error_details_pb2.BadRequest(field_violations=[violation])]


class Unauthenticated(HmiError):
    """The credential is missing, unknown or revoked."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(HmiError):
    """The credential is good but may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class NotFound(HmiError):
    """There is none, or none this caller may know of."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(HmiError):
    """The name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(HmiError):
    """The request is well formed, but not in this state."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Aborted(HmiError):
    """Somebody else was faster: begin again from what there is now."""

    code = grpc.StatusCode.ABORTED
    default_reason = "ABORTED"


class _Retryable(HmiError):
    """May succeed later; carries RetryInfo when the time is known."""

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s

    def details(self) -> list[error_details_pb2.ErrorInfo | object]:
        if self.retry_after_s is None:
            return super().details()
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(self.retry_after_s * 1e9))
        return [*super().details(), error_details_pb2.RetryInfo(retry_delay=delay)]


class ResourceExhausted(_Retryable):
    """A quota or limit is used up. `subject` names it: `tenant:acme/tokens_per_second`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        *,
        subject: str = "",
        reason: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)
        self.subject = subject

    def details(self) -> list[error_details_pb2.ErrorInfo | object]:
        if not self.subject:
            return super().details()
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=_cut(self.subject), description=_cut(self.message)
        )
        return [*super().details(), error_details_pb2.QuotaFailure(violations=[violation])]


# The reason of an executor's item that it does not run because it stops: another executor may.
STOPPING = "STOPPING"


class Unavailable(_Retryable):
    """Overloaded, stopping, or something needed cannot be reached: retry."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class Cancelled(HmiError):
    """The caller no longer wants the answer."""

    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class DeadlineExceeded(HmiError):
    """The deadline passed before the answer."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class DataLoss(HmiError):
    """Bytes are missing or differ from their digest."""

    code = grpc.StatusCode.DATA_LOSS
    default_reason = "DATA_LOSS"


class Internal(HmiError):
    """A defect of ours. The message never holds details; the log does."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


_BY_CODE: dict[int, type[HmiError]] = {
    cls.code.value[0]: cls
    for cls in (
        Unauthenticated, PermissionDenied, NotFound, AlreadyExists, FailedPrecondition,
        Aborted, ResourceExhausted, Unavailable, Cancelled, DeadlineExceeded, DataLoss, Internal,
    )
}  # fmt: skip


def from_status(status: status_pb2.Status) -> HmiError:
    """The error another service reported, to be passed on with its details.

    INVALID_ARGUMENT keeps its field. An unknown code becomes Internal.
    """
    reason: str | None = None
    field, description = "request", status.message
    retry_after_s: float | None = None
    subject = ""
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            field = bad.field_violations[0].field
            description = bad.field_violations[0].description
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            quota = error_details_pb2.QuotaFailure()
            detail.Unpack(quota)
            subject = quota.violations[0].subject
    if status.code == code_pb2.INVALID_ARGUMENT:
        return InvalidArgument(field, description, reason=reason)
    cls = _BY_CODE.get(status.code, Internal)
    if cls is ResourceExhausted:
        return ResourceExhausted(
            status.message, subject=subject, reason=reason, retry_after_s=retry_after_s
        )
    if cls is Unavailable:
        return Unavailable(status.message, reason=reason, retry_after_s=retry_after_s)
    return cls(status.message, reason=reason)


def from_rpc_error(error: grpc.aio.AioRpcError) -> HmiError:
    """The error of a failed call to another service."""
    code = error.code()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status()
            status.ParseFromString(value)
            return from_status(status)
    message = error.details() or code.name
    return from_status(status_pb2.Status(code=code.value[0], message=message))
