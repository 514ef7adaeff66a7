"""Lower bounds by symmetry: exact on exact images, never above the error, and blind to what is symmetric."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, Grid
from problems.lower_bounds import MIRRORS, Symmetry, least_rms_error, symmetries, transformed

WATER, REACTION = EVOLUTION_PROBLEMS["shallow_water"], EVOLUTION_PROBLEMS["diffusion_reaction"]
SQUARE, OBLONG = Grid((8, 8), (5.0, 5.0)), Grid((8, 12), (5.0, 7.5))


def rough(grid: Grid, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    h, hu, hv = np.random.default_rng(seed).random((3, *grid.shape))
    return {"h": h + 1, "hu": hu - 0.5, "hv": hv - 0.5}


def still(depth: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {"h": depth, "hu": 0 * depth, "hv": 0 * depth}


def rms(*differences: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(differences))))


def test_a_mirror_turns_the_component_across_it() -> None:
    state = rough(SQUARE)
    found = transformed(WATER, state, Symmetry(along_y=False, along_x=True))
    np.testing.assert_array_equal(found["h"], state["h"][:, ::-1])
    np.testing.assert_array_equal(found["hu"], -state["hu"][:, ::-1])
    np.testing.assert_array_equal(found["hv"], state["hv"][:, ::-1])


@pytest.mark.parametrize("grid", [SQUARE, OBLONG])
def test_a_level_surface_has_every_symmetry(grid: Grid) -> None:
    assert symmetries(WATER, still(np.ones(grid.shape))) == MIRRORS
    assert symmetries(WATER, rough(grid)) == ()
    # a current along x has one direction
    current = still(np.ones(grid.shape)) | {"hu": np.ones(grid.shape)}
    assert symmetries(WATER, current) == (Symmetry(along_y=True, along_x=False),)


def test_the_solver_keeps_the_symmetries_and_their_image_is_the_image_of_the_solution() -> None:
    state = rough(SQUARE)
    for by in MIRRORS:
        (after,) = islice(WATER.frames(state, SQUARE), 1)
        (image,) = islice(WATER.frames(transformed(WATER, state, by), SQUARE), 1)
        for name, values in transformed(WATER, after, by).items():
            np.testing.assert_allclose(image[name], values, rtol=1e-12, atol=1e-13)


def test_the_bound_by_hand() -> None:
    # mirrored along x, the depths 1 and 3 would both be 2; the rest is as it should be
    state: dict[str, NDArray[Any]] = still(np.array([[1.0, 3.0]]))
    group = (Symmetry(along_y=False, along_x=True),)
    assert least_rms_error(WATER, state, group) == pytest.approx(np.sqrt((1 + 1) / 6))
    assert least_rms_error(WATER, still(np.array([[2.0, 2.0]])), group) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_it_never_exceeds_the_error(seed: int) -> None:
    depth = rough(SQUARE, seed)["h"]
    images = [transformed(WATER, still(depth), by)["h"] for by in MIRRORS]
    solution = still(np.mean([depth, *images], axis=0))
    wrong = {name: values + 0.1 * rough(SQUARE, seed + 9)[name] for name, values in solution.items()}
    error = rms(*(wrong[name] - solution[name] for name in wrong))
    least = float(least_rms_error(WATER, wrong, MIRRORS))
    assert 0.1 * error < least <= error
    # what is wrong alike in all images does not show
    alike = solution | {"h": solution["h"] + 1.0}
    assert least_rms_error(WATER, alike, MIRRORS) == pytest.approx(0.0, abs=1e-12)


def test_many_states_are_judged_at_once() -> None:
    frames = {name: np.stack([field, 2 * field]) for name, field in rough(SQUARE).items()}
    group = (Symmetry(along_y=True, along_x=False),)
    together = least_rms_error(WATER, frames, group)
    alone = [
        least_rms_error(WATER, {name: each[number] for name, each in frames.items()}, group)
        for number in range(2)
    ]
    np.testing.assert_allclose(together, alone)
    scalar = {"u": frames["h"], "v": frames["h"]}
    assert least_rms_error(REACTION, scalar, group).shape == (2,)
