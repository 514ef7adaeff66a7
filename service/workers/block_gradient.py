"""The way back through one block of a rollout: from a cotangent of one of its frames to the state before it.

Whoever differentiates a rollout keeps the states between its blocks and nothing of what was computed inside
of them; each block is computed again here, with what its derivative needs. So memory is that of the states
and of one block, whatever the number of steps, for a forward pass more (checkpointing: Griewank and Walther
2000, ACM TOMS 26).
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators import AnySurrogate

__all__ = ["pull_back"]


def pull_back(
    surrogate: AnySurrogate, states: Tensor, cotangents: Tensor, extent: tuple[float, float], frame: int
) -> Tensor:
    """The gradients of the sums of the ``frame``-th frame after each state times its cotangent.

    Args:
        surrogate: of an evolution problem, that starts from one state.
        states: [batch channel y x].
        cotangents: [batch channel y x].
        extent: side lengths (Ly, Lx) [m].
        frame: of the block, counted from 1.

    Returns:
        gradients [batch channel y x].
    """
    # one by one: what a block keeps for its way back is hundreds of times its state
    rows = zip(torch.split(states, 1), torch.split(cotangents, 1), strict=True)
    return torch.cat([_row(surrogate, state, cotangent, extent, frame) for state, cotangent in rows])


def _row(
    surrogate: AnySurrogate, state: Tensor, cotangent: Tensor, extent: tuple[float, float], frame: int
) -> Tensor:
    given = state.detach().requires_grad_()
    with torch.enable_grad():
        (after,) = surrogate(given[:, None], extent, [frame - 1]).unbind(1)
        (gradient,) = torch.autograd.grad(after, given, cotangent, materialize_grads=True)
    return gradient
