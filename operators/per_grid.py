"""Constants that depend on a grid alone, built once per grid."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, TypeVarTuple

import torch

Arguments = TypeVarTuple("Arguments")
Constants = TypeVar("Constants")

# a server sees a handful of grids
GRIDS = 64


def per_grid(build: Callable[[*Arguments], Constants]) -> Callable[[*Arguments], Constants]:
    """Remember what ``build`` returns for its (hashable) arguments."""

    @lru_cache(GRIDS)
    def remembered(*args: *Arguments) -> Constants:
        # a tensor made in inference mode could not take part in training later
        with torch.inference_mode(False), torch.no_grad():
            return build(*args)

    @wraps(build)
    def constants(*args: *Arguments) -> Constants:
        # a tracer's tensors must not be remembered, nor ours become constants of its graph
        if torch.compiler.is_compiling():
            return build(*args)
        return remembered(*args)

    return constants
