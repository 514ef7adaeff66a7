"""What a row records of an operator's answers, and of the baselines that need no training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from operators import AnySurrogate, UnsupportedGrid
from problems import EVOLUTION_PROBLEMS, Grid
from training.baselines import LookUp, Persistence
from training.comparison.config import ProblemSection, grid_name
from training.comparison.rows import Entry, Row, Spectrum
from training.config import DataSection, Run
from training.dataset import read_dataset
from training.evaluate import Evaluation
from training.forecast import Forecast
from training.generate import DatasetFile
from training.nearest import look_up
from training.provenance import processor, provenance
from training.run import evaluate_file
from training.spectrum import RadialSpectrum
from training.splits import split_files
from training.trainer import choose_device
from training.trajectories import open_trajectories
from training.trajectory_evaluation import TrajectoryEvaluation, evaluate_forecast, window_of
from training.trajectory_metrics import headline

LOOK_UP = "look-up"
Data = TypeVar("Data")
Found = Mapping[str, Evaluation | TrajectoryEvaluation]


def metric_of(problem: str) -> str:
    """The error that speaks for a problem."""
    return headline(problem) if problem in EVOLUTION_PROBLEMS else "relative_l2"


def finished_row(entry: Entry, surrogate: AnySurrogate, seconds: float) -> Row:
    """What a trained operator did on the test split, on its own grid and on the others."""
    run = entry.run
    device = next(surrogate.parameters()).device
    found = {
        name: evaluate_file(run, surrogate, file.path, entry.problem.frames)
        for name, file in split_files(run, "test").items()
    }
    row = _row(entry.operator.name, entry.problem, found, entry.recipe, machine(device, run.run.threads))
    return row.model_copy(
        update={
            "seed": entry.seed,
            "learning_rate": entry.learning_rate,
            "parameters": sum(p.numel() for p in surrogate.parameters() if p.requires_grad),
            "elsewhere": dict(_elsewhere(entry, surrogate)),
            "steps": run.optimizer.steps,
            "seconds": seconds,
        }
    )


def diverged_row(entry: Entry, steps: int) -> Row:
    """That training did not end."""
    run, error = entry.run, float("inf")
    return Row(
        operator=entry.operator.name,
        problem=entry.problem.name,
        seed=entry.seed,
        learning_rate=entry.learning_rate,
        parameters=0,
        metric=metric_of(run.data.problem),
        error=error,
        errors={},
        steps=steps,
        recipe=entry.recipe,
        code=str(provenance()),
        machine=machine(choose_device(run.run.device), run.run.threads),
    )


def baseline_rows(run: Run, problem: ProblemSection, recipe: str) -> list[Row]:
    """What a look-up of the training data reaches, and doing nothing."""
    machine_name, steady = machine(torch.device("cpu"), 1), problem.data.problem not in EVOLUTION_PROBLEMS
    return [
        _row(
            name,
            problem,
            _looked_up(run) if steady else _continued(run, name, problem.frames),
            recipe,
            machine_name,
        )
        for name in baselines_of(problem)
    ]


def baselines_of(problem: ProblemSection) -> tuple[str, ...]:
    """The names of their rows."""
    return (LOOK_UP, "persistence") if problem.data.problem in EVOLUTION_PROBLEMS else (LOOK_UP,)


def files_elsewhere(run: Run, problem: ProblemSection) -> dict[str, dict[str, DatasetFile]]:
    """Grid, such as ``64x64`` -> family -> its test file there."""
    found = {}
    for grid in problem.grids:
        name = grid_name(grid)
        data = _on(run.data, grid, run.data.directory / name, problem.grid_samples)
        found[name] = split_files(run.model_copy(update={"data": data}), "test")
    return found


def machine(device: torch.device, threads: int | None) -> str:
    """What computed, for readers."""
    torch_version = torch.__version__.partition("+")[0]
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch_version}"
    return f"{processor()}, {threads or torch.get_num_threads()} threads, torch {torch_version}"


def _row(operator: str, problem: ProblemSection, found: Found, recipe: str, machine_name: str) -> Row:
    metric = metric_of(problem.data.problem)
    counts = [len(each.scores[metric]) for each in found.values()]
    errors = [each.summary[f"{metric}_mean"] for each in found.values()]
    first = next(iter(found.values()))
    return Row(
        operator=operator,
        problem=problem.name,
        seed=None,
        learning_rate=None,
        parameters=0,
        metric=metric,
        error=float(np.average(errors, weights=counts)),
        errors={family: each.summary for family, each in found.items()},
        by_frame=_by_frame(first, metric),
        spectrum=_spectrum(first),
        recipe=recipe,
        code=str(provenance()),
        machine=machine_name,
    )


def _by_frame(found: Evaluation | TrajectoryEvaluation, metric: str) -> tuple[float, ...]:
    if isinstance(found, Evaluation):
        return ()
    return tuple(float(value) for value in found.curves[metric].mean(axis=0))


def _spectrum(found: Evaluation | TrajectoryEvaluation) -> Spectrum:
    """Of the solution; of an evolution problem's first channel in the last frame."""
    if isinstance(found, TrajectoryEvaluation):
        power = found.spectra
        return Spectrum(
            wavenumber=tuple(power.wavenumber),
            reference=tuple(power.reference[-1, 0]),
            error=tuple(power.error[-1, 0]),
        )
    data = found.dataset
    rings = RadialSpectrum.on(Grid(data.grid, data.extent))
    return Spectrum(
        wavenumber=tuple(rings.wavenumber),
        reference=tuple(rings(data.pressure[:, 0]).mean(axis=0)),
        error=tuple(rings(found.predicted[:, 0] - data.pressure[:, 0]).mean(axis=0)),
    )


def _elsewhere(entry: Entry, surrogate: AnySurrogate) -> Iterator[tuple[str, float | None]]:
    """Errors on grids that the operator was not trained on."""
    run, metric = entry.run, metric_of(entry.run.data.problem)
    for grid, files in files_elsewhere(run, entry.problem).items():
        try:
            errors = [
                evaluate_file(run, surrogate, file.path, entry.problem.frames).summary[f"{metric}_mean"]
                for file in files.values()
            ]
        except UnsupportedGrid:
            yield grid, None
        else:
            yield grid, float(np.mean(errors))


def _on(data: DataSection, grid: tuple[int, int], directory: Path, samples: int) -> DataSection:
    """The same problem on another grid, with labels from one that is as much finer."""
    label_grid = data.label_grid and (
        data.label_grid[0] * grid[0] // data.grid[0],
        data.label_grid[1] * grid[1] // data.grid[1],
    )
    families = tuple(
        family.model_copy(update={"train": 0, "validation": 0, "test": samples})
        for family in data.families
        if family.test
    )
    changes = {"grid": grid, "label_grid": label_grid, "families": families, "directory": directory}
    return data.model_copy(update=changes)


def _looked_up(run: Run) -> Found:
    training = {name: read_dataset(file.path) for name, file in split_files(run, "train").items()}
    found = {}
    for name, file in split_files(run, "test").items():
        data = read_dataset(file.path)
        found[name] = look_up(_known(training, name), data, run.data.scheme)
    return found


def _continued(run: Run, name: str, frames: int) -> Found:
    assert run.sequence is not None
    training = {family: file.path for family, file in split_files(run, "train").items()}
    found = {}
    for family, file in split_files(run, "test").items():
        with open_trajectories(file.path) as data, open_trajectories(_known(training, family)) as known:
            window = window_of(data, run.sequence.first_frame, frames)
            forecast: Forecast = LookUp(known, window) if name == LOOK_UP else Persistence()
            found[family] = evaluate_forecast(forecast, data, window)
    return found


def _known(training: Mapping[str, Data], family: str) -> Data:
    """The training data of a family; of one that is only tested those of the first."""
    return training.get(family, next(iter(training.values())))
