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
        ("channels = 16", "chanels = 16", "operator.axial_mno.chanels"),
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


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("{ step = 0, blocks = 1 }, ", "", "sequence"),
        ("[{ step = 0, blocks = 1 }, { step = 3, blocks = 2 }]", "[]", "sequence"),
        ("step = 3", "step = 0", "sequence"),
        ("blocks = 2 }", "blocks = 0 }", "sequence.curriculum.1.blocks"),
        ("step = 3", "steps = 3", "sequence.curriculum.1.steps"),
        ("noise = 0.01", "noise = -0.01", "sequence.noise"),
        ("noise = 0.01", 'gradient = "none"', "sequence.gradient"),
        ("noise = 0.01", "frames_per_block = 0", "sequence.frames_per_block"),
        ("noise = 0.01", "first_frame = -1", "sequence.first_frame"),
        ("initial_share = 0.2", "initial_share = 1.0", "sequence.initial_share"),
        ("[sequence]", "[sequence]\nteacher = 1", "sequence.teacher"),
        ('walls = "outflow"', 'walls = "periodic"', "operator.walls is outflow, but the data's is periodic"),
        ("frames = 2\n", 'walls = "periodic"\n', "operator.walls is periodic, but the data's is outflow"),
        ("frames = 2\n", "frame_interval = 0.1\n", "operator.frame_interval is 0.1, but the data's is 0.01"),
        ("frames = 8", "frames = 3", "end at frame 4, but data.frames is 3"),
        ("noise = 0.01", "first_frame = 5", "end at frame 9, but data.frames is 8"),
        ("noise = 0.01", "normalize = true", "takes physical units: leave normalize out"),
        ("[log]", "[loss]\nenergy = 1.0\n\n[log]", "one loss: leave it out"),
        ('kind = "shallow_water_mno"', 'kind = "axial_mno"', "operator"),
        ("noise = 0.01", "normalize = true", "normalize"),
        ("noise = 0.01", "first_frame = 500", "sequence.curriculum"),
        ("blocks = 2 }", "blocks = 200 }", "sequence.curriculum"),
        ("frames = 2\n", "frames = 2\nframe_interval = 0.02\n", "operator.frame_interval"),
        ("frames = 2\n", 'frames = 2\nwalls = "reflecting"\n', "operator.walls"),
        ("[log]", "[loss]\nrelative_l2 = 1.0\n\n[log]", "[loss]"),
        ("frames = 2\n", 'scheme = "roe-mc-split-v1"\n', "operator.shallow_water_mno.scheme"),
    ],
)
def test_bad_evolution_runs_are_refused(evolution_text: str, old: str, new: str, place: str) -> None:
    assert old in evolution_text
    parse_run(evolution_text)
    with pytest.raises(InvalidRun) as caught:
        parse_run(evolution_text.replace(old, new))
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_evolution_problem_needs_a_sequence(evolution_text: str) -> None:
    start, end = evolution_text.index("[sequence]"), evolution_text.index("[log]")
    with pytest.raises(InvalidRun, match=r"needs a \[sequence\] section"):
        parse_run(evolution_text[:start] + evolution_text[end:])


def test_a_steady_problem_has_no_sequence(smoke_text: str) -> None:
    with pytest.raises(InvalidRun, match=r"darcy is steady: leave \[sequence\] out"):
        parse_run(smoke_text + "\n[sequence]\n")


def test_a_steady_problem_has_no_evolution_operator(smoke_text: str) -> None:
    first, last = (smoke_text.index(name) for name in ("[operator]", "[optimizer]"))
    operator = '[operator]\nkind = "one_shot"\nfields = 1\nwalls = "outflow"\nreference_spacing = 0.1\n\n'
    with pytest.raises(InvalidRun, match=r"operator\.kind one_shot: darcy is a steady problem"):
        parse_run(smoke_text[:first] + operator + smoke_text[last:])


def test_a_history_lies_within_the_trajectory(evolution_text: str) -> None:
    start, end = evolution_text.index("[operator]"), evolution_text.index("[optimizer]")
    operator = """[operator]
kind = "autoregressive"
fields = 3
walls = "outflow"
reference_spacing = 1.25
history = 3
frames = 2

"""
    text = evolution_text[:start] + operator + evolution_text[end:]
    with pytest.raises(
        InvalidRun, match="with a history of 3 frames the last given one is at least 2, got 0"
    ):
        parse_run(text)
    parse_run(text.replace("[sequence]", "[sequence]\nfirst_frame = 2"))


def test_curriculum_rises_by_its_steps(evolution_text: str) -> None:
    sequence = parse_run(evolution_text).sequence
    assert sequence is not None
    assert [sequence.blocks_at(step) for step in range(6)] == [1, 1, 1, 2, 2, 2]
    assert sequence.most_blocks == 2


def test_the_sequence_belongs_to_the_recipe(evolution_text: str) -> None:
    recipe = parse_run(evolution_text).training_recipe()
    assert parse_run(evolution_text.replace("noise = 0.01", "noise = 0.02")).training_recipe() != recipe
