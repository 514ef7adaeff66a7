"""What operators cost, against counts by hand."""

from typing import Any

import pytest
import torch

from training.comparison.config import parse_comparison
from training.comparison.costs import Cost, _medians, measure_costs
from training.comparison.rows import Entry

TEXT = """
[comparison]
name = "costs"
directory = "never_written"
seeds = [0]
device = "cpu"

[search]
learning_rates = [1e-3]
steps = 2

[[operators]]
name = "spectral"
preset = "fno"
trunk = { channels = 4, modes = 2, layers = 1 }

[[operators]]
name = "convolved"
preset = "unet"
trunk = { channels = 8, levels = 2 }

[[problems]]
name = "flow"
budget = { steps = 2, batch_size = 2 }

[problems.data]
directory = "never_written"
problem = "darcy"
grid = [16, 16]
scheme = "tpfa-harmonic-v1"

[[problems.data.families]]
name = "binary"
family = "pdebench"
train = 2
validation = 1
test = 1

[[problems]]
name = "dams"
history = 2
frames = 3
budget = { steps = 2, batch_size = 2 }

[problems.data]
directory = "never_written"
problem = "shallow_water"
grid = [16, 16]
extent = [5.0, 5.0]
frames = 4
scheme = "hllc-muscl-v1"
walls = "outflow"

[[problems.data.families]]
name = "dams"
family = "dams"
train = 2
validation = 1
test = 1
"""
COMPARISON = parse_comparison(TEXT)
FLOAT = 4
CELLS = 16 * 16
# of the spectral operator with 4 channels and 2 x 2 frequencies: both transforms (log2 256 = 8), the two
# corners, the linear map beside them and the head's first layer
CORE = 2 * 2.5 * 4 * CELLS * 8 + 2 * 4 * 8 * 4 * 4 + 2 * 2 * CELLS * 4 * 4


def entries(problem: int) -> list[Entry]:
    return [
        Entry(COMPARISON, operator, COMPARISON.problems[problem], 0, 1e-3)
        for operator in COMPARISON.operators
    ]


def by_place(costs: list[Cost]) -> dict[tuple[str, int], Cost]:
    return {(cost.operator, cost.grid[0]): cost for cost in costs}


def test_every_number_of_a_steady_problem(silent: Any) -> None:
    seen: list[int] = []
    grids = [(24, 24), (18, 18)]
    costs = measure_costs(entries(0), grids, rounds=2, progress=silent(costs=seen.append))
    found = by_place(costs)
    # 18 cells cannot be halved twice
    assert list(found) == [("spectral", n) for n in (16, 24, 18)] + [("convolved", n) for n in (16, 24)]
    # 2 operators, 2 rounds
    assert seen == [1, 2, 3, 4]
    own, denser = found["spectral", 16], found["spectral", 24]
    assert own.problem == "flow"
    # lift, two corners of complex matrices, the linear map beside them, head
    assert own.parameters == denser.parameters == 16 + 2 * 2 * 2 * 4 * 4 * 2 + 20 + 20 + 5
    assert own.flops == CORE + 2 * CELLS * (3 * 4 + 4 * 1)
    # what the four linear layers and the activation read, and some frequencies
    read = FLOAT * CELLS * (3 + 4 * 4)
    assert read < own.activations < read + 10_000
    assert 2.2 < denser.activations / own.activations < 2.3
    assert all(cost.forward > 0 and cost.peak is None and "1 thread" in cost.device for cost in costs)
    assert {place for place, cost in found.items() if cost.step is not None} == {
        ("spectral", 16),
        ("convolved", 16),
    }
    assert (own.step or 0) > 0


def test_a_problem_in_time_costs_its_frames(silent: Any) -> None:
    spectral, _ = measure_costs(entries(1), (), rounds=1, progress=silent())
    # 2 frames of 3 fields and the coordinates go in, 3 frames come out
    assert spectral.flops == CORE + 2 * CELLS * ((2 * 3 + 2) * 4 + 4 * 3 * 3)
    assert spectral.problem == "dams"
    assert (spectral.step or 0) > 0


def test_grids_that_would_take_too_much_are_left_out(silent: Any) -> None:
    spectral = entries(0)[:1]
    (own,) = measure_costs(spectral, (), rounds=1, progress=silent())
    # 2.25 times the cells fit, and 4 times the cells do not; the operator's own grid is no question
    grids, limit = [(24, 24), (32, 32)], 3 * own.activations
    some = measure_costs(spectral, grids, rounds=1, progress=silent(), limit=limit)
    assert [cost.grid for cost in some] == [(16, 16), (24, 24)]
    none = measure_costs(spectral, grids, rounds=1, progress=silent(), limit=0)
    assert [cost.grid for cost in none] == [(16, 16)]


def test_its_own_grid_is_measured_once(silent: Any) -> None:
    costs = measure_costs(entries(0)[:1], [(16, 16)], rounds=1, progress=silent())
    assert [cost.grid for cost in costs] == [(16, 16)]


def test_jobs_take_turns_after_each_has_run_once(silent: Any) -> None:
    done: list[str] = []
    jobs = [lambda: done.append("a"), lambda: done.append("b")]
    found = _medians(jobs, 3, torch.device("cpu"), silent()(None, 3, "costs"))
    assert "".join(done) == "ab" + 3 * "ab"
    assert len(found) == 2


@pytest.mark.gpu
def test_a_gpu_says_what_memory_a_step_takes(silent: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = COMPARISON.model_copy(
        update={"comparison": COMPARISON.comparison.model_copy(update={"device": "cuda"})}
    )
    entry = Entry(on_gpu, on_gpu.operators[0], on_gpu.problems[0], 0, 1e-3)
    (cost,) = measure_costs([entry], (), rounds=1, progress=silent())
    # weights, their average, gradients, two moments; and what two samples hold
    assert cost.peak is not None
    assert cost.peak > 5 * FLOAT * cost.parameters + 2 * cost.activations
