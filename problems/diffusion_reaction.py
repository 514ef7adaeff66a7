"""Diffusion-reaction: an activator u and an inhibitor v that spread and react, FitzHugh-Nagumo's equations.

    u_t = Du lap u + u - u^3 - k - v
    v_t = Dv lap v + u - v          with no flux through the walls

u and v are dimensionless; Du = 1e-3 m^2/s, Dv = 5e-3 m^2/s, k = 5e-3 /s are those of PDEBench (Takamoto et
al. 2022; FitzHugh 1961; Nagumo et al. 1962). Short waves decay within some frames, then fronts of a width of
sqrt(Du) s^(1/2) = 0.03 m form a labyrinth.

Discretised by five-point finite volumes, solved by Runge-Kutta steps (``diffusion_reaction_rk4``) or, some
times faster and less exact, by splitting (``diffusion_reaction_strang``).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import numpy as np
from jaxtyping import Float, Float64

from problems import diffusion_reaction_rk4, diffusion_reaction_strang
from problems.diffusion_reaction_equation import FRAME_INTERVAL
from problems.diffusion_reaction_families import FAMILIES, PDEBENCH_SIDE
from problems.evolution import EvolutionProblem
from problems.fields import Fields, FieldSpec, InvalidField, validate_fields
from problems.grid import Grid

_Field = Float64[np.ndarray, "y x"]

# far above any state that the equations lead to; the solver's steps shorten with the square
_LARGEST = 100.0

ACTIVATOR = FieldSpec("u", "u", "1", "activator", minimum=-_LARGEST, maximum=_LARGEST)
INHIBITOR = FieldSpec("v", "v", "1", "inhibitor", minimum=-_LARGEST, maximum=_LARGEST)


@dataclass(frozen=True)
class Scheme:
    """A scheme of finite volumes.

    Attributes:
        steps: their number to the next frame, of the number of the frame, grid, max |u| and max |v|.
        advance: the state one frame later, of u, v, grid and the number of the frame.
    """

    steps: Callable[[int, Grid, float, float], int]
    advance: Callable[[_Field, _Field, Grid, int], tuple[_Field, _Field]]


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        module.SCHEME: Scheme(module.steps, module.advance)
        for module in (diffusion_reaction_rk4, diffusion_reaction_strang)
    }
)


@final
class DiffusionReaction(EvolutionProblem):
    """An activator and an inhibitor between walls that nothing passes."""

    name = "diffusion_reaction"
    title = "Diffusion-reaction"
    equation = "u_t = Du lap u + u - u^3 - k - v, v_t = Dv lap v + u - v"
    boundary_conditions = "no flux through the walls"
    inputs = (ACTIVATOR, INHIBITOR)
    parameters = ()
    outputs = (ACTIVATOR, INHIBITOR)
    schemes = tuple(SCHEMES)
    families = FAMILIES
    grid = Grid((PDEBENCH_SIDE, PDEBENCH_SIDE), (2.0, 2.0), (-1.0, -1.0))
    frame_interval = FRAME_INTERVAL
    frame_count = 100
    rest = MappingProxyType({"u": 0.0, "v": 0.0})
    invariant_names = ("mean_u", "mean_v")
    vectors = ()
    # that of u alone, v decays; see ``one_step``
    growth = 1.0
    walls = ("zero_flux",)

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
        """The state every 0.05 s; steps are shorter in the first frames, where it may be rough."""
        u, v = self._validated(state, grid)
        if walls is not None and walls not in self.walls:
            raise ValueError(f"unknown walls {walls}, expected one of {', '.join(self.walls)}")
        return _march(self._scheme(scheme, start).advance, u, v, grid, start)

    def cell_steps(self, state: Fields, grid: Grid, scheme: str | None = None, start: int = 0) -> int:
        """Cells times steps that the next frame takes, exactly."""
        u, v = self._validated(state, grid)
        largest_u, largest_v = float(np.abs(u).max()), float(np.abs(v).max())
        return self._scheme(scheme, start).steps(start, grid, largest_u, largest_v) * u.size

    def _scheme(self, scheme: str | None, start: int) -> Scheme:
        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {scheme}, expected one of {', '.join(SCHEMES)}")
        if start < 0:
            raise ValueError(f"start must be at least 0, the number of a frame, got {start}")
        return SCHEMES[scheme or self.schemes[0]]

    def invariants(self, state: Fields, grid: Grid) -> Mapping[str, float]:
        """Means of u and v; they obey ``<u>' = <u - u^3> - k - <v>`` and ``<v>' = <u> - <v>``."""
        u, v = self._validated(state, grid)
        return {"mean_u": float(u.mean()), "mean_v": float(v.mean())}

    def frame_invariants(
        self,
        frames: Mapping[str, Float[np.ndarray, "frame y x"]],
        grid: Grid,  # noqa: ARG002
    ) -> Float64[np.ndarray, "frame invariant"]:
        """See ``invariants``; those of a state that breaks a rule are not all finite."""
        found = np.empty((len(frames["u"]), len(self.invariant_names)))
        for number, spec in enumerate(self.inputs):
            values = frames[spec.name]
            found[:, number] = values.mean(axis=(1, 2), dtype=np.float64)
            largest = np.maximum(values.max(axis=(1, 2)), -values.min(axis=(1, 2)))
            found[largest > _LARGEST] = np.nan
        return found

    def features(self, state: Fields, grid: Grid) -> Mapping[str, float]:
        """Largest |u| and |v|, and the rms difference of neighboring cells of u over the rms of u."""
        u, v = self._validated(state, grid)
        return {
            "u_max": float(np.abs(u).max()),
            "v_max": float(np.abs(v).max()),
            "roughness_u": _roughness(u),
        }

    def _validated(self, state: Fields, grid: Grid) -> tuple[_Field, _Field]:
        validate_fields(self.inputs, state)
        for name, field in state.items():
            if field.shape != grid.shape:
                message = f"{name} must have the grid's shape {grid.shape}, got {field.shape}"
                raise InvalidField(name, "shape", None, message)
        u, v = (np.ascontiguousarray(state[spec.name], np.float64) for spec in self.inputs)
        return u, v


def _march(
    advance: Callable[[_Field, _Field, Grid, int], tuple[_Field, _Field]],
    u: _Field,
    v: _Field,
    grid: Grid,
    start: int,
) -> Iterator[Fields]:
    frame = start
    while True:
        u, v = advance(u, v, grid, frame)
        frame += 1
        # the caller may change what it is given
        yield {"u": u.copy(), "v": v.copy()}


def _roughness(field: _Field) -> float:
    steps = np.concatenate([np.diff(field, axis=0).ravel(), np.diff(field, axis=1).ravel()])
    size = math.sqrt(float(np.mean(field**2)))
    return math.sqrt(float(np.sum(steps**2)) / max(steps.size, 1)) / size if size else 0.0
