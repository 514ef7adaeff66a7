"""Comparison files: what is refused, and what an operator's section means."""

from pathlib import Path

import pytest

from training.comparison import story
from training.comparison.config import Comparison, InvalidComparison, merged, parse_comparison
from training.comparison.costs import Cost
from training.comparison.rows import Entry, Row, Spectrum, read_record, write_record
from training.config import parse_run

TEXT = (Path(__file__).parent / "tiny.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('preset = "fno"', 'preset = "nobody"', "expected one of mno, gnot"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "the seeds must differ"),
        ('name = "scanned"', 'name = "spectral"', "names of the operators must differ"),
        ("[search]", "[serch]", "serch"),
        ("learning_rates = [1e-9, 3e-3]", "learning_rates = [0.0]", "learning_rates"),
        ("[comparison]", "comparison", "expected TOML"),
    ],
)
def test_bad_files_are_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidComparison, match=said):
        parse_comparison(TEXT.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("layers = 1", "layers = 7", "the preset has 6, got 7"),
        ('preset = "unet"', 'preset = "unet"\nlayers = 1', "only stacks of mixers have them"),
        ('preset = "unet"', 'preset = "unet"\nmixer = { states = 1 }', "trunk has no mixers"),
        ("levels = 2", "depth = 2", "depth"),
        ("frames = 3", "frames = 9", "end at frame 10, but data.frames is 5"),
    ],
)
def test_operators_that_do_not_fit_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    comparison = parse_comparison(TEXT.replace("DIRECTORY", str(tmp_path)).replace(old, new, 1))
    with pytest.raises(InvalidComparison, match=said):
        story._wanted(comparison, "*")


def test_changes_go_into_the_inner_tables() -> None:
    base = {"a": 1, "inner": {"b": 2, "c": 3}}
    assert merged(base, {"inner": {"c": 4}, "d": 5}) == {"a": 1, "inner": {"b": 2, "c": 4}, "d": 5}
    assert base["inner"] == {"b": 2, "c": 3}


def test_a_row_that_blew_up_is_read_back(tmp_path: Path) -> None:
    lost = float("inf")
    spectrum = Spectrum(wavenumber=(1.0,), reference=(2.0,), error=(lost,))
    row = Row(
        operator="spectral",
        problem="flow",
        seed=0,
        learning_rate=1e-3,
        parameters=1,
        metric="relative_l2",
        error=lost,
        errors={"binary": {"relative_l2_mean": lost}},
        by_frame=(1.0, lost),
        elsewhere={"8x8": lost},
        spectrum=spectrum,
        recipe="r",
        code="",
        machine="",
    )
    write_record(tmp_path / "row.json", row)
    assert read_record(tmp_path / "row.json", Row, "r") == row
    with pytest.raises(InvalidComparison, match="was made from another comparison file"):
        read_record(tmp_path / "row.json", Row, "other")
    assert read_record(tmp_path / "nothing.json", Row, "r") is None


def test_a_row_depends_on_where_else_it_is_tested(tmp_path: Path) -> None:
    text = TEXT.replace("DIRECTORY", str(tmp_path))
    # grids of the first problem alone
    found, changed = (
        parse_comparison(each) for each in (text, text.replace("grids = [[24, 24], [18, 18]]", "grids = []"))
    )

    def recipes(of: Comparison, trial: bool) -> list[str]:
        return [Entry(of, of.operators[0], problem, 0, 1e-3, trial).recipe for problem in of.problems]

    assert [a == b for a, b in zip(recipes(found, False), recipes(changed, False), strict=True)] == [
        False,
        True,
    ]
    assert recipes(found, True) == recipes(changed, True)


def test_costs_of_other_operators_are_measured_anew(tmp_path: Path) -> None:
    comparison = parse_comparison(TEXT.replace("DIRECTORY", str(tmp_path)))
    problem = comparison.problems[0]
    path = story._cost_path(comparison, problem)
    cost = Cost(
        operator="other",
        problem=problem.name,
        grid=(16, 16),
        parameters=1,
        flops=1,
        activations=1,
        forward=1.0,
        device="cpu",
    )
    path.parent.mkdir(parents=True)
    write_record(path, story.CostTable(recipe="of another file", costs=(cost,)))
    assert story._costs(comparison, problem) == ()
    write_record(path, story.CostTable(recipe=story._cost_hash(comparison, problem), costs=(cost,)))
    assert story._costs(comparison, problem) == (cost,)


@pytest.mark.parametrize("problem", [0, 1])
def test_rows_have_the_files_of_their_runs(problem: int) -> None:
    comparison = parse_comparison(TEXT)
    entry = Entry(comparison, comparison.operators[1], comparison.problems[problem], 1, 1e-3)
    assert entry.name == ("flow/scanned/seed_1", "dams/scanned/seed_1")[problem]
    # what a checkpoint holds, and `mno train` reads
    read = parse_run(entry.text)
    assert read.training_recipe() == entry.run.training_recipe()
    assert read.optimizer.learning_rate == 1e-3
    assert (read.sequence and read.sequence.first_frame) == (None, 1)[problem]
