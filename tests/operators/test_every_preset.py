"""What holds for every named operator, steady or in time: it learns, and its answers do not waver.

Each of them at a small size, which is its own configuration with fewer and narrower layers
(``small_preset``).
"""

import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from operators import AnySurrogate, EvolutionSurrogate, OperatorConfig, surrogate_from_config
from operators.presets import PRESETS, Task
from problems import STEADY_PROBLEMS, Grid

SIDE = 16
SAMPLES = 4
TASKS = {
    "steady": Task(spacing=1 / SIDE),
    "evolution": Task(fields=2, history=2, frames=3, walls="periodic", spacing=1 / SIDE),
}
EVERY = [(name, kind) for kind in TASKS for name in PRESETS]

# parameters on which no answer depends: with one expert a gate says 1, and what is added to all keys alike
# changes no softmax over them
ONE_EXPERT = r"\.gate\."
ADDED_TO_ALL_KEYS = r"\.project\.{}\.bias$"
UNLEARNABLE = {
    "gnot": ONE_EXPERT,
    "gnot_softmax": f"{ONE_EXPERT}|{ADDED_TO_ALL_KEYS.format('key')}",
    "mamba_gnot": ONE_EXPERT,
    "mamba_gnot_c4": ONE_EXPERT,
    # its keys are normed, which what the norm adds comes after
    "galerkin_softmax": ADDED_TO_ALL_KEYS.format(r"norms\.key"),
}
# of a gradient that is zero in float64, relative to the largest one
ROUNDING = 1e-13

# one recipe for all of them: AdamW with a warm-up and a decay of its rate, and clipped gradients. Most need
# a hundred steps or two; GNOT's tokens, which know nothing but where they lie, several hundred
RATE, WARM_UP, CLIP, STEPS = 5e-3, 0.1, 1.0, 1000
# relative error; what is the same for all samples, however good, is off by several times as much
LEARNT = 0.05
# those that are watched in every run of the tests
WATCHED = ("fno", "unet", "galerkin")
# in time only the heads of these are others than those that are steady
MARCHING = ("oformer",)

Small = Callable[[str, Task], OperatorConfig]


class Samples(NamedTuple):
    """Inputs and the answers to them [sample ...]."""

    given: Tensor
    wanted: Tensor


def flows() -> Samples:
    """Permeabilities of contrast 10, and the pressures of the reference solver [sample 1 y x]."""
    darcy, grid = STEADY_PROBLEMS["darcy"], Grid((SIDE, SIDE), (1.0, 1.0))
    parameters = {"contrast": 10.0, "correlation_length": 0.5}
    drawn = [darcy.sample("log_normal", parameters, 0, index, grid) for index in range(SAMPLES)]
    solved = [darcy.solve(fields, grid).fields["pressure"] for fields in drawn]
    given = np.stack([fields["permeability"] for fields in drawn])
    return Samples(
        *(torch.from_numpy(np.asarray(each)[:, None]).float() for each in (given, np.stack(solved)))
    )


def waves() -> Samples:
    """Waves that travel and decay on a torus, ``w_t + w_y + w_x = nu lap w`` [sample frame field y x]."""
    task, random = TASKS["evolution"], torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(2 * [(torch.arange(SIDE) + 0.5) / SIDE]), indexing="ij")
    times = torch.arange(task.history + task.frames)[:, None, None] / 10
    trajectories = torch.zeros(SAMPLES, task.fields, len(times), SIDE, SIDE)
    for ky, kx in ((1, 0), (0, 1), (1, 1)):
        size, phase = torch.rand(2, SAMPLES, task.fields, 1, 1, 1, generator=random)
        along = ky * (y - times) + kx * (x - times) + phase
        trajectories += size * torch.exp(-times * (ky**2 + kx**2)) * torch.sin(2 * math.pi * along)
    return Samples(*trajectories.transpose(1, 2).split((task.history, task.frames), dim=1))


@pytest.fixture(scope="module")
def samples() -> dict[str, Samples]:
    return {"steady": flows(), "evolution": waves()}


def built(config: OperatorConfig) -> AnySurrogate:
    torch.manual_seed(0)
    return surrogate_from_config(config)


def answer(surrogate: AnySurrogate, given: Tensor) -> Tensor:
    if isinstance(surrogate, EvolutionSurrogate):
        return surrogate(given, (1.0, 1.0))
    return surrogate(given, torch.ones(len(given)))


def relative_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over samples of ``|found - wanted| / |wanted|`` in L2."""
    return ((found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).mean()


def relative_error(surrogate: AnySurrogate, samples: Samples) -> Tensor:
    return relative_distance(answer(surrogate, samples.given), samples.wanted)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_step_of_training_moves_every_weight_that_can_learn(
    name: str, kind: str, small_preset: Small, samples: dict[str, Samples]
) -> None:
    surrogate = built(small_preset(name, TASKS[kind])).double().train()
    # in float64, where scans take long, every other cell is enough
    learnt = Samples(*(each[..., ::2, ::2].double() for each in samples[kind]))
    # without a decay, which would move them too
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=1e-3)
    before = {key: value.detach().clone() for key, value in surrogate.named_parameters()}
    loss = relative_error(surrogate, learnt)
    assert loss.isfinite()
    loss.backward()  # type: ignore[no-untyped-call]
    sizes = {}
    for key, value in surrogate.named_parameters():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        sizes[key] = value.grad.abs().max().item()
    still = {key for key, size in sizes.items() if size <= ROUNDING * max(sizes.values())}
    pattern = UNLEARNABLE.get(name)
    assert still == {key for key in sizes if pattern is not None and re.search(pattern, key)}
    optimizer.step()
    unmoved = [key for key, value in surrogate.named_parameters() if torch.equal(value, before[key])]
    assert set(unmoved) <= still
    assert relative_error(surrogate, learnt).isfinite()


def pace(name: str) -> pytest.MarkDecorator | list[pytest.MarkDecorator]:
    """What is watched all the time, what in CI, and what in neither: an ablation has the parts of others."""
    if name in WATCHED:
        return []
    return pytest.mark.long if name.endswith(("_softmax", "_c4")) else pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=pace(name))
        for name, kind in EVERY
        if kind == "steady" or name in (*WATCHED, *MARCHING)
    ],
)
def test_four_samples_are_learnt_by_heart(
    name: str, kind: str, small_preset: Small, samples: dict[str, Samples]
) -> None:
    surrogate = built(small_preset(name, TASKS[kind])).train()
    optimizer = torch.optim.AdamW(surrogate.parameters(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=STEPS, pct_start=WARM_UP, cycle_momentum=False
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        error = relative_error(surrogate, samples[kind])
        # with something to spare: the last step may have been a bad one
        if error < 0.8 * LEARNT:
            break
        error.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(surrogate.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    surrogate.eval()
    with torch.no_grad():
        assert relative_error(surrogate, samples[kind]) < LEARNT


@pytest.mark.parametrize("kind", TASKS)
def test_no_single_answer_would_count_as_learnt(kind: str, samples: dict[str, Samples]) -> None:
    wanted = samples[kind].wanted
    assert relative_distance(wanted.mean(0, keepdim=True).expand_as(wanted), wanted) > 4 * LEARNT


@pytest.mark.parametrize(("name", "kind"), EVERY)
@torch.no_grad()
def test_an_answer_is_the_same_again(
    name: str, kind: str, small_preset: Small, samples: dict[str, Samples]
) -> None:
    surrogate, given = built(small_preset(name, TASKS[kind])), samples[kind].given
    # what is dropped in training differs from pass to pass: what is seen below is not for want of it
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in surrogate.modules())
    surrogate.train()
    assert torch.equal(answer(surrogate, given), answer(surrogate, given)) != drops
    surrogate.eval()
    assert torch.equal(answer(surrogate, given), answer(surrogate, given))


def test_some_presets_drop_in_training(small_preset: Small) -> None:
    for name, kind in itertools.product(("oformer", "oformer_softmax", "mamba_oformer"), TASKS):
        modules = built(small_preset(name, TASKS[kind])).modules()
        assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules)


@pytest.mark.parametrize(("name", "kind"), EVERY)
@torch.no_grad()
def test_an_answer_does_not_depend_on_its_batch(
    name: str, kind: str, small_preset: Small, samples: dict[str, Samples]
) -> None:
    surrogate, given = built(small_preset(name, TASKS[kind])).eval(), samples[kind].given
    alone = answer(surrogate, given[1:2])
    # another size of batch is another order of summation
    tolerance = 1e-5 * alone.abs().max().item()
    torch.testing.assert_close(answer(surrogate, given)[1:2], alone, rtol=0, atol=tolerance)
    spoilt = given.clone()
    spoilt[0], spoilt[2] = float("nan"), spoilt[2].exp()
    torch.testing.assert_close(answer(surrogate, spoilt)[1:2], alone, rtol=0, atol=tolerance)
