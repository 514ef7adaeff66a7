"""``mno solve``: every field of a file through the same solver as a request, in batches, resumable."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import InvalidField
from service.files.field_file import FieldFile, open_field_file
from service.files.staged_output import StagedOutput, check_output
from service.lookup import find_steady
from service.serve import build_solver, open_models
from service.settings import Batching, Limits, Settings
from service.solver import ErrorKind, Method, Solver, SolveRequest, SolveResponse
from service.versions.models import Models

__all__ = ["FileJob", "solve_file"]

# one batch is computed while the bounds of the one before it are
IN_FLIGHT = 2


@dataclass(frozen=True)
class FileJob:
    """What to solve, and how.

    Attributes:
        source: uniform right-hand side; None takes the file's, or 1.
        batch_size: fields computed together.
    """

    problem: str
    input: Path
    output: Path
    model: str | None
    method: Method
    error: ErrorKind
    source: float | None
    batch_size: int


def solve_file(job: FileJob, settings: Settings, progress: Callable[..., Any]) -> str:
    """Solve all fields of a file; returns a line about the result.

    Raises:
        ServiceFault: the input, the output or an option cannot be used.
    """
    check_output(job.output, job.input)
    with open_field_file(job.input) as fields:
        settings = _for_files(settings, job.batch_size)
        models = open_models(settings)
        solver = build_solver(settings, models)
        recipe = _recipe(job, fields, models)
        return asyncio.run(_solve(job, fields, solver, recipe, progress))


def _for_files(settings: Settings, batch_size: int) -> Settings:
    limits = Limits(batch=batch_size, grid_side=settings.limits.grid_side)
    batching = Batching(max_batch=batch_size, queue_bytes=2**40, queue_seconds=1e9)
    return settings.model_copy(update={"limits": limits, "batching": batching})


async def _solve(
    job: FileJob, fields: FieldFile, solver: Solver, recipe: dict[str, Any], progress: Callable[..., Any]
) -> str:
    source = recipe["source"]
    with StagedOutput(job.output, fields, source, recipe) as output:
        async with solver:
            with progress(None, fields.count, f"solve {job.problem}") as bar:
                bar.update(output.done)
                async with aclosing(_responses(job, fields, source, output.done, solver)) as responses:
                    async for response in responses:
                        output.append(response)
                        bar.update(len(response.iterations))
        return output.finish()


def _recipe(job: FileJob, fields: FieldFile, models: Models) -> dict[str, Any]:
    """All that the output depends on, so that nothing else is ever continued."""
    status = job.input.stat()
    return {
        "problem": job.problem,
        "input": [str(job.input.resolve()), status.st_size, status.st_mtime_ns],
        "shape": [fields.count, *fields.grid],
        "source": fields.source if job.source is None else job.source,
        "version": models.identify(find_steady(job.problem).name, job.model, solver=job.method == "solver"),
        "method": job.method,
        "error": job.error,
    }


async def _responses(
    job: FileJob, fields: FieldFile, source: float, first: int, solver: Solver
) -> AsyncGenerator[SolveResponse, None]:
    """Answers in the order of the file, a few batches at a time."""
    running: deque[asyncio.Task[SolveResponse]] = deque()
    try:
        for start in range(first, fields.count, job.batch_size):
            running.append(asyncio.create_task(_solve_batch(job, fields, source, start, solver)))
            if len(running) == IN_FLIGHT:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _solve_batch(
    job: FileJob, fields: FieldFile, source: float, start: int, solver: Solver
) -> SolveResponse:
    array = await asyncio.to_thread(fields.read, start, min(start + job.batch_size, fields.count))
    request = SolveRequest(
        job.problem,
        {fields.name: array, "source": source},
        "float64" if array.dtype == "float64" else "float32",
        job.model,
        job.method,
        job.error,
    )
    try:
        return await solver.solve(request)
    except InvalidField as error:
        if not error.index:
            raise
        sample, *place = error.index
        message = f"{job.input}: sample {start + sample}, cell {tuple(place)}: {error}"
        raise InvalidField(error.field, error.rule, message, (start + sample, *place)) from error
