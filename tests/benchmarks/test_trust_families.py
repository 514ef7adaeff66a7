"""What ``mno bench trust`` says of flags on rollouts: by hand, and by a service that is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from service_thread import running_service

from benchmarks.trust import bench_trust
from benchmarks.trust_families import OTHERS, Tally, limits, lines, other_files, tally
from benchmarks.trust_rollouts import Rollouts, fresh_files, joined, roll
from model_store import builtin_store, open_store
from problems import EVOLUTION_PROBLEMS, Grid
from service.client import Client
from service.novelty import Novelty
from service.settings import Settings
from tests.training.conftest import EVOLUTION_SMOKE, SilentProgress, in_directory, torch_settings
from training.config import parse_run
from training.generate import generate
from training.progress import silent
from training.run import execute
from training.trajectories import open_trajectories

KNOWN, NEW = Novelty(in_distribution=True), Novelty(in_distribution=False)


def test_rollouts_are_tallied_by_hand() -> None:
    # frames by rollouts; the limits are 1 and 2
    errors = np.array([[0.5, 1.5, 0.5, np.inf, 0.9], [1.9, 1.0, 2.5, 9.0, 2.0]])
    scores = np.array([[0.1, 0.99, 0.2, 0.98, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    rolled = Rollouts(errors, (KNOWN, NEW, KNOWN, NEW, NEW), scores)
    expected = Tally(rollouts=5, bad=3, caught=2, alarms=1, by_features=2, bad_frames=4, caught_frames=3)
    assert tally(rolled, np.array([1.0, 2.0])) == expected
    # a horizon without a limit is not judged
    assert tally(rolled, np.array([1.0])).bad_frames == 2


def test_rollouts_of_several_files_are_joined_at_common_horizons() -> None:
    first = Rollouts(np.array([[1.0], [2.0], [3.0]]), (KNOWN,), np.array([[0.1], [0.2]]))
    second = Rollouts(np.array([[4.0], [5.0]]), (NEW,), np.array([[0.3]]))
    both = joined([first, second])
    np.testing.assert_array_equal(both.errors, [[1.0, 4.0], [2.0, 5.0]])
    np.testing.assert_array_equal(both.scores, [[0.1, 0.3]])
    assert both.novelty == (KNOWN, NEW)


def test_lines_add_the_families_up() -> None:
    good = Rollouts(np.array([[0.1, 0.2]]), (KNOWN, NEW), np.array([[0.5, 0.995]]))
    bad = Rollouts(np.array([[3.0, 4.0]]), (KNOWN, NEW), np.array([[0.5, 0.6]]))
    first, *_, last = lines(good, {"a": good, "b": bad}, np.array([1.0]))
    assert first.strip() == (
        "as learnt from   median error of the last frame 0.15, worst frame over its limit 0.15; 0 of 2 bad, "
        "of which 0 flagged; of the others 1; by features alone 1"
    )
    assert last.strip() == (
        "all others: 1 of 2 bad rollouts are flagged, with 1 of 2 bad frames; of the 2 others 1"
    )


@pytest.mark.parametrize("problem", EVOLUTION_PROBLEMS)
def test_what_the_built_in_models_have_learnt_from_is_not_among_the_others(problem: str) -> None:
    store = builtin_store()
    run = parse_run(store.card(problem, store.resolve(f"{problem}@production").version).run)
    learnt = {(family.family, tuple(family.parameters)) for family in run.data.families if family.train}
    others = OTHERS[problem]
    assert len(others) >= 8
    assert not learnt & {(family.family, tuple(family.parameters)) for family in others}
    files = other_files(run, 2, Path("kept"))
    assert len(files) == len(others)
    for recipe in (file.recipe for file in files.values()):
        assert (recipe.count, recipe.scheme, recipe.grid) == (2, run.data.scheme, run.data.grid)
        state = recipe.draw(EVOLUTION_PROBLEMS[problem], 0, Grid((16, 16), recipe.extent, (-1.0, -1.0)))
        assert all(np.isfinite(field).all() for field in state.values())


@pytest.mark.slow
def test_rollouts_are_judged_as_a_service_judges_them(tmp_path: Path) -> None:
    """Two lines of the table once more, from what a service answers."""
    text = in_directory(EVOLUTION_SMOKE, tmp_path).replace("train = 4", "train = 4\ncalibration = 19")
    run = parse_run(f'{text}\n[publish]\nmodel = "dams"\n')
    url, kept = f"file:{tmp_path}/models", tmp_path / "trust"
    with torch_settings():
        execute(run, text, SilentProgress(), resume=False, store=url)
        options = ["--model", "dams@1", "--store", url, "--samples", "2", "--others", "3"]
        result = CliRunner().invoke(bench_trust, [*options, "--data", str(kept)])
    assert result.exit_code == 0, result.output
    table = result.output.splitlines()[-1 - len(OTHERS["shallow_water"]) : -1]
    version = open_store(url).load("dams", 1)
    assert version.calibration is not None
    # of 19 samples all are within the quantile of 95 %
    np.testing.assert_array_equal(
        limits(version.calibration, "perturbation_l2"),
        2 * version.calibration.scores["perturbation_l2"][:, -1].astype(float),
    )
    limit = 2 * version.calibration.scores["perturbation_l2"][:, -1]
    files = other_files(run, 3, kept / "dams@1")
    seen = set()
    with served(url) as address, Client(address) as client:
        for name in ("deep_dams", "smooth_surface"):
            (line,) = (line for line in table if line.split()[0] == name)
            with open_trajectories(files[name].path) as data:
                flags, errors = zip(*(asked(client, data.read(index)) for index in range(3)), strict=True)
            flagged, bad = np.array(flags), (np.array(errors) > limit).any(axis=1)
            assert f"{bad.sum()} of 3 bad, of which {(bad & flagged).sum()} flagged; " in line
            assert f"of the others {(~bad & flagged).sum()};" in line
            seen |= set(flags)
    assert True in seen


@contextmanager
def served(store: str) -> Iterator[str]:
    """The address of a service of the model ``dams``."""
    settings = Settings(store=store, models=("dams",), threads=1, device="cpu")
    with torch_settings(), running_service(settings) as (addresses, _):
        yield addresses.http


def asked(client: Client, states: NDArray[np.float32]) -> tuple[bool, NDArray[np.float64]]:
    """Whether a service flags the first of some states, and how wrong it is about the depth of the others."""
    frames = list(client.rollout("shallow_water", states[0], steps=len(states) - 1, model="dams@1"))
    depth, true_depth = np.stack([frame.fields["h"] for frame in frames]), states[1:, 0].astype(float)
    errors = np.linalg.norm(depth - true_depth, axis=(1, 2)) / np.linalg.norm(true_depth - 1, axis=(1, 2))
    return not frames[0].in_distribution, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "bad"),
    [
        ("shallow_water", ("small_dams", "deep_dams", "short_waves")),
        ("diffusion_reaction", ("strong_noise", "fine_stripes")),
    ],
)
def test_the_built_in_models_flag_kinds_that_they_have_not_learnt(
    problem: str, bad: tuple[str, ...], tmp_path: Path
) -> None:
    """Of coarser labels, and of a block's length: the flag is that of the initial state."""
    store = builtin_store()
    version = store.load(problem, store.resolve(f"{problem}@production").version)
    assert version.calibration is not None
    run = parse_run(version.card.run)
    # a block after the first given frame
    frames = version.card.first_frame + 10
    data = run.data.model_copy(update={"label_grid": (256, 256), "frames": frames, "workers": 1})
    files = other_files(run.model_copy(update={"data": data}), 3, tmp_path)
    learnt = [
        file._replace(recipe=file.recipe.model_copy(update={"label_grid": (256, 256), "frames": frames}))
        for file in fresh_files(version, 16, tmp_path)
    ]
    with torch_settings():
        generate([*learnt, *(files[name] for name in bad)], 1, silent)
        known = roll(version, version.calibration, learnt)
        foreign = roll(version, version.calibration, [files[name] for name in bad])
    assert not any(each.in_distribution for each in foreign.novelty)
    # of 16 at one in ten, 6 are a case of less than one in a hundred
    assert sum(not each.in_distribution for each in known.novelty) < 6
