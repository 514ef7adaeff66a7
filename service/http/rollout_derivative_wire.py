"""The wire form of a gradient through a rollout: JSON, or ``.npy`` with the options in the query.

The ``.npy`` body is (1 + cotangents, channel, y, x): the state, and then as many cotangents of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from problems import EvolutionProblem
from service.codec import decode_json, decode_npy
from service.errors import InvalidField
from service.gradient import GradientMethod
from service.http.directions_wire import COTANGENT, cotangents_of
from service.http.rollout_wire import LAST_STEP, channels_of, state_of
from service.http.wire import NPY, read_query, refuse_query
from service.options import Asker, Urgency, read_options
from service.rollout_gradient import RolloutVjpRequest
from service.settings import Limits

__all__ = ["read_rollout_vjp"]

# axes of a state and its cotangents
RANK: Final = 4


@final
class RolloutVjpOptions(Urgency):
    """What a request for a gradient through a rollout says beside its arrays."""

    steps: int = Field(ge=1, le=LAST_STEP)
    start_step: int = Field(0, ge=0, le=LAST_STEP)
    model: str | None = None
    method: GradientMethod = "auto"
    walls: str | None = None
    wrt: str | None = None
    tolerance: float | None = None


def read_rollout_vjp(
    problem: EvolutionProblem, media: str, query: str, body: bytes, limits: Limits, asker: Asker
) -> RolloutVjpRequest:
    """The request in a body that is not compressed, or no longer."""
    if media == NPY:
        return _from_npy(problem, query, body, asker)
    return _from_json(problem, query, body, limits, asker)


def _from_json(
    problem: EvolutionProblem, query: str, body: bytes, limits: Limits, asker: Asker
) -> RolloutVjpRequest:
    # a list for each row, each field and each cotangent of it
    most_lists = len(problem.inputs) * (limits.batch + 1) * (limits.grid_side + 2) + 2
    document = decode_json(body, most_lists=most_lists)
    refuse_query(query)
    state = state_of(problem, document.pop("state", None))
    cotangents = cotangents_of(problem, document.pop(COTANGENT, None))
    options = read_options(RolloutVjpOptions, ["state", COTANGENT], document, strict=True)
    return _request(problem, state, cotangents, "float32", options, asker)


def _from_npy(problem: EvolutionProblem, query: str, body: bytes, asker: Asker) -> RolloutVjpRequest:
    stack = decode_npy("body", body)
    if stack.ndim != RANK or len(stack) < 2:
        message = (
            f"expected (1 + cotangents, channel, y, x), the state and one or more, got shape {stack.shape}"
        )
        raise InvalidField("body", "shape", message)
    rest = read_query(query)
    names = channels_of(problem, rest.pop("fields", None), stack.shape[1])
    options = read_options(RolloutVjpOptions, ["fields"], rest, strict=False)
    dtype: Literal["float32", "float64"] = "float64" if stack.dtype == np.float64 else "float32"
    state = dict(zip(names, stack[0], strict=True))
    given = stack[1] if len(stack) == 2 else stack[1:].swapaxes(0, 1)
    return _request(problem, state, dict(zip(names, given, strict=True)), dtype, options, asker)


def _request(
    problem: EvolutionProblem,
    state: Mapping[str, NDArray[Any]],
    cotangents: Mapping[str, NDArray[Any]],
    dtype: Literal["float32", "float64"],
    options: RolloutVjpOptions,
    asker: Asker,
) -> RolloutVjpRequest:
    return RolloutVjpRequest(
        problem.name,
        state,
        cotangents,
        options.steps,
        options.start_step,
        options.wrt,
        dtype,
        options.model,
        options.method,
        options.walls,
        options.tolerance,
        asker.ticket(options),
        asker.key,
        asker.received,
    )
