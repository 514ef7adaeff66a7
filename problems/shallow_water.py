"""Shallow water: depth h [m] and momenta hu, hv [m^2/s] (per unit of density and area) over a flat bed.

    h_t  + (hu)_x + (hv)_y = 0
    hu_t + (hu^2 + g h^2 / 2)_x + (huv)_y = 0
    hv_t + (huv)_x + (hv^2 + g h^2 / 2)_y = 0,      g = 1 m/s^2

Walls: ``outflow`` (zero-order extrapolation), ``reflecting`` (no flow through, free slip along),
``periodic``. Schemes (``shallow_water_march``): ``hllc-muscl-v1``, of order 2, and ``roe-mc-split-v1``, which
reproduces the solver of PDEBench's radial dam break (Takamoto et al. 2022; PyClaw, Ketcheson et al. 2012).
Frames are states at multiples of ``frame_interval``; between two of them a scheme takes as many equal steps
as its Courant number demands, one on PDEBench's grid.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import final

import numpy as np
from jaxtyping import Float, Float64

from problems.evolution import EvolutionProblem
from problems.fields import Fields, FieldSpec, InvalidField, validate_fields
from problems.grid import Grid
from problems.shallow_water_families import FAMILIES, REST_DEPTH
from problems.shallow_water_integrals import integrate
from problems.shallow_water_march import (
    FRAME_INTERVAL,
    SCHEMES,
    WALLS,
    Scheme,
    advance,
    expected_steps,
    require_sides,
)
from problems.shallow_water_sweeps import GHOSTS, GRAVITY, scratch

DEPTH = FieldSpec("h", "h", "m", "depth of the water", exclusive_minimum=0.0)
MOMENTUM_X = FieldSpec("hu", "hu", "m^2/s", "depth times the velocity along x")
MOMENTUM_Y = FieldSpec("hv", "hv", "m^2/s", "depth times the velocity along y")

_INSIDE = (slice(None), slice(GHOSTS, -GHOSTS), slice(GHOSTS, -GHOSTS))


@final
class ShallowWater(EvolutionProblem):
    """Waves and bores on shallow water.

    Attributes:
        rest_depth: depth [m] of the water around a disturbance, from which errors are measured.
    """

    name = "shallow_water"
    title = "Shallow water"
    equation = "h_t + div(h u) = 0, (h u)_t + div(h u u) + grad(g h^2 / 2) = 0, g = 1 m/s^2"
    boundary_conditions = "outflow, reflecting or periodic walls"
    inputs = (DEPTH, MOMENTUM_X, MOMENTUM_Y)
    parameters = ()
    outputs = (DEPTH, MOMENTUM_X, MOMENTUM_Y)
    schemes = tuple(SCHEMES)
    walls = WALLS
    families = FAMILIES
    grid = Grid((128, 128), (5.0, 5.0), (-2.5, -2.5))
    frame_interval = FRAME_INTERVAL
    frame_count = 100
    rest_depth = REST_DEPTH
    rest = MappingProxyType({"h": REST_DEPTH, "hu": 0.0, "hv": 0.0})
    invariant_names = ("mass", "momentum_x", "momentum_y", "energy", "depth_min", "depth_max")
    vectors = (("hu", "hv"),)
    growth = None

    def sample(
        self, family: str, parameters: Mapping[str, float], seed: int, index: int, grid: Grid
    ) -> Fields:
        """Initial state number ``index`` of a family."""
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family}, expected one of {', '.join(FAMILIES)}")
        return FAMILIES[family].sample(parameters, seed, index, grid)

    def frames(
        self,
        state: Fields,
        grid: Grid,
        scheme: str | None = None,
        walls: str | None = None,
        start: int = 0,
    ) -> Iterator[Fields]:
        """States at the frames ``start + 1``, ``start + 2``, ..., without end.

        The depth stays positive, whatever the state.

        Raises:
            InvalidField: a field breaks one of its rules.
            CannotSolve: waves become too fast, or the Roe scheme breaks down next to nearly dry ground.
        """
        scheme, walls = scheme or self.schemes[0], walls or self.walls[0]
        _require_known("walls", walls, self.walls)
        # the generator starts at the first frame, a bad state is refused now
        padded = self._padded(state, grid, scheme, start)
        return self._march(padded, grid, SCHEMES[scheme], self.walls.index(walls), start)

    def _march(
        self, padded: Float64[np.ndarray, "3 y x"], grid: Grid, scheme: Scheme, walls: int, start: int
    ) -> Iterator[Fields]:
        work = scratch()
        for frame in itertools.count(start):
            advance(padded, work, grid.spacing, scheme, walls, frame)
            yield self._name(padded[_INSIDE].copy())

    def cell_steps(self, state: Fields, grid: Grid, scheme: str | None = None, start: int = 0) -> int:
        """Cells times steps that the next frame takes if waves stay as fast as they are.

        Raises:
            InvalidField: a field breaks one of its rules.
            CannotSolve: waves are too fast.
        """
        scheme = scheme or self.schemes[0]
        padded = self._padded(state, grid, scheme, start)
        steps = expected_steps(padded, scratch(), grid.spacing, SCHEMES[scheme])
        return steps * grid.shape[0] * grid.shape[1]

    def _padded(self, state: Fields, grid: Grid, scheme: str, start: int) -> Float64[np.ndarray, "3 y x"]:
        """The state with room for ghost cells, once the request is known to be sound."""
        _require_known("scheme", scheme, self.schemes)
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}")
        require_sides(grid)
        # the corners are read but not used: they hold water, so that nothing divides by 0
        padded = np.ones((3, grid.shape[0] + 2 * GHOSTS, grid.shape[1] + 2 * GHOSTS))
        padded[_INSIDE] = self._stack(state, grid)
        return padded

    def invariants(self, state: Fields, grid: Grid) -> Mapping[str, float]:
        """Mass [m^3], momentum [m^4/s] and energy [m^5/s^2] per unit of density, range of the depth [m]."""
        h, hu, hv = self._stack(state, grid)
        energy = 0.5 * (hu**2 + hv**2) / h + 0.5 * GRAVITY * h**2
        return {
            "mass": float(h.sum()) * grid.cell_area,
            "momentum_x": float(hu.sum()) * grid.cell_area,
            "momentum_y": float(hv.sum()) * grid.cell_area,
            "energy": float(energy.sum()) * grid.cell_area,
            "depth_min": float(h.min()),
            "depth_max": float(h.max()),
        }

    def frame_invariants(
        self, frames: Mapping[str, Float[np.ndarray, "frame y x"]], grid: Grid
    ) -> Float64[np.ndarray, "frame invariant"]:
        """See ``invariants``; those of a state that breaks a rule are not all finite."""
        h, hu, hv = (np.ascontiguousarray(frames[spec.name]) for spec in self.inputs)
        found = np.empty((len(h), len(self.invariant_names)))
        integrate(h, hu, hv, GRAVITY, found)
        found[:, :4] *= grid.cell_area
        found[:, 4] = h.min(axis=(1, 2))
        found[:, 5] = h.max(axis=(1, 2))
        # an integral of numbers that are not finite is not finite either
        found[found[:, 4] <= 0] = np.nan
        return found

    def features(self, state: Fields, grid: Grid) -> Mapping[str, float]:
        """Range of the depth [m], largest Froude number, roughness and wavenumber [1/m] of the surface.

        The roughness is the mean difference of neighboring depths over their range. The wavenumber is the
        root mean square slope over the root mean square departure from the mean depth: k for a sine wave
        sin(k x), and as large for a narrow heap, however little of the surface that covers. Both are 0 for
        a level surface.
        """
        h, hu, hv = self._stack(state, grid)
        spread = float(np.ptp(h))
        # in units of the range, so that no square leaves float64
        scaled = (h - h.mean()) / (spread or 1.0)
        rises = [np.abs(np.diff(scaled, axis=axis)) for axis in (0, 1)]
        steps = np.concatenate([rise.ravel() for rise in rises])
        slopes = sum(
            float(np.sum(rise**2)) / width**2 for rise, width in zip(rises, grid.spacing, strict=True)
        )
        return {
            "depth_min": float(h.min()),
            "depth_max": float(h.max()),
            "froude_max": float(np.sqrt(np.max((hu**2 + hv**2) / (GRAVITY * h**3)))),
            "roughness": float(steps.sum()) / max(steps.size, 1),
            "wavenumber": math.sqrt(slopes / float(np.sum(scaled**2))) if spread > 0 else 0.0,
        }

    def _stack(self, state: Fields, grid: Grid) -> Float64[np.ndarray, "3 y x"]:
        validate_fields(self.inputs, state)
        for spec in self.inputs:
            if state[spec.name].shape != grid.shape:
                message = f"{spec.name} must have the grid's shape {grid.shape}, got {state[spec.name].shape}"
                raise InvalidField(spec.name, "shape", None, message)
        return np.stack([np.asarray(state[spec.name], np.float64) for spec in self.inputs])

    def _name(self, values: Float64[np.ndarray, "3 y x"]) -> dict[str, Float64[np.ndarray, "y x"]]:
        return {spec.name: field for spec, field in zip(self.outputs, values, strict=True)}


def _require_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name}, expected one of {', '.join(known)}")
