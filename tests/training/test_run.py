"""End to end: generate, train, evaluate, report, publish; what is published is what was trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from model_store import open_store
from training.cli import publish as publish_command
from training.cli import train as train_command
from training.dataset import read_dataset
from training.evaluate import evaluate, predict
from training.evaluate_cli import evaluate as evaluate_command
from training.hashes import hash_files
from training.learner import averaged_surrogate
from training.provenance import provenance
from training.publish import LimitsMissed, check_limits
from training.run import evaluate_tests, make_version
from training.splits import split_files


def _store(finished: Any) -> Any:
    return open_store(f"file:{finished.run.run.directory}/models")


def test_the_published_surrogate_is_the_trained_one(finished: Any) -> None:
    version = _store(finished).load("darcy", 1)
    dataset = read_dataset(split_files(finished.run, "test")["pdebench"].path)
    trained = averaged_surrogate(finished.run, finished.checkpoint())
    np.testing.assert_array_equal(predict(version.surrogate, dataset, 8), predict(trained, dataset, 8))
    assert _store(finished).aliases("darcy") == {"production": 1}


def test_the_card_says_what_the_version_is(finished: Any) -> None:
    card = _store(finished).card("darcy", 1)
    measured = json.loads((finished.run.run.directory / "evaluation.json").read_text())
    files = split_files(finished.run, "train")
    datasets = [read_dataset(file.path) for file in files.values()]
    contrasts = np.concatenate([dataset.contrast for dataset in datasets])
    assert card.run == finished.text
    assert card.metrics == measured
    assert card.grids == ((32, 32),)
    hull = dict(card.training_hull)
    assert hull.pop("contrast_min") == pytest.approx(contrasts.min(), rel=1e-6)
    assert hull.pop("contrast_max") == pytest.approx(contrasts.max(), rel=1e-6)
    # the smooth family varies gently; the binary one jumps from 0.1 to 1
    assert hull.pop("jump_max") == pytest.approx(10.0, rel=1e-6)
    assert 0.1 < hull.pop("roughness_max") < 1.0
    assert not hull
    assert card.dataset == {
        "sha256": hash_files(file.path for file in files.values()),
        "samples": 40,
        "files": 2,
        **{f"recipe_sha256.{file.path.name}": file.recipe.sha256 for file in files.values()},
    }
    assert [field.name for field in card.inputs] == ["permeability", "source"]


def test_the_report_shows_every_family(finished: Any) -> None:
    directory = finished.run.run.directory / "report"
    report = (directory / "report.md").read_text()
    pictures = {path.name for path in directory.glob("*.png")}
    assert pictures == {"training.png", "errors.png", "contrast.png", "pdebench.png", "log_normal.png"}
    assert all(f"({name})" in report for name in pictures)
    assert "| pdebench | 8 |" in report


def test_evaluation_compares_with_the_reference(finished: Any) -> None:
    surrogate = averaged_surrogate(finished.run, finished.checkpoint())
    dataset = read_dataset(split_files(finished.run, "test")["log_normal"].path)
    found = evaluate(surrogate, dataset, 3, "tpfa-harmonic-v1")
    with torch.inference_mode():
        answer = surrogate(torch.from_numpy(dataset.permeability[4:5]), torch.ones(1)).numpy()
    expected = np.linalg.norm(answer - dataset.pressure[4]) / np.linalg.norm(dataset.pressure[4])
    assert found.scores["relative_l2"][4] == pytest.approx(expected, rel=1e-4)
    assert found.summary["relative_l2_max"] == found.scores["relative_l2"].max()


@pytest.mark.parametrize("published", [True, False])
def test_evaluate_command(finished: Any, published: bool, tmp_path: Path) -> None:
    data = split_files(finished.run, "test")["pdebench"].path
    model = "darcy@production" if published else str(finished.run.checkpoint_path)
    arguments = [model, str(data), "--store", _store(finished).url, "--report", str(tmp_path / "report")]
    result = CliRunner().invoke(evaluate_command, arguments, catch_exceptions=False)
    measured = json.loads((finished.run.run.directory / "evaluation.json").read_text())["pdebench"]
    values = dict(line.split() for line in result.output.splitlines() if not line.startswith("report"))
    assert float(values["relative_l2_median"]) == pytest.approx(measured["relative_l2_median"], rel=1e-4)
    assert (tmp_path / "report" / "report.md").exists()


def test_publish_command(finished: Any, silent: Any, tmp_path: Path) -> None:
    url = f"file:{tmp_path}/models"
    arguments = [str(finished.run.checkpoint_path), "other", "--store", url, "--alias", "candidate"]
    result = CliRunner().invoke(publish_command, arguments, obj=silent(), catch_exceptions=False)
    assert "published other@1 as other@candidate" in result.output
    assert open_store(url).aliases("other") == {"candidate": 1}
    # an unfinished checkout is worth one line
    gap = provenance().gap
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ([gap] if gap else [])


def test_a_run_file_without_a_store_publishes_into_the_one_of_the_environment(
    finished: Any, silent: Any, tmp_path: Path
) -> None:
    text = "".join(line for line in finished.text.splitlines(True) if not line.startswith("store = "))
    assert text != finished.text
    file, url = tmp_path / "run.toml", f"file:{tmp_path}/models"
    file.write_text(text)
    command = [str(file), "--resume"]
    result = CliRunner().invoke(
        train_command, command, obj=silent(), env={"MNO_STORE": url}, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert open_store(url).versions("darcy") == [1]


def test_a_repeated_publication_adds_no_version(finished: Any, silent: Any) -> None:
    checkpoint, url = finished.checkpoint(), _store(finished).url
    evaluations = evaluate_tests(finished.run, checkpoint, silent())
    make_version(finished.run, checkpoint, evaluations, "darcy", url, "production")
    assert _store(finished).versions("darcy") == [1]


def test_missed_limits_are_not_published(finished: Any, silent: Any, tmp_path: Path) -> None:
    limits = {"pdebench": {"relative_l2_median": 1e-6, "relative_l2_max": 100.0}}
    run = finished.run.model_copy(update={"acceptance": limits})
    checkpoint = finished.checkpoint()
    evaluations = evaluate_tests(run, checkpoint, silent())
    with pytest.raises(LimitsMissed, match=r"pdebench.relative_l2_median = 0\.\d+, limit 1e-06") as caught:
        make_version(run, checkpoint, evaluations, "darcy", f"file:{tmp_path}/models", None)
    assert "relative_l2_max" not in str(caught.value)
    assert open_store(f"file:{tmp_path}/models").models() == []


@pytest.mark.parametrize(
    ("value", "passes"), [(0.01, True), (0.015, True), (0.0151, False), (float("nan"), False)]
)
def test_limits(value: float, passes: bool) -> None:
    limits, metrics = {"pdebench": {"rmse_max": 0.015}}, {"pdebench": {"rmse_max": value}}
    if passes:
        check_limits(limits, metrics)
    else:
        with pytest.raises(LimitsMissed):
            check_limits(limits, metrics)
