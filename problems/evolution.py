"""The contract of an evolution problem: a state, and a reference solver that yields it frame by frame."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float, Float64

from problems.fields import Fields
from problems.grid import Grid
from problems.problem import Problem


class EvolutionProblem(Problem):
    """An initial value problem with its reference solver.

    The state is named by ``inputs``; ``outputs`` are the same fields, one frame later or many.

    Attributes:
        grid: the grid of PDEBench's data.
        frame_interval: time between two frames [s].
        frame_count: frames after the initial state in PDEBench's data.
        walls: names of the boundary conditions, the default one first.
        rest: by field, what errors are measured against: the departure from it. Still water for one problem,
            zero, which is not its steady state, for another.
        invariant_names: what the invariants are called, in their order.
        vectors: pairs of fields that are the components (along x, along y) of a vector.
        growth: one-sided Lipschitz constant of the discrete equations in L2 [1/s]: two solutions part no
            faster than ``e^(growth t)``; None: no such constant is known.
    """

    grid: Grid
    frame_interval: float
    frame_count: int
    walls: tuple[str, ...]
    rest: Mapping[str, float]
    invariant_names: tuple[str, ...]
    vectors: tuple[tuple[str, str], ...]
    growth: float | None

    @abstractmethod
    def frames(
        self,
        state: Fields,
        grid: Grid,
        scheme: str | None = None,
        walls: str | None = None,
        start: int = 0,
    ) -> Iterator[Fields]:
        """States at the frames ``start + 1``, ``start + 2``, ..., without end.

        Args:
            state: cell averages [y x] at frame ``start``.
            grid: of the state.
            scheme: one of ``schemes``.
            walls: one of ``walls``.
            start: number of the frame that ``state`` belongs to.

        Raises:
            InvalidField: a field breaks one of its rules.
            CannotSolve: the scheme has no frame that can be trusted.
        """

    @abstractmethod
    def cell_steps(self, state: Fields, grid: Grid, scheme: str | None = None, start: int = 0) -> int:
        """Cells times steps that the next frame takes: what a server bounds before it begins.

        Cheap, since nothing is solved: as many steps as ``state`` asks for behind those walls that ask for
        the most. A scheme that looks again on the way may take some more, or fewer.

        Args:
            state: cell averages [y x] at frame ``start``.
            grid: of the state.
            scheme: one of ``schemes``.
            start: number of the frame that ``state`` belongs to.

        Raises:
            InvalidField: a field breaks one of its rules.
            CannotSolve: the scheme would need more steps than it may take.
        """

    @abstractmethod
    def invariants(self, state: Fields, grid: Grid) -> Mapping[str, float]:
        """Integrals and extremes that tell a wrong state, such as the mass and the least depth.

        Raises:
            InvalidField: a field breaks one of its rules.
        """

    @abstractmethod
    def frame_invariants(
        self, frames: Mapping[str, Float[np.ndarray, "frame y x"]], grid: Grid
    ) -> Float64[np.ndarray, "frame invariant"]:
        """The invariants of many states at once, much faster; computed in float64 from whatever they are.

        Those of a state that breaks a rule are not all finite.
        """

    @abstractmethod
    def features(self, state: Fields, grid: Grid) -> Mapping[str, float]:
        """Numbers by which a state is compared with the states that a model has learnt from."""
