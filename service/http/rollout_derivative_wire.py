"""The wire form of derivatives through a rollout: JSON, or ``.npy`` with the options in the query.

The ``.npy`` body is (1 + directions, channel, y, x): the state, and then as many cotangents of the frame or
tangents of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from problems import EvolutionProblem, FieldSpec
from service.codec import decode_json, decode_npy
from service.errors import InvalidField
from service.gradient import GradientMethod
from service.http.directions_wire import COTANGENT, TANGENT, directions_of
from service.http.rollout_wire import LAST_STEP, channels_of, state_of
from service.http.wire import NPY, read_query, refuse_query
from service.options import Asker, Urgency, read_options
from service.rollout_question import RolloutJvpRequest, RolloutVjpRequest
from service.settings import Limits

__all__ = ["read_rollout_jvp", "read_rollout_vjp"]

# axes of a state and its directions
RANK: Final = 4


class _Options(Urgency):
    """What a request for a derivative through a rollout says beside its arrays."""

    steps: int = Field(ge=1, le=LAST_STEP)
    start_step: int = Field(0, ge=0, le=LAST_STEP)
    model: str | None = None
    method: GradientMethod = "auto"
    walls: str | None = None
    wrt: str | None = None
    tolerance: float | None = None


@final
class RolloutVjpOptions(_Options):
    """Of a gradient."""


@final
class RolloutJvpOptions(_Options):
    """Of tangents."""

    every: int | None = Field(None, ge=1)


OptionsT = TypeVar("OptionsT", bound=_Options)


@final
class _Read(NamedTuple, Generic[OptionsT]):
    """What a request is made of."""

    state: Mapping[str, NDArray[Any]]
    directions: Mapping[str, NDArray[Any]]
    dtype: Literal["float32", "float64"]
    options: OptionsT


def read_rollout_vjp(
    problem: EvolutionProblem, media: str, query: str, body: bytes, limits: Limits, asker: Asker
) -> RolloutVjpRequest:
    """The request for a gradient in a body that is not compressed, or no longer."""
    if media == NPY:
        read = _from_npy(problem, query, body, RolloutVjpOptions)
    else:
        read = _from_json(problem, query, body, limits, RolloutVjpOptions, COTANGENT)
    return RolloutVjpRequest(
        problem.name, read.state, read.directions, dtype=read.dtype, **_said(read.options, asker)
    )


def read_rollout_jvp(
    problem: EvolutionProblem, media: str, query: str, body: bytes, limits: Limits, asker: Asker
) -> RolloutJvpRequest:
    """The request for tangents in a body that is not compressed, or no longer."""
    if media == NPY:
        read = _from_npy(problem, query, body, RolloutJvpOptions)
    else:
        read = _from_json(problem, query, body, limits, RolloutJvpOptions, TANGENT)
    return RolloutJvpRequest(
        problem.name,
        read.state,
        read.directions,
        every=read.options.every,
        dtype=read.dtype,
        **_said(read.options, asker),
    )


def _from_json(
    problem: EvolutionProblem,
    query: str,
    body: bytes,
    limits: Limits,
    kind: type[OptionsT],
    word: str,
) -> _Read[OptionsT]:
    # a list for each row, each field and each direction of it
    most_lists = len(problem.inputs) * (limits.batch + 1) * (limits.grid_side + 2) + 2
    document = decode_json(body, most_lists=most_lists)
    refuse_query(query)
    state = state_of(problem, document.pop("state", None))
    specs: tuple[FieldSpec, ...] = problem.outputs if word == COTANGENT else problem.inputs
    directions = directions_of(word, specs, document.pop(word, None))
    options = read_options(kind, ["state", word], document, strict=True)
    return _Read(state, directions, "float32", options)


def _from_npy(problem: EvolutionProblem, query: str, body: bytes, kind: type[OptionsT]) -> _Read[OptionsT]:
    stack = decode_npy("body", body)
    if stack.ndim != RANK or len(stack) < 2:
        expected = "(1 + directions, channel, y, x), the state and one or more"
        raise InvalidField("body", "shape", f"expected {expected}, got shape {stack.shape}")
    rest = read_query(query)
    names = channels_of(problem, rest.pop("fields", None), stack.shape[1])
    options = read_options(kind, ["fields"], rest, strict=False)
    dtype: Literal["float32", "float64"] = "float64" if stack.dtype == np.float64 else "float32"
    state = dict(zip(names, stack[0], strict=True))
    given = stack[1] if len(stack) == 2 else stack[1:].swapaxes(0, 1)
    return _Read(state, dict(zip(names, given, strict=True)), dtype, options)


def _said(options: _Options, asker: Asker) -> dict[str, Any]:
    """What both requests have."""
    return {
        "steps": options.steps,
        "start_step": options.start_step,
        "wrt": options.wrt,
        "model": options.model,
        "method": options.method,
        "walls": options.walls,
        "tolerance": options.tolerance,
        "ticket": asker.ticket(options),
        "key": asker.key,
        "received": asker.received,
    }
