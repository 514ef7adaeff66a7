"""What trajectories conserve or balance, whatever solver made them: a test of frames, channels and walls.

shallow water        the mass, sum of h, while nothing passes the walls
diffusion-reaction   d<v>/dt = <u> - <v>: linear, so that it holds for averages over any cells, and the
                     diffusion drops out between walls without flux
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

_Frames = Float32[np.ndarray, "time channel y x"]
_Times = Float64[np.ndarray, " time"]

# two units in the last place of a float32 near 1: water that still rests
_AT_REST = 2.5e-7
# frames after a rough initial state that a balance over frames does not resolve
_ROUGH_FRAMES = 10


@dataclass(frozen=True)
class Balance:
    """A defect that is 0 but for rounding, and its limit.

    Attributes:
        name: what is balanced.
        defect: of frames, times and the name of the walls; None where the frames allow no judgement.
        limit: largest acceptable defect.
    """

    name: str
    defect: Callable[[_Frames, _Times, str], float | None]
    limit: float


def mass_drift(frames: _Frames, _times: _Times, walls: str) -> float | None:
    """Largest relative change of the mass; through open walls, before the first wave reaches them."""
    count = len(frames) if walls in ("reflecting", "periodic") else _undisturbed(frames)
    if count < 2:
        return None
    mass = frames[:count, 0].sum(axis=(-2, -1), dtype=np.float64)
    return float(np.abs(mass / mass[0] - 1).max())


def inhibitor_defect(frames: _Frames, times: _Times, _walls: str) -> float | None:
    """Largest |d<v>/dt - (<u> - <v>)| over two frames, by Simpson's rule, once the state is smooth [1/s]."""
    u, v = frames[_ROUGH_FRAMES:].mean(axis=(-2, -1), dtype=np.float64).T
    interval = times[1] - times[0]
    if len(u) < 3 or not np.allclose(np.diff(times), interval, rtol=1e-3):
        return None
    rate = u - v
    change = (v[2:] - v[:-2]) / (2 * interval)
    return float(np.abs(change - (rate[:-2] + 4 * rate[1:-1] + rate[2:]) / 6).max())


BALANCES: Mapping[str, Balance] = {
    "shallow_water": Balance("mass", mass_drift, 1e-6),
    "diffusion_reaction": Balance("mean of v", inhibitor_defect, 1e-4),
}


def _undisturbed(frames: _Frames) -> int:
    """Number of first frames in which the water along the walls rests."""
    ring = np.concatenate([frames[..., 0, :], frames[..., -1, :], frames[..., 0], frames[..., -1]], axis=-1)
    still = ring[:1].copy()
    # depth as at the start, no momentum
    still[:, 1:] = 0.0
    quiet = _largest(np.abs(ring - still)) <= _AT_REST
    return int(np.argmin(quiet)) if not quiet.all() else len(frames)


def _largest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(values.max(axis=tuple(range(1, values.ndim))))
