"""``mno rollout``: every state of a file stepped as a request would be, in batches, resumable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem, Grid
from service.errors import InvalidField
from service.lookup import find_evolution
from service.models import Models
from service.rollout import Rollout, RolloutMethod, RolloutRequest
from service.serve import build_solver, open_models
from service.settings import Batching, Limits, Settings
from service.solver import Solver
from service.staged_output import check_output
from service.staging import Shape, Staging
from service.state_file import StateFile, open_state_file, write_trajectories

__all__ = ["RolloutJob", "rollout_file"]

FIELDS, UPPER, KNOWN = "fields", "error_upper", "in_distribution"


@dataclass(frozen=True)
class RolloutJob:
    """What to step, and how.

    Attributes:
        steps: the last step, counted from the initial state.
        every: keep every so-many-th step.
        frame: number of the step that the states belong to; of trajectories, the frame to take.
        walls: boundary conditions; None: those of the model.
        batch_size: states stepped together.
    """

    problem: str
    input: Path
    output: Path
    steps: int
    every: int
    frame: int
    model: str | None
    method: RolloutMethod
    walls: str | None
    batch_size: int

    @property
    def kept(self) -> range:
        """The steps that are kept beside the one that the states belong to."""
        return range((self.frame // self.every + 1) * self.every, self.steps + 1, self.every)


def rollout_file(job: RolloutJob, settings: Settings, progress: Callable[..., Any]) -> str:
    """Step all states of a file; returns a line about the result.

    Raises:
        ServiceFault: the input, the output or an option cannot be used.
    """
    problem = find_evolution(job.problem)
    check_output(job.output, job.input)
    with open_state_file(job.input, problem, job.frame) as states:
        settings = _for_files(settings, job)
        models = open_models(settings)
        solver = build_solver(settings, models)
        return asyncio.run(_roll_out(job, problem, states, solver, _recipe(job, states, models), progress))


def _for_files(settings: Settings, job: RolloutJob) -> Settings:
    side = settings.limits.grid_side
    limits = Limits(
        batch=job.batch_size,
        grid_side=side,
        rollout_steps=job.steps,
        body_bytes=2**40,
        cell_steps=2**62,
    )
    batching = Batching(max_batch=job.batch_size, queue_bytes=2**40, queue_seconds=1e9)
    return settings.model_copy(update={"limits": limits, "batching": batching})


def _recipe(job: RolloutJob, states: StateFile, models: Models) -> dict[str, Any]:
    """All that the output depends on, so that nothing else is ever continued."""
    status = job.input.stat()
    return {
        "problem": job.problem,
        "input": [str(job.input.resolve()), status.st_size, status.st_mtime_ns],
        "shape": [states.count, *states.grid],
        "steps": [job.frame, job.steps, job.every],
        "version": models.identify(job.problem, job.model, solver=job.method == "solver"),
        "method": job.method,
        "walls": job.walls,
    }


async def _roll_out(
    job: RolloutJob,
    problem: EvolutionProblem,
    states: StateFile,
    solver: Solver,
    recipe: Mapping[str, Any],
    progress: Callable[..., Any],
) -> str:
    with Staging(job.output, recipe, _shapes(job, problem, states)) as staging:
        async with solver:
            frames = len(job.kept)
            with progress(None, states.count * frames, f"rollout {job.problem}") as bar:
                bar.update(staging.done * frames)
                for start in range(staging.done, states.count, job.batch_size):
                    rows = slice(start, min(start + job.batch_size, states.count))
                    await _roll_out_batch(job, problem, states, rows, solver, staging, bar)
        return _finish(job, problem, states, staging)


def _shapes(job: RolloutJob, problem: EvolutionProblem, states: StateFile) -> dict[str, Shape]:
    dtype = np.float64 if states.dtype == np.float64 else np.float32
    count, frames = states.count, 1 + len(job.kept)
    return {
        FIELDS: (dtype, (count, frames, len(problem.outputs), *states.grid)),
        UPPER: (np.float64, (count, frames)),
        KNOWN: (np.bool_, (count,)),
    }


async def _roll_out_batch(
    job: RolloutJob,
    problem: EvolutionProblem,
    states: StateFile,
    rows: slice,
    solver: Solver,
    staging: Staging,
    bar: Any,
) -> None:
    fields, upper = staging.arrays[FIELDS], staging.arrays[UPPER]
    given = await asyncio.to_thread(states.read, rows.start, rows.stop)
    for channel, spec in enumerate(problem.outputs):
        fields[rows, 0, channel] = given.get(spec.name, 0.0)
    upper[rows, 0] = np.nan
    rollout = await _start(job, states, rows, given, fields.dtype, solver)
    at = 0
    async with aclosing(rollout.frames) as frames:
        async for frame in frames:
            at += 1
            for channel, name in enumerate(rollout.names):
                fields[rows, at, channel] = frame.fields[name]
            upper[rows, at] = np.nan if frame.error is None else frame.error.upper
            bar.update(rows.stop - rows.start)
    staging.arrays[KNOWN][rows] = rollout.in_distribution
    known = {"model": rollout.model, "scheme": rollout.operator, "walls": rollout.walls}
    measures = {"frame_interval": rollout.frame_interval, "extent": rollout.grid.extent}
    staging.note({"done": rows.stop, **known, **measures})


async def _start(
    job: RolloutJob,
    states: StateFile,
    rows: slice,
    given: Mapping[str, NDArray[Any]],
    dtype: np.dtype[Any],
    solver: Solver,
) -> Rollout:
    request = RolloutRequest(
        job.problem,
        given,
        job.steps,
        job.every,
        job.frame,
        "float64" if dtype == np.float64 else "float32",
        job.model,
        job.method,
        job.walls,
    )
    try:
        return await solver.roll_out(request)
    except InvalidField as error:
        if not error.index:
            raise
        sample, *place = error.index
        key = states.keys[rows.start + sample]
        message = f"{job.input}: sample {key}, cell {tuple(place)}: {error}"
        raise InvalidField(error.field, error.rule, message, (rows.start + sample, *place)) from error


def _finish(job: RolloutJob, problem: EvolutionProblem, states: StateFile, staging: Staging) -> str:
    steps = np.array([job.frame, *job.kept])
    times = steps * float(staging.progress["frame_interval"])
    notes = {key: staging.progress[key] or "" for key in ("model", "scheme", "walls")}
    arrays = staging.arrays

    def write_npz(path: Path) -> None:
        fields = {spec.name: arrays[FIELDS][:, :, at] for at, spec in enumerate(problem.outputs)}
        known = {"time": times, "step": steps, UPPER: arrays[UPPER], KNOWN: arrays[KNOWN]}
        np.savez(
            path,
            allow_pickle=False,
            **fields,
            **known,
            **{key: np.array(note) for key, note in notes.items()},
        )

    def write_hdf5(path: Path) -> None:
        ly, lx = staging.progress["extent"]
        grid = Grid(states.grid, (ly, lx), problem.grid.origin)
        write_trajectories(path, problem, _samples(states, arrays[FIELDS]), grid, times, notes)

    def write_npy(path: Path) -> None:
        staging.copy(FIELDS, path)

    write = {".npy": write_npy, ".npz": write_npz}.get(job.output.suffix.lower(), write_hdf5)
    staging.finish(write)
    line = _summary(job, arrays, notes["model"])
    staging.remove()
    return line


def _samples(states: StateFile, fields: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    return zip(states.keys, fields, strict=True)


def _summary(job: RolloutJob, arrays: Mapping[str, NDArray[Any]], model: str) -> str:
    count, frames = arrays[UPPER].shape
    line = f"{job.output}: {count} rollouts of {frames - 1} frames by {model or 'the reference solver'}"
    if not arrays[KNOWN].all():
        line += f"; {count - int(arrays[KNOWN].sum())} of the states are unlike the training data"
    upper = arrays[UPPER][0, -1]
    return (
        line
        if np.isnan(upper)
        else f"{line}; the error of the last frame is at most {upper:.2g} (calibrated)"
    )
