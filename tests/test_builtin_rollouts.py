"""The evolution models that the package ships, against finer references from states they have never seen."""

from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import training
from model_store import LoadedVersion, builtin_store
from operators import EvolutionSurrogate
from problems import EVOLUTION_PROBLEMS, Fields, Grid, coarsen
from service.versions.loading import served_version
from training.config import parse_run

SEED = 99
MODELS = ("shallow_water", "diffusion_reaction")


@cache
def version(name: str) -> LoadedVersion:
    reference = builtin_store().resolve(f"{name}@production")
    return builtin_store().load(reference.name, reference.version)


def served(name: str) -> Grid:
    return EVOLUTION_PROBLEMS[name].grid


def stacked(name: str, fields: Fields) -> NDArray[np.float64]:
    """A state as one array [channel y x]."""
    return np.stack([fields[spec.name] for spec in EVOLUTION_PROBLEMS[name].inputs])


def solve(name: str, state: NDArray[np.float64], cells: int, frames: int, start: int = 0):
    """The reference solver's frames on a grid of ``cells``, averaged to the served one."""
    problem, grid = EVOLUTION_PROBLEMS[name], served(name)
    fine = Grid((cells, cells), grid.extent, grid.origin)
    fields = {spec.name: field for spec, field in zip(problem.inputs, state, strict=True)}
    scheme = version(name).card.scheme
    solved = islice(problem.frames(fields, fine, scheme, start=start), frames)
    return np.stack([stacked(name, coarsen(found, grid.shape)) for found in solved])


def sample(name: str, family: str, index: int, cells: int = 128) -> NDArray[np.float64]:
    grid = served(name)
    fine = Grid((cells, cells), grid.extent, grid.origin)
    return stacked(name, EVOLUTION_PROBLEMS[name].sample(family, {}, SEED, index, fine))


def roll(name: str, state: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    surrogate = version(name).surrogate
    assert isinstance(surrogate, EvolutionSurrogate)
    history = torch.from_numpy(state.astype(np.float32))[None, None]
    with torch.inference_mode():
        blocks = islice(surrogate.blocks(history, served(name).extent), -(-frames // surrogate.frames))
        rolled: NDArray[np.float64] = torch.cat(list(blocks), dim=1)[0, :frames].double().numpy()
    return rolled


def perturbation_error(found: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Mean over the frames of ``||h - h_ref|| / ||h_ref - 1||``."""
    errors = np.linalg.norm((found - reference)[:, 0], axis=(1, 2))
    return float(np.mean(errors / np.linalg.norm(reference[:, 0] - 1.0, axis=(1, 2))))


@pytest.mark.parametrize("name", MODELS)
def test_the_card_says_what_it_is(name):
    card = version(name).card
    assert (card.problem, card.grids, card.extent) == (name, (served(name).shape,), served(name).extent)
    assert card.frame_interval == EVOLUTION_PROBLEMS[name].frame_interval
    assert card.metrics
    assert served_version(version(name)).calibration
    assert any(feature.endswith("_max") for feature in card.training_hull)


@pytest.mark.parametrize("name", MODELS)
def test_the_run_file_that_made_it_is_in_the_repository(name):
    text = (Path(training.__file__).parent / "runs" / f"{name}.toml").read_text()
    assert parse_run(version(name).card.run).training_recipe() == parse_run(text).training_recipe()


def test_still_water_stays_still():
    still = np.zeros((3, 128, 128))
    still[0] = 1.0
    np.testing.assert_array_equal(roll("shallow_water", still, 20), np.broadcast_to(still, (20, 3, 128, 128)))


def test_mass_is_kept_until_a_wave_leaves():
    state = sample("shallow_water", "pdebench", 0)
    mass = roll("shallow_water", state, 100)[:, 0].sum(axis=(1, 2))
    assert np.abs(mass / state[0].sum() - 1.0).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_three_hundred_frames_stay_sound(index):
    state = sample("shallow_water", "wide", index)
    rolled = roll("shallow_water", state, 300)
    assert np.isfinite(rolled).all()
    assert rolled[:, 0].min() > 0.0
    # waves leave through the walls: nothing grows
    assert rolled[:, 0].max() <= 1.1 * state[0].max()
    departed = [np.linalg.norm(frame[0] - 1.0) for frame in (state, rolled[-1])]
    assert departed[1] < departed[0]


@pytest.mark.slow
def test_shallow_water_is_nearer_to_the_fine_solution_than_the_solver_on_its_grid():
    errors = {"model": [], "solver": []}
    for index in range(4):
        fine = sample("shallow_water", "wide", index, cells=512)
        reference = solve("shallow_water", fine, 512, 100)
        state = np.stack(list(coarsen(dict(zip("abc", fine, strict=True)), (128, 128)).values()))
        errors["model"].append(perturbation_error(roll("shallow_water", state, 100), reference))
        errors["solver"].append(perturbation_error(solve("shallow_water", state, 128, 100), reference))
    assert np.mean(errors["model"]) < 0.9 * np.mean(errors["solver"])
    assert max(errors["model"]) < 0.15
    stated = version("shallow_water").card.metrics["wide"]["perturbation_l2_mean"]
    # four draws of a family whose errors differ tenfold
    assert np.mean(errors["model"]) <= 2.5 * stated


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pdebench", "wide"])
def test_diffusion_reaction_is_within_two_percent_and_nearer_than_the_solver_on_its_grid(family):
    fine = sample("diffusion_reaction", family, 0, cells=512)
    reference = solve("diffusion_reaction", fine, 512, 100)
    given, expected = reference[9], reference[10:]
    error, rival = (
        np.linalg.norm(found - expected) / np.linalg.norm(expected)
        for found in (
            roll("diffusion_reaction", given, 90),
            solve("diffusion_reaction", given, 128, 90, start=10),
        )
    )
    assert error <= 0.02
    assert error < rival
