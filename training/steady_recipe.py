"""Samples of a steady problem: a permeability, and the pressure that belongs to it.

Labels are solved in float64 for the float32 permeability that the file holds.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from problems import STEADY_PROBLEMS, Grid, SteadyProblem
from training.dataset import write_dataset
from training.recipe import Recipe

TOLERANCE = 1e-10


@final
class SteadyRecipe(Recipe):
    """All that the content of a file of steady samples depends on.

    Attributes:
        source: the uniform right-hand side.
        tolerance: of the reference solver.
    """

    suffix: ClassVar[str] = ".hdf5"
    samples_per_shard: ClassVar[int] = 100

    source: float
    tolerance: float = TOLERANCE

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Permeability and pressure on the grid."""
        return 2, *self.grid

    def make_input(self, index: int) -> Float32[np.ndarray, "1 y x"]:
        """Permeability."""
        fields = self.draw(self._problem, index, self._grid)
        return fields["permeability"].astype(np.float32)[None]

    def make(self, index: int) -> Float32[np.ndarray, "2 y x"]:
        """Permeability and pressure."""
        permeability = self.make_input(index)[0]
        fields = {"permeability": permeability.astype(np.float64), "source": np.array(self.source)}
        solution = self._problem.solve(fields, self._grid, self.scheme, self.tolerance)
        return np.stack([permeability, solution.fields["pressure"].astype(np.float32)])

    def write(self, path: Path, samples: Iterable[NDArray[np.float32]]) -> None:
        """Write PDEBench's file of Darcy flow."""
        pairs = ((sample[:1], sample[1:]) for sample in samples)
        centres = self._grid.coordinates()
        write_dataset(path, self.count, pairs, centres, {"beta": self.source, **self.attributes()})

    def measure_cost(self) -> float:
        """Time of one sample [s]."""
        # the first call compiles
        self.make(0)
        start = time.perf_counter()
        self.make(0)
        return time.perf_counter() - start

    @property
    def _problem(self) -> SteadyProblem:
        return STEADY_PROBLEMS[self.problem]

    @property
    def _grid(self) -> Grid:
        return Grid(self.grid, self.extent)
