"""What every problem promises, whatever its equation."""

import math

import numpy as np
import pytest

from problems import PROBLEMS, STEADY_PROBLEMS, Grid, InvalidField, SteadyProblem

GRID = Grid((24, 32), (1.0, 1.5))
EXAMPLE_PARAMETERS = {"correlation_length": 0.2, "contrast": 20.0}
CASES = [(problem, family) for problem in STEADY_PROBLEMS.values() for family in problem.families]


def sample(problem: SteadyProblem, family: str, seed: int = 3, index: int = 5, grid: Grid = GRID):
    names = [spec.name for spec in problem.families[family].parameters]
    return problem.sample(family, {name: EXAMPLE_PARAMETERS[name] for name in names}, seed, index, grid)


@pytest.mark.parametrize("name", PROBLEMS)
def test_is_registered_under_its_name_and_described(name):
    problem = PROBLEMS[name]
    assert problem.name == name
    assert all((problem.title, problem.equation, problem.boundary_conditions, problem.schemes))
    for spec in problem.inputs + problem.parameters + problem.outputs:
        assert all((spec.symbol, spec.unit, spec.description))


@pytest.mark.parametrize(("problem", "family"), CASES)
def test_samples_are_valid_and_depend_on_seed_and_index_alone(problem, family):
    first, again = sample(problem, family), sample(problem, family)
    for spec in problem.inputs + problem.parameters:
        spec.validate(first[spec.name])
        np.testing.assert_array_equal(first[spec.name], again[spec.name])
    for spec in problem.inputs:
        assert first[spec.name].shape == GRID.shape
        assert not np.array_equal(first[spec.name], sample(problem, family, index=6)[spec.name])
        assert not np.array_equal(first[spec.name], sample(problem, family, seed=4)[spec.name])


@pytest.mark.parametrize(("problem", "family"), CASES)
def test_the_solution_leaves_no_residual_and_a_vanishing_bound(problem, family):
    fields = sample(problem, family)
    for scheme in problem.schemes:
        solution = problem.solve(fields, GRID, scheme, tolerance=1e-11)
        assert solution.scheme == scheme
        assert solution.residual <= 1e-10
        assert set(solution.fields) == {spec.name for spec in problem.outputs}
        left = problem.residual(fields, solution.fields, GRID, scheme)
        assert all(np.abs(field).max() < 1e-8 for field in left.values())
        bound = problem.error_bound(fields, solution.fields, GRID, scheme)
        assert 0 <= bound.lower <= bound.upper < 1e-8


@pytest.mark.parametrize(("problem", "family"), CASES)
def test_a_wrong_answer_has_a_residual_and_a_bound(problem, family):
    fields = sample(problem, family)
    wrong = {name: 1.1 * field for name, field in problem.solve(fields, GRID).fields.items()}
    assert any(np.abs(field).max() > 1e-2 for field in problem.residual(fields, wrong, GRID).values())
    bound = problem.error_bound(fields, wrong, GRID)
    assert 0.1 <= bound.upper < math.inf
    assert bound.kind == "guaranteed"
    assert bound.lower <= 0.1


@pytest.mark.parametrize("problem", STEADY_PROBLEMS.values(), ids=STEADY_PROBLEMS)
def test_bad_requests_are_refused(problem):
    fields = dict(sample(problem, next(iter(problem.families))))
    with pytest.raises(ValueError, match="unknown scheme nonsense, expected one of"):
        problem.solve(fields, GRID, "nonsense")
    with pytest.raises(ValueError, match="unknown family nonsense, expected one of"):
        problem.sample("nonsense", {}, 0, 0, GRID)
    with pytest.raises(InvalidField, match="must have the grid's shape"):
        problem.solve(fields, Grid((8, 8)))
    with pytest.raises(InvalidField, match="unknown field nonsense"):
        problem.solve({**fields, "nonsense": np.array(1.0)}, GRID)
    missing = problem.inputs[0].name
    with pytest.raises(InvalidField, match=f"{missing} is missing"):
        problem.solve({name: field for name, field in fields.items() if name != missing}, GRID)
    output = problem.outputs[0].name
    with pytest.raises(InvalidField, match="finite"):
        problem.error_bound(fields, {output: np.full(GRID.shape, np.nan)}, GRID)
