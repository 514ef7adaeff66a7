"""Gradients, tangents and quantities of interest, beside finite differences of another assembly."""

import math

import numpy as np
import pytest

from benchmarks.certificate_cases import FAMILIES, Truth
from problems import STEADY_PROBLEMS, Grid, InvalidField, Mean, NotCertifiable, Outflow, Reading

DARCY = STEADY_PROBLEMS["darcy"]
GRID = Grid((24, 24))
# what the judge's own rounding may be, at contrast 1e4
JUDGE = 1e-11
SMOOTH = ["pdebench", "thresholded 1e1", "log-normal 1e2", "log-normal 1e4"]


def fields_of(permeability, source=1.0):
    return {"permeability": permeability, "source": np.array(source)}


def surrogate(exact, seed, level=0.01):
    """An answer with an error of the spectrum that a neural operator's has."""
    rng, waves = np.random.default_rng(seed), np.arange(1, exact.shape[0] + 1)
    angles = np.pi * np.outer((np.arange(exact.shape[0]) + 0.5) / exact.shape[0], waves)
    amplitude = np.hypot.outer(waves, waves) ** -1.5 * rng.standard_normal((waves.size, waves.size))
    pattern = np.sin(angles) @ amplitude @ np.sin(angles).T
    return {"pressure": exact + level * np.linalg.norm(exact) / np.linalg.norm(pattern) * pattern}


def cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("scheme", DARCY.schemes)
@pytest.mark.parametrize("family", ["pdebench", "log-normal 1e4", "noise 1e1"])
def test_gradients_agree_with_finite_differences(oracle, family, scheme):
    """Of fourth order, of a solver that shares no code, on cells that are not square."""
    grid, rng = Grid((12, 16), (1.0, 0.7)), np.random.default_rng(1)
    a, cotangents = FAMILIES[family](3, grid), rng.standard_normal((2, 12, 16))
    found = DARCY.adjoint(fields_of(a, 2.0), cotangents, grid, scheme, tolerance=1e-11)
    direction, step = rng.standard_normal(grid.shape), 2e-3

    def values(s):
        pressure = 2.0 * oracle.solve(a * np.exp(s * step * direction), grid.extent, scheme)
        return np.sum(cotangents * pressure, axis=(1, 2))

    difference = (8 * (values(1) - values(-1)) - (values(2) - values(-2))) / (12 * step)
    for k in range(2):
        along = np.sum(found.logarithmic["permeability"][k] * direction)
        assert along == pytest.approx(difference[k], rel=1e-5)
        assert np.sum(found.fields["permeability"][k] * a * direction) == pytest.approx(along, rel=1e-12)
    assert found.fields["source"] == pytest.approx(values(0) / 2.0, rel=1e-9)
    tangents = DARCY.tangent(
        fields_of(a, 2.0),
        {"permeability": (a * direction)[None], "source": np.array([0.3])},
        grid,
        scheme,
        tolerance=1e-11,
    )
    moved = np.sum(cotangents * tangents.fields["pressure"][0], axis=(1, 2))
    assert moved == pytest.approx(difference + 0.15 * values(0), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_from_a_surrogate_give_the_gradient_within_its_bound(family):
    a = FAMILIES[family](0, GRID)
    fields, start = fields_of(a), surrogate(Truth(a).exact, 0)
    rng = np.random.default_rng(2)
    # a misfit over the domain, a few sensors, the mean
    sensors = np.zeros(GRID.shape)
    sensors[rng.integers(0, 24, 9), rng.integers(0, 24, 9)] = rng.standard_normal(9)
    cotangents = np.stack([start["pressure"] - Truth(a).exact, sensors, np.full(GRID.shape, 1 / 576)])
    exact = DARCY.adjoint(fields, cotangents, GRID, tolerance=1e-9).logarithmic["permeability"]
    found = DARCY.adjoint(fields, cotangents, GRID, start=start)
    for k in range(3):
        approximate = found.logarithmic["permeability"][k]
        assert cosine(exact[k], approximate) >= 0.999
        # the worst direction there is
        assert np.abs(exact[k] - approximate).sum() <= found.error[k]
        assert found.relative_error[k] <= 0.15
    truth = Truth(a).exact
    values = np.sum(cotangents * truth, axis=(1, 2))
    assert np.all(np.abs(found.fields["source"] - values) <= found.source_error + JUDGE * np.abs(values))
    if family in SMOOTH:
        assert found.steps == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_tangents_hold_their_bound(family):
    a = FAMILIES[family](1, GRID)
    fields, truth = fields_of(a), Truth(a)
    directions = {"permeability": a * np.random.default_rng(3).standard_normal((2, *GRID.shape))}
    exact = DARCY.tangent(fields, directions, GRID, tolerance=1e-10).fields["pressure"]
    found = DARCY.tangent(fields, directions, GRID, start=surrogate(truth.exact, 1))
    for k in range(2):
        size = truth.energy(exact[k])
        assert truth.energy(found.fields["pressure"][k] - exact[k]) / size <= found.relative_error[k] < 1


def test_the_tangent_of_one_cell_has_a_useful_bound():
    grid = Grid((64, 64))
    a = FAMILIES["pdebench"](0, grid)
    one = np.zeros((1, *grid.shape))
    one[0, 40, 23] = a[40, 23]
    exact = DARCY.tangent(fields_of(a), {"permeability": one}, grid, tolerance=1e-10).fields["pressure"][0]
    found = DARCY.tangent(fields_of(a), {"permeability": one}, grid)
    truth = Truth(a)
    true = truth.energy(found.fields["pressure"][0] - exact) / truth.energy(exact)
    assert true <= found.relative_error[0] <= 0.2


@pytest.mark.parametrize(("permeability", "along"), [(1e-10, 1e300), (1e300, 1e-300)])
def test_a_direction_whose_logarithm_no_float64_holds_has_no_bound(permeability, along):
    fields, grid = fields_of(np.full((4, 4), permeability)), Grid((4, 4))
    directions = {"permeability": np.full((1, 4, 4), along)}
    assert DARCY.tangent(fields, directions, grid).relative_error[0] == math.inf
    with pytest.raises(NotCertifiable, match="the best bound is inf"):
        DARCY.tangent(fields, directions, grid, tolerance=1e-6)


def test_the_derivative_in_the_source_alone_is_the_solution_per_source():
    a = FAMILIES["pdebench"](0, GRID)
    found = DARCY.tangent(fields_of(a, 5.0), {"source": np.array([1.0, 0.0])}, GRID, tolerance=1e-10)
    assert np.abs(found.fields["pressure"][0] / Truth(a).exact - 1).max() < 1e-8
    assert not found.fields["pressure"][1].any()
    assert found.relative_error[1] == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_quantities_are_certified_and_better_than_the_surrogates(family):
    a = FAMILIES[family](2, GRID)
    truth = Truth(a)
    wanted = [Mean(), Outflow(("left", "top")), Reading(0.4, 0.71)]
    found = DARCY.quantities(fields_of(a), wanted, GRID, start=surrogate(truth.exact, 2))
    p = truth.exact
    # u = 0 half a cell outside the first centers; a square cell's conductance is 2 a
    outflow = 2 * np.sum(a[:, 0] * p[:, 0]) + 2 * np.sum(a[-1] * p[-1])
    y, x = 0.4 * 24 - 0.5, 0.71 * 24 - 0.5
    i, j, s, t = int(y), int(x), y % 1, x % 1
    around = p[i : i + 2, j : j + 2]
    reading = np.array([1 - s, s]) @ around @ np.array([1 - t, t])
    trues = (p.mean(), outflow, reading)
    for one, true in zip(found, trues, strict=True):
        assert abs(one.value - true) <= one.half_width + JUDGE * abs(true)
    better = sum(abs(one.value / true - 1) for one, true in zip(found, trues, strict=True))
    assert better <= 0.5 * sum(
        abs(one.uncorrected / true - 1) for one, true in zip(found, trues, strict=True)
    )
    assert [one.unit for one in found] == ["Pa", "m^2/s", "Pa"]
    sharp = DARCY.quantities(fields_of(a), wanted, GRID, tolerance=1e-7)
    for one, true in zip(sharp, trues, strict=True):
        assert abs(one.value - true) <= one.half_width + JUDGE * abs(true)
        assert one.half_width <= 1e-7 * abs(one.value)
        assert one.uncorrected is None


def test_what_is_produced_flows_out():
    grid = Grid((16, 24), (2.0, 3.0), (-1.0, 10.0))
    fields = fields_of(np.exp(np.random.default_rng(0).standard_normal(grid.shape)), -0.5)
    for scheme in DARCY.schemes:
        (found,) = DARCY.quantities(fields, [Outflow()], grid, scheme, tolerance=1e-9)
        assert found.value == pytest.approx(-3.0, rel=1e-9)


def test_readings_are_bilinear_and_vanish_at_the_wall():
    grid = Grid((8, 8), (1.0, 1.0), (2.0, -1.0))
    fields = fields_of(np.ones((8, 8)))
    points = [Reading(2.0, -0.5), Reading(3.0, -0.5), Reading(2.5, 0.0), Reading(2.0625, -0.0625)]
    values = [one.value for one in DARCY.quantities(fields, points, grid, tolerance=None)]
    assert values[:3] == pytest.approx([0, 0, 0], abs=1e-15)
    corner = DARCY.solve(fields, grid).fields["pressure"][0, -1]
    assert values[3] == pytest.approx(corner, rel=1e-4)


def test_what_cannot_be_met_or_makes_no_sense_is_refused():
    a = FAMILIES["pdebench"](0, GRID)
    cotangent = np.ones((1, *GRID.shape))
    with pytest.raises(NotCertifiable, match="a tolerance of 1e-16 is out of"):
        DARCY.adjoint(fields_of(a), cotangent, GRID, tolerance=1e-16)
    with pytest.raises(NotCertifiable, match="ask for a larger tolerance"):
        DARCY.quantities(fields_of(a), [Mean()], GRID, tolerance=1e-30)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        DARCY.quantities(fields_of(a), [Mean()], GRID, tolerance=math.nan)
    with pytest.raises(ValueError, match=r"between 0 and 1 m, got x = 1\.5 m"):
        DARCY.quantities(fields_of(a), [Reading(0.5, 1.5)], GRID)
    with pytest.raises(ValueError, match="names some of left, right, bottom, top"):
        Outflow(("left", "left"))
    with pytest.raises(InvalidField, match="cotangent must have"):
        DARCY.adjoint(fields_of(a), np.ones((1, 3, 3)), GRID)
    with pytest.raises(InvalidField, match="unknown field porosity"):
        DARCY.tangent(fields_of(a), {"porosity": cotangent}, GRID)
    with pytest.raises(InvalidField, match="a direction of permeability must be finite"):
        DARCY.tangent(fields_of(a), {"permeability": np.full_like(cotangent, np.nan)}, GRID)
    with pytest.raises(ValueError, match="directions must be of one number k"):
        DARCY.tangent(fields_of(a), {"permeability": cotangent, "source": np.ones(2)}, GRID)


def test_a_zero_cotangent_and_no_source_have_zero_gradients():
    a = FAMILIES["pdebench"](0, GRID)
    found = DARCY.adjoint(fields_of(a), np.zeros((1, *GRID.shape)), GRID)
    assert (found.error[0], found.fields["permeability"].any()) == (0.0, False)
    still = DARCY.adjoint(fields_of(a, 0.0), np.ones((1, *GRID.shape)), GRID, tolerance=1e-9)
    assert not still.fields["permeability"].any()
    assert still.fields["source"][0] == pytest.approx(Truth(a).exact.sum(), rel=1e-7)
