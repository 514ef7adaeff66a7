"""A surrogate on a CUDA device: a graph for each grid and batch size, fed through pinned memory.

A batch of a small operator is hundreds of kernels that each run for microseconds; launching them one by one
from Python takes longer than computing them. A graph is launched whole. It always reads and writes the same
device memory, so that it exists once for each batch size: 1, 2, 4, ... and the largest. A batch in between is
filled up.

The way of a batch: its rows are put together in pinned memory, and the copy stream takes each run of rows to
the device while the next one is put together; the compute stream replays the graph; the copy stream brings
the answer back. The arena itself is not pinned: its pages come and go, which pinned pages may not.

This has not run on a GPU yet; the tests that would show it are marked ``gpu``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final, NamedTuple, final

import torch

from problems import PROBLEMS
from service.workers.batch_token import Job
from service.workers.compute import Answer, Surrogates
from service.workers.lane_server import HostRunner, Runner, filled
from service.workers.sample import batch_sizes, sample
from service.workers.worker import Bucket, Solutions

__all__ = ["GraphRunner", "size_for"]

log = logging.getLogger("mno.service")

# runs before the capture: in the first ones libraries choose kernels, and allocate what they keep
WARM_UPS: Final = 3


def size_for(rows: int, max_batch: int) -> int | None:
    """The batch size whose graph computes so many rows; None: there is none."""
    return next((size for size in batch_sizes(max_batch) if size >= rows), None)


@final
class GraphRunner(Runner):
    """Computes jobs by graphs; without them where a capture fails; gradients and bounds always."""

    def __init__(self, surrogates: Surrogates, device: torch.device, max_batch: int) -> None:
        self._surrogates = surrogates
        self._eager = HostRunner(surrogates)
        self._max_batch = max_batch
        self._device = device
        compute, copy = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self._streams = _Streams(compute, copy)
        # graphs never run at the same time: they share the memory of their intermediate results
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[Bucket, int], _Graph | None] = {}

    def run(self, job: Job) -> Solutions:
        size = size_for(max(job.rows, job.pad_to or 0), self._max_batch)
        forward = job.bucket.task in ("solve", "advance")
        graph = self._graph(job.bucket, size) if forward and size is not None else None
        return self._eager.run(job) if graph is None else graph.run(job).head(job.rows)

    def usable(self) -> bool:
        try:
            torch.cuda.synchronize(self._device)
            # what a batch that did not fit has left
            torch.cuda.empty_cache()
        except RuntimeError:
            # an error of a kernel stays with the process
            log.exception("the device cannot be used any more")
            return False
        return True

    def _graph(self, bucket: Bucket, size: int) -> _Graph | None:
        key = replace(bucket, reproducible=False), size
        if key not in self._graphs:
            self._graphs[key] = self._captured(*key)
        return self._graphs[key]

    def _captured(self, bucket: Bucket, size: int) -> _Graph | None:
        try:
            with torch.cuda.device(self._device):
                return _Graph(self._surrogates, bucket, size, self._streams, self._pool)
        except RuntimeError as error:
            log.warning(
                "%s on %s in batches of %d is computed without a CUDA graph: %s",
                bucket.version,
                bucket.grid.shape,
                size,
                error,
            )
            return None


@final
class _Streams(NamedTuple):
    compute: torch.cuda.Stream
    copy: torch.cuda.Stream


@final
class _Graph:
    """The forward pass of one bucket for one batch size, with the memory that it reads and writes."""

    def __init__(
        self, surrogates: Surrogates, bucket: Bucket, size: int, streams: _Streams, pool: Any
    ) -> None:
        self._surrogates, self._bucket, self._streams = surrogates, bucket, streams
        fields = sample(PROBLEMS[bucket.problem], bucket.grid.shape, bucket.dtype, size)
        self._pinned = {name: torch.from_numpy(values).pin_memory() for name, values in fields.items()}
        device = streams.compute.device
        self._inputs = {name: values.to(device) for name, values in self._pinned.items()}
        streams.compute.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(streams.compute):
            for _ in range(WARM_UPS):
                surrogates.answer(bucket, self._inputs)
        streams.compute.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=streams.compute):
            self._answer = surrogates.answer(bucket, self._inputs)
        values, features = self._answer
        self._output = Answer(_pinned(values), None if features is None else _pinned(features))
        # waiting for it leaves the processor to others
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def run(self, job: Job) -> Solutions:
        """The solutions of all rows of the graph."""
        compute, copy = self._streams
        with torch.cuda.stream(copy):
            for name, pieces in job.pieces.items():
                pinned, on_device = self._pinned[name], self._inputs[name]
                for rows in filled(pinned.numpy(), pieces):
                    on_device[rows].copy_(pinned[rows], non_blocking=True)
        compute.wait_stream(copy)
        with torch.cuda.stream(compute):
            self._graph.replay()
        copy.wait_stream(compute)
        with torch.cuda.stream(copy):
            self._output.values.copy_(self._answer.values, non_blocking=True)
            if self._output.features is not None and self._answer.features is not None:
                self._output.features.copy_(self._answer.features, non_blocking=True)
            self._done.record(copy)
        self._done.synchronize()
        return self._surrogates.solutions(self._bucket, self._output)


def _pinned(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
