"""Which fields a version vouches for."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from problems import STEADY_PROBLEMS, Grid, Variation, variation
from service.novelty import outside_variation

GRID = Grid((128, 128))
DARCY = STEADY_PROBLEMS["darcy"]
# what the built-in model's training has: binary media of contrast 10, smooth ones up to 1000
HULL = {"contrast_min": 1.0, "contrast_max": 998.5, "jump_max": 10.0, "roughness_max": 0.39}


def _sample(family: str, **parameters: float) -> np.ndarray:
    return DARCY.sample(family, parameters, 5, 1, GRID)["permeability"]


def _noise(low: float, high: float) -> np.ndarray:
    return np.where(np.random.default_rng(0).random(GRID.shape) < 0.5, low, high)


INSIDE = {
    "constant": np.ones(GRID.shape),
    "pdebench": _sample("pdebench"),
    "pdebench in single precision": _sample("pdebench").astype(np.float32),
    "smooth": _sample("log_normal", correlation_length=0.1, contrast=900.0),
    "scaled": 1e-9 * _sample("log_normal", correlation_length=0.1, contrast=900.0),
    "binary": _sample("thresholded", correlation_length=0.2, contrast=10.0),
}
OUTSIDE = {
    "binary of contrast 900": _sample("thresholded", correlation_length=0.2, contrast=900.0),
    "log-normal white noise": np.exp(np.random.default_rng(0).standard_normal(GRID.shape)),
    "white noise of two values": _noise(0.1, 1.0),
    "smooth of contrast 1e4": _sample("log_normal", correlation_length=0.3, contrast=1e4),
}


def in_hull(hull: Mapping[str, float], found: Iterable[Variation]) -> tuple[bool, ...]:
    return tuple(not outside_variation(hull, each) for each in found)


@pytest.mark.parametrize("name", INSIDE)
def test_fields_like_those_of_the_training_are_vouched_for(name: str) -> None:
    assert in_hull(HULL, [variation(INSIDE[name])]) == (True,)


@pytest.mark.parametrize("name", OUTSIDE)
def test_other_fields_are_not(name: str) -> None:
    assert in_hull(HULL, [variation(OUTSIDE[name])]) == (False,)


def test_each_field_is_judged_by_itself() -> None:
    fields = [INSIDE["binary"], OUTSIDE["white noise of two values"], INSIDE["smooth"]]
    assert in_hull(HULL, map(variation, fields)) == (True, False, True)


def test_each_bound_counts() -> None:
    found = variation(INSIDE["binary"])
    exact = {
        "contrast_min": found.contrast,
        "contrast_max": found.contrast,
        "jump_max": found.jump,
        "roughness_max": found.roughness,
    }
    assert in_hull(exact, [found]) == (True,)
    for name, value in exact.items():
        narrower = {**exact, name: value * (1.01 if name.endswith("min") else 0.99)}
        assert in_hull(narrower, [found]) == (False,), name


def test_a_card_is_taken_at_its_word_and_no_further() -> None:
    constant = variation(INSIDE["constant"])
    contrasts = {"contrast_min": 1.0, "contrast_max": 998.5}
    assert in_hull(contrasts, [variation(OUTSIDE["binary of contrast 900"])]) == (True,)
    assert in_hull({}, [constant]) == (False,)
    assert in_hull({"jump_max": 10.0}, [constant]) == (False,)
