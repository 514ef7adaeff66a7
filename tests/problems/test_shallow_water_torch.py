"""The batched schemes against the compiled kernels."""

import itertools

import numpy as np
import pytest
import torch

from problems import EVOLUTION_PROBLEMS, CannotSolve, Grid
from problems.shallow_water_torch import frames

PROBLEM = EVOLUTION_PROBLEMS["shallow_water"]
NAMES = [spec.name for spec in PROBLEM.outputs]
# small cells: samples need two steps a frame or three
GRID = Grid((40, 48), (0.5, 0.6), (-0.25, -0.3))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def samples():
    states = [PROBLEM.sample(family, {}, 3, 1, GRID) for family in ("dams", "bumps", "momentum", "pdebench")]
    # a sample with shallow ground and fast water, which needs more steps
    states[3]["h"][:12] = 0.05
    states[3]["hu"][20:] = 1.5
    return states


def stack(states):
    return torch.tensor(np.stack([[state[name] for name in NAMES] for state in states]))


def march(state, count, *options):
    return next(itertools.islice(frames(state, GRID, *options), count - 1, None))


@pytest.mark.parametrize("scheme", PROBLEM.schemes)
@pytest.mark.parametrize("walls", PROBLEM.walls)
def test_agrees_with_the_compiled_kernels(scheme, walls, device):
    states = samples()
    expected = [
        next(itertools.islice(PROBLEM.frames(state, GRID, scheme, walls, 3), 14, None)) for state in states
    ]
    found = march(stack(states).to(device), 15, scheme, walls, 3)
    np.testing.assert_allclose(found.cpu(), stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", PROBLEM.schemes)
def test_single_precision_stays_close(scheme, device):
    batch = stack(samples()[:3]).to(device)
    single = march(batch.float(), 15, scheme)
    assert single.dtype == torch.float32
    assert (single.double() - march(batch, 15, scheme)).abs().max() < 2e-5


@pytest.mark.parametrize("scheme", PROBLEM.schemes)
def test_a_sample_does_not_depend_on_its_batch(scheme):
    batch = stack(samples())
    together, alone = march(batch, 6, scheme), march(batch[:1].clone(), 6, scheme)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=0)


def test_the_state_is_left_alone():
    batch = stack(samples())
    copy = batch.clone()
    march(batch, 2)
    torch.testing.assert_close(batch, copy, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((2, 3, 40, 48), ("upwind",), "unknown scheme upwind"),
        ((2, 3, 40, 48), ("hllc-muscl-v1", "glass"), "unknown walls glass"),
        ((2, 1, 40, 48), (), r"has the shape \[batch, 3, 40, 48\]"),
        ((3, 40, 48), (), r"got \[3, 40, 48\]"),
    ],
)
def test_bad_requests_are_refused(shape, options, match):
    with pytest.raises(ValueError, match=match):
        frames(torch.ones(shape), GRID, *options)


@pytest.mark.parametrize("value", [1e7, float("nan")])
def test_waves_that_are_too_fast_are_refused(value):
    batch = stack(samples())
    batch[2, 1, 5, 6] = value
    with pytest.raises(CannotSolve, match="hllc-muscl-v1 cannot go on"):
        march(batch, 1)
