"""``mno solve``: every field of a file through the same solver as a request, in chunks, resumable.

The input is cut into chunks, whose answers depend on nothing but the recipe of the job. What lies on this
machine is read and written here; what lies in an object store is read and written by the workers. An answer
is kept once its chunk is whole; when all are there, the output is put together and appears in one step.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch

from bulk.chunks import Chunks, OtherJob, open_chunks, publish
from bulk.engine import Crew, Engine, EngineUnavailable, Task, TaskFailed
from bulk.objects import RemotePlace
from bulk.options import Where
from bulk.ray_engine import Share
from service.errors import (
    InvalidField,
    InvalidSettings,
    NotAvailableYet,
    NotCertifiable,
    TooLarge,
    UnknownModel,
    UnknownProblem,
    WorkFailed,
)
from service.files.answers import Answers, Part, write_answers
from service.files.chunk_solver import ChunkSolver, Piece, answer_dtype, identify_version
from service.files.field_file import EVERY, HDF5, FieldFile, identify, open_field_file
from service.files.file_job import FileJob
from service.files.output import check_output
from service.processes.cores import model_threads
from service.serve import open_models
from service.settings import Batching, Limits, Settings

__all__ = ["FileJob", "solve_file"]

# answers that another try would not change
FINAL: Final = (
    *(InvalidField, InvalidSettings, NotAvailableYet, NotCertifiable, TooLarge, UnknownModel, UnknownProblem),
)
# of the inputs of a chunk [B]; and a file has at least so many chunks, for many workers and a smooth progress
CHUNK_BYTES: Final = 2**24
LEAST_CHUNKS: Final = 64
HERE: Final = Where()


@final
class Recipe(NamedTuple):
    """All that the output depends on.

    Attributes:
        text: the rest, for comparison.
        chunk: fields in a chunk.
    """

    text: Mapping[str, Any]
    source: float
    version: dict[str, Any] | None
    chunk: int


def solve_file(job: FileJob, settings: Settings, progress: Callable[..., Any], where: Where = HERE) -> str:
    """Solve all fields of a file; returns a line about the result.

    Raises:
        ServiceFault: the input, the output or an option cannot be used.
    """
    with _bulk_faults():
        check_output(job.output, job.input, EVERY)
        settings = _for_files(settings, job.batch_size)
        with open_field_file(job.input) as fields:
            recipe = _recipe(job, fields, settings, where)
            with open_chunks(job.output, recipe.text) as chunks, chunks.workspace() as folder:
                whole = folder / f"whole{job.output.suffix.lower()}"
                # before the room is counted: it takes some
                _forget(whole)
                _require_space(folder, _needed(job, fields, recipe.chunk, chunks))
                _solve_missing(job, settings, fields, recipe, chunks, progress, where)
                answers = _answers(job, fields, recipe, chunks)
                write_answers(answers, whole)
                publish(whole, job.output)
                chunks.remove()
    return f"{job.output}: {answers}"


def _for_files(settings: Settings, batch_size: int) -> Settings:
    limits = Limits(batch=batch_size, grid_side=settings.limits.grid_side)
    batching = Batching(
        max_batch=batch_size, reproducible_batch=batch_size, queue_bytes=2**40, queue_seconds=1e9
    )
    # the bits of an answer may depend on the number of threads: it is the same wherever a chunk is computed
    threads = settings.threads or 1
    return settings.model_copy(update={"limits": limits, "batching": batching, "threads": threads})


def _recipe(job: FileJob, fields: FieldFile, settings: Settings, where: Where) -> Recipe:
    source = fields.source if job.source is None else job.source
    version = identify_version(job, open_models(settings))
    chunk = job.chunk_size or _chunk_size(fields, job.batch_size)
    text = {
        "problem": job.problem,
        "input": identify(job.input),
        "shape": [fields.count, *fields.grid],
        "source": source,
        "version": version,
        "method": job.method,
        "error": job.error,
        "tolerance": job.tolerance,
        "batch": job.batch_size,
        "chunk": chunk,
        "threads": settings.threads,
        "device": _device(settings.device, where),
    }
    return Recipe(text, source, version, chunk)


def _device(device: str, where: Where) -> str:
    """What the workers will compute on; of a cluster nobody here knows what ``auto`` is."""
    if device != "auto" or where.kind != "local":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _chunk_size(fields: FieldFile, batch: int) -> int:
    """Whole batches, as many as are not too large and leave chunks for everybody."""
    field_bytes = fields.dtype.itemsize * math.prod(fields.grid)
    most = min(CHUNK_BYTES // field_bytes, fields.count // LEAST_CHUNKS)
    return max(most // batch, 1) * batch


def _solve_missing(
    job: FileJob,
    settings: Settings,
    fields: FieldFile,
    recipe: Recipe,
    chunks: Chunks,
    progress: Callable[..., Any],
    where: Where,
) -> None:
    done = chunks.done()
    pieces = list(_pieces(fields.count, recipe.chunk))
    missing = [piece for piece in pieces if piece.number not in done]
    with progress(None, fields.count, f"solve {job.problem}") as bar:
        bar.update(sum(piece.last - piece.first for piece in pieces if piece.number in done))
        if not missing:
            return
        deposit = chunks if chunks.shared else None
        crew = Crew(ChunkSolver(job, settings, recipe.source, recipe.version, deposit), FINAL)
        tasks = (_task(job, fields, piece) for piece in missing)
        with closing(_engine(where, settings, len(missing)).carry_out(crew, tasks)) as solved:
            for task, result in solved:
                if result is not None:
                    chunks.put(task.key, result)
                bar.update(task.given.last - task.given.first)


def _pieces(count: int, chunk: int) -> Iterator[Piece]:
    for number, first in enumerate(range(0, count, chunk)):
        yield Piece(number, first, min(first + chunk, count), None)


def _task(job: FileJob, fields: FieldFile, piece: Piece) -> Task:
    if not isinstance(job.input, RemotePlace):
        piece = piece._replace(fields=fields.read(piece.first, piece.last))
    name = f"chunk {piece.number} (samples {piece.first} to {piece.last - 1})"
    return Task(piece.number, name, piece)


def _engine(where: Where, settings: Settings, tasks: int) -> Engine:
    threads = settings.threads or 1
    local = _environments(settings.device, threads)[:tasks]
    workers = None if where.workers is None else min(where.workers, tasks)
    return replace(where, workers=workers).engine(local, Share(threads, settings.device))


def _environments(device: str, threads: int) -> list[dict[str, str]]:
    """Of one worker per GPU, or per so many cores."""
    if device != "cpu" and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
    return [{} for _ in range(max(1, model_threads() // threads))]


def _answers(job: FileJob, fields: FieldFile, recipe: Recipe, chunks: Chunks) -> Answers:
    def parts() -> Iterator[Part]:
        for piece in _pieces(fields.count, recipe.chunk):
            arrays = chunks.get(piece.number)
            yield Part(arrays["answers"], arrays["error_upper"])

    name, model, scheme = (str(chunks.get(0)[key]) for key in ("name", "model", "scheme"))
    dtype = answer_dtype(job, fields.dtype)
    return Answers(fields, recipe.source, dtype, name, model, scheme, parts)


def _forget(whole: Path) -> None:
    """Remove what an interrupted assembly left."""
    if whole.is_dir():
        shutil.rmtree(whole)
    whole.unlink(missing_ok=True)


def _needed(job: FileJob, fields: FieldFile, chunk: int, chunks: Chunks) -> int:
    """What is still to be written on this machine: chunks, unless a bucket has them, and the output [B]."""
    kept = fields.count if chunks.shared else min(len(chunks.done()) * chunk, fields.count)
    cells = math.prod(fields.grid)
    # HDF5 holds the input too
    given = fields.count if job.output.suffix.lower() in HDF5 else 0
    answers = (2 * fields.count - kept) * answer_dtype(job, fields.dtype).itemsize
    return cells * (answers + given * fields.dtype.itemsize)


def _require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk of a folder has no room for [B]."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"{folder}: expected {needed / 1e9:.1f} GB of free space, got {free / 1e9:.1f} GB"
        way_out = "choose another place (for an output in a bucket with TMPDIR), or ask for less"
        raise InvalidField("OUTPUT", "space", f"{message}; {way_out}")


@contextmanager
def _bulk_faults() -> Iterator[None]:
    """What engines and chunks raise, in the words of the service."""
    try:
        yield
    except OtherJob as error:
        raise InvalidField("OUTPUT", "recipe", str(error)) from error
    except EngineUnavailable as error:
        raise InvalidSettings(str(error)) from error
    except TaskFailed as error:
        raise WorkFailed(str(error)) from error
