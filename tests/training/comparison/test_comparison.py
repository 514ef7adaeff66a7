"""`mno compare` end to end on operators and data of seconds: rows, search, interruption, errors."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from training.comparison import story
from training.comparison.config import parse_comparison
from training.comparison.rows import Row, Trial, best_rate

# 3 processes that import PyTorch, three times
pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parent / "tiny.toml").read_text()


def command(file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mno", "compare", str(file), *arguments]


def write(directory: Path, name: str = "whole", old: str = "", new: str = "") -> Path:
    file = directory / f"{name}.toml"
    file.write_text(TEXT.replace("DIRECTORY", str(directory / name)).replace(old, new))
    return file


def carry_out(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(file, *arguments), capture_output=True, text=True, check=False, env=environment, timeout=800
    )


def rows(directory: Path) -> dict[str, dict[str, Any]]:
    """Place -> row, without what differs from one time to the next."""
    found = {
        str(path.relative_to(directory)): json.loads(path.read_text()) for path in directory.rglob("*.json")
    }
    return {
        place: {name: value for name, value in row.items() if name not in ("seconds", "code")}
        for place, row in found.items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a comparison that was carried out."""
    file = write(tmp_path_factory.mktemp("comparison"))
    done = carry_out(file)
    assert done.returncode == 0, done.stderr
    return file


def test_every_row_is_there_with_what_was_asked(finished: Path) -> None:
    found = rows(finished.with_suffix("") / "rows")
    seeds = {f"seed_{seed}.json" for seed in (0, 1)}
    names = {f"{problem}/{operator}" for problem in ("flow", "dams") for operator in
             ("spectral", "scanned", "convolved")}  # fmt: skip
    assert found.keys() == {f"{name}/{seed}" for name in names for seed in seeds} | {
        "flow/look-up.json", "dams/look-up.json", "dams/persistence.json"}  # fmt: skip
    row = found["flow/convolved/seed_1.json"]
    assert (row["seed"], row["steps"], row["learning_rate"]) == (1, 12, 3e-3)
    assert row["error"] == pytest.approx(row["errors"]["binary"]["relative_l2_mean"])
    # 18 is no multiple of 4, twice pooled
    assert row["elsewhere"]["18x18"] is None
    assert 0 < row["elsewhere"]["24x24"] < 10
    assert found["flow/spectral/seed_1.json"]["elsewhere"]["18x18"] > 0
    frames = found["dams/scanned/seed_0.json"]["by_frame"]
    assert len(frames) == 3
    assert row["error"] != found["flow/convolved/seed_0.json"]["error"]


def test_the_search_takes_the_rate_at_which_something_is_learnt(finished: Path) -> None:
    entries = story._wanted(parse_comparison(finished.read_text()), "*")
    assert {entry.learning_rate for entry in map(story._at_best_rate, entries) if entry} == {3e-3}
    trials = [
        Trial(learning_rate=rate, error=error, recipe="")
        for rate, error in [(1.0, 0.5), (2.0, 0.2), (3.0, 0.3)]
    ]
    assert best_rate(trials) == 2.0
    unknown = Trial(learning_rate=0.5, error=float("nan"), recipe="")
    assert best_rate([unknown, *trials]) == 2.0
    lost = [Trial(learning_rate=rate, error=float("inf"), recipe="") for rate in (3.0, 1.0, 2.0)]
    assert best_rate(lost) == 1.0


def test_the_table_has_a_line_for_every_operator_and_baseline(finished: Path) -> None:
    report = finished.with_suffix("") / "report"
    text = (report / "report.md").read_text()
    for name in ("spectral", "scanned", "convolved", "look-up", "persistence"):
        assert name in text
    lines = list(csv.DictReader((report / "rows.csv").read_text().splitlines()))
    assert len(lines) == 15
    figures = {path.name for path in report.glob("*.png")}
    assert figures == {f"flow_{name}.png" for name in ("accuracy", "grids", "spectra")} | {
        f"dams_{name}.png" for name in ("accuracy", "frames", "spectra")
    }


def test_done_is_done(finished: Path) -> None:
    directory = finished.with_suffix("") / "rows"
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*.json")}
    assert carry_out(finished).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*.json")} == before


def test_stopped_and_resumed_it_makes_the_same_rows(finished: Path, tmp_path: Path) -> None:
    file, half = write(tmp_path), ("--only", "flow/*")
    began = subprocess.Popen(
        command(file, *half), env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
    )
    directory = tmp_path / "whole" / "rows"
    # in the middle of the rows
    while not any(directory.glob("*/*/seed_*.json")) and began.poll() is None:
        time.sleep(0.02)
    began.send_signal(signal.SIGTERM)
    _, said = began.communicate(timeout=120)
    assert began.returncode == 1
    assert b"the same command goes on" in said
    assert 0 < len(rows(directory)) < 7
    assert carry_out(file, *half).returncode == 0
    found, expected = rows(directory), rows(finished.with_suffix("") / "rows")
    assert len(found) == 7
    assert found == {place: row for place, row in expected.items() if place.startswith("flow/")}


def test_stopped_before_the_rows_it_says_so_too(tmp_path: Path) -> None:
    file = write(tmp_path)
    began = subprocess.Popen(command(file), env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    # from here on until its data are there
    while not (tmp_path / "whole" / "data").exists() and began.poll() is None:
        time.sleep(0.02)
    began.send_signal(signal.SIGTERM)
    _, said = began.communicate(timeout=120)
    assert began.returncode == 1
    assert b"the same command goes on" in said


def test_one_row_at_a_time(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert carry_out(file, "--only", "flow/spectral/seed_1").returncode == 0
    made = rows(tmp_path / "whole" / "rows")
    assert [place for place in made if "seed" in place] == ["flow/spectral/seed_1.json"]
    # what it does not need is not made
    assert not (tmp_path / "whole" / "data" / "dams").exists()
    assert "**1 of 12 rows are there.**" in (tmp_path / "whole" / "report" / "report.md").read_text()
    missed = carry_out(file, "--only", "flow/nobody/*")
    assert missed.returncode == 2
    assert "no row is called 'flow/nobody/*'" in missed.stderr


def test_a_changed_file_is_not_mixed_with_what_is_there(finished: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.toml"
    changed.write_text(finished.read_text().replace("steps = 12", "steps = 13"))
    refused = carry_out(changed)
    assert refused.returncode == 2
    assert "was made from another comparison file" in refused.stderr


def test_who_diverges_has_a_row_that_says_so(tmp_path: Path) -> None:
    file = write(tmp_path, "lost", "[1e-9, 3e-3]", "[1e30]")
    done = carry_out(file, "--only", "flow/spectral/seed_0")
    assert done.returncode == 0, done.stderr
    row = Row.model_validate_json((tmp_path / "lost/rows/flow/spectral/seed_0.json").read_text())
    assert row.error == float("inf")
