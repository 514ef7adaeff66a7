"""States by name or as channels, as the clients send them with cotangents of a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.client.connection import Question
from service.client.labels import plain

__all__ = ["first_field", "state_question"]

Given = Mapping[str, ArrayLike | Any] | ArrayLike | Any


def state_question(
    problem: str, state: Given, cotangent: Given, options: Mapping[str, Any], parameters: Mapping[str, float]
) -> Question:
    """What is asked about a frame that follows from a state.

    Args:
        problem: one that evolves.
        state: fields (ny, nx) by name, or one array (channel, ny, nx).
        cotangent: of the frame, likewise; or several on a leading axis, of each field or of the array.
        options: see ``Question``.
        parameters: see ``Question``.

    Raises:
        ValueError: cotangents by name that the state does not have.
    """
    if not isinstance(state, Mapping):
        if isinstance(cotangent, Mapping):
            raise ValueError(
                "cotangent: expected an array as the state is one, got fields; give both by name"
            )
        return Question(problem, plain(state), options, parameters, plain(cotangent))
    field = np.stack([plain(values) for values in state.values()])
    direction = _channels(list(state), cotangent) if isinstance(cotangent, Mapping) else plain(cotangent)
    return Question(problem, field, {**options, "fields": ",".join(state)}, parameters, direction)


def _channels(names: Sequence[str], given: Mapping[str, ArrayLike | Any]) -> NDArray[Any]:
    """The cotangents [.. channel y x]; what is left out does not count."""
    if not given or not given.keys() <= set(names):
        got = ", ".join(given) or "none"
        raise ValueError(f"cotangent: expected some of the state's {', '.join(names)}, got {got}")
    fields = {name: plain(values) for name, values in given.items()}
    nothing = np.zeros_like(next(iter(fields.values())))
    return np.stack([fields.get(name, nothing) for name in names], axis=-3)


def first_field(state: Given) -> Any:
    """A field whose axes and coordinates those of a gradient are."""
    return next(iter(state.values()), None) if isinstance(state, Mapping) else None
