"""What is asked of a derivative through a rollout, and what is wrong with it.

Both directions are asked alike: a state, how far to step, and directions. ``vjp`` has cotangents of the frame
of a step, ``jvp`` tangents of the state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem
from service.directions import Directions, check_directions
from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet, NotCertifiable
from service.frame_judge import State
from service.gradient import GradientMethod, chosen_input
from service.rollout import RolloutRequest
from service.scaling import near_one, over
from service.settings import Limits
from service.ticket import ANYBODY, Ticket
from service.tolerance import check_tolerance
from service.validate import Inputs, complete_state, validate_inputs
from service.workers.worker import COTANGENT, TANGENT

__all__ = [
    "Asked",
    "RolloutJvpRequest",
    "RolloutVjpRequest",
    "checked",
    "given_directions",
    "require_surrogate",
    "rollout_of",
]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What both kinds of request may say beside.

    Attributes:
        start_step: number of the step that ``state`` belongs to.
        wrt: the field of the state, or ``log_<field>`` for its logarithm; None: the problem's first. Of
            tangents, ``log_<field>`` says that those of this field are those of its logarithm.
        dtype: dtype of the derivative, float32 or float64.
        method: ``auto`` and ``surrogate``; there is no other.
        walls: boundary conditions; None: those of the model.
        tolerance: there is none that can be met; None.
        ticket: for whom, how urgently and until when.
        key: what decides whether a canary answers: equal keys get equal versions; empty: by chance.
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    start_step: int = 0
    wrt: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    model: str | None = None
    method: GradientMethod = "auto"
    walls: str | None = None
    tolerance: float | None = None
    ticket: Ticket = ANYBODY
    key: str = ""
    received: float = field(default_factory=time.perf_counter)


@final
@dataclass(frozen=True)
class RolloutVjpRequest(_Options):
    """A state, and cotangents of the frame that a rollout from it has at a step.

    Attributes:
        state: fields (ny, nx) or (batch, ny, nx) by name, as they came.
        cotangents: by name of the field, of the shape that the state has, or several on a leading axis; at
            least one name. A field without does not count.
        steps: the step of the frame, counted from the initial state.
    """

    problem: str
    state: State
    cotangents: Mapping[str, Any]
    steps: int


@final
@dataclass(frozen=True)
class RolloutJvpRequest(_Options):
    """A state, and tangents of it; see :class:`RolloutVjpRequest`.

    Attributes:
        tangents: of the state, like the cotangents of a frame; a field without does not change.
        every: the steps that this divides have tangents, up to ``steps``; None: only ``steps``.
    """

    problem: str
    state: State
    tangents: Mapping[str, Any]
    steps: int
    every: int | None = None


@final
class Asked(NamedTuple):
    """What a request comes to, once it is checked.

    Attributes:
        name: the field of the state that ``wrt`` names, in its logarithm if ``logarithmic``.
        directions: of all fields [batch direction y x] by name, near 1.
        exponents: of the powers of two [batch direction] that they are to be multiplied by.
        like: the axes that the caller's directions have.
        steps: whose frames have cotangents, or are to have tangents.
    """

    problem: EvolutionProblem
    request: RolloutVjpRequest | RolloutJvpRequest
    inputs: Inputs
    name: str
    logarithmic: bool
    directions: State
    exponents: NDArray[np.int_]
    like: Directions
    steps: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Directions of all states."""
        return self.inputs.rows * self.like.number

    @property
    def span(self) -> int:
        """Steps from the state to the last frame."""
        return self.request.steps - self.request.start_step


def given_directions(request: RolloutVjpRequest | RolloutJvpRequest) -> Mapping[str, Any]:
    """What came beside the state."""
    return request.cotangents if isinstance(request, RolloutVjpRequest) else request.tangents


def rollout_of(request: RolloutVjpRequest | RolloutJvpRequest) -> RolloutRequest:
    """The rollout to the last frame."""
    return RolloutRequest(
        request.problem,
        request.state,
        request.steps,
        start_step=request.start_step,
        model=request.model,
        method="surrogate",
        walls=request.walls,
        ticket=request.ticket,
        key=request.key,
        received=request.received,
        derived=True,
    )


def require_surrogate(request: RolloutVjpRequest | RolloutJvpRequest) -> None:
    """Refuse what only a derivative of the reference solver could give.

    Raises:
        NotAvailableYet: the method.
        NotCertifiable: a tolerance.
        InvalidField: a tolerance that is none.
    """
    none = f"there is no adjoint of the reference solver of {request.problem}"
    if request.method not in ("auto", "surrogate"):
        message = f"method={request.method}: {none}; ask for surrogate, whose derivatives nothing bounds"
        raise NotAvailableYet(message)
    check_tolerance(request.tolerance)
    if request.tolerance is not None:
        unknown = "nothing is known of the error of a surrogate's derivative"
        raise NotCertifiable(f"tolerance: {unknown}, and {none}; leave it out")


def checked(
    problem: EvolutionProblem, request: RolloutVjpRequest | RolloutJvpRequest, limits: Limits
) -> Asked:
    """What a request comes to.

    Raises:
        InvalidField: the state, a direction or an option is none.
        TooLarge: they are too many.
    """
    state = complete_state(problem, request.state, request.start_step)
    inputs = validate_inputs(problem, state, limits)
    name, logarithmic = chosen_input(problem, request.wrt)
    found = _directions(problem, request, inputs, limits)
    like = next(iter(found.values()))
    steps = _steps(request, inputs.rows * like.number, limits)
    nothing = np.zeros(like.values.shape, np.float32)
    directions = {
        spec.name: found[spec.name].values if spec.name in found else nothing for spec in problem.inputs
    }
    if isinstance(request, RolloutJvpRequest) and request.wrt is not None:
        if name not in found:
            raise InvalidField("wrt", "missing", f"wrt: there is no tangent of {name}; leave it out")
        if logarithmic:
            directions[name] = directions[name] * inputs.fields[name].astype(np.float64)[:, None]
    exponents = near_one(*directions.values())
    near = {name: over(values, exponents) for name, values in directions.items()}
    return Asked(problem, request, inputs, name, logarithmic, near, exponents, like, steps)


def _directions(
    problem: EvolutionProblem,
    request: RolloutVjpRequest | RolloutJvpRequest,
    inputs: Inputs,
    limits: Limits,
) -> dict[str, Directions]:
    """The directions by the field that they are of.

    Raises:
        InvalidField: there is none, one of an unknown field, of another shape, or with numbers that are none.
        TooLarge: they are too many.
    """
    given, prefix = given_directions(request), _prefix(request)
    word = prefix.rstrip(".")
    names = [spec.name for spec in problem.inputs]
    for name in (each[:LONGEST_QUOTE] for each in given if each not in names):
        message = f"{word} of {name!r}: expected some of {', '.join(names)}"
        raise InvalidField(f"{word}s", "unknown", message)
    if not given:
        message = f"{word}s: expected some of {', '.join(names)}, got none"
        raise InvalidField(f"{word}s", "missing", message)
    found = {
        name: check_directions(inputs, f"{prefix}{name}", values, limits) for name, values in given.items()
    }
    shapes = {name: np.shape(values) for name, values in given.items()}
    if len(set(shapes.values())) > 1:
        message = f"{word}s: expected one shape for all fields, got {shapes}"
        raise InvalidField(f"{word}s", "shape", message)
    return found


def _prefix(request: RolloutVjpRequest | RolloutJvpRequest) -> str:
    return COTANGENT if isinstance(request, RolloutVjpRequest) else TANGENT


def _steps(
    request: RolloutVjpRequest | RolloutJvpRequest, directions: int, limits: Limits
) -> tuple[int, ...]:
    """The steps whose frames count.

    Raises:
        InvalidField: there is none, or they are too far.
    """
    steps = request.steps - request.start_step
    if steps < 1:
        message = (
            f"steps: expected more than start_step = {request.start_step}, got {request.steps}; "
            "steps counts from the initial state"
        )
        raise InvalidField("steps", "minimum", message)
    if steps * directions > limits.gradient_steps:
        word = _prefix(request).rstrip(".")
        got = f"got {steps} for {directions} {word}{'s' if directions > 1 else ''}"
        message = f"steps: a derivative goes through at most {limits.gradient_steps}, {got}"
        raise InvalidField("steps", "maximum", f"{message}; ask for fewer, or for one after the other")
    every = request.every if isinstance(request, RolloutJvpRequest) else None
    if every is None:
        return (request.steps,)
    chosen = tuple(n for n in range(request.start_step + 1, request.steps + 1) if n % every == 0)
    if not chosen:
        message = f"every: no multiple of {every} after start_step = {request.start_step}"
        raise InvalidField("every", "minimum", f"{message} up to steps = {request.steps}")
    return chosen
