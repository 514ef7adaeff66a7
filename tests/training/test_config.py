"""A run file is strict: unknown names and unusable values are refused."""

from pathlib import Path

import pytest

import training
from training.config import InvalidRun, parse_run

RUNS = sorted((Path(training.__file__).parent / "runs").glob("*.toml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_files_of_the_package_are_valid(path: Path) -> None:
    run = parse_run(path.read_text())
    assert run.run.name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("[optimizer]", "[optimizer]\nmomentum = 0.9", "optimizer.momentum"),
        ("[run]", "[unknown]\n[run]", "unknown"),
        ("channels = 16", "chanels = 16", "operator.chanels"),
        ("batch_size = 8\nema", "batch_size = 0\nema", "optimizer.batch_size"),
        ("learning_rate = 2e-3", "learning_rate = -1.0", "optimizer.learning_rate"),
        ("warmup_steps = 2", "warmup_steps = 12", "optimizer"),
        ("ema_decay = 0.9", "ema_decay = 1.0", "optimizer.ema_decay"),
        ("[2.0, 100.0]", "[100.0, 2.0]", "contrast"),
        ("[2.0, 100.0]", "[0.0, 100.0]", "contrast"),
        ("relative_l2 = 1.0\nenergy = 0.1", "relative_l2 = 0.0\nenergy = 0.0", "loss"),
        ("pdebench.relative_l2_median = 2.0", "sw.relative_l2_median = 2.0", "acceptance"),
        ("pdebench.relative_l2_median = 2.0", "pdebench.l2 = 2.0", "acceptance"),
        ('name = "log_normal"', 'name = "pdebench"', "names of the families"),
        ("train = 24", "train = -24", "train"),
        ('scheme = "tpfa-harmonic-v1"', 'scheme = "pdebench-ghost0-v1"', "scheme"),
        ("[run]", "run = ", "TOML"),
    ],
)
def test_bad_run_files_are_refused_in_one_line(smoke_text: str, old: str, new: str, place: str) -> None:
    assert old in smoke_text
    with pytest.raises(InvalidRun) as caught:
        parse_run(smoke_text.replace(old, new))
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe_ignores_what_does_not_change_the_weights(smoke_text: str) -> None:
    elsewhere = smoke_text.replace("workers = 1", "workers = 2").replace("threads = 1", "threads = 2")
    otherwise = smoke_text.replace("steps = 12", "steps = 13")
    recipe = parse_run(smoke_text).training_recipe()
    assert parse_run(elsewhere).training_recipe() == recipe
    assert parse_run(otherwise).training_recipe() != recipe
