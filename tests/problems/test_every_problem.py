"""What every problem promises, whatever its equation: all of them, the steady ones, those that evolve."""

import math
from itertools import islice

import numpy as np
import pytest

from problems import EVOLUTION_PROBLEMS, PROBLEMS, STEADY_PROBLEMS, Grid, InvalidField

# parameters of families that have no two bounds to choose between
EXAMPLE_PARAMETERS = {"correlation_length": 0.2, "contrast": 20.0}
FRAMES = 4


def example(spec):
    """A value that a parameter may have."""
    if spec.name in EXAMPLE_PARAMETERS:
        return EXAMPLE_PARAMETERS[spec.name]
    low = spec.minimum if spec.minimum is not None else spec.exclusive_minimum
    if low is None or spec.maximum is None:
        raise ValueError(f"{spec.name} has no two bounds: add a row to EXAMPLE_PARAMETERS")
    # whole, for what is counted
    return float(math.ceil((low + spec.maximum) / 2)) if spec.maximum - low > 2 else (low + spec.maximum) / 2


def sample(problem, family, grid, seed=3, index=5):
    parameters = {spec.name: example(spec) for spec in problem.families[family].parameters}
    return problem.sample(family, parameters, seed, index, grid)


def grid_of(problem, shape):
    """A small grid on the problem's own rectangle, so that lengths of its families fit."""
    if problem.name in EVOLUTION_PROBLEMS:
        return Grid(shape, problem.grid.extent, problem.grid.origin)
    return Grid(shape, (1.0, 1.5))


def cases(problems):
    return [
        pytest.param(problem, family, id=f"{problem.name}-{family}")
        for problem in problems.values()
        for family in problem.families
    ]


def each(problems):
    return pytest.mark.parametrize("problem", problems.values(), ids=problems)


class TestEveryProblem:
    def test_is_in_one_table(self):
        assert not set(STEADY_PROBLEMS) & set(EVOLUTION_PROBLEMS)
        assert dict(PROBLEMS) == {**STEADY_PROBLEMS, **EVOLUTION_PROBLEMS}

    @pytest.mark.parametrize("name", PROBLEMS)
    def test_is_registered_under_its_name_and_described(self, name):
        problem = PROBLEMS[name]
        assert problem.name == name
        assert all((problem.title, problem.equation, problem.boundary_conditions, problem.schemes))
        for spec in problem.inputs + problem.parameters + problem.outputs:
            assert all((spec.symbol, spec.unit, spec.description))
        for family, entry in problem.families.items():
            assert entry.name == family
            assert entry.description

    @pytest.mark.parametrize(("problem", "family"), cases(PROBLEMS))
    def test_samples_are_valid_and_depend_on_seed_and_index_alone(self, problem, family):
        # fine enough to tell two samples from each other
        grid = grid_of(problem, (96, 128))
        first, again = sample(problem, family, grid), sample(problem, family, grid)
        assert set(first) == {spec.name for spec in problem.inputs + problem.parameters}
        for spec in problem.inputs + problem.parameters:
            spec.validate(first[spec.name])
            np.testing.assert_array_equal(first[spec.name], again[spec.name])
        assert all(first[spec.name].shape == grid.shape for spec in problem.inputs)
        for other in (sample(problem, family, grid, index=6), sample(problem, family, grid, seed=4)):
            assert any(not np.array_equal(first[spec.name], other[spec.name]) for spec in problem.inputs)

    @each(PROBLEMS)
    def test_unknown_families_and_parameters_are_refused(self, problem):
        grid = grid_of(problem, (24, 32))
        with pytest.raises(ValueError, match="unknown family nonsense, expected one of"):
            problem.sample("nonsense", {}, 0, 0, grid)
        for family in problem.families.values():
            parameters = {spec.name: example(spec) for spec in family.parameters}
            with pytest.raises(InvalidField, match="unknown field nonsense"):
                problem.sample(family.name, {**parameters, "nonsense": 1.0}, 0, 0, grid)
            with pytest.raises(ValueError, match="must be at least 0"):
                problem.sample(family.name, parameters, -1, 0, grid)


class TestEverySteadyProblem:
    GRID = Grid((24, 32), (1.0, 1.5))

    @pytest.mark.parametrize(("problem", "family"), cases(STEADY_PROBLEMS))
    def test_the_solution_leaves_no_residual_and_a_vanishing_bound(self, problem, family):
        fields = sample(problem, family, self.GRID)
        for scheme in problem.schemes:
            solution = problem.solve(fields, self.GRID, scheme, tolerance=1e-11)
            assert solution.scheme == scheme
            assert solution.residual <= 1e-10
            assert set(solution.fields) == {spec.name for spec in problem.outputs}
            left = problem.residual(fields, solution.fields, self.GRID, scheme)
            assert all(np.abs(field).max() < 1e-8 for field in left.values())
            bound = problem.error_bound(fields, solution.fields, self.GRID, scheme)
            assert 0 <= bound.lower <= bound.upper < 1e-8

    @pytest.mark.parametrize(("problem", "family"), cases(STEADY_PROBLEMS))
    def test_a_wrong_answer_has_a_residual_and_a_bound(self, problem, family):
        fields = sample(problem, family, self.GRID)
        wrong = {name: 1.1 * field for name, field in problem.solve(fields, self.GRID).fields.items()}
        residual = problem.residual(fields, wrong, self.GRID)
        assert any(np.abs(field).max() > 1e-2 for field in residual.values())
        bound = problem.error_bound(fields, wrong, self.GRID)
        assert 0.1 <= bound.upper < math.inf
        assert bound.kind == "guaranteed"
        assert bound.lower <= 0.1

    @each(STEADY_PROBLEMS)
    def test_bad_requests_are_refused(self, problem):
        fields = dict(sample(problem, next(iter(problem.families)), self.GRID))
        with pytest.raises(ValueError, match="unknown scheme nonsense, expected one of"):
            problem.solve(fields, self.GRID, "nonsense")
        with pytest.raises(InvalidField, match="must have the grid's shape"):
            problem.solve(fields, Grid((8, 8)))
        with pytest.raises(InvalidField, match="unknown field nonsense"):
            problem.solve({**fields, "nonsense": np.array(1.0)}, self.GRID)
        missing = problem.inputs[0].name
        with pytest.raises(InvalidField, match=f"{missing} is missing"):
            problem.solve({name: field for name, field in fields.items() if name != missing}, self.GRID)
        output = problem.outputs[0].name
        with pytest.raises(InvalidField, match="finite"):
            problem.error_bound(fields, {output: np.full(self.GRID.shape, np.nan)}, self.GRID)


WAYS = [
    pytest.param(problem, scheme, walls, id=f"{problem.name}-{scheme}-{walls}")
    for problem in EVOLUTION_PROBLEMS.values()
    for scheme in problem.schemes
    for walls in problem.walls
]


class TestEveryEvolutionProblem:
    SHAPE = (24, 32)

    def state(self, problem, family=None):
        grid = grid_of(problem, self.SHAPE)
        return dict(sample(problem, family or next(iter(problem.families)), grid)), grid

    @each(EVOLUTION_PROBLEMS)
    def test_its_state_is_what_it_starts_from_and_what_it_yields(self, problem):
        assert problem.inputs == problem.outputs
        assert not problem.parameters
        assert problem.frame_interval > 0
        assert problem.frame_count > 0
        assert problem.walls

    @pytest.mark.parametrize(("problem", "family"), cases(EVOLUTION_PROBLEMS))
    def test_frames_of_every_family_are_valid_and_described_by_finite_numbers(self, problem, family):
        state, grid = self.state(problem, family)
        frames = [state, *islice(problem.frames(state, grid), FRAMES)]
        for frame in frames:
            assert set(frame) == {spec.name for spec in problem.outputs}
            for spec in problem.outputs:
                spec.validate(frame[spec.name])
                assert frame[spec.name].shape == grid.shape
                assert frame[spec.name].dtype == np.float64
        for describe in (problem.invariants, problem.features):
            described = [describe(frame, grid) for frame in frames]
            assert all(list(numbers) == list(described[0]) for numbers in described)
            assert all(math.isfinite(number) for numbers in described for number in numbers.values())

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize(("problem", "family"), cases(EVOLUTION_PROBLEMS))
    def test_invariants_of_many_states_are_those_of_each(self, problem, family, dtype):
        state, grid = self.state(problem, family)
        frames = [state, *islice(problem.frames(state, grid), FRAMES)]
        stacked = {name: np.stack([frame[name] for frame in frames]).astype(dtype) for name in state}
        found = problem.frame_invariants(stacked, grid)
        assert found.dtype == np.float64
        for number, row in enumerate(found):
            one = {name: values[number].astype(np.float64) for name, values in stacked.items()}
            expected = problem.invariants(one, grid)
            assert tuple(expected) == problem.invariant_names
            # sums in another order
            assert row == pytest.approx(list(expected.values()), rel=1e-12, abs=1e-12)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "below", "above"])
    @each(EVOLUTION_PROBLEMS)
    def test_invariants_of_a_state_that_breaks_a_rule_are_not_all_finite(self, problem, bad):
        state, grid = self.state(problem)
        for spec in problem.outputs:
            least = spec.minimum if spec.exclusive_minimum is None else spec.exclusive_minimum
            edges = {"below": least, "above": spec.maximum}
            value = bad
            if isinstance(bad, str):
                if edges[bad] is None:
                    continue
                value = edges[bad] - 1.0 if bad == "below" else edges[bad] + 1.0
            frames = {name: np.stack([field] * 3) for name, field in state.items()}
            frames[spec.name][1, 1, 2] = value
            with np.errstate(all="ignore"):
                found = problem.frame_invariants(frames, grid)
            assert np.isfinite(found).all(axis=1).tolist() == [True, False, True]

    @pytest.mark.parametrize(("problem", "scheme", "walls"), WAYS)
    def test_the_state_changes_and_stays_finite(self, problem, scheme, walls):
        state, grid = self.state(problem)
        last = list(islice(problem.frames(state, grid, scheme, walls), FRAMES))[-1]
        assert any(not np.allclose(last[spec.name], state[spec.name]) for spec in problem.outputs)
        for spec in problem.outputs:
            spec.validate(last[spec.name])

    @pytest.mark.parametrize(("problem", "scheme", "walls"), WAYS)
    def test_start_continues_a_trajectory_exactly(self, problem, scheme, walls):
        state, grid = self.state(problem)
        whole = list(islice(problem.frames(state, grid, scheme, walls), FRAMES))
        for cut in range(1, FRAMES):
            rest = islice(problem.frames(whole[cut - 1], grid, scheme, walls, start=cut), FRAMES - cut)
            for found, expected in zip(rest, whole[cut:], strict=True):
                for name, field in expected.items():
                    np.testing.assert_array_equal(found[name], field)

    @pytest.mark.parametrize(("problem", "scheme", "walls"), WAYS)
    def test_frames_depend_on_their_arguments_alone(self, problem, scheme, walls):
        """Neither on another trajectory under way nor on what becomes of what was passed and yielded."""
        state, grid = self.state(problem)
        expected = list(islice(problem.frames(state, grid, scheme, walls), FRAMES))
        passed = {name: field.copy() for name, field in state.items()}
        frames, others = (problem.frames(passed, grid, scheme, walls) for _ in range(2))
        for number, frame in enumerate(islice(frames, FRAMES)):
            next(others)
            for name, field in frame.items():
                np.testing.assert_array_equal(field, expected[number][name])
                field[:] = np.nan
        for name, field in state.items():
            np.testing.assert_array_equal(passed[name], field)

    @each(EVOLUTION_PROBLEMS)
    def test_the_defaults_are_the_first_ones(self, problem):
        state, grid = self.state(problem)
        first = (problem.schemes[0], problem.walls[0])
        named, default = (next(problem.frames(state, grid, *way)) for way in (first, ()))
        assert all(np.array_equal(named[name], default[name]) for name in named)

    @each(EVOLUTION_PROBLEMS)
    def test_the_cost_of_a_frame_is_a_number_of_steps_of_all_cells(self, problem):
        state, grid = self.state(problem)
        copy = {name: field.copy() for name, field in state.items()}
        costs = [problem.cell_steps(state, grid, scheme) for scheme in problem.schemes]
        cells = math.prod(grid.shape)
        assert all(type(cost) is int and cost >= cells and cost % cells == 0 for cost in costs)
        assert problem.cell_steps(state, grid) == costs[0]
        for name, field in state.items():
            np.testing.assert_array_equal(field, copy[name])

    @each(EVOLUTION_PROBLEMS)
    def test_bad_requests_are_refused_at_once(self, problem):
        state, grid = self.state(problem)
        for read in (problem.frames, problem.cell_steps):
            with pytest.raises(ValueError, match="unknown scheme nonsense, expected one of"):
                read(state, grid, "nonsense")
            with pytest.raises(ValueError, match="start must be at least 0"):
                read(state, grid, start=-1)
        with pytest.raises(ValueError, match="unknown walls nonsense, expected one of"):
            problem.frames(state, grid, walls="nonsense")

    @each(EVOLUTION_PROBLEMS)
    def test_bad_states_are_refused_at_once(self, problem):
        state, grid = self.state(problem)
        name = problem.inputs[0].name
        spoilt = state[name].copy()
        spoilt[1, 2] = np.nan
        lacking = {other: field for other, field in state.items() if other != name}
        for bad, where, match in (
            (state, Grid((8, 8)), "must have the grid's shape"),
            ({**state, "nonsense": spoilt}, grid, "unknown field nonsense"),
            (lacking, grid, f"{name} is missing"),
            ({**state, name: spoilt}, grid, rf"{name} must be finite, got nan at \(1, 2\)"),
        ):
            for read in (problem.frames, problem.cell_steps, problem.invariants, problem.features):
                with pytest.raises(InvalidField, match=match):
                    read(bad, where)
