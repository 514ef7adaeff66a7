"""The one mapping of faults to gRPC: a status, its message, and the fault in the trailing metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from grpc import StatusCode

from service import errors
from service.grpc.call import Outcome
from service.pb import solver_pb2 as pb

__all__ = ["CANCELLED", "UnknownService", "describe", "outcome_of"]


class UnknownService(errors.ServiceFault):
    """No service of this name: only gRPC's health asks for one."""


log = logging.getLogger("mno.service")

CANCELLED: Final = Outcome(StatusCode.CANCELLED, "the client left")
# what gRPC understands as: send it again
RETRYABLE: Final = (StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED)

# fault -> slug, status; a subclass answers as its nearest ancestor in the table
FAULTS: Final[Mapping[type[errors.ServiceFault], tuple[str, StatusCode]]] = {
    errors.InvalidField: ("invalid-field", StatusCode.INVALID_ARGUMENT),
    errors.UnknownProblem: ("unknown-problem", StatusCode.NOT_FOUND),
    errors.UnknownModel: ("unknown-model", StatusCode.NOT_FOUND),
    errors.TooLarge: ("payload-too-large", StatusCode.INVALID_ARGUMENT),
    errors.UnsupportedMedia: ("unsupported-media-type", StatusCode.UNIMPLEMENTED),
    errors.NotAcceptable: ("not-acceptable", StatusCode.INVALID_ARGUMENT),
    errors.NotAvailableYet: ("not-available-yet", StatusCode.UNIMPLEMENTED),
    errors.Overloaded: ("overloaded", StatusCode.RESOURCE_EXHAUSTED),
    errors.LoadFailed: ("load-failed", StatusCode.FAILED_PRECONDITION),
    errors.NotCertifiable: ("not-certifiable", StatusCode.FAILED_PRECONDITION),
    errors.DeadlineExceeded: ("deadline-exceeded", StatusCode.DEADLINE_EXCEEDED),
    errors.WorkerLost: ("worker-lost", StatusCode.UNAVAILABLE),
    errors.Unauthenticated: ("unauthenticated", StatusCode.UNAUTHENTICATED),
    errors.Forbidden: ("forbidden", StatusCode.PERMISSION_DENIED),
    UnknownService: ("unknown-service", StatusCode.NOT_FOUND),
    errors.WorkFailed: ("internal", StatusCode.INTERNAL),
}


def describe(fault: Exception, request_id: str) -> pb.Fault:
    """What a client may know of a fault; whatever is no :class:`ServiceFault` is for the log alone."""
    slug, status = _found(fault)
    if status is StatusCode.INTERNAL:
        log.error("request %s: %s", request_id, fault, exc_info=fault)
        message = f"the service failed; its log says why under request id {request_id}"
        return pb.Fault(type=slug, message=message)
    known = pb.Fault(type=slug, message=str(fault))
    if isinstance(fault, errors.InvalidField):
        known.field, known.rule = fault.field, fault.rule
        known.index.extend(fault.index or ())
    known.retry_after = max(0, int(getattr(fault, "retry_after", 0)))
    return known


def outcome_of(fault: Exception, request_id: str) -> Outcome:
    """How a call ends that met a fault."""
    _, status = _found(fault)
    known = describe(fault, request_id)
    metadata: list[tuple[str, str | bytes]] = [
        ("mno-fault", known.type),
        ("mno-fault-bin", known.SerializeToString()),
    ]
    if status in RETRYABLE and known.retry_after:
        metadata.append(("retry-after", str(known.retry_after)))
        metadata.append(("grpc-retry-pushback-ms", str(1000 * known.retry_after)))
    step = getattr(fault, "step", None)
    if step is not None:
        metadata.append(("mno-start-step", str(step)))
    return Outcome(status, known.message, metadata)


def _found(fault: Exception) -> tuple[str, StatusCode]:
    kind = next((kind for kind in type(fault).__mro__ if kind in FAULTS), errors.WorkFailed)
    return FAULTS[kind]
