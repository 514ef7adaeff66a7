"""Reports of comparisons whose rows are made up, so that what they must say is known."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from training.comparison import figures
from training.comparison.config import Comparison
from training.comparison.costs import Cost
from training.comparison.facts import facts
from training.comparison.report import (
    count_table,
    error_cell,
    grid_table,
    main_table,
    progress,
    ranked,
    sample_table,
    spectrum_table,
    time_table,
    write_csv,
    write_report,
)
from training.comparison.results import Results, parsed_grid, results_of
from training.comparison.rows import Row, Spectrum

DARCY: dict[str, Any] = {
    "name": "darcy",
    "data": {
        "directory": "data/darcy",
        "grid": [16, 16],
        "scheme": "fv5-harmonic-v1",
        "families": [
            {"name": "smooth", "family": "log_normal", "train": 40, "validation": 8, "test": 12},
            {"name": "rough", "family": "thresholded", "test": 6},
        ],
    },
    "budget": {"steps": 100, "batch_size": 8, "warmup_steps": 10},
    "grids": [[8, 8], [32, 32]],
    "grid_samples": 4,
}
WATER: dict[str, Any] = {
    "name": "water",
    "data": {
        "directory": "data/water",
        "problem": "shallow_water",
        "grid": [16, 16],
        "label_grid": [64, 64],
        "frames": 12,
        "scheme": "hllc-muscl-v1",
        "families": [{"name": "wide", "family": "wide", "train": 20, "validation": 4, "test": 6}],
    },
    "budget": {"steps": 50, "batch_size": 4},
    "history": 2,
    "frames": 10,
}
# by hand: mean 2.1, sample standard deviation 0.1; mean 4, deviation 0.1; near the first one
ERRORS = {"fno": (0.020, 0.021, 0.022), "gnot": (0.039, 0.04, 0.041), "mno": (0.0205, 0.0212, 0.0225)}


def comparison(
    operators: Sequence[str] = ("mno", "gnot", "fno"),
    problems: Sequence[Mapping[str, Any]] = (DARCY,),
    seeds: Sequence[int] = (0, 1, 2),
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    **changes: Mapping[str, Any],
) -> Comparison:
    """A comparison; ``changes``: operator -> options that differ from its preset."""
    return Comparison.model_validate(
        {
            "comparison": {"name": "rematch", "directory": "runs/rematch", "seeds": list(seeds)},
            "search": {"learning_rates": list(rates), "steps": 30},
            "operators": [{"name": name, "preset": name, **changes.get(name, {})} for name in operators],
            "problems": list(problems),
        }
    )


def row(operator: str, seed: int | None, error: float, problem: str = "darcy", **changes: Any) -> Row:
    statistics = {
        "relative_l2_mean": error,
        "relative_l2_median": 0.9 * error,
        "relative_l2_max": 2.0 * error,
    }
    values: dict[str, Any] = {
        "operator": operator,
        "problem": problem,
        "seed": seed,
        "learning_rate": None if seed is None else 3e-3,
        "parameters": 0 if seed is None else 1000,
        "metric": "relative_l2",
        "error": error,
        "errors": {"smooth": statistics},
        "recipe": "0" * 64,
        "code": "abc1234",
        "machine": "two cores",
    }
    return Row(**(values | changes))


def cost(operator: str, grid: tuple[int, int] = (16, 16), problem: str = "darcy", **changes: Any) -> Cost:
    values: dict[str, Any] = {
        "operator": operator,
        "problem": problem,
        "grid": grid,
        "parameters": 1000,
        "flops": 2_500_000_000,
        "activations": 12_340_000,
        "forward": 0.002,
        "step": 0.03 if grid == (16, 16) else None,
        "device": "CPU, 1 thread",
    }
    return Cost(**(values | changes))


def all_rows() -> list[Row]:
    return [row(name, seed, error) for name, errors in ERRORS.items() for seed, error in enumerate(errors)]


def all_costs() -> list[Cost]:
    return [
        cost("fno", parameters=1_234_567),
        cost("gnot", forward=0.005, step=0.06, flops=500_000, activations=1_234_000_000),
        cost("mno", forward=0.003, step=0.024),
    ]


def one(rows: Sequence[Row], costs: Sequence[Cost] = (), of: Comparison | None = None) -> Results:
    return results_of(of or comparison(), rows, costs)[0]


def cells(table: str) -> dict[str, list[str]]:
    """First cell of each line of a table -> the others."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


def test_main_table() -> None:
    table = cells(main_table(one(all_rows(), all_costs())))
    assert table["operator"][0] == "parameters"
    # flops / 1e9, bytes / 1e6, times over the fastest one's: step 24 ms (mno), forward 2 ms (fno)
    assert table["**fno**"] == [
        "1,234,567",
        "2.5",
        "12.3",
        "1.25",
        "1.00",
        "0.003",
        "**2.10 ± 0.10**",
        # logarithms: mean -3.8640, standard deviation 0.04766, times 4.3027 / sqrt(3)
        "2.10 (1.86 to 2.36)",
        "best",
    ]
    assert table["gnot"][:7] == ["1,000", "0.0005", "1,230", "2.50", "2.50", "0.003", "4.00 ± 0.10"]
    assert table["**mno**"][:5] == ["1,000", "2.5", "12.3", "1.00", "1.50"]
    assert 0.05 < float(table["**mno**"][-1]) < 1.0
    # t is about 0.64 / 0.03 with some 3 degrees of freedom
    assert table["gnot"][-1] == "< 0.001"
    assert list(table) == ["operator", "---", "**fno**", "**mno**", "gnot"]


def test_baselines_stand_below_whatever_their_error() -> None:
    rows = [row("persistence", None, 0.9), row("look-up", None, 0.001), *all_rows()]
    table = cells(main_table(one(rows, all_costs())))
    assert list(table)[2:] == ["**fno**", "**mno**", "gnot", "*not trained*", "look-up", "persistence"]
    assert table["look-up"] == ["—"] * 6 + ["0.100", "—", "—"]
    assert table["persistence"][6] == "90.0"


def test_one_seed_marks_nothing() -> None:
    of = comparison(seeds=(0,))
    found = one([row(name, 0, errors[0]) for name, errors in ERRORS.items()], of=of)
    table = cells(main_table(found))
    assert list(table)[2:] == ["fno", "mno", "gnot"]
    assert [table[name][-1] for name in ("fno", "mno", "gnot")] == ["best", "—", "—"]
    assert table["gnot"][-3:] == ["3.90", "3.90", "—"]


def test_missing_rows_and_costs_are_named(tmp_path: Path) -> None:
    rows = [
        r for r in all_rows() if (r.operator, r.seed) not in {("fno", 1), ("fno", 2)} and r.operator != "mno"
    ]
    bare = {name: value for name, value in DARCY.items() if name != "grids"}
    of = comparison(problems=(bare, WATER))
    table = cells(main_table(one(rows, [cost("gnot")], of)))
    assert table["mno"] == ["missing"] * 8 + ["—"]
    assert table["fno"] == ["1,000", *["missing"] * 4, "0.003", "2.00 (1 of 3 seeds)", "2.00", "best"]
    assert list(table)[-1] == "mno"
    text = write_report(tmp_path, of, rows, [cost("gnot")], "mno compare x.toml").read_text()
    assert "**4 of 18 rows are there.**" in text
    assert "- darcy, fno: seeds 1, 2\n" in text
    assert "- darcy, mno: seeds 0, 1, 2\n" in text
    assert "- water, gnot: seeds 0, 1, 2\n" in text
    assert "- darcy, gnot" not in text
    assert "Fastest forward: gnot, 2 ms per sample." in text
    assert "Fastest training step: gnot, 30 ms for a batch of 8. Timed on CPU, 1 thread;" in text
    # water has no row
    assert "No row is there yet. Nothing is tested" in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["darcy_accuracy.png"]


def test_a_comparison_that_has_not_begun(tmp_path: Path) -> None:
    text = write_report(tmp_path / "report", comparison(), [], [], "mno compare x.toml").read_text()
    assert "Made by `mno compare x.toml`." in text
    assert "**0 of 9 rows are there.**" in text
    assert "## What this shows and what it does not" in text
    assert not list(tmp_path.rglob("*.png"))


def test_a_finished_one_says_so() -> None:
    assert progress([one(all_rows())]) == "All 9 rows are there."


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_diverged_row_is_shown_as_such(broken: float) -> None:
    rows = [row("fno", 0, 0.001), row("fno", 1, broken), *(r for r in all_rows() if r.operator != "fno")]
    found = one([*rows, row("look-up", None, math.inf)], all_costs())
    table = cells(main_table(found))
    assert table["fno"][-3:] == ["∞ with 1 of 2 seeds (2 of 3 seeds)", "∞", "—"]
    assert list(table)[2:5] == ["**mno**", "gnot", "fno"]
    assert table["look-up"][-3] == "∞"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((0.1234, 0.1234), "12.3 ± 0.0"),
        ((0.5, 1.5), "100 ± 71"),
        ((0.000123,), "0.0123"),
        ((0.0, 0.0), "0.00 ± 0.00"),
        ((math.inf,), "∞"),
        ((), "missing"),
    ],
)
def test_error_cells(errors: Sequence[float], expected: str) -> None:
    assert error_cell(errors, len(errors)) == expected


def test_sorted_by_the_geometric_mean() -> None:
    # arithmetic means 5 and 5.2, geometric means 5 and 3.2
    of = comparison(("fno", "mno"), seeds=(0, 1))
    rows = [row("fno", seed, 0.05) for seed in (0, 1)] + [row("mno", 0, 0.0102), row("mno", 1, 0.0938)]
    assert ranked(one(rows, of=of)) == ["mno", "fno"]


def test_statistics_over_samples() -> None:
    rows = [*all_rows()[:-1], row("mno", 2, math.inf, errors={}), row("look-up", None, 0.5)]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in sample_table(one(rows)).splitlines()
    ]
    # medians are 0.9, maxima twice the means; no 90 % was recorded, nor anything of the rough ones
    assert ["fno", "smooth", "1.89", "2.10", "—", "4.20"] in lines
    assert ["fno", "rough", "—", "—", "—", "—"] in lines
    assert ["mno", "smooth", "∞", "∞", "∞", "∞"] in lines
    assert ["look-up", "smooth", "45.0", "50.0", "—", "100"] in lines


def test_errors_on_other_grids() -> None:
    elsewhere = {
        "fno": {"8x8": 0.04, "32x32": 0.03},
        "gnot": {"8x8": None, "32x32": None},
        "mno": {"8x8": 0.5},
    }
    rows = [r.model_copy(update={"elsewhere": elsewhere[r.operator]}) for r in all_rows()]
    # who diverged did so for every grid
    rows += [row("unet", 0, 0.1, elsewhere={"8x8": 0.2}), row("unet", 1, math.inf)]
    found = one(rows, of=comparison(("mno", "gnot", "fno", "unet")))
    table = cells(grid_table(found))
    assert table["unet"] == [*["∞ with 1 of 2 seeds (2 of 3 seeds)"] * 2, "∞ (1 of 3 seeds)"]
    assert table["operator"] == ["8x8", "16x16, trained on", "32x32"]
    assert table["fno"] == ["4.00 ± 0.00", "2.10 ± 0.10", "3.00 ± 0.00"]
    assert table["gnot"] == ["—", "4.00 ± 0.10", "—"]
    assert table["mno"] == ["50.0 ± 0.0", "2.14 ± 0.10", "missing"]


def test_costs_against_the_size_of_the_grid() -> None:
    costs = [
        cost("fno", (8, 8), flops=10**9, forward=0.001),
        # four times the cells: 4^1.5 times the arithmetic
        cost("fno", (16, 16), flops=8 * 10**9, forward=0.002),
        cost("mno", (8, 8), flops=3 * 10**9, forward=0.004),
        cost("mno", (16, 16), flops=12 * 10**9, forward=0.0015),
        cost("gnot", (16, 16), flops=10**9, forward=0.003),
    ]
    found = one([], costs, comparison(("mno", "gnot", "fno", "unet")))
    table = cells(count_table(found, figures.GFLOP))
    assert table["fno"] == ["1", "8", "—", "1.50"]
    assert table["mno"] == ["3", "12", "—", "1.00"]
    assert table["gnot"] == ["—", "1", "—", "—"]
    assert table["unet"] == ["missing", "missing", "missing", "—"]
    times = cells(time_table(found))
    assert times["fno"] == ["1.00", "1.33", "—"]
    assert times["mno"] == ["4.00", "1.00", "—"]
    assert times["gnot"] == ["—", "2.00", "—"]
    assert times["unet"] == ["missing"] * 3
    assert times["the fastest takes [ms per sample]"] == ["1", "1.5", "—"]


def test_where_the_error_has_the_power_of_the_reference() -> None:
    spectra = [
        Spectrum(wavenumber=(0.5, 1.0, 2.0), reference=(8.0, 4.0, 0.0), error=error)
        for error in ((0.001, 0.02, 9.0), (0.001, 0.08, 9.0))
    ]
    # means over the seeds: 0.001 / 8, 0.05 / 4 >= 1 %; where there is no reference there is no share
    rows = [row("fno", seed, 0.1, spectrum=found) for seed, found in enumerate(spectra)]
    table = cells(spectrum_table(one([*rows, *(r for r in all_rows() if r.operator == "gnot")])))
    assert list(table) == ["operator", "---", "fno"]
    assert table["fno"] == ["1", "nowhere"]


def test_csv_has_the_numbers_to_the_last_bit(tmp_path: Path) -> None:
    third = 1.0 / 3.0
    rows = [
        row("fno", 0, third, by_frame=(0.1, 0.7), elsewhere={"8x8": None, "32x32": third / 7}, seconds=12.5),
        row("look-up", None, math.inf),
    ]
    write_csv(tmp_path, rows, all_costs())
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["operator"], first["seed"], first["metric"]) == ("fno", "0", "relative_l2")
    assert (second["seed"], second["learning_rate"]) == ("", "")
    assert float(first["error"]) == third
    assert float(first["smooth.relative_l2_max"]) == 2.0 * third
    assert [float(first[f"frame_{number}"]) for number in (1, 2)] == [0.1, 0.7]
    assert (first["elsewhere.8x8"], float(first["elsewhere.32x32"])) == ("", third / 7)
    assert (float(second["error"]), second["frame_1"]) == (math.inf, "")
    with (tmp_path / "costs.csv").open(newline="") as file:
        found = [
            Cost(
                grid=(int(line.pop("cells_y")), int(line.pop("cells_x"))),
                **{k: v or None for k, v in line.items()},
            )
            for line in csv.DictReader(file)
        ]
    assert found == all_costs()


def test_two_rows_of_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*fno.* got two"):
        one([row("fno", 0, 0.1), row("fno", 0, 0.2)])
    with pytest.raises(ValueError, match=r"expected one of .*16.* got two"):
        one([], [cost("fno"), cost("fno")])


def test_rows_of_others_are_left_out() -> None:
    rows = [*all_rows(), row("unet", 0, 1e-6), row("fno", 17, 1e-6), row("fno", 0, 1e-6, problem="water")]
    assert one(rows).errors == {name: list(errors) for name, errors in ERRORS.items()}


def test_names_of_grids() -> None:
    assert parsed_grid("48x64") == (48, 64)
    with pytest.raises(ValueError, match="expected a grid like 64x64, got 'small'"):
        parsed_grid("small")


def test_facts_come_from_the_file() -> None:
    of = comparison(
        problems=(DARCY, WATER), gnot={"trunk": {"channels": 32}, "layers": 2, "mixer": {"heads": 2}}
    )
    rows = [
        r.model_copy(update={"parameters": {"fno": 500, "gnot": 2000, "mno": 1000}[r.operator]})
        for r in all_rows()
    ]
    text = facts(of, results_of(of, rows, []))
    assert "3 seeds (0, 1, 2)" in text
    assert "Learning rates tried: 0.001, 0.003, 0.01, each for 30 steps" in text
    assert "darcy on 16x16 cells, scheme fv5-harmonic-v1;" in text
    assert (
        "40 training, 8 validation and 18 test samples of smooth (12 test samples), rough (6 test samples)"
        in text
    )
    # 100 steps of 8 samples of 40
    assert "100 steps of 8 samples (20 passes over the training data)" in text
    assert "averaged down from 64x64" in text
    assert "Training samples were turned and mirrored." in text
    assert "From 2 frames the next 10 are predicted in one call." in text
    assert "gnot: trunk.channels = 32, mixer.heads = 2, layers = 2. As in their presets: mno, fno." in text
    assert "on darcy from 500 (fno) to 2,000 (gnot), 4 times as many." in text
    # 2.776 sqrt(2/3), and at 5 % / 2: 3.495 sqrt(2/3)
    assert "2.3 standard deviations over seeds apart, and 2.9 at the strictest" in text
    assert "wider search" not in text
    assert "commits" not in text


def test_facts_that_weaken_a_comparison() -> None:
    rows = [
        row("fno", 0, math.inf, learning_rate=1e-2, parameters=0),
        row("mno", 0, 0.1, learning_rate=1e-3, code="def5678", machine="a GPU"),
        row("gnot", 0, 0.1),
    ]
    of = comparison(seeds=(0,))
    text = facts(of, results_of(of, rows, []))
    assert "largest or the smallest tried for mno on darcy (0.001), fno on darcy (0.01)." in text
    # one that diverged has no size
    assert "equal size" not in facts(of, results_of(of, rows[:2], []))
    assert "2 commits: abc1234, def5678" in text
    assert "2 machines: a GPU, two cores" in text
    assert "at least two seeds" in text
    assert "each was tried for a part of it" in text
    single = comparison(rates=(1e-3,))
    assert "tried for a part" not in facts(single, results_of(single, rows, []))
    assert "nothing was searched" in facts(single, results_of(single, rows, []))


def rich_rows(of: Comparison, problem: str) -> list[Row]:
    """Rows with all that a figure shows."""
    rng = np.random.default_rng(0)
    wavenumber = np.linspace(0.6, 7.5, 14)
    reference = 1e-2 * wavenumber**-4.0
    found = []
    for number, operator in enumerate(of.operators):
        for seed in of.comparison.seeds:
            error = 0.01 * 1.35**number * float(rng.lognormal(0.0, 0.08))
            share = np.minimum(2.0, error**2 * (wavenumber / 0.6) ** (2.0 + 0.1 * number))
            found.append(
                row(
                    operator.name,
                    seed,
                    error,
                    problem,
                    parameters=50_000 * (1 + number),
                    by_frame=tuple(error * (0.5 + 0.1 * np.arange(10))) if problem == "water" else (),
                    elsewhere={"8x8": 3.0 * error, "32x32": 1.5 * error if number % 4 else None},
                    spectrum=Spectrum(
                        wavenumber=tuple(wavenumber),
                        reference=tuple(reference),
                        error=tuple(share * reference),
                    ),
                )
            )
    return [*found, row("look-up", None, 0.35, problem), row("persistence", None, 0.9, problem)]


def rich_costs(of: Comparison, problem: str) -> list[Cost]:
    return [
        cost(
            operator.name,
            (side, side),
            problem,
            parameters=50_000 * (1 + number),
            flops=int(1e7 * (2 + number) * (side / 16) ** (2 + number % 3)),
            activations=int(1e5 * (1 + 3 * number) * (side / 16) ** 2),
            forward=1e-4 * (1 + (5 * number) % 7) * (side / 16) ** 2,
        )
        for number, operator in enumerate(of.operators)
        for side in (8, 16, 32)
    ]


def colors_in(path: Path) -> set[str]:
    pixels = np.rint(255.0 * matplotlib.image.imread(path)[..., :3]).astype(np.int64)
    return {f"#{color:06x}" for color in np.unique(pixels @ np.array([65536, 256, 1]))}


@pytest.mark.slow
def test_all_figures_are_written_and_linked(tmp_path: Path) -> None:
    of = comparison(problems=(DARCY, WATER))
    rows = [*rich_rows(of, "darcy"), *rich_rows(of, "water")]
    costs = [*rich_costs(of, "darcy"), *rich_costs(of, "water")]
    text = write_report(tmp_path, of, rows, costs, "mno compare x.toml").read_text()
    kinds = {"darcy": ("accuracy", "grids", "spectra"), "water": ("accuracy", "frames", "grids", "spectra")}
    expected = {f"{problem}_{kind}.png" for problem, found in kinds.items() for kind in found}
    assert {path.name for path in tmp_path.glob("*.png")} == expected
    assert all(f"({name})" in text for name in expected)
    drawn = {style.color for style in figures.styles(["mno", "gnot", "fno"]).values()}
    assert all(drawn < colors_in(tmp_path / name) for name in expected)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_accuracy_shows_mean_and_extremes_of_the_seeds() -> None:
    rows = [*all_rows(), row("look-up", None, 0.1), row("persistence", None, 0.9)]
    figure = figures.accuracy(one(rows, all_costs()))
    parameters, forward, memory = figure.axes
    assert [axes.get_xlabel().split(" ")[0] for axes in figure.axes] == ["parameters", "forward", "held"]
    assert legend(figure) == ["look-up", "mno", "gnot", "fno"]
    # in the order of the comparison: mno, gnot, fno
    for axes, x in ((parameters, 1_234_567), (forward, 2.0), (memory, 12.34)):
        point, _, (bar,) = axes.containers[2].lines
        assert (point.get_xdata()[0], point.get_ydata()[0]) == (pytest.approx(x), pytest.approx(0.021))
        np.testing.assert_allclose(bar.get_segments()[0][:, 1], [0.020, 0.022])
        assert axes.get_xscale() == axes.get_yscale() == "log"
    # what is far above the operators leaves them the room
    assert parameters.lines[-1].get_ydata()[0] == 0.1
    assert parameters.get_title(loc="left") == "far above: persistence (90 %)"
    assert parameters.get_ylim()[1] < 0.2


def test_accuracy_says_who_diverged() -> None:
    rows = [row("fno", 0, 0.1), row("fno", 1, math.inf), row("mno", 0, math.inf), row("gnot", 0, 0.2)]
    figure = figures.accuracy(one(rows, all_costs()))
    figure.canvas.draw()
    assert legend(figure) == ["mno (∞ in 1 of 1)", "gnot", "fno (∞ in 1 of 2)"]


def test_spectra_are_shares_of_the_reference() -> None:
    spectra = [
        Spectrum(wavenumber=(0.5, 1.0, 2.0), reference=(8.0, 4.0, 0.0), error=error)
        for error in ((0.2, 1.0, 3.0), (0.6, 1.0, 3.0))
    ]
    found = one([row("fno", seed, 0.1, spectrum=spectrum) for seed, spectrum in enumerate(spectra)])
    left, right = figures.spectra(found).axes
    np.testing.assert_allclose(left.lines[1].get_ydata(), [0.4, 1.0, 3.0])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.05, 0.25, np.nan])
    assert right.get_xlabel() == "wavenumber [cycles/m]"
    assert left.get_ylabel() == "power per mode, p² [Pa²]"
    # 16 cells a meter
    assert figures.nyquist(found) == 8.0


def test_grids_leave_out_what_an_operator_cannot() -> None:
    rows = [row("fno", 0, 0.02, elsewhere={"8x8": None, "32x32": 0.08})]
    costs = [cost("fno", (side, side), flops=side**2 * 10**6) for side in (8, 16, 32)]
    error, arithmetic, *_ = figures.grids(one(rows, costs)).axes
    np.testing.assert_allclose(error.lines[2].get_xydata(), [[16, 0.02], [32, 0.08]])
    np.testing.assert_allclose(arithmetic.lines[2].get_xydata(), [[8, 0.064], [16, 0.256], [32, 1.024]])


def test_frames_are_means_over_seeds() -> None:
    rows = [
        row("fno", seed, 0.1, by_frame=values) for seed, values in enumerate(((0.1, 0.2), (0.3, math.inf)))
    ]
    (axes,) = figures.frames(one(rows)).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 0.2], [2, np.nan]])


@pytest.mark.parametrize("high", [0.0201, 0.03, 0.0345, 0.2, 30.0])
def test_axes_have_labels_however_short_they_are(high: float) -> None:
    rows = [row("fno", 0, 0.02), row("mno", 0, high)]
    figure = figures.accuracy(one(rows, all_costs()))
    figure.canvas.draw()
    axes = figure.axes[0]
    low, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= top]
    labels = [text.get_text() for text in axes.get_yticklabels() if low <= text.get_position()[1] <= top]
    assert 3 <= len(ticks) <= 10
    # and not all at one end
    assert max(ticks) / min(ticks) >= (top / low) ** 0.5
    assert all(label.endswith(" %") for label in labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("draw", [figures.accuracy, figures.spectra, figures.grids, figures.frames])
@pytest.mark.parametrize(
    ("rows", "costs"),
    [
        ([], all_costs()),
        (all_rows(), []),
        ([row("fno", 0, math.inf, parameters=0, by_frame=(math.inf, math.inf))], all_costs()),
        ([row("look-up", None, 0.5)], []),
    ],
    ids=["costs", "rows", "diverged", "baseline"],
)
def test_figures_of_little(
    draw: Callable[[Results], Figure], rows: Sequence[Row], costs: Sequence[Cost]
) -> None:
    draw(one(rows, costs)).canvas.draw()


def test_operators_look_different_and_always_the_same() -> None:
    names = [f"operator_{number}" for number in range(40)]
    found = figures.styles(names)
    assert len({(style.color, style.marker) for style in found.values()}) == 40
    assert len({style.marker for style in list(found.values())[:13]}) == 13
    assert figures.styles(names[:3]) == {name: found[name] for name in names[:3]}
