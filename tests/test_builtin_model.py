"""The model that the package ships: what it promises, measured on fields that it has never seen."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import model_store
from model_store import LoadedVersion, builtin_store
from operators.features import FeatureReader
from problems import PROBLEMS, STEADY_PROBLEMS, Grid, variation
from service.novelty import UNUSUAL, outside
from training.config import parse_run
from training.splits import all_files, split_files

DARCY, GRID, SCHEME = STEADY_PROBLEMS["darcy"], Grid((128, 128)), "tpfa-harmonic-v1"
SEED = 99
# what the reference solution may itself be wrong by
REFERENCE_ERROR = 1e-9

Errors = dict[str, NDArray[np.float64]]


@cache
def version() -> LoadedVersion:
    reference = builtin_store().resolve("darcy@production")
    return builtin_store().load(reference.name, reference.version)


def sample(family: str, index: int, **parameters: float) -> NDArray[np.float32]:
    return DARCY.sample(family, parameters, SEED, index, GRID)["permeability"].astype(np.float32)


def energy(permeability: NDArray[np.float64], pressure: NDArray[np.float64]) -> float:
    """``(p, A p)``, since the residual without a source is ``A p`` per area."""
    fields = {"permeability": permeability, "source": np.array(0.0)}
    outflow = DARCY.residual(fields, {"pressure": pressure}, GRID, SCHEME)["pressure"]
    return float(np.sum(pressure * outflow) * GRID.cell_area)


def judge(permeability: NDArray[np.float32]) -> tuple[float, float, float]:
    """Relative errors of the answer to one field, in L2 and energy, and the bound of the latter."""
    with torch.inference_mode():
        answer = version().surrogate(torch.from_numpy(permeability)[None, None], torch.ones(1))
    predicted = answer.numpy()[0, 0].astype(np.float64)
    fields = {"permeability": permeability.astype(np.float64), "source": np.array(1.0)}
    exact = DARCY.solve(fields, GRID, SCHEME).fields["pressure"]
    relative_energy = energy(fields["permeability"], predicted - exact) / energy(
        fields["permeability"], exact
    )
    bound = DARCY.error_bound(fields, {"pressure": predicted}, GRID, SCHEME)
    relative_l2 = float(np.linalg.norm(predicted - exact) / np.linalg.norm(exact))
    return relative_l2, float(np.sqrt(relative_energy)), bound.upper


def errors(fields: list[NDArray[np.float32]]) -> Errors:
    columns = np.array([judge(field) for field in fields]).T
    return dict(zip(("l2", "energy", "bound"), columns, strict=True))


def novelty(fields: list[NDArray[np.float32]]) -> tuple[float, ...]:
    """Of each field, the share of the calibration data that is more like the training data."""
    calibration = version().calibration
    assert calibration is not None
    with FeatureReader(version().surrogate) as reader, torch.inference_mode():
        version().surrogate(torch.from_numpy(np.stack(fields))[:, None], torch.ones(len(fields)))
        return calibration.features.score(reader.take().numpy())


def assert_bounded(found: Errors) -> None:
    assert (found["energy"] <= found["bound"] + REFERENCE_ERROR).all()


def test_the_package_ships_a_model_of_each_problem_in_production() -> None:
    store = builtin_store()
    assert store.models() == sorted(PROBLEMS)
    for name in PROBLEMS:
        assert store.resolve(f"{name}@production").version == store.aliases(name)["production"]


def test_it_is_small() -> None:
    files = (Path(model_store.__file__).parent / "builtin").rglob("*")
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 16 * 2**20


def test_it_is_whole() -> None:
    for number in builtin_store().versions("darcy"):
        builtin_store().verify("darcy", number)


def test_its_card_says_what_was_asked_of_it() -> None:
    card = version().card
    assert (card.problem, card.scheme, card.grids) == ("darcy", SCHEME, (GRID.shape,))
    specs = DARCY.inputs + DARCY.parameters + DARCY.outputs
    units = {field.name: field.unit for field in card.inputs + card.outputs}
    assert units == {spec.name: spec.unit for spec in specs}


def test_the_fields_of_this_page_are_new_to_it() -> None:
    """A sample's random stream is keyed by its seed, and each split has its own, hashed from the run's."""
    run = parse_run(version().card.run)
    assert run.data.seed != SEED
    assert SEED not in {file.recipe.seed for file in all_files(run)}


def test_it_vouches_for_fields_like_those_of_its_training_alone() -> None:
    hull = version().card.training_hull
    known = [sample("pdebench", 0), sample("log_normal", 0, correlation_length=0.2, contrast=100.0)]
    binary = sample("thresholded", 0, correlation_length=0.2, contrast=900.0)
    noise = np.where(np.random.default_rng(0).random(GRID.shape) < 0.5, 0.1, 1.0)
    fields = [*known, binary, noise]
    assert [not outside(hull, vars(variation(field))) for field in fields] == [True, True, False, False]


def test_its_calibration_was_measured_on_fields_that_it_has_not_learnt_from() -> None:
    calibration = version().calibration
    assert calibration is not None
    assert calibration.origin.samples >= 1000
    assert calibration.origin.horizons == (0,)
    learnt = parse_run(version().card.run)
    seeds = {
        file.recipe.seed for split in ("train", "validation") for file in split_files(learnt, split).values()
    }
    recipes = map(json.loads, calibration.origin.recipes.values())
    assert not seeds & {recipe["seed"] for recipe in recipes}


def test_a_scaled_mirrored_or_turned_field_is_not_novel() -> None:
    fields = [sample("pdebench", 0), sample("log_normal", 0, correlation_length=0.2, contrast=100.0)]
    for field in fields:
        images = [field, 1e3 * field, field[::-1], field[:, ::-1], field.T, np.rot90(field)]
        scores = novelty([np.ascontiguousarray(image) for image in images])
        assert max(scores) < UNUSUAL
        # in other units it is the same field
        assert scores[1] == pytest.approx(scores[0], abs=5e-3)


def test_an_unusual_field_is_novel() -> None:
    strange = [sample("log_normal", index, correlation_length=0.2, contrast=1e6) for index in range(3)]
    assert min(novelty(strange)) >= UNUSUAL


def test_this_code_reproduces_the_cards_metrics() -> None:
    found = errors([sample("pdebench", index) for index in range(8)])
    metrics = version().card.metrics["pdebench"]
    for name, column in (("relative_l2_median", "l2"), ("relative_energy_median", "energy")):
        assert 1 / 3 < np.median(found[column]) / metrics[name] < 3
    assert_bounded(found)


FAMILIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "pdebench": lambda _: {},
    "log_normal": lambda index: {
        "contrast": 100.0,
        "correlation_length": 0.05 * 10 ** (index / 59),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "l2", "relative_energy"), [("pdebench", 0.015, 0.20), ("log_normal", 0.04, None)]
)
def test_it_is_as_accurate_as_promised(family: str, l2: float, relative_energy: float | None) -> None:
    found = errors([sample(family, index, **FAMILIES[family](index)) for index in range(60)])
    assert np.median(found["l2"]) <= l2
    if relative_energy is not None:
        assert np.median(found["energy"]) <= relative_energy
    assert_bounded(found)
