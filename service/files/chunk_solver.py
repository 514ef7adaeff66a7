"""What a worker of ``mno solve`` does: it loads the models once, and solves chunk after chunk.

A chunk is computed in batches of one fixed size, which is filled up where fields are missing: its bits
depend on no other chunk and on no other worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from bulk.chunks import Arrays, Chunks
from bulk.objects import RemotePlace
from service.errors import InvalidField, InvalidSettings, NotCertifiable
from service.files.field_file import FieldFile, open_field_file
from service.files.file_job import FileJob
from service.lookup import find_steady
from service.request import SolveRequest, SolveResponse
from service.serve import build_solver, open_models
from service.settings import Settings
from service.solver import Solver
from service.ticket import Ticket
from service.versions.models import Models

__all__ = ["ChunkSolver", "Piece", "answer_dtype", "identify_version"]

# one batch is computed while the bounds of the one before it are
IN_FLIGHT: Final = 2
WHATEVER_ELSE_IS_COMPUTED: Final = Ticket(priority="bulk", reproducible=True)


@final
class Piece(NamedTuple):
    """A chunk of the input.

    Attributes:
        number: of the chunk.
        first: number of its first field in the file.
        last: number of the first field after it.
        fields: (batch, ny, nx); None: the worker reads them.
    """

    number: int
    first: int
    last: int
    fields: NDArray[Any] | None


@final
@dataclass(frozen=True)
class ChunkSolver:
    """Opens a worker.

    Attributes:
        job: what to solve, and how.
        settings: of the solver, such as the store.
        source: uniform right-hand side.
        version: the very version that is to answer; see ``Models.identify``.
        deposit: where the worker leaves its results; None: it hands them over.
    """

    job: FileJob
    settings: Settings
    source: float
    version: dict[str, Any] | None
    deposit: Chunks | None

    def __call__(self) -> AbstractContextManager[Callable[[Piece], Arrays | None]]:
        """What solves a piece."""
        return self._open()

    @contextmanager
    def _open(self) -> Iterator[Callable[[Piece], Arrays | None]]:
        models = open_models(self.settings)
        found = identify_version(self.job, models)
        if found != self.version:
            message = f"a worker's model store has another version than the driver's: {found}, {self.version}"
            raise InvalidSettings(f"{message}; name a store that both reach, with --store")
        with ExitStack() as stack:
            remote = isinstance(self.job.input, RemotePlace)
            file = stack.enter_context(open_field_file(self.job.input)) if remote else None
            runner = stack.enter_context(asyncio.Runner())
            solver = build_solver(self.settings, models)
            stack.callback(lambda: runner.run(_close(solver)))

            def solve(piece: Piece) -> Arrays | None:
                fields = _fields(piece, file)
                result = runner.run(self._solve(solver, fields, piece.first))
                if self.deposit is None:
                    return result
                self.deposit.put(piece.number, result)
                return None

            yield solve

    async def _solve(self, solver: Solver, fields: NDArray[Any], first: int) -> Arrays:
        answers: NDArray[Any] = np.empty(fields.shape, answer_dtype(self.job, fields.dtype))
        error_upper = np.full(len(fields), np.nan)
        start = 0
        async with aclosing(self._responses(solver, fields, first)) as responses:
            async for response in responses:
                ((name, values),) = response.fields.items()
                rows = slice(start, start + len(values))
                answers[rows] = values
                if response.errors is not None:
                    error_upper[rows] = [error.upper for error in response.errors]
                start = rows.stop
        notes = {"name": name, "model": response.model or "", "scheme": response.operator}
        arrays = {"answers": answers, "error_upper": error_upper}
        return {**arrays, **{key: np.array(note) for key, note in notes.items()}}

    async def _responses(
        self, solver: Solver, fields: NDArray[Any], first: int
    ) -> AsyncGenerator[SolveResponse, None]:
        """Answers in order, a few batches at a time."""
        running: deque[asyncio.Task[SolveResponse]] = deque()
        try:
            for start in range(0, len(fields), self.job.batch_size):
                batch = fields[start : start + self.job.batch_size]
                running.append(asyncio.create_task(self._solve_batch(solver, batch, first + start)))
                if len(running) == IN_FLIGHT:
                    yield await running.popleft()
            while running:
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _solve_batch(self, solver: Solver, batch: NDArray[Any], first: int) -> SolveResponse:
        job = self.job
        request = SolveRequest(
            job.problem,
            {find_steady(job.problem).inputs[0].name: batch, "source": self.source},
            "float64" if answer_dtype(job, batch.dtype) == np.float64 else "float32",
            job.model,
            job.method,
            job.error,
            job.tolerance,
            WHATEVER_ELSE_IS_COMPUTED,
        )
        try:
            return await solver.solve(request)
        except InvalidField as error:
            if not error.index:
                raise
            sample, *place = error.index
            message = f"{job.input}: sample {first + sample}, cell {tuple(place)}: {error}"
            raise InvalidField(error.field, error.rule, message, (first + sample, *place)) from error
        except NotCertifiable as error:
            # its numbers are those within the batch
            last = first + len(batch) - 1
            where = f"{job.input}: in the batch of samples {first} to {last}, counted from 0"
            raise NotCertifiable(f"{where}: {error}") from error


def identify_version(job: FileJob, models: Models) -> dict[str, Any] | None:
    """The version that answers a job; None: the reference solver does."""
    return models.identify(find_steady(job.problem).name, job.model, solver=job.method == "solver")


def answer_dtype(job: FileJob, given: np.dtype[Any]) -> np.dtype[Any]:
    """Of the answers: an error within a tolerance leaves no room for rounding."""
    return np.dtype(np.float64 if given == np.float64 or job.tolerance is not None else np.float32)


def _fields(piece: Piece, file: FieldFile | None) -> NDArray[Any]:
    if piece.fields is not None:
        return piece.fields
    assert file is not None
    return file.read(piece.first, piece.last)


async def _close(solver: Solver) -> None:
    async with solver:
        pass
