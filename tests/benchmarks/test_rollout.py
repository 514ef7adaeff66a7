"""``mno bench rollout`` times a model and its reference solver from the same states on."""

import re
from itertools import islice

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.cpu_time import cpu_seconds, seconds
from benchmarks.rollout import FAMILY, Rollout, bench_rollout
from tests.benchmarks.small_water import GRID, SHAPE, WATER, publish_small_water

NUMBER = r" +(\d+\.\d{3})"


def bench(store, *arguments):
    return CliRunner().invoke(
        bench_rollout, ["--model", "shallow_water@1", "--store", store, "--repeats", "2", *arguments]
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return publish_small_water(tmp_path_factory.mktemp("store"))


def test_every_batch_has_cpu_and_wall_seconds_of_both(store):
    result = bench(store, "--batches", "1,3", "--frames", "3", "--first-frame", "2")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("shallow_water@1 at 12x16, 3 frames after frame 2, ")
    assert "brought to frame 2 by hllc-muscl-v1" in lines[0]
    assert lines[1].startswith("seconds per trajectory")
    assert re.split("  +", lines[2].strip()) == [
        "batch",
        "model CPU",
        "model wall",
        "solver CPU",
        "solver wall",
    ]
    assert [re.fullmatch(rf" +(\d+){4 * NUMBER}", line)[1] for line in lines[3:]] == ["1", "3"]


def test_trajectories_start_at_the_first_frame_of_the_solver():
    begin, later = (Rollout(WATER, GRID, WATER.schemes[0], "periodic", first, 1) for first in (0, 3))
    states = begin.initial_states(2)
    assert states.shape == (2, 3, *SHAPE)
    for index, (initial, found) in enumerate(zip(states, later.initial_states(2), strict=True)):
        sample = WATER.sample(FAMILY, {}, 0, index, GRID)
        np.testing.assert_array_equal(initial, np.stack(list(sample.values())).astype(np.float32))
        *_, last = islice(WATER.frames(sample, GRID, walls="periodic"), 3)
        np.testing.assert_array_equal(found, np.stack(list(last.values())).astype(np.float32))


@pytest.mark.parametrize("option", ["--first-frame=-1", "--frames=0", "--repeats=0"])
def test_bad_options_are_refused(store, option):
    result = bench(store, option)
    assert result.exit_code == 2
    assert "is not in the range" in result.output


def test_a_steady_model_is_refused():
    result = CliRunner().invoke(bench_rollout, ["--model", "darcy@production"])
    assert result.exit_code == 2
    assert "is a steady model: expected an evolution one" in result.output


def test_seconds_are_those_of_the_call():
    calls = []
    cpu, wall = seconds(lambda: calls.append(sum(range(100_000))))
    assert len(calls) == 1
    assert cpu > 0
    assert wall > 0
    assert cpu_seconds(lambda: sum(range(100_000))) > 0
