"""The batched solver and bound beside an independent solution and the compiled bound."""

import numpy as np
import pytest
import torch

from benchmarks.certificate_cases import FAMILIES, Truth, answers
from problems import STEADY_PROBLEMS, CannotSolve, Grid
from problems.darcy_torch import bound_batch, solve_batch

DARCY = STEADY_PROBLEMS["darcy"]
GRID = Grid((24, 24))
EASY = ["pdebench", "thresholded 1e1", "log-normal 1e2", "noise 1e1"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def needs_a_device(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def batch(fields, device):
    return torch.as_tensor(np.stack(fields), dtype=torch.float64, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_solves_each_field_of_a_batch(device):
    permeability = [3.0 * FAMILIES[family](0, GRID) for family in EASY]
    source = torch.tensor([1.0, -2.0, 0.0, 4.0], dtype=torch.float64, device=device)
    found = solve_batch(batch(permeability, device), source, GRID, tolerance=1e-11)
    assert found.residual.max() <= 1e-10
    assert found.iterations < 120
    for k, field in enumerate(permeability):
        expected = source[k].item() * Truth(field).exact
        np.testing.assert_allclose(found.pressure[k].cpu(), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", DARCY.schemes)
def test_agrees_with_the_other_solver_on_cells_that_are_not_square(oracle, scheme, device):
    grid = Grid((12, 20), (1.0, 0.7))
    permeability = np.exp(np.random.default_rng(0).standard_normal((2, *grid.shape)))
    found = solve_batch(batch(permeability, device), torch.ones(2).double().to(device), grid, scheme)
    for k in range(2):
        np.testing.assert_allclose(
            found.pressure[k].cpu(), oracle.solve(permeability[k], grid.extent, scheme), rtol=1e-8
        )


def test_a_sample_does_not_depend_on_its_batch():
    fields = batch([FAMILIES[family](1, GRID) for family in EASY], "cpu")
    one = torch.ones(4, dtype=torch.float64)
    together = solve_batch(fields, one, GRID).pressure
    alone = solve_batch(fields[2:3], one[:1], GRID).pressure[0]
    np.testing.assert_allclose(alone, together[2], rtol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", DARCY.schemes)
def test_a_sample_without_any_residual_left_rests(oracle, scheme, device):
    grid = Grid((2, 2))
    fields = [np.ones((2, 2)), np.random.default_rng(0).uniform(0.1, 1.0, (2, 2)), np.full((2, 2), 0.5)]
    found = solve_batch(batch(fields, device), torch.ones(3).double().to(device), grid, scheme)
    for k, field in enumerate(fields):
        np.testing.assert_allclose(found.pressure[k].cpu(), oracle.solve(field, scheme=scheme), rtol=1e-9)


def test_says_how_far_it_got_at_high_contrast():
    fields = batch([FAMILIES["channels 1e4"](0, GRID)], "cpu")
    found = solve_batch(fields, torch.ones(1, dtype=torch.float64), GRID, tolerance=1e-13)
    left = DARCY.residual(
        {"permeability": fields[0].numpy(), "source": np.array(1.0)},
        {"pressure": found.pressure[0].numpy()},
        GRID,
    )["pressure"]
    assert found.residual[0].item() == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-2, abs=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_bound_is_violated_and_none_is_much_looser_than_the_compiled_one(family, device):
    for index in range(2):
        truth = Truth(field := FAMILIES[family](index, GRID))
        other = Truth(FAMILIES[family](index + 1, GRID)).exact
        cases = [answer for _, answer in answers(truth.exact, other, np.random.default_rng(index))]
        fields = batch([2.0 * field] * len(cases), device)
        source = torch.full((len(cases),), 2.0, dtype=torch.float64, device=device)
        found = bound_batch(fields, source, batch(cases, device), GRID)
        lower, upper, estimate = found.lower.cpu(), found.upper.cpu(), found.l2_estimate.cpu()
        for k, answer in enumerate(cases):
            true, in_l2, _ = truth.errors(answer)
            compiled = DARCY.error_bound(
                {"permeability": field, "source": np.array(1.0)}, {"pressure": answer}, GRID
            )
            assert lower[k] - 1e-11 <= true <= upper[k] + 1e-11
            # the compiled one has a multigrid step to tell how large the solution is; a hundredfold error is
            # as useless as a thousandfold one
            assert min(upper[k], 100.0) <= (1.05 if compiled.upper < 0.5 else 3.0) * compiled.upper
            if family in EASY:
                assert lower[k] >= 0.9 * min(true, 1.0) - 1e-11
                assert estimate[k] == pytest.approx(in_l2, rel=0.15)


def test_covers_rounding_and_knows_that_nothing_comes_from_nothing():
    field = FAMILIES["pdebench"](0, GRID)
    exact = Truth(field).exact
    fields, answer = batch([field, field, field], "cpu"), batch([exact, exact, 0 * exact], "cpu")
    source = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    found = bound_batch(fields, source, answer, GRID, rounding=2.0**-24)
    lower, upper = found.lower, found.upper
    assert Truth(field).errors(exact.astype(np.float32).astype(np.float64))[0] <= upper[0] < 1e-4
    assert (lower[1], upper[1], lower[2], upper[2]) == (np.inf, np.inf, 0.0, 0.0)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_known_where_float64_carries_nothing(device):
    """Where the other solver refuses: a unit of pressure, or a contrast, beyond float64."""
    field = FAMILIES["pdebench"](0, GRID)
    contrast = np.where(field < 0.5, 1e-310, 1.0)
    for permeability, source in ((field, 1e-316), (1e-200 * field, 1e200), (contrast, 1.0)):
        with pytest.raises(CannotSolve):
            DARCY.error_bound(
                {"permeability": permeability, "source": np.array(source)}, {"pressure": field}, GRID
            )
        fields = batch([permeability, field], device)
        sources = torch.tensor([source, 1.0], dtype=torch.float64, device=device)
        found = bound_batch(fields, sources, batch([field, field], device), GRID)
        sides = [found.lower[0].item(), found.upper[0].item(), found.l2_estimate[0].item()]
        assert sides == [0.0, np.inf, np.inf]
        assert np.isfinite(found.upper[1].item())
        assert solve_batch(fields[:1], sources[:1], GRID).residual[0].item() == np.inf


def test_a_wrong_shape_or_scheme_is_refused():
    fields, one = batch([np.ones(GRID.shape)], "cpu"), torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="unknown scheme box"):
        solve_batch(fields, one, GRID, "box")
    with pytest.raises(ValueError, match=r"the shape \[batch, 8, 8\], got \[1, 24, 24\]"):
        solve_batch(fields, one, Grid((8, 8)))
    with pytest.raises(ValueError, match="source must hold 1 numbers"):
        solve_batch(fields, torch.ones(2, dtype=torch.float64), GRID)
    with pytest.raises(ValueError, match="pressure must have the shape"):
        bound_batch(fields, one, fields[:, :3], GRID)
