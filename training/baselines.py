"""What a surrogate must beat: a look-up of the training data, classical solvers, and doing nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from problems import EVOLUTION_PROBLEMS, EvolutionProblem, Fields, Grid, coarsen
from training.dataset import InvalidDataset
from training.forecast import Continuation, Forecast, Given, Stopwatch
from training.trajectories import Trajectories
from training.trajectory_evaluation import (
    Advance,
    TrajectoryEvaluation,
    Window,
    evaluate_forecast,
    say_nothing,
)
from training.trajectory_recipe import TrajectoryRecipe

# cells of the finer one of the two solvers, in those of the served grid
_REFINEMENT = 2


@final
class Persistence(Forecast):
    """The last given frame, for ever."""

    name = "persistence"
    channels = None

    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:  # noqa: ARG002
        """Costs nothing."""
        return Continuation(np.repeat(given[:, -1:], frames, axis=1), 0.0, 0.0)


@final
class LookUp(Forecast):
    """The training trajectory whose state at the last given frame is the closest in L2.

    It keeps these states in memory.
    """

    name = "look-up"
    channels = None

    def __init__(self, training: Trajectories, window: Window) -> None:
        if len(training.times) < window.predicted.stop:
            raise InvalidDataset(
                f"{training.path} has {len(training.times)} frames, the look-up needs {window.predicted.stop}"
            )
        self._training, self._window = training, window
        last = slice(window.first_frame, window.first_frame + 1)
        states = training.load(last).reshape(len(training), -1)
        # distances between deviations lose fewer digits
        self._mean = states.mean(axis=0)
        self._states = np.subtract(states, self._mean, out=states)
        self._squares = np.square(self._states).sum(axis=1)

    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:  # noqa: ARG002
        """The frames that followed the closest state."""
        expected = (len(self._training.names), *self._training.grid)
        if given.shape[2:] != expected:
            raise InvalidDataset(
                f"{self._training.path}: expected channels and cells as in the data to predict, "
                f"{given.shape[2:]}, got {expected}"
            )
        with Stopwatch() as watch:
            closest = self._closest(given[:, -1].reshape(len(given), -1))
            predicted = np.stack([self._training.read(index, self._window.predicted) for index in closest])
        return Continuation(predicted[:, :frames], watch.cpu_seconds, watch.seconds)

    def _closest(self, states: NDArray[np.float32]) -> list[int]:
        """Number of the closest training state of each of ``states`` [sample value]."""
        # |a - b|^2 without |a|^2, which is the same for all b
        distances = self._squares - 2.0 * (states - self._mean) @ self._states.T
        return [int(index) for index in distances.argmin(axis=1)]


@final
class CoarseSolver(Forecast):
    """The reference solver on the served grid, from the last given frame."""

    def __init__(self, problem: EvolutionProblem, grid: Grid, scheme: str, walls: str, start: int) -> None:
        self.name = f"solver, {grid.shape[0]} x {grid.shape[1]}"
        self.channels = len(problem.inputs)
        self._problem, self._grid, self._scheme, self._walls = problem, grid, scheme, walls
        self._start = start
        self._warm = False

    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:  # noqa: ARG002
        """One trajectory after the other."""
        states = [self._fields(state) for state in given[:, -1]]
        if not self._warm:
            # the first call compiles
            next(self._frames(states[0]))
            self._warm = True
        with Stopwatch() as watch:
            predicted = [_stack(islice(self._frames(state), frames), self._problem) for state in states]
        return Continuation(np.stack(predicted), watch.cpu_seconds, watch.seconds)

    def _fields(self, state: NDArray[np.float32]) -> Fields:
        return {
            spec.name: field.astype(np.float64)
            for spec, field in zip(self._problem.inputs, state, strict=True)
        }

    def _frames(self, state: Fields) -> Iterator[Fields]:
        return self._problem.frames(state, self._grid, self._scheme, self._walls, self._start)


@final
class FineSolver(Forecast):
    """The reference solver on a grid between the served one and that of the labels, from frame 0.

    It starts from the initial state that the labels were made from, which the file does not have: it is drawn
    again by the recipe of the file.
    """

    channels = None

    def __init__(self, recipe: TrajectoryRecipe, shape: tuple[int, int], window: Window) -> None:
        self.name = f"solver, {shape[0]} x {shape[1]}"
        self._recipe, self._window = recipe, window
        self._problem = EVOLUTION_PROBLEMS[recipe.problem]
        self._grid = Grid(shape, recipe.extent, recipe.origin)
        self._warm = False

    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:  # noqa: ARG002
        """Counts the frames before the window as part of the cost, the drawing of the states not."""
        states = [coarsen(self._initial_state(index), self._grid.shape) for index in indices]
        if not self._warm:
            next(self._frames(states[0]))
            self._warm = True
        first = self._window.first_frame
        with Stopwatch() as watch:
            predicted = [
                _stack(
                    (
                        coarsen(state, self._recipe.grid)
                        for state in islice(self._frames(start), first, first + frames)
                    ),
                    self._problem,
                )
                for start in states
            ]
        return Continuation(np.stack(predicted), watch.cpu_seconds, watch.seconds)

    def _initial_state(self, index: int) -> Fields:
        recipe = self._recipe
        return recipe.draw(self._problem, index, Grid(recipe.label_grid, recipe.extent, recipe.origin))

    def _frames(self, state: Fields) -> Iterator[Fields]:
        return self._problem.frames(state, self._grid, self._recipe.scheme, self._recipe.walls)


def baselines(data: Trajectories, window: Window, training: Trajectories | None) -> list[Forecast]:
    """The baselines that a file allows: the finer solver needs its recipe, the look-up training data."""
    problem = EVOLUTION_PROBLEMS[data.problem]
    found: list[Forecast] = []
    # without all fields a state cannot be continued by the equations, except from rest
    if len(data.names) == len(problem.outputs) or window.first_frame == 0:
        scheme = str(data.attributes.get("scheme", problem.schemes[0]))
        walls = str(data.attributes.get("walls", problem.walls[0]))
        grid = Grid(data.grid, data.extent, data.origin)
        found.append(CoarseSolver(problem, grid, scheme, walls, window.first_frame))
    finer = (_REFINEMENT * data.grid[0], _REFINEMENT * data.grid[1])
    recipe = _recipe(data)
    if recipe is not None and _is_between(finer, recipe):
        found.append(FineSolver(recipe, finer, window))
    if training is not None:
        found.append(LookUp(training, window))
    return [*found, Persistence()]


def evaluate_baselines(
    forecasts: Iterable[Forecast], data: Trajectories, window: Window, advance: Advance = say_nothing
) -> list[TrajectoryEvaluation]:
    """Every baseline on every trajectory, one at a time, as a user would have them."""
    return [evaluate_forecast(forecast, data, window, 1, advance=advance) for forecast in forecasts]


def _recipe(data: Trajectories) -> TrajectoryRecipe | None:
    if "recipe" not in data.attributes:
        return None
    try:
        return TrajectoryRecipe.model_validate_json(str(data.attributes["recipe"]))
    except ValidationError:
        # of another program version
        return None


def _is_between(shape: tuple[int, int], recipe: TrajectoryRecipe) -> bool:
    """Whether the labels' grid is finer still, by a whole number."""
    return all(
        fine > cells and fine % cells == 0 for fine, cells in zip(recipe.label_grid, shape, strict=True)
    )


def _stack(
    states: Iterator[Mapping[str, NDArray[np.float64]]], problem: EvolutionProblem
) -> NDArray[np.float32]:
    """States as [frame channel y x]."""
    names = [spec.name for spec in problem.outputs]
    return np.stack([np.stack([state[name] for name in names]) for state in states]).astype(np.float32)
