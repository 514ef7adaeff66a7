"""Diffusion-reaction trajectories by SciPy's integrators.

PDEBench's: Runge-Kutta 5(4) with SciPy's default relative tolerance of 1e-3, an absolute one of 1e-6 and
dense output at the frames.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.integrate import solve_ivp

from problems import Fields
from problems.diffusion_reaction import DiffusionReaction

_DU, _DV, _K = 1e-3, 5e-3, 5e-3


def runge_kutta_45(state: Fields) -> list[Fields]:
    """The frames as PDEBench makes them."""
    return _integrate(state, "RK45", 1e-3, 1e-6)


def reference(state: Fields) -> list[Fields]:
    """The frames to a relative tolerance of 1e-9."""
    return _integrate(state, "DOP853", 1e-9, 1e-11)


def _integrate(
    state: Fields, method: Literal["RK45", "DOP853"], relative: float, absolute: float
) -> list[Fields]:
    problem = DiffusionReaction()
    shape, times = problem.grid.shape, problem.frame_interval * np.arange(1, problem.frame_count + 1)
    found = solve_ivp(
        rates,
        (0.0, float(times[-1])),
        np.stack([state["u"], state["v"]]).ravel(),
        method=method,
        t_eval=times,
        rtol=relative,
        atol=absolute,
    )
    return [{"u": u, "v": v} for u, v in found.y.T.reshape(-1, 2, *shape)]


def rates(_time: float, values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    grid = DiffusionReaction.grid
    state = values.reshape(2, *grid.shape)
    weight = 1.0 / grid.spacing[0] ** 2
    rates = np.empty_like(state)
    for channel, diffusivity in enumerate((_DU, _DV)):
        _spread(state[channel], diffusivity * weight, rates[channel])
    u, v = state
    rates[0] += u - u**3 - _K - v
    rates[1] += u - v
    return rates.ravel()


def _spread(field: Float64[np.ndarray, "y x"], weight: float, out: Float64[np.ndarray, "y x"]) -> None:
    """Five-point finite volumes without flux through the walls."""
    out[:] = 0.0
    across_y, across_x = weight * np.diff(field, axis=0), weight * np.diff(field, axis=1)
    out[:-1] += across_y
    out[1:] -= across_y
    out[:, :-1] += across_x
    out[:, 1:] -= across_x
