"""Who computes a batch: the seam between the event loop and the models, in a thread or in another process."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from model_store.reference import Reference
from problems import Grid

__all__ = [
    "ANSWER",
    "ANY",
    "AS_THE_GRID_RESOLVES",
    "BOUND_FIELDS",
    "CERTIFIED_FIELDS",
    "COTANGENT",
    "DEADLINE",
    "GRADIENT",
    "GRADIENT_ERROR",
    "INVARIANTS",
    "QUANTITIES",
    "STEP",
    "TANGENT",
    "TOLERANCE",
    "Batch",
    "Bucket",
    "Compute",
    "Solutions",
    "Task",
    "ThreadWorker",
    "Worker",
    "WorkerLost",
    "joined",
]

# among the fields of a batch: the number of the frame that a reference solver starts from, and before the
# name of an output field the answer whose error is to be bounded or that a solver starts from, or the
# cotangent of a gradient; before the name of an input its tangent
STEP: Final = "step"
ANSWER: Final = "answer."
COTANGENT: Final = "cotangent."
TANGENT: Final = "tangent."
# among the numbers of a row: what its answer has to meet, and when nobody waits for it any more, on the clock
# of ``time.perf_counter``, which all processes of a machine share [s]; infinite: never
TOLERANCE: Final = "tolerance"
DEADLINE: Final = "deadline"
# tolerances that are none: an answer is to be as exact as the grid resolves the equation; any will do
AS_THE_GRID_RESOLVES: Final = 0.0
ANY: Final = -1.0
# before the name of an input, among what a vjp gives
GRADIENT: Final = "gradient."
# of gradients and tangents, their guaranteed errors [batch direction]
GRADIENT_ERROR: Final = "error"
# what is wanted of a solution [batch quantity 3], and what is found [batch quantity 2]; see ``quantities.py``
QUANTITIES: Final = "quantities"
# among what an advance by a surrogate gives: the invariants of the frames [batch frame invariant]
INVARIANTS: Final = "invariants"
# what a bound gives for each row: the bound, and how the coefficient varies
BOUND_FIELDS: Final = ("lower", "upper", "l2_estimate", "steps", "contrast", "jump", "roughness")
# what a certificate gives beside: bounds of the relative error in L2 and at the worst point, and what
# rounding leaves unknown of the others
CERTIFIED_FIELDS: Final = (*BOUND_FIELDS, "l2_lower", "l2_upper", "max_lower", "max_upper", "floor")

# solve: inputs -> solutions; advance: states -> the next frames; bound: inputs and answers -> numbers about
# the error of each row; certify: the same, from both sides; refine: inputs, perhaps answers to start from,
# and tolerances -> solutions that meet them, and numbers about their errors; vjp and jvp: inputs and
# cotangents or tangents -> gradients or tangents of a surrogate, through one block where a state evolves;
# adjoint and tangent: the same of the discrete problem, several of each row, with their errors; quantities:
# inputs -> numbers of the solution
Task = Literal[
    "solve", "advance", "bound", "vjp", "jvp", "certify", "refine", "adjoint", "tangent", "quantities"
]


@final
@dataclass(frozen=True)
class Bucket:
    """What may be computed together: everything with the same version, scheme, grid and dtype.

    Attributes:
        version: the surrogate's version; None is the reference solver.
        scheme: id of the discrete operator.
        walls: boundary conditions, where a problem has several.
        task: what is to be computed.
        frames: of an ``advance``, the frames that one call gives; of the ``vjp`` of a problem that evolves,
            the frame of a block that has the cotangents, counted from 1.
        directions: of an ``adjoint`` or a ``tangent``, how many each row has; of ``quantities``, how many.
        chosen: of the ``jvp`` of a problem that evolves, the frames of a block whose tangents are wanted,
            counted from 1.
        reproducible: computed in batches of one fixed size, so that no answer depends on its company.
    """

    problem: str
    version: Reference | None
    scheme: str
    grid: Grid
    dtype: str
    walls: str | None = None
    task: Task = "solve"
    frames: int = 1
    reproducible: bool = False
    directions: int = 1
    chosen: tuple[int, ...] = ()


@final
class Batch(NamedTuple):
    """Inputs of one bucket: fields [batch y x] and numbers [batch] by name, in physical units."""

    bucket: Bucket
    fields: Mapping[str, NDArray[Any]]

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(next(iter(self.fields.values())))

    @property
    def nbytes(self) -> int:
        """Size of the inputs [B]."""
        return sum(field.nbytes for field in self.fields.values())


@final
class Solutions(NamedTuple):
    """Output fields by name, in the order of the inputs, and the iterations of each sample.

    A field is [batch y x], or [batch frame y x] where a state was stepped in time.

    Attributes:
        unsolved: why a row has no solution, by row; its numbers mean nothing.
        seconds: what the computation took, without the way to the worker and back [s].
        novelty: of each row, how many of the version's calibration samples are more like its training data,
            as a share of all [0, 1); empty: nothing is known. Of an ``advance``, of the given state.
    """

    fields: Mapping[str, NDArray[Any]]
    iterations: tuple[int, ...]
    unsolved: Mapping[int, str] = MappingProxyType({})
    seconds: float = 0.0
    novelty: tuple[float, ...] = ()

    def head(self, rows: int) -> Solutions:
        """The first rows."""
        if len(self.iterations) == rows:
            return self
        return Solutions(
            {name: values[:rows] for name, values in self.fields.items()},
            self.iterations[:rows],
            {row: why for row, why in self.unsolved.items() if row < rows},
            self.seconds,
            self.novelty[:rows],
        )


Compute = Callable[[Batch], Solutions]


def joined(parts: Sequence[Batch]) -> Batch:
    """The rows of all parts as one batch."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].fields
    return Batch(
        parts[0].bucket, {name: np.concatenate([part.fields[name] for part in parts]) for name in names}
    )


class WorkerLost(Exception):
    """The process that computed the batch is gone, and another will come.

    Args:
        text: which one, and how.
        absent: the batch was not computed at all, since no other has come so far.
    """

    def __init__(self, text: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.absent = absent


def computed(compute: Compute, batch: Batch, pad_to: int | None) -> Solutions:
    """What ``compute`` gives for the rows of ``batch``, computed in a batch of ``pad_to`` rows.

    The last row fills the batch up: whatever is computed for it is thrown away.
    """
    missing = 0 if pad_to is None else pad_to - batch.rows
    if missing <= 0:
        return compute(batch)
    padded = {
        name: np.concatenate([values, values[-1:].repeat(missing, 0)])
        for name, values in batch.fields.items()
    }
    return compute(Batch(batch.bucket, padded)).head(batch.rows)


class Worker(ABC):
    """Computes one batch at a time, off the event loop."""

    @abstractmethod
    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        """Solutions of all rows of ``parts``, which share a bucket, in their order.

        The parts come apart, so that putting them together costs the event loop nothing. May raise anything;
        the batcher reports it to these parts only.

        Args:
            parts: one or more batches of the same bucket.
            pad_to: compute with so many rows, of which those beyond the parts' are thrown away; None: as many
                as there are.

        Raises:
            WorkerLost: its process died; the batch may be tried again.
        """

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether it could begin a batch now, if it were idle."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Memory for inputs, uninitialised, from where this worker reads without another copy.

        It is given back when nothing refers to the array any more.

        Raises:
            Overloaded: there is none left for now.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for the running batch and release the resources."""


@final
class ThreadWorker(Worker):
    """A thread of its own: no copies, but the model shares the interpreter with the event loop."""

    def __init__(self, compute: Compute, prepare: Callable[[], None] = lambda: None) -> None:
        """``prepare`` runs once in the thread, for what is particular to a thread."""
        self._compute = compute
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker", initializer=prepare)

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, parts, pad_to)

    def _run(self, parts: Sequence[Batch], pad_to: int | None) -> Solutions:
        batch = joined(parts)
        began = time.perf_counter()
        solutions = computed(self._compute, batch, pad_to)
        return solutions._replace(seconds=time.perf_counter() - began)

    @property
    def available(self) -> bool:
        return True

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
