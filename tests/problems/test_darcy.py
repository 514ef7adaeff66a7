"""Darcy's solver against exact solutions and an independently assembled matrix, and its symmetries."""

from itertools import pairwise

import numpy as np
import pytest

from problems import STEADY_PROBLEMS, CannotSolve, Grid, InvalidField

DARCY = STEADY_PROBLEMS["darcy"]
ACCURATE, PDEBENCH = "tpfa-harmonic-v1", "pdebench-ghost0-v1"
FAMILIES = [
    ("pdebench", {}),
    ("log_normal", {"correlation_length": 0.1, "contrast": 100.0}),
    ("log_normal", {"correlation_length": 0.1, "contrast": 1e4}),
    ("thresholded", {"correlation_length": 0.1, "contrast": 10.0}),
    ("thresholded", {"correlation_length": 0.1, "contrast": 1e4}),
]


def fields(permeability, source=1.0):
    return {"permeability": np.asarray(permeability), "source": np.array(source)}


def solve(permeability, grid, scheme=ACCURATE, source=1.0):
    return DARCY.solve(fields(permeability, source), grid, scheme).fields["pressure"]


def relative(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("scheme", [ACCURATE, PDEBENCH])
@pytest.mark.parametrize(("family", "parameters"), FAMILIES)
@pytest.mark.parametrize(
    "grid",
    [Grid((32, 32)), Grid((24, 40), (1.0, 2.0)), Grid((33, 18), (0.5, 1.0)), Grid((40, 20))],
    ids=lambda grid: f"{grid.shape[0]}x{grid.shape[1]}",
)
def test_agrees_with_a_direct_solve_of_an_independent_matrix(oracle, grid, family, parameters, scheme):
    sample = DARCY.sample(family, {**parameters}, 1, 2, grid)
    solution = DARCY.solve(sample, grid, scheme)
    expected = oracle.solve(sample["permeability"], grid.extent, scheme)
    assert relative(solution.fields["pressure"], expected) < 1e-8
    assert solution.iterations <= 40


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (2, 2), (5, 3), (16, 64), (6, 100)])
def test_unusual_shapes_are_solved(oracle, shape):
    permeability = np.exp(np.random.default_rng(0).standard_normal(shape))
    assert relative(solve(permeability, Grid(shape)), oracle.solve(permeability)) < 1e-8


def test_constant_permeability_gives_the_sine_series(oracle):
    grid = Grid((128, 128))
    assert relative(solve(np.ones(grid.shape), grid), oracle.sine_series(*grid.coordinates())) < 1.5e-4


def test_a_rectangle_of_oblong_cells_gives_the_sine_series(oracle):
    grid = Grid((64, 128), (3.0, 2.0))
    exact = oracle.sine_series(*grid.coordinates(), grid.extent)
    assert relative(solve(np.ones(grid.shape), grid), exact) < 1e-3


def test_pdebench_scheme_sees_a_domain_one_cell_larger(oracle):
    n = 63
    nodes = np.arange(1, n + 1) / (n + 1)
    larger = ((n + 1) / n) ** 2 * oracle.sine_series(nodes, nodes)
    assert relative(solve(np.ones((n, n)), Grid((n, n)), PDEBENCH), larger) < 1e-3


@pytest.mark.parametrize(("left", "right"), [(1.0, 10.0), (0.1, 1.0), (3.0, 0.05)])
def test_two_layers_converge_to_the_exact_solution_with_second_order(oracle, left, right):
    errors = []
    for n in (32, 64, 128):
        grid = Grid((n, n))
        y, x = grid.coordinates()
        permeability = np.broadcast_to(np.where(x < 0.5, left, right), grid.shape)
        errors.append(relative(solve(permeability, grid), oracle.two_layers(y, x, left, right)))
    assert errors[-1] < 5e-4
    assert np.log2(errors[0] / errors[1]) > 1.8
    assert np.log2(errors[1] / errors[2]) > 1.8


def test_two_layers_expose_pdebenchs_arithmetic_mean(oracle):
    """The other side of the check above: its scheme is far from the exact solution."""
    grid = Grid((64, 64))
    y, x = grid.coordinates()
    permeability = np.broadcast_to(np.where(x < 0.5, 0.1, 1.0), grid.shape)
    assert relative(solve(permeability, grid, PDEBENCH), oracle.two_layers(y, x, 0.1, 1.0)) > 0.02


def test_a_smooth_medium_converges_with_second_order():
    """The averages over 32 x 32 cells of one grid's solution and the next's differ by a quarter each time."""
    solutions = []
    for n in (32, 64, 128, 256):
        grid = Grid((n, n))
        y, x = np.meshgrid(*grid.coordinates(), indexing="ij")
        pressure = solve(np.exp(1.5 * np.cos(3 * x + y) * np.sin(2 * y)), grid)
        solutions.append(pressure.reshape(32, n // 32, 32, n // 32).mean(axis=(1, 3)))
    distances = [relative(a, b) for a, b in pairwise(solutions)]
    assert np.log2(distances[0] / distances[1]) > 1.8
    assert np.log2(distances[1] / distances[2]) > 1.8


@pytest.mark.parametrize("scheme", [ACCURATE, PDEBENCH])
@pytest.mark.parametrize(
    "move", [np.flipud, np.fliplr, np.transpose, np.rot90], ids=lambda move: move.__name__
)
def test_the_symmetries_of_the_square(scheme, move):
    grid = Grid((48, 48))
    permeability = DARCY.sample("pdebench", {}, 2, 9, grid)["permeability"]
    assert relative(solve(move(permeability), grid, scheme), move(solve(permeability, grid, scheme))) < 1e-9


def test_pressure_scales_with_the_source_and_against_the_permeability():
    grid = Grid((32, 32))
    permeability = DARCY.sample("pdebench", {}, 2, 9, grid)["permeability"]
    unit = solve(permeability, grid)
    np.testing.assert_allclose(solve(permeability, grid, source=-3.0), -3.0 * unit, rtol=1e-14)
    np.testing.assert_allclose(solve(7.0 * permeability, grid), unit / 7.0, rtol=1e-8)
    np.testing.assert_allclose(solve(2.0**-600 * permeability, grid, source=2.0**-500), 2.0**100 * unit)


def test_no_source_no_pressure():
    grid = Grid((8, 8))
    solution = DARCY.solve(fields(np.ones(grid.shape), 0.0), grid)
    assert not solution.fields["pressure"].any()
    assert solution.residual == 0.0


def test_multigrid_is_used_and_converges_alike_on_fine_grids():
    iterations = []
    for n in (64, 128, 256):
        grid = Grid((n, n))
        solution = DARCY.solve(DARCY.sample("pdebench", {}, 1, 0, grid), grid, tolerance=1e-6)
        assert solution.method == "multigrid-cg"
        assert solution.residual <= 1.001e-6
        iterations.append(solution.iterations)
    assert max(iterations) <= 14


def test_binary_media_of_high_contrast_fall_back_to_the_direct_solver(oracle):
    grid = Grid((64, 64))
    sample = DARCY.sample("thresholded", {"correlation_length": 0.1, "contrast": 1e4}, 1, 1, grid)
    solution = DARCY.solve(sample, grid)
    assert (solution.method, solution.iterations) == ("direct", 0)
    assert relative(solution.fields["pressure"], oracle.solve(sample["permeability"])) < 1e-10


def test_grids_that_cannot_be_halved_are_solved_directly():
    grid = Grid((101, 97))
    solution = DARCY.solve(fields(np.ones(grid.shape)), grid)
    assert solution.method == "direct"
    assert solution.residual < 1e-10


@pytest.mark.parametrize("scheme", [ACCURATE, PDEBENCH])
def test_residual_is_the_equation_per_cell(oracle, scheme):
    grid = Grid((12, 20), (1.0, 2.0))
    rng = np.random.default_rng(0)
    permeability, pressure = np.exp(rng.standard_normal(grid.shape)), rng.standard_normal(grid.shape)
    matrix, _ = oracle.assemble(permeability, grid.extent, scheme)
    expected = (matrix @ pressure.ravel()).reshape(grid.shape) / grid.cell_area - 2.5
    left = DARCY.residual(fields(permeability, 2.5), {"pressure": pressure}, grid, scheme)["pressure"]
    np.testing.assert_allclose(left, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (fields(np.zeros((8, 8))), r"permeability must exceed 0 m\^2/\(Pa s\), got 0 at \(0, 0\)"),
        (fields(np.full((8, 8), np.nan)), "permeability must be finite"),
        (fields(np.ones(64)), "permeability must have 2 axes"),
        (fields(np.ones((8, 8)), np.inf), "source must be finite, got inf"),
        (fields(np.ones((8, 8)), [1.0, 2.0]), "source must have 0 axes"),
    ],
)
def test_bad_fields_are_refused(bad, match):
    with pytest.raises(InvalidField, match=match):
        DARCY.solve(bad, Grid((8, 8)))


NOISE = np.random.default_rng(0).random((32, 32)) < 0.5
ISLAND = np.pad(np.ones((8, 8)), 12) > 0


@pytest.mark.parametrize(
    ("permeability", "source", "match"),
    [
        (
            np.where(NOISE, 1e-300, 1e300),
            1.0,
            r"contrast inf.* the ratio vanishes in float64; lower the contrast",
        ),
        (np.where(ISLAND, 1e150, 1e-150), 1.0, r"contrast 1e\+300.*; lower the contrast"),
        (
            np.where(ISLAND, 1.0, 1e-14),
            1.0,
            r"contrast 1e\+14.* residual of .* is left; lower the contrast, or",
        ),
        (np.full((32, 32), 1e-300), 1e300, "the pressure is not finite; choose units"),
    ],
)
def test_what_float64_does_not_carry_is_refused(permeability, source, match):
    with pytest.raises(CannotSolve, match=match):
        DARCY.solve(fields(permeability, source), Grid((32, 32)))


def test_a_singular_matrix_is_refused():
    from problems import multigrid
    from problems.two_point_flux import Faces

    nothing = Faces(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(multigrid.Singular, match="the matrix is singular"):
        multigrid.solve_directly(nothing, np.ones((3, 3)))


def test_a_residual_that_the_caller_allows_is_no_reason_to_refuse():
    """The other side of the check: the same field is solved as well as float64 can."""
    permeability = np.where(ISLAND, 1.0, 1e-10)
    with pytest.raises(CannotSolve):
        DARCY.solve(fields(permeability), Grid((32, 32)))
    assert 1e-6 < DARCY.solve(fields(permeability), Grid((32, 32)), tolerance=1e-3).residual < 1e-3


def test_units_of_the_equation_agree():
    """``-div(a grad p) = f``: two derivatives in space of p, times a, have the unit of f."""
    units = {spec.symbol: spec.unit for spec in DARCY.inputs + DARCY.parameters + DARCY.outputs}
    assert units == {"a": "m^2/(Pa s)", "f": "1/s", "p": "Pa"}


def test_threads_solve_independently():
    """The solver leaves the interpreter lock, so its threads must not share anything."""
    from concurrent.futures import ThreadPoolExecutor

    grid = Grid((64, 64))
    samples = [DARCY.sample("pdebench", {}, 1, index, grid) for index in range(16)]
    expected = [DARCY.solve(sample, grid).fields["pressure"] for sample in samples]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda sample: DARCY.solve(sample, grid).fields["pressure"], samples))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
