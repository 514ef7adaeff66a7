"""One-step defects, and the bound that all of them make for diffusion-reaction."""

import math
from itertools import islice

import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS, Grid
from problems.fields import Fields
from problems.one_step import (
    exponential_bounds,
    one_step_defect,
    root_mean_square,
    root_mean_square_difference,
    sampled_frames,
)

PROBLEM = EVOLUTION_PROBLEMS["diffusion_reaction"]
GRID = Grid((32, 32), PROBLEM.grid.extent, PROBLEM.grid.origin)
START, FRAMES = 10, 12
# of u_t = u - u^3 near u = 0, where nothing holds it back
GROWTH = 1.0


def rollout(state: Fields, frames: int, start: int = START) -> list[Fields]:
    return list(islice(PROBLEM.frames(state, GRID, start=start), frames))


def initial() -> Fields:
    return PROBLEM.sample("band_limited", {"correlation_length": 0.2}, 5, 0, GRID)


def disturbed(state: Fields, size: float, seed: int) -> Fields:
    random = np.random.default_rng(seed)
    return {name: values + size * random.standard_normal(GRID.shape) for name, values in state.items()}


def test_the_difference_by_hand() -> None:
    one = {"u": np.array([[1.0, 0.0]]), "v": np.array([[0.0, 0.0]])}
    other = {"u": np.array([[0.0, 0.0]]), "v": np.array([[0.0, 1.0]])}
    assert root_mean_square_difference(one, other) == pytest.approx(math.sqrt(2 / 4))
    assert root_mean_square(one) == pytest.approx(math.sqrt(1 / 4))


def test_the_bounds_by_hand() -> None:
    grown = math.exp(2.0 * 0.5)
    assert exponential_bounds([1.0, 3.0], 2.0, 0.5) == pytest.approx([1.0, grown + 3.0])
    assert exponential_bounds([1.0], 2.0, 0.5, start=4.0) == pytest.approx([4.0 * grown + 1.0])
    first, *rest = exponential_bounds([1.0, math.nan, 1.0], 2.0, 0.5)
    assert first == 1.0
    assert all(map(math.isnan, rest))


def test_a_problem_says_how_fast_its_solutions_part() -> None:
    assert PROBLEM.growth == GROWTH
    assert EVOLUTION_PROBLEMS["shallow_water"].growth is None


@pytest.mark.parametrize("name", EVOLUTION_PROBLEMS)
def test_the_solver_itself_has_none(name: str) -> None:
    problem = EVOLUTION_PROBLEMS[name]
    grid = Grid((16, 16), problem.grid.extent, problem.grid.origin)
    state = problem.sample("wide", {}, 3, 0, grid)
    first, second = islice(problem.frames(state, grid), 2)
    assert one_step_defect(problem, first, second, grid, frame=1) == pytest.approx(0.0, abs=1e-12)
    moved = {field: values + 0.25 for field, values in second.items()}
    assert one_step_defect(problem, first, moved, grid, frame=1) == pytest.approx(0.25)


@pytest.mark.parametrize("size", [1e-3, 1e-2])
def test_the_bound_holds_and_says_something(size: float) -> None:
    state = initial()
    truth = rollout(state, FRAMES)
    # a rollout that goes wrong a little at every step
    wrong, states = [], state
    for frame in range(FRAMES):
        (states,) = rollout(states, 1, START + frame)
        states = disturbed(states, size, frame)
        wrong.append(states)
    defects = [
        one_step_defect(PROBLEM, before, after, GRID, frame=START + frame)
        for frame, (before, after) in enumerate(zip([state, *wrong], wrong, strict=False))
    ]
    bounds = exponential_bounds(defects, GROWTH, PROBLEM.frame_interval)
    errors = [root_mean_square_difference(*pair) for pair in zip(wrong, truth, strict=True)]
    # the solver's own time steps part a little from the flow that the proof is of
    assert all(error <= bound * (1 + 1e-3) for error, bound in zip(errors, bounds, strict=True))
    assert bounds[0] == pytest.approx(errors[0])
    assert bounds[-1] <= 40 * errors[-1]


def test_two_solutions_part_no_faster_than_the_bound() -> None:
    state = initial()
    for seed in range(3):
        other = disturbed(state, 0.1, seed)
        start = root_mean_square_difference(state, other)
        bounds = exponential_bounds([0.0] * FRAMES, GROWTH, PROBLEM.frame_interval, start)
        for bound, one, two in zip(bounds, rollout(state, FRAMES), rollout(other, FRAMES), strict=True):
            assert root_mean_square_difference(one, two) <= bound
    assert bounds[-1] == pytest.approx(start * math.exp(FRAMES * PROBLEM.frame_interval))


def test_sampled_frames_differ_and_are_in_order() -> None:
    chosen = sampled_frames(100, 8, 1)
    assert len(set(chosen)) == 8
    assert list(chosen) == sorted(chosen)
    assert chosen != sampled_frames(100, 8, 2)
    assert chosen == sampled_frames(100, 8, 1)
    assert list(sampled_frames(3, 8, 0)) == [0, 1, 2]
