"""``mno rollout``: every state of a file stepped as a request would be, in batches, resumable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from problems import EvolutionProblem, Grid
from service.errors import InvalidField
from service.files.field_file import LOCAL
from service.files.output import check_output
from service.files.staging import Shape, Staging
from service.files.state_file import StateFile, open_state_file, write_trajectories
from service.frame_judge import BOUND, DEFECT
from service.lookup import find_evolution
from service.rollout import RolloutMethod, RolloutRequest
from service.serve import build_solver, open_models
from service.settings import Batching, Limits, Settings
from service.solver import Solver
from service.versions.models import Models

__all__ = ["RolloutJob", "rollout_file"]

FIELDS, UPPER, KNOWN = "fields", "error_upper", "in_distribution"
# what the calibrated errors are called
NORMS = {"perturbation_l2": "relative L2 error of the perturbation", "relative_l2": "relative L2 error"}


@dataclass(frozen=True)
class RolloutJob:
    """What to step, and how.

    Attributes:
        steps: the last step, counted from the initial state.
        every: keep every so-many-th step.
        frame: number of the step that the states belong to; of trajectories, the frame to take.
        walls: boundary conditions; None: those of the model.
        batch_size: states stepped together.
        defects: so many of the kept steps are compared with the reference solver's; see ``RolloutRequest``.
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
    defects: int = 0

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
    check_output(job.output, job.input, LOCAL)
    if job.defects and job.output.suffix.lower() == ".npy":
        message = (
            f"{job.output}: expected .npz or .h5, an array alone has no place for defects; leave them out"
        )
        raise InvalidField("OUTPUT", "defects", message)
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
        "defects": job.defects,
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
        **dict.fromkeys(_checked(job, problem), (np.float64, (count, frames))),
    }


def _checked(job: RolloutJob, problem: EvolutionProblem) -> tuple[str, ...]:
    """What is kept of the comparison with the reference solver's steps."""
    if not job.defects:
        return ()
    return (DEFECT,) if problem.growth is None else (DEFECT, BOUND)


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
    checked = {name: staging.arrays[name] for name in _checked(job, problem)}
    given = await asyncio.to_thread(states.read, rows.start, rows.stop)
    for channel, spec in enumerate(problem.outputs):
        fields[rows, 0, channel] = given.get(spec.name, 0.0)
    for known_of_frames in (upper, *checked.values()):
        known_of_frames[rows, 0] = np.nan
    error = None
    with _samples_named(job, states, rows):
        rollout = await solver.roll_out(_request(job, given, fields.dtype))
        at = 0
        async with aclosing(rollout.frames) as frames:
            async for frame in frames:
                at += 1
                for channel, name in enumerate(rollout.names):
                    fields[rows, at, channel] = frame.fields[name]
                error = frame.error
                upper[rows, at] = np.nan if error is None else error.upper
                for name, values in checked.items():
                    values[rows, at] = frame.defects if name == DEFECT else frame.bounds
                bar.update(rows.stop - rows.start)
    staging.arrays[KNOWN][rows] = rollout.in_distribution
    known = {"model": rollout.model, "scheme": rollout.operator, "walls": rollout.walls}
    measures = {"frame_interval": rollout.frame_interval, "extent": rollout.grid.extent}
    meaning = {} if error is None else {"norm": error.norm, "coverage": error.coverage}
    staging.note({"done": rows.stop, **known, **measures, "error": meaning})


def _request(job: RolloutJob, given: Mapping[str, NDArray[Any]], dtype: np.dtype[Any]) -> RolloutRequest:
    return RolloutRequest(
        job.problem,
        given,
        job.steps,
        job.every,
        job.frame,
        "float64" if dtype == np.float64 else "float32",
        job.model,
        job.method,
        job.walls,
        defects=job.defects,
    )


@contextmanager
def _samples_named(job: RolloutJob, states: StateFile, rows: slice) -> Iterator[None]:
    """Say which sample of the file a fault in a batch speaks of."""
    try:
        yield
    except InvalidField as error:
        if not error.index:
            raise
        sample, *place = error.index
        where = f"sample {states.keys[rows.start + sample]}" + (f", cell {tuple(place)}" if place else "")
        message = f"{job.input}: {where}: {error}"
        raise InvalidField(error.field, error.rule, message, (rows.start + sample, *place)) from error


def _finish(job: RolloutJob, problem: EvolutionProblem, states: StateFile, staging: Staging) -> str:
    steps = np.array([job.frame, *job.kept])
    times = steps * float(staging.progress["frame_interval"])
    notes = {key: staging.progress[key] or "" for key in ("model", "scheme", "walls")}
    arrays = staging.arrays
    of_frames = (UPPER, *_checked(job, problem))

    def write_npz(path: Path) -> None:
        fields = {spec.name: arrays[FIELDS][:, :, at] for at, spec in enumerate(problem.outputs)}
        known = {"time": times, "step": steps, KNOWN: arrays[KNOWN]}
        known |= {name: arrays[name] for name in of_frames}
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
        with h5py.File(path, "r+") as file:
            # beside each trajectory: PDEBench's loaders take all that lies beside its group for another one
            for row, key in enumerate(states.keys):
                for name in of_frames:
                    file[key][name] = arrays[name][row]
                file[key].attrs[KNOWN] = arrays[KNOWN][row]

    def write_npy(path: Path) -> None:
        staging.copy(FIELDS, path)

    write = {".npy": write_npy, ".npz": write_npz}.get(job.output.suffix.lower(), write_hdf5)
    staging.finish(write)
    line = _summary(job, arrays, notes["model"], staging.progress["error"])
    staging.remove()
    return line


def _samples(states: StateFile, fields: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    return zip(states.keys, fields, strict=True)


def _summary(
    job: RolloutJob, arrays: Mapping[str, NDArray[Any]], model: str, meaning: Mapping[str, Any]
) -> str:
    count, frames = arrays[UPPER].shape
    line = f"{job.output}: {count} rollouts of {frames - 1} frames by {model or 'the reference solver'}"
    if not arrays[KNOWN].all():
        return f"{line}; {count - int(arrays[KNOWN].sum())} of the states are unlike the training data"
    if not meaning:
        return line
    norm, share = NORMS.get(meaning["norm"], meaning["norm"]), f"{100 * meaning['coverage']:.0f} %"
    upper = f"at most {arrays[UPPER][0, -1]:.2g} in {share} of states like those in training"
    return f"{line}; {norm} of the last frame {upper} (calibrated, no guarantee)"
