"""The schemes of ``diffusion_reaction`` for batches of states on any device of torch.

The same finite volumes and the same steps as the compiled kernels, in the precision of the state. Every
sample takes the steps that it would take alone, so it does not depend on the others of its batch. Exact
diffusion is here a product with two matrices, one along each direction: on a GPU these cost nothing.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float

from problems import diffusion_reaction_rk4, diffusion_reaction_strang
from problems.diffusion_reaction import SCHEMES
from problems.diffusion_reaction_equation import CONSTANT, DIFFUSIVITY_U, DIFFUSIVITY_V, FRAME_INTERVAL
from problems.grid import Grid

State = Float[torch.Tensor, "batch channel y x"]


def frames(state: State, grid: Grid, scheme: str, start: int = 0) -> Iterator[State]:
    """States (u, v) at the frames ``start + 1``, ``start + 2``, ..., without end.

    Raises:
        ValueError: the scheme or the shape is not what it should be.
    """
    if scheme not in _ADVANCE:
        raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(_ADVANCE)}")
    if state.ndim != 4 or state.shape[1:] != (2, *grid.shape):
        raise ValueError(
            f"a batch of states has the shape [batch, 2, {grid.shape[0]}, {grid.shape[1]}] of u and v on "
            f"the grid, got {list(state.shape)}"
        )
    return _march(state, grid, scheme, start)


def _march(state: State, grid: Grid, scheme: str, start: int) -> Iterator[State]:
    for frame in itertools.count(start):
        state = _advance(state, grid, scheme, frame)
        yield state


def _advance(state: State, grid: Grid, scheme: str, frame: int) -> State:
    """From frame number ``frame`` to the next, samples of as many steps together."""
    largest = state.abs().amax(dim=(2, 3)).tolist()
    counts = [SCHEMES[scheme].steps(frame, grid, *maxima) for maxima in largest]
    after = torch.empty_like(state)
    for count in set(counts):
        samples = [sample for sample, own in enumerate(counts) if own == count]
        after[samples] = _ADVANCE[scheme](state[samples], grid, count)
    return after


def _advance_by_runge_kutta(state: State, grid: Grid, count: int) -> State:
    diffusivity = state.new_tensor([DIFFUSIVITY_U, DIFFUSIVITY_V])[:, None, None]

    def rates(at: State) -> State:
        return diffusivity * _laplacian(at, grid) + _reaction(at)

    for _ in range(count):
        state = _runge_kutta(rates, state, FRAME_INTERVAL / count)
    return state


def _runge_kutta(rates: Callable[[State], State], state: State, step: float) -> State:
    first = rates(state)
    second = rates(state + step / 2 * first)
    third = rates(state + step / 2 * second)
    fourth = rates(state + step * third)
    return state + step / 6 * (first + 2 * (second + third) + fourth)


def _laplacian(state: State, grid: Grid) -> State:
    """Five-point finite volumes; a cell beyond a wall equals the one before it."""
    hy, hx = grid.spacing
    padded = torch.nn.functional.pad(state, (1, 1, 1, 1), mode="replicate")
    across_y = padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1] - 2 * state
    across_x = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2] - 2 * state
    return across_y / hy**2 + across_x / hx**2


def _reaction(state: State) -> State:
    u, v = state.unbind(dim=1)
    return torch.stack([u - u**3 - CONSTANT - v, u - v], dim=1)


def _advance_by_splitting(state: State, grid: Grid, count: int) -> State:
    step = FRAME_INTERVAL / count
    along_y, along_x = _diffusions(grid, step, state.dtype, state.device)
    state = _runge_kutta(_reaction, state, step / 2)
    for done in range(count):
        state = along_y @ state @ along_x
        state = _runge_kutta(_reaction, state, step / 2 if done == count - 1 else step)
    return state


@lru_cache(maxsize=64)
def _diffusions(
    grid: Grid, step: float, dtype: torch.dtype, device: torch.device
) -> tuple[Float[torch.Tensor, "2 y y"], Float[torch.Tensor, "2 x x"]]:
    """Symmetric matrices that carry the cell averages of u and v over a step, along y and x."""
    along_y, along_x = (
        torch.stack([_diffusion(cells, d * step / h**2) for d in (DIFFUSIVITY_U, DIFFUSIVITY_V)])
        for cells, h in zip(grid.shape, grid.spacing, strict=True)
    )
    return along_y.to(device, dtype), along_x.to(device, dtype)


def _diffusion(cells: int, a: float) -> Float[torch.Tensor, "cells cells"]:
    """exp(a L) for the differences L of neighbors on a line without flux through its ends."""
    wave = np.arange(cells)
    modes = np.cos(np.pi / cells * np.outer(wave, wave + 0.5)) * math.sqrt(2 / cells)
    modes[0] /= math.sqrt(2)
    decay = np.exp(-4 * a * np.sin(np.pi * wave / (2 * cells)) ** 2)
    return torch.from_numpy(modes.T @ (decay[:, None] * modes))


# id -> the states one frame later, of states, grid and number of steps
_ADVANCE: Mapping[str, Callable[[State, Grid, int], State]] = MappingProxyType(
    {
        diffusion_reaction_rk4.SCHEME: _advance_by_runge_kutta,
        diffusion_reaction_strang.SCHEME: _advance_by_splitting,
    }
)
