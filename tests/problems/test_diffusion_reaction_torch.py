"""The solver for batches against the compiled one."""

from itertools import islice

import numpy as np
import pytest
import torch

from problems import Grid
from problems import diffusion_reaction_strang as strang
from problems import diffusion_reaction_torch as batched
from problems.diffusion_reaction import DiffusionReaction

PROBLEM = DiffusionReaction()
GRID = Grid((20, 28), (0.5, 0.6))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def states(count=3, scale=1.0):
    rng = np.random.default_rng(1)
    return torch.from_numpy(scale * rng.standard_normal((count, 2, *GRID.shape)))


def compiled(state, scheme, count, start=0):
    frames = PROBLEM.frames(dict(zip("uv", state.numpy(), strict=True)), GRID, scheme, start=start)
    return np.stack([[frame["u"], frame["v"]] for frame in islice(frames, count)])


def run(state, scheme, count, start=0):
    return torch.stack(list(islice(batched.frames(state, GRID, scheme, start), count)), dim=1)


@pytest.fixture(autouse=True)
def _device_at_hand(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("scheme", "limit"), [("fv5-rk4-v1", 1e-12), ("fv5-strang-v1", 1e-5)])
@pytest.mark.parametrize(("start", "scale"), [(0, 1.0), (12, 0.3)])
def test_agrees_with_the_compiled_solver(scheme, limit, start, scale, device):
    initial = states(scale=scale)
    found = run(initial.to(device), scheme, 6, start).cpu().numpy()
    for sample, state in zip(found, initial, strict=True):
        np.testing.assert_allclose(sample, compiled(state, scheme, 6, start), rtol=0, atol=limit)


def test_splitting_is_the_same_scheme_to_rounding():
    """The compiled kernel in double precision, a Bessel function against cosines."""
    initial = states(1)
    count = strang.steps(0, GRID, 0.0, 0.0)
    u, v = strang.split(*initial[0].numpy(), GRID, 0.05 / count, count, precision=np.float64)
    found = run(initial, "fv5-strang-v1", 1)[0, 0].numpy()
    np.testing.assert_allclose(found, np.stack([u, v]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", PROBLEM.schemes)
def test_single_precision_is_kept_and_enough(scheme, device):
    initial = states()
    found = run(initial.to(device, torch.float32), scheme, 10)
    assert found.dtype == torch.float32
    expected = run(initial, scheme, 10)
    assert float((found.cpu() - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("scheme", PROBLEM.schemes)
def test_a_sample_does_not_depend_on_its_batch(scheme):
    """Calm ones between wild ones, which take several times as many steps."""
    initial = states(5) * torch.tensor([0.3, 4.0, 0.2, 4.0, 6.0])[:, None, None, None]
    counts = [
        PROBLEM.cell_steps(dict(zip("uv", state.numpy(), strict=True)), GRID, scheme, 20) for state in initial
    ]
    assert min(counts[1], counts[3]) > max(counts[0], counts[2])
    together = run(initial, scheme, 2, start=20)
    alone = torch.cat([run(state[None], scheme, 2, start=20) for state in initial])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-13)
    for found, state in zip(together, initial, strict=True):
        np.testing.assert_allclose(found, compiled(state, scheme, 2, 20), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", PROBLEM.schemes)
def test_a_trajectory_can_be_continued(scheme):
    whole = run(states(), scheme, 5)
    assert torch.equal(run(whole[:, 2], scheme, 2, start=3), whole[:, 3:])


def test_the_state_is_left_alone():
    initial = states()
    before = initial.clone()
    run(initial, "fv5-strang-v1", 1)
    assert torch.equal(initial, before)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown scheme nonsense, expected one of fv5-rk4-v1"):
        batched.frames(states(), GRID, "nonsense")
    with pytest.raises(ValueError, match=r"shape \[batch, 2, 20, 28\].*got \[3, 1, 20, 28\]"):
        batched.frames(states()[:, :1], GRID, "fv5-rk4-v1")
