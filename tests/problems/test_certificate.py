"""Two-sided bounds, answers to a tolerance, bounds against the equation: each beside an independent truth."""

import decimal
import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.certificate import holds, judge_answers, judge_bounds
from benchmarks.certificate_cases import FAMILIES, Truth
from problems import STEADY_PROBLEMS, CannotSolve, Grid, NotCertifiable

DARCY = STEADY_PROBLEMS["darcy"]
GRID = Grid((32, 32))
HARMONIC, GHOST = "tpfa-harmonic-v1", "pdebench-ghost0-v1"


def fields_of(permeability):
    return {"permeability": permeability, "source": np.array(1.0)}


@pytest.fixture
def pdebench():
    permeability = FAMILIES["pdebench"](0, GRID)
    return fields_of(permeability), Truth(permeability)


def slightly_off(truth, level=0.01):
    ramp = np.linspace(0, 3, GRID.shape[0])
    return truth.exact * (1 + level * np.outer(np.cos(ramp), np.sin(2 * ramp)))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_bound_is_violated_and_all_sides_meet(family):
    tally = judge_bounds(family, 24)
    assert tally.violated == []
    assert tally.two_sided == tally.certified == 8


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_bound_is_violated_in_many_cases(family):
    tally = judge_bounds(family, 480)
    assert tally.violated == []
    if family == "pdebench":
        assert np.median(tally.effectivity) <= 1.1
        assert np.mean([steps <= 1 for steps in tally.steps]) >= 0.85


def test_the_judge_agrees_with_another_assembly(oracle):
    permeability = FAMILIES["log-normal 1e4"](0, GRID)
    exact = oracle.solve(permeability)
    assert np.abs(Truth(permeability).exact - exact).max() <= 1e-10 * exact.max()


def test_the_judge_finds_a_bound_that_is_wrong(pdebench):
    fields, truth = pdebench
    answer = slightly_off(truth)
    bound = DARCY.certify(fields, {"pressure": answer}, GRID)
    errors = truth.errors(answer)
    assert holds(bound, errors)
    assert not holds(bound, (1.1 * errors[0], errors[1], errors[2]))
    assert not holds(bound, (0.9 * errors[0], errors[1], errors[2]))


@pytest.mark.parametrize("scheme", DARCY.schemes)
def test_holds_for_both_schemes_and_odd_grids(oracle, scheme):
    """Grids that multigrid suits and one that it does not, judged by the other assembly."""
    for grid in (Grid((16, 24), (1.0, 2.0)), Grid((15, 21))):
        permeability = np.exp(np.random.default_rng(3).standard_normal(grid.shape))
        matrix, _ = oracle.assemble(permeability, grid.extent, scheme)
        exact = oracle.solve(permeability, grid.extent, scheme)
        answer = exact * (1 + 0.02 * np.random.default_rng(4).standard_normal(grid.shape))
        off, whole = (answer - exact).ravel(), exact.ravel()
        true = math.sqrt(off @ (matrix @ off)) / math.sqrt(whole @ (matrix @ whole))
        bound = DARCY.certify(fields_of(permeability), {"pressure": answer}, grid, scheme)
        assert bound.two_sided
        assert bound.lower <= true <= bound.upper


@pytest.mark.parametrize("norm", ["l2", "pointwise"])
def test_other_norms_are_certified_on_request(pdebench, norm):
    fields, truth = pdebench
    answer = slightly_off(truth)
    bound = DARCY.certify(fields, {"pressure": answer}, GRID, norm=norm)
    lower, upper = bound.sides(norm)
    assert upper - lower <= 0.05 * upper
    assert holds(bound, truth.errors(answer))


def test_the_error_of_an_exact_answer_is_known_to_be_small_not_how_small(pdebench):
    fields, truth = pdebench
    bound = DARCY.certify(fields, {"pressure": truth.exact}, GRID)
    assert bound.lower == 0.0
    assert truth.errors(truth.exact)[0] <= bound.upper < 1e-11
    assert not bound.two_sided
    rounded = DARCY.certify(fields, {"pressure": truth.exact}, GRID, rounding=2.0**-24)
    assert 2.0**-24 < rounded.floor <= rounded.upper < 1e-4


def test_an_answer_that_is_not_finite_has_no_bound(pdebench):
    fields, _ = pdebench
    huge = np.full(GRID.shape, 1e300)
    with np.errstate(over="ignore", invalid="ignore"):
        assert DARCY.error_bound(fields, {"pressure": huge}, GRID).upper > 1e100


def test_every_answer_to_a_tolerance_meets_it():
    met, refused, wrong = judge_answers(20)
    assert (met, refused, wrong) == (20, 0, [])


@pytest.mark.slow
def test_every_answer_to_a_tolerance_meets_it_in_many_cases():
    met, refused, wrong = judge_answers(150)
    assert wrong == []
    assert met + refused == 150
    assert refused <= 2


def test_a_good_start_is_used_a_bad_one_is_not_and_a_sufficient_one_is_returned(pdebench):
    fields, truth = pdebench
    good = DARCY.refine(fields, {"pressure": slightly_off(truth)}, GRID, tolerance=1e-6)
    assert (good.from_start, good.method) == (True, "multigrid-cg")
    bad = DARCY.refine(fields, {"pressure": -truth.exact}, GRID, tolerance=1e-6)
    assert (bad.from_start, bad.method) == (False, "multigrid-cg")
    enough = DARCY.refine(fields, {"pressure": slightly_off(truth)}, GRID, tolerance=0.2)
    assert (enough.iterations, enough.method) == (0, "start")
    assert np.abs(enough.fields["pressure"] - slightly_off(truth)).max() <= 1e-15
    for found in (good, bad):
        assert truth.errors(found.fields["pressure"])[0] <= found.bound.upper <= 1e-6
        assert found.bound == found.discrete


def test_what_multigrid_does_not_solve_is_solved_directly():
    permeability = FAMILIES["thresholded 1e4"](0, Grid((64, 64)))
    found = DARCY.refine(fields_of(permeability), None, Grid((64, 64)), tolerance=1e-9)
    assert (found.method, found.iterations, found.from_start) == ("direct", 0, False)
    assert Truth(permeability).errors(found.fields["pressure"])[0] <= found.bound.upper <= 1e-9


def test_a_tolerance_beyond_float64_is_refused(pdebench):
    fields, _ = pdebench
    with pytest.raises(
        NotCertifiable, match=r"a tolerance of 1e-15 .* the best bound is .*e-1[34]; ask for a"
    ):
        DARCY.refine(fields, None, GRID, tolerance=1e-15)
    for tolerance in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="tolerance must be positive and finite"):
            DARCY.refine(fields, None, GRID, tolerance=tolerance)


def test_without_a_source_the_answer_is_zero():
    fields = {"permeability": np.ones((8, 8)), "source": np.array(0.0)}
    found = DARCY.refine(fields, None, Grid((8, 8)))
    assert (found.bound.upper, found.fields["pressure"].any()) == (0.0, False)


def test_a_pressure_that_no_float64_holds_is_refused():
    fields = {"permeability": np.full((8, 8), 1e200), "source": np.array(1e-200)}
    with pytest.raises(CannotSolve, match="no unit of pressure"):
        DARCY.error_bound(fields, {"pressure": np.zeros((8, 8))}, Grid((8, 8)))


@pytest.mark.parametrize("family", ["pdebench", "log-normal 1e2", "thresholded 1e1"])
def test_the_bound_against_the_equation_holds_and_is_sharp(family):
    """``||u - v||^2 = ||u||^2 + ||v||^2 - 2 (f, v)``; ``||u|| >= (f, w) / ||w||`` for a w on a fine grid."""
    grid = Grid((12, 12))
    permeability = FAMILIES[family](0, grid)
    fine = np.kron(permeability, np.ones((10, 10)))
    energy, work = energy_and_work_of_linear_pieces(fine, Truth(fine).exact)
    squared_size = work**2 / energy
    coarse = Truth(permeability).exact
    energy, work = energy_and_work_of_linear_pieces(permeability, coarse)
    true = math.sqrt(1 + (energy - 2 * work) / squared_size)
    bound = DARCY.pde_bound(fields_of(permeability), {"pressure": coarse}, grid)
    assert (bound.reference, bound.lower) == ("pde", 0.0)
    assert true <= bound.upper <= 1.5 * true


def energy_and_work_of_linear_pieces(a, x):
    """Energy and integral of the function of a square grid's cell values, for each kind of triangle."""
    n, h = a.shape[0], 1.0 / a.shape[0]
    around = [np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, :-1], np.s_[1:, 1:]]
    corner = np.zeros((n + 1, n + 1))
    corner[1:-1, 1:-1] = sum((a * x)[k] for k in around) / sum(a[k] for k in around)
    corners = {(i, j): corner[i : i + n, j : j + n] for i in (0, 1) for j in (0, 1)}
    energy = work = 0.0
    for first, second in itertools.pairwise([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]):
        sides = np.array([first, second]) * h - 0.5 * h
        rises = np.stack([corners[first] - x, corners[second] - x])
        slope = np.einsum("st,tyx->syx", np.linalg.inv(sides), rises)
        energy += float((a * (slope**2).sum(0)).sum()) * h * h / 4
        work += float((x + corners[first] + corners[second]).sum()) / 3 * h * h / 4
    return energy, work


def test_stopping_at_the_discretization_leaves_the_bound_against_the_equation_as_it_is(pdebench):
    fields, truth = pdebench
    found = DARCY.refine(fields, {"pressure": slightly_off(truth, 0.2)}, GRID, tolerance="discretization")
    best = DARCY.pde_bound(fields, {"pressure": truth.exact}, GRID)
    assert found.bound.reference == "pde"
    assert best.upper * 0.99 <= found.bound.upper <= 1.02 * best.upper
    assert found.discrete.upper <= 0.11 * found.bound.upper
    assert found.iterations <= 3


def test_the_solvers_share_of_the_error_is_a_tenth_at_most(oracle):
    """Beside the other assembly, on coarse grids, where the walls of the two schemes are far apart."""
    rng = np.random.default_rng(5)
    for n, scheme, level in itertools.product((2, 4, 8), DARCY.schemes, (0.1, 0.2, 0.3, 0.4)):
        grid, permeability = Grid((n, n)), np.exp(rng.standard_normal((n, n)))
        matrix, _ = oracle.assemble(permeability, grid.extent, scheme)
        exact = oracle.solve(permeability, grid.extent, scheme)
        start = {"pressure": (1 - level) * exact}
        found = DARCY.refine(fields_of(permeability), start, grid, scheme, tolerance="discretization")
        off = (found.fields["pressure"] - exact).ravel()
        energy, work = energy_and_work_of_linear_pieces(permeability, found.fields["pressure"])
        whole = found.bound.upper * work / math.sqrt(energy)
        assert math.sqrt(off @ (matrix @ off)) <= 0.1 * whole * (1 + 1e-9)


def test_the_bound_against_the_equation_covers_the_rounding_of_the_values_that_leave(pdebench):
    fields, truth = pdebench
    # absolute rounding errors are as large as the answer, the solution that they are relative to is not
    bound = DARCY.pde_bound(fields, {"pressure": 1e6 * truth.exact}, GRID)
    assert bound.floor >= 1e6 * 2.0**-50


def test_an_answer_whose_squares_underflow_proves_nothing_of_the_size_of_the_solution(pdebench):
    fields, truth = pdebench
    assert DARCY.pde_bound(fields, {"pressure": 1e-162 * truth.exact}, GRID).upper == math.inf


def test_a_scheme_with_another_wall_shows_it_against_the_equation(pdebench):
    fields, _ = pdebench
    bounds = [
        DARCY.pde_bound(fields, DARCY.solve(fields, GRID, scheme).fields, GRID, scheme).upper
        for scheme in (HARMONIC, GHOST)
    ]
    assert bounds[1] > 1.5 * bounds[0]


SIDE = 8


class Digits:
    """The exact discrete solution in numbers of 80 digits, by elimination."""

    def __init__(self, permeability):
        n = self.side = permeability.shape[0]
        with decimal.localcontext(prec=80):
            a = [[Decimal(float(value)) for value in row] for row in permeability]
            self.faces = list(self._faces(a))
            matrix = [[Decimal(0)] * (n * n) for _ in range(n * n)]
            for here, there, face in self.faces:
                matrix[here][here] += face
                if there is not None:
                    matrix[there][there] += face
                    matrix[here][there] -= face
                    matrix[there][here] -= face
            self.exact = self._eliminate(matrix, [Decimal(1) / (n * n)] * (n * n))

    def _faces(self, a):
        """Cell, neighbor (None at a wall), transmissibility."""
        n = self.side
        for i in range(n):
            for j in range(n):
                here = i * n + j
                for wall in (i == 0, i == n - 1, j == 0, j == n - 1):
                    if wall:
                        yield here, None, 2 * a[i][j]
                for y, x in ((i + 1, j), (i, j + 1)):
                    if y < n and x < n:
                        yield here, y * n + x, 2 / (1 / a[i][j] + 1 / a[y][x])

    def _eliminate(self, matrix, right):
        count, band = len(right), self.side
        for k in range(count):
            for i in range(k + 1, min(k + band + 1, count)):
                if factor := matrix[i][k] / matrix[k][k]:
                    for j in range(k, min(k + band + 1, count)):
                        matrix[i][j] -= factor * matrix[k][j]
                    right[i] -= factor * right[k]
        for k in range(count - 1, -1, -1):
            for j in range(k + 1, min(k + band + 1, count)):
                right[k] -= matrix[k][j] * right[j]
            right[k] /= matrix[k][k]
        return right

    def error(self, answer):
        """Relative energy error."""
        with decimal.localcontext(prec=80):
            pairs = zip(answer.ravel(), self.exact, strict=True)
            off = [Decimal(float(value)) - exact for value, exact in pairs]
            return float((self._energy(off) / self._energy(self.exact)).sqrt())

    def _energy(self, v):
        return sum(t * (v[i] - (0 if j is None else v[j])) ** 2 for i, j, t in self.faces)

    def rounded(self):
        return np.array([float(value) for value in self.exact]).reshape(self.side, self.side)


EXTREME = st.one_of(
    arrays(np.float64, (SIDE, SIDE), elements=st.floats(-12, 12)).map(lambda a: 10.0**a),
    st.tuples(st.integers(0, SIDE**2 - 1), st.floats(-12, 12)).map(
        lambda pixel: np.where(np.arange(SIDE**2) == pixel[0], 10.0 ** pixel[1], 1.0).reshape(SIDE, SIDE)
    ),
    st.floats(-12, 12).map(
        lambda power: np.where(np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 2 == 0, 1.0, 10.0**power)
    ),
)
ANSWERS = st.sampled_from(["exact", "scaled", "rough", "zero", "inverted", "constant"])


def answer_of(name, exact):
    noise = np.random.default_rng(0).standard_normal(exact.shape)
    return {
        "exact": exact,
        "scaled": 1.1 * exact,
        "rough": exact * (1 + 0.01 * noise),
        "zero": np.zeros_like(exact),
        "inverted": -exact,
        "constant": np.full_like(exact, exact.mean()),
    }[name]


@example(10.0 ** np.where(np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 2, 12.0, -12.0), "rough")
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(EXTREME, ANSWERS)
def test_any_positive_field_has_a_bound_that_holds_or_is_refused(permeability, name):
    judge_extreme(permeability, name)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(EXTREME, ANSWERS)
def test_any_positive_field_has_a_bound_that_holds_or_is_refused_at_length(permeability, name):
    judge_extreme(permeability, name)


@pytest.mark.parametrize("tiny", [3e-308, 1e-306, 1e-290, 1e-200, 1e-160, 1e-150])
@pytest.mark.parametrize("pressure", [0.0, 1e-3, 1.0, 1e5, 1e150, 1e300])
def test_a_contrast_whose_squares_overflow_has_no_false_bound(tiny, pressure):
    permeability = np.full((4, 4), tiny)
    permeability[1, 1] = 1.0
    grid, fields = Grid((4, 4)), fields_of(permeability)
    truth = Digits(permeability)
    answer = np.full(grid.shape, pressure)
    with np.errstate(over="ignore", invalid="ignore"):
        for bound_of in (DARCY.error_bound, DARCY.certify):
            bound = bound_of(fields, {"pressure": answer}, grid)
            for lower, upper in map(bound.sides, ("energy", "l2", "pointwise")):
                assert 0 <= lower <= upper
            assert bound.lower <= truth.error(answer) <= bound.upper
        assert DARCY.pde_bound(fields, {"pressure": answer}, grid).upper >= 0.1
        try:
            found = DARCY.refine(fields, {"pressure": answer}, grid, tolerance=1e-6)
        except NotCertifiable:
            assert tiny < 1e-150
            return
    assert truth.error(found.fields["pressure"]) <= found.bound.upper <= 1e-6


def test_an_answer_beside_a_solution_whose_squares_overflow_has_no_false_l2_bound():
    permeability = np.full((4, 4), 1e-200)
    permeability[1, 1] = 1.0
    exact = Digits(permeability).rounded()
    answer = exact * (1 + 0.01 * np.add.outer(np.arange(4), np.arange(4)))
    off, whole = np.abs(answer - exact) / exact.max(), exact / exact.max()
    with np.errstate(over="ignore", invalid="ignore"):
        bound = DARCY.certify(fields_of(permeability), {"pressure": answer}, Grid((4, 4)))
    assert bound.l2_lower <= np.linalg.norm(off) / np.linalg.norm(whole) <= bound.l2_upper
    assert bound.max_lower <= off.max() <= bound.max_upper


def judge_extreme(permeability, name):
    grid, fields, truth = Grid((SIDE, SIDE)), fields_of(permeability), Digits(permeability)
    answer = answer_of(name, truth.rounded())
    true = truth.error(answer)
    for bound_of in (DARCY.error_bound, DARCY.certify):
        try:
            bound = bound_of(fields, {"pressure": answer}, grid)
        except CannotSolve:
            continue
        assert bound.lower <= true <= bound.upper
    try:
        found = DARCY.refine(fields, {"pressure": answer}, grid, tolerance=1e-6)
    except CannotSolve:
        return
    assert truth.error(found.fields["pressure"]) <= found.bound.upper <= 1e-6
