"""The figures of ``mno bench trust``: by hand, and on a slice of its samples."""

from functools import cache

import numpy as np
import pytest
import scipy

from benchmarks.trust import CONFIDENCE, Answers, ask, covered, elsewhere, flagged, fresh, in_distribution
from model_store import LoadedVersion, builtin_store
from problems import variation
from service.novelty import Novelty
from training.config import parse_run

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
