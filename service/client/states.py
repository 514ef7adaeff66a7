"""States by name or as channels, as the clients send them with directions."""

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
    problem: str,
    state: Given,
    word: str,
    given: Given,
    options: Mapping[str, Any],
    parameters: Mapping[str, float],
) -> Question:
    """What is asked about frames that follow from a state.

    Args:
        problem: one that evolves.
        state: fields (ny, nx) by name, or one array (channel, ny, nx).
        word: ``cotangent`` or ``tangent``.
        given: such of a frame or of the state, likewise; or several on a leading axis, of each field or of
            the array.
        options: see ``Question``.
        parameters: see ``Question``.

    Raises:
        ValueError: directions by name that the state does not have.
    """
    if not isinstance(state, Mapping):
        if isinstance(given, Mapping):
            raise ValueError(f"{word}: expected an array as the state is one, got fields; give both by name")
        return Question(problem, plain(state), options, parameters, plain(given))
    field = np.stack([plain(values) for values in state.values()])
    direction = _channels(list(state), word, given) if isinstance(given, Mapping) else plain(given)
    return Question(problem, field, {**options, "fields": ",".join(state)}, parameters, direction)


def _channels(names: Sequence[str], word: str, given: Mapping[str, ArrayLike | Any]) -> NDArray[Any]:
    """The directions [.. channel y x]; what is left out is zero."""
    if not given or not given.keys() <= set(names):
        got = ", ".join(given) or "none"
        raise ValueError(f"{word}: expected some of the state's {', '.join(names)}, got {got}")
    fields = {name: plain(values) for name, values in given.items()}
    nothing = np.zeros_like(next(iter(fields.values())))
    return np.stack([fields.get(name, nothing) for name in names], axis=-3)


def first_field(state: Given) -> Any:
    """A field whose axes and coordinates those of a gradient are."""
    return next(iter(state.values()), None) if isinstance(state, Mapping) else None
