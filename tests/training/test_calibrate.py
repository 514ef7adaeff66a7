"""From held-out samples to a version with a calibration: by hand, and end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from model_store import CALIBRATION, Calibration, LoadedVersion, Store, open_store
from operators import EvolutionSurrogate
from problems import variation
from training.calibrate import recalibrate, require_origin
from training.cli import calibrate as calibrate_command
from training.config import InvalidRun, parse_run
from training.dataset import read_dataset
from training.evaluate import evaluate
from training.feature_space import SHRINKAGE, fit
from training.run import execute
from training.splits import SPLITS, split_files, split_seed
from training.trajectories import open_trajectories
from training.trajectory_evaluation import evaluate_trajectories


def test_the_fit_is_that_of_a_gaussian() -> None:
    random = np.random.default_rng(4)
    mixing = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    known = (random.standard_normal((4000, 3)) @ mixing.T + [1.0, -1.0, 7.0]).astype(np.float32)
    space = fit(known, known[:100])
    covariance = space.cholesky @ space.cholesky.T
    expected = mixing @ mixing.T
    np.testing.assert_allclose(space.mean, [1.0, -1.0, 7.0], atol=0.1)
    # the third feature never varies: the regularisation is all that it has
    added = SHRINKAGE * np.trace(np.cov(known, rowvar=False)) / 3
    np.testing.assert_allclose(covariance, expected + added * np.eye(3), atol=0.15)
    assert covariance[2, 2] == pytest.approx(added, rel=1e-3)
    assert (np.diff(space.distances) >= 0).all()
    assert len(space.distances) == 100
    # squared distances of a Gaussian's draws have the mean of its dimension
    assert np.mean(space.distances[:-1] ** 2) == pytest.approx(2.0, rel=0.4)


@pytest.mark.parametrize(
    ("known", "held_out"),
    [
        (np.ones((5, 2)), np.ones((1, 2))),
        (np.array([[0.0, np.nan], [1.0, 1.0]]), np.ones((1, 2))),
        (np.eye(2), np.array([[np.inf, 0.0]])),
    ],
)
def test_features_that_say_nothing_are_refused(known: Any, held_out: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        fit(known.astype(np.float32), held_out.astype(np.float32))


def test_the_splits_of_older_runs_keep_their_seeds() -> None:
    assert SPLITS.index("calibration") == 3
    # computed before there was a fourth split
    assert split_seed(2026, "train", "pdebench") == 55391223014367367
    assert split_seed(2026, "train", "pdebench") != split_seed(2026, "calibration", "pdebench")


def test_calibration_samples_do_not_change_what_is_trained(smoke_text: str) -> None:
    more = smoke_text.replace("train = 24", "train = 24\ncalibration = 7")
    assert parse_run(more).training_recipe() == parse_run(smoke_text).training_recipe()


def _command(*args: str, obj: Any) -> Any:
    return CliRunner().invoke(calibrate_command, list(args), obj=obj, catch_exceptions=False)


@pytest.fixture(scope="module")
def run_file(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's file with samples set aside."""
    text = finished.text.replace("train = 24", "train = 24\ncalibration = 14")
    text = text.replace("train = 16", "train = 16\ncalibration = 9")
    path = tmp_path_factory.mktemp("calibrated") / "run.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def store(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the finished run's version."""
    store = open_store(f"file:{tmp_path_factory.mktemp('store')}")
    origin = open_store(f"file:{finished.run.run.directory}/models")
    origin.copy(origin.resolve("darcy"), store)
    return store


@pytest.fixture(scope="module")
def calibrated(store: Store, run_file: Path, silent: Any) -> LoadedVersion:
    result = _command("darcy@1", str(run_file), "--store", store.url, "--alias", "production", obj=silent())
    assert f"published darcy@2 as darcy@production in {store.url}" in result.output
    return store.load("darcy", 2)


def _calibration(version: LoadedVersion) -> Calibration:
    assert version.calibration is not None
    return version.calibration


def test_the_weights_stay_as_they_are(store: Store, calibrated: LoadedVersion) -> None:
    before, after = store.card("darcy", 1), calibrated.card
    assert after.files["weights.safetensors"] == before.files["weights.safetensors"]
    assert set(after.files) == {"weights.safetensors", "calibration.safetensors"}
    unchanged = {"files", "created", "calibration"}
    assert after.model_dump(exclude=unchanged) == before.model_dump(exclude=unchanged)
    assert store.aliases("darcy") == {"production": 2}


def test_scores_are_the_errors_on_the_samples_set_aside(calibrated: LoadedVersion, run_file: Path) -> None:
    run, found = parse_run(run_file.read_text()), _calibration(calibrated)
    sets = [read_dataset(file.path) for file in split_files(run, "calibration").values()]
    errors = [evaluate(calibrated.surrogate, each, 8, run.data.scheme).scores for each in sets]  # type: ignore[arg-type]
    l2 = np.sort(np.concatenate([each["relative_l2"] for each in errors]))
    energy = np.sort(np.concatenate([each["relative_energy"] for each in errors]))
    assert (found.origin.samples, found.origin.horizons) == (23, (0,))
    np.testing.assert_allclose(found.scores["relative_l2"][0], l2, rtol=1e-6)
    # a guaranteed bound is no less than the error, sample by sample, and so rank by rank
    assert (found.scores["energy_upper"][0] >= energy * (1 - 1e-6)).all()
    assert found.scores["l2_estimate"].shape == (1, 23)
    assert len(found.features.distances) == 23
    assert found.origin.recipes.keys() == {"calibration_pdebench.hdf5", "calibration_log_normal.hdf5"}


def test_to_calibrate_again_gives_the_same_version(
    store: Store, calibrated: LoadedVersion, run_file: Path
) -> None:
    run = parse_run(run_file.read_text())
    assert recalibrate(store, store.load("darcy", 1), run) == calibrated.reference
    assert store.versions("darcy") == [1, 2]


def test_ranges_that_the_card_lacks_are_added(
    tmp_path: Path, calibrated: LoadedVersion, run_file: Path
) -> None:
    """Of an older version; those that it has stay, whatever is measured now."""
    card, store = calibrated.card, open_store(f"file:{tmp_path}/older")
    older = {name: bound for name, bound in card.training_hull.items() if name != "roughness_max"}
    older["jump_max"] = 9.5
    store.publish(
        "darcy",
        calibrated.surrogate.state_dict(),
        card.model_copy(update={"training_hull": older}),
        {CALIBRATION: _calibration(calibrated).to_bytes()},
    )
    run = parse_run(run_file.read_text())
    found = recalibrate(store, store.load("darcy", 1), run)
    hull = dict(store.card("darcy", found.version).training_hull)
    assert found.version == 2
    assert hull == {**card.training_hull, "jump_max": 9.5}
    fields = [read_dataset(file.path).permeability[:, 0] for file in split_files(run, "train").values()]
    roughest = max(variation(field).roughness for each in fields for field in each)
    assert hull["roughness_max"] == pytest.approx(roughest, rel=1e-6)
    assert recalibrate(store, store.load("darcy", 1), run) == found


def test_without_samples_set_aside_the_test_samples_do(finished: Any) -> None:
    version = open_store(f"file:{finished.run.run.directory}/models").load("darcy", 1)
    found = _calibration(version)
    assert found.origin.samples == 16
    assert found.origin.recipes.keys() == {"test_pdebench.hdf5", "test_log_normal.hdf5"}
    assert version.card.calibration == {}


def test_a_run_that_the_version_does_not_come_from_is_refused(
    calibrated: LoadedVersion, run_file: Path
) -> None:
    text = run_file.read_text()
    run = parse_run(text)
    families = [each.model_copy(update={"test": 0, "calibration": 0}) for each in run.data.families]
    data = run.data.model_copy(update={"families": tuple(families)})
    with pytest.raises(InvalidRun, match="calibration = "):
        require_origin(run.model_copy(update={"data": data}), calibrated.card)
    with pytest.raises(InvalidRun, match="learnt from other data"):
        require_origin(parse_run(text.replace("seed = 1", "seed = 2")), calibrated.card)
    with pytest.raises(InvalidRun, match="expected the version's run"):
        require_origin(parse_run(text.replace("channels = 16", "channels = 8")), calibrated.card)


def test_a_run_in_time_is_calibrated_when_it_is_published(evolution_text: str, silent: Any) -> None:
    text = evolution_text.replace("train = 4", "train = 4\ncalibration = 3")
    run = parse_run(f'{text}\n[publish]\nmodel = "dams"\nhard_range = "refuse"\n')
    place = f"file:{run.run.directory}/models"
    assert run.publish is not None
    run = run.model_copy(update={"publish": run.publish.model_copy(update={"store": place})})
    execute(run, text, silent(), resume=False)
    version = open_store(place).load("dams", 1)
    found = _calibration(version)
    assert version.card.hard_range == "refuse"
    assert version.card.calibration == {}
    assert (found.origin.samples, found.origin.horizons) == (3, tuple(range(1, 9)))
    # 3 rollouts of 4 blocks of 2 frames
    assert len(found.features.distances) == 12
    # 4 trajectories of 9 frames: blocks start from frames 0, 2, 4 and 6
    assert found.origin.feature_samples == 16
    (file,) = split_files(run, "calibration").values()
    assert isinstance(version.surrogate, EvolutionSurrogate)
    with open_trajectories(file.path) as data, torch.inference_mode():
        errors = evaluate_trajectories(version.surrogate, data, 0).curves["perturbation_l2"]
    np.testing.assert_allclose(found.scores["perturbation_l2"], np.sort(errors, axis=0).T, rtol=1e-6)
