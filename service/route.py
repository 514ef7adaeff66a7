"""How a request of a steady problem is computed: by which queue, together with what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, NamedTuple, final

from model_store.reference import Reference
from problems import Grid, SteadyProblem
from service.batching.batcher import Batcher
from service.ticket import Ticket
from service.versions.models import Models, Served, require_tested
from service.workers.worker import Bucket

__all__ = ["Chosen", "Router"]

# buckets that are remembered: one takes longer to make than to look up
_BUCKETS: Final = 256


@final
class Chosen(NamedTuple):
    """A queue and a bucket.

    Attributes:
        served: the version, which stays loaded as long as this refers to it; None: the reference solver.
    """

    queue: Batcher
    bucket: Bucket
    served: Served | None

    @property
    def hull(self) -> Mapping[str, float] | None:
        """Bounds of what the version was trained on; None: it was not trained."""
        return None if self.served is None else self.served.version.training_hull


@final
class Router:
    """Finds the version that a request means, and puts it into a bucket."""

    def __init__(self, models: Models, references: Batcher) -> None:
        self._models = models
        self._references = references
        # requests without a key go to a canary by turns
        self._turns = map(str, itertools.count())

    def surrogate(
        self,
        problem: SteadyProblem,
        model: str | None,
        key: str,
        grid: tuple[int, int],
        ticket: Ticket,
        task: Literal["solve", "vjp", "jvp"] = "solve",
    ) -> Chosen:
        """By the version that ``model`` means.

        Raises:
            UnknownModel: none is loaded.
            InvalidField: it solves another problem, or was not tested on this grid.
        """
        served = self._models.find(problem.name, model, key or next(self._turns))
        version = served.version
        require_tested(version, problem.inputs[0].name, grid)
        bucket = _surrogate_bucket(
            problem.name,
            version.name,
            version.version,
            version.scheme,
            grid,
            version.extent,
            task,
            reproducible=ticket.reproducible,
        )
        return Chosen(served.queue, bucket, served)

    def reference(self, problem: SteadyProblem, model: str | None, key: str, grid: tuple[int, int]) -> Chosen:
        """By the reference solver; a named model asks for the discrete operator of that model's labels.

        Raises:
            UnknownModel: the named one is not loaded.
            InvalidField: it solves another problem.
        """
        version = None if model is None else self._models.find(problem.name, model, key).version
        extent = (1.0, 1.0) if version is None else version.extent
        scheme = problem.schemes[0] if version is None else version.scheme
        # rows are solved one by one: their bits depend on no company
        bucket = Bucket(problem.name, None, scheme, Grid(grid, extent), "float64")
        return Chosen(self._references, bucket, None)


@lru_cache(_BUCKETS)
def _surrogate_bucket(
    problem: str,
    name: str,
    version: int,
    scheme: str,
    grid: tuple[int, int],
    extent: tuple[float, float],
    task: Literal["solve", "vjp", "jvp"],
    *,
    reproducible: bool,
) -> Bucket:
    reference, where = Reference(name, version), Grid(grid, extent)
    return Bucket(problem, reference, scheme, where, "float32", task=task, reproducible=reproducible)
