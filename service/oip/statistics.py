"""How often each version answered and how long it took, in the form of the Open Inference Protocol.

Each front counts for itself, whatever the protocol of the request: with several of them a client is told of
the one that it is connected to. ``/metrics`` adds nothing up either, but has the numbers of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, final

__all__ = ["Statistics"]

# batch sizes that are told apart; others are counted as the largest of them
MOST_BATCH_SIZES: Final = 64


@final
@dataclass
class _Duration:
    """How often, and how long altogether [ns]."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(1e9 * seconds)


@final
@dataclass
class _Version:
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    compute: _Duration = field(default_factory=_Duration)
    rows: int = 0
    # each request counts for its share of the batch that it was computed in
    executions: float = 0.0
    last: float = 0.0
    batches: dict[int, float] = field(default_factory=dict)
    batch_seconds: dict[int, float] = field(default_factory=dict)


@final
class Statistics:
    """What was answered, by model and version."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], _Version] = {}

    def answered(
        self, name: str, version: str, *, rows: int, batch: int, queue: float, compute: float, total: float
    ) -> None:
        """A request was answered.

        Args:
            name: of the model.
            version: its number.
            rows: samples of the request.
            batch: samples that were computed together with them, theirs included.
            queue: wait for the batch [s].
            compute: computing time of the batch [s].
            total: from the request to its answer [s].
        """
        known = self._of(name, version)
        known.success.add(total)
        known.queue.add(queue)
        known.compute.add(compute)
        known.rows += rows
        known.last = time.time()
        batches = known.batches
        size = batch if batch in batches or len(batches) < MOST_BATCH_SIZES else max(batches)
        share = rows / max(batch, 1)
        known.executions += share
        batches[size] = batches.get(size, 0.0) + share
        known.batch_seconds[size] = known.batch_seconds.get(size, 0.0) + share * compute

    def failed(self, name: str, version: str, total: float) -> None:
        """A request to a version that is loaded got no solution."""
        self._of(name, version).fail.add(total)

    def forget(self, name: str, version: str) -> None:
        """A version is not served any more."""
        self._versions.pop((name, version), None)

    def _of(self, name: str, version: str) -> _Version:
        known = self._versions.get((name, version))
        if known is None:
            known = self._versions[name, version] = _Version()
        return known

    def document(self, name: str, version: str) -> dict[str, Any]:
        """One entry of ``model_stats``."""
        known = self._versions.get((name, version), _Version())
        nothing = {"count": 0, "ns": 0}
        return {
            "name": name,
            "version": version,
            "last_inference": int(1000 * known.last),
            "inference_count": known.rows,
            "execution_count": round(known.executions),
            "inference_stats": {
                "success": vars(known.success),
                "fail": vars(known.fail),
                "queue": vars(known.queue),
                "compute_input": {"count": known.success.count, "ns": 0},
                "compute_infer": vars(known.compute),
                "compute_output": {"count": known.success.count, "ns": 0},
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": list(_batches(known)),
            "memory_usage": [],
        }


def _batches(known: _Version) -> Iterator[dict[str, Any]]:
    for size, count in sorted(known.batches.items()):
        ns = int(1e9 * known.batch_seconds[size])
        yield {
            "batch_size": size,
            "compute_input": {"count": round(count), "ns": 0},
            "compute_infer": {"count": round(count), "ns": ns},
            "compute_output": {"count": round(count), "ns": 0},
        }
