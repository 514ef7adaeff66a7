"""Forward-mode differentiation: what a change of its input changes in what a function of tensors gives.

Each number carries its tangent beside it (dual numbers: Griewank and Walther 2008, chapter 3), and torch
knows the rule of each of its operations. Kernels of our own have none, and would drop the tangent without a
word: whoever calls one asks ``has_tangent`` first, and takes torch's operations where it says yes.
"""

import functools
import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

# torch does not annotate these functions
_dual = cast(Any, forward_ad)
# torch has one level of dual numbers for all threads of a process
_level = Lock()


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether some of them carry a tangent."""
    # neither in a program that is traced, nor in inference mode, where most of our calls are, can one
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False
    return any(t is not None and _dual.unpack_dual(t).tangent is not None for t in tensors)


def push_forward(
    function: Callable[[Tensor], Tensor],
    given: Float[Tensor, "*given"],
    tangent: Float[Tensor, "*given"],
) -> tuple[Tensor, Tensor]:
    """``function(given)``, and its derivative in the direction ``tangent``.

    Raises:
        RuntimeError: what the function gives has no tangent: something in it has dropped it.
    """
    with torch.inference_mode(False), torch.no_grad(), _level:
        _load_rules()
        with forward_ad.dual_level():
            found = _dual.unpack_dual(function(_dual.make_dual(given, tangent)))
            if found.tangent is None:
                raise RuntimeError("the tangent was lost on the way through the function")
            return found.primal, found.tangent


@functools.cache
def _load_rules() -> None:
    """Import what torch imports before the first dual number, which warns of its own compiler."""
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        from torch._decomp import decompositions_for_jvp  # noqa: F401
