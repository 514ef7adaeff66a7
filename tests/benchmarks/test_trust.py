"""The figures of ``mno bench trust``: by hand, and on a slice of its samples."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from click.testing import CliRunner

from benchmarks.coverage import CONFIDENCE, covered
from benchmarks.trust import Answers, ask, bench_trust, elsewhere, flagged, fresh, in_distribution
from benchmarks.trust_rollouts import coverages, fresh_files
from model_store import LoadedVersion, builtin_store, open_store
from problems import variation
from service.novelty import Novelty
from tests.training.conftest import EVOLUTION_SMOKE, SilentProgress, in_directory, torch_settings
from training.config import parse_run
from training.run import execute
from training.splits import split_files
from training.trajectories import open_trajectories

GRID = (128, 128)


@cache
def version() -> LoadedVersion:
    store = builtin_store()
    return store.load("darcy", store.resolve("darcy@production").version)


def test_covered_by_hand() -> None:
    errors = np.arange(10.0)
    found = covered(errors, 6.0, 0.9, calibrated=19)
    assert (found.covered, found.samples) == (7, 10)
    # of 10 draws of probability 0.9 fewer than 6 are a case of one in a thousand
    assert found.binomial == (6, 10)
    least, most = found.binomial
    assert scipy.stats.binom.cdf(least - 1, 10, 0.9) <= (1 - CONFIDENCE) / 2
    assert found.with_calibration[0] <= least
    assert found.with_calibration[1] >= most


def test_flagged_by_hand() -> None:
    known, new = Novelty(in_distribution=True), Novelty(in_distribution=False)
    answers = Answers(np.array([0.1, 0.3, 0.3, 0.2]), (new, new, known, known))
    assert flagged(answers, 0.2) == (2, 1)


def test_fresh_fields_are_those_of_the_families_and_of_none_of_its_splits() -> None:
    fields = list(in_distribution(version(), 19))
    assert len(fields) == 19
    binary = sum(len(np.unique(field)) == 2 for field in fields)
    # 6000 and 500 of 9500 have two values
    assert binary == 13
    run = parse_run(version().card.run)
    assert not np.array_equal(fields[0], fresh("pdebench", {}, 1, GRID))
    assert run.data.seed != 20261122


def test_every_other_family_differs() -> None:
    families = elsewhere((32, 32), 2)
    assert len(families) >= 6
    assert all(len(fields) == 2 and np.min(fields) > 0 for fields in families.values())
    contrasts = {name: variation(fields[0].astype(float)).contrast for name, fields in families.items()}
    assert contrasts["log-normal 1e6"] == pytest.approx(1e6, rel=1e-3)


@pytest.mark.slow
def test_rollouts_are_covered_at_each_horizon(tmp_path: Path) -> None:
    text = in_directory(EVOLUTION_SMOKE, tmp_path).replace("train = 4", "train = 4\ncalibration = 9")
    run = parse_run(f'{text}\n[publish]\nmodel = "dams"\n')
    url, kept = f"file:{tmp_path}/models", tmp_path / "trust"
    with torch_settings():
        execute(run, text, SilentProgress(), resume=False, store=url)
    version = open_store(url).load("dams", 1)
    options = ["--model", "dams@1", "--store", url, "--samples", "5", "--others", "1"]
    options += ["--data", str(kept)]
    result = CliRunner().invoke(bench_trust, options)
    assert result.exit_code == 0, result.output
    first, *lines, last = result.output.splitlines()
    assert last == "  too few calibration samples to say which error is unusual"
    assert first == "dams@1: calibrated on 9, 5 fresh trajectories"
    # of 9 samples none is certain to be within 95 %
    assert [line.startswith("  perturbation_l2, nominal") for line in lines] == [True, True, False]
    # the errors once more, from the file and the network
    (file,) = fresh_files(version, 5, kept / "dams@1")
    (aside,) = split_files(run, "calibration").values()
    with open_trajectories(file.path) as data, open_trajectories(aside.path) as known:
        states = np.stack([data.read(index, slice(0, None)) for index in range(5)])
        assert not np.allclose(states[0, 0], known.read(0, slice(0, 1))[0])
        rolled = [version.surrogate(torch.from_numpy(states[:, :1]), data.extent)]
        while len(rolled) < 4:
            rolled.append(version.surrogate(rolled[-1][:, -1:], data.extent))
    off = torch.cat(rolled, dim=1).detach().numpy() - states[:, 1:]
    rest = np.array([1.0, 0.0, 0.0])[:, None, None]
    # of the depth alone, as PDEBench's files have it
    errors = np.linalg.norm(off[:, :, 0], axis=(2, 3)) / np.linalg.norm(
        (states[:, 1:] - rest)[:, :, 0], axis=(2, 3)
    )
    limits = np.sort(version.calibration.scores["perturbation_l2"], axis=1)[:, 7]
    shares = (errors <= limits).mean(axis=0)
    found = re.search(r"nominal 0.8: ([\d.]+) of them .*?; ([\d.]+) at 1, ([\d.]+) at 8;", lines[0])
    assert found is not None, lines
    assert [float(each) for each in found.groups()] == pytest.approx(
        [shares.mean(), shares[0], shares[-1]], abs=6e-4
    )
    assert coverages(version.calibration, "perturbation_l2", errors.T, 0.95) == {}


@pytest.mark.slow
def test_the_built_in_model_covers_what_it_promises() -> None:
    calibration = version().calibration
    assert calibration is not None
    found = ask(version(), list(in_distribution(version(), 200)))
    for coverage in (0.8, 0.9, 0.95):
        quantile = calibration.quantiles("relative_l2", coverage)[0]
        line = covered(found.errors, quantile, coverage, calibration.origin.samples)
        assert line.with_calibration[0] <= line.covered <= line.with_calibration[1]
    rare = sum((each.score or 0.0) >= 0.99 for each in found.novelty)
    # of 200 at one in a hundred, 8 or more are a case of one in a thousand
    assert rare <= 8


@pytest.mark.slow
def test_what_is_bad_out_of_distribution_is_flagged() -> None:
    calibration = version().calibration
    assert calibration is not None
    limit = 2 * calibration.quantiles("relative_l2", 0.95)[0]
    counts = [flagged(ask(version(), fields), limit) for fields in elsewhere(GRID, 3).values()]
    bad, caught = (sum(each) for each in zip(*counts, strict=True))
    assert bad >= 15
    assert caught >= 0.95 * bad
