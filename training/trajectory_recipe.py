"""Samples of an evolution problem: trajectories on a fine grid, averaged down to the served one."""

import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, EvolutionProblem, Fields, Grid, coarsen
from training.recipe import Recipe
from training.trajectories import write_trajectories

# frames whose cost is measured, at the start and in the middle: solvers take shorter steps at the start
PROBED_FRAMES = 5


@final
class TrajectoryRecipe(Recipe):
    """All that the content of a file of trajectories depends on.

    Attributes:
        origin: the corner (y, x) with the smallest coordinates [m].
        label_grid: cells of the grid that the initial state is drawn on and the solver works on.
        frames: number of frames after the initial state.
        walls: boundary conditions.
    """

    suffix: ClassVar[str] = ".h5"
    # a trajectory takes seconds and fills megabytes
    samples_per_shard: ClassVar[int] = 1

    origin: tuple[float, float]
    label_grid: tuple[int, int]
    frames: int
    walls: str

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Frames, channels and cells."""
        return self.frames + 1, len(self._problem.outputs), *self.grid

    def make_input(self, index: int) -> Float32[np.ndarray, "channel y x"]:
        """The initial state."""
        return self._averaged(self._initial_state(index))

    def make(self, index: int) -> Float32[np.ndarray, "time channel y x"]:
        """The initial state and the frames after it."""
        trajectory = np.empty(self.sample_shape, np.float32)
        state = self._initial_state(index)
        for frame, fields in enumerate(islice(chain([state], self._solve(state)), self.frames + 1)):
            trajectory[frame] = self._averaged(fields)
        return trajectory

    def write(self, path: Path, samples: Iterable[NDArray[np.float32]]) -> None:
        """Write a file in PDEBench's layout."""
        grid = Grid(self.grid, self.extent, self.origin)
        interval = self._problem.frame_interval
        times = interval * np.arange(self.frames + 1)
        attributes = {**self.attributes(), "walls": self.walls, "frame_interval": interval}
        write_trajectories(path, samples, self.problem, grid, times, attributes)

    def measure_cost(self) -> float:
        """Time of a trajectory [s], from some frames at its start and some in its middle."""
        state = self._initial_state(0)
        # the first call compiles
        next(self._solve(state))
        probed = min(PROBED_FRAMES, self.frames)
        early, state = self._time(state, 0, probed)
        late, _ = self._time(state, self.frames // 2, probed)
        return early + late * (self.frames - probed) / probed

    def _initial_state(self, index: int) -> Fields:
        """The state of frame 0 on the label grid."""
        return self.draw(self._problem, index, self._fine)

    def _averaged(self, fields: Fields) -> Float32[np.ndarray, "channel y x"]:
        """A state as the file holds it."""
        coarse = coarsen(fields, self.grid)
        return np.stack([coarse[spec.name] for spec in self._problem.outputs]).astype(np.float32)

    def _time(self, state: Fields, start: int, count: int) -> tuple[float, Fields]:
        """Seconds for ``count`` frames, and the last of them."""
        began = time.perf_counter()
        for state in islice(self._solve(state, start), count):  # noqa: B020
            self._averaged(state)
        return time.perf_counter() - began, state

    def _solve(self, state: Fields, start: int = 0) -> Iterator[Fields]:
        return self._problem.frames(state, self._fine, self.scheme, self.walls, start)

    @property
    def _problem(self) -> EvolutionProblem:
        return EVOLUTION_PROBLEMS[self.problem]

    @property
    def _fine(self) -> Grid:
        return Grid(self.label_grid, self.extent, self.origin)
