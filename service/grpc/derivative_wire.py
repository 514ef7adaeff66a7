"""Messages of derivatives and of quantities <-> requests and answers of the domain."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from problems import EVOLUTION_PROBLEMS
from service.errors import LONGEST_QUOTE, InvalidField
from service.gradient import Derivative, GradientMethod, JvpRequest, VjpRequest
from service.grpc.call import Call
from service.grpc.layout import arrays, common_dtype
from service.grpc.parts import Parts, entry, tagged, tensor_parts
from service.grpc.wire import (
    KEY_NAME,
    check_steps,
    choice,
    dtype_of,
    refuse_parameters,
    refuse_unknown_names,
    state_of,
    ticket_of,
    timing_of,
    tolerance_of,
)
from service.pb import solver_pb2 as pb
from service.quantities import QuantitiesRequest, QuantitiesResponse
from service.rollout_question import RolloutJvpRequest, RolloutVjpRequest

__all__ = ["read_jvp", "read_quantities", "read_vjp", "write_jvp", "write_quantities", "write_vjp"]

# whatever solves, it is the adjoint that is solved
METHODS: Final[dict[int, GradientMethod]] = {
    pb.METHOD_UNSPECIFIED: "auto",
    pb.METHOD_AUTO: "auto",
    pb.METHOD_SURROGATE: "surrogate",
    pb.METHOD_HYBRID: "adjoint",
    pb.METHOD_SOLVER: "adjoint",
    pb.METHOD_ADJOINT: "adjoint",
}
METHOD_NUMBERS: Final = {"adjoint": pb.METHOD_ADJOINT, "surrogate": pb.METHOD_SURROGATE}
# several directions of a batch
RANK_OF_DIRECTIONS: Final = 4

# tags: a field's number and 2, that its length comes next
GRADIENT: Final = b"\x0a"  # VjpResponse.gradient = 1
TANGENTS: Final = b"\x0a"  # JvpResponse.tangents = 1


def read_vjp(message: pb.VjpRequest, call: Call) -> VjpRequest | RolloutVjpRequest:
    """The request of a call; see ``service.grpc.wire.read_solve``."""
    request = message.request
    if request.problem in EVOLUTION_PROBLEMS:
        return _read_rollout_vjp(message, call)
    _refuse_steps(message)
    given = arrays("fields", request.fields)
    tolerance = _tolerance(request)
    return VjpRequest(
        request.problem,
        {**given, **request.parameters},
        arrays("cotangents", message.cotangents, RANK_OF_DIRECTIONS),
        message.wrt or None,
        dtype_of(request.dtype, common_dtype(values.dtype for values in given.values())),
        request.model or None,
        choice("method", METHODS, request.method),
        tolerance,
        ticket_of(request, call),
        call.metadata.get(KEY_NAME, ""),
        call.received,
    )


def _read_rollout_vjp(message: pb.VjpRequest, call: Call) -> RolloutVjpRequest:
    given = _rollout(message, call)
    cotangents = arrays("cotangents", message.cotangents, RANK_OF_DIRECTIONS)
    return RolloutVjpRequest(cotangents=cotangents, **given)


def _read_rollout_jvp(message: pb.JvpRequest, call: Call) -> RolloutJvpRequest:
    given = _rollout(message, call)
    tangents = arrays("tangents", message.tangents, RANK_OF_DIRECTIONS)
    return RolloutJvpRequest(tangents=tangents, every=message.every or None, **given)


def _rollout(message: pb.VjpRequest | pb.JvpRequest, call: Call) -> dict[str, Any]:
    """What requests for derivatives through a rollout have beside their directions."""
    request = message.request
    state = state_of("fields", request.fields)
    refuse_parameters(request.parameters)
    _refuse_error(request)
    check_steps(message.steps, message.start_step)
    return {
        "problem": request.problem,
        "state": state,
        "steps": message.steps,
        "start_step": message.start_step,
        "wrt": message.wrt or None,
        "dtype": dtype_of(request.dtype, common_dtype(values.dtype for values in state.values())),
        "model": request.model or None,
        "method": choice("method", METHODS, request.method),
        "walls": message.walls or None,
        "tolerance": _energy(request),
        "ticket": ticket_of(request, call),
        "key": call.metadata.get(KEY_NAME, ""),
        "received": call.received,
    }


def _refuse_steps(message: pb.VjpRequest | pb.JvpRequest) -> None:
    """Refuse what only a problem that evolves has."""
    if message.steps or message.start_step or message.walls:
        name = message.request.problem[:LONGEST_QUOTE]
        text = f"steps: {name} has no steps; leave out steps, start_step and walls"
        raise InvalidField("steps", "evolution", text)


def read_jvp(message: pb.JvpRequest, call: Call) -> JvpRequest | RolloutJvpRequest:
    """The request of a call; see ``service.grpc.wire.read_solve``."""
    request = message.request
    if request.problem in EVOLUTION_PROBLEMS:
        return _read_rollout_jvp(message, call)
    _refuse_steps(message)
    if message.every or message.wrt:
        text = "every, wrt: they are for problems that evolve; name the input field among the tangents"
        raise InvalidField("every" if message.every else "wrt", "evolution", text)
    given = arrays("fields", request.fields)
    tolerance = _tolerance(request)
    tangents = arrays("tangents", message.tangents, RANK_OF_DIRECTIONS)
    if len(tangents) != 1:
        got = ", ".join(name[:LONGEST_QUOTE] for name in sorted(tangents)[:3])
        raise InvalidField("tangents", "one", f"tangents: expected one input field's, got {got}")
    ((wrt, values),) = tangents.items()
    return JvpRequest(
        request.problem,
        {**given, **request.parameters},
        values,
        wrt,
        dtype_of(request.dtype, common_dtype(values.dtype for values in given.values())),
        request.model or None,
        choice("method", METHODS, request.method),
        tolerance,
        ticket_of(request, call),
        call.metadata.get(KEY_NAME, ""),
        call.received,
    )


def read_quantities(message: pb.QuantitiesRequest, call: Call) -> QuantitiesRequest:
    """The request of a call; see ``service.grpc.wire.read_solve``."""
    request = message.request
    given = arrays("fields", request.fields)
    return QuantitiesRequest(
        request.problem,
        {**given, **request.parameters},
        tuple(message.quantities),
        request.model or None,
        _tolerance(request),
        ticket_of(request, call),
        call.metadata.get(KEY_NAME, ""),
        call.received,
    )


def _tolerance(request: pb.SolveRequest) -> float | None:
    """The tolerance of what is no solution; what a solution has beside it is refused."""
    refuse_unknown_names(request)
    _refuse_error(request)
    return _energy(request)


def _refuse_error(request: pb.SolveRequest) -> None:
    if request.error not in (pb.ERROR_REQUEST_UNSPECIFIED, pb.ERROR_REQUEST_NONE):
        raise InvalidField("error", "unknown", "error: what is guaranteed is said unasked; leave it out")


def _energy(request: pb.SolveRequest) -> float | None:
    tolerance = tolerance_of(request)
    if isinstance(tolerance, str):
        message = "tolerance: expected a relative error; discretization is for solutions"
        raise InvalidField("tolerance", "range", message)
    return tolerance


def write_vjp(response: Derivative, name: str = "") -> Parts:
    """A ``VjpResponse``; of the solution it has what is known, not the numbers."""
    known = pb.VjpResponse(solution=_solution(response, name), wrt=response.name, errors=_errors(response))
    return [*tagged(GRADIENT, tensor_parts(response.values)), known.SerializeToString()]


def write_jvp(response: Derivative, name: str = "") -> Parts:
    """A ``JvpResponse``; see :func:`write_vjp`."""
    known = pb.JvpResponse(solution=_solution(response, name), errors=_errors(response), steps=response.steps)
    if not response.steps:
        return [*entry(TANGENTS, response.name, response.values), known.SerializeToString()]
    parts: list[bytes | memoryview] = []
    channels = np.moveaxis(response.values, -3, 0)
    for field, channel in zip(response.name.split(","), channels, strict=True):
        parts += entry(TANGENTS, field, np.ascontiguousarray(channel))
    return [*parts, known.SerializeToString()]


def _errors(response: Derivative) -> list[float]:
    return [] if response.errors is None else np.ravel(response.errors).tolist()


def _solution(response: Derivative, name: str) -> pb.SolveResponse:
    return pb.SolveResponse(
        model=response.model or "",
        method=METHOD_NUMBERS[response.method],
        operator=response.operator,
        in_distribution=response.in_distribution,
        certified=response.certified_rows,
        timing=timing_of(response.timing),
        id=name,
        batch_size=response.batch_size,
    )


def write_quantities(response: QuantitiesResponse, name: str = "") -> Parts:
    """A ``QuantitiesResponse``."""
    values, half_widths = (
        np.atleast_2d(numbers).T.tolist() for numbers in (response.values, response.half_widths)
    )
    quantities = [
        pb.Quantity(quantity=quantity, unit=unit, values=value, half_widths=half_width)
        for quantity, unit, value, half_width in zip(
            response.names, response.units, values, half_widths, strict=True
        )
    ]
    solution = pb.SolveResponse(
        model=response.model or "",
        method=pb.METHOD_ADJOINT,
        operator=response.operator,
        certified=response.certified,
        timing=timing_of(response.timing),
        id=name,
        batch_size=response.batch_size,
    )
    return [pb.QuantitiesResponse(quantities=quantities, solution=solution).SerializeToString()]
